//! One accepted connection, from its two addresses to its end.

use std::error::Error as _;
use std::future::{Future, poll_fn};
use std::net::IpAddr;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use http::{HeaderValue, Request};
use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use isthmus_model::{Protocol, ServiceId};
use isthmus_policy::Outcome;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::Shared;
use super::gateway::{self, Entry};
use super::tunnel::Tunnel;
use crate::caller::info::{Newest, Standing};
use crate::cluster::permits::{Caller, Share};
use crate::cluster::windows::{UNSENT_BYTES, Window};
use crate::config::view::{Parties, Side, View};
use crate::exchange;
use crate::http::activity::Activity;
use crate::http::body::Incoming;
use crate::http::h1::server::{self, End};
use crate::http::h1::{Link, Raw};
use crate::http::h2::{Gather, Gathered};
use crate::http::io::{CallerIo, Stream};
use crate::http::limits::{Author, MAX_LOCAL_RESETS, MAX_PENDING_RESETS, MAX_STREAMS};
use crate::opaque;
use crate::pool::timing::Progress;
use crate::telemetry::access_log;
use crate::telemetry::series::Ledger;

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
    pub(crate) peer_port: u16,
    /// As header fields have it.
    pub(crate) peer_text: HeaderValue,
    /// Who the two were when the connection came. If a later revision sees somebody else in one of
    /// the addresses, the connection is cut.
    pub(crate) parties: Parties,
    /// Where its requests are counted.
    pub(crate) ledger: Arc<Ledger>,
    /// How it came in, if its client is outside of the mesh.
    pub(crate) entry: Option<Entry>,
    pub(crate) activity: Arc<Activity>,
    /// How many requests its caller may have under way.
    pub(crate) share: Share,
    /// Left here by the request that turned the connection into a tunnel.
    tunnel: Mutex<Option<Box<Tunnel>>>,
    newest: Newest,
}

/// Who is connected, if they may be.
pub(crate) fn identify(
    shared: &Arc<Shared>,
    stream: &TcpStream,
    gateway: Option<(ServiceId, u16)>,
) -> Option<Connection> {
    let own = stream.local_addr().ok()?;
    let local = own.ip().to_canonical();
    let remote = stream.peer_addr().ok()?;
    let peer = remote.ip().to_canonical();
    let view = Arc::clone(&shared.view.borrow());
    let connection = |parties: Parties, entry| Connection {
        shared: Arc::clone(shared),
        local,
        peer,
        peer_port: remote.port(),
        // Digits, dots and colons are always a value.
        peer_text: HeaderValue::try_from(peer.to_string())
            .unwrap_or_else(|_| HeaderValue::from_static("unknown")),
        ledger: Arc::new(Ledger::new(Arc::clone(&shared.metrics), parties.clone())),
        parties,
        entry,
        activity: Arc::new(Activity::new(Arc::clone(&shared.clock))),
        share: match gateway {
            Some(_) => shared.visitors.share(Caller::visitor(peer)),
            None => shared.requests.share(Caller::member(peer)),
        },
        tunnel: Mutex::new(None),
        newest: Newest::default(),
    };
    if let Some((gateway, port)) = gateway {
        let entry = Entry::new(&view, gateway, port)?;
        return Some(connection(view.visitors(gateway)?, Some(entry)));
    }
    let asked = if view.has_several_ports(local) {
        // Without its flow nobody knows what was meant.
        Some(shared.outside.asked_port(own, remote)?)
    } else {
        None
    };
    let Some(parties) = view.parties(local, peer, asked) else {
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
    Some(connection(parties, None))
}

/// Serves a connection to its end. Its worker aborts this when policy no longer lets the caller in.
pub(crate) async fn run(connection: Arc<Connection>, stream: TcpStream) {
    // If it fails answers are merely slower.
    let _ = stream.set_nodelay(true);
    let Some(link) = begin(&connection, stream).await else { return };
    let is_http2 = server::is_http2(&link).await;
    if connection.entry.as_ref().is_some_and(|entry| !entry.agreed_on(is_http2)) {
        let problem = "another version of HTTP than TLS agreed on";
        return access_log::tell_invalid(&connection.ledger, None, problem);
    }
    if is_http2 {
        // Boxed, so that HTTP/1's connections don't hold the room for it.
        return Box::pin(serve_http2(&connection, link)).await;
    }
    if server::serve(&connection, &link).await == End::Switched {
        let tunnel = connection.tunnel.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(tunnel) = tunnel {
            Box::pin(tunnel.run(Raw(link))).await;
        }
    }
}

/// Gives the connection if it carries requests. What isn't needed for most is boxed: a connection
/// holds the room of all that it may wait for as long as it lives.
async fn begin(connection: &Arc<Connection>, stream: TcpStream) -> Option<Arc<Link<CallerIo>>> {
    let stream = if connection.entry.is_some() {
        Box::pin(gateway::greet(connection, stream)).await?
    } else if connection.parties.protocol == Protocol::Http {
        Stream::Plain(stream)
    } else {
        Stream::Plain(Box::pin(opaque::run(connection, stream)).await?)
    };
    Some(Arc::new(Link::new(CallerIo::new(stream, Arc::clone(&connection.activity)))))
}

async fn serve_http2(connection: &Arc<Connection>, link: Arc<Link<CallerIo>>) {
    connection.activity.on_http2();
    let _over = EndsStreams(&connection.activity);
    let window = connection.shared.windows.open(connection.caller());
    let tasks = StreamTasks(connection.activity.streams().subscribe());
    let builder = builder(tasks, connection.author(), &window);
    // Boxed, since hyper moves it about.
    let service = service_fn(|request: Request<hyper::body::Incoming>| {
        let progress = Arc::new(Progress::new(std::time::Instant::now()));
        Box::pin(exchange::handle(Arc::clone(connection), request.map(Incoming::from), progress))
    });
    let gather = Gather::new(link);
    let io = TokioIo::new(Gathered(Arc::clone(&gather)));
    let mut http = pin!(builder.serve_connection(io, service));
    let mut farewell: Option<Instant> = None;
    loop {
        tokio::select! {
            biased;
            ended = poll_fn(|cx| {
                let ended = http.as_mut().poll(cx);
                // If it fails the next write does, too.
                let _ = gather.poll_send(cx);
                ended
            }) => {
                if let Err(error) = ended {
                    tracing::debug!(%error, from = %connection.parties.from, "A connection failed");
                    tell_broken_rules(connection, &error);
                }
                return;
            }
            () = connection.activity.asked_to_leave(), if farewell.is_none() => {
                http.as_mut().graceful_shutdown();
                farewell = Some(Instant::now() + FAREWELL);
            }
            () = sleep_until(farewell.unwrap_or_else(Instant::now)), if farewell.is_some() => {
                if connection.activity.is_quiet() {
                    return;
                }
                farewell = Some(Instant::now() + FAREWELL);
            }
        }
    }
}

/// Says what was wrong with a connection, unless it only broke.
fn tell_broken_rules(connection: &Connection, error: &hyper::Error) {
    let mut cause = error.source();
    while let Some(under) = cause {
        if under.is::<std::io::Error>() {
            return;
        }
        cause = under.source();
    }
    let why = error.source().map_or_else(|| error.to_string(), ToString::to_string);
    access_log::tell_invalid(&connection.ledger, None, &format!("no proper HTTP/2: {why}"));
}

fn builder(tasks: StreamTasks, author: Author, window: &Window) -> http2::Builder<StreamTasks> {
    let mut builder = http2::Builder::new(tasks);
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(author.most_list_bytes())
        .initial_connection_window_size(window.bytes())
        .initial_stream_window_size(window.stream_bytes())
        .max_send_buf_size(UNSENT_BYTES)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .max_local_error_reset_streams(MAX_LOCAL_RESETS);
    builder
}

impl Connection {
    /// Whose places it takes.
    fn caller(&self) -> Caller {
        match self.entry {
            Some(_) => Caller::visitor(self.peer),
            None => Caller::member(self.peer),
        }
    }

    /// Who wrote the heads that come by it.
    pub(crate) const fn author(&self) -> Author {
        match self.parties.side {
            Side::Client => Author::Anybody,
            Side::Server => Author::Proxy,
        }
    }

    /// The port that the caller believes to speak to.
    pub(crate) fn asked_port(&self) -> u16 {
        self.entry.as_ref().map_or(self.parties.port, |entry| entry.port)
    }

    /// The newest view.
    pub(crate) fn view(&self) -> Arc<View> {
        Arc::clone(&self.shared.view.borrow())
    }

    /// How it stands by a view.
    pub(crate) fn standing(&self, view: &Arc<View>) -> Arc<Standing> {
        self.newest.of(self, view)
    }

    /// Who the two ends are in a view; none if they are no longer who they were.
    pub(crate) fn parties_in(&self, view: &View) -> Option<Parties> {
        if self.entry.is_some() {
            // Its ports are no part of who a gateway is.
            let now = view.visitors(self.parties.service);
            return now.filter(|now| now.from == self.parties.from);
        }
        let port = Some(self.parties.port);
        view.parties(self.local, self.peer, port).filter(|now| *now == self.parties)
    }

    /// Whether the newest view no longer lets the caller in at all.
    pub(crate) fn is_denied(&self) -> bool {
        self.newest.forget();
        let Some(parties) = self.parties_in(&self.view()) else { return true };
        // What a gateway's clients may do is judged by request.
        self.entry.is_none() && self.view().judge(&parties, None).outcome == Outcome::Deny
    }

    /// Cuts requests that the newest view denies. Says whether there were any.
    pub(crate) fn cut_denied(&self) -> bool {
        let view = self.view();
        self.activity.cut_any(|progress| progress.life.judge(self, &view))
    }

    /// Cuts requests whose time is over. Says whether there were any.
    pub(crate) fn cut_late(&self, now: SystemTime) -> bool {
        let view = self.view();
        self.activity.cut_any(|progress| progress.life.check(self, &view, progress, now))
    }

    /// Marks the caller's socket for a reset, since its one request was cut.
    pub(crate) fn on_cut(&self) {
        if self.activity.cut() {
            self.shared.metrics.cut.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Marks the caller's socket for a reset, and says so.
    pub(crate) fn on_revoked(&self) {
        if self.activity.cut() {
            self.shared.metrics.cut.fetch_add(1, Ordering::Relaxed);
            tracing::info!(
                from = %self.parties.from,
                to = %self.parties.to,
                "Cut a connection that policy no longer allows"
            );
        }
    }

    pub(crate) fn leave_tunnel(&self, tunnel: Tunnel) {
        *self.tunnel.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(tunnel));
    }
}

/// Ends the tasks of streams that are still there when the connection ends.
struct EndsStreams<'a>(&'a Activity);

impl Drop for EndsStreams<'_> {
    fn drop(&mut self) {
        self.0.streams().send_replace(true);
    }
}

/// Runs the tasks of a connection's HTTP/2 streams no longer than the connection, and wakes them to
/// find out whether their requests were cut.
#[derive(Clone, Debug)]
struct StreamTasks(watch::Receiver<bool>);

impl<F> Executor<F> for StreamTasks
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, task: F) {
        let mut streams = self.0.clone();
        tokio::spawn(async move {
            let mut task = pin!(task);
            loop {
                tokio::select! {
                    changed = streams.changed() => {
                        if changed.is_err() || *streams.borrow_and_update() {
                            return;
                        }
                    }
                    () = &mut task => return,
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_without_a_request_is_small() {
        fn room<A, B, F: Future>(_: impl Fn(A, B) -> F) -> usize {
            size_of::<F>()
        }
        assert!(room(run) <= 384, "{} bytes while nothing happens", room(run));
        assert!(size_of::<Connection>() <= 512, "{} bytes", size_of::<Connection>());
    }
}
