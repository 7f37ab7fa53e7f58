//! What the proxy counts. The agent's Prometheus endpoint reads it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use http::StatusCode;

use crate::histogram::Histogram;
use crate::measured::Measured;
use crate::outbound::{Clusters, EndpointView};
use crate::streams::{Counters, StreamLabels, StreamTotals};

/// Services come and go; their series stay. Beyond this many they share one without a name.
const MAX_SERIES: usize = 4096;

/// Counters of one proxy, shared with whoever shows them.
#[derive(Debug, Default)]
pub struct Metrics {
    requests: Mutex<BTreeMap<RequestLabels, u64>>,
    pub(crate) active: AtomicU64,
    pub(crate) accepted: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) cut: AtomicU64,
    pub(crate) denied: AtomicU64,
    routes: Mutex<BTreeMap<RouteLabels, Histogram>>,
    retries: AtomicU64,
    ejections: AtomicU64,
    overflows: [AtomicU64; 3],
    clusters: Mutex<Weak<Clusters>>,
    measured: Measured,
    pub(crate) streams: Counters,
}

/// What requests of this host's callers are counted by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouteLabels {
    /// Who called, as in `service:web`; `other` once there are too many, like all names here.
    pub source: String,
    /// The service that was asked.
    pub service: String,
    /// The service that got the request; empty if none did.
    pub backend: String,
    /// The route; empty if none fitted.
    pub route: String,
    /// The first digit of the answer's status.
    pub status: StatusClass,
}

/// What requests are counted by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestLabels {
    /// The called service's name; empty once there are too many.
    pub service: String,
    /// The first digit of the answer's status.
    pub status: StatusClass,
    /// What was decided.
    pub ruling: Ruling,
}

/// The hundreds of a status code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StatusClass {
    /// `1xx`: the connection became a tunnel.
    Informational,
    /// `2xx`
    Success,
    /// `3xx`
    Redirection,
    /// `4xx`
    ClientError,
    /// `5xx`, and whatever an application invents beyond.
    ServerError,
    /// The connection ended before there was an answer.
    None,
}

/// What was decided about a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ruling {
    /// Policy let it pass.
    Allow,
    /// Policy would have refused it, but is in audit mode.
    Audit,
    /// Policy refused it.
    Deny,
    /// It was no proper request, so nobody was asked.
    Invalid,
}

/// All values at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MetricsSnapshot {
    /// Requests that ended, since the start.
    pub requests: Vec<(RequestLabels, u64)>,
    /// Open connections.
    pub active_connections: u64,
    /// Connections accepted since the start.
    pub accepted_connections: u64,
    /// Connections closed at once: parties unknown, denied, or too many.
    pub refused_connections: u64,
    /// Connections cut because a new revision denies them.
    pub cut_connections: u64,
    /// Requests that policy refused.
    pub denied_requests: u64,
    /// Requests of this host's callers that ended, since the start.
    pub routes: Vec<(RouteLabels, Histogram)>,
    /// Tries beyond the first.
    pub retries: u64,
    /// Workloads that were ejected.
    pub ejections: u64,
    /// What breakers refused, by the setting that did.
    pub overflows: Vec<(&'static str, u64)>,
    /// Connections without requests that were judged, since the start.
    pub streams: Vec<(StreamLabels, StreamTotals)>,
}

/// Which limit of a breaker refused something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Overflow {
    Requests,
    Pending,
    Retries,
}

impl Metrics {
    /// All values now.
    #[must_use]
    pub fn snapshot(&self) -> MetricsSnapshot {
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        MetricsSnapshot {
            requests: requests.iter().map(|(labels, count)| (labels.clone(), *count)).collect(),
            active_connections: self.active.load(Ordering::Relaxed),
            accepted_connections: self.accepted.load(Ordering::Relaxed),
            refused_connections: self.refused.load(Ordering::Relaxed),
            cut_connections: self.cut.load(Ordering::Relaxed),
            denied_requests: self.denied.load(Ordering::Relaxed),
            routes: self
                .lock_routes()
                .iter()
                .map(|(labels, it)| (labels.clone(), it.clone()))
                .collect(),
            retries: self.retries.load(Ordering::Relaxed),
            ejections: self.ejections.load(Ordering::Relaxed),
            overflows: [Overflow::Requests, Overflow::Pending, Overflow::Retries]
                .map(|it| (it.setting(), self.overflows[it as usize].load(Ordering::Relaxed)))
                .to_vec(),
            streams: self.streams.snapshot(),
        }
    }

    /// What becomes of requests of single routes.
    #[must_use]
    pub const fn measured(&self) -> &Measured {
        &self.measured
    }

    /// The workloads that callers of this host were sent to, and how they are.
    #[must_use]
    pub fn endpoints(&self) -> Vec<EndpointView> {
        let clusters = self.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        clusters.upgrade().map(|clusters| clusters.views()).unwrap_or_default()
    }

    pub(crate) fn watch(&self, clusters: &Arc<Clusters>) {
        let mut watched = self.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        *watched = Arc::downgrade(clusters);
    }

    pub(crate) fn count_retry(&self) {
        self.retries.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_overflow(&self, what: Overflow) {
        self.overflows[what as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_ejection(&self) {
        self.ejections.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_route(&self, mut labels: RouteLabels, took: Duration) {
        let mut routes = self.lock_routes();
        if routes.len() >= MAX_SERIES && !routes.contains_key(&labels) {
            let other = || "other".to_owned();
            let (source, service, backend, route) = (other(), other(), other(), other());
            labels = RouteLabels { source, service, backend, route, status: labels.status };
        }
        routes.entry(labels).or_default().observe(took);
    }

    fn lock_routes(&self) -> MutexGuard<'_, BTreeMap<RouteLabels, Histogram>> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn count_request(&self, mut labels: RequestLabels) {
        if labels.ruling == Ruling::Deny {
            self.denied.fetch_add(1, Ordering::Relaxed);
        }
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        if requests.len() >= MAX_SERIES && !requests.contains_key(&labels) {
            labels.service = String::new();
        }
        *requests.entry(labels).or_insert(0) += 1;
    }
}

impl Overflow {
    /// The key in `breaker`.
    pub(crate) const fn setting(self) -> &'static str {
        match self {
            Self::Requests => "max_requests",
            Self::Pending => "max_pending_requests",
            Self::Retries => "max_retries",
        }
    }
}

impl From<StatusCode> for StatusClass {
    fn from(status: StatusCode) -> Self {
        match status.as_u16() / 100 {
            1 => Self::Informational,
            2 => Self::Success,
            3 => Self::Redirection,
            4 => Self::ClientError,
            _ => Self::ServerError,
        }
    }
}

impl fmt::Display for StatusClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Informational => "1xx",
            Self::Success => "2xx",
            Self::Redirection => "3xx",
            Self::ClientError => "4xx",
            Self::ServerError => "5xx",
            Self::None => "none",
        })
    }
}

impl fmt::Display for Ruling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allow => "allow",
            Self::Audit => "audit",
            Self::Deny => "deny",
            Self::Invalid => "invalid",
        })
    }
}
