//! All keys of the language: what they may be, and what they mean. `agentctl reference` prints them, and
//! `agentctl schema` makes a JSON Schema of them.
//!
//! The keys and their examples are those that files are read by. A test holds that none lacks a note.

mod notes;
mod values;

use super::parse;
use super::read::Schema;
use super::tables::{
    action, balance, device, edge, host, jwt, mesh, policy, ports, ratelimit, rollout, route,
    service, test,
};
use super::values::fields;

/// A kind of table.
#[derive(Clone, Copy, Debug)]
pub struct Section {
    /// By which others name it: "service", "balance".
    pub name: &'static str,
    /// How it begins in a file, or where it stands: `[service.NAME]`, "`balance` of a service".
    pub header: &'static str,
    /// Purpose.
    pub about: &'static str,
    keys: Schema,
    notes: Notes,
    required: &'static [&'static str],
}

/// A key of a table.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// As it is written.
    pub name: &'static str,
    /// An example of its use: `port = 8080`.
    pub example: &'static str,
    /// What its value may be, any of these. Empty: what the example is.
    pub shapes: &'static [Shape],
    /// What it means.
    pub about: &'static str,
    /// Whether the table has to have it.
    pub required: bool,
}

/// What a value may be.
#[derive(Clone, Copy, Debug)]
pub enum Shape {
    /// A string.
    Text,
    /// One of these strings.
    OneOf(&'static [&'static str]),
    /// A list of strings.
    Texts,
    /// A whole number.
    Integer,
    /// A number.
    Number,
    /// A list of whole numbers.
    Integers,
    /// True or false.
    Flag,
    /// A table, by its section's name.
    Table(&'static str),
    /// A list of such tables.
    Tables(&'static str),
    /// A table with free keys, and values any of these.
    Map(&'static [Self]),
}

/// By key: what it may be, and what it means.
type Notes = &'static [(&'static str, &'static [Shape], &'static str)];

impl Section {
    /// Its keys, in order.
    pub fn keys(&self) -> impl Iterator<Item = Key> + use<> {
        let Self { keys, notes, required, .. } = *self;
        keys.iter().map(move |(name, example)| {
            let note = notes.iter().find(|(key, ..)| key == name);
            let (_, shapes, about) = note.copied().unwrap_or((name, &[], ""));
            Key { name, example, shapes, about, required: required.contains(name) }
        })
    }
}

#[cfg(test)]
impl Section {
    /// The keys that have notes.
    pub(super) fn noted(&self) -> impl Iterator<Item = &'static str> + use<> {
        self.notes.iter().map(|(key, ..)| *key)
    }
}

/// What stands at the top of a file: the name of its section, and the section's key there.
#[must_use]
pub fn top() -> &'static [(&'static str, &'static str)] {
    parse::TOP
}

const fn section(
    name: &'static str,
    header: &'static str,
    about: &'static str,
    keys: Schema,
    notes: Notes,
    required: &'static [&'static str],
) -> Section {
    Section { name, header, about, keys, notes, required }
}

/// Every kind of table, those at the top of a file first.
pub static SECTIONS: &[Section] = &[
    section(
        "mesh",
        "[mesh]",
        "Names and addresses of the whole mesh.",
        mesh::SCHEMA,
        notes::MESH,
        &[],
    ),
    section(
        "policy",
        "[policy]",
        "What happens where no rule decides.",
        policy::POLICY,
        notes::POLICY,
        &[],
    ),
    section("host", "[host.NAME]", "A machine with an agent.", host::HOST, notes::HOST, &[]),
    section(
        "service",
        "[service.NAME]",
        "What a program is for: where it runs, and how its processes are known.",
        service::SERVICE,
        notes::SERVICE,
        &[],
    ),
    section(
        "device",
        "[device.NAME]",
        "A machine without an agent that runs plain WireGuard.",
        device::DEVICE,
        notes::DEVICE,
        &["wireguard", "via"],
    ),
    section(
        "gateway",
        "[gateway.NAME]",
        "A service whose agents let clients from outside of the mesh in.",
        edge::GATEWAY,
        notes::GATEWAY,
        &["hosts", "listeners"],
    ),
    section(
        "external",
        "[external.NAME]",
        "A server outside of the mesh, as a service.",
        edge::EXTERNAL,
        notes::EXTERNAL,
        &["host", "tls"],
    ),
    section(
        "jwt",
        "[jwt.NAME]",
        "Who issues tokens, and how they are known.",
        jwt::JWT,
        notes::JWT,
        &["issuer", "jwks"],
    ),
    section(
        "allow",
        "[[allow]]",
        "Who may do what.",
        policy::RULE,
        notes::RULE,
        &["name", "from", "to"],
    ),
    section(
        "deny",
        "[[deny]]",
        "Who may not, whatever an [[allow]] says.",
        policy::RULE,
        notes::RULE,
        &["name", "from", "to"],
    ),
    section(
        "route",
        "[[route.SERVICE]]",
        "Where requests to a service go. Of all that fit, the most specific counts.",
        route::ROUTE,
        notes::ROUTE,
        &[],
    ),
    section(
        "rollout",
        "[rollout.NAME]",
        "How a new version takes over a route's requests, step by step.",
        rollout::ROLLOUT,
        notes::ROLLOUT,
        &["route", "stable", "canary"],
    ),
    section(
        "ratelimit",
        "[ratelimit.NAME]",
        "How many requests a service takes.",
        ratelimit::RATELIMIT,
        notes::RATELIMIT,
        &["service", "rate"],
    ),
    section(
        "test",
        "[[test]]",
        "What the rules must decide; run before each apply.",
        test::TEST,
        notes::TEST,
        &["name", "from", "to", "expect"],
    ),
    section(
        "workload",
        "`workload` of a service",
        "How its processes are known on a host; all that is given must fit.",
        service::WORKLOAD,
        values::WORKLOAD,
        &[],
    ),
    section(
        "container",
        "`container` of a `workload`",
        "A container by what its engine tells; all that is given must fit.",
        service::CONTAINER,
        values::CONTAINER,
        &[],
    ),
    section(
        "port",
        "`ports` of a service, by name",
        "One of several ports, with its own protocol.",
        ports::PORT,
        values::PORT,
        &["port"],
    ),
    section(
        "wireguard",
        "`wireguard` of a device",
        "Its tunnel.",
        device::WIREGUARD,
        values::WIREGUARD,
        &["public_key"],
    ),
    section(
        "balance",
        "`balance` of a service",
        "How its requests are shared out.",
        balance::BALANCE,
        values::BALANCE,
        &[],
    ),
    section(
        "breaker",
        "`breaker` of a service",
        "How much each caller's host may ask of it at a time.",
        balance::BREAKER,
        values::BREAKER,
        &[],
    ),
    section(
        "outlier",
        "`outlier` of a service",
        "Which of its workloads are left out since they fail.",
        balance::OUTLIER,
        values::OUTLIER,
        &[],
    ),
    section(
        "health",
        "`health` of a service",
        "How its workloads are checked, by their own agents. One of `http`, `tcp` and `grpc`.",
        balance::HEALTH,
        values::HEALTH,
        &[],
    ),
    section(
        "listener",
        "an entry of `listeners` of a gateway",
        "What it listens for.",
        edge::LISTENER,
        values::LISTENER,
        &["port"],
    ),
    section(
        "listener-tls",
        "`tls` of a listener",
        "Its certificate: files of the gateway's hosts, or by ACME.",
        edge::LISTENER_TLS,
        values::LISTENER_TLS,
        &[],
    ),
    section(
        "acme",
        "`acme` of a listener's `tls`",
        "Who gives certificates by RFC 8555.",
        edge::ACME,
        values::ACME,
        &[],
    ),
    section(
        "origination",
        "`tls` of an external",
        "How the server is known, and what it is shown.",
        edge::ORIGINATION,
        values::ORIGINATION,
        &[],
    ),
    section(
        "header-changes",
        "`request_headers` and `response_headers` of a route",
        "What becomes of header fields.",
        fields::CHANGES,
        values::CHANGES,
        &[],
    ),
    section(
        "token",
        "`jwt` of a rule's `http`",
        "A token that must be there, and what it says.",
        jwt::MATCH,
        values::TOKEN,
        &["provider"],
    ),
    section(
        "test-token",
        "`jwt` of a test",
        "A token as if it had been verified.",
        test::JWT,
        values::TEST_TOKEN,
        &["provider"],
    ),
    section(
        "request",
        "an entry of a rule's `http`",
        "What a request must be; all that is given must fit.",
        policy::HTTP,
        values::REQUEST,
        &[],
    ),
    section(
        "per",
        "`per` of a ratelimit",
        "What requests are counted by.",
        ratelimit::PER,
        values::PER,
        &["header"],
    ),
    section(
        "latency",
        "`latency` of a rollout",
        "What shares of the canary's requests may take: a time, or a percentage of the stable's.",
        rollout::LATENCY,
        values::LATENCY,
        &[],
    ),
    section(
        "match",
        "`match` of a route or ratelimit",
        "What a request must be; all that is given must fit.",
        route::MATCH,
        values::MATCH,
        &[],
    ),
    section(
        "path",
        "`path` of a match",
        "How paths are compared; one of these.",
        route::PATH,
        values::PATH,
        &[],
    ),
    section(
        "backend",
        "an entry of `to` of a route",
        "Who gets the requests.",
        route::TO,
        values::BACKEND,
        &["service"],
    ),
    section(
        "retry",
        "`retry` of a route",
        "When a request is tried again.",
        route::RETRY,
        values::RETRY,
        &["attempts"],
    ),
    section(
        "hedge",
        "`hedge` of a route",
        "When a second workload is asked, too.",
        route::HEDGE,
        values::HEDGE,
        &["after"],
    ),
    section(
        "value",
        "a value of `header`, `query` or `claims`",
        "How it is compared.",
        route::VALUE,
        values::VALUE,
        &["regex"],
    ),
    section(
        "redirect",
        "`redirect` of a route",
        "Where the caller is sent.",
        action::REDIRECT,
        values::REDIRECT,
        &[],
    ),
    section(
        "response",
        "`direct_response` of a route",
        "What the caller gets, and nobody is asked.",
        action::RESPONSE,
        values::RESPONSE,
        &["status"],
    ),
    section(
        "rewrite",
        "`rewrite` of a route",
        "What the backend sees instead.",
        action::REWRITE,
        values::REWRITE,
        &[],
    ),
    section(
        "mirror",
        "an entry of `mirror` of a route",
        "Who gets a copy; its answer is dropped.",
        action::MIRROR,
        values::MIRROR,
        &["service"],
    ),
    section(
        "fault",
        "`fault` of a route",
        "Faults on purpose, to see what becomes of callers.",
        action::FAULT,
        values::FAULT,
        &[],
    ),
];
