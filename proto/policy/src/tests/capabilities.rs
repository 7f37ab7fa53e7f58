//! Rules as an older agent reads them: it never allows what the newest denies.

use std::sync::Arc;

use isthmus_model::capability::{Capabilities, Capability, Effect, fit_rules};
use isthmus_model::topology::Topology;
use isthmus_model::{Action, Identity, Layer4, RequestMatch, Rule, Rules};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use serde_json::json;

use super::topology;
use crate::policy::Policy;
use crate::verdict::{Query, Request, Stream, Token};

/// Each entry and each rule asks for something else; the strategies mix them anew.
const TOPOLOGY: &str = r#"
[host.a]
[jwt.corp]
issuer = "https://id.example"
jwks = "/etc/keys.json"
[service.web]
port = 80
protocol = "http"
paths = "as-is"
hosts = ["a"]
workload = { user = "web" }
[service.mixed]
port = 443
protocol = "auto"
hosts = ["a"]
workload = { user = "mixed" }
[service.client]
port = 1
hosts = ["a"]
workload = { user = "client" }
[[deny]]
name = "entries"
from = "any"
to = "service:web"
http = [
    { method = "GET" },
    { path = "/a/*" },
    { path = { regex = "/a/.*" } },
    { path = "/a/*", host = "a.example" },
    { host = ["*.example"] },
    { header = { x = "1" } },
    { method = "GET", header = { x = "1", y = { regex = ".*" } } },
    { query = { q = "1" } },
    { jwt = { provider = "corp", claims = { role = "admin" } } },
    { when = "request.method == 'GET'" },
    { when = "has(request.headers.x)", header = { x = "1" } },
]
[[deny]]
name = "names"
from = "any"
to = "service:mixed"
sni = ["a.example", "*.b.example"]
"#;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn an_older_agent_never_allows_what_the_newest_denies(
        default in select(vec![Action::Allow, Action::Deny]),
        rules in prop::collection::vec(a_rule(), 1..8),
        lacking in subsequence(Capability::ALL.to_vec(), 0..=Capability::ALL.len()),
        asks in prop::collection::vec(an_ask(), 12),
    ) {
        let names = Capability::ALL.iter().filter(|one| !lacking.contains(one));
        let has = Capabilities::from_names(names.map(|one| one.name()));
        let (sent, lacks) = fit_rules(rules.clone(), has);
        let seen: Vec<Rule> = sent.iter().cloned().map(|rule| erase(rule, &lacking)).collect();
        prop_assert_eq!(&seen, &sent, "an agent is sent nothing that it drops");
        prop_assert_eq!(lacks.is_empty(), sent == rules, "what differs is said");
        let newest = policy(default, rules);
        let older = policy(default, seen);
        for ask in &asks {
            prop_assert!(ask.denied_by(&newest) <= ask.denied_by(&older), "{ask:?}");
        }
    }
}

#[test]
fn an_allow_that_would_be_wider_is_withheld_and_a_deny_goes_through_wider() {
    let has = Capabilities::from_names(["host"]);
    let whole = pool();
    let names = whole[1].clone();
    let allow = |rule: &Rule| Rule { action: Action::Allow, ..rule.clone() };
    let (sent, lacks) = fit_rules(vec![allow(&names), names.clone()], has);
    assert_eq!(sent, [Rule { sni: Vec::new(), ..names }]);
    let effects: Vec<_> = lacks.iter().map(|lack| (lack.capability, lack.effect)).collect();
    let sni = Capability::Sni;
    assert_eq!(effects, [(sni, Effect::Withheld), (sni, Effect::Wider)]);
    // Of several entries, those that it understands stay.
    let (sent, _) = fit_rules(vec![allow(&whole[0])], has);
    let plain = |it: &RequestMatch| it.is_plain() || !it.hosts.is_empty();
    let kept: Vec<_> = whole[0].http.iter().filter(|it| plain(it)).cloned().collect();
    assert_eq!((kept.len(), &sent[0].http), (4, &kept));
}

/// What an agent reads that knows nothing of these fields.
fn erase(mut rule: Rule, unknown: &[Capability]) -> Rule {
    for capability in unknown {
        let entries = rule.http.iter_mut();
        match capability {
            Capability::PathRegex => entries.for_each(|it| it.path_regex = None),
            Capability::Host => entries.for_each(|it| it.hosts.clear()),
            Capability::Header => entries.for_each(|it| it.headers.clear()),
            Capability::Query => entries.for_each(|it| it.query.clear()),
            Capability::Jwt => entries.for_each(|it| it.jwt = None),
            Capability::When => entries.for_each(|it| it.when = None),
            Capability::Sni => rule.sni.clear(),
            Capability::Audit => rule.audit = false,
            Capability::Tls
            | Capability::Auto
            | Capability::Route
            | Capability::RateLimit
            | Capability::Gateway
            | Capability::External
            | Capability::Exposure
            | Capability::Listener
            | Capability::Listen
            | Capability::NoPort
            | Capability::Source
            | Capability::Ports
            | Capability::AuditScope
            | Capability::Container
            | Capability::KeyRotation => {}
        }
    }
    rule
}

fn read() -> Topology {
    topology(TOPOLOGY)
}

fn pool() -> Vec<Rule> {
    read().rules.rules
}

fn policy(default: Action, rules: Vec<Rule>) -> Policy {
    let mut topology = read();
    topology.rules = Rules { default, audit: false, audited: Vec::new(), rules };
    Policy::for_topology(&topology)
}

prop_compose! {
    fn a_rule()(
        action in select(vec![Action::Allow, Action::Deny]),
        entries in subsequence(pool()[0].http.clone(), 0..4),
        sni in subsequence(pool()[1].sni.clone(), 0..=2),
        to in select(vec!["any", "service:web", "service:mixed", "service:*"]),
        audit in prop::bool::weighted(0.2),
        number in 0..1_000_000_u32,
    ) -> Rule {
        let audit = audit && action == Action::Deny;
        let to = vec![to.parse().unwrap()];
        let name = Arc::from(format!("rule {number}"));
        Rule { name, action, to, http: entries, sni, audit, ..pool()[0].clone() }
    }
}

/// A question that owns what it asks about.
#[derive(Clone, Debug)]
struct Ask {
    to: &'static str,
    method: &'static str,
    path: &'static str,
    host: &'static str,
    query: &'static str,
    headers: Vec<(String, String)>,
    tokens: Vec<Token>,
    /// TLS rather than a request.
    name: Option<Option<&'static str>>,
}

prop_compose! {
    fn an_ask()(
        to in select(vec!["web", "mixed"]),
        method in select(vec!["GET", "POST"]),
        path in select(vec!["/", "/a/b", "/b", "/a//b"]),
        host in select(vec!["a.example", "b.example", "other"]),
        query in select(vec!["", "q=1", "q=2"]),
        headers in subsequence(vec![("x", "1"), ("x", "2"), ("y", "1")], 0..=3),
        role in prop::option::of(select(vec!["admin", "user"])),
        name in prop::option::weighted(
            0.3,
            prop::option::of(select(vec!["a.example", "c.b.example", "z"])),
        ),
    ) -> Ask {
        let headers = headers.into_iter().map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
        let token = |role| Token {
            provider: "corp".parse().unwrap(),
            claims: Arc::new(json!({ "role": role }).as_object().unwrap().clone()),
        };
        let tokens = role.into_iter().map(token).collect();
        Ask { to, method, path, host, query, headers, tokens, name }
    }
}

impl Ask {
    fn denied_by(&self, policy: &Policy) -> bool {
        let identity = |name: &str| Identity::Service {
            namespace: "default".parse().unwrap(),
            name: name.parse().unwrap(),
        };
        let port = if self.to == "web" { 80 } else { 443 };
        let request = Request {
            host: self.host,
            query: self.query,
            headers: &self.headers,
            tokens: &self.tokens,
            ..Request::new(self.method, self.path)
        };
        let (from, to, layer4) = (identity("client"), identity(self.to), Layer4::Tcp(port));
        let query = Query { from: &from, to: &to, layer4, request: Some(request) };
        match self.name {
            Some(name) if self.to == "mixed" => {
                let query = Query { request: None, ..query };
                policy.evaluate_stream(&query, Stream::Tls(name)).denies()
            }
            Some(_) | None => policy.evaluate(&query).denies(),
        }
    }
}
