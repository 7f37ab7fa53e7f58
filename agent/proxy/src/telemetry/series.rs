//! Metric series of requests: their labels, and the bound on their number.
//!
//! A series is found once for each connection and route ([`SeriesCache`]); from then on counting is adding to
//! atomics. There is a hard cap: what comes later is counted as `other`.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::StatusCode;
use isthmus_model::{Name, Revision, ServiceId};
use parking_lot::Mutex;

use super::histogram::{Histogram, Latencies};
use super::metrics::{Metrics, Ruling};
use crate::config::parties::{Parties, Side};
use crate::config::routes::Compiled;
use crate::config::view::ProxySnapshot;
use crate::pool::progress::Live;

/// Services and routes come and go; their series stay. Beyond this many all share one.
pub(crate) const MAX_SERIES: usize = 2048;
/// Routes that a connection remembers the series of.
const MAX_KNOWN: usize = 32;
const OTHER: &str = "other";

/// Labels of requests, the status aside.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SeriesLabels {
    /// The counting side: the caller's proxy or the called service's.
    pub side: Side,
    /// Caller, as in `service:web`; `other` once there are too many, like all names here.
    pub source: String,
    /// The service that was asked.
    pub service: String,
    /// The service that got the request; empty if none did, and at the server's side.
    pub backend: String,
    /// The route; empty if none fitted, and at the server's side.
    pub route: String,
    /// Decision.
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

/// Counters of requests with the same labels and status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeriesSnapshot {
    /// Of whom.
    pub labels: SeriesLabels,
    /// The first digit of the answer's status.
    pub status: StatusClass,
    /// Those whose answer wasn't the server's failure: no 5xx, no such gRPC status, not broken off.
    pub successes: u64,
    /// Tries beyond the first.
    pub retries: u64,
    /// Of bodies.
    pub request_bytes: u64,
    /// Of bodies.
    pub response_bytes: u64,
    /// Their number and durations.
    pub latency: Histogram,
}

/// All series of a proxy.
#[derive(Debug, Default)]
pub(crate) struct AllSeries(Mutex<HashMap<SeriesLabels, Arc<Series>>>);

/// One of them, for all statuses.
#[derive(Debug)]
pub(crate) struct Series {
    labels: SeriesLabels,
    classes: [OnceLock<Box<Class>>; StatusClass::ALL.len()],
}

#[derive(Debug, Default)]
struct Class {
    successes: AtomicU64,
    retries: AtomicU64,
    request_bytes: AtomicU64,
    response_bytes: AtomicU64,
    latencies: Latencies,
}

/// Outcome of a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ending {
    pub(crate) status: StatusClass,
    pub(crate) success: bool,
    pub(crate) retries: u32,
    pub(crate) request_bytes: u64,
    pub(crate) response_bytes: u64,
    pub(crate) took: Duration,
}

/// Series of the requests of one connection.
#[derive(Debug)]
pub(crate) struct SeriesCache {
    metrics: Arc<Metrics>,
    pub(crate) parties: Parties,
    /// Those under way.
    pub(crate) live: Live,
    known: Mutex<Vec<Known>>,
}

/// Destination that a request reached.
#[derive(Clone, Debug, Default)]
pub(crate) struct RequestLabels {
    pub(crate) route: Option<Arc<Compiled>>,
    /// With the revision that knows it by this number.
    pub(crate) backend: Option<(Revision, ServiceId, Name)>,
}

#[derive(Debug)]
struct Known {
    way: RequestLabels,
    ruling: Ruling,
    series: Arc<Series>,
}

impl SeriesCache {
    pub(crate) const fn new(metrics: Arc<Metrics>, parties: Parties) -> Self {
        Self { metrics, parties, live: Live::new(), known: Mutex::new(Vec::new()) }
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The series for a request with these labels.
    pub(crate) fn series(&self, way: &RequestLabels, ruling: Ruling) -> Arc<Series> {
        let mut known = self.known.lock();
        if let Some(known) = known.iter().find(|it| it.ruling == ruling && it.way.is(way)) {
            return Arc::clone(&known.series);
        }
        let series = self.metrics.series().of(self.labels(way, ruling), MAX_SERIES);
        if known.len() >= MAX_KNOWN {
            known.clear();
        }
        // Most connections need one.
        if known.is_empty() {
            known.reserve_exact(1);
        }
        known.push(Known { way: way.clone(), ruling, series: Arc::clone(&series) });
        series
    }

    fn labels(&self, way: &RequestLabels, ruling: Ruling) -> SeriesLabels {
        SeriesLabels {
            side: self.parties.side,
            source: self.parties.from.to_string(),
            service: self.parties.to.name().to_string(),
            backend: way.backend().unwrap_or_default().to_owned(),
            route: way.route().unwrap_or_default().to_owned(),
            ruling,
        }
    }
}

impl RequestLabels {
    pub(crate) fn route(&self) -> Option<&str> {
        self.route.as_ref().map(|route| &*route.name)
    }

    pub(crate) fn backend(&self) -> Option<&str> {
        self.backend.as_ref().map(|(_, _, name)| name.as_str())
    }

    pub(crate) fn lead_to(&mut self, view: &ProxySnapshot, service: ServiceId) {
        let name = view.snapshot.services.get(&service).map(|it| it.name.clone());
        self.backend = name.map(|name| (view.snapshot.revision, service, name));
    }

    /// Routes are compiled anew with each revision.
    fn is(&self, other: &Self) -> bool {
        let route = match (&self.route, &other.route) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        let number = |way: &Self| way.backend.as_ref().map(|it| (it.0, it.1));
        route && number(self) == number(other)
    }
}

impl AllSeries {
    /// The series with these labels; where there are too many, the one for all others.
    pub(crate) fn of(&self, labels: SeriesLabels, most: usize) -> Arc<Series> {
        let mut all = self.0.lock();
        if let Some(series) = all.get(&labels) {
            return Arc::clone(series);
        }
        let labels = if all.len() < most { labels } else { labels.other() };
        let made = || Arc::new(Series::new(labels.clone()));
        Arc::clone(all.entry(labels.clone()).or_insert_with(made))
    }

    /// All series, sorted by their labels.
    pub(crate) fn snapshot(&self) -> Vec<SeriesSnapshot> {
        let mut all: Vec<Arc<Series>> = self.0.lock().values().map(Arc::clone).collect();
        all.sort_by(|one, other| one.labels.cmp(&other.labels));
        all.iter().flat_map(|series| series.snapshot()).collect()
    }
}

impl SeriesLabels {
    /// What all are counted by that come too late: two sides and a few rulings are all it has.
    fn other(&self) -> Self {
        let other = || OTHER.to_owned();
        Self {
            side: self.side,
            source: other(),
            service: other(),
            backend: other(),
            route: other(),
            ruling: self.ruling,
        }
    }
}

impl Series {
    const fn new(labels: SeriesLabels) -> Self {
        Self { labels, classes: [const { OnceLock::new() }; StatusClass::ALL.len()] }
    }

    pub(crate) fn count(&self, ending: &Ending) {
        let class = self.classes[ending.status as usize].get_or_init(Box::default);
        let add = |counter: &AtomicU64, value: u64| {
            if value > 0 {
                counter.fetch_add(value, Ordering::Relaxed);
            }
        };
        add(&class.successes, ending.success.into());
        add(&class.retries, ending.retries.into());
        add(&class.request_bytes, ending.request_bytes);
        add(&class.response_bytes, ending.response_bytes);
        class.latencies.observe(ending.took);
    }

    fn snapshot(&self) -> impl Iterator<Item = SeriesSnapshot> {
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let classes = StatusClass::ALL.into_iter().zip(&self.classes);
        classes.filter_map(move |(status, class)| {
            let class = class.get()?;
            Some(SeriesSnapshot {
                labels: self.labels.clone(),
                status,
                successes: value(&class.successes),
                retries: value(&class.retries),
                request_bytes: value(&class.request_bytes),
                response_bytes: value(&class.response_bytes),
                latency: class.latencies.snapshot(),
            })
        })
    }
}

impl StatusClass {
    const ALL: [Self; 6] = [
        Self::Informational,
        Self::Success,
        Self::Redirection,
        Self::ClientError,
        Self::ServerError,
        Self::None,
    ];

    /// As in `2xx`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Informational => "1xx",
            Self::Success => "2xx",
            Self::Redirection => "3xx",
            Self::ClientError => "4xx",
            Self::ServerError => "5xx",
            Self::None => "none",
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
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(number: u32) -> SeriesLabels {
        SeriesLabels {
            side: Side::Client,
            source: format!("service:client-{}", number % 7),
            service: format!("api-{number}"),
            backend: "api".to_owned(),
            route: "split".to_owned(),
            ruling: Ruling::Allow,
        }
    }

    const ENDING: Ending = Ending {
        status: StatusClass::Success,
        success: true,
        retries: 1,
        request_bytes: 10,
        response_bytes: 1000,
        took: Duration::from_millis(3),
    };

    #[test]
    fn beyond_the_cap_all_are_counted_as_others() {
        let all = AllSeries::default();
        for number in 0..100_000 {
            all.of(labels(number), MAX_SERIES).count(&ENDING);
        }
        all.of(labels(7), MAX_SERIES).count(&Ending { success: false, ..ENDING });
        let snapshot = all.snapshot();
        assert_eq!(snapshot.len(), MAX_SERIES + 1);
        let of = |service: &str| snapshot.iter().find(|it| it.labels.service == service).unwrap();
        let (known, other) = (of("api-7"), of("other"));
        assert_eq!((known.latency.count(), known.successes), (2, 1));
        assert_eq!((known.retries, known.request_bytes, known.response_bytes), (2, 20, 2000));
        assert_eq!(other.latency.count(), 100_000 - MAX_SERIES as u64);
        assert_eq!((other.labels.source.as_str(), other.labels.route.as_str()), ("other", "other"));
    }

    #[test]
    fn each_status_is_counted_by_itself() {
        let all = AllSeries::default();
        let series = all.of(labels(1), MAX_SERIES);
        for status in StatusClass::ALL {
            series.count(&Ending { status, ..ENDING });
        }
        let counted: Vec<_> = all.snapshot().iter().map(|it| it.status).collect();
        assert_eq!(counted, StatusClass::ALL);
    }
}
