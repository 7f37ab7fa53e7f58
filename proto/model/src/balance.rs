//! Load balancing over a service's workloads, and limits of concurrent requests.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::name::Name;
use crate::resilience::{Breaker, HealthCheck, Outlier};

/// `balance`, `breaker`, `outlier` and `health` of a service that speaks HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Balance {
    /// Which workload takes a request.
    pub policy: BalancePolicy,
    /// How much workloads take of it, by host: 1 unless it stands here, nothing at 0.
    pub weights: BTreeMap<Name, u32>,
    /// Whether workloads of the caller's own site come first.
    pub locality: bool,
    /// In this time a workload that is new, or back, comes to its full share.
    pub slow_start: Option<Duration>,
    /// If a smaller share than this is healthy, in percent, all are used.
    pub panic_threshold: u8,
    /// How many requests there may be.
    pub breaker: Breaker,
    /// Who is left out since it fails.
    pub outlier: Outlier,
    /// How its workloads are asked whether they are well.
    pub health: Option<HealthCheck>,
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
    /// What a host may weigh.
    pub const MAX_WEIGHT: u32 = 1000;
}

impl Default for Balance {
    fn default() -> Self {
        Self {
            policy: BalancePolicy::default(),
            weights: BTreeMap::new(),
            locality: true,
            slow_start: None,
            panic_threshold: 50,
            breaker: Breaker::default(),
            outlier: Outlier::default(),
            health: None,
        }
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
