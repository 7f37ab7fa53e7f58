//! Right topologies mean what they say.

use super::*;
use std::time::Duration;

use crate::application::Application;
use crate::guard::{Exposure, ListenerCheck};
use crate::name::Name;
use crate::route::{PathChange, RetryOn, RouteAction, Share};
use crate::rules::{Action, Layer4, Origin, PortRule, Subject};
use crate::snapshot::{ContainerMatch, Protocol, Selector};

const CONFIGS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../configs");

#[test]
fn every_example_topology_is_right() {
    let mut examples = 0;
    for entry in std::fs::read_dir(CONFIGS).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        // The others are settings; the programs that read them test them.
        if name.ends_with(".toml") && name != "agent.toml" && name != "controller.toml" {
            examples += 1;
            let text = std::fs::read_to_string(&path).unwrap();
            let topology = parse(&[named(&name, &text)]);
            let topology = topology.unwrap_or_else(|errors| panic!("{}", show(&errors)));
            assert!(!topology.rules.rules.is_empty(), "{name}");
        }
    }
    assert!(examples > 1);
}

#[test]
fn nothing_is_a_topology() {
    assert_eq!(parse(&[]), Ok(Topology::default()));
    assert_eq!(read("# nothing\n"), Topology::default());
}

#[test]
fn what_is_not_said_has_its_default() {
    let topology = read(
        "[host.a]\n[service.web]\nport = 80\nhosts = [\"a\"]\n[[allow]]\nname = \"r\"\nfrom = \"any\"\nto = \"any\"",
    );
    assert_eq!(topology.mesh.ipv4.to_string(), "100.64.0.0/10");
    assert_eq!(topology.mesh.virtual_ipv4.to_string(), "100.127.0.0/16");
    assert_eq!(topology.mesh.host_block, 28);
    let web = &topology.services["web"];
    assert_eq!(web.namespace.as_str(), "default");
    assert_eq!(web.protocol, Protocol::Tcp);
    assert_eq!(web.application, Application::default());
    assert_eq!(web.selectors, []);
    assert_eq!((web.exposure, web.listener), (None, ListenerCheck::Warn));
    assert_eq!(topology.rules.default, Action::Deny);
    assert!(!topology.rules.audit);
    assert_eq!(topology.rules.rules[0].ports, []);
}

#[test]
fn virtual_addresses_are_the_end_of_the_range_by_default() {
    let by_default = |ipv4: &str| read(&format!("[mesh]\nipv4 = \"{ipv4}\"")).mesh.virtual_ipv4;
    assert_eq!(by_default("10.0.0.0/8").to_string(), "10.255.0.0/16");
    assert_eq!(by_default("100.64.0.0/14").to_string(), "100.67.0.0/16");
    assert_eq!(by_default("10.0.0.0/16").to_string(), "10.0.192.0/18");
    assert_eq!(by_default("192.168.7.0/24").to_string(), "192.168.7.192/26");
}

#[test]
fn every_key_is_read() {
    let topology = read(
        r#"
[mesh]
name = "corp"
trust_domain = "corp.example"
ipv4 = "10.0.0.0/8"
virtual_ipv4 = "10.9.0.0/16"
host_block = 26
exposure = "open"
[host.gw]
site = "dc1"
labels = { role = "gw" }
endpoints = ["192.0.2.1:51820", "[2001:db8::1]:1"]
ipv4_block = "10.1.0.0/24"
[service.api]
namespace = "prod"
port = 53
protocol = "udp"
hosts = { role = "gw" }
workload = { systemd = "api.service", user = "33", exe = "/bin/api", cgroup = "/a.slice", container = { name = "api", image = "r.example/api:1", label = { "com.example/app" = "api" } } }
exposure = "mesh"
listener = "strict"
[device.press]
wireguard = { public_key = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=" }
via = "gw"
[policy]
default = "allow"
audit = true
[[deny]]
name = "no"
from = ["device:press", "host:*"]
to = "namespace:prod"
ports = ["tcp/22", "udp/5-9", "icmp"]
audit = true
[[test]]
name = "t"
from = "host:gw"
to = "device:press"
port = "icmp"
expect = "allow"
"#,
    );
    let MeshDecl { name, trust_domain, ipv4, virtual_ipv4, host_block, exposure } = &topology.mesh;
    assert_eq!(*exposure, Some(Exposure::Open));
    assert_eq!(name.as_ref().unwrap().as_str(), "corp");
    assert_eq!(trust_domain.as_ref().unwrap().as_str(), "corp.example");
    assert_eq!(
        (ipv4.to_string(), virtual_ipv4.to_string(), *host_block),
        ("10.0.0.0/8".into(), "10.9.0.0/16".into(), 26)
    );
    let gw = &topology.hosts["gw"];
    assert_eq!(gw.site.as_ref().unwrap().as_str(), "dc1");
    assert_eq!(gw.labels["role"], "gw");
    assert_eq!(
        gw.endpoints,
        ["192.0.2.1:51820".parse().unwrap(), "[2001:db8::1]:1".parse().unwrap()]
    );
    assert_eq!(gw.ipv4_block.unwrap().to_string(), "10.1.0.0/24");
    assert_eq!(gw.origin, Origin { file: "mesh.toml".into(), line: 9 });
    let api = &topology.services["api"];
    assert_eq!((api.port, api.protocol), (53, Protocol::Udp));
    assert_eq!(api.hosts, Placement::Labels([("role".to_owned(), "gw".to_owned())].into()));
    assert_eq!(
        api.selectors,
        [
            Selector::Systemd("api.service".into()),
            Selector::User("33".into()),
            Selector::Exe("/bin/api".into()),
            Selector::Cgroup("/a.slice".into()),
            Selector::Container(ContainerMatch {
                name: Some("api".into()),
                image: Some("r.example/api:1".into()),
                labels: [("com.example/app".to_owned(), "api".to_owned())].into(),
            }),
        ]
    );
    assert_eq!((api.exposure, api.listener), (Some(Exposure::Mesh), ListenerCheck::Strict));
    assert_eq!(topology.devices["press"].via.as_str(), "gw");
    assert_eq!(topology.rules.default, Action::Allow);
    assert!(topology.rules.audit);
    let rule = &topology.rules.rules[0];
    assert_eq!(rule.action, Action::Deny);
    assert_eq!(rule.from, ["device:press".parse().unwrap(), Subject::AnyHost]);
    assert_eq!(rule.ports, [PortRule::Tcp(22, 22), PortRule::Udp(5, 9), PortRule::Icmp]);
    assert!(rule.audit);
    assert_eq!(topology.tests[0].layer4, Some(Layer4::Icmp));
}

#[test]
fn every_key_of_a_route_is_read() {
    let topology = read(
        r#"
[host.a]
[service.v1]
port = 1
protocol = "http"
hosts = ["a"]
[service.v2]
port = 1
protocol = "http"
hosts = ["a"]
[service.api]
port = 80
protocol = "http"
[[route.api]]
name = "canary"
match = [
  { path = { prefix = "/v1/" }, method = "GET", header = { X-Canary = "1", x-n = { regex = "[0-9]+" } } },
  { path = { prefix = "/v2" }, query = { v = "2" }, host = ["a.example", "*.b.example"] },
]
to = [{ service = "v1", weight = 95 }, { service = "v2", weight = 5 }]
rewrite = { host = "in.example", prefix = "/" }
request_headers = { set = { x-a = "1" }, add = { x-b = "2" }, remove = ["x-c"] }
response_headers = { remove = ["server"] }
timeout = "2s"
try_timeout = "250ms"
retry = { attempts = 2, on = ["503", "reset", "unavailable"], budget = 0.25, backoff = "10ms", non_idempotent = true }
mirror = [{ service = "v2", percent = 12.5 }]
fault = { delay = "1m", delay_percent = 1, abort = 503 }
[[route.api]]
match = { path = "/old" }
redirect = { scheme = "https", host = "new.example", port = 8443, path = "/new", status = 308 }
[[route.api]]
match = { path = { regex = "/closed/.*" } }
direct_response = { status = 503, body = "closed" }
"#,
    );
    let [canary, old, closed] = topology.routes.as_slice() else { panic!("three routes") };
    assert_eq!((&*canary.name, canary.service.as_str()), ("canary", "api"));
    let shown: Vec<_> = canary.matches.iter().map(ToString::to_string).collect();
    assert_eq!(
        shown,
        [
            "GET prefix /v1 header x-canary=1 header x-n~[0-9]+",
            "prefix /v2 host a.example|*.b.example query v=2"
        ]
    );
    let RouteAction::Forward { to, rewrite } = &canary.action else { panic!("it forwards") };
    let weights: Vec<_> = to.iter().map(|it| (it.service.as_str(), it.weight)).collect();
    assert_eq!(weights, [("v1", 95), ("v2", 5)]);
    assert_eq!(rewrite.host.as_deref(), Some("in.example"));
    assert_eq!(rewrite.path, Some(PathChange::Prefix("/".into())));
    let changes = &canary.request_headers;
    assert_eq!(changes.set, [("x-a".into(), "1".into())]);
    assert_eq!(changes.add, [("x-b".into(), "2".into())]);
    assert_eq!(changes.remove, ["x-c".into()]);
    assert_eq!(canary.response_headers.remove, ["server".into()]);
    let millis = |number| Some(Duration::from_millis(number));
    assert_eq!((canary.timeout, canary.try_timeout), (millis(2000), millis(250)));
    let retry = canary.retry.as_ref().unwrap();
    assert_eq!(retry.on, [RetryOn::Status(503), RetryOn::Reset, RetryOn::Grpc(14)]);
    assert_eq!((retry.attempts, retry.budget, retry.non_idempotent), (2, share(250_000), true));
    assert_eq!(Some(retry.backoff), millis(10));
    assert_eq!(canary.mirrors[0].share, share(125_000));
    assert_eq!(canary.delay, Some((Duration::from_mins(1), share(10_000))));
    assert_eq!(canary.abort, Some((503, Share::ALL)));
    assert_eq!(canary.origin, Origin { file: "mesh.toml".into(), line: 14 });
    assert_eq!((&*old.name, &*closed.name), ("api-2", "api-3"));
    let RouteAction::Redirect(redirect) = &old.action else { panic!("it redirects") };
    assert_eq!((redirect.port, redirect.status), (Some(8443), 308));
    assert_eq!(redirect.path, Some(PathChange::Full("/new".into())));
    assert_eq!(closed.action, RouteAction::Respond { status: 503, body: "closed".into() });
}

fn share(millionths: u32) -> Share {
    Share::new(millionths).unwrap()
}

#[test]
fn a_route_that_names_nobody_leads_to_its_own_service() {
    let topology = read(
        "[host.a]\n[service.w]\nport = 1\nprotocol = \"http\"\nhosts = [\"a\"]\n[[route.w]]\ntimeout = \"1s\"",
    );
    let RouteAction::Forward { to, .. } = &topology.routes[0].action else { panic!("it forwards") };
    assert_eq!(to[0].service.as_str(), "w");
}

#[test]
fn several_files_make_one_topology_in_their_order() {
    let files = [
        named("hosts.toml", "[host.a]\n[[deny]]\nname = \"2\"\nfrom = \"any\"\nto = \"any\""),
        named(
            "rules.toml",
            "\n[[allow]]\nname = \"1\"\nfrom = \"host:a\"\nto = \"any\"\n[[deny]]\nname = \"0\"\nfrom = \"any\"\nto = \"host:a\"\n[[allow]]\nname = \"3\"\nfrom = \"any\"\nto = \"any\"",
        ),
    ];
    let topology = parse(&files).unwrap();
    let names: Vec<_> = topology.rules.rules.iter().map(|rule| &*rule.name).collect();
    assert_eq!(names, ["2", "1", "0", "3"]);
    assert_eq!(topology.rules.rules[1].origin.to_string(), "rules.toml:2");
}

#[test]
fn a_service_and_a_device_may_share_a_name() {
    read(
        "[host.a]\n[service.x]\nport = 1\nhosts = [\"a\"]\n[device.x]\nvia = \"a\"\nwireguard.public_key = \"hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=\"",
    );
}

#[test]
fn services_on_one_host_may_share_a_port_but_not_a_workload() {
    read(
        "[host.a]\n[service.x]\nport = 1\nhosts = [\"a\"]\nworkload = { user = \"x\" }\n[service.y]\nport = 1\nhosts = [\"a\"]\nworkload = { user = \"y\" }",
    );
}

#[test]
fn what_rules_ask_of_requests_is_read() {
    let topology = read(
        r#"
[host.a]
[service.w]
port = 1
protocol = "http"
paths = "merge-slashes"
hosts = ["a"]
[jwt.login]
issuer = "https://login.example"
audiences = ["api"]
jwks = "https://login.example/keys"
cookie = "Session"
[[allow]]
name = "r"
from = "any"
to = "service:w"
when = "source.namespace == 'prod'"
http = [
    { path = "/a/{id}/**", header = { X-A = "1", x-b = { regex = "[0-9]+" }, x-c = true, x-d = false } },
    { path = { prefix = "/b/" }, host = "*.example.com", query = { v = "2" }, when = "true" },
    { path = { regex = "/c/[0-9]+" }, jwt = { provider = "login", claims = { role = "admin" } } },
    { path = { exact = "/d" } },
]
[[deny]]
name = "d"
from = "any"
to = "service:w"
when = "request.method == 'PUT'"
"#,
    );
    let name = "w".parse::<Name>().unwrap();
    assert_eq!(topology.services[&name].paths.to_string(), "merge-slashes");
    let shown = |rule: usize| -> Vec<String> {
        topology.rules.rules[rule].http.iter().map(ToString::to_string).collect()
    };
    assert_eq!(
        shown(0),
        [
            "any method /a/{id}/** header x-a=1 header x-b~[0-9]+ header x-c header !x-d \
             when source.namespace == 'prod'",
            "any method /b/** host *.example.com query v=2 when true",
            "any method regex /c/[0-9]+ jwt login role=admin when source.namespace == 'prod'",
            "any method /d when source.namespace == 'prod'",
        ]
    );
    assert_eq!(shown(1), ["any method any path when request.method == 'PUT'"]);
    let provider = &topology.rules.rules[0].http[2].jwt.as_ref().unwrap().provider;
    assert_eq!(provider.place, crate::jwt::TokenPlace::Cookie("Session".into()));
    assert_eq!(
        (&*provider.issuer, &*provider.audiences),
        ("https://login.example", &["api".into()][..])
    );
}

#[test]
fn a_program_alone_is_warned_of_and_taken() {
    let service = |name: &str, workload: &str| {
        format!("[service.{name}]\nport = 80\nhosts = [\"a\"]\nworkload = {workload}\n")
    };
    let text = [
        "[host.a]\n",
        &service("bare", "{ exe = \"/bin/x\" }"),
        &service("fine", "{ exe = \"/bin/x\", user = \"x\" }"),
        "[service.none]\nport = 1\nhosts = [\"a\"]\n",
    ];
    let warnings = warnings(&read(&text.concat()));
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert_eq!(warnings[0].origin.line, 2);
    assert!(warnings[0].message.contains("\"bare\" is known by its program alone"));
}

#[test]
fn a_method_that_is_nearly_one_is_warned_of() {
    let text = r#"
[host.a]
[service.web]
port = 80
protocol = "http"
hosts = ["a"]
workload = { user = "web" }

[[allow]]
name = "reads"
from = "any"
to = "service:web"
http = [{ method = "GTE" }, { method = "PATCH" }, { method = "FROBNICATE" }]

[[route.web]]
name = "writes"
match = [{ method = "PSOT" }]
"#;
    let warnings = warnings(&read(text));
    let helps: Vec<&str> = warnings.iter().map(|it| it.help.as_str()).collect();
    assert_eq!(helps, ["did you mean \"GET\"?", "did you mean \"POST\"?"]);
    assert!(warnings[0].message.contains("\"GTE\""), "{warnings:?}");
}

#[test]
fn services_that_meet_by_labels_and_have_the_same_processes_are_warned_of() {
    let service = |name: &str, hosts: &str, workload: &str| {
        format!("[service.{name}]\nport = 80\nhosts = {hosts}\nworkload = {{ {workload} }}\n")
    };
    let text = [
        "[host.a]\nlabels = { role = \"web\" }\n[host.b]\n",
        &service("one", "[\"a\"]", "systemd = \"x.service\""),
        &service("two", "{ role = \"web\" }", "systemd = \"x.service\""),
        &service("elsewhere", "[\"b\"]", "systemd = \"x.service\""),
        &service("other", "{ role = \"web\" }", "systemd = \"y.service\""),
    ];
    let warnings = warnings(&read(&text.concat()));
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert_eq!(
        warnings[0].message,
        "services \"one\" and \"two\" have the same workload on host \"a\", so a process there is both, \
         and speaks as one"
    );
    assert_eq!(warnings[0].origin.line, 8);
}
