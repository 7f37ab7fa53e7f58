//! Services whose connections the proxy looks into before anybody knows what they carry.

use isthmus_model::topology::{SourceFile, parse};
use isthmus_model::{Identity, Layer4};

use crate::policy::Policy;
use crate::verdict::{Outcome, Query, Request, Stream};

const TOPOLOGY: &str = r#"
[host.a]
[service.web]
port = 1
hosts = ["a"]
workload = { user = "web" }
[service.reader]
port = 1
hosts = ["a"]
workload = { user = "reader" }
[service.stranger]
port = 1
hosts = ["a"]
workload = { user = "stranger" }
[service.mixed]
port = 80
protocol = "auto"
hosts = ["a"]
workload = { user = "mixed" }
[service.sealed]
port = 443
protocol = "tls"
hosts = ["a"]
workload = { user = "sealed" }
[service.told]
port = 25
proxy_protocol = "v1"
hosts = ["a"]
workload = { user = "told" }
[[deny]]
name = "nobody administers"
from = "any"
to = "service:mixed"
http = [{ path = "/admin" }]
[[deny]]
name = "reader sends nothing"
from = "service:reader"
to = ["service:sealed", "service:told"]
[[allow]]
name = "reader reads"
from = "service:reader"
to = "service:mixed"
http = [{ method = "GET" }]
[[deny]]
name = "vaults are closed"
from = "any"
to = "service:sealed"
sni = ["vault.example", "*.vault.example"]
[[allow]]
name = "stranger shops"
from = "service:stranger"
to = ["service:sealed", "service:mixed"]
sni = "shop.example"
[[allow]]
name = "web does all"
from = "service:web"
to = "any"
"#;

/// What a connection is, as far as the proxy knows.
#[derive(Clone, Copy)]
enum Seen {
    Nothing,
    Get(&'static str),
    Is(Stream<'static>),
}

#[test]
fn what_is_no_http_is_judged_as_a_connection() {
    use Outcome::{Allow, Deny, Inspect};
    use Seen::{Get, Is, Nothing};
    let cases = [
        ("web", "mixed", Nothing, Inspect),
        ("web", "mixed", Get("/a"), Allow),
        ("web", "mixed", Get("/admin"), Deny),
        ("web", "mixed", Is(Stream::Tcp), Allow),
        ("web", "mixed", Is(Stream::Tls(None)), Allow),
        // A rule about requests lets in nothing else.
        ("reader", "mixed", Nothing, Inspect),
        ("reader", "mixed", Get("/a"), Allow),
        ("reader", "mixed", Is(Stream::Tcp), Deny),
        ("reader", "mixed", Is(Stream::Tls(None)), Deny),
        // Nor does a rule about server names.
        ("stranger", "mixed", Nothing, Inspect),
        ("stranger", "mixed", Get("/a"), Deny),
        ("stranger", "mixed", Is(Stream::Tcp), Deny),
        ("stranger", "mixed", Is(Stream::Tls(None)), Deny),
        ("stranger", "mixed", Is(Stream::Tls(Some("shop.example"))), Allow),
        ("stranger", "sealed", Is(Stream::Tls(Some("shop.example"))), Allow),
        ("stranger", "sealed", Is(Stream::Tls(Some("a.shop.example"))), Deny),
        ("stranger", "told", Nothing, Deny),
        ("web", "sealed", Is(Stream::Tls(Some("vault.example"))), Deny),
        ("web", "sealed", Is(Stream::Tls(Some("a.vault.example"))), Deny),
        ("web", "sealed", Is(Stream::Tls(Some("avault.example"))), Allow),
        ("web", "sealed", Nothing, Inspect),
        ("web", "sealed", Is(Stream::Tls(None)), Allow),
        ("reader", "sealed", Nothing, Deny),
        ("web", "told", Nothing, Inspect),
        ("web", "told", Is(Stream::Tcp), Allow),
        ("reader", "told", Nothing, Deny),
    ];
    let files = [SourceFile { name: "t.toml".into(), text: TOPOLOGY.into() }];
    let topology = parse(&files).unwrap();
    let policy = Policy::for_topology(&topology);
    let identity = |name: &str| Identity::Service {
        namespace: "default".parse().unwrap(),
        name: name.parse().unwrap(),
    };
    for (from, to, seen, outcome) in cases {
        let layer4 = Layer4::Tcp(topology.services[to].port);
        let (from, to) = (identity(from), identity(to));
        let mut query = Query { from: &from, to: &to, layer4, request: None };
        let verdict = match seen {
            Nothing => policy.evaluate(&query),
            Get(path) => {
                query.request = Some(Request::new("GET", path));
                policy.evaluate(&query)
            }
            Is(stream) => policy.evaluate_stream(&query, stream),
        };
        assert_eq!(verdict.outcome, outcome, "{from} to {to}: {verdict:?}");
    }
}
