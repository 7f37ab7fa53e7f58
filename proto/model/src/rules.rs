//! Policy as data: what the topology says and the controller sends. The engine that decides by it
//! is `isthmus-policy`.

use std::fmt;
use std::sync::Arc;

use crate::name::Name;

/// All rules of a mesh, or those of them that one host needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// What happens where no rule decides.
    pub default: Action,
    /// Log what would be denied, and let it pass.
    pub audit: bool,
    /// In order of the files; the engine tries every deny before any allow.
    pub rules: Vec<Rule>,
}

impl Default for Rules {
    fn default() -> Self {
        Self { default: Action::Deny, audit: false, rules: Vec::new() }
    }
}

/// What a rule, or the default, does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// Refuse.
    Deny,
    /// Let pass.
    Allow,
}

/// One `[[allow]]` or `[[deny]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Unique among all rules; what verdicts, logs and metrics show.
    pub name: Arc<str>,
    /// Allow or deny.
    pub action: Action,
    /// Any of these may be the source.
    pub from: Vec<Subject>,
    /// Any of these may be the destination.
    pub to: Vec<Subject>,
    /// Transport ports. Empty: for a service its own port and protocol; for a host or device,
    /// everything.
    pub ports: Vec<PortRule>,
    /// Requests, for services that speak HTTP. Empty: every request.
    pub http: Vec<RequestMatch>,
    /// A deny that only logs.
    pub audit: bool,
    /// Where it stands.
    pub origin: Origin,
}

/// Whom a rule names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subject {
    /// `any`
    Any,
    /// `service:NAME`
    Service(Name),
    /// `service:*`
    AnyService,
    /// `namespace:NAME`, all its services
    Namespace(Name),
    /// `host:NAME`
    Host(Name),
    /// `host:*`
    AnyHost,
    /// `device:NAME`
    Device(Name),
    /// `device:*`
    AnyDevice,
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any"),
            Self::Service(name) => write!(f, "service:{name}"),
            Self::AnyService => f.write_str("service:*"),
            Self::Namespace(name) => write!(f, "namespace:{name}"),
            Self::Host(name) => write!(f, "host:{name}"),
            Self::AnyHost => f.write_str("host:*"),
            Self::Device(name) => write!(f, "device:{name}"),
            Self::AnyDevice => f.write_str("device:*"),
        }
    }
}

/// What a packet carries, as far as rules care.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Layer4 {
    /// TCP to this port.
    Tcp(u16),
    /// UDP to this port.
    Udp(u16),
    /// ICMP or ICMPv6 that is not an error about another flow.
    Icmp,
    /// Any other protocol, by its number.
    Other(u8),
}

impl fmt::Display for Layer4 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(port) => write!(f, "tcp/{port}"),
            Self::Udp(port) => write!(f, "udp/{port}"),
            Self::Icmp => f.write_str("icmp"),
            Self::Other(number) => write!(f, "ip/{number}"),
        }
    }
}

/// One entry of `ports`: `tcp/22`, `udp/5000-5999`, `icmp`, `tcp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PortRule {
    /// TCP to a port in this inclusive range.
    Tcp(u16, u16),
    /// UDP to a port in this inclusive range.
    Udp(u16, u16),
    /// ICMP and ICMPv6.
    Icmp,
}

impl PortRule {
    /// Whether this entry names what a packet carries.
    #[must_use]
    pub fn matches(self, layer4: Layer4) -> bool {
        match (self, layer4) {
            (Self::Tcp(low, high), Layer4::Tcp(port))
            | (Self::Udp(low, high), Layer4::Udp(port)) => (low..=high).contains(&port),
            (Self::Icmp, Layer4::Icmp) => true,
            (Self::Tcp(..) | Self::Udp(..) | Self::Icmp, _) => false,
        }
    }
}

impl fmt::Display for PortRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (protocol, low, high) = match self {
            Self::Tcp(low, high) => ("tcp", low, high),
            Self::Udp(low, high) => ("udp", low, high),
            Self::Icmp => return f.write_str("icmp"),
        };
        match (low, high) {
            (&0, &u16::MAX) => f.write_str(protocol),
            _ if low == high => write!(f, "{protocol}/{low}"),
            _ => write!(f, "{protocol}/{low}-{high}"),
        }
    }
}

/// One entry of `http`: what a request must be. An absent field matches everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestMatch {
    /// The method, in upper case.
    pub method: Option<Arc<str>>,
    /// A path. A last segment `*` matches one or more segments (`/a/*` matches `/a/b` and
    /// `/a/b/c`, not `/a`); a `*` segment elsewhere matches exactly one.
    pub path: Option<Arc<str>>,
}

/// The place in the operator's files that a rule comes from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Origin {
    /// The file's name, as given to `apply`.
    pub file: Arc<str>,
    /// The line, from 1.
    pub line: u32,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}
