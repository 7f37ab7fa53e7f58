//! Keys and types.

use super::{Row, on, row};

pub(super) const ROWS: &[Row] = &[
    on(
        "balance of what speaks no HTTP",
        r#"[service.x]
port = 1
hosts = ["a"]
balance = "round-robin""#,
        (12, 1),
        "`balance` is about requests, and this service speaks tcp",
        "write `protocol = \"http\"`",
    ),
    on(
        "balance that doesn't exist",
        r#"[service.x]
port = 1
protocol = "http"
hosts = ["a"]
balance = "round-robbin""#,
        (13, 11),
        "there is no balance \"round-robbin\"",
        "did you mean `round-robin`?",
    ),
    on(
        "hash of nothing",
        r#"[service.x]
port = 1
protocol = "http"
hosts = ["a"]
balance = "maglev""#,
        (13, 11),
        "\"maglev\" must know what to hash",
        "source = true",
    ),
    on(
        "key that isn't hashed",
        r#"[service.x]
port = 1
protocol = "http"
hosts = ["a"]
balance = { policy = "round-robin", header = "x" }"#,
        (13, 22),
        "\"round-robin\" hashes nothing",
        "leave the key out",
    ),
    on(
        "two keys to hash",
        r#"[service.x]
port = 1
protocol = "http"
hosts = ["a"]
balance = { policy = "maglev", header = "x", source = true }"#,
        (13, 11),
        "a request can be hashed by one thing only",
        "keep one of",
    ),
    on(
        "breaker that lets nothing pass",
        r#"[service.x]
port = 1
protocol = "http"
hosts = ["a"]
breaker = { max_requests = 0 }"#,
        (13, 28),
        "`max_requests` can't be 0",
        "write a number from 1",
    ),
    on(
        "weight of a host that isn't there",
        r#"[service.x]
port = 1
protocol = "http"
hosts = ["a"]
balance = { weights = { aa = 3 } }"#,
        (13, 25),
        "there is no host \"aa\"",
        "declare it with",
    ),
    on(
        "weight beyond all measure",
        r#"[service.x]
port = 1
protocol = "http"
hosts = ["a"]
balance = { weights = { a = 1001 } }"#,
        (13, 29),
        "`weights` can't be 1001",
        "write a number from 0 to 1000",
    ),
    on(
        "more than all",
        r#"[service.x]
port = 1
protocol = "http"
hosts = ["a"]
outlier = { max_ejection_percent = 101 }"#,
        (13, 36),
        "`max_ejection_percent` can't be 101",
        "write a number from 0 to 100",
    ),
    on(
        "ejection that is longer than the longest",
        r#"[service.x]
port = 1
protocol = "http"
hosts = ["a"]
outlier = { base_ejection_time = "2m" }"#,
        (13, 11),
        "`base_ejection_time` is longer than `max_ejection_time`",
        "at least as long",
    ),
    on(
        "health check that asks two things",
        r#"[service.x]
port = 1
protocol = "http"
hosts = ["a"]
health = { http = "/healthz", tcp = true }"#,
        (13, 10),
        "`health` can ask one thing only",
        "keep one of",
    ),
    on(
        "health check that asks nothing",
        r#"[service.x]
port = 1
protocol = "http"
hosts = ["a"]
health = { interval = "5s" }"#,
        (13, 10),
        "`health` doesn't say what is asked",
        "add `http",
    ),
    on(
        "health check of no path",
        r#"[service.x]
port = 1
protocol = "http"
hosts = ["a"]
health = { http = "healthz" }"#,
        (13, 19),
        "\"healthz\" can't be asked for",
        "write a path",
    ),
    on(
        "outlier, misspelt",
        r#"[service.x]
port = 1
protocol = "http"
hosts = ["a"]
outlier = { consecutive_5x = 5 }"#,
        (13, 13),
        "unknown key `consecutive_5x`",
        "did you mean `consecutive_5xx`?",
    ),
    on(
        "unknown key, misspelt",
        r#"[service.x]
prot = "udp"
port = 1
hosts = ["a"]"#,
        (10, 1),
        "unknown key `prot` in [service.x]",
        "did you mean `protocol`?",
    ),
    row(
        "unknown key, nothing like it",
        r#"[host.a]
colour = "red""#,
        (2, 1),
        "unknown key `colour` in [host.a]",
        "the keys here are `site`, `labels`, `endpoints`, `ipv4_block`",
    ),
    row(
        "unknown table, misspelt",
        "[services.web]
port = 80",
        (1, 2),
        "unknown table `services`",
        "did you mean `service`?",
    ),
    row(
        "table of a capability that isn't built",
        r#"[network.plant]
cidr = "10.0.0.0/8""#,
        (1, 2),
        "unknown table `network`",
        "`mesh`, `policy`, `host`, `service`, `device`, `gateway`, `external`, `jwt`, `allow`, `deny`, `route`, `rollout`, `ratelimit`, `test`",
    ),
    row(
        "list of tables of a capability that isn't built",
        r#"[[segment.floor]]
vni = 42"#,
        (1, 3),
        "unknown table `segment`",
        "a topology consists of",
    ),
    row(
        "key above all tables",
        r#"name = "corp""#,
        (1, 1),
        "unknown key `name`",
        "a topology consists of",
    ),
    on(
        "unknown selector",
        r#"[service.x]
port = 1
hosts = ["a"]
workload = { pod = "web" }"#,
        (12, 14),
        "unknown key `pod` in `workload` of [service.x]",
        "`systemd`, `user`, `exe`, `cgroup`, `container`",
    ),
    on(
        "container as a string",
        r#"[service.x]
port = 1
hosts = ["a"]
workload = { container = "web" }"#,
        (12, 26),
        "`container` in `workload` of [service.x] must be a table",
        r#"write `container = { name = "web" }`"#,
    ),
    on(
        "unknown key of a container",
        r#"[service.x]
port = 1
hosts = ["a"]
workload = { container = { labels = { app = "web" } } }"#,
        (12, 28),
        "unknown key `labels` in `container` of `workload`",
        "`label`",
    ),
    on(
        "container without anything to know it by",
        r#"[service.x]
port = 1
hosts = ["a"]
workload = { container = {} }"#,
        (12, 26),
        "`container` in `workload` of [service.x] is empty",
        r#"write `container = { name = "web" }`"#,
    ),
    on(
        "container's name with a slash",
        r#"[service.x]
port = 1
hosts = ["a"]
workload = { container = { name = "/web" } }"#,
        (12, 35),
        r#""/web" can't be the name of a container"#,
        "`podman ps`",
    ),
    on(
        "image with a blank",
        r#"[service.x]
port = 1
hosts = ["a"]
workload = { container = { image = "a b" } }"#,
        (12, 36),
        r#""a b" can't be the name of an image"#,
        "registry.example/web:1",
    ),
    on(
        "unknown key of a request",
        r#"[[allow]]
name = "r"
from = "any"
to = "service:web"
http = [{ methods = "GET" }]"#,
        (13, 11),
        "unknown key `methods` in `http` of [[allow]]",
        "did you mean `method`?",
    ),
    on(
        "unknown key of a device's tunnel",
        r#"[device.d]
via = "a"
wireguard = { public_key = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=", allowed_ips = "" }"#,
        (11, 76),
        "unknown key `allowed_ips`",
        "the keys here are `public_key`",
    ),
    on(
        "port as a string",
        r#"[service.x]
port = "8080"
hosts = ["a"]"#,
        (10, 8),
        r#"`port` in [service.x] must be a whole number, not the string "8080""#,
        "write `port = 8080`",
    ),
    row(
        "name as a number",
        "[mesh]
name = 5",
        (2, 8),
        "must be a string, not the number 5",
        r#"write `name = "corp"`"#,
    ),
    row(
        "audit as a string",
        r#"[policy]
audit = "yes""#,
        (2, 9),
        r#"must be true or false, not the string "yes""#,
        "write `audit = true`",
    ),
    row(
        "site as a date",
        "[host.a]
site = 2026-01-01",
        (2, 8),
        "must be a string, not the date or time 2026-01-01",
        r#"write `site = "dc1"`"#,
    ),
    row(
        "host_block as a float",
        "[mesh]
host_block = 28.5",
        (2, 14),
        "must be a whole number, not the number 28.5",
        "write `host_block = 28`",
    ),
    on(
        "hosts as a string",
        r#"[service.x]
port = 1
hosts = "a""#,
        (11, 9),
        "must be a list",
        r#"write `hosts = ["app-1"]`"#,
    ),
    on(
        "number in a list of hosts",
        r#"[service.x]
port = 1
hosts = ["a", 2]"#,
        (11, 15),
        "must be a list of strings, not the number 2",
        "write `hosts = ",
    ),
    row(
        "label that isn't a string",
        "[host.a]
labels = { rack = 7 }",
        (2, 19),
        "label `rack` in [host.a] must be a string, not the number 7",
        "write `labels = ",
    ),
    row(
        "labels as a list",
        r#"[host.a]
labels = ["app"]"#,
        (2, 10),
        "`labels` in [host.a] must be a table, not a list",
        "write `labels = { role",
    ),
    on(
        "workload as a string",
        r#"[service.x]
port = 1
hosts = ["a"]
workload = "web.service""#,
        (12, 12),
        "must be a table",
        "write `workload = { systemd",
    ),
    on(
        "http as a table",
        r#"[[allow]]
name = "r"
from = "any"
to = "service:web"
http = { method = "GET" }"#,
        (13, 8),
        "must be a list of tables, not a table",
        "write `http = [{",
    ),
    row(
        "single brackets for a rule",
        r#"[allow]
name = "x""#,
        (1, 1),
        "`allow` must be a list of tables",
        "write `[[allow]]`",
    ),
    row(
        "double brackets for a host",
        r#"[[host]]
site = "dc1""#,
        (1, 1),
        "`host` must be tables with names",
        "write `[host.app-1]`",
    ),
    row(
        "host without its name",
        r#"[host]
site = "dc1""#,
        (2, 8),
        "`site` of `host` must be a table",
        r#"write `[host.NAME]`, and `site = "dc1"` below it"#,
    ),
    row("mesh as a value", r#"mesh = "corp""#, (1, 8), "`mesh` must be a table", "write `[mesh]`"),
    row(
        "policy as a list",
        "[[policy]]
audit = true",
        (1, 1),
        "`policy` must be a table",
        "write `[policy]`",
    ),
];
