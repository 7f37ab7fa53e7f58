//! One request: the checks that it passes, in order, and who answers it.
//!
//! At the client's side, which has the callers of this host and the clients of its gateways:
//!
//! | concern | by | where |
//! | --- | --- | --- |
//! | trace: which it belongs to | [`Trace::of`] | `http/trace.rs` |
//! | log: a line of it, written when the record is dropped | [`Record`] | `telemetry/access_log.rs` |
//! | validation: do all programs read it alike? | [`validate::settle`], [`authorize::normalize_path`] | `validate.rs`, `caller/authorize.rs` |
//! | authorisation: is the caller who it was, are its tokens good? | [`outbound::check`] | `outbound/mod.rs` |
//! | rate limit: of gateways' clients, after their place | [`outbound::check`] | `outbound/mod.rs`, `config/ratelimit/` |
//! | route: which takes it, and what it makes of it | [`outbound::handle`] | `outbound/mod.rs`, `config/routes/` |
//! | authorisation of what leaves the mesh, or which only this side sees | [`outbound::handle`] | `outbound/mod.rs` |
//! | mirror: copies, whose answers nobody waits for | `mirror::send` | `outbound/mirror.rs` |
//! | balance: which workload | [`Clusters::pick`] | `cluster/mod.rs` |
//! | try: one of it, and what it tells of the workload | `Exchange::try_once` | `outbound/attempt.rs` |
//! | try again | `Exchange::run` | `outbound/retry.rs` |
//! | hedge: ask another, too | `Exchange::try_hedged` | `outbound/hedge.rs` |
//! | aim: where one try goes, and as whom | `Template::aim` | `outbound/template.rs`, `outbound/local.rs` |
//! | answer | [`answer::pass`] | `answer.rs`, `body.rs` |
//!
//! At the server's side, before the workloads of this host: trace, log and validation likewise; then authorisation, health,
//! place and rate limit ([`inbound::check`]); then the application ([`inbound::forward`]).
//!
//! [`Clusters::pick`]: crate::cluster::Clusters::pick

mod answer;
pub(crate) mod body;
mod inbound;
pub(crate) mod outbound;
mod target;
mod validate;

use std::convert::Infallible;
use std::future::{Future as _, poll_fn};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;

use http::request::Parts;
use http::{HeaderValue, Request, Response, StatusCode};
use isthmus_http::body::Incoming;
use isthmus_http::trace::Trace;
use isthmus_policy::Token;

use self::answer::Stop;
use self::body::ResponseBody;
use self::outbound::Call;
use self::validate::Improper;
use crate::caller::authorize;
use crate::caller::connection::Connection;
use crate::config::parties::Side;
use crate::config::view::ProxySnapshot;
use crate::pool::progress::Progress;
use crate::telemetry::access_log::{Decider, Record};
use crate::telemetry::metrics::Ruling;

/// Serves one request. There is always an answer.
pub(crate) async fn handle(
    connection: Arc<Connection>,
    request: Request<Incoming>,
    progress: Arc<Progress>,
) -> Result<Response<ResponseBody>, Infallible> {
    let version = request.version();
    let (shared, side) = (Arc::clone(&connection.shared), connection.parties.side);
    let mut answer = {
        let mut serving = pin!(serve(connection, request, Arc::clone(&progress)));
        poll_fn(|cx| match progress.life.why_cut() {
            Some(cut) => Poll::Ready(answer::cut_off(cut)),
            None => serving.as_mut().poll(cx),
        })
        .await
    };
    if shared.leaving.load(Ordering::Relaxed) && answer.status() != StatusCode::SWITCHING_PROTOCOLS
    {
        answer::take_leave(&mut answer, version, side);
    }
    Ok(answer)
}

async fn serve(
    connection: Arc<Connection>,
    request: Request<Incoming>,
    progress: Arc<Progress>,
) -> Response<ResponseBody> {
    let (mut head, body) = request.into_parts();
    let mut record = begin(&connection, &mut head, progress);
    let view = connection.view();
    let host = match check(&connection, &view, &mut head, &mut record) {
        Ok(host) => host,
        Err(stop) => return stop.answer(head.version, record),
    };
    match connection.parties.side {
        Side::Server if view.external(connection.parties.service).is_some() => {
            let call = Box::new(Call::new(head, body, host));
            Box::pin(outbound::send_out(&connection, &view, call, record)).await
        }
        Side::Server => inbound::forward(&connection, &view, (head, body, host), record).await,
        Side::Client => {
            record.decide(Ruling::Allow, Decider::Nobody);
            let call = Box::new(Call::new(head, body, host));
            // Boxed, since the other side's requests would take its room with them, too.
            Box::pin(outbound::handle(&connection, &view, call, record)).await
        }
    }
}

/// Begins a request's trace, and its line in the access log.
fn begin(connection: &Connection, head: &mut Parts, progress: Arc<Progress>) -> Record {
    let under_way = connection.activity.on_request();
    let shared = &connection.shared;
    let tracing = shared.metrics.watchers().tracing();
    let trace = Trace::of(&mut head.headers, &tracing, &shared.chance);
    let ends = [
        SocketAddr::new(connection.peer, connection.peer_port),
        SocketAddr::new(connection.local, connection.parties.port),
    ];
    Record::new(Arc::clone(&connection.ledger), ends, head, trace, under_way, progress)
}

/// Whether a request is proper and may go on. Gives the host that it is for.
fn check(
    connection: &Connection,
    view: &Arc<ProxySnapshot>,
    head: &mut Parts,
    record: &mut Record,
) -> Result<HeaderValue, Stop> {
    let host = validate::settle(head).map_err(|Improper(reason)| Stop::Improper(reason))?;
    if validate::has_too_many_fields(head, target::wire(head).version()) {
        return Err(Stop::TooManyFields);
    }
    match connection.parties.side {
        Side::Server => inbound::check(connection, view, head, record)?,
        Side::Client => outbound::check(connection, view, head, record)?,
    }
    Ok(host)
}

/// Brings a request's path into the form in which it is judged. Gives the tokens that it has.
fn settle(
    connection: &Connection,
    view: &ProxySnapshot,
    head: &mut Parts,
) -> Result<Vec<Token>, Stop> {
    let service = connection.parties.service;
    let ambiguous = Stop::Improper("a path that can be read in two ways");
    authorize::normalize_path(view, service, head).ok_or(ambiguous)?;
    authorize::tokens(connection, view, service, head).map_err(Stop::BadToken)
}
