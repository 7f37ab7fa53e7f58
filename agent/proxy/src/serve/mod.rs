//! Start, accept, stop.

pub(crate) mod connection;
pub(crate) mod gateway;
pub(crate) mod tunnel;
pub(crate) mod worker;

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::sleep;

use self::gateway::{GatewayIo, Visitor};
use self::worker::WorkerHandle;
use crate::caller::context::Shared;
use crate::cluster::dial::Bind;
use crate::cluster::permits::{Caller, FairLimit, Permit};
use crate::config::limits::Limits;
use crate::config::view::ProxySnapshot;
use crate::telemetry::metrics::Metrics;

/// After a failed `accept`, which is usually a lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Administrator's settings of a host's proxy.
#[derive(Clone, Debug)]
pub struct Options {
    /// Threads that serve connections.
    pub threads: usize,
    /// Drain time for requests under way at shutdown.
    pub drain: Duration,
    /// Maximum duration of a request, from its head to the end of its answer.
    pub request: Duration,
    /// For the next bytes of a request's body, while there is no answer.
    pub body_idle: Duration,
    /// Set a while before the stop: callers then are told with each answer to go elsewhere.
    pub leaving: Arc<AtomicBool>,
}

/// Serves the listeners until `stop` completes; then finishes requests under way for a few seconds.
/// `edge` is what it needs at the mesh's edge, and `bind` makes the sockets by which the proxy speaks for callers of this host.
///
/// # Errors
///
/// If a listener can't be handed to the runtime, or a thread can't be started.
pub async fn serve(
    options: Options,
    listeners: Vec<std::net::TcpListener>,
    edge: GatewayIo,
    view: watch::Receiver<Arc<ProxySnapshot>>,
    metrics: Arc<Metrics>,
    bind: Bind,
    stop: impl Future<Output = ()>,
) -> io::Result<()> {
    let Options { drain, request, body_idle, .. } = options;
    let limits = Limits { drain, request, body_idle, ..Limits::default() };
    let mut shared = Shared::new(limits, view, metrics, bind, edge.host_services);
    shared.leaving = options.leaving;
    let (running, mut ended) = mpsc::channel::<()>(1);
    let start = |number| start_thread(number, shared.for_another_thread(), running.clone());
    let doors =
        (0..options.threads.max(1)).map(start).collect::<io::Result<Vec<WorkerHandle>>>()?;
    drop(running);
    accept_until(stop, listeners, edge.visitors, &shared, doors).await?;
    // Nobody sends: this is the end of the last thread.
    let _ = ended.recv().await;
    Ok(())
}

/// One thread, one runtime, one worker.
fn start_thread(
    number: usize,
    shared: Shared,
    running: mpsc::Sender<()>,
) -> io::Result<WorkerHandle> {
    let (door, arrivals) = WorkerHandle::new();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    thread::Builder::new().name(format!("proxy-{number}")).spawn(move || {
        let _running = running;
        runtime.block_on(worker::run(Arc::new(shared), arrivals));
    })?;
    Ok(door)
}

/// Accepts, and gives each connection to the worker that has the fewest: connections live long and
/// may be few, so that the kernel's hashing (`SO_REUSEPORT`) would often load one thread alone.
pub(crate) async fn accept_until(
    stop: impl Future<Output = ()>,
    listeners: Vec<std::net::TcpListener>,
    visitors: mpsc::Receiver<Visitor>,
    shared: &Shared,
    doors: Vec<WorkerHandle>,
) -> io::Result<()> {
    let places = FairLimit::new(shared.limits.connections);
    let doors: Arc<[WorkerHandle]> = doors.into();
    let mut loops = JoinSet::new();
    for listener in listeners {
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let metrics = Arc::clone(&shared.metrics);
        loops.spawn(accept(listener, metrics, Arc::clone(&places), Arc::clone(&doors)));
    }
    let places = FairLimit::new(shared.limits.visitors);
    loops.spawn(welcome(visitors, places, Arc::clone(&shared.metrics), doors));
    let (keys, views) = (Arc::clone(&shared.keys), shared.view.clone());
    loops.spawn(async move { keys.keep(views).await });
    let (health, view) = (Arc::clone(&shared.health), shared.view.clone());
    let bind = shared.backends.bind();
    loops.spawn(async move { health.run(view, bind).await });
    stop.await;
    loops.shutdown().await;
    Ok(())
}

/// Gives each client of a gateway to the worker that has the fewest connections. They are
/// strangers: their places aren't those of the mesh's callers.
async fn welcome(
    mut visitors: mpsc::Receiver<Visitor>,
    places: Arc<FairLimit>,
    metrics: Arc<Metrics>,
    doors: Arc<[WorkerHandle]>,
) {
    while let Some(Visitor { stream, gateway, port }) = visitors.recv().await {
        metrics.accepted.fetch_add(1, Ordering::Relaxed);
        let peer = stream.peer_addr().ok().map(|peer| peer.ip().to_canonical());
        let place = peer.and_then(|peer| places.take(Caller::visitor(peer)));
        match (place, doors.iter().min_by_key(|door| door.load())) {
            (Some(place), Some(door)) => door.enter(stream, Some((gateway, port)), place),
            (_, _) => {
                metrics.refused.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

async fn accept(
    listener: TcpListener,
    metrics: Arc<Metrics>,
    places: Arc<FairLimit>,
    doors: Arc<[WorkerHandle]>,
) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let place = places.take(Caller::member(peer.ip().to_canonical()));
                admit(stream, place, &metrics, &doors);
            }
            Err(error) => {
                tracing::warn!(%error, "Failed to accept a connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn admit(stream: TcpStream, place: Option<Permit>, metrics: &Metrics, doors: &[WorkerHandle]) {
    metrics.accepted.fetch_add(1, Ordering::Relaxed);
    let door = doors.iter().min_by_key(|door| door.load());
    match (place, door, stream.into_std()) {
        (Some(place), Some(door), Ok(stream)) => door.enter(stream, None, place),
        (_, _, _) => {
            metrics.refused.fetch_add(1, Ordering::Relaxed);
        }
    }
}
