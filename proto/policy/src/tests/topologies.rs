//! Questions about whole topologies: their tests, their differences, explanations.

use isthmus_model::topology::Topology;
use isthmus_model::{Identity, Layer4};

use super::topology;
use crate::policy::Policy;
use crate::verdict::{Outcome, Query, Request};
use crate::{Changes, changes, run_tests};

const BASE: &str = r#"
[host.app]
[host.gw]

[service.web]
namespace = "prod"
port = 8080
protocol = "http"
hosts = ["app"]
workload = { user = "web" }

[service.db]
namespace = "prod"
port = 5432
hosts = ["app"]
workload = { user = "db" }

[service.batch]
namespace = "ops"
port = 7000
hosts = ["gw"]
workload = { user = "batch" }
"#;

const RULES: &str = r#"
[[allow]]
name = "web uses db"
from = "service:web"
to = "service:db"

[[allow]]
name = "batch reads web"
from = "service:batch"
to = "service:web"
http = [{ method = "GET", path = "/reports/*" }]

[[allow]]
name = "gw administers"
from = "host:gw"
to = "host:app"
ports = ["tcp/22"]
"#;

#[test]
fn tests_pass_where_the_policy_does_what_they_expect() {
    let results = tests_of(
        r#"
        [[test]]
        name = "own port"
        from = "service:web"
        to = "service:db"
        expect = "allow"
        [[test]]
        name = "some request"
        from = "service:batch"
        to = "service:web"
        expect = "allow"
        [[test]]
        name = "that request"
        from = "service:batch"
        to = "service:web"
        method = "GET"
        path = "/reports/1"
        expect = "allow"
        [[test]]
        name = "no other"
        from = "service:batch"
        to = "service:web"
        method = "POST"
        path = "/reports/1"
        expect = "deny"
        [[test]]
        name = "a host's port"
        from = "host:gw"
        to = "host:app"
        port = "tcp/22"
        expect = "allow"
        "#,
    );
    for (name, passed, detail) in results {
        assert!(passed, "{name}: {detail}");
    }
}

#[test]
fn tests_may_ask_about_all_that_rules_look_at() {
    let results = tests_of(
        r#"
        [jwt.login]
        issuer = "https://login.example.com"
        jwks = "/etc/keys.json"
        [[allow]]
        name = "staff edits"
        from = "service:batch"
        to = "service:web"
        http = [{ method = "PUT", host = "*.example.com", header = { x-stage = "a b" },
                  query = { "v w" = "1&2" }, jwt = { provider = "login", claims = { role = "staff" } } }]
        [[test]]
        name = "staff"
        from = "service:batch"
        to = "service:web"
        method = "PUT"
        path = "/"
        host = "web.example.com"
        header = { X-Stage = "a b" }
        query = { "v w" = "1&2", other = "ä" }
        jwt = { provider = "login", claims = { role = "staff" } }
        expect = "allow"
        [[test]]
        name = "no staff"
        from = "service:batch"
        to = "service:web"
        method = "PUT"
        path = "/"
        host = "web.example.com"
        header = { x-stage = "a b" }
        query = { "v w" = "1&2" }
        jwt = { provider = "login", claims = { role = "guest" } }
        expect = "deny"
        [[test]]
        name = "another query"
        from = "service:batch"
        to = "service:web"
        method = "PUT"
        path = "/"
        host = "web.example.com"
        header = { x-stage = "a b" }
        query = { "v w" = "1" }
        jwt = { provider = "login", claims = { role = "staff" } }
        expect = "deny"
        "#,
    );
    assert_eq!(results.len(), 3);
    for (name, passed, detail) in results {
        assert!(passed, "{name}: {detail}");
    }
}

#[test]
fn a_test_that_fails_says_what_happens_and_why() {
    let results = tests_of(
        r#"
        [[test]]
        name = "wrong hope"
        from = "service:batch"
        to = "service:db"
        expect = "allow"
        [[test]]
        name = "wrong fear"
        from = "service:web"
        to = "service:db"
        expect = "deny"
        "#,
    );
    let [(_, hope, hope_detail), (_, fear, fear_detail)] = &*results else { panic!("two results") };
    assert!(!hope && !fear);
    assert_eq!(
        hope_detail,
        "service:batch to service:db, tcp/5432: denied by \"default\"; \
         rule \"web uses db\" (mesh.toml:24) allows it, but from service:web only"
    );
    assert_eq!(
        fear_detail,
        "service:web to service:db, tcp/5432: allowed by \"web uses db\" (mesh.toml:24)"
    );
}

#[test]
fn tests_are_judged_as_if_the_policy_enforced() {
    let rules = r#"
        [policy]
        audit = true
        [[test]]
        name = "closed"
        from = "service:batch"
        to = "service:db"
        expect = "deny"
        "#;
    assert!(run_tests(&topology(&format!("{BASE}{rules}")))[0].passed);
}

#[test]
fn hints_name_the_nearest_rule() {
    let hint = |from: &str, to: &str, layer4: Layer4, request: Option<(&str, &str)>| {
        let topology = topology(&format!("{BASE}{RULES}"));
        let request = request.map(|(method, path)| Request::new(method, path));
        let (from, to) = (identity(&topology, from), identity(&topology, to));
        let query = Query { from: &from, to: &to, layer4, request };
        Policy::for_topology(&topology).explain(&query).hint
    };
    let tcp = Layer4::Tcp;
    let cases = [
        (
            hint("service:batch", "service:db", tcp(5432), None),
            "rule \"web uses db\" (mesh.toml:24) allows it, but from service:web only",
        ),
        (
            hint("service:web", "service:db", tcp(1), None),
            "rule \"web uses db\" (mesh.toml:24) comes nearest: it covers tcp/5432, not tcp/1",
        ),
        (
            hint("service:batch", "service:web", tcp(8080), Some(("POST", "/reports/1"))),
            "rule \"batch reads web\" (mesh.toml:29) comes nearest: method POST is not GET",
        ),
        (
            hint("service:batch", "service:web", tcp(8080), Some(("GET", "/x"))),
            "rule \"batch reads web\" (mesh.toml:29) comes nearest: path /x doesn't match /reports/*",
        ),
        (
            hint("host:app", "host:gw", tcp(22), None),
            "rule \"gw administers\" (mesh.toml:35) allows flows from host:gw to host:app, not back",
        ),
        (
            hint("service:db", "service:batch", tcp(7000), None),
            "no rule allows anything to service:batch",
        ),
        (
            hint("service:batch", "service:web", tcp(8080), Some(("GET", "/reports/../x"))),
            "write the path in one way only: no '//', '..', ';' or encoded slash",
        ),
    ];
    for (got, want) in cases {
        assert_eq!(got.as_deref(), Some(want));
    }
    assert_eq!(hint("service:web", "service:db", tcp(5432), None), None);
}

#[test]
fn the_nearest_rule_is_the_one_that_asks_for_the_last_thing_lacking() {
    let rules = r#"
        [jwt.login]
        issuer = "https://login.example.com"
        jwks = "/etc/keys.json"
        [[allow]]
        name = "readers"
        from = "service:batch"
        to = "service:web"
        http = [{ method = "GET", path = "/reports/*" }]
        [[allow]]
        name = "staff edits"
        from = "service:batch"
        to = "service:web"
        http = [{ method = "DELETE", path = "/" },
                { method = "PUT", path = "/reports/*", jwt = { provider = "login", claims = { role = "staff" } } }]
        [[deny]]
        name = "no patches"
        from = "any"
        to = "service:web"
        http = [{ method = "PATCH" }]
        "#;
    let topology = topology(&format!("{BASE}{rules}"));
    let (from, to) = (identity(&topology, "service:batch"), identity(&topology, "service:web"));
    let hint = |method, path| {
        let request = Some(Request::new(method, path));
        let query = Query { from: &from, to: &to, layer4: Layer4::Tcp(8080), request };
        Policy::for_topology(&topology).explain(&query).hint.unwrap()
    };
    let put = hint("PUT", "/reports/1");
    assert!(put.contains("\"staff edits\"") && put.contains("PUT /reports/*"), "{put}");
    assert!(put.ends_with("there is no token of \"login\""), "{put}");
    let put = hint("PUT", "/x");
    assert!(put.ends_with("none of its `http` entries matches PUT /x"), "{put}");
    let patch = hint("PATCH", "/reports/1");
    assert!(
        patch.starts_with("no [[allow]] overrules a [[deny]]: narrow rule \"no patches\""),
        "{patch}"
    );
}

#[test]
fn an_explanation_shows_the_last_steps_of_many() {
    let one = |n| {
        format!(
            "[[allow]]\nname = \"r{n}\"\nfrom = \"service:web\"\nto = \"service:db\"\n\
             ports = [\"tcp/{n}\"]\n"
        )
    };
    let rules: String = (1..=70).map(one).collect();
    let topology = topology(&format!("{BASE}{rules}"));
    let (from, to) = (identity(&topology, "service:web"), identity(&topology, "service:db"));
    let query = Query { from: &from, to: &to, layer4: Layer4::Tcp(70), request: None };
    let explanation = Policy::for_topology(&topology).explain(&query);
    assert_eq!(explanation.verdict.outcome, Outcome::Allow);
    assert_eq!((explanation.steps.len(), explanation.omitted), (50, 20));
    assert_eq!(&*explanation.steps[49].rule, "r70");
}

#[test]
fn equal_topologies_change_nothing() {
    let old = topology(&format!("{BASE}{RULES}"));
    assert_eq!(changes(&old, &old), Changes { reaches: Vec::new(), more: 0, complete: true });
    let renamed = topology(&format!("# a comment\n{BASE}{}", RULES.replace("web uses", "uses")));
    assert_eq!(rows(&changes(&old, &renamed)), Vec::<String>::new());
}

#[test]
fn a_changed_rule_changes_the_pairs_it_relates() {
    let old = topology(&format!("{BASE}{RULES}"));
    let new = RULES
        .replace("to = \"service:db\"", "to = \"service:db\"\nports = [\"tcp/5432\", \"tcp/9000\"]")
        .replace("/reports/*", "/data/*")
        .replace("ports = [\"tcp/22\"]", "");
    let deny = "[[deny]]\nname = \"no\"\nfrom = \"any\"\nto = \"host:app\"\nports = [\"tcp/23\"]\n";
    let new = topology(&format!("{BASE}{new}{deny}"));
    assert_eq!(
        rows(&changes(&old, &new)),
        [
            "service:batch -> service:web: GET /reports/* => GET /data/*",
            "service:web -> service:db: tcp/5432, icmp => tcp/5432, tcp/9000",
            "host:gw -> host:app: tcp/22 => everything except tcp/23",
        ]
    );
}

#[test]
fn a_deny_takes_away_what_it_covers() {
    let old = topology(&format!("{BASE}{RULES}"));
    let deny = "[[deny]]\nname = \"no\"\nfrom = \"any\"\nto = \"service:db\"\n";
    let new = topology(&format!("{BASE}{RULES}{deny}"));
    assert_eq!(
        rows(&changes(&old, &new)),
        ["service:web -> service:db: tcp/5432, icmp => nothing"]
    );
}

#[test]
fn declared_and_moved_identities_change_their_pairs() {
    let old = topology(&format!("{BASE}{RULES}"));
    let moved = BASE.replace("port = 5432", "port = 5433").replace("\"ops\"", "\"prod\"");
    let rule = "[[allow]]\nname = \"ops\"\nfrom = \"namespace:prod\"\nto = \"service:db\"\n";
    let new = topology(&format!("{moved}{RULES}{rule}"));
    assert_eq!(
        rows(&changes(&old, &new)),
        [
            "service:batch -> service:db: nothing => tcp/5433, icmp",
            "service:db -> service:db: nothing => tcp/5433, icmp",
            "service:web -> service:db: tcp/5432, icmp => tcp/5433, icmp",
        ]
    );
}

#[test]
fn a_changed_default_changes_every_pair_and_the_list_stays_short() {
    let hosts: String = (0..30).map(|n| format!("[host.h{n}]\n")).collect();
    let old = topology(&hosts);
    let new = topology(&format!("{hosts}[policy]\ndefault = \"allow\"\n"));
    let changes = changes(&old, &new);
    assert_eq!((changes.reaches.len(), changes.more), (200, 700));
    assert!(changes.complete);
}

#[test]
fn who_is_related() {
    let topology = topology(&format!("{BASE}{RULES}"));
    let policy = Policy::for_topology(&topology);
    let relates = |from, to| policy.relates(&identity(&topology, from), &identity(&topology, to));
    assert!(relates("service:web", "service:db"));
    assert!(relates("service:batch", "service:web"), "some request may pass");
    assert!(!relates("service:db", "service:web"), "replies need no relation");
    assert!(!relates("host:app", "host:gw"), "ping alone is no relation");
}

fn tests_of(tests: &str) -> Vec<(String, bool, String)> {
    let topology = topology(&format!("{BASE}{RULES}{tests}"));
    let results = run_tests(&topology).into_iter();
    results.map(|result| (result.name.to_string(), result.passed, result.detail)).collect()
}

fn rows(changes: &Changes) -> Vec<String> {
    let row = |r: &crate::Reach| format!("{} -> {}: {} => {}", r.from, r.to, r.before, r.after);
    changes.reaches.iter().map(row).collect()
}

fn identity(topology: &Topology, text: &str) -> Identity {
    crate::check::identity(topology, &text.parse().unwrap()).unwrap()
}

const PORTS: &str = r#"
[host.app]
[service.shop]
port = 8080
protocol = "http"
ports = { admin = { port = 8081, protocol = "http" }, metrics = { port = 8082 } }
hosts = ["app"]
workload = { user = "shop" }

[service.client]
hosts = ["app"]
workload = { user = "client" }

[service.scraper]
hosts = ["app"]
workload = { user = "scraper" }

[service.banned]
hosts = ["app"]
workload = { user = "banned" }

[[deny]]
name = "banned"
from = "service:banned"
to = "service:shop"

[[allow]]
name = "all shop"
from = "any"
to = "service:shop"

[[allow]]
name = "scraper looks"
from = "service:scraper"
to = "service:shop"
ports = ["admin"]
http = [{ method = "GET" }]

[[allow]]
name = "all measure"
from = ["service:scraper", "service:banned"]
to = "service:shop"
ports = ["metrics"]
"#;

#[test]
fn an_allow_is_about_the_own_port_unless_it_names_others_and_a_deny_about_all() {
    use Outcome::{Allow, Deny, Inspect};
    let topology = topology(PORTS);
    let policy = Policy::for_topology(&topology);
    let identity = |name: &str| Identity::Service {
        namespace: "default".parse().unwrap(),
        name: name.parse().unwrap(),
    };
    let get = Request::new("GET", "/");
    let post = Request::new("POST", "/");
    let cases = [
        ("client", 8080, None, Inspect),
        ("client", 8080, Some(get), Allow),
        ("client", 8081, None, Deny),
        ("client", 8081, Some(get), Deny),
        ("client", 8082, None, Deny),
        ("scraper", 8081, None, Inspect),
        ("scraper", 8081, Some(get), Allow),
        ("scraper", 8081, Some(post), Deny),
        ("scraper", 8082, None, Allow),
        ("banned", 8080, Some(get), Deny),
        ("banned", 8082, None, Deny),
        ("scraper", 22, None, Deny),
    ];
    for (from, port, request, outcome) in cases {
        let (from, to) = (&identity(from), &identity("shop"));
        let verdict = policy.evaluate(&Query { from, to, layer4: Layer4::Tcp(port), request });
        assert_eq!(verdict.outcome, outcome, "{from} {port}");
    }
    // Nobody calls who has no port.
    let (from, to) = (&identity("client"), &identity("scraper"));
    for layer4 in [Layer4::Tcp(0), Layer4::Tcp(80), Layer4::Icmp] {
        let verdict = policy.evaluate(&Query { from, to, layer4, request: None });
        assert_eq!(verdict.outcome, Deny, "{layer4}");
    }
}
