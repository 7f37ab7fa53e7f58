mod sample;

use std::sync::Arc;
use std::time::Duration;

use isthmus_proto::v1;
use proptest::prelude::*;
use v1::resource::Body;

use self::sample::{build, inflict};
use super::{is_foreign, resources, snapshot};
use crate::capability::{Capabilities, Capability, fit, needed};
use crate::edge::Edge;
use crate::jwt::{JwtMatch, JwtProvider, KeySource, TokenPlace};
use crate::name::Name;
use crate::ratelimit::{LimitKey, LimitScope, RateLimit};
use crate::route::{FieldMatch, HostMatch, Route, ValueMatch};
use crate::rules::{Action, Origin, PortRule, RequestMatch, Rule, Rules, Subject};
use crate::snapshot::{Protocol, Revision, Snapshot};
use crate::topology::{SourceFile, parse};

proptest! {
    #[test]
    fn a_snapshot_survives_the_wire(
        given in a_snapshot(),
        shuffle in any::<prop::sample::Index>(),
    ) {
        let mut wire = resources(&given);
        let by = shuffle.index(wire.len());
        wire.rotate_left(by);
        prop_assert_eq!(snapshot(given.revision, &wire), Ok(given));
    }

    #[test]
    fn any_snapshot_fitted_to_any_agent_is_whole(
        given in a_snapshot(),
        has in prop::sample::subsequence(Capability::ALL.to_vec(), 0..=Capability::ALL.len()),
    ) {
        let able = Capabilities::from_names(has.iter().map(|one| one.name()));
        let (fitted, lacks) = fit(given.clone(), able);
        let is_able = needed(&given).iter().all(|one| has.contains(one));
        prop_assert_eq!((lacks.is_empty(), fitted == given), (is_able, is_able));
        prop_assert_eq!(snapshot(fitted.revision, &resources(&fitted)), Ok(fitted.clone()));
        prop_assert!(needed(&fitted).iter().all(|one| has.contains(one)));
    }

    #[test]
    fn damaged_resources_never_panic(
        given in a_snapshot(),
        which in any::<prop::sample::Index>(),
        damage in any::<(u8, u32, String)>(),
    ) {
        let mut wire = resources(&given);
        let at = which.index(wire.len());
        inflict(&mut wire[at], damage);
        if let Ok(read) = snapshot(given.revision, &wire) {
            let again = resources(&read);
            prop_assert_eq!(snapshot(read.revision, &again), Ok(read));
        }
    }
}

#[test]
fn what_contradicts_itself_is_refused_by_name() {
    type Damage = fn(&mut Vec<v1::Resource>);
    let cases: &[(&str, &str, Damage)] = &[
        ("mesh", "missing", |r| r.retain(|r| r.key != "mesh")),
        ("policy", "missing", |r| r.retain(|r| r.key != "policy")),
        ("mesh", "no host/2", |r| mesh(r).local = 2),
        ("mesh", "count from 1", |r| mesh(r).local = 0),
        ("mesh", "7 bytes", |r| mesh(r).prefix.push(0)),
        ("mesh", "begins with fd", |r| mesh(r).prefix[0] = 0xfe),
        ("mesh", "isn't inside", |r| mesh(r).virtual_ipv4 = "10.0.0.0/16".into()),
        ("mesh", "beyond its length", |r| mesh(r).ipv4 = "100.64.0.1/10".into()),
        ("mesh", "trust_domain", |r| mesh(r).trust_domain = "Corp".into()),
        ("host/1", "there twice", |r| r.push(r[2].clone())),
        ("host/9", "belongs to \"host/1\"", |r| r[2].key = "host/9".into()),
        ("host/1", "it is empty", |r| r[2].body = None),
        ("host/1", "31 bytes", |r| host(r).public_key.truncate(31)),
        ("host/1", "isn't inside", |r| host(r).ipv4_block = "10.0.0.0/28".into()),
        ("host/1", "overlaps virtual_ipv4", |r| host(r).ipv4_block = "100.127.1.0/28".into()),
        ("host/1", "endpoints", |r| host(r).endpoints = vec!["app-1:51820".into()]),
        ("host/1", "name", |r| host(r).name = "App".into()),
        ("host/3", "overlaps", |r| host(r).ipv4_block = "100.64.0.32/27".into()),
        ("host/3", "belongs to host/1", |r| host(r).name = "h3".into()),
        ("host/3", "public key belongs to host/1", |r| host(r).public_key = vec![3; 32]),
        ("service/4", "port: 65536", |r| service(r).port = 65536),
        ("service/4", "protocol: 0", |r| service(r).protocol = 0),
        ("service/4", "protocol: 77", |r| service(r).protocol = 77),
        ("service/4", "exposure: 9", |r| service(r).exposure = 9),
        ("service/4", "isn't inside", |r| service(r).virtual_ipv4 = "100.64.0.9".into()),
        ("service/4", "belongs to mesh", |r| service(r).virtual_ipv4 = "100.127.0.0".into()),
        ("service/4", "no host/2", |r| place(r, 2, "100.64.0.40")),
        ("service/4", "isn't in the block of host/1", |r| place(r, 1, "100.64.0.49")),
        ("service/4", "leaving: it has no workload on host/2", |r| service(r).leaving.push(2)),
        ("service/4", "belongs to host/1", |r| place(r, 1, "100.64.0.16")),
        ("service/4", "isn't absolute", |r| {
            let by = Some(v1::selector::By::Exe("nginx".into()));
            service(r).selectors = vec![v1::Selector { by }];
        }),
        ("service/4", "a container is selected by nothing", |r| {
            let by = Some(v1::selector::By::Container(v1::ContainerMatch::default()));
            service(r).selectors = vec![v1::Selector { by }];
        }),
        ("service/4", "selectors: one is empty", |r| {
            service(r).selectors = vec![v1::Selector { by: None }];
        }),
        ("device/5", "no host/2", |r| device(r).via = 2),
        ("device/5", "isn't in the block", |r| device(r).ipv4 = "100.64.0.60".into()),
        ("device/5", "belongs to service/4", |r| device(r).ipv4 = "100.64.0.17".into()),
        ("device/5", "public key belongs to host/1", |r| device(r).public_key = vec![1; 32]),
        ("device/4", "that of service/4", |r| {
            device(r).id = 4;
            let last = r.iter_mut().find(|r| r.key == "device/5").unwrap();
            last.key = "device/4".into();
        }),
        ("rule/may", "from", |r| rule(r).from = vec!["svc:web".into()]),
        ("rule/may", "needs both", |r| rule(r).to.clear()),
        ("rule/may", "ports", |r| rule(r).ports = vec!["tcp/0".into()]),
        ("rule/may", "only a rule that denies", |r| rule(r).audit = true),
        ("rule/may", "doesn't begin with '/'", |r| {
            rule(r).http = vec![v1::RequestMatch { path: "a".into(), ..Default::default() }];
        }),
        ("route/s0-1", "no service \"gone\"", |r| route(r).service = "gone".into()),
        ("route/s0-1", "nobody has a weight", |r| {
            let to = vec![v1::Backend { service: "s0".into(), weight: 0 }];
            let forward = v1::Forward { to, ..v1::Forward::default() };
            route(r).action = Some(v1::route::Action::Forward(forward));
        }),
        ("route/s0-1", "action", |r| route(r).action = None),
        ("route/s0-1", "more than all", |r| route(r).mirrors[0].share = 1_000_001),
        ("route/s0-1", "path", |r| {
            route(r).matches[0].path = Some(v1::route_match::Path::Regex("(".into()));
        }),
        ("route/s0-2", "same order", |r| {
            route(r).order = 1;
        }),
        ("rule/twin", "same order", |r| {
            let mut twin = rule(r).clone();
            twin.name = "twin".into();
            r.push(v1::Resource { key: "rule/twin".into(), body: Some(Body::Rule(twin)) });
        }),
    ];
    for (key, reason, damage) in cases {
        let mut wire = resources(&sample());
        damage(&mut wire);
        let error = snapshot(Revision(1), &wire).expect_err(reason);
        assert_eq!(error.key, *key, "{error}");
        assert!(error.reason.contains(reason), "{error} should say {reason:?}");
    }
}

#[test]
fn what_is_of_an_unknown_kind_costs_only_itself() {
    let whole = sample();
    let mut wire = resources(&whole);
    wire.push(v1::Resource { key: "segment/floor".to_owned(), body: None });
    assert!(wire.iter().any(is_foreign));
    assert_eq!(snapshot(whole.revision, &wire), Ok(whole));
}

#[test]
fn rules_come_back_in_their_order() {
    let mut wire = resources(&sample());
    let mut first = rule(&mut wire).clone();
    first.name = "before".into();
    rule(&mut wire).order = 7;
    wire.push(v1::Resource { key: "rule/before".into(), body: Some(Body::Rule(first)) });
    let read = snapshot(Revision(1), &wire).unwrap();
    let names: Vec<&str> = read.rules.rules.iter().map(|rule| &*rule.name).collect();
    assert_eq!(names, ["before", "may"]);
}

fn mesh(wire: &mut [v1::Resource]) -> &mut v1::Mesh {
    pick(wire, |body| if let Body::Mesh(body) = body { Some(body) } else { None })
}

fn host(wire: &mut [v1::Resource]) -> &mut v1::Host {
    pick(wire, |body| if let Body::Host(body) = body { Some(body) } else { None })
}

fn service(wire: &mut [v1::Resource]) -> &mut v1::Service {
    pick(wire, |body| if let Body::Service(body) = body { Some(body) } else { None })
}

fn device(wire: &mut [v1::Resource]) -> &mut v1::Device {
    pick(wire, |body| if let Body::Device(body) = body { Some(body) } else { None })
}

fn rule(wire: &mut [v1::Resource]) -> &mut v1::Rule {
    pick(wire, |body| if let Body::Rule(body) = body { Some(body) } else { None })
}

fn route(wire: &mut [v1::Resource]) -> &mut v1::Route {
    pick(wire, |body| if let Body::Route(body) = body { Some(body) } else { None })
}

fn pick<T>(wire: &mut [v1::Resource], of: fn(&mut Body) -> Option<&mut T>) -> &mut T {
    wire.iter_mut().filter_map(|r| r.body.as_mut()).find_map(of).unwrap()
}

fn place(wire: &mut [v1::Resource], host: u32, ipv4: &str) {
    service(wire).placements.insert(host, ipv4.into());
}

/// Two hosts, a service on the first, a device behind it, a rule.
fn sample() -> Snapshot {
    build(
        &[1, 3],
        &[(Protocol::Http, 1)],
        1,
        Rules {
            rules: vec![Rule {
                name: "may".into(),
                action: Action::Allow,
                from: vec![Subject::Any],
                to: vec!["service:s0".parse().unwrap()],
                ports: Vec::new(),
                http: Vec::new(),
                sni: Vec::new(),
                audit: false,
                origin: Origin { file: "mesh.toml".into(), line: 3 },
            }],
            ..Rules::default()
        },
    )
}

/// All that gateways and external services can say.
fn edge_of(n: u32) -> Option<Edge> {
    let text = r#"
[host.a]
[gateway.g]
hosts = ["a"]
trusted_proxies = ["192.0.2.0/24", "2001:db8::1"]
[[gateway.g.listeners]]
port = 80
https_redirect = true
[[gateway.g.listeners]]
port = 443
hosts = ["a.example", "*.b.example"]
tls = { certificate = "/c", key = "/k", client_ca = "/ca", client_certificate = "optional" }
[[gateway.g.listeners]]
port = 443
hosts = ["c.example"]
tls = { acme = true }
[[gateway.g.listeners]]
port = 443
hosts = ["d.example"]
tls = { acme = { directory = "https://ca.example/acme", email = "ops@d.example", ca = "/ca" }, client_ca = "/ca" }
[external.plain]
host = "192.0.2.7"
tls = false
[external.shown]
host = "a.example"
target_port = 8443
special_addresses = true
tls = { ca = "/ca", server_name = "b.example", certificate = "/c", key = "/k" }
"#;
    let file = SourceFile { name: "mesh.toml".into(), text: text.to_owned() };
    let services = parse(&[file]).expect("the edge is right").services;
    services.into_values().nth(usize::try_from(n % 4).unwrap()).and_then(|service| service.edge)
}

/// All that routes can say, of the first service.
fn sample_routes() -> Vec<Route> {
    let text = r#"
[host.a]
[service.s0]
port = 1
protocol = "http"
hosts = ["a"]
[[route.s0]]
match = [{ path = "/a", method = "GET", host = ["a.example", "*.b"] }, { path = { prefix = "/p" }, header = { x = "1", y = { regex = "a+" } }, query = { q = "" } }, { path = { regex = "/r.*" } }]
to = [{ service = "s0", weight = 3 }]
rewrite = { host = "in", path = "/x" }
request_headers = { set = { a = "1" }, add = { b = "2" }, remove = ["c"] }
response_headers = { add = { d = "" } }
timeout = "2s"
try_timeout = "1s"
retry = { attempts = 3, on = ["5xx", "429", "unavailable"], budget = 0.1, backoff = "5ms", non_idempotent = true }
mirror = [{ service = "s0", percent = 5 }]
fault = { delay = "1s", delay_percent = 3, abort = 500, abort_percent = 4 }
[[route.s0]]
redirect = { scheme = "https", host = "h", port = 1, path = "/", status = 307 }
[[route.s0]]
match = { path = { prefix = "/p" } }
redirect = { prefix = "/q" }
[[route.s0]]
direct_response = { status = 200, body = "x" }
"#;
    let file = SourceFile { name: "mesh.toml".into(), text: text.to_owned() };
    parse(&[file]).expect("the routes are right").routes
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn a_snapshot() -> impl Strategy<Value = Snapshot> {
    let protocol = prop::sample::select(vec![
        Protocol::Tcp,
        Protocol::Udp,
        Protocol::Http,
        Protocol::Tls,
        Protocol::Auto,
    ]);
    let hosts = prop::collection::btree_set(1_u32..100, 1..6);
    let services = prop::collection::vec((protocol, any::<u8>()), 0..6);
    (hosts, services, 0_u32..5, a_policy(), any::<u64>()).prop_map(
        |(hosts, services, devices, rules, revision)| {
            let hosts: Vec<u32> = hosts.into_iter().collect();
            let mut snapshot = build(&hosts, &services, devices, rules);
            snapshot.revision = Revision(revision);
            snapshot
        },
    )
}

fn a_policy() -> impl Strategy<Value = Rules> {
    let rules = prop::collection::vec(a_rule(), 0..6);
    let audited = prop::collection::vec(a_subject(), 0..3);
    (an_action(), any::<bool>(), audited, rules).prop_map(|(default, audit, audited, mut rules)| {
        for (n, rule) in rules.iter_mut().enumerate() {
            rule.name = format!("{n} {}", rule.name).into();
        }
        Rules { default, audit, audited, rules }
    })
}

fn an_action() -> impl Strategy<Value = Action> {
    prop_oneof![Just(Action::Deny), Just(Action::Allow)]
}

prop_compose! {
    fn a_rule()(
        text in "[a-z /:.]{0,20}",
        action in an_action(),
        from in prop::collection::vec(a_subject(), 1..4),
        to in prop::collection::vec(a_subject(), 1..4),
        ports in prop::collection::vec(a_port(), 0..4),
        http in prop::collection::vec(a_request(), 0..3),
        sni in prop::sample::select(vec![
            vec![],
            vec![HostMatch::Exact("a.example".into()), HostMatch::Suffix(".example".into())],
        ]),
        audit in any::<bool>(),
        line in any::<u32>(),
    ) -> Rule {
        let audit = audit && action == Action::Deny;
        let origin = Origin { file: format!("{text}.toml").into(), line };
        Rule { name: text.into(), action, from, to, ports, http, sni, audit, origin }
    }
}

fn a_subject() -> impl Strategy<Value = Subject> {
    prop_oneof![
        Just(Subject::Any),
        Just(Subject::AnyService),
        Just(Subject::AnyHost),
        Just(Subject::AnyDevice),
        "[a-z]{1,9}".prop_map(|text| Subject::Service(name(&text))),
        "[a-z]{1,9}".prop_map(|text| Subject::Namespace(name(&text))),
        "[a-z]{1,9}".prop_map(|text| Subject::Host(name(&text))),
        "[a-z]{1,9}".prop_map(|text| Subject::Device(name(&text))),
    ]
}

fn a_port() -> impl Strategy<Value = PortRule> {
    let range = (1..=u16::MAX, 1..=u16::MAX).prop_map(|(a, b)| (a.min(b), a.max(b)));
    let range = prop_oneof![range, Just((0, u16::MAX))];
    prop_oneof![
        Just(PortRule::Icmp),
        range.clone().prop_map(|(low, high)| PortRule::Tcp(low, high)),
        range.prop_map(|(low, high)| PortRule::Udp(low, high)),
    ]
}

prop_compose! {
    fn a_request()(
        method in prop::option::of("[A-Z]{1,6}".prop_map(Into::into)),
        path in prop::option::of("/[a-z/*]{0,9}".prop_map(Into::into)),
        path_regex in prop::option::of("/[a-z]{1,4}".prop_map(|text| text.parse().unwrap())),
        host in prop::option::of("[a-z]{1,4}(\\.[a-z]{1,4}){0,2}".prop_map(|text| HostMatch::Exact(text.into()))),
        headers in prop::collection::vec(a_field(), 0..3),
        query in prop::collection::vec(a_field(), 0..3),
        jwt in prop::option::of(a_token()),
        method_in in prop::option::of("[A-Z]{1,6}"),
    ) -> RequestMatch {
        let when = method_in.map(|method| format!("request.method == '{method}'").parse().unwrap());
        let hosts = host.into_iter().collect();
        RequestMatch { method, path, path_regex, hosts, headers, query, jwt, when }
    }
}

fn a_field() -> impl Strategy<Value = FieldMatch> {
    let value = prop_oneof![
        Just(ValueMatch::Present),
        Just(ValueMatch::Absent),
        "[a-z]{0,4}".prop_map(|text| ValueMatch::Exact(text.into())),
        "[a-z]{0,4}".prop_map(|text| ValueMatch::Regex(text.parse().unwrap())),
    ];
    ("[a-z]{1,4}", value).prop_map(|(name, value)| FieldMatch { name: name.into(), value })
}

prop_compose! {
    fn a_token()(
        text in "[a-z]{1,9}",
        audiences in prop::collection::vec("[a-z]{1,3}".prop_map(Into::into), 0..3),
        is_file in any::<bool>(),
        is_cookie in any::<bool>(),
        leeway in 0_u64..600,
        claims in prop::collection::vec(a_field(), 0..3),
    ) -> JwtMatch {
        let keys = if is_file {
            KeySource::File(format!("/{text}").into())
        } else {
            KeySource::Url(format!("https://{text}/").into())
        };
        let place: fn(Arc<str>) -> TokenPlace =
            if is_cookie { TokenPlace::Cookie } else { TokenPlace::Header };
        let provider = JwtProvider {
            name: name(&text),
            issuer: text.clone().into(),
            audiences,
            keys,
            place: place(text.into()),
            leeway: Duration::from_secs(leeway),
        };
        JwtMatch { provider: Arc::new(provider), claims }
    }
}

/// All that limits can say.
fn sample_limits() -> Vec<RateLimit> {
    let limit = |name: &str, per, scope| RateLimit {
        name: name.parse().unwrap(),
        service: "s0".parse().unwrap(),
        matches: sample_routes().into_iter().flat_map(|route| route.matches).collect(),
        rate: 1_500,
        burst: 7,
        per,
        scope,
        hosts: 3,
        origin: Origin { file: "mesh.toml".into(), line: 9 },
    };
    vec![
        limit("a", LimitKey::All, LimitScope::Mesh),
        limit("b", LimitKey::Identity, LimitScope::Host),
        limit("c", LimitKey::Header("x-key".into()), LimitScope::Mesh),
    ]
}
