//! Proxy metrics. The agent's Prometheus endpoint reads it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::Mutex;

use super::processes::{Process, Processes};
use super::refused::{Refused, RefusedRequest};
use super::rollout_traffic::Measured;
use super::series::{AllSeries, SeriesSnapshot};
use super::streams::{Counters, StreamLabels, StreamTotals};
use super::tap::Watchers;
use crate::cluster::Clusters;
use crate::cluster::breaker::Overflow;
use crate::cluster::endpoint::{BreakerView, EndpointView};
use crate::cluster::health::{Health, HealthView};
use crate::cluster::silence::Silence;
use crate::config::jwt::{KeyFailure, KeyRing};
use crate::config::ratelimit::RateLimits;
use crate::config::view::ProxySnapshot;

/// Counters of one proxy, shared with whoever shows them.
#[derive(Debug, Default)]
pub struct Metrics {
    series: AllSeries,
    pub(crate) active: AtomicU64,
    pub(crate) accepted: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) cut: AtomicU64,
    pub(crate) denied: AtomicU64,
    retries: AtomicU64,
    /// By service.
    ejections: Mutex<BTreeMap<String, u64>>,
    hedges: AtomicU64,
    overflows: [AtomicU64; Overflow::ALL.len()],
    clusters: Mutex<Weak<Clusters>>,
    health: Mutex<Weak<Health>>,
    measured: Measured,
    pub(crate) streams: Counters,
    watchers: Watchers,
    limits: RateLimits,
    silence: Arc<Silence>,
    pub(crate) keys: Arc<KeyRing>,
    processes: OnceLock<Arc<dyn Processes>>,
    refused_requests: Refused,
}

/// Ruling about a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ruling {
    /// Policy let it pass.
    Allow,
    /// Policy would have refused it, but is in audit mode.
    Audit,
    /// Policy refused it.
    Deny,
    /// It came too soon for a rate limit.
    Limit,
    /// It was no proper request, so nobody was asked.
    Invalid,
}

/// All values at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MetricsSnapshot {
    /// Requests that ended, since the start.
    pub series: Vec<SeriesSnapshot>,
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
    /// Tries beyond the first.
    pub retries: u64,
    /// Requests that another workload got, too.
    pub hedges: u64,
    /// Workloads that were ejected, by service.
    pub ejections: Vec<(String, u64)>,
    /// The workloads here that are checked.
    pub health: Vec<HealthView>,
    /// Requests refused by breakers, by setting.
    pub overflows: Vec<(&'static str, u64)>,
    /// Connections without requests that were judged, since the start.
    pub streams: Vec<(StreamLabels, StreamTotals)>,
}

impl Metrics {
    /// All values now.
    #[must_use]
    pub fn snapshot(&self) -> MetricsSnapshot {
        MetricsSnapshot {
            series: self.series.snapshot(),
            active_connections: self.active.load(Ordering::Relaxed),
            accepted_connections: self.accepted.load(Ordering::Relaxed),
            refused_connections: self.refused.load(Ordering::Relaxed),
            cut_connections: self.cut.load(Ordering::Relaxed),
            denied_requests: self.denied.load(Ordering::Relaxed),
            retries: self.retries.load(Ordering::Relaxed),
            hedges: self.hedges.load(Ordering::Relaxed),
            ejections: self
                .ejections
                .lock()
                .iter()
                .map(|(service, count)| (service.clone(), *count))
                .collect(),
            health: self.health.lock().upgrade().map_or_else(Vec::new, |health| health.views()),
            overflows: Overflow::ALL
                .map(|it| (it.setting(), self.overflows[it as usize].load(Ordering::Relaxed)))
                .to_vec(),
            streams: self.streams.snapshot(),
        }
    }

    /// Hosts that don't answer, as whoever sends to them finds.
    #[must_use]
    pub const fn silence(&self) -> &Arc<Silence> {
        &self.silence
    }

    /// The sources of tokens' keys that can't be had now.
    #[must_use]
    pub fn key_failures(&self) -> Vec<KeyFailure> {
        self.keys.failures()
    }

    /// Whether the keys that a view needs are there, or were at least asked for.
    #[must_use]
    pub fn has_asked_for_keys(&self, view: &ProxySnapshot) -> bool {
        self.keys.has_tried(&view.key_sources())
    }

    /// The rate limits of services here.
    #[must_use]
    pub const fn limits(&self) -> &RateLimits {
        &self.limits
    }

    /// Outcomes per route, for rollouts.
    #[must_use]
    pub const fn measured(&self) -> &Measured {
        &self.measured
    }

    /// The workloads that callers of this host were sent to, and how they are.
    #[must_use]
    pub fn endpoints(&self) -> Vec<EndpointView> {
        let clusters = self.clusters.lock();
        clusters.upgrade().map(|clusters| clusters.views()).unwrap_or_default()
    }

    /// Current use of the services' breakers by callers of this host.
    #[must_use]
    pub fn breakers(&self) -> Vec<BreakerView> {
        let clusters = self.clusters.lock();
        clusters.upgrade().map(|clusters| clusters.breakers()).unwrap_or_default()
    }

    /// The last requests that policy refused, the newest first.
    #[must_use]
    pub fn refused_requests(&self) -> Vec<RefusedRequest> {
        self.refused_requests.list()
    }

    pub(crate) fn note_refused(&self, request: RefusedRequest) {
        self.refused_requests.note(request);
    }

    /// Asks from now on who sends what is refused. The first that is named is asked.
    pub fn ask_for_processes(&self, processes: Arc<dyn Processes>) {
        drop(self.processes.set(processes));
    }

    pub(crate) fn process_of(&self, caller: SocketAddr, called: SocketAddr) -> Option<Process> {
        self.processes.get()?.of(caller, called)
    }

    pub(crate) fn watch_health(&self, health: &Arc<Health>) {
        let mut watched = self.health.lock();
        *watched = Arc::downgrade(health);
    }

    pub(crate) fn watch(&self, clusters: &Arc<Clusters>) {
        *self.clusters.lock() = Arc::downgrade(clusters);
    }

    pub(crate) fn count_retry(&self) {
        self.retries.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_hedge(&self) {
        self.hedges.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_overflow(&self, what: Overflow) {
        self.overflows[what as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_ejection(&self, service: &str) {
        *self.ejections.lock().entry(service.to_owned()).or_default() += 1;
    }

    pub(crate) fn count_denial(&self) {
        self.denied.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) const fn watchers(&self) -> &Watchers {
        &self.watchers
    }

    pub(crate) const fn series(&self) -> &AllSeries {
        &self.series
    }
}

impl Ruling {
    /// As in `allow`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Audit => "audit",
            Self::Deny => "deny",
            Self::Limit => "limit",
            Self::Invalid => "invalid",
        }
    }
}

impl fmt::Display for Ruling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
