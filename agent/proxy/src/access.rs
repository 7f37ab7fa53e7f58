//! The access log: one line for each request, written when it ends.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use http::{Method, StatusCode, Version};
use isthmus_model::{HostId, ServiceId};
use tokio::sync::OwnedSemaphorePermit;

use crate::activity::UnderWay;
use crate::grpc;
use crate::metrics::{Metrics, RequestLabels, RouteLabels, Ruling, StatusClass};
use crate::view::{Parties, Side, View};

/// Of a path in the log.
const MAX_PATH_BYTES: usize = 1024;

/// What is to be said of one request. Dropping it says it: so no end is forgotten, be it an answer's
/// last byte, a caller that went away or a connection that was cut.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) id: RequestId,
    /// The caller understands gRPC's words.
    pub(crate) is_grpc: bool,
    metrics: Arc<Metrics>,
    parties: Parties,
    started: Instant,
    method: Method,
    path: String,
    version: Version,
    ruling: Ruling,
    decided_by: String,
    origin: Option<String>,
    taken: Taken,
    status: Option<StatusCode>,
    answer_bytes: u64,
    request_bytes: Arc<AtomicU64>,
    completed: bool,
    _under_way: UnderWay,
    place: Option<OwnedSemaphorePermit>,
}

/// Where the client's side sent a request.
#[derive(Debug, Default)]
struct Taken {
    route: Option<String>,
    backend: Option<String>,
    host: Option<String>,
    tries: u32,
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
            is_grpc: grpc::is_call(head),
            metrics,
            parties,
            started: Instant::now(),
            method: head.method.clone(),
            path: shortened(head.uri.path()),
            version: head.version,
            ruling: Ruling::Invalid,
            decided_by: String::new(),
            origin: None,
            taken: Taken::default(),
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

    pub(crate) fn take_route(&mut self, route: &str) {
        self.taken.route = Some(route.to_owned());
    }

    pub(crate) fn take_backend(&mut self, view: &View, service: ServiceId) {
        let service = view.snapshot.services.get(&service);
        self.taken.backend = service.map(|it| it.name.to_string());
    }

    /// Counts a try, too.
    pub(crate) fn take_endpoint(&mut self, view: &View, host: HostId) {
        self.taken.host = view.snapshot.hosts.get(&host).map(|it| it.name.to_string());
        self.taken.tries += 1;
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
        self.count();
        tracing::info!(
            target: "isthmus::access",
            request_id = %self.id,
            from = %self.parties.from,
            to = %self.parties.to,
            verdict = %self.ruling,
            rule = self.decided_by,
            origin = self.origin,
            route = self.taken.route,
            backend = self.taken.backend,
            host = self.taken.host,
            tries = (self.taken.tries > 0).then_some(self.taken.tries),
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

impl Record {
    fn count(&self) {
        let service = self.parties.to.name().to_string();
        let status = self.status.map_or(StatusClass::None, StatusClass::from);
        match self.parties.side {
            Side::Server => {
                self.metrics.count_request(RequestLabels { service, status, ruling: self.ruling });
            }
            Side::Client => {
                let failed = matches!(status, StatusClass::ServerError | StatusClass::None);
                if let (Some(route), Some(backend)) = (&self.taken.route, &self.taken.backend) {
                    let measured = self.metrics.measured();
                    measured.count(route, backend, failed, self.started.elapsed());
                }
                let labels = RouteLabels {
                    source: self.parties.from.to_string(),
                    service,
                    backend: self.taken.backend.clone().unwrap_or_default(),
                    route: self.taken.route.clone().unwrap_or_default(),
                    status,
                };
                self.metrics.count_route(labels, self.started.elapsed());
            }
        }
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
