//! Subscribers to requests as they end: taps of people, and the exporter of spans.
//!
//! While nobody does, all this is one look at an atomic for each request. Nobody is waited for: what
//! doesn't fit into a listener's queue is lost, and counted.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use http::{Method, Version};
use isthmus_http::trace::{SpanId, TraceId, Tracing};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::metrics::{Metrics, Ruling};
use super::timing::Parts;
use crate::config::parties::Side;

/// Taps at once.
const MAX_TAPS: usize = 8;
/// Requests that wait for a tap's reader.
const TAP_QUEUE: usize = 256;
/// Spans that wait for the exporter.
const SPAN_QUEUE: usize = 2048;

/// A request that has ended.
#[derive(Clone, Debug)]
pub struct Finished {
    /// As in the access log.
    pub request_id: String,
    /// Reporting side.
    pub side: Side,
    /// As in `service:web`.
    pub source: String,
    /// As in `service:api`.
    pub destination: String,
    /// Empty at the server's side, and where none fitted.
    pub route: String,
    /// The service that got it; empty at the server's side.
    pub backend: String,
    /// Host of its workload; empty at the server's side.
    pub host: String,
    /// Decision.
    pub ruling: Ruling,
    /// By which rule.
    pub rule: String,
    /// The request's.
    pub method: Method,
    /// The request's, without its query.
    pub path: String,
    /// The request's.
    pub version: Version,
    /// None where there was no answer.
    pub status: Option<u16>,
    /// Whether the server is to blame for nothing.
    pub success: bool,
    /// 0 if nobody was asked.
    pub tries: u32,
    /// Of its body.
    pub request_bytes: u64,
    /// Of its answer's body.
    pub response_bytes: u64,
    /// When its head was here.
    pub began: SystemTime,
    /// From then to the end of its answer.
    pub took: Duration,
    /// The destination of that.
    pub parts: Parts,
    /// The trace that it belongs to.
    pub trace: Option<FinishedTrace>,
}

/// Position of a request in its trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FinishedTrace {
    /// Of the trace.
    pub id: TraceId,
    /// The caller's span.
    pub parent: Option<SpanId>,
    /// The request's own, if it is exported.
    pub span: Option<SpanId>,
}

/// Filter of a tap: it shows the requests that match every field that is set.
#[derive(Clone, Debug, Default)]
pub struct TapFilter {
    /// `web` or `service:web`.
    pub source: Option<String>,
    /// The asked service or the backend, likewise.
    pub destination: Option<String>,
    /// By its name.
    pub route: Option<String>,
    /// In capitals.
    pub method: Option<String>,
    /// The path, or with `*` at the end its beginning.
    pub path: Option<String>,
    /// `404` or `4xx`; `none`.
    pub status: Option<String>,
    /// At least so long.
    pub min_duration: Duration,
}

/// Shows requests as they end, until it is dropped.
#[derive(Debug)]
pub struct Tap {
    listener: Arc<Listener>,
    requests: mpsc::Receiver<Arc<Finished>>,
    metrics: Arc<Metrics>,
}

#[derive(Debug)]
struct Listener {
    filter: TapFilter,
    sender: mpsc::Sender<Arc<Finished>>,
    lost: AtomicU64,
}

/// All listeners of a proxy.
#[derive(Debug, Default)]
pub(crate) struct Watchers {
    count: AtomicUsize,
    taps: Mutex<Vec<Arc<Listener>>>,
    spans: OnceLock<(Tracing, mpsc::Sender<Arc<Finished>>)>,
    lost_spans: AtomicU64,
    /// Of 2^64 requests that nothing is wrong with so many have no line in the access log.
    unlogged: AtomicU64,
}

impl Metrics {
    /// Which share of the requests that nothing is wrong with has a line in the access log: all of them, unless this
    /// is called.
    pub fn sample_access_log(&self, share: f64) {
        let unlogged = (1.0 - share) * 2.0_f64.powi(64);
        self.watchers().unlogged.store(unlogged as u64, Ordering::Relaxed);
    }

    /// Listens to requests; none if too many do already.
    #[must_use]
    pub fn tap(self: &Arc<Self>, filter: TapFilter) -> Option<Tap> {
        let (sender, requests) = mpsc::channel(TAP_QUEUE);
        let listener = Arc::new(Listener { filter, sender, lost: AtomicU64::new(0) });
        self.watchers().add(&listener).then(|| Tap {
            listener,
            requests,
            metrics: Arc::clone(self),
        })
    }

    /// Has spans made from now on, and gives those that are to be exported. None but for the first
    /// one who asks.
    #[must_use]
    pub fn trace(&self, sample: f64) -> Option<mpsc::Receiver<Arc<Finished>>> {
        let (sender, spans) = mpsc::channel(SPAN_QUEUE);
        let tracing = Tracing { enabled: true, sample };
        self.watchers().spans.set((tracing, sender)).ok().map(|()| spans)
    }

    /// Spans that the exporter had no room for.
    #[must_use]
    pub fn lost_spans(&self) -> u64 {
        self.watchers().lost_spans.load(Ordering::Relaxed)
    }
}

impl Tap {
    /// The next one; none if the proxy is gone.
    pub async fn next(&mut self) -> Option<Arc<Finished>> {
        self.requests.recv().await
    }

    /// Number lost since the last call, because they weren't read in time.
    #[must_use]
    pub fn take_lost(&self) -> u64 {
        self.listener.lost.swap(0, Ordering::Relaxed)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.metrics.watchers().remove(&self.listener);
    }
}

impl Watchers {
    /// Sampling of traces that begin here.
    pub(crate) fn tracing(&self) -> Tracing {
        self.spans.get().map_or_else(Tracing::default, |(tracing, _)| *tracing)
    }

    /// Tells of a request, if anybody listens.
    pub(crate) fn tell(&self, has_span: bool, finished: impl FnOnce() -> Finished) {
        let is_tapped = self.count.load(Ordering::Relaxed) > 0;
        let spans = self.spans.get().filter(|_| has_span);
        if !is_tapped && spans.is_none() {
            return;
        }
        let finished = Arc::new(finished());
        if is_tapped {
            self.taps.lock().iter().for_each(|tap| tap.offer(&finished));
        }
        if let Some((_, spans)) = spans
            && spans.try_send(finished).is_err()
        {
            self.lost_spans.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether a request isn't of the share that the access log has lines of.
    pub(crate) fn skips(&self, random: u64) -> bool {
        random < self.unlogged.load(Ordering::Relaxed)
    }

    fn add(&self, listener: &Arc<Listener>) -> bool {
        let mut taps = self.taps.lock();
        if taps.len() >= MAX_TAPS {
            return false;
        }
        taps.push(Arc::clone(listener));
        self.count.store(taps.len(), Ordering::Relaxed);
        true
    }

    fn remove(&self, listener: &Arc<Listener>) {
        let mut taps = self.taps.lock();
        taps.retain(|tap| !Arc::ptr_eq(tap, listener));
        self.count.store(taps.len(), Ordering::Relaxed);
    }
}

impl Listener {
    fn offer(&self, finished: &Arc<Finished>) {
        if self.filter.takes(finished) && self.sender.try_send(Arc::clone(finished)).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl TapFilter {
    fn takes(&self, it: &Finished) -> bool {
        let asked =
            |asked: &Option<String>, fits: &dyn Fn(&str) -> bool| asked.as_deref().is_none_or(fits);
        it.took >= self.min_duration
            && asked(&self.source, &|name| is_named(&it.source, name))
            && asked(&self.destination, &|name| {
                is_named(&it.destination, name) || it.backend == name.trim_start_matches("service:")
            })
            && asked(&self.route, &|name| it.route == name)
            && asked(&self.method, &|name| it.method == name)
            && asked(&self.path, &|path| match path.strip_suffix('*') {
                Some(beginning) => it.path.starts_with(beginning),
                None => it.path == path,
            })
            && asked(&self.status, &|status| has_status(it.status, status))
    }
}

/// `web` stands for `service:web`, `host:web` and `device:web`.
fn is_named(identity: &str, name: &str) -> bool {
    identity == name || identity.split_once(':').is_some_and(|(_, own)| own == name)
}

fn has_status(status: Option<u16>, asked: &str) -> bool {
    match (status, asked.strip_suffix("xx")) {
        (Some(status), Some(class)) => class.parse() == Ok(status / 100),
        (Some(status), None) => asked.parse() == Ok(status),
        (None, _) => asked == "none",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finished() -> Finished {
        Finished {
            request_id: "1".to_owned(),
            side: Side::Client,
            source: "service:web".to_owned(),
            destination: "service:api".to_owned(),
            route: "split".to_owned(),
            backend: "api-v1".to_owned(),
            host: "api-1".to_owned(),
            ruling: Ruling::Allow,
            rule: String::new(),
            method: Method::GET,
            path: "/users/7".to_owned(),
            version: Version::HTTP_11,
            status: Some(404),
            success: true,
            tries: 1,
            request_bytes: 0,
            response_bytes: 9,
            began: SystemTime::UNIX_EPOCH,
            took: Duration::from_millis(20),
            parts: Parts::default(),
            trace: None,
        }
    }

    #[test]
    fn a_filter_takes_what_fits_everything_that_is_set() {
        let takes = |key: &str, value: &str| {
            let mut filter = TapFilter::default();
            let some = Some(value.to_owned());
            match key {
                "source" => filter.source = some,
                "destination" => filter.destination = some,
                "route" => filter.route = some,
                "method" => filter.method = some,
                "path" => filter.path = some,
                "status" => filter.status = some,
                _ => filter.min_duration = Duration::from_millis(value.parse().unwrap()),
            }
            filter.takes(&finished())
        };
        for (key, value, fits) in [
            ("source", "web", true),
            ("source", "service:web", true),
            ("source", "host:web", false),
            ("source", "we", false),
            ("destination", "api", true),
            ("destination", "service:api", true),
            ("destination", "api-v1", true),
            ("destination", "service:api-v1", true),
            ("destination", "web", false),
            ("route", "split", true),
            ("route", "other", false),
            ("method", "GET", true),
            ("method", "POST", false),
            ("path", "/users/7", true),
            ("path", "/users/*", true),
            ("path", "/users", false),
            ("path", "/admin/*", false),
            ("status", "404", true),
            ("status", "4xx", true),
            ("status", "2xx", false),
            ("status", "200", false),
            ("status", "none", false),
            ("min_duration", "20", true),
            ("min_duration", "21", false),
        ] {
            assert_eq!(takes(key, value), fits, "{key} {value}");
        }
        assert!(has_status(None, "none") && !has_status(None, "2xx"));
    }

    #[tokio::test]
    async fn nobody_is_waited_for_and_what_is_lost_is_counted() {
        let metrics = Arc::new(Metrics::default());
        metrics.watchers().tell(true, || unreachable!("nobody listens"));
        let mut slow = metrics.tap(TapFilter::default()).unwrap();
        let mut choosy = metrics
            .tap(TapFilter { method: Some("POST".to_owned()), ..TapFilter::default() })
            .unwrap();
        for _ in 0..TAP_QUEUE + 7 {
            metrics.watchers().tell(false, finished);
        }
        metrics.watchers().tell(false, || Finished { method: Method::POST, ..finished() });
        assert_eq!((slow.take_lost(), slow.take_lost(), choosy.take_lost()), (8, 0, 0));
        assert_eq!(slow.next().await.unwrap().path, "/users/7");
        assert_eq!(choosy.next().await.unwrap().method, Method::POST);
        drop((slow, choosy));
        metrics.watchers().tell(false, || unreachable!("nobody listens any more"));
    }

    #[test]
    fn taps_are_few() {
        let metrics = Arc::new(Metrics::default());
        let tap = || metrics.tap(TapFilter::default());
        let mut held: Vec<_> = (0..MAX_TAPS).map(|_| tap().unwrap()).collect();
        assert!(tap().is_none());
        held.pop();
        assert!(tap().is_some());
    }

    #[test]
    fn spans_beyond_the_queue_are_lost_and_counted() {
        let metrics = Metrics::default();
        assert_eq!(metrics.watchers().tracing(), Tracing::default());
        let mut spans = metrics.trace(0.5).unwrap();
        assert!(metrics.trace(0.5).is_none());
        assert_eq!(metrics.watchers().tracing(), Tracing { enabled: true, sample: 0.5 });
        metrics.watchers().tell(false, || unreachable!("it has no span"));
        for _ in 0..SPAN_QUEUE + 3 {
            metrics.watchers().tell(true, finished);
        }
        assert_eq!(metrics.lost_spans(), 3);
        assert!(spans.try_recv().is_ok());
    }
}
