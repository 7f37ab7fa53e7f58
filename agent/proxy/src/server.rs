//! Start, accept, stop.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use crate::backend::{Backends, Bind};
use crate::chance::Chance;
use crate::connection;
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::outbound::Clusters;
use crate::view::View;

/// Between two looks for application connections that nobody used.
const SWEEP_INTERVAL: Duration = Duration::from_secs(15);
/// After a failed `accept`, which is usually a lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What all connections of a proxy share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) view: watch::Receiver<Arc<View>>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) backends: Backends,
    pub(crate) clusters: Arc<Clusters>,
    pub(crate) chance: Chance,
    pub(crate) limits: Limits,
    pub(crate) requests: Arc<Semaphore>,
    /// True once the proxy stops.
    pub(crate) stopping: watch::Receiver<bool>,
}

/// Serves the listeners until `stop` completes; then finishes requests under way for a few seconds.
/// `bind` makes the sockets by which the proxy speaks for callers of this host.
///
/// # Errors
///
/// If a listener can't be handed to the runtime.
pub async fn serve(
    listeners: Vec<std::net::TcpListener>,
    view: watch::Receiver<Arc<View>>,
    metrics: Arc<Metrics>,
    bind: Bind,
    stop: impl Future<Output = ()>,
) -> io::Result<()> {
    serve_within(Limits::default(), listeners, view, metrics, bind, stop).await
}

pub(crate) async fn serve_within(
    limits: Limits,
    listeners: Vec<std::net::TcpListener>,
    view: watch::Receiver<Arc<View>>,
    metrics: Arc<Metrics>,
    bind: Bind,
    stop: impl Future<Output = ()>,
) -> io::Result<()> {
    let (stopping_sender, stopping) = watch::channel(false);
    let clusters = Arc::new(Clusters::new(Instant::now()));
    metrics.watch(&clusters);
    let shared = Arc::new(Shared {
        view,
        metrics,
        backends: Backends::new(limits.connect, bind),
        clusters,
        chance: Chance::new(),
        limits,
        requests: Arc::new(Semaphore::new(limits.requests)),
        stopping,
    });
    let places = Arc::new(Semaphore::new(limits.connections));
    let mut loops = JoinSet::new();
    for listener in listeners {
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        loops.spawn(accept_until_stopped(listener, Arc::clone(&shared), Arc::clone(&places)));
    }
    tokio::select! {
        () = stop => {}
        () = sweep_forever(&shared) => {}
    }
    stopping_sender.send_replace(true);
    while loops.join_next().await.is_some() {}
    Ok(())
}

/// Completes once the proxy stops.
pub(crate) async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone: that is a stop, too.
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

async fn sweep_forever(shared: &Shared) {
    let mut ticks = interval(SWEEP_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        shared.backends.sweep();
    }
}

async fn accept_until_stopped(listener: TcpListener, shared: Arc<Shared>, places: Arc<Semaphore>) {
    let mut connections = JoinSet::new();
    let mut stopping = shared.stopping.clone();
    loop {
        tokio::select! {
            () = stopped(&mut stopping) => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => admit(stream, &shared, &places, &mut connections),
                Err(error) => {
                    tracing::warn!(%error, "Failed to accept a connection");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    let drained =
        timeout(shared.limits.drain, async { while connections.join_next().await.is_some() {} });
    if drained.await.is_err() {
        tracing::info!(connections = connections.len(), "Cut connections that were still busy");
    }
}

fn admit(
    stream: TcpStream,
    shared: &Arc<Shared>,
    places: &Arc<Semaphore>,
    connections: &mut JoinSet<()>,
) {
    shared.metrics.accepted.fetch_add(1, Ordering::Relaxed);
    let Ok(place) = Arc::clone(places).try_acquire_owned() else {
        shared.metrics.refused.fetch_add(1, Ordering::Relaxed);
        return;
    };
    connections.spawn(attend(stream, Arc::clone(shared), place));
}

async fn attend(stream: TcpStream, shared: Arc<Shared>, place: OwnedSemaphorePermit) {
    shared.metrics.active.fetch_add(1, Ordering::Relaxed);
    let _leave = Leave { shared: Arc::clone(&shared), _place: place };
    connection::run(shared, stream).await;
}

/// Counts a connection out, also when its task is aborted.
struct Leave {
    shared: Arc<Shared>,
    _place: OwnedSemaphorePermit,
}

impl Drop for Leave {
    fn drop(&mut self) {
        self.shared.metrics.active.fetch_sub(1, Ordering::Relaxed);
    }
}
