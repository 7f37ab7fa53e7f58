//! The cost of a policy decision about a request, by the number of rules, and by what they ask for: rules between many
//! services, of which few relate the two, and rules that all do.

#![expect(clippy::print_stdout, reason = "it is a program that tells what it measured")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use isthmus_model::topology::{SourceFile, parse};
use isthmus_model::{Identity, Layer4, Name};
use isthmus_policy::{Outcome, Policy, Query, Request};

const SERVICES: usize = 100;

/// Who is related by the rules.
#[derive(Clone, Copy)]
enum Spread {
    /// Each relates one service to another, and one of them the two that are asked about.
    Wide,
    /// All relate the same two, and the last one fits.
    Same,
}

/// A mesh with so many rules. `#` in what they ask for is a number that only the last one lacks.
fn mesh(rules: usize, http: &str, spread: Spread) -> Policy {
    let mut text = "[mesh]\nhost_block = 24\n[host.a]\n".to_owned();
    for number in 0..SERVICES {
        text += &format!(
            "[service.s{number}]\nport = 80\nprotocol = \"http\"\nhosts = [\"a\"]\nworkload = {{ user = \"{number}\" }}\n"
        );
    }
    for number in 0..rules {
        let (from, to) = match spread {
            Spread::Wide => (number % SERVICES, number / SERVICES % SERVICES),
            Spread::Same => (0, 0),
        };
        let is_asked_for = match spread {
            Spread::Wide => number == 0,
            Spread::Same => number + 1 == rules,
        };
        let own = if is_asked_for { String::new() } else { number.to_string() };
        let http = http.replace('#', &own);
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
        ("method and path", r#"{ method = "GET", path = "/accounts#/{id}/orders" }"#),
        ("expression", r#"{ path = { regex = "/accounts#/[0-9]+/orders" } }"#),
        ("header and query", r#"{ header = { x-canary = "1#" }, query = { version = "2" } }"#),
        ("condition", r#"{ when = "request.method == 'GET#'" }"#),
    ] {
        let of = |rules, spread| measure(&mesh(rules, http, spread));
        println!(
            "{what}: {:?} of 1 rule; of 10,000 {:?}, or {:?} if all relate the same two",
            of(1, Spread::Wide),
            of(10_000, Spread::Wide),
            of(10_000, Spread::Same),
        );
    }
}
