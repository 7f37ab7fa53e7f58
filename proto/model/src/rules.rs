//! Policy as data: what the topology says and the controller sends. The engine that decides by it
//! is `isthmus-policy`.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::condition::Condition;
use crate::jwt::JwtMatch;
use crate::name::{Name, NameError};
use crate::route::{FieldMatch, HostMatch, Pattern};

/// All rules of a mesh, or those of them that one host needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Default action, where no rule decides.
    pub default: Action,
    /// Log what would be denied, and let it pass.
    pub audit: bool,
    /// The same, for what goes to these only.
    pub audited: Vec<Subject>,
    /// In order of the files; the engine tries every deny before any allow.
    pub rules: Vec<Rule>,
}

impl Default for Rules {
    fn default() -> Self {
        Self { default: Action::Deny, audit: false, audited: Vec::new(), rules: Vec::new() }
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
    /// TLS that asks for one of these servers, for services that pass it through. Empty: every name,
    /// and none.
    pub sni: Vec<HostMatch>,
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

/// Why a text is not a [`Subject`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubjectError {
    /// It names no kind.
    #[error(
        "{0:?} is not a subject: write \"any\", or a kind and a name such as \"service:web\", \
         \"host:*\", \"namespace:prod\" or \"device:press\""
    )]
    NoKind(String),
    /// It names a kind that doesn't exist.
    #[error("{0:?} is not a kind of subject: the kinds are service, namespace, host and device")]
    UnknownKind(String),
    /// A wildcard where none may be.
    #[error(
        "\"namespace:*\" is not a subject: write \"service:*\" for the services of all namespaces"
    )]
    AnyNamespace,
    /// The name isn't one.
    #[error("{name:?} is not a name: {cause}")]
    BadName {
        /// What stands behind the colon.
        name: String,
        /// What is wrong with it.
        cause: NameError,
    },
}

impl FromStr for Subject {
    type Err = SubjectError;

    fn from_str(text: &str) -> Result<Self, SubjectError> {
        if text == "any" {
            return Ok(Self::Any);
        }
        let Some((kind, name)) = text.split_once(':') else {
            return Err(SubjectError::NoKind(text.to_owned()));
        };
        let named: fn(Name) -> Self = match (kind, name) {
            ("service", "*") => return Ok(Self::AnyService),
            ("host", "*") => return Ok(Self::AnyHost),
            ("device", "*") => return Ok(Self::AnyDevice),
            ("namespace", "*") => return Err(SubjectError::AnyNamespace),
            ("service", _) => Self::Service,
            ("namespace", _) => Self::Namespace,
            ("host", _) => Self::Host,
            ("device", _) => Self::Device,
            _ => return Err(SubjectError::UnknownKind(kind.to_owned())),
        };
        let bad = |cause| SubjectError::BadName { name: name.to_owned(), cause };
        name.parse().map(named).map_err(bad)
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

/// Why a text is not a [`PortRule`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PortRuleError {
    /// It names no protocol that rules know.
    #[error(
        "{0:?} is not a port: write \"tcp/22\", \"udp/5000-5999\", \"tcp\", \"udp\" or \"icmp\""
    )]
    UnknownProtocol(String),
    /// What stands behind the slash isn't a port.
    #[error("{0:?} is not a port number: ports are 1 to 65535")]
    BadNumber(String),
    /// The range ends before it begins.
    #[error("the range {0}-{1} is backwards: write {1}-{0}")]
    Backwards(u16, u16),
    /// There are several, where one is asked for.
    #[error("{0:?} is more than one port: write one, such as \"tcp/22\"")]
    SeveralPorts(String),
}

impl FromStr for PortRule {
    type Err = PortRuleError;

    fn from_str(text: &str) -> Result<Self, PortRuleError> {
        let (protocol, ports) = match text.split_once('/') {
            Some((protocol, ports)) => (protocol, Some(ports)),
            None => (text, None),
        };
        let rule: fn(u16, u16) -> Self = match (protocol, ports) {
            ("tcp", _) => Self::Tcp,
            ("udp", _) => Self::Udp,
            ("icmp", None) => return Ok(Self::Icmp),
            _ => return Err(PortRuleError::UnknownProtocol(text.to_owned())),
        };
        let Some(ports) = ports else { return Ok(rule(0, u16::MAX)) };
        let (low, high) = ports.split_once('-').unwrap_or((ports, ports));
        let (low, high) = (port(low)?, port(high)?);
        if low <= high { Ok(rule(low, high)) } else { Err(PortRuleError::Backwards(low, high)) }
    }
}

fn port(text: &str) -> Result<u16, PortRuleError> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let number = if digits { text.parse().ok() } else { None };
    number.filter(|port| *port != 0).ok_or_else(|| PortRuleError::BadNumber(text.to_owned()))
}

/// One port, as a test or a question names it: `tcp/22`, `udp/53`, `icmp`, `ip/47`.
impl FromStr for Layer4 {
    type Err = PortRuleError;

    fn from_str(text: &str) -> Result<Self, PortRuleError> {
        if let Some(number) = text.strip_prefix("ip/").and_then(|number| number.parse().ok()) {
            return Ok(Self::Other(number));
        }
        match text.parse()? {
            PortRule::Tcp(low, high) if low == high => Ok(Self::Tcp(low)),
            PortRule::Udp(low, high) if low == high => Ok(Self::Udp(low)),
            PortRule::Icmp => Ok(Self::Icmp),
            PortRule::Tcp(..) | PortRule::Udp(..) => {
                Err(PortRuleError::SeveralPorts(text.to_owned()))
            }
        }
    }
}

/// One entry of `http`: what a request must be. An absent field matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestMatch {
    /// The method, in upper case.
    pub method: Option<Arc<str>>,
    /// A path's template. A last segment `*` matches one or more segments (`/a/*` matches `/a/b` and
    /// `/a/b/c`, not `/a`), a last `**` none as well; a `*` segment elsewhere, and `{name}` anywhere,
    /// match exactly one.
    pub path: Option<Arc<str>>,
    /// The whole path fits the expression.
    pub path_regex: Option<Pattern>,
    /// Any of these may be the host. Empty: every host.
    pub hosts: Vec<HostMatch>,
    /// Header fields, by lower-case name.
    pub headers: Vec<FieldMatch>,
    /// Parameters of the query.
    pub query: Vec<FieldMatch>,
    /// A token.
    pub jwt: Option<JwtMatch>,
    /// A condition.
    pub when: Option<Condition>,
}

impl RequestMatch {
    /// Whether every request matches.
    #[must_use]
    pub fn is_open(&self) -> bool {
        *self == Self::default()
    }

    /// Whether method and path say everything.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        let Self { method, path, .. } = self;
        *self == Self { method: method.clone(), path: path.clone(), ..Self::default() }
    }
}

/// As in `GET /accounts/* header x-a=1`.
impl fmt::Display for RequestMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { method, path, path_regex, hosts, headers, query, jwt, when } = self;
        let method = method.as_deref().unwrap_or("any method");
        match (path, path_regex) {
            (Some(path), _) => write!(f, "{method} {path}")?,
            (None, Some(pattern)) => write!(f, "{method} regex {}", pattern.as_str())?,
            (None, None) => write!(f, "{method} any path")?,
        }
        let hosts: Vec<String> = hosts.iter().map(ToString::to_string).collect();
        if !hosts.is_empty() {
            write!(f, " host {}", hosts.join("|"))?;
        }
        headers.iter().try_for_each(|field| write!(f, " header {field}"))?;
        query.iter().try_for_each(|field| write!(f, " query {field}"))?;
        jwt.iter().try_for_each(|jwt| write!(f, " {jwt}"))?;
        when.iter().try_for_each(|when| write!(f, " when {when}"))
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_read_back_as_written() {
        for text in [
            "any",
            "service:web",
            "service:*",
            "namespace:prod",
            "host:a-1",
            "host:*",
            "device:press",
            "device:*",
        ] {
            assert_eq!(text.parse::<Subject>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_subject_is_told_why() {
        let error = |text: &str| text.parse::<Subject>().unwrap_err();
        assert_eq!(error("web"), SubjectError::NoKind("web".to_owned()));
        assert_eq!(error("svc:web"), SubjectError::UnknownKind("svc".to_owned()));
        assert_eq!(error("namespace:*"), SubjectError::AnyNamespace);
        assert!(matches!(error("service:Web"), SubjectError::BadName { .. }));
        assert!(matches!(error("host:"), SubjectError::BadName { .. }));
    }

    #[test]
    fn ports_read_back_as_written() {
        for text in ["tcp", "udp", "icmp", "tcp/22", "udp/5000-5999", "tcp/1-65535"] {
            assert_eq!(text.parse::<PortRule>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_port_is_told_why() {
        let error = |text: &str| text.parse::<PortRule>().unwrap_err();
        for text in ["22", "", "sctp/1", "icmp/8", "TCP/22"] {
            assert_eq!(error(text), PortRuleError::UnknownProtocol(text.to_owned()));
        }
        for (text, bad) in [("tcp/0", "0"), ("tcp/", ""), ("tcp/65536", "65536"), ("udp/+1", "+1")]
        {
            assert_eq!(error(text), PortRuleError::BadNumber(bad.to_owned()));
        }
        assert_eq!(error("tcp/9-1"), PortRuleError::Backwards(9, 1));
    }

    #[test]
    fn a_question_is_about_one_port() {
        assert_eq!("udp/53".parse(), Ok(Layer4::Udp(53)));
        assert_eq!("icmp".parse(), Ok(Layer4::Icmp));
        assert_eq!("ip/47".parse(), Ok(Layer4::Other(47)));
        let several = PortRuleError::SeveralPorts("tcp/1-2".to_owned());
        assert_eq!("tcp/1-2".parse::<Layer4>(), Err(several));
    }
}
