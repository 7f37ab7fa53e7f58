//! Questions and answers.

use std::fmt;
use std::sync::Arc;

use isthmus_model::{Identity, Layer4, Name, Origin};
use serde_json::{Map, Value};

use crate::fields::{Headers, NoHeaders};

/// Query: may this pass?
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    /// Originator of the flow.
    pub from: &'a Identity,
    /// Whom it is for.
    pub to: &'a Identity,
    /// Transport of its first packet.
    pub layer4: Layer4,
    /// The request, where the flow carries HTTP to a service that speaks it. Ignored elsewhere.
    pub request: Option<Request<'a>>,
}

/// An HTTP request, as far as rules care.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The method, as on the wire.
    pub method: &'a str,
    /// The path as on the wire, without the query.
    pub path: &'a str,
    /// The host that it is for, as on the wire, with its port or without. Empty if there is none.
    pub host: &'a str,
    /// The query as on the wire, without the question mark.
    pub query: &'a str,
    /// Its header fields.
    pub headers: &'a dyn Headers,
    /// The tokens that it has, each verified.
    pub tokens: &'a [Token],
    /// The host that the caller is on; empty if that isn't known.
    pub source_host: &'a str,
}

/// A token that was verified.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    /// Whose.
    pub provider: Name,
    /// What it says.
    pub claims: Arc<Map<String, Value>>,
}

impl<'a> Request<'a> {
    /// A request that has nothing but a method and a path.
    #[must_use]
    pub const fn new(method: &'a str, path: &'a str) -> Self {
        Self {
            method,
            path,
            host: "",
            query: "",
            headers: &NoHeaders,
            tokens: &[],
            source_host: "",
        }
    }
}

/// Detected protocol of a connection, if not HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream<'a> {
    /// Something that nobody looks into.
    Tcp,
    /// TLS, and the server's name that the client asked for, in lower case.
    Tls(Option<&'a str>),
}

/// Decision of the policy, and its reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Verdict {
    /// Outcome.
    pub outcome: Outcome,
    /// Decider. Where the whole policy audits, the denier that was overruled.
    pub decided_by: DecidedBy,
    /// Decider that would have denied without audit. The outcome is never `Deny` then.
    pub would_deny: Option<DecidedBy>,
}

impl Verdict {
    /// Whether this passes only because something audits rather than denies.
    #[must_use]
    pub const fn audited(&self) -> bool {
        self.would_deny.is_some()
    }

    /// Whether this is refused.
    #[must_use]
    pub const fn denies(&self) -> bool {
        matches!(self.outcome, Outcome::Deny)
    }
}

/// Outcome for a flow or request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outcome {
    /// Refuse it.
    Deny,
    /// Let it pass.
    Allow,
    /// Let the proxy decide on each request.
    Inspect,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Deny => "deny",
            Self::Allow => "allow",
            Self::Inspect => "inspect",
        })
    }
}

/// Reason for a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DecidedBy {
    /// A rule of the policy that was asked.
    Rule(RuleId),
    /// Built into every mesh.
    BuiltIn(BuiltIn),
    /// No rule matched.
    Default,
}

/// A rule, by its position among the rules of its [`Policy`](crate::Policy). Means nothing to
/// another policy, nor to the next revision's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleId(pub u32);

/// Built-in decisions of every mesh, whatever its rules say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BuiltIn {
    /// Hosts may ping hosts: reachability is the first thing that anyone checks.
    HostPing,
    /// Devices may ask the mesh DNS of a host: else names would be useless to them.
    DeviceDns,
    /// A request whose path two programs could read in two ways is refused where a rule about paths
    /// would have to decide.
    AmbiguousPath,
}

impl BuiltIn {
    /// How logs and people see it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::HostPing => "built-in: hosts may ping hosts",
            Self::DeviceDns => "built-in: devices may ask the mesh DNS",
            Self::AmbiguousPath => "built-in: ambiguous paths are refused",
        }
    }
}

/// A [`DecidedBy`] in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision<'a> {
    /// The rule's name, `default`, or `built-in: …`.
    pub name: &'a str,
    /// Location of the rule.
    pub origin: Option<&'a Origin>,
}
