//! Context that all connections share.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use isthmus_http::activity::Clock;
use isthmus_http::random::Random;
use tokio::sync::watch;

use super::first_speaker::FirstSpeakerHints;
use crate::cluster::Clusters;
use crate::cluster::dial::Bind;
use crate::cluster::health::Health;
use crate::cluster::permits::{FairLimit, Requests};
use crate::cluster::windows::Windows;
use crate::config::host_services::HostServices;
use crate::config::jwt::KeyRing;
use crate::config::limits::Limits;
use crate::config::view::ProxySnapshot;
use crate::pool::Backends;
use crate::telemetry::metrics::Metrics;

/// State shared by all connections of a thread. State shared by all threads is behind an `Arc`.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) view: watch::Receiver<Arc<ProxySnapshot>>,
    pub(crate) metrics: Arc<Metrics>,
    /// Of this thread alone: its connections to applications.
    pub(crate) backends: Backends,
    pub(crate) clusters: Arc<Clusters>,
    pub(crate) health: Arc<Health>,
    pub(crate) leaving: Arc<AtomicBool>,
    pub(crate) chance: Random,
    pub(crate) lessons: Arc<FirstSpeakerHints>,
    pub(crate) limits: Limits,
    pub(crate) requests: Arc<Requests>,
    /// Of gateways' clients: strangers take no places of the mesh's callers.
    pub(crate) visitors: Arc<Requests>,
    pub(crate) windows: Windows,
    pub(crate) host_services: Arc<dyn HostServices>,
    /// TLS handshakes under way, of all threads.
    pub(crate) handshakes: Arc<FairLimit>,
    pub(crate) keys: Arc<KeyRing>,
    /// Of this thread.
    pub(crate) clock: Arc<Clock>,
}

impl Shared {
    pub(crate) fn new(
        limits: Limits,
        view: watch::Receiver<Arc<ProxySnapshot>>,
        metrics: Arc<Metrics>,
        bind: Bind,
        host_services: Arc<dyn HostServices>,
    ) -> Self {
        let silence = Arc::clone(metrics.silence());
        let clusters =
            Clusters::new(Instant::now(), Arc::clone(&host_services), Arc::clone(&silence));
        let clusters = Arc::new(clusters);
        metrics.watch(&clusters);
        let health = Arc::new(Health::default());
        metrics.watch_health(&health);
        let keys = Arc::clone(&metrics.keys);
        Self {
            view,
            metrics,
            backends: Backends::new(limits.connect, bind, Arc::clone(&host_services), silence),
            clusters,
            health,
            leaving: Arc::default(),
            chance: Random::new(),
            lessons: Arc::default(),
            limits,
            requests: Requests::new(limits.requests),
            visitors: Requests::new(limits.requests),
            windows: Windows::new(limits.wide_windows),
            host_services,
            handshakes: FairLimit::new(limits.handshakes),
            keys,
            clock: Arc::default(),
        }
    }

    pub(crate) fn for_another_thread(&self) -> Self {
        Self {
            view: self.view.clone(),
            metrics: Arc::clone(&self.metrics),
            backends: self.backends.without_connections(),
            clusters: Arc::clone(&self.clusters),
            health: Arc::clone(&self.health),
            leaving: Arc::clone(&self.leaving),
            chance: Random::new(),
            lessons: Arc::clone(&self.lessons),
            limits: self.limits,
            requests: Arc::clone(&self.requests),
            visitors: Arc::clone(&self.visitors),
            windows: self.windows.clone(),
            host_services: Arc::clone(&self.host_services),
            handshakes: Arc::clone(&self.handshakes),
            keys: Arc::clone(&self.keys),
            clock: Arc::default(),
        }
    }
}
