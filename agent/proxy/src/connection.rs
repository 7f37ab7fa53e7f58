//! One accepted connection, from its two addresses to its end.

use std::future::{Future, pending};
use std::net::IpAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::rt::Executor;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use isthmus_policy::{Outcome, Request};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::activity::Activity;
use crate::io::CallerIo;
use crate::limits::{
    MAX_HEAD_BYTES, MAX_HEADER_LIST_BYTES, MAX_HEADERS, MAX_LOCAL_RESETS, MAX_PENDING_RESETS,
    MAX_STREAMS,
};
use crate::request;
use crate::server::{Shared, stopped};
use crate::tunnel::Tunnel;
use crate::view::{Parties, View};

/// Between asking a quiet connection to end and ending it.
const FAREWELL: Duration = Duration::from_secs(1);

/// What the requests of one connection share.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) shared: Arc<Shared>,
    /// The workload's address.
    pub(crate) local: IpAddr,
    /// The caller's address.
    pub(crate) peer: IpAddr,
    /// Who the two were when the connection came. If a later revision sees somebody else in one of
    /// the addresses, the connection is cut.
    pub(crate) parties: Parties,
    pub(crate) activity: Arc<Activity>,
    /// Left here by the request that turned the connection into a tunnel.
    tunnel: Mutex<Option<Tunnel>>,
}

/// Why a connection no longer serves requests.
enum End {
    /// It is over, or has become a tunnel.
    Done,
    /// Policy no longer lets the caller in.
    Revoked,
    /// Nobody used it, or a head didn't come in time.
    Quiet,
}

/// Serves a connection to its end.
pub(crate) async fn run(shared: Arc<Shared>, stream: TcpStream) {
    let cut = Arc::new(AtomicBool::new(false));
    let Some(connection) = identify(&shared, &stream) else {
        shared.metrics.refused.fetch_add(1, Ordering::Relaxed);
        let _ = stream.set_zero_linger();
        return;
    };
    // If it fails answers are merely slower.
    let _ = stream.set_nodelay(true);
    let io = CallerIo::new(stream, Arc::clone(&connection.activity), Arc::clone(&cut));

    if matches!(serve_requests(&connection, io, &cut).await, End::Revoked) {
        return;
    }
    let tunnel = connection.tunnel.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(tunnel) = tunnel {
        tunnel.run(&connection, &cut).await;
    }
}

fn identify(shared: &Arc<Shared>, stream: &TcpStream) -> Option<Arc<Connection>> {
    let own = stream.local_addr().ok()?;
    let local = own.ip().to_canonical();
    let peer = stream.peer_addr().ok()?.ip().to_canonical();
    let view = Arc::clone(&shared.view.borrow());
    let Some(parties) = view.parties(local, peer) else {
        tracing::debug!(%local, %peer, "Closed a connection between unknown parties");
        return None;
    };
    if parties.port == own.port() {
        tracing::warn!(to = %parties.to, "A service has the proxy's own port: set proxy_port");
        return None;
    }
    if view.judge(&parties, None).outcome == Outcome::Deny {
        tracing::debug!(from = %parties.from, to = %parties.to, "Closed a denied connection");
        return None;
    }
    Some(Arc::new(Connection {
        shared: Arc::clone(shared),
        local,
        peer,
        parties,
        activity: Arc::new(Activity::new(&shared.limits)),
        tunnel: Mutex::new(None),
    }))
}

async fn serve_requests(connection: &Arc<Connection>, io: CallerIo, cut: &AtomicBool) -> End {
    // Dropped with this function: ends the tasks of HTTP/2 streams that are still there.
    let (_over, streams) = watch::channel(());
    let builder = builder(StreamTasks(streams));
    let service = service_fn(|request| request::handle(Arc::clone(connection), request));
    let mut http = pin!(builder.serve_connection_with_upgrades(TokioIo::new(io), service));
    let mut revoked = pin!(connection.revoked(None));
    let mut quiet = pin!(connection.activity.too_quiet());
    let mut stopping = connection.shared.stopping.clone();
    let mut farewell: Option<Instant> = None;
    let mut leaving = false;
    loop {
        tokio::select! {
            biased;
            () = &mut revoked => {
                connection.on_revoked(cut);
                return End::Revoked;
            }
            ended = http.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, from = %connection.parties.from, "A connection failed");
                }
                return End::Done;
            }
            () = &mut quiet, if farewell.is_none() => {
                http.as_mut().graceful_shutdown();
                farewell = Some(Instant::now() + FAREWELL);
            }
            () = sleep_until(farewell.unwrap_or_else(Instant::now)), if farewell.is_some() => {
                if connection.activity.is_quiet() {
                    return End::Quiet;
                }
                farewell = Some(Instant::now() + FAREWELL);
            }
            () = stopped(&mut stopping), if !leaving => {
                http.as_mut().graceful_shutdown();
                leaving = true;
            }
        }
    }
}

fn builder(tasks: StreamTasks) -> auto::Builder<StreamTasks> {
    let mut builder = auto::Builder::new(tasks);
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(None) // `Activity` does this
        .max_buf_size(MAX_HEAD_BYTES)
        .max_headers(MAX_HEADERS)
        .half_close(false);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADER_LIST_BYTES)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .max_local_error_reset_streams(MAX_LOCAL_RESETS);
    builder
}

impl Connection {
    /// The newest view.
    pub(crate) fn view(&self) -> Arc<View> {
        Arc::clone(&self.shared.view.borrow())
    }

    /// Who the two ends are in a view; none if they are no longer who they were.
    pub(crate) fn parties_in(&self, view: &View) -> Option<Parties> {
        view.parties(self.local, self.peer).filter(|now| *now == self.parties)
    }

    /// Completes when a view denies this connection, or the request that it was given to.
    pub(crate) async fn revoked(&self, request: Option<Request<'_>>) {
        let mut view = self.shared.view.clone();
        loop {
            let newest = Arc::clone(&view.borrow_and_update());
            let denied = match self.parties_in(&newest) {
                Some(parties) => newest.judge(&parties, request).outcome == Outcome::Deny,
                None => true,
            };
            if denied {
                return;
            }
            if view.changed().await.is_err() {
                pending::<()>().await;
            }
        }
    }

    /// Marks the caller's socket for a reset, and says so.
    pub(crate) fn on_revoked(&self, cut: &AtomicBool) {
        cut.store(true, Ordering::Relaxed);
        self.shared.metrics.cut.fetch_add(1, Ordering::Relaxed);
        tracing::info!(
            from = %self.parties.from,
            to = %self.parties.to,
            "Cut a connection that policy no longer allows"
        );
    }

    pub(crate) fn leave_tunnel(&self, tunnel: Tunnel) {
        *self.tunnel.lock().unwrap_or_else(PoisonError::into_inner) = Some(tunnel);
    }
}

/// Runs the tasks of a connection's HTTP/2 streams no longer than the connection.
#[derive(Clone, Debug)]
struct StreamTasks(watch::Receiver<()>);

impl<F> Executor<F> for StreamTasks
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, task: F) {
        let mut over = self.0.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = over.changed() => {}
                () = task => {}
            }
        });
    }
}
