//! Routes: where a service's requests go. What a `[[route.NAME]]` says, in Gateway API's words.

mod pattern;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use crate::name::Name;
use crate::rules::Origin;

pub use self::pattern::{Pattern, PatternError};

/// One `[[route.NAME]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Unique among all routes; what logs and metrics show.
    pub name: Arc<str>,
    /// Whose requests it is about.
    pub service: Name,
    /// Any of these may fit. Empty: every request does.
    pub matches: Vec<RouteMatch>,
    /// What becomes of a request.
    pub action: RouteAction,
    /// Applied to requests on their way to a backend.
    pub request_headers: HeaderChanges,
    /// Applied to answers on their way to the client.
    pub response_headers: HeaderChanges,
    /// For the whole exchange, all tries together.
    pub timeout: Option<Duration>,
    /// For one try, until its answer begins.
    pub try_timeout: Option<Duration>,
    /// What is asked of another workload, too, when the first one takes long.
    pub hedge: Option<Hedge>,
    /// What is tried again.
    pub retry: Option<Retry>,
    /// Where copies of requests go.
    pub mirrors: Vec<Mirror>,
    /// Held back for so long, so often.
    pub delay: Option<(Duration, Share)>,
    /// Answered with this status instead, so often.
    pub abort: Option<(u16, Share)>,
    /// Where it stands.
    pub origin: Origin,
}

impl Route {
    /// All services that it names: whose requests it is about, who gets them, and their copies.
    pub fn services(&self) -> impl Iterator<Item = &Name> {
        let to = match &self.action {
            RouteAction::Forward { to, .. } => to.as_slice(),
            RouteAction::Redirect(_) | RouteAction::Respond { .. } => &[],
        };
        std::iter::once(&self.service)
            .chain(to.iter().map(|backend| &backend.service))
            .chain(self.mirrors.iter().map(|mirror| &mirror.service))
    }
}

/// One entry of `match`. All that it says must fit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteMatch {
    /// Any of these may be the host. Empty: every host.
    pub hosts: Vec<HostMatch>,
    /// TLS that asks for any of these servers. Such an entry says nothing else, and requests don't
    /// fit it.
    pub sni: Vec<HostMatch>,
    /// The path, without the query.
    pub path: Option<PathMatch>,
    /// The method, in upper case.
    pub method: Option<Arc<str>>,
    /// Header fields, by lower-case name.
    pub headers: Vec<FieldMatch>,
    /// Parameters of the query.
    pub query: Vec<FieldMatch>,
}

/// A host, without the port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HostMatch {
    /// This one, in its [canonical](crate::host::canonical) form.
    Exact(Arc<str>),
    /// `*.example.com`: any name that ends in `.example.com`.
    Suffix(Arc<str>),
}

impl HostMatch {
    /// Whether a host in its canonical form is meant.
    #[must_use]
    pub fn fits(&self, host: &str) -> bool {
        self.exactness(host).is_some()
    }

    /// How exactly a host in its canonical form is meant; none if it isn't.
    #[must_use]
    pub fn exactness(&self, host: &str) -> Option<usize> {
        match self {
            Self::Exact(exact) => (**exact == *host).then_some(usize::MAX),
            Self::Suffix(suffix) => {
                let fits = host.len() > suffix.len() && host.ends_with(&**suffix);
                fits.then_some(suffix.len())
            }
        }
    }
}

/// How a path is compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathMatch {
    /// It is this.
    Exact(Arc<str>),
    /// It begins with these segments: `/a` fits `/a` and `/a/b`, not `/ab`.
    Prefix(Arc<str>),
    /// The whole of it fits the expression.
    Regex(Pattern),
}

/// A header field or a parameter, and what it must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldMatch {
    /// Its name.
    pub name: Arc<str>,
    /// Its value.
    pub value: ValueMatch,
}

/// How a value is compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValueMatch {
    /// It is this.
    Exact(Arc<str>),
    /// The whole of it fits the expression.
    Regex(Pattern),
    /// It is there, whatever it is.
    Present,
    /// It isn't there.
    Absent,
}

/// What becomes of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteAction {
    /// It goes to one of these.
    Forward {
        /// Never empty; their weights aren't all 0.
        to: Vec<Backend>,
        /// With another host and path.
        rewrite: Rewrite,
    },
    /// The client is sent elsewhere.
    Redirect(Redirect),
    /// It is answered here.
    Respond {
        /// The answer's status.
        status: u16,
        /// The answer's body, as plain text.
        body: Arc<str>,
    },
}

/// One entry of `to`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// A service that speaks HTTP.
    pub service: Name,
    /// Its share of the sum of all weights.
    pub weight: u32,
}

/// What a backend gets to see instead.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rewrite {
    /// The host.
    pub host: Option<Arc<str>>,
    /// The path.
    pub path: Option<PathChange>,
}

/// Another path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathChange {
    /// This one, whatever it was.
    Full(Arc<str>),
    /// This one in place of the prefix that matched.
    Prefix(Arc<str>),
}

/// Where a client is sent. What isn't given stays as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// `http` or `https`.
    pub scheme: Option<Arc<str>>,
    /// The host.
    pub host: Option<Arc<str>>,
    /// The port.
    pub port: Option<u16>,
    /// The path.
    pub path: Option<PathChange>,
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
}

/// Changes to header fields: first `remove`, then `set`, then `add`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderChanges {
    /// Fields that have this value and no other afterwards.
    pub set: Vec<(Arc<str>, Arc<str>)>,
    /// Fields that have this value, too.
    pub add: Vec<(Arc<str>, Arc<str>)>,
    /// Fields that are gone.
    pub remove: Vec<Arc<str>>,
}

impl HeaderChanges {
    /// Whether nothing changes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.add.is_empty() && self.remove.is_empty()
    }
}

/// `retry`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    /// How often a request may be tried again.
    pub attempts: u32,
    /// After what.
    pub on: Vec<RetryOn>,
    /// Retries may be at most this share of requests.
    pub budget: Share,
    /// Before the first retry; doubled before each further one.
    pub backoff: Duration,
    /// Also methods that may not be repeated by themselves (RFC 9110, section 9.2.2).
    pub non_idempotent: bool,
}

/// A request that another workload gets, too, when the first one takes long. The first good answer
/// counts. Only what may be repeated, and is here as a whole, is sent twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hedge {
    /// How long the ones before have no answer.
    pub after: Duration,
    /// Further requests, at most.
    pub max: u32,
}

impl Hedge {
    /// More would be a burden, not a help.
    pub const MAX: u32 = 3;
}

/// What is tried again, in Envoy's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RetryOn {
    /// `5xx`: any server error, and no answer at all.
    ServerError,
    /// `gateway-error`: 502, 503 and 504.
    GatewayError,
    /// `connect-failure`: nothing was sent.
    ConnectFailure,
    /// `reset`: the backend broke off, or took longer than `try_timeout`.
    Reset,
    /// `429`: this status.
    Status(u16),
    /// `unavailable`: this status of gRPC.
    Grpc(u8),
}

/// One entry of `mirror`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// Who gets the copies. Its answers are thrown away.
    pub service: Name,
    /// Of how many requests.
    pub share: Share,
}

/// A part of a whole, in millionths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Share(u32);

impl Share {
    /// Everything.
    pub const ALL: Self = Self(1_000_000);

    /// So many millionths; none if that is more than all.
    #[must_use]
    pub const fn new(millionths: u32) -> Option<Self> {
        if millionths <= Self::ALL.0 { Some(Self(millionths)) } else { None }
    }

    /// In millionths.
    #[must_use]
    pub const fn millionths(self) -> u32 {
        self.0
    }

    /// As a number from 0 to 1.
    #[must_use]
    pub fn ratio(self) -> f64 {
        f64::from(self.0) / f64::from(Self::ALL.0)
    }

    /// Whether a random number belongs to this part.
    #[must_use]
    pub const fn takes(self, random: u64) -> bool {
        random % (Self::ALL.0 as u64) < self.0 as u64
    }
}

/// In percent.
impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", f64::from(self.0) / 10_000.0)
    }
}

/// The names of gRPC's statuses, by number.
const GRPC: [&str; 17] = [
    "ok",
    "cancelled",
    "unknown",
    "invalid-argument",
    "deadline-exceeded",
    "not-found",
    "already-exists",
    "permission-denied",
    "resource-exhausted",
    "failed-precondition",
    "aborted",
    "out-of-range",
    "unimplemented",
    "internal",
    "unavailable",
    "data-loss",
    "unauthenticated",
];

/// Words that a [`RetryOn`] may be, for messages.
pub const RETRY_WORDS: [&str; 9] = [
    "5xx",
    "gateway-error",
    "connect-failure",
    "reset",
    "cancelled",
    "deadline-exceeded",
    "internal",
    "resource-exhausted",
    "unavailable",
];

/// Why a text is no [`RetryOn`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is nothing that can be tried again")]
pub struct RetryOnError(String);

impl FromStr for RetryOn {
    type Err = RetryOnError;

    fn from_str(text: &str) -> Result<Self, RetryOnError> {
        let failed = || RetryOnError(text.to_owned());
        Ok(match text {
            "5xx" => Self::ServerError,
            "gateway-error" => Self::GatewayError,
            "connect-failure" => Self::ConnectFailure,
            "reset" => Self::Reset,
            word if RETRY_WORDS.contains(&word) => {
                let code = GRPC.iter().position(|name| *name == word);
                Self::Grpc(code.and_then(|code| u8::try_from(code).ok()).ok_or_else(failed)?)
            }
            number => {
                let status = number.parse().ok().filter(|_| number.len() == 3);
                let status = status.filter(|status| (400..=599).contains(status));
                Self::Status(status.ok_or_else(failed)?)
            }
        })
    }
}

impl fmt::Display for RetryOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ServerError => f.write_str("5xx"),
            Self::GatewayError => f.write_str("gateway-error"),
            Self::ConnectFailure => f.write_str("connect-failure"),
            Self::Reset => f.write_str("reset"),
            Self::Status(status) => write!(f, "{status}"),
            Self::Grpc(code) => f.write_str(GRPC.get(usize::from(*code)).unwrap_or(&"unknown")),
        }
    }
}

impl fmt::Display for HostMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(host) => f.write_str(host),
            Self::Suffix(suffix) => write!(f, "*{suffix}"),
        }
    }
}

impl fmt::Display for PathMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(path) => f.write_str(path),
            Self::Prefix(path) => write!(f, "prefix {path}"),
            Self::Regex(pattern) => write!(f, "regex {}", pattern.text),
        }
    }
}

/// As in `x-canary=1`.
impl fmt::Display for FieldMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            ValueMatch::Exact(value) => write!(f, "{}={value}", self.name),
            ValueMatch::Regex(pattern) => write!(f, "{}~{}", self.name, pattern.text),
            ValueMatch::Present => write!(f, "{}", self.name),
            ValueMatch::Absent => write!(f, "!{}", self.name),
        }
    }
}

/// As in `GET prefix /v1 host api.example header x-canary=1`.
impl fmt::Display for RouteMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { hosts, sni, path, method, headers, query } = self;
        let mut words: Vec<String> = Vec::new();
        words.extend(method.as_ref().map(ToString::to_string));
        words.extend(path.as_ref().map(ToString::to_string));
        let names: Vec<String> = sni.iter().map(ToString::to_string).collect();
        words.extend((!names.is_empty()).then(|| format!("sni {}", names.join("|"))));
        let hosts: Vec<String> = hosts.iter().map(ToString::to_string).collect();
        words.extend((!hosts.is_empty()).then(|| format!("host {}", hosts.join("|"))));
        words.extend(headers.iter().map(|field| format!("header {field}")));
        words.extend(query.iter().map(|field| format!("query {field}")));
        if words.is_empty() { f.write_str("everything") } else { f.write_str(&words.join(" ")) }
    }
}

impl fmt::Display for PathChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full(path) => f.write_str(path),
            Self::Prefix(prefix) => write!(f, "prefix {prefix}"),
        }
    }
}

#[cfg(test)]
mod tests;
