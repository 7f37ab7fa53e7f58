//! Notes on the keys of tables within others.

use super::Notes;
use super::Shape::{Flag, Integer, Map, Number, OneOf, Table, Text, Texts};
use super::notes::{FIELDS, SOURCE};

pub(super) const WORKLOAD: Notes = &[
    ("systemd", &[Text], "The systemd unit that they run in."),
    ("user", &[Text], "Their user, by name or number."),
    ("exe", &[Text], "Their program's path. Alone it proves nothing: any user can run it."),
    ("cgroup", &[Text], "The cgroup (v2) that they are in, or one above it."),
    (
        "container",
        &[Table("container")],
        "The container that they are in, by what its engine tells.",
    ),
];

pub(super) const CONTAINER: Notes = &[
    ("name", &[Text], "Its name."),
    ("image", &[Text], "Its image, with or without a tag."),
    ("label", &[Map(&[Text])], "Labels that it has, among others."),
];

pub(super) const PORT: Notes = &[
    ("port", &[Integer], "Where its processes listen, and where callers find it."),
    (
        "protocol",
        &[OneOf(&["tcp", "udp", "http", "tls", "auto"])],
        "How its traffic is judged; `tcp` by default.",
    ),
    ("proxy_protocol", &[OneOf(&["v1", "v2"])], "Tell the application who calls, as HAProxy does."),
    ("http", &[OneOf(&["auto", "1.1", "2"])], "What is spoken to the application."),
    ("trailers", &[Flag], "Give requests' trailers to it by HTTP/1.1, too."),
    ("listen", &[Text], "Where the application listens, if that is on loopback only."),
    ("source", SOURCE, "Whose address the application sees."),
];

pub(super) const WIREGUARD: Notes =
    &[("public_key", &[Text], "What `wg pubkey` prints on the device.")];

pub(super) const BALANCE: Notes = &[
    (
        "policy",
        &[OneOf(&["peak-ewma", "least-request", "round-robin", "ring-hash", "maglev"])],
        "How a workload is chosen; the last two by a hash.",
    ),
    ("header", &[Text], "What is hashed: this header field."),
    ("cookie", &[Text], "Or this cookie."),
    ("source", &[Flag], "Or the caller's address."),
    ("weights", &[Map(&[Integer])], "By host; 1 for those that aren't here."),
    ("locality", &[Flag], "Whether workloads of the caller's site come first; true by default."),
    ("slow_start", &[Text], "How long a new workload gets less than its share."),
    (
        "panic_threshold",
        &[Integer],
        "Below so many percent of usable workloads all are used; 50 by default.",
    ),
];

pub(super) const BREAKER: Notes = &[
    ("max_connections", &[Integer], "Connections; 1024 by default."),
    ("max_pending_requests", &[Integer], "Requests that wait for one; 1024 by default."),
    ("max_requests", &[Integer], "Requests under way; 1024 by default."),
    (
        "max_retries",
        &[Integer],
        "Tries beyond the first that are under way; by the retry budget without this.",
    ),
];

pub(super) const OUTLIER: Notes = &[
    ("consecutive_5xx", &[Integer], "So many failures in a row; 0: never for this."),
    (
        "consecutive_local_origin_failure",
        &[Integer],
        "So many connections in a row that failed; 0: never for this.",
    ),
    ("interval", &[Text], "How often success rates are compared."),
    ("base_ejection_time", &[Text], "How long it is left out the first time."),
    ("max_ejection_time", &[Text], "And at most."),
    ("max_ejection_percent", &[Integer], "How many of all are left out at most."),
    ("success_rate_minimum_hosts", &[Integer], "Rates are compared of so many workloads at least."),
    ("success_rate_request_volume", &[Integer], "And of so many requests to each."),
    (
        "success_rate_stdev_factor",
        &[Integer],
        "How far below the mean one may be, in thousandths of a standard deviation.",
    ),
];

pub(super) const HEALTH: Notes = &[
    ("http", &[Text], "This path must be answered with a status below 400."),
    ("tcp", &[Flag], "It must accept connections."),
    ("grpc", &[Text], "gRPC's health service must serve this service; \"\" is the whole server."),
    ("interval", &[Text], "Between checks; 10s by default."),
    ("timeout", &[Text], "What one may take; 1s by default."),
    ("healthy_threshold", &[Integer], "So many good ones in a row make it well."),
    ("unhealthy_threshold", &[Integer], "So many bad ones in a row make it unwell."),
];

pub(super) const LISTENER: Notes = &[
    ("port", &[Integer], "The port, on all addresses of its hosts."),
    (
        "hosts",
        &[Text, Texts],
        "The hosts that it is for, such as `shop.example.com` or `*.example.com`; every one without this.",
    ),
    ("tls", &[Table("listener-tls")], "TLS; without this it speaks plain HTTP."),
    ("https_redirect", &[Flag], "Send callers to the same place by HTTPS."),
];

pub(super) const LISTENER_TLS: Notes = &[
    ("certificate", &[Text], "The file with its certificate and those of its issuers (PEM)."),
    ("key", &[Text], "The file with its key, for its owner only."),
    (
        "acme",
        &[Flag, Table("acme")],
        "The agent gets the certificate itself: from Let's Encrypt, or from whom the table says.",
    ),
    ("client_ca", &[Text], "The file with those who issue clients' certificates."),
    (
        "client_certificate",
        &[OneOf(&["required", "optional"])],
        "Whether clients must have one; `required` by default.",
    ),
];

pub(super) const ACME: Notes = &[
    ("directory", &[Text], "The authority's directory, an https URL."),
    ("email", &[Text], "Whom it may write to."),
    ("ca", &[Text], "The file with those who issue the authority's own certificate."),
];

pub(super) const ORIGINATION: Notes = &[
    (
        "ca",
        &[Text],
        "The file with those who issue the server's certificate; whom the host trusts without this.",
    ),
    ("server_name", &[Text], "The name that it must be for; `host` without this."),
    ("certificate", &[Text], "The file with the certificate that it is shown."),
    ("key", &[Text], "The file with that one's key."),
];

pub(super) const CHANGES: Notes = &[
    ("set", &[Map(&[Text])], "Fields with these values instead of what was there."),
    ("add", &[Map(&[Text])], "Further ones."),
    ("remove", &[Text, Texts], "Fields to take away."),
];

pub(super) const TOKEN: Notes = &[
    ("provider", &[Text], "Whose: the name of a [jwt.NAME]."),
    ("claims", FIELDS, "What it must say; of a claim that is a list any element may fit."),
];

pub(super) const TEST_TOKEN: Notes = &[
    ("provider", &[Text], "Whose: the name of a [jwt.NAME]."),
    ("claims", &[Map(&[Text])], "What it says."),
];

pub(super) const REQUEST: Notes = &[
    ("method", &[Text], "Its method, in capitals."),
    (
        "path",
        &[Text, Table("path")],
        "A template of its path: `*` and `{id}` stand for a segment, a last `*` for all further ones, `**` for none, too.",
    ),
    ("header", FIELDS, "Its header fields: a value, whether it is there, or an expression."),
    ("query", FIELDS, "Its query's parameters, likewise."),
    ("host", &[Text, Texts], "The hosts that it may be for."),
    ("jwt", &[Table("token")], "A token that it must have."),
    ("when", &[Text], "A condition in CEL."),
];

pub(super) const PER: Notes =
    &[("header", &[Text], "The header field by whose values requests are counted.")];

pub(super) const LATENCY: Notes = &[
    ("p50", &[Text], "Half of them."),
    ("p90", &[Text], "Nine of ten."),
    ("p95", &[Text], "95 of a hundred."),
    ("p99", &[Text], "99 of a hundred."),
];

pub(super) const MATCH: Notes = &[
    ("path", &[Text, Table("path")], "The whole path, or how it is compared."),
    ("method", &[Text], "Its method, in capitals."),
    ("header", FIELDS, "Its header fields: a value, whether it is there, or an expression."),
    ("query", FIELDS, "Its query's parameters, likewise."),
    ("host", &[Text, Texts], "The hosts that it may be for."),
    ("sni", &[Text, Texts], "For `tls`, and alone: the server names that callers ask for."),
];

pub(super) const PATH: Notes = &[
    ("exact", &[Text], "This path."),
    ("prefix", &[Text], "This path and all below it."),
    ("regex", &[Text], "The whole path fits this expression."),
];

pub(super) const BACKEND: Notes = &[
    ("service", &[Text], "The service."),
    ("weight", &[Integer], "Its share among all; 1 without this."),
];

pub(super) const RETRY: Notes = &[
    ("attempts", &[Integer], "How many times beyond the first, 1 to 10."),
    (
        "on",
        &[Text, Texts],
        "After what: a status, or connect-failure, reset, gateway-error and their likes.",
    ),
    ("budget", &[Number], "The share of requests that may be tries again; 0.2 by default."),
    ("backoff", &[Text], "The longest pause before the first, doubled for each; 25ms by default."),
    ("non_idempotent", &[Flag], "Also what may have had an effect already, such as POST."),
];

pub(super) const HEDGE: Notes = &[
    ("after", &[Text], "After so long without an answer."),
    ("max", &[Integer], "How many others at most; 1 by default."),
];

pub(super) const VALUE: Notes = &[("regex", &[Text], "The whole value fits this expression.")];

pub(super) const REDIRECT: Notes = &[
    ("scheme", &[OneOf(&["http", "https"])], "By which scheme; as asked without this."),
    ("host", &[Text], "To which host."),
    ("port", &[Integer], "To which port."),
    ("path", &[Text], "To this path."),
    ("prefix", &[Text], "To this instead of what `match` compared as a prefix."),
    ("status", &[Integer], "301, 302, 303, 307 or 308."),
];

pub(super) const RESPONSE: Notes =
    &[("status", &[Integer], "The status."), ("body", &[Text], "The body.")];

pub(super) const REWRITE: Notes = &[
    ("host", &[Text], "This host."),
    ("path", &[Text], "This path."),
    ("prefix", &[Text], "This instead of what `match` compared as a prefix."),
];

pub(super) const MIRROR: Notes = &[
    ("service", &[Text], "The service."),
    ("percent", &[Number], "Of how many requests; all without this."),
];

pub(super) const FAULT: Notes = &[
    ("delay", &[Text], "How long requests are held."),
    ("delay_percent", &[Number], "How many; all without this."),
    ("abort", &[Integer], "The status that they get, 400 to 599."),
    ("abort_percent", &[Number], "How many; all without this."),
];
