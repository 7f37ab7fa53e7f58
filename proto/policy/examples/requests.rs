//! What judging a request costs, by the number of rules, and by what they ask for.

#![expect(clippy::print_stdout, reason = "it is a program that tells what it measured")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use isthmus_model::topology::{SourceFile, parse};
use isthmus_model::{Identity, Layer4, Name};
use isthmus_policy::{Outcome, Policy, Query, Request};

const SERVICES: usize = 100;

/// A mesh with so many rules, each from one service to another, the last of them the one that fits.
fn mesh(rules: usize, http: &str) -> Policy {
    let mut text = "[host.a]\n".to_owned();
    for number in 0..SERVICES {
        text += &format!(
            "[service.s{number}]\nport = 80\nprotocol = \"http\"\nhosts = [\"a\"]\nworkload = {{ user = \"{number}\" }}\n"
        );
    }
    for number in 0..rules {
        let (from, to) = (number % SERVICES, number / SERVICES % SERVICES);
        text += &format!(
            "[[allow]]\nname = \"r{number}\"\nfrom = \"service:s{from}\"\nto = \"service:s{to}\"\nhttp = [{http}]\n"
        );
    }
    let file = SourceFile { name: "mesh.toml".into(), text };
    let topology = parse(&[file]).unwrap_or_else(|wrong| panic!("{wrong:?}"));
    Policy::for_topology(&topology)
}

fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

/// The best of several rounds, for one decision.
fn measure(policy: &Policy) -> Duration {
    const ROUNDS: u32 = 20;
    const EACH: u32 = 5_000;
    let service = || Identity::Service { namespace: name("default"), name: name("s0") };
    let (from, to) = (service(), service());
    let headers = vec![("user-agent", "curl"), ("x-canary", "1"), ("accept", "*/*")];
    let request = Request {
        host: "s0.default.mesh.internal",
        query: "version=2&q=x",
        headers: &headers,
        ..Request::new("GET", "/accounts/17/orders")
    };
    let query = Query { from: &from, to: &to, layer4: Layer4::Tcp(80), request: Some(request) };
    assert_eq!(policy.evaluate(&query).outcome, Outcome::Allow, "{:?}", policy.explain(&query));
    let round = |_| {
        let begin = Instant::now();
        for _ in 0..EACH {
            black_box(policy.evaluate(black_box(&query)));
        }
        begin.elapsed() / EACH
    };
    (0..ROUNDS).map(round).min().unwrap_or_default()
}

fn main() {
    for (what, http) in [
        ("method and path", r#"{ method = "GET", path = "/accounts/{id}/orders" }"#),
        ("expression", r#"{ path = { regex = "/accounts/[0-9]+/orders" } }"#),
        ("header and query", r#"{ header = { x-canary = "1" }, query = { version = "2" } }"#),
        ("condition", r#"{ when = "request.method == 'GET'" }"#),
    ] {
        let of = |rules| measure(&mesh(rules, http));
        println!("{what}: {:?} of 1 rule, {:?} of 10,000", of(1), of(10_000));
    }
}
