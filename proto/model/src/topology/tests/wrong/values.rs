//! Names and other single values.

use super::{Row, on, row};

pub(super) const ROWS: &[Row] = &[
    row(
        "name in upper case",
        "[host.App-1]",
        (1, 7),
        r#""App-1" can't be a name"#,
        "write `app-1`",
    ),
    on(
        "name with an underscore",
        r#"[service.web_2]
port = 1
hosts = ["a"]"#,
        (9, 10),
        "not '_'",
        "write `web-2`",
    ),
    row("name of nothing", r#"[host.""]"#, (1, 7), "can't be empty", "such as `app-1`"),
    row(
        "name too long",
        "[host.aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa]",
        (1, 7),
        "at most 63 characters",
        "write `aaa",
    ),
    on(
        "bad namespace",
        r#"[service.x]
namespace = "prod.eu"
port = 1
hosts = ["a"]"#,
        (10, 13),
        r#""prod.eu" can't be a name"#,
        "write `prod-eu`",
    ),
    row(
        "unknown exposure of a mesh",
        "[mesh]\nexposure = \"closed\"",
        (2, 12),
        "`exposure` can't be \"closed\"",
        "mesh",
    ),
    on(
        "unknown exposure of a service",
        "[service.x]\nport = 1\nhosts = [\"a\"]\nexposure = \"cuont\"",
        (12, 12),
        "`exposure` can't be \"cuont\"",
        "did you mean `count`",
    ),
    on(
        "unknown check of listeners",
        "[service.x]\nport = 1\nhosts = [\"a\"]\nworkload = { user = \"x\" }\nlistener = \"refuse\"",
        (13, 12),
        "`listener` can't be \"refuse\"",
        "write one of",
    ),
    on(
        "check of listeners without a workload",
        "[service.x]\nport = 1\nhosts = [\"a\"]\nlistener = \"strict\"",
        (12, 1),
        "`listener` without `workload`",
        "add `workload",
    ),
    row(
        "bad site",
        r#"[host.a]
site = "DC 1""#,
        (2, 8),
        r#""DC 1" can't be a name"#,
        "write `dc-1`",
    ),
    row(
        "bad trust domain",
        r#"[mesh]
trust_domain = "https://corp.example""#,
        (2, 16),
        "is not a trust domain",
        r#""corp.example""#,
    ),
    row(
        "label key with a space",
        r#"[host.a]
labels = { "my role" = "app" }"#,
        (2, 12),
        "can't be the key of a label",
        "1 to 63 of the characters",
    ),
    row(
        "label value of several lines",
        r#"[host.a]
labels = { role = "a\nb" }"#,
        (2, 19),
        "can't be the value of a label",
        "on one line",
    ),
    row(
        "rule with an empty name",
        r#"[[allow]]
name = " "
from = "any"
to = "any""#,
        (2, 8),
        "is empty",
        "what the rule is for",
    ),
    row(
        "rule with the default's name",
        r#"[[deny]]
name = "default"
from = "any"
to = "any""#,
        (2, 8),
        r#""default" is taken"#,
        "another name",
    ),
    row(
        "rule with an endless name",
        r#"[[deny]]
name = "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"
from = "any"
to = "any""#,
        (2, 8),
        "more than 128 characters",
        "shorten it",
    ),
    row(
        "service without hosts",
        "[service.x]
port = 80",
        (1, 1),
        "[service.x] has no `hosts`",
        r#"add `hosts = ["app-1"]`"#,
    ),
    on(
        "device without a key",
        r#"[device.d]
via = "a""#,
        (9, 1),
        "[device.d] has no `wireguard`",
        "add `wireguard = ",
    ),
    on(
        "device without a gateway",
        r#"[device.d]
wireguard = { public_key = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=" }"#,
        (9, 1),
        "[device.d] has no `via`",
        "add `via = ",
    ),
    row(
        "rule without a name",
        r#"[[allow]]
from = "any"
to = "any""#,
        (1, 1),
        "[[allow]] has no `name`",
        "add `name = ",
    ),
    row(
        "rule without a source",
        r#"[[deny]]
name = "r"
to = "any""#,
        (1, 1),
        "[[deny]] has no `from`",
        "add `from = ",
    ),
    on(
        "test without an answer",
        r#"[[test]]
name = "t"
from = "host:a"
to = "service:db""#,
        (9, 1),
        "[[test]] has no `expect`",
        "add `expect = ",
    ),
    row(
        "no hosts",
        "[service.x]
port = 80
hosts = []",
        (3, 9),
        "`hosts` in [service.x] is empty",
        "write `hosts = ",
    ),
    row(
        "no labels",
        "[service.x]
port = 80
hosts = {}",
        (3, 9),
        "`hosts` in [service.x] is empty",
        "write `hosts = ",
    ),
    row(
        "no source",
        r#"[[allow]]
name = "r"
from = []
to = "any""#,
        (3, 8),
        "`from` in [[allow]] is empty",
        "write `from = ",
    ),
    on(
        "no requests",
        r#"[[allow]]
name = "r"
from = "any"
to = "service:web"
http = []"#,
        (13, 8),
        "`http` in [[allow]] is empty",
        "write `http = ",
    ),
    on(
        "request that says nothing",
        r#"[[allow]]
name = "r"
from = "any"
to = "service:web"
http = [{ }]"#,
        (13, 9),
        "matches every request",
        "leave `http` out",
    ),
    on(
        "no selectors",
        r#"[service.x]
port = 1
hosts = ["a"]
workload = {}"#,
        (12, 12),
        "`workload` in [service.x] is empty",
        "write `workload = ",
    ),
    on(
        "port 0",
        r#"[service.x]
port = 0
hosts = ["a"]"#,
        (10, 8),
        "there is no port 0",
        "from 1 to 65535",
    ),
    on(
        "port beyond the last",
        r#"[service.x]
port = 65_536
hosts = ["a"]"#,
        (10, 8),
        "there is no port 65536",
        "from 1 to 65535",
    ),
    on(
        "port beyond all numbers",
        r#"[service.x]
port = 99999999999999999999
hosts = ["a"]"#,
        (10, 8),
        "`port` is too large",
        "write `port = 8080`",
    ),
    on(
        "protocol misspelt",
        r#"[service.x]
port = 1
protocol = "htp"
hosts = ["a"]"#,
        (11, 12),
        r#"no protocol "htp""#,
        "did you mean `http`?",
    ),
    on(
        "protocol that is covered by another",
        r#"[service.x]
port = 1
protocol = "grpc"
hosts = ["a"]"#,
        (11, 12),
        r#"no protocol "grpc""#,
        r#"write "http""#,
    ),
    on(
        "protocol nobody can judge",
        r#"[service.x]
port = 1
protocol = "https"
hosts = ["a"]"#,
        (11, 12),
        r#"no protocol "https""#,
        r#"write "tls""#,
    ),
    on(
        "PROXY protocol that isn't one",
        r#"[service.x]
port = 1
proxy_protocol = "v3"
hosts = ["a"]"#,
        (11, 18),
        r#"no PROXY protocol "v3""#,
        r#"write "v1" (text) or "v2" (binary)"#,
    ),
    on(
        "PROXY protocol for datagrams",
        r#"[service.x]
port = 1
protocol = "udp"
proxy_protocol = "v2"
hosts = ["a"]"#,
        (12, 1),
        "this service speaks udp",
        "leave it out",
    ),
    on(
        "a protocol of a service that nobody can call",
        r#"[service.x]
protocol = "http"
hosts = ["a"]"#,
        (10, 1),
        "`protocol` without `port`: nobody can call this service",
        "add `port = 8080`; leave `protocol` out if it only calls others",
    ),
    on(
        "a caller's address on loopback",
        r#"[service.x]
port = 1
protocol = "http"
listen = "127.0.0.1:8080"
source = "caller"
hosts = ["a"]"#,
        (12, 1),
        "answers to a caller's address can't leave loopback",
        "ask for `proxy_protocol` instead of `source`",
    ),
    on(
        "a caller's address that is seen anyway",
        r#"[service.x]
port = 1
source = "caller"
hosts = ["a"]"#,
        (11, 1),
        "this service speaks tcp",
        "its application sees its callers' addresses anyway",
    ),
    on(
        "a source that nobody is",
        r#"[service.x]
port = 1
protocol = "http"
source = "client"
hosts = ["a"]"#,
        (12, 10),
        r#"no application sees "client" as its peer"#,
        r#"write "caller", or "proxy""#,
    ),
    on(
        "an application that listens where it is found anyway",
        r#"[service.x]
port = 1
listen = "0.0.0.0:8080"
hosts = ["a"]"#,
        (11, 10),
        "0.0.0.0 is not on loopback",
        "leave `listen` out",
    ),
    on(
        "an application that listens on no port",
        r#"[service.x]
port = 1
listen = "[::1]:0"
hosts = ["a"]"#,
        (11, 10),
        "nobody listens on port 0",
        r#"write "[::1]:8080""#,
    ),
    on(
        "an application that listens on an address alone",
        r#"[service.x]
port = 1
listen = "localhost"
hosts = ["a"]"#,
        (11, 10),
        r#""localhost" is not an address and a port"#,
        r#"write "127.0.0.1:8080""#,
    ),
    on(
        "an application of datagrams on loopback",
        r#"[service.x]
port = 1
protocol = "udp"
listen = "127.0.0.1:1"
hosts = ["a"]"#,
        (12, 1),
        "`listen` is about connections, and this service speaks udp",
        "leave it out",
    ),
    on(
        "trailers where there are no requests",
        r#"[service.x]
port = 1
trailers = true
hosts = ["a"]"#,
        (11, 1),
        "`trailers` is about requests, and this service speaks tcp",
        r#"write `protocol = "http"`"#,
    ),
    on(
        "HTTP version that nothing speaks",
        r#"[service.x]
port = 1
protocol = "http"
http = "3"
hosts = ["a"]"#,
        (12, 8),
        r#"nothing speaks HTTP "3" to an application"#,
        r#"write "1.1", "2" or "auto""#,
    ),
    on(
        "HTTP version without HTTP",
        r#"[service.x]
port = 1
protocol = "tls"
http = "2"
hosts = ["a"]"#,
        (12, 1),
        "this service speaks tls",
        r#"write `protocol = "http"`"#,
    ),
    row(
        "bad default",
        r#"[policy]
default = "drop""#,
        (2, 11),
        r#"`default` can't be "drop""#,
        r#"write "deny" or "allow""#,
    ),
    on(
        "bad answer of a test",
        r#"[[test]]
name = "t"
from = "host:a"
to = "service:db"
expect = "ok""#,
        (13, 10),
        r#"`expect` can't be "ok""#,
        r#"write "deny" or "allow""#,
    ),
    on(
        "relative program",
        r#"[service.x]
port = 1
hosts = ["a"]
workload = { exe = "nginx" }"#,
        (12, 20),
        r#"exe "nginx" is not an absolute path"#,
        "/usr/sbin/nginx",
    ),
    on(
        "cgroup with dots",
        r#"[service.x]
port = 1
hosts = ["a"]
workload = { cgroup = "/a/../b" }"#,
        (12, 23),
        "has an empty, '.' or '..' part",
        "/system.slice/web.service",
    ),
    on(
        "unit without its suffix",
        r#"[service.x]
port = 1
hosts = ["a"]
workload = { systemd = "nginx" }"#,
        (12, 24),
        r#""nginx" is no unit that has processes"#,
        r#"write "nginx.service""#,
    ),
    on(
        "unit without processes",
        r#"[service.x]
port = 1
hosts = ["a"]
workload = { systemd = "web.timer" }"#,
        (12, 24),
        r#""web.timer" is no unit"#,
        "a .service, .slice or .scope",
    ),
    on(
        "user with a group",
        r#"[service.x]
port = 1
hosts = ["a"]
workload = { user = "www:www" }"#,
        (12, 21),
        "can't be a user",
        r#""www-data" or "33""#,
    ),
    row(
        "endpoint without a port",
        r#"[host.a]
endpoints = ["192.0.2.1"]"#,
        (2, 14),
        "is not an address and a port",
        r#"add the port: "192.0.2.1:51820""#,
    ),
    row(
        "endpoint of IPv6 without brackets",
        r#"[host.a]
endpoints = ["2001:db8::1"]"#,
        (2, 14),
        "is not an address and a port",
        r#""[2001:db8::1]:51820""#,
    ),
    row(
        "endpoint by name",
        r#"[host.a]
endpoints = ["gw.example:51820"]"#,
        (2, 14),
        "is not an address and a port",
        r#""192.0.2.1:51820""#,
    ),
    row(
        "endpoint at port 0",
        r#"[host.a]
endpoints = ["192.0.2.1:0"]"#,
        (2, 14),
        "port 0",
        r#""192.0.2.1:51820""#,
    ),
    row(
        "endpoint everywhere",
        r#"[host.a]
endpoints = ["0.0.0.0:51820"]"#,
        (2, 14),
        "0.0.0.0 is not the address of a host",
        "other hosts send to",
    ),
    on(
        "key that isn't one",
        r#"[device.d]
via = "a"
wireguard = { public_key = "abc" }"#,
        (11, 28),
        r#""abc" is not a WireGuard public key"#,
        "`wg pubkey`",
    ),
    on(
        "key of zeros",
        r#"[device.d]
via = "a"
wireguard = { public_key = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=" }"#,
        (11, 28),
        "belongs to nobody",
        "`wg pubkey`",
    ),
    on(
        "subject without a kind",
        r#"[[allow]]
name = "r"
from = "web"
to = "any""#,
        (11, 8),
        r#""web" doesn't say what kind"#,
        r#""service:web""#,
    ),
    on(
        "subject of an unknown kind",
        r#"[[allow]]
name = "r"
from = ["any", "servce:web"]
to = "any""#,
        (11, 16),
        r#"there is no kind "servce""#,
        r#""service:…""#,
    ),
    on(
        "every namespace",
        r#"[[allow]]
name = "r"
from = "namespace:*"
to = "any""#,
        (11, 8),
        r#""namespace:*" is not a subject"#,
        r#""service:*""#,
    ),
    on(
        "subject with a bad name",
        r#"[[allow]]
name = "r"
from = "host:A"
to = "any""#,
        (11, 8),
        "not 'A'",
        "the topology declares",
    ),
    on(
        "port without its protocol",
        r#"[[allow]]
name = "r"
from = "any"
to = "host:a"
ports = ["22"]"#,
        (13, 10),
        r#""22" names no ports"#,
        r#""tcp/22""#,
    ),
    on(
        "port 0 in a rule",
        r#"[[allow]]
name = "r"
from = "any"
to = "host:a"
ports = ["tcp/22", "tcp/0"]"#,
        (13, 20),
        r#""tcp/0": ports are numbers from 1"#,
        r#""tcp/22""#,
    ),
    on(
        "range that ends before it begins",
        r#"[[allow]]
name = "r"
from = "any"
to = "host:a"
ports = ["udp/9-5"]"#,
        (13, 10),
        "ends before it begins",
        r#"write "udp/5-9""#,
    ),
    on(
        "several ports in a test",
        r#"[[test]]
name = "t"
from = "host:a"
to = "host:a"
port = "tcp/1-9"
expect = "deny""#,
        (13, 8),
        "more than one port",
        "write one",
    ),
    on(
        "method in lower case",
        r#"[[allow]]
name = "r"
from = "any"
to = "service:web"
http = [{ method = "get" }]"#,
        (13, 20),
        r#""get" isn't in upper case"#,
        r#"write "GET""#,
    ),
    on(
        "two methods in one",
        r#"[[allow]]
name = "r"
from = "any"
to = "service:web"
http = [{ method = "GET, PUT" }]"#,
        (13, 20),
        "is no method",
        "several entries",
    ),
    on(
        "every method",
        r#"[[allow]]
name = "r"
from = "any"
to = "service:web"
http = [{ method = "*" }]"#,
        (13, 20),
        "is no method",
        "leave `method` out",
    ),
    on(
        "relative path",
        r#"[[allow]]
name = "r"
from = "any"
to = "service:web"
http = [{ path = "a/b" }]"#,
        (13, 18),
        "doesn't begin with '/'",
        r#"write "/a/b""#,
    ),
    on(
        "path with dots",
        r#"[[allow]]
name = "r"
from = "any"
to = "service:web"
http = [{ path = "/a/../b" }]"#,
        (13, 18),
        "'.' or '..' segment",
        "where it leads",
    ),
    on(
        "path with an empty segment",
        r#"[[allow]]
name = "r"
from = "any"
to = "service:web"
http = [{ path = "/a//b" }]"#,
        (13, 18),
        "empty segment",
        "one '/'",
    ),
    on(
        "encoded path",
        r#"[[allow]]
name = "r"
from = "any"
to = "service:web"
http = [{ path = "/a%2fb" }]"#,
        (13, 18),
        "has the character '%'",
        "decoded",
    ),
    on(
        "path with a parameter",
        r#"[[allow]]
name = "r"
from = "any"
to = "service:web"
http = [{ path = "/a;b" }]"#,
        (13, 18),
        "has the character ';'",
        "`*` for that segment",
    ),
    on(
        "path with a query",
        r#"[[allow]]
name = "r"
from = "any"
to = "service:web"
http = [{ path = "/a?b=1" }]"#,
        (13, 18),
        "has the character '?'",
        "leave out",
    ),
    on(
        "star within a segment",
        r#"[[allow]]
name = "r"
from = "any"
to = "service:web"
http = [{ path = "/a*" }]"#,
        (13, 18),
        "'*' within a segment",
        "whole segment",
    ),
    on(
        "star in a test",
        r#"[[test]]
name = "t"
from = "host:a"
to = "service:web"
method = "GET"
path = "/*"
expect = "deny""#,
        (14, 8),
        "has a '*'",
        "one request",
    ),
];
