//! Addresses, and what tables say of each other.

use super::{Row, on, row};

pub(super) const ROWS: &[Row] = &[
    row(
        "range that isn't a prefix",
        r#"[mesh]
ipv4 = "10.0.0.0""#,
        (2, 8),
        r#""10.0.0.0" is not an IPv4 prefix"#,
        "an address and a length",
    ),
    row(
        "range with bits beyond its length",
        r#"[mesh]
ipv4 = "10.1.0.0/8""#,
        (2, 8),
        "bits set beyond its length",
        r#"write "10.0.0.0/8""#,
    ),
    row(
        "range of the internet",
        r#"[mesh]
ipv4 = "8.0.0.0/8""#,
        (2, 8),
        "isn't free for private use",
        "100.64.0.0/10",
    ),
    row(
        "range too small",
        r#"[mesh]
ipv4 = "10.0.0.0/28""#,
        (2, 8),
        "too few addresses",
        "10.0.0.0/24",
    ),
    row(
        "virtual addresses outside the range",
        r#"[mesh]
ipv4 = "10.0.0.0/8"
virtual_ipv4 = "100.127.0.0/16""#,
        (3, 16),
        "isn't inside the mesh's range 10.0.0.0/8",
        "leave virtual_ipv4 out for 10.255.0.0/16",
    ),
    row(
        "virtual addresses only",
        r#"[mesh]
ipv4 = "10.0.0.0/8"
virtual_ipv4 = "10.0.0.0/8""#,
        (3, 16),
        "no addresses for hosts",
        "leave virtual_ipv4 out",
    ),
    row(
        "virtual addresses too few",
        r#"[mesh]
virtual_ipv4 = "100.64.0.0/30""#,
        (2, 16),
        "fewer than 15 services",
        "leave virtual_ipv4 out",
    ),
    row(
        "blocks too large",
        "[mesh]
host_block = 16",
        (2, 14),
        "can't have the length 16",
        "from 20 (4096 addresses) to 30 (4)",
    ),
    row(
        "blocks too small",
        "[mesh]
host_block = 31",
        (2, 14),
        "can't have the length 31",
        "from 20 (4096 addresses) to 30 (4)",
    ),
    row(
        "block too small",
        r#"[host.a]
ipv4_block = "100.64.0.0/32""#,
        (2, 14),
        "can't have the length 32",
        r#"`ipv4_block = "100.64.0.0/28"`"#,
    ),
    row(
        "block outside the range",
        r#"[host.a]
ipv4_block = "10.0.0.0/28""#,
        (2, 14),
        "isn't inside the mesh's range 100.64.0.0/10",
        "a part of that range",
    ),
    row(
        "block among the virtual addresses",
        r#"[host.a]
ipv4_block = "100.127.3.0/28""#,
        (2, 14),
        "overlaps the virtual addresses 100.127.0.0/16",
        "before or after",
    ),
    row(
        "blocks that overlap",
        r#"[host.a]
ipv4_block = "100.64.0.0/24"
[host.b]
ipv4_block = "100.64.0.16/28""#,
        (4, 14),
        r#"of host "b" overlaps 100.64.0.0/24 of host "a" at mesh.toml:2"#,
        "a block of its own",
    ),
    row(
        "equal blocks",
        r#"[host.b]
ipv4_block = "100.64.0.0/28"
[host.a]
ipv4_block = "100.64.0.0/28""#,
        (4, 14),
        r#"of host "a" overlaps 100.64.0.0/28 of host "b" at mesh.toml:2"#,
        "a block of its own",
    ),
    row(
        "an alias that is a name",
        r#"[host.h]
[service.a]
port = 1
hosts = ["h"]
[service.b]
port = 2
hosts = ["h"]
aliases = ["a"]"#,
        (8, 12),
        r#"alias "a" of service "b" is the name of service "a""#,
        "leave it out",
    ),
    row(
        "an alias of two services",
        r#"[host.h]
[service.a]
port = 1
hosts = ["h"]
aliases = ["old"]
[service.b]
port = 2
hosts = ["h"]
aliases = ["older", "old"]"#,
        (9, 21),
        r#"is an alias of service "a" already"#,
        "leave it out",
    ),
    row(
        "a device's address without a block",
        r#"[host.gw]
[device.d]
via = "gw"
wireguard = { public_key = "6dPMYUUTFuApQ1Hyv9gfqZ0sJoUQNl6VbMO0wU0NK1A=" }
ipv4 = "100.64.0.3""#,
        (5, 8),
        r#"ipv4 100.64.0.3 of device "d" is fixed, but the block of its gateway "gw" isn't"#,
        "write `ipv4_block` in [host.gw]",
    ),
    row(
        "a device's address outside its gateway's block",
        r#"[host.gw]
ipv4_block = "100.64.0.16/28"
[device.d]
via = "gw"
wireguard = { public_key = "6dPMYUUTFuApQ1Hyv9gfqZ0sJoUQNl6VbMO0wU0NK1A=" }
ipv4 = "100.64.0.3""#,
        (6, 8),
        r#"isn't in the block 100.64.0.16/28 of its gateway "gw""#,
        "another address of 100.64.0.16/28",
    ),
    row(
        "a device's address that is its gateway's",
        r#"[host.gw]
ipv4_block = "100.64.0.16/28"
[device.d]
via = "gw"
wireguard = { public_key = "6dPMYUUTFuApQ1Hyv9gfqZ0sJoUQNl6VbMO0wU0NK1A=" }
ipv4 = "100.64.0.16""#,
        (6, 8),
        r#"is host "gw"'s own"#,
        "but the first",
    ),
    row(
        "two devices with one address",
        r#"[host.gw]
ipv4_block = "100.64.0.16/28"
[device.c]
via = "gw"
wireguard = { public_key = "6dPMYUUTFuApQ1Hyv9gfqZ0sJoUQNl6VbMO0wU0NK1A=" }
ipv4 = "100.64.0.17"
[device.d]
via = "gw"
wireguard = { public_key = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=" }
ipv4 = "100.64.0.17""#,
        (10, 8),
        r#"is device "c"'s already"#,
        "leave ipv4 out",
    ),
    row(
        "block with too little room",
        r#"[host.a]
ipv4_block = "100.64.0.0/30"
labels = { r = "x" }
[service.p]
port = 1
hosts = ["a"]
[service.q]
port = 1
hosts = { r = "x" }
[service.r]
port = 1
hosts = ["a"]
[service.s]
port = 1
hosts = ["a"]"#,
        (2, 14),
        r#"host "a" needs 5 addresses"#,
        "give it a /29",
    ),
    row(
        "mesh with too little room",
        r#"[mesh]
ipv4 = "10.0.0.0/24"
host_block = 25
[host.a]
[host.b]"#,
        (5, 7),
        "blocks for 1 hosts, there are 2",
        "widen `ipv4`",
    ),
    on(
        "host that isn't declared",
        r#"[service.x]
port = 1
hosts = ["a", "app"]"#,
        (11, 15),
        r#"there is no host "app""#,
        "`[host.app]`",
    ),
    row(
        "host that is misspelt",
        r#"[host.app-1]
[service.x]
port = 1
hosts = ["ap-1"]"#,
        (4, 10),
        r#"there is no host "ap-1""#,
        r#"did you mean "app-1"?"#,
    ),
    on(
        "host named twice",
        r#"[service.x]
port = 1
hosts = ["a", "a"]"#,
        (11, 15),
        r#"host "a" stands twice"#,
        "once",
    ),
    on(
        "gateway that isn't declared",
        r#"[device.d]
via = "gw"
wireguard = { public_key = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=" }"#,
        (10, 7),
        r#"there is no host "gw""#,
        "`[host.gw]`",
    ),
    on(
        "source that isn't declared",
        r#"[[allow]]
name = "r"
from = ["service:web", "service:wbe"]
to = "any""#,
        (11, 24),
        r#"there is no service "wbe""#,
        r#"did you mean "web"?"#,
    ),
    on(
        "destination of another kind",
        r#"[[allow]]
name = "r"
from = "any"
to = "device:db""#,
        (12, 6),
        r#"there is no device "db""#,
        r#"did you mean "service:db"?"#,
    ),
    on(
        "namespace without services",
        r#"[[allow]]
name = "r"
from = "namespace:prod"
to = "any""#,
        (11, 8),
        r#"no service is in a namespace "prod""#,
        r#"`namespace = "prod"`"#,
    ),
    on(
        "test of something that isn't declared",
        r#"[[test]]
name = "t"
from = "host:b"
to = "service:db"
expect = "deny""#,
        (11, 8),
        r#"there is no host "b""#,
        "`[host.b]`",
    ),
    on(
        "test about everybody",
        r#"[[test]]
name = "t"
from = "host:*"
to = "service:db"
expect = "deny""#,
        (11, 8),
        r#"a test can't ask about "host:*""#,
        "name one",
    ),
    on(
        "test of a host without a port",
        r#"[[test]]
name = "t"
from = "service:web"
to = "host:a"
expect = "deny""#,
        (12, 6),
        r#"which port of "host:a""#,
        "add `port = ",
    ),
    on(
        "test of a path without a method",
        r#"[[test]]
name = "t"
from = "host:a"
to = "service:web"
path = "/"
expect = "deny""#,
        (13, 1),
        "needs `method` too",
        r#"add `method = "GET"`"#,
    ),
    on(
        "test of a method without a path",
        r#"[[test]]
name = "t"
from = "host:a"
to = "service:web"
method = "GET"
expect = "deny""#,
        (13, 1),
        "needs `path` too",
        r#"add `path = "/"`"#,
    ),
    on(
        "test of a header without a request",
        "[[test]]\nname = \"t\"\nfrom = \"host:a\"\nto = \"service:web\"\nheader = { x-a = \"1\" }\nexpect = \"deny\"",
        (13, 1),
        "a test with `header` needs `method` too",
        r#"add `method = "GET"`"#,
    ),
    on(
        "test with a token of nobody's",
        "[[test]]\nname = \"t\"\nfrom = \"host:a\"\nto = \"service:web\"\nmethod = \"GET\"\npath = \"/\"\n\
         jwt = { provider = \"login\" }\nexpect = \"deny\"",
        (15, 20),
        "there is no jwt \"login\"",
        "",
    ),
    on(
        "test of a request to something else",
        r#"[[test]]
name = "t"
from = "host:a"
to = "service:db"
method = "GET"
path = "/"
expect = "deny""#,
        (14, 1),
        r#"service "db" speaks tcp, not http"#,
        "in [service.db]",
    ),
    on(
        "rule on requests to something else",
        r#"[[allow]]
name = "r"
from = "any"
to = ["service:web", "service:db"]
http = [{ method = "GET" }]"#,
        (13, 1),
        r#"service "db" speaks tcp, not http"#,
        r#"`protocol = "http"` in [service.db]"#,
    ),
    on(
        "rule on requests to a host",
        r#"[[deny]]
name = "r"
from = "any"
to = "host:a"
http = [{ method = "GET" }]"#,
        (13, 1),
        r#""host:a" is no service"#,
        "name services",
    ),
    on(
        "rule on requests and ports",
        r#"[[allow]]
name = "r"
from = "any"
to = "service:web"
ports = ["tcp/22"]
http = [{ method = "GET" }]"#,
        (13, 9),
        "requests can't be seen at tcp/22 of service \"web\"",
        "two rules",
    ),
    on(
        "audit of what isn't there",
        r#"[policy]
audit = ["service:web", "service:wbe"]"#,
        (10, 25),
        r#"there is no service "wbe""#,
        r#"did you mean "web"?"#,
    ),
    on(
        "audit of what is allowed",
        r#"[[allow]]
name = "r"
from = "any"
to = "any"
audit = true"#,
        (13, 1),
        "an [[allow]] has nothing to audit",
        "only a [[deny]]",
    ),
    on(
        "rules of one name",
        r#"[[allow]]
name = "r"
from = "any"
to = "any"
[[deny]]
name = "r"
from = "any"
to = "any""#,
        (14, 8),
        r#"the name "r": the one at mesh.toml:10"#,
        "a name of its own",
    ),
    on(
        "tests of one name",
        r#"[[test]]
name = "t"
from = "host:a"
to = "service:db"
expect = "deny"
[[test]]
name = "t"
from = "host:a"
to = "service:db"
expect = "deny""#,
        (15, 8),
        r#"the name "t": the one at mesh.toml:10"#,
        "a name of its own",
    ),
    on(
        "devices of one key",
        r#"[device.d]
via = "a"
wireguard = { public_key = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=" }
[device.c]
via = "a"
wireguard = { public_key = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=" }"#,
        (14, 28),
        r#"devices "d" and "c" have the same key"#,
        "`wg genkey`",
    ),
    on(
        "workloads of one kind on one host",
        r#"[service.y]
port = 1
hosts = ["a"]
workload = { user = "u" }
[service.x]
port = 2
hosts = ["a"]
workload = { user = "u" }"#,
        (16, 12),
        r#"services "y" and "x" have the same workload on host "a""#,
        "another selector",
    ),
    row(
        "workloads of one kind on hosts of one label",
        r#"[service.x]
port = 1
hosts = { r = "1" }
workload = { exe = "/bin/x" }
[service.y]
port = 2
hosts = { r = "1" }
workload = { exe = "/bin/x" }"#,
        (8, 12),
        "have the same workload on the same hosts",
        "another selector",
    ),
    on(
        "an allow to a service that nobody can call",
        r#"[service.x]
hosts = ["a"]
[[allow]]
name = "n"
from = "service:web"
to = "service:x""#,
        (14, 6),
        "service \"x\" has no `port`: nobody can call it",
        "add `port = 8080` to [service.x]",
    ),
    on(
        "a test of a service that nobody can call",
        r#"[service.x]
hosts = ["a"]
[[test]]
name = "n"
from = "service:web"
to = "service:x"
expect = "deny""#,
        (14, 6),
        "doesn't say which port of \"service:x\" it asks about",
        r#"add `port = "tcp/22"`"#,
    ),
    on(
        "a port that the service doesn't have",
        r#"[service.x]
port = 1
ports = { metrics = { port = 2 } }
hosts = ["a"]
[[allow]]
name = "n"
from = "service:web"
to = "service:x"
ports = ["metric"]"#,
        (17, 10),
        "service \"x\" has no port \"metric\"",
        "did you mean \"metrics\"?",
    ),
    on(
        "a port that two services understand differently",
        r#"[service.x]
port = 1
ports = { metrics = { port = 2 } }
hosts = ["a"]
[service.y]
port = 1
ports = { metrics = { port = 3 } }
hosts = ["a"]
[[allow]]
name = "n"
from = "service:web"
to = ["service:x", "service:y"]
ports = ["metrics"]"#,
        (21, 10),
        "port \"metrics\" is tcp/2 of service \"x\", and tcp/3 of service \"y\"",
        "write a rule for each service",
    ),
    on(
        "a port by name of whoever it is",
        r#"[[allow]]
name = "n"
from = "service:web"
to = "any"
ports = ["metrics"]"#,
        (13, 10),
        "\"any\" has no port \"metrics\"",
        "write numbers",
    ),
    on(
        "requests at a port that has none",
        r#"[service.x]
port = 1
protocol = "http"
ports = { metrics = { port = 2 } }
hosts = ["a"]
[[allow]]
name = "n"
from = "service:web"
to = "service:x"
ports = ["metrics"]
http = [{ method = "GET" }]"#,
        (18, 9),
        "requests can't be seen at tcp/2 of service \"x\"",
        "name ports of it that speak http",
    ),
    on(
        "a port that is there twice",
        r#"[service.x]
port = 1
ports = { metrics = { port = 1 } }
hosts = ["a"]"#,
        (11, 21),
        "port 1 of \"metrics\" is the service's own, too",
        "give each port a number of its own",
    ),
    on(
        "a port that is called like all of them",
        r#"[service.x]
port = 1
ports = { tcp = { port = 2 } }
hosts = ["a"]"#,
        (11, 11),
        "a port can't be called \"tcp\"",
        "give it another name",
    ),
];
