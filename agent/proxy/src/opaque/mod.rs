//! Connections that carry no requests, or of which it isn't known yet: TLS that isn't ended here,
//! services that want the PROXY protocol, and services that are `auto`.
//!
//! ```text
//!  tcp   judged, dialled, carried
//!  tls   ClientHello read, judged and routed by its server name, dialled, carried
//!  auto  dialled at once ─┬─ the client's first bytes are HTTP: requests, as for `http`
//!                         ├─ they are TLS: as for `tls`
//!                         └─ they are something else, or the server speaks first: as for `tcp`
//! ```
//!
//! A server that speaks first is never made to wait: who has spoken is watched on both sides. Unless it
//! says what only HTTP's servers say: then the client's bytes decide. What is dialled has got no byte of
//! the caller's, so nothing is lost when it is another after all.

mod dial;
mod record;

use std::future::pending;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use isthmus_http::activity::Activity;
use isthmus_http::copy;
use isthmus_http::detect::{
    FirstLine, Hello, Kind, MAX_FIRST_LINE, MAX_HELLO, ServerName, client_hello, detect,
    detect_whole, is_http_server,
};
use isthmus_http::peek::{Looked, Peek};
use isthmus_model::{Protocol, ServiceId};
use isthmus_policy::{Stream, Verdict};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use self::dial::{Upstream, dial};
use self::record::Record;
use crate::caller::connection::Connection;
use crate::caller::first_speaker::First;
use crate::config::parties::Side;
use crate::config::view::ProxySnapshot;

/// Where clients spoke first before, dialling waits for them so long: most connections then turn out
/// to be requests, which have connections of their own.
const HEAD_START: Duration = Duration::from_millis(1);
/// The alert of a server that doesn't know the name, and of one that lets nobody in (RFC 8446, section
/// 6.2): fatal, so that clients say why.
const UNRECOGNIZED_NAME: [u8; 7] = [0x15, 3, 3, 0, 2, 2, 112];
const ACCESS_DENIED: [u8; 7] = [0x15, 3, 3, 0, 2, 2, 49];

/// Number of a server's first bytes that are examined.
const MAX_GREETING: usize = 16;

/// Protocol of a stream.
#[derive(Clone, Debug)]
enum Seen {
    Tcp,
    Tls(Option<ServerName>),
}

impl Seen {
    const fn word(&self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Tls(_) => "tls",
        }
    }

    fn as_stream(&self) -> Stream<'_> {
        match self {
            Self::Tcp => Stream::Tcp,
            Self::Tls(name) => Stream::Tls(name.as_ref().map(ServerName::as_str)),
        }
    }

    fn server_name(&self) -> Option<&str> {
        match self {
            Self::Tcp | Self::Tls(None) => None,
            Self::Tls(Some(name)) => Some(name.as_str()),
        }
    }
}

/// Result of protocol detection.
enum Found {
    /// HTTP.
    Requests,
    /// A stream, and who was dialled for it already.
    Stream(Seen, Option<Upstream>),
    /// Nothing that could be served.
    Nothing,
}

/// Serves a connection to its end, or gives it back if it carries requests.
pub(crate) async fn run(connection: &Connection, caller: TcpStream) -> Option<TcpStream> {
    // A stream counts as a request: it isn't too quiet before it has been quiet for its own time.
    let _under_way = connection.activity.on_request();
    let is_requests = attend(connection, &caller).await;
    is_requests.then_some(caller)
}

/// Serves a connection to its end, unless it carries requests: then this is true.
async fn attend(connection: &Connection, caller: &TcpStream) -> bool {
    let _reset = ResetIfCut { stream: caller, activity: &connection.activity };
    let began = Instant::now();
    let found = match connection.parties.protocol {
        Protocol::Http => Found::Requests,
        Protocol::Tcp | Protocol::Udp => Found::Stream(Seen::Tcp, None),
        Protocol::Tls => hello(connection, caller).await,
        Protocol::Auto => look(connection, caller).await,
    };
    match found {
        Found::Requests => return true,
        Found::Nothing => {
            connection.shared.metrics.refused.fetch_add(1, Ordering::Relaxed);
            reset(caller);
        }
        Found::Stream(seen, upstream) => serve(connection, caller, &seen, upstream, began).await,
    }
    false
}

/// The worker that cuts a connection drops its future: what still stood in the kernel's buffers isn't
/// sent to somebody who may no longer have it.
struct ResetIfCut<'a> {
    stream: &'a TcpStream,
    activity: &'a Activity,
}

impl Drop for ResetIfCut<'_> {
    fn drop(&mut self) {
        if self.activity.is_cut() {
            reset(self.stream);
        }
    }
}

/// Waits for a ClientHello.
async fn hello(connection: &Connection, caller: &TcpStream) -> Found {
    let mut peek = Peek::new(caller, MAX_HELLO);
    let reading = async {
        loop {
            match client_hello(peek.bytes()) {
                Hello::Wants(name) => return Found::Stream(Seen::Tls(name), None),
                Hello::Malformed => return Found::Nothing,
                Hello::Incomplete => {}
            }
            if !matches!(peek.more().await, Ok(Looked::More)) {
                return Found::Nothing;
            }
        }
    };
    timeout(connection.shared.limits.head, reading).await.unwrap_or(Found::Nothing)
}

/// Finds out what a connection carries, without making anybody wait for it.
async fn look(connection: &Connection, caller: &TcpStream) -> Found {
    let (view, asked) = (connection.view(), connection.parties.service);
    let lessons = &connection.shared.lessons;
    let has_workloads = connection.parties.side == Side::Server || view.has_workloads(asked);
    let mut dialling = pin!(async {
        if lessons.of(asked) == Some(First::Client) {
            sleep(HEAD_START).await;
        }
        dial(connection, &view, asked).await
    });
    let mut peek = Peek::new(caller, MAX_FIRST_LINE * 2);
    let mut upstream: Option<Upstream> = None;
    let mut is_http = false;
    let mut patience = pin!(sleep(connection.shared.limits.idle));
    loop {
        tokio::select! {
            biased;
            looked = peek.more() => {
                let kind = match looked {
                    Ok(Looked::More) => detect(peek.bytes()),
                    Ok(Looked::End) if peek.bytes().is_empty() => return Found::Nothing,
                    Ok(Looked::End) => Some(detect_whole(peek.bytes())),
                    Err(_) => return Found::Nothing,
                };
                let Some(kind) = kind else {
                    let head = tokio::time::Instant::now() + connection.shared.limits.head;
                    if peek.is_first() {
                        patience.as_mut().reset(head);
                    }
                    continue;
                };
                lessons.learn(asked, First::Client);
                return match kind {
                    Kind::Http1 | Kind::Http2 => Found::Requests,
                    // No proper request: it is refused where requests are read.
                    Kind::Tcp if FirstLine::default().becomes_request(peek.bytes()) => {
                        Found::Requests
                    }
                    Kind::Tcp => Found::Stream(Seen::Tcp, upstream),
                    Kind::Tls => match hello(connection, caller).await {
                        Found::Stream(seen, _) => Found::Stream(seen, upstream),
                        other @ (Found::Requests | Found::Nothing) => other,
                    },
                };
            }
            dialled = &mut dialling, if upstream.is_none() && has_workloads => match dialled {
                Ok(dialled) => upstream = Some(dialled),
                Err(error) => {
                    tracing::debug!(%error, to = %connection.parties.to, "Nobody to dial");
                    return Found::Nothing;
                }
            },
            speaks_http = speaks(upstream.as_ref()), if !is_http => {
                is_http = speaks_http;
                if !is_http {
                    lessons.learn(asked, First::Server);
                    return Found::Stream(Seen::Tcp, upstream);
                }
            }
            () = &mut patience => return Found::Nothing,
        }
    }
}

/// Completes once the server has said enough, or has gone. Says whether it speaks HTTP.
async fn speaks(upstream: Option<&Upstream>) -> bool {
    let Some(upstream) = upstream else { return pending().await };
    let mut peek = Peek::new(&upstream.stream, MAX_GREETING);
    loop {
        match peek.more().await {
            Ok(Looked::More) => {
                if let Some(speaks_http) = is_http_server(peek.bytes()) {
                    return speaks_http;
                }
            }
            // An error will be met again by whoever reads.
            Ok(Looked::End) | Err(_) => return false,
        }
    }
}

/// Judges a stream, finds who is to get it, and carries it.
async fn serve(
    connection: &Connection,
    caller: &TcpStream,
    seen: &Seen,
    early: Option<Upstream>,
    began: Instant,
) {
    let view = connection.view();
    let Some(verdict) = judge(connection, &view, connection.parties.service, seen) else {
        return reset(caller);
    };
    let mut record = Record::new(connection, began, seen, (&view, verdict));
    if !record.is_allowed() {
        return turn_away(caller, seen, &ACCESS_DENIED);
    }
    let Some(backend) = choose(connection, &view, seen, &mut record) else {
        record.problem = Some("no route takes this server name".to_owned());
        return turn_away(caller, seen, &UNRECOGNIZED_NAME);
    };
    if backend != connection.parties.service
        && judge(connection, &view, backend, seen).is_none_or(|it| it.denies())
    {
        record.problem = Some("the backend isn't for this caller".to_owned());
        return turn_away(caller, seen, &ACCESS_DENIED);
    }
    let dialled = match early.filter(|early| early.service == backend) {
        Some(early) => Ok(early),
        None => dial(connection, &view, backend).await,
    };
    let upstream = match dialled {
        Ok(upstream) => upstream,
        Err(error) => {
            record.problem = Some(error.to_string());
            return reset(caller);
        }
    };
    record.take(&view, &upstream);
    drop(view);
    carry_while_allowed(connection, caller, &upstream, seen, &mut record).await;
}

async fn carry_while_allowed(
    connection: &Connection,
    caller: &TcpStream,
    upstream: &Upstream,
    seen: &Seen,
    record: &mut Record<'_>,
) {
    let idle = connection.shared.limits.stream_idle;
    // Nobody has seen all of it.
    let watched = (connection.parties.protocol == Protocol::Auto).then(FirstLine::default);
    let counts = record.carried.counts();
    let ended = tokio::select! {
        biased;
        () = revoked(connection, upstream.service, seen) => {
            connection.on_revoked();
            Err(io::Error::other("policy no longer allows it"))
        }
        ended = copy::both(caller, &upstream.stream, &counts, idle, watched) => ended,
    };
    if let Err(error) = ended {
        record.problem = Some(error.to_string());
        reset(caller);
        reset(&upstream.stream);
    }
}

/// Destination of a stream: the requested service, or the backend chosen by the client's side.
fn choose(
    connection: &Connection,
    view: &ProxySnapshot,
    seen: &Seen,
    record: &mut Record<'_>,
) -> Option<ServiceId> {
    let asked = connection.parties.service;
    let names = match (connection.parties.side, seen) {
        (Side::Client, Seen::Tls(_)) if connection.parties.is_own_port => {
            view.routes.by_name(asked)
        }
        (Side::Client, _) | (Side::Server, _) => None,
    };
    let Some(names) = names else { return Some(asked) };
    match names.choose(seen.server_name()) {
        Some(route) => {
            record.route = Some(Arc::clone(&route.name));
            route.pick(connection.shared.chance.next())
        }
        None => view.has_workloads(asked).then_some(asked),
    }
}

/// Verdict about a stream to a service; none if an end now has another identity.
fn judge(
    connection: &Connection,
    view: &ProxySnapshot,
    service: ServiceId,
    seen: &Seen,
) -> Option<Verdict> {
    let parties = connection.parties_in(view)?;
    if service == parties.service {
        return Some(view.judge_stream(&parties, seen.as_stream()));
    }
    Some(view.judge_stream(&view.parties_here(&parties, service)?, seen.as_stream()))
}

/// Completes when a view denies the stream.
async fn revoked(connection: &Connection, backend: ServiceId, seen: &Seen) {
    let mut views = connection.shared.view.clone();
    loop {
        let view = Arc::clone(&views.borrow_and_update());
        let denied = [connection.parties.service, backend].into_iter().any(|service| {
            judge(connection, &view, service, seen).is_none_or(|verdict| verdict.denies())
        });
        if denied {
            return;
        }
        drop(view);
        if views.changed().await.is_err() {
            pending::<()>().await;
        }
    }
}

/// Says in TLS why there is no connection; elsewhere a reset must do.
fn turn_away(caller: &TcpStream, seen: &Seen, alert: &[u8]) {
    match seen {
        // A socket that was just accepted has room for it; the rest of what came is unread, so that
        // closing resets: after the alert.
        Seen::Tls(_) => drop(caller.try_write(alert)),
        Seen::Tcp => reset(caller),
    }
}

fn reset(stream: &TcpStream) {
    // If it fails the socket closes in the ordinary way.
    let _ = stream.set_zero_linger();
}
