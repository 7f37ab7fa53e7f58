//! How requests are shared out over a service's workloads, and how many there may be at a time.

use std::fmt;
use std::sync::Arc;

/// `balance` and `breaker` of a service that speaks HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Balance {
    /// Which workload takes a request.
    pub policy: BalancePolicy,
    /// Requests that each host's callers may have under way, all together. Envoy's default.
    pub max_requests: u32,
}

/// Which workload takes a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum BalancePolicy {
    /// `peak-ewma`: of two at random, the one that answers faster.
    #[default]
    PeakEwma,
    /// `least-request`: of two at random, the one with fewer requests.
    LeastRequest,
    /// `round-robin`: one after the other.
    RoundRobin,
    /// `ring-hash`: the same one for the same key, by consistent hashing.
    RingHash(HashKey),
    /// `maglev`: likewise, by Maglev's table.
    Maglev(HashKey),
}

/// What is the same where requests are to meet the same workload. A request without it goes
/// anywhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashKey {
    /// The value of this header field.
    Header(Arc<str>),
    /// The value of this cookie.
    Cookie(Arc<str>),
    /// The caller's workload.
    Source,
}

impl Balance {
    /// As many as Envoy lets pass by default.
    pub const MAX_REQUESTS: u32 = 1024;
}

impl Default for Balance {
    fn default() -> Self {
        Self { policy: BalancePolicy::default(), max_requests: Self::MAX_REQUESTS }
    }
}

impl fmt::Display for BalancePolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PeakEwma => f.write_str("peak-ewma"),
            Self::LeastRequest => f.write_str("least-request"),
            Self::RoundRobin => f.write_str("round-robin"),
            Self::RingHash(key) => write!(f, "ring-hash by {key}"),
            Self::Maglev(key) => write!(f, "maglev by {key}"),
        }
    }
}

impl fmt::Display for HashKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(name) => write!(f, "header {name}"),
            Self::Cookie(name) => write!(f, "cookie {name}"),
            Self::Source => f.write_str("source"),
        }
    }
}
