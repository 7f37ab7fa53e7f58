//! Suggestions of `explain`, applied.

use std::borrow::Cow;
use std::sync::Arc;

use isthmus_model::topology::{SourceFile, Topology, parse};
use isthmus_model::{Identity, Layer4};
use proptest::prelude::*;
use serde_json::json;

use super::topology;
use crate::path::canonical_in;
use crate::policy::Policy;
use crate::verdict::{DecidedBy, Query, Request, Token};

const BASE: &str = r#"
[host.a]
[host.b]
[device.press]
wireguard = { public_key = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=" }
via = "a"
[jwt.login]
issuer = "https://login.example"
jwks = "/etc/keys.json"
[service.client]
namespace = "prod"
port = 9000
hosts = ["a"]
workload = { user = "client" }
[service.log]
namespace = "ops"
port = 514
protocol = "udp"
hosts = ["b"]
workload = { user = "log" }
[service.mixed]
namespace = "ops"
port = 80
protocol = "auto"
ports.extra = { port = 9090, protocol = "http" }
ports.raw = { port = 7000, protocol = "tcp" }
hosts = ["b"]
workload = { user = "mixed" }
[service.sealed]
port = 443
protocol = "tls"
hosts = ["b"]
workload = { user = "sealed" }
"#;

const MODES: [&str; 4] = ["strict", "merge-slashes", "decode-and-merge-slashes", "as-is"];
const ANYBODY: [&str; 8] = [
    "any",
    "service:*",
    "service:client",
    "service:web",
    "service:mixed",
    "namespace:prod",
    "host:a",
    "device:*",
];
const WITH_REQUESTS: [&str; 5] =
    ["any", "service:*", "service:web", "service:mixed", "namespace:prod"];
const WHAT: [&str; 8] = [
    "",
    "",
    r#"ports = ["tcp/22", "icmp"]"#,
    r#"ports = ["tcp"]"#,
    r#"http = [{ method = "GET", path = "/a/*" }]"#,
    r#"http = [{ path = "/a" }, { method = "POST", jwt = { provider = "login", claims = { role = "admin" } } }]"#,
    r#"http = [{ method = "GET", header = { x-ticket = true } }]"#,
    r#"when = "request.path == '/'""#,
];
const PATHS: [&str; 16] = [
    "/",
    "/a",
    "/a/",
    "/a/b",
    "/a/b.c(d)",
    "/a%20b",
    "/%C3%A4\u{e4}",
    "/a*b",
    "/*",
    "/{id}/x",
    "/a//b",
    "/a/../b",
    "/a;b",
    "/%2561",
    "/a/**",
    "*",
];

/// A question that owns what it asks about.
#[derive(Clone, Debug)]
struct Ask {
    from: &'static str,
    to: &'static str,
    layer4: Layer4,
    request: Option<(&'static str, &'static str)>,
    tokens: Vec<Token>,
}

impl Ask {
    fn with<R>(&self, topology: &Topology, about: impl FnOnce(&Query<'_>) -> R) -> R {
        let identity =
            |text: &str| crate::check::identity(topology, &text.parse().unwrap()).unwrap();
        let (from, to): (Identity, Identity) = (identity(self.from), identity(self.to));
        let request = self
            .request
            .map(|(method, path)| Request { tokens: &self.tokens, ..Request::new(method, path) });
        about(&Query { from: &from, to: &to, layer4: self.layer4, request })
    }

    fn is_denied(&self, topology: &Topology) -> bool {
        self.with(topology, |query| Policy::for_topology(topology).evaluate(query).denies())
    }

    /// Why no rule can be about it.
    fn is_beyond_rules(&self, topology: &Topology) -> bool {
        let to_service = self.to.starts_with("service:");
        let odd = |(method, path): (&str, &str)| {
            method == "get" || (path != "*" && self.compared(path, topology).is_none())
        };
        (to_service && matches!(self.layer4, Layer4::Other(_))) || self.request.is_some_and(odd)
    }

    /// A path as rules about the service compare it.
    fn compared(&self, path: &str, topology: &Topology) -> Option<String> {
        let service = self.to.strip_prefix("service:")?;
        let mode = topology.services[service].paths;
        canonical_in(mode, path).ok().map(Cow::into_owned)
    }

    /// Whether a rule as narrow as one about the other is about this, too.
    fn is_within(&self, other: &Self, topology: &Topology) -> bool {
        let ends = (self.from, self.to) == (other.from, other.to);
        let everything = matches!(other.layer4, Layer4::Other(_));
        let requests = match (self.request, other.request) {
            (Some((method, path)), Some((wanted, other))) => {
                let compared = |path| self.compared(path, topology);
                method == wanted && (other == "*" || compared(path) == compared(other))
            }
            // Without a request the rule is about all; asked without one, some may pass.
            (None, _) | (_, None) => true,
        };
        ends && (self.layer4 == other.layer4 || everything) && requests
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_500))]

    #[test]
    fn what_is_suggested_allows_what_was_asked_and_nothing_else(
        text in a_topology(),
        (ask, another) in (a_question(), a_question()).prop_flat_map(|(ask, another)| {
            // Most of what a rule could allow beside lies between the same two.
            let near = Ask { from: ask.from, to: ask.to, request: None, ..another.clone() };
            (Just(ask), prop_oneof![Just(another), Just(near)])
        }),
    ) {
        let before = topology(&text);
        let explanation =
            ask.with(&before, |query| Policy::for_topology(&before).explain(query));
        let verdict = explanation.verdict;
        let by_default = verdict.denies() && verdict.decided_by == DecidedBy::Default
            || verdict.would_deny == Some(DecidedBy::Default);
        let Some(suggestion) = explanation.suggestion else {
            prop_assert!(!by_default || ask.is_beyond_rules(&before), "{ask:?} can be allowed");
            return Ok(());
        };
        prop_assert!(by_default);
        let more = format!("{text}\n{suggestion}");
        let file = SourceFile { name: "mesh.toml".into(), text: more.clone() };
        let after = match parse(&[file]) {
            Ok(after) => after,
            Err(wrong) => return Err(TestCaseError::fail(format!("{wrong:?} in\n{suggestion}"))),
        };
        prop_assert!(!ask.is_denied(&after), "{ask:?} is still denied with\n{suggestion}");
        let now = ask.with(&after, |query| Policy::for_topology(&after).explain(query));
        prop_assert_eq!(now.verdict.would_deny, None);
        prop_assert_eq!(now.suggestion, None);
        let is_new = another.is_denied(&before) && !another.is_denied(&after);
        prop_assert!(!is_new || another.is_within(&ask, &after), "{another:?} passes by\n{suggestion}");
    }
}

#[test]
fn a_suggestion_reads_well_and_has_a_name_of_its_own() {
    let rule = "[[allow]]\nname = \"service:client to host:a, tcp/22\"\nfrom = \"device:press\"\nto = \"any\"\n";
    let text = format!("{BASE}{}{rule}", web("strict"));
    let suggested = |ask: &Ask| {
        let topology = topology(&text);
        let policy = Policy::for_topology(&topology);
        ask.with(&topology, |query| policy.explain(query)).suggestion.map(|it| it.to_string())
    };
    let ssh = Ask {
        from: "service:client",
        to: "host:a",
        layer4: Layer4::Tcp(22),
        request: None,
        tokens: Vec::new(),
    };
    assert_eq!(
        suggested(&ssh).unwrap(),
        "[[allow]]\nname = \"service:client to host:a, tcp/22 (2)\"\nfrom = \"service:client\"\n\
         to = \"host:a\"\nports = [\"tcp/22\"]\n"
    );
    let request = Ask {
        to: "service:web",
        layer4: Layer4::Tcp(8080),
        request: Some(("GET", "/a%20b")),
        ..ssh
    };
    assert_eq!(
        suggested(&request).unwrap(),
        "[[allow]]\nname = \"service:client to service:web, GET /a%20b\"\nfrom = \"service:client\"\n\
         to = \"service:web\"\nhttp = [{ method = \"GET\", path = { regex = \"/a%20b\" } }]\n"
    );
}

fn web(paths: &str) -> String {
    format!(
        "[service.web]\nnamespace = \"prod\"\nport = 8080\nprotocol = \"http\"\nhosts = [\"b\"]\n\
         workload = {{ user = \"web\" }}\npaths = \"{paths}\"\n"
    )
}

fn a_topology() -> impl Strategy<Value = String> {
    let audit = prop::bool::weighted(0.1);
    let rules = prop::collection::vec(a_rule(), 0..8);
    (prop::sample::select(&MODES[..]), audit, rules).prop_map(|(mode, audit, rules)| {
        let mut text = format!("[policy]\naudit = {audit}\n{BASE}{}", web(mode));
        for (number, rule) in rules.iter().enumerate() {
            text.push_str(&rule.replace("NUMBER", &number.to_string()));
        }
        text
    })
}

prop_compose! {
    fn a_rule()(
        kind in prop::sample::select(vec!["allow", "allow", "deny"]),
        from in prop::sample::select(&ANYBODY[..]),
        to in prop::sample::select(&ANYBODY[..]),
        served in prop::sample::select(&WITH_REQUESTS[..]),
        what in prop::sample::select(&WHAT[..]),
    ) -> String {
        let requests = what.starts_with("http") || what.starts_with("when");
        let to = if requests { served } else { to };
        format!("[[{kind}]]\nname = \"rule NUMBER\"\nfrom = \"{from}\"\nto = \"{to}\"\n{what}\n")
    }
}

prop_compose! {
    fn a_question()(
        from in prop::sample::select(vec![
            "service:client", "service:client", "service:web", "host:a", "host:b", "device:press",
        ]),
        to in prop::sample::select(vec![
            "service:web", "service:web", "service:web", "service:mixed", "service:sealed",
            "service:log", "host:a", "host:b", "device:press",
        ]),
        port in prop::sample::select(vec![
            "tcp/22", "udp/53", "icmp", "ip/47", "udp/514", "tcp/9090", "tcp/7000",
        ]),
        is_own in prop::bool::weighted(0.8),
        request in prop::option::weighted(0.7, (
            prop::sample::select(vec!["GET", "POST", "PURGE", "get"]),
            prop::sample::select(&PATHS[..]),
        )),
        token in prop::option::weighted(0.3, prop::sample::select(vec![
            json!({ "role": "admin" }),
            json!({ "role": ["user", "\"admin\""], "n": 7, "scope": "read write", "o": { "a": 1 } }),
            json!({}),
        ])),
    ) -> Ask {
        let own = match to {
            "service:web" => Some("tcp/8080"),
            "service:mixed" => Some("tcp/80"),
            "service:sealed" => Some("tcp/443"),
            "service:log" => Some("udp/514"),
            _ => None,
        };
        let port = own.filter(|_| is_own).unwrap_or(port);
        let layer4 = port.parse().unwrap();
        let has_requests = matches!(
            (to, port),
            ("service:web", "tcp/8080") | ("service:mixed", "tcp/80" | "tcp/9090")
        );
        let claims = |claims: serde_json::Value| Arc::new(claims.as_object().unwrap().clone());
        let token = token.map(|it| Token { provider: "login".parse().unwrap(), claims: claims(it) });
        Ask {
            from,
            to,
            layer4,
            request: request.filter(|_| has_requests),
            tokens: token.into_iter().collect(),
        }
    }
}
