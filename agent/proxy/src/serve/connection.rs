//! One accepted connection, from its two addresses to its end.

use std::error::Error as _;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use isthmus_model::{Protocol, ServiceId};
use isthmus_policy::Outcome;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::{gateway, tunnel};
use crate::caller::connection::Connection;
use crate::caller::context::Shared;
use crate::caller::entry::Entry;
use crate::cluster::windows::{UNSENT_BYTES, Window};
use crate::exchange;
use crate::http::activity::Activity;
use crate::http::body::Incoming;
use crate::http::h1::server::{self, End};
use crate::http::h1::{Link, Raw};
use crate::http::h2::{Gather, Gathered};
use crate::http::io::{CallerIo, Stream};
use crate::http::limits::{Author, MAX_LOCAL_RESETS, MAX_PENDING_RESETS, MAX_STREAMS};
use crate::opaque;
use crate::pool::progress::Progress;
use crate::telemetry::access_log;

/// Between asking a quiet connection to end and ending it.
const FAREWELL: Duration = Duration::from_secs(1);

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
    let peers = (local, remote);
    let connection = |parties, entry| Connection::new(Arc::clone(shared), peers, parties, entry);
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
    if server::serve(&connection, &link).await == End::Switched
        && let Some(tunnel) = connection.take_tunnel()
    {
        Box::pin(tunnel::run(*tunnel, Raw(link))).await;
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
