//! Notes on the keys of tables at the top of a file.

use super::Notes;
use super::Shape::{Flag, Integer, Integers, Map, Number, OneOf, Table, Tables, Text, Texts};

const ACTIONS: &[super::Shape] = &[OneOf(&["deny", "allow"])];
const PATHS: &[super::Shape] =
    &[OneOf(&["strict", "merge-slashes", "decode-and-merge-slashes", "as-is"])];
const EXPOSURE: &[super::Shape] = &[OneOf(&["mesh", "count", "open"])];
const PLACEMENT: &[super::Shape] = &[Texts, Map(&[Text])];
pub(super) const FIELDS: &[super::Shape] = &[Map(&[Text, Flag, Table("value")])];
pub(super) const SOURCE: &[super::Shape] = &[OneOf(&["caller", "proxy"])];
const BALANCE: &[super::Shape] = &[
    OneOf(&["peak-ewma", "least-request", "round-robin", "ring-hash", "maglev"]),
    Table("balance"),
];

pub(super) const MESH: Notes = &[
    ("name", &[Text], "The mesh's name; must be that of `isthmus-controller init`."),
    ("trust_domain", &[Text], "The root of its identities; likewise."),
    ("ipv4", &[Text], "All its IPv4 addresses; 100.64.0.0/10 by default."),
    (
        "virtual_ipv4",
        &[Text],
        "Those of services, which DNS gives: a part of `ipv4`, its last /16 by default.",
    ),
    (
        "host_block",
        &[Integer],
        "The prefix length of each host's block, 20 to 30; 28 (16 addresses) by default.",
    ),
    (
        "exposure",
        EXPOSURE,
        "Whether services' ports can be reached around the mesh: closed (`mesh`), counted, or open. A service may say it for itself.",
    ),
];

pub(super) const POLICY: Notes = &[
    ("default", ACTIONS, "What becomes of what no rule decides; `deny` by default."),
    (
        "audit",
        &[Flag, Texts],
        "Log what would be denied, and let it pass: all of it, or what goes to those in a list, such as `service:web` and `namespace:test`.",
    ),
];

pub(super) const HOST: Notes = &[
    ("site", &[Text], "Where it stands: workloads of the caller's own site come first."),
    ("labels", &[Map(&[Text])], "What services' `hosts` can name; added to those of its token."),
    (
        "endpoints",
        &[Texts],
        "Where its tunnels are reached, as ADDRESS:PORT, if that isn't what the agent sees.",
    ),
    ("ipv4_block", &[Text], "Its IPv4 addresses, rather than chosen by the controller."),
];

pub(super) const SERVICE: Notes = &[
    (
        "namespace",
        &[Text],
        "What it belongs to, in identities, rules and DNS; `default` without this.",
    ),
    (
        "port",
        &[Integer],
        "Where its processes listen, on each host, and where callers find it. A service that only calls others has none.",
    ),
    (
        "protocol",
        &[OneOf(&["tcp", "udp", "http", "tls", "auto"])],
        "How its traffic is judged: by connection (`tcp`, the default, and `udp`), by request (`http`), by server name (`tls`), or as each connection turns out (`auto`).",
    ),
    (
        "ports",
        &[Map(&[Table("port")])],
        "Those beside its own, by names that rules use; on the same addresses.",
    ),
    ("hosts", PLACEMENT, "Who runs it: hosts by name, or all with these labels."),
    ("workload", &[Table("workload")], "How its processes are known on these hosts."),
    (
        "balance",
        BALANCE,
        "How its requests are shared out; `peak-ewma` by default: to the workload expected to answer first.",
    ),
    (
        "health",
        &[Table("health")],
        "How its workloads are checked; those that fail get no requests.",
    ),
    ("outlier", &[Table("outlier")], "Which workloads are left out since they fail."),
    ("breaker", &[Table("breaker")], "How much each caller's host may ask of it at a time."),
    ("proxy_protocol", &[OneOf(&["v1", "v2"])], "Tell the application who calls, as HAProxy does."),
    (
        "http",
        &[OneOf(&["auto", "1.1", "2"])],
        "What is spoken to the application; by default HTTP/2 for gRPC only.",
    ),
    ("trailers", &[Flag], "Give requests' trailers to it by HTTP/1.1, too."),
    (
        "listen",
        &[Text],
        "Where the application listens, if that is on loopback only: an address of it, with a port.",
    ),
    ("source", SOURCE, "Whose address the application sees: the caller's, or the proxy's."),
    (
        "aliases",
        &[Texts],
        "Names that it had before. DNS finds it by them, and renamed so it keeps its addresses.",
    ),
    (
        "paths",
        PATHS,
        "What becomes of paths that programs read in two ways: refused (`strict`, the default), brought into one form, or passed on as they are.",
    ),
    ("exposure", EXPOSURE, "As in [mesh], for this service alone."),
    (
        "listener",
        &[OneOf(&["warn", "strict"])],
        "What becomes of it while somebody else listens on its port: a problem in `status` (`warn`, the default), or it gets nothing, too.",
    ),
];

pub(super) const DEVICE: Notes = &[
    ("wireguard", &[Table("wireguard")], "Its tunnel."),
    ("via", &[Text], "The host that ends its tunnel."),
    (
        "ipv4",
        &[Text],
        "Its address in its gateway's `ipv4_block`, rather than chosen by the controller.",
    ),
];

pub(super) const GATEWAY: Notes = &[
    ("namespace", &[Text], "What it belongs to; `default` without this."),
    ("hosts", PLACEMENT, "Whose agents listen: hosts by name, or all with these labels."),
    ("listeners", &[Tables("listener")], "What they listen for."),
    ("trusted_proxies", &[Texts], "Ranges of addresses whose X-Forwarded-* are believed."),
    ("paths", PATHS, "As of a service."),
];

pub(super) const EXTERNAL: Notes = &[
    ("namespace", &[Text], "What it belongs to; `default` without this."),
    ("port", &[Integer], "Where callers find it in the mesh; 80 by default."),
    ("host", &[Text], "The server: a name that is resolved every 10 seconds, or an address."),
    ("target_port", &[Integer], "The server's port, if it isn't 443 with TLS and 80 without."),
    ("tls", &[Flag, Table("origination")], "Whether, and how, the proxy speaks TLS to it."),
    (
        "special_addresses",
        &[Flag],
        "Its name may lead to loopback, link-local and the mesh's addresses.",
    ),
    ("via", PLACEMENT, "Which hosts speak to it; without this each caller's host does."),
    ("balance", BALANCE, "How requests are shared out among the hosts of `via`."),
    ("breaker", &[Table("breaker")], "As of a service."),
    ("outlier", &[Table("outlier")], "As of a service."),
    ("paths", PATHS, "As of a service."),
];

pub(super) const JWT: Notes = &[
    ("issuer", &[Text], "What `iss` must be."),
    ("audiences", &[Text, Texts], "`aud` must name one of these; any without this."),
    ("jwks", &[Text], "Its keys: an https URL, or a file of each host that needs them."),
    ("header", &[Text], "The header field with the token; `authorization` (Bearer) by default."),
    ("cookie", &[Text], "The cookie with it, instead."),
    ("leeway", &[Text], "How far clocks may differ; 30s by default."),
];

pub(super) const RULE: Notes = &[
    ("name", &[Text], "What decisions, logs and metrics show; no other rule has it."),
    (
        "from",
        &[Text, Texts],
        "Who: `service:NAME`, `namespace:NAME`, `host:NAME`, `device:NAME`, `service:*`, `host:*`, `device:*` or `any`.",
    ),
    ("to", &[Text, Texts], "To whom, likewise."),
    (
        "ports",
        &[Texts],
        "`tcp/22`, `udp/5000-5999`, `tcp`, `icmp`, or names of a service's `ports`. Without this: a service's own port and ping, of a host or device everything.",
    ),
    ("http", &[Tables("request")], "Which requests, any of these; without this every one."),
    ("sni", &[Text, Texts], "Which server names, of TLS that passes through."),
    (
        "when",
        &[Text],
        "A condition in CEL over request.{method,path,host,headers,query}, source.{identity,service,namespace,host} and jwt.claims.",
    ),
    ("audit", &[Flag], "A [[deny]] that only logs."),
];

pub(super) const ROUTE: Notes = &[
    (
        "name",
        &[Text],
        "What logs, metrics and rollouts call it; the service and a number without this.",
    ),
    (
        "match",
        &[Table("match"), Tables("match")],
        "Which requests it is for, any of these; without this all.",
    ),
    ("to", &[Tables("backend")], "Who gets them, by weight; the service itself without this."),
    ("redirect", &[Table("redirect")], "Send the caller elsewhere instead."),
    ("direct_response", &[Table("response")], "Answer instead."),
    ("rewrite", &[Table("rewrite")], "What the backend sees instead of what was asked for."),
    ("request_headers", &[Table("header-changes")], "Changes of the request's header fields."),
    ("response_headers", &[Table("header-changes")], "Changes of the answer's header fields."),
    ("timeout", &[Text], "What a request may take in all, such as `5s`."),
    ("try_timeout", &[Text], "What each try may take until its answer begins."),
    ("hedge", &[Table("hedge")], "When a second workload is asked, too."),
    ("retry", &[Table("retry")], "When a request is tried again."),
    ("mirror", &[Tables("mirror")], "Who gets copies."),
    ("fault", &[Table("fault")], "Faults on purpose."),
];

pub(super) const ROLLOUT: Notes = &[
    ("route", &[Text, Texts], "The routes whose weights it moves, by name."),
    ("stable", &[Text], "The service that has the requests."),
    ("canary", &[Text], "The one that shall get them."),
    ("steps", &[Integers], "The canary's share in percent, rising; 5, 25, 50, 100 by default."),
    ("interval", &[Text], "How long each step is watched at least; 1m by default."),
    ("success_rate", &[Number], "The least share of requests that must succeed; 0.99 by default."),
    ("latency", &[Table("latency")], "What the canary's requests may take."),
    ("min_requests", &[Integer], "A step isn't judged good on fewer; 100 by default."),
    ("on_failure", &[OneOf(&["rollback", "pause"])], "What becomes of a canary that does badly."),
    (
        "auto_promote",
        &[Flag],
        "Whether it takes over by itself after the last step; true by default.",
    ),
];

pub(super) const RATELIMIT: Notes = &[
    ("service", &[Text], "The service that is asked."),
    ("match", &[Table("match"), Tables("match")], "Which requests it counts; without this all."),
    ("rate", &[Number], "Requests per second, 0.001 to 1000000."),
    ("burst", &[Integer], "How many at once after a silence; as many as `rate` without this."),
    (
        "per",
        &[OneOf(&["identity"]), Table("per")],
        "Who has a bucket of its own: each caller, or each value of a header; without this all share one.",
    ),
    (
        "scope",
        &[OneOf(&["mesh", "host"])],
        "Shared by all hosts (`mesh`, the default), or on each by itself.",
    ),
];

pub(super) const TEST: Notes = &[
    ("name", &[Text], "What is said when it fails."),
    ("from", &[Text], "Who: one service, host or device."),
    ("to", &[Text], "To whom, likewise."),
    (
        "port",
        &[Text],
        "To which port, such as `tcp/22`, or a name of its `ports`; a service's own without this.",
    ),
    ("method", &[Text], "The request's method; with `path`."),
    ("path", &[Text], "The request's path; with `method`."),
    ("host", &[Text], "The host that it is for."),
    ("header", &[Map(&[Text])], "Its header fields."),
    ("query", &[Map(&[Text])], "Its query's parameters, decoded."),
    ("jwt", &[Table("test-token")], "Its token."),
    ("expect", ACTIONS, "What the rules must decide."),
];
