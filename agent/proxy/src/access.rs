//! The access log: one line for each request, written when it ends.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use http::{Method, StatusCode, Version};
use tokio::sync::OwnedSemaphorePermit;

use crate::activity::UnderWay;
use crate::metrics::{Metrics, RequestLabels, Ruling, StatusClass};
use crate::view::Parties;

/// Of a path in the log.
const MAX_PATH_BYTES: usize = 1024;

/// What is to be said of one request. Dropping it says it: so no end is forgotten, be it an answer's
/// last byte, a caller that went away or a connection that was cut.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) id: RequestId,
    metrics: Arc<Metrics>,
    parties: Parties,
    started: Instant,
    method: Method,
    path: String,
    version: Version,
    ruling: Ruling,
    decided_by: String,
    origin: Option<String>,
    status: Option<StatusCode>,
    answer_bytes: u64,
    request_bytes: Arc<AtomicU64>,
    completed: bool,
    _under_way: UnderWay,
    place: Option<OwnedSemaphorePermit>,
}

/// Names a request in the log and in refusals.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RequestId(u64);

impl Record {
    pub(crate) fn new(
        metrics: Arc<Metrics>,
        parties: Parties,
        head: &http::request::Parts,
        under_way: UnderWay,
    ) -> Self {
        Self {
            id: RequestId::next(),
            metrics,
            parties,
            started: Instant::now(),
            method: head.method.clone(),
            path: shortened(head.uri.path()),
            version: head.version,
            ruling: Ruling::Invalid,
            decided_by: String::new(),
            origin: None,
            status: None,
            answer_bytes: 0,
            request_bytes: Arc::default(),
            completed: false,
            _under_way: under_way,
            place: None,
        }
    }

    /// What policy said, by which rule, from where.
    pub(crate) fn decide(&mut self, ruling: Ruling, decided_by: &str, origin: Option<String>) {
        self.ruling = ruling;
        decided_by.clone_into(&mut self.decided_by);
        self.origin = origin;
    }

    pub(crate) fn answer(&mut self, status: StatusCode) {
        self.status = Some(status);
    }

    /// Holds the request's place among all requests until it ends.
    pub(crate) fn occupy(&mut self, place: OwnedSemaphorePermit) {
        self.place = Some(place);
    }

    pub(crate) const fn add_answer_bytes(&mut self, bytes: u64) {
        self.answer_bytes += bytes;
    }

    pub(crate) fn request_bytes(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.request_bytes)
    }

    /// The answer went out whole.
    pub(crate) const fn complete(&mut self) {
        self.completed = true;
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.metrics.count_request(RequestLabels {
            service: self.parties.to.name().to_string(),
            status: self.status.map_or(StatusClass::None, StatusClass::from),
            ruling: self.ruling,
        });
        tracing::info!(
            target: "isthmus::access",
            request_id = %self.id,
            from = %self.parties.from,
            to = %self.parties.to,
            verdict = %self.ruling,
            rule = self.decided_by,
            origin = self.origin,
            method = self.method.as_str(),
            path = self.path,
            version = ?self.version,
            status = self.status.map(|status| status.as_u16()),
            duration_ms = self.started.elapsed().as_secs_f64() * 1000.0,
            bytes = self.answer_bytes,
            request_bytes = self.request_bytes.load(Ordering::Relaxed),
            completed = self.completed,
            "request"
        );
    }
}

impl RequestId {
    /// Unlike any before it in this process, and most likely in any other. Not a secret.
    fn next() -> Self {
        static SEED: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        static COUNT: AtomicU64 = AtomicU64::new(0);
        Self(SEED.hash_one(COUNT.fetch_add(1, Ordering::Relaxed)))
    }
}

impl std::fmt::Display for RequestId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A path as the log shows it. hyper lets bytes beyond ASCII pass in paths, so cut at a character.
fn shortened(path: &str) -> String {
    path[..path.floor_char_boundary(MAX_PATH_BYTES)].to_owned()
}
