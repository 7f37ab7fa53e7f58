//! One accepted connection, from its two addresses to its end.

use std::convert::Infallible;
use std::error::Error as _;
use std::future::Future;
use std::sync::Arc;

use http::{Request, Response, StatusCode};
use isthmus_http::activity::Activity;
use isthmus_http::body::Incoming;
use isthmus_http::h1::server::{self, End, Service};
use isthmus_http::h1::{Conn, Raw};
use isthmus_http::h2::{self, WindowBytes};
use isthmus_http::io::{CallerIo, Stream};
use isthmus_http::limits::Author;
use isthmus_model::{Protocol, ServiceId};
use isthmus_policy::Outcome;
use tokio::net::TcpStream;

use super::{gateway, tunnel};
use crate::caller::connection::Connection;
use crate::caller::context::Shared;
use crate::caller::entry::Entry;
use crate::exchange;
use crate::exchange::body::ResponseBody;
use crate::opaque;
use crate::pool::progress::Progress;
use crate::telemetry::access_log;

/// Identifies both ends of a connection, if it is allowed.
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
        Some(shared.host_services.asked_port(own, remote)?)
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
async fn begin(connection: &Arc<Connection>, stream: TcpStream) -> Option<Arc<Conn<CallerIo>>> {
    let stream = if connection.entry.is_some() {
        Box::pin(gateway::greet(connection, stream)).await?
    } else if connection.parties.protocol == Protocol::Http {
        Stream::Plain(stream)
    } else {
        Stream::Plain(Box::pin(opaque::run(connection, stream)).await?)
    };
    Some(Arc::new(Conn::new(CallerIo::new(stream, Arc::clone(&connection.activity)))))
}

async fn serve_http2(connection: &Arc<Connection>, link: Arc<Conn<CallerIo>>) {
    let window = connection.shared.windows.open(connection.caller());
    let windows = WindowBytes { connection: window.bytes(), stream: window.stream_bytes() };
    if let Err(error) = h2::serve(connection, link, windows).await {
        tracing::debug!(%error, from = %connection.parties.from, "A connection failed");
        tell_broken_rules(connection, &error);
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

impl Service for Connection {
    type Body = ResponseBody;
    type Progress = Progress;

    fn author(&self) -> Author {
        Self::author(self)
    }

    fn activity(&self) -> &Activity {
        &self.activity
    }

    fn begin(&self) -> Arc<Progress> {
        Arc::new(Progress::new(std::time::Instant::now()))
    }

    fn handle(
        self: Arc<Self>,
        request: Request<Incoming>,
        progress: Arc<Progress>,
    ) -> impl Future<Output = Result<Response<ResponseBody>, Infallible>> + Send {
        exchange::handle(self, request, progress)
    }

    fn on_refusal(&self, status: StatusCode, reason: &str) {
        access_log::tell_invalid(&self.ledger, Some(status), reason);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_without_a_request_is_small() {
        fn allowance<A, B, F: Future>(_: impl Fn(A, B) -> F) -> usize {
            size_of::<F>()
        }
        assert!(allowance(run) <= 384, "{} bytes while nothing happens", allowance(run));
        assert!(size_of::<Connection>() <= 512, "{} bytes", size_of::<Connection>());
    }
}
