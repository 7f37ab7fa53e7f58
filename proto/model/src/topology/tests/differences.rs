//! Descriptions of differences between two topologies.

use super::*;

const BEFORE: &str = r#"
[host.a]
site = "dc1"
[host.b]
[service.web]
port = 80
hosts = ["a"]
workload = { user = "www" }
[device.press]
via = "a"
wireguard = { public_key = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=" }
[[allow]]
name = "first"
from = "host:a"
to = "service:web"
[[deny]]
name = "second"
from = "any"
to = "host:b"
ports = ["tcp/22"]
[[test]]
name = "t"
from = "host:a"
to = "service:web"
expect = "allow"
"#;

/// The differences between [`BEFORE`] and what it becomes with one piece replaced.
fn after(old: &str, new: &str) -> Vec<String> {
    assert!(BEFORE.contains(old), "{old}");
    changes(&read(BEFORE), &read(&BEFORE.replacen(old, new, 1)))
}

fn changes(old: &Topology, new: &Topology) -> Vec<String> {
    diff(Some(old), new).iter().map(Change::to_string).collect()
}

#[test]
fn each_difference_is_told_in_the_words_of_the_language() {
    let cases = [
        ("site = \"dc1\"", "", "~ host a: site dc1 -> none"),
        (
            "site = \"dc1\"",
            "site = \"dc1\"\nlabels = { r = \"x\" }",
            "~ host a: labels none -> r=\"x\"",
        ),
        ("[host.b]", "[host.b]\nendpoints = [\"[::1]:5\"]", "~ host b: endpoints none -> [::1]:5"),
        (
            "[host.b]",
            "[host.b]\nipv4_block = \"100.64.0.0/28\"",
            "~ host b: ipv4_block none -> 100.64.0.0/28",
        ),
        ("[host.b]", "[host.b]\n[host.c]", "+ host c"),
        ("port = 80", "port = 8080", "~ service web: port 80 -> 8080"),
        ("port = 80", "port = 80\nprotocol = \"http\"", "~ service web: protocol tcp -> http"),
        ("port = 80", "port = 80\nprotocol = \"tls\"", "~ service web: protocol tcp -> tls"),
        (
            "port = 80",
            "port = 80\nproxy_protocol = \"v1\"",
            "~ service web: proxy_protocol none -> v1",
        ),
        (
            "port = 80",
            "port = 80\nprotocol = \"tls\"\nsource = \"caller\"",
            "~ service web: protocol tcp -> tls; source proxy -> caller",
        ),
        (
            "port = 80",
            "port = 80\nports = { metrics = { port = 9100, protocol = \"http\", http = \"2\" } }",
            "~ service web: ports none -> metrics http/9100 http 2",
        ),
        (
            "port = 80",
            "port = 80\nlisten = \"127.0.0.1:80\"",
            "~ service web: listen none -> 127.0.0.1:80",
        ),
        (
            "port = 80",
            "port = 80\nprotocol = \"auto\"\nhttp = \"2\"",
            "~ service web: protocol tcp -> auto; http auto -> 2",
        ),
        (
            "port = 80",
            "port = 80\nprotocol = \"http\"\ntrailers = true",
            "~ service web: protocol tcp -> http; trailers false -> true",
        ),
        ("port = 80", "port = 80\naliases = [\"www\"]", "~ service web: aliases none -> www"),
        (
            "port = 80",
            "port = 80\nnamespace = \"prod\"",
            "~ service web: namespace default -> prod",
        ),
        ("hosts = [\"a\"]", "hosts = { r = \"x\" }", "~ service web: hosts a -> with r=\"x\""),
        (
            "user = \"www\"",
            "user = \"www\", exe = \"/bin/x\"",
            "~ service web: workload user www -> user www, exe /bin/x",
        ),
        (
            "user = \"www\" }",
            "user = \"www\" }\nexposure = \"count\"\nlistener = \"strict\"",
            "~ service web: exposure none -> count; listener warn -> strict",
        ),
        ("via = \"a\"", "via = \"b\"", "~ device press: via a -> b"),
        (
            "from = \"any\"",
            "from = [\"host:*\", \"device:*\"]",
            "~ rule second: from any -> host:*, device:*",
        ),
        ("to = \"host:b\"", "to = \"host:a\"", "~ rule second: to host:b -> host:a"),
        ("ports = [\"tcp/22\"]", "", "~ rule second: ports tcp/22 -> none"),
        (
            "ports = [\"tcp/22\"]",
            "ports = [\"tcp/22\"]\naudit = true",
            "~ rule second: audit false -> true",
        ),
        ("[[deny]]", "[[allow]]", "~ rule second: deny -> allow"),
        ("expect = \"allow\"", "expect = \"deny\"", "~ test t: expect allow -> deny"),
        (
            "expect = \"allow\"",
            "expect = \"allow\"\nport = \"tcp/1\"",
            "~ test t: port none -> tcp/1",
        ),
        ("[host.a]", "[policy]\ndefault = \"allow\"\n[host.a]", "~ policy: default deny -> allow"),
        ("[host.a]", "[policy]\naudit = true\n[host.a]", "~ policy: audit false -> true"),
        (
            "[host.a]",
            "[policy]\naudit = [\"host:a\", \"device:*\"]\n[host.a]",
            "~ policy: audit false -> host:a, device:*",
        ),
        (
            "[host.a]",
            "[mesh]\nname = \"corp\"\nhost_block = 26\nexposure = \"mesh\"\n[host.a]",
            "~ mesh: name none -> corp; host_block 28 -> 26; exposure none -> mesh",
        ),
    ];
    for (old, new, expected) in cases {
        assert_eq!(after(old, new), [expected]);
    }
}

#[test]
fn what_requests_a_rule_is_about_is_told() {
    let http = |matches: &str| {
        read(&format!(
            "[host.a]\n[service.w]\nport = 1\nprotocol = \"http\"\nhosts = [\"a\"]\n[[allow]]\nname = \"r\"\nfrom = \"any\"\nto = \"service:w\"\n{matches}"
        ))
    };
    let (all, some) = (http(""), http("http = [{ method = \"GET\" }, { path = \"/a/*\" }]"));
    assert_eq!(changes(&all, &some), ["~ rule r: http none -> GET any path, any method /a/*"]);
}

#[test]
fn differences_of_balance_are_told() {
    let web = |more: &str| {
        read(&format!(
            "[host.a]\n[service.w]\nport = 1\nprotocol = \"http\"\nhosts = [\"a\"]\n{more}"
        ))
    };
    let hashed = web("balance = { policy = \"maglev\", header = \"X-User\" }");
    assert_eq!(
        changes(&web(""), &hashed),
        ["~ service w: balance peak-ewma -> maglev by header x-user"]
    );
    let limited = web("balance = \"least-request\"\nbreaker = { max_requests = 5 }");
    assert_eq!(
        changes(&limited, &web("")),
        ["~ service w: balance least-request -> peak-ewma; breaker 1024 connections, \
          1024 pending, 5 requests -> 1024 connections, 1024 pending, 1024 requests"]
    );
    let shared = web(
        "balance = { weights = { a = 3 }, locality = false, slow_start = \"30s\", panic_threshold = 0 }\n\
         breaker = { max_retries = 3 }\noutlier = { consecutive_5xx = 3, max_ejection_percent = 10 }\n\
         health = { http = \"/healthz\", interval = \"5s\" }",
    );
    let told = changes(&web(""), &shared).join("");
    for part in [
        "weights none -> a=3; locality true -> false; slow_start none -> 30s; panic_threshold 50 -> 0;",
        "1024 requests -> 1024 connections, 1024 pending, 1024 requests, 3 retries;",
        "outlier 5 in a row (5 unanswered), 1s to 60s, at most 50 %,",
        "-> 3 in a row (5 unanswered), 1s to 60s, at most 10 %,",
        "health none -> http /healthz every 5s within 1s, 2 well, 3 unwell",
    ] {
        assert!(told.contains(part), "{part} in:\n{told}");
    }
}

#[test]
fn differences_at_the_edge_are_told() {
    let edge = |more: &str| read(&format!("[host.a]\n{more}"));
    let tls = "tls = { certificate = \"/c\", key = \"/k\", client_ca = \"/ca\" }";
    let gateway = |listener: &str| {
        edge(&format!("[gateway.g]\nhosts = [\"a\"]\nlisteners = [{{ port = 443, {listener} }}]"))
    };
    let (plain, secret) = (gateway("hosts = \"x\""), gateway(tls));
    assert_eq!(changes(&edge(""), &plain), ["+ gateway g"]);
    assert_eq!(
        changes(&plain, &secret),
        [
            "~ gateway g: edge http 443 x -> https 443 (/c, key /k, client certificate required by /ca)"
        ]
    );
    let acme = gateway("hosts = \"x\", tls = { acme = true }");
    assert_eq!(
        changes(&plain, &acme),
        [format!(
            "~ gateway g: edge http 443 x -> https 443 x (by ACME from {})",
            crate::edge::Acme::DIRECTORY
        )]
    );
    let external = |more: &str| edge(&format!("[external.e]\nhost = \"e.example\"\n{more}"));
    let (plain, secret) = (external("tls = false"), external("tls = { server_name = \"f\" }"));
    assert_eq!(
        changes(&plain, &secret),
        ["~ external e: edge http e.example:80 -> https e.example:443 as f"]
    );
}

#[test]
fn differences_of_routes_are_told() {
    let routes = |routes: &str| {
        read(&format!(
            "[host.a]\n[service.w]\nport = 1\nprotocol = \"http\"\nhosts = [\"a\"]\n{routes}"
        ))
    };
    let none = routes("");
    let one = routes("[[route.w]]\nto = [{ service = \"w\", weight = 5 }]\ntimeout = \"2s\"");
    let two = routes(
        "[[route.w]]\nmatch = { header = { X-Canary = \"1\" }, path = { prefix = \"/a/\" } }\nretry = { attempts = 2 }\n",
    );
    assert_eq!(changes(&none, &one), ["+ route w-1: w: everything to w 5"]);
    assert_eq!(
        changes(&one, &two),
        ["~ route w-1: match everything -> prefix /a header x-canary=1; action to w 5 -> to w 1; \
             timeout 2s -> none; retry none -> 2 on connect-failure, reset, gateway-error, budget \
             20%, backoff 25ms"]
    );
    assert_eq!(changes(&two, &none), ["- route w-1"]);
}

#[test]
fn what_is_gone_is_told() {
    let end = BEFORE.find("[[allow]]").unwrap();
    let told = changes(&read(BEFORE), &read(&BEFORE[..end]));
    assert_eq!(told, ["- rule first", "- rule second", "- test t"]);
}

#[test]
fn without_an_old_topology_everything_is_new() {
    let told: Vec<_> = diff(None, &read(BEFORE)).iter().map(Change::to_string).collect();
    let expected = [
        "+ host a",
        "+ host b",
        "+ service web",
        "+ device press",
        "+ rule first",
        "+ rule second",
        "+ test t",
    ];
    assert_eq!(told, expected);
}

#[test]
fn where_things_stand_makes_no_difference() {
    let (tables, rules) = BEFORE.split_at(BEFORE.find("[[allow]]").unwrap());
    let files =
        [named("rules.toml", &format!("\n\n# moved\n{rules}")), named("tables.toml", tables)];
    let (old, new) = (read(BEFORE), parse(&files).unwrap());
    assert_ne!(old, new);
    assert!(old.same_meaning(&new));
    assert_eq!(changes(&old, &new), [""; 0]);
}

#[test]
fn the_order_of_rules_makes_a_difference() {
    let (first, rest) = BEFORE.split_at(BEFORE.find("[[deny]]").unwrap());
    let (tables, allow) = first.split_at(first.find("[[allow]]").unwrap());
    let (old, new) = (
        read(BEFORE),
        read(&format!("{tables}{}{allow}", &rest[..rest.find("[[test]]").unwrap()])),
    );
    assert!(!old.same_meaning(&new));
    assert_eq!(
        changes(&old, &new),
        ["~ rules: order: \"second\" now comes before \"first\"", "- test t"]
    );
}

#[test]
fn a_new_rule_between_others_is_no_new_order() {
    let told =
        after("[[deny]]", "[[deny]]\nname = \"0\"\nfrom = \"any\"\nto = \"host:a\"\n[[deny]]");
    assert_eq!(told, ["+ rule 0"]);
}

#[test]
fn limits_are_told_by_what_they_say() {
    let text = format!(
        "{}\n[ratelimit.web]\nservice = \"web\"\nrate = 50\n",
        BEFORE.replace("port = 80\n", "port = 80\nprotocol = \"http\"\n")
    );
    let before = read(&text);
    let after = read(&format!("{text}burst = 7\nper = {{ header = \"X-Key\" }}\n"));
    assert_eq!(
        changes(&before, &after),
        ["~ ratelimit web: burst 50 -> 7; per all -> header x-key"]
    );
    assert!(changes(&read(BEFORE), &before).contains(&"+ ratelimit web".to_owned()));
}

#[test]
fn rollouts_are_told_by_what_they_say() {
    let text = format!(
        "{}\n[service.v2]\nport = 81\nprotocol = \"http\"\nhosts = [\"a\"]\n[[route.web]]\nname = \"r\"\n\
         [rollout.web]\nroute = \"r\"\nstable = \"web\"\ncanary = \"v2\"\n",
        BEFORE.replace("port = 80\n", "port = 80\nprotocol = \"http\"\n")
    );
    let before = read(&text);
    let after = read(&format!("{text}interval = \"5m\"\nlatency = {{ p99 = \"120%\" }}\n"));
    assert_eq!(
        changes(&before, &after),
        ["~ rollout web: interval 60s -> 300s; latency none -> p99 120% of the stable's"]
    );
    assert!(changes(&read(BEFORE), &before).contains(&"+ rollout web".to_owned()));
}
