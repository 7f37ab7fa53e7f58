//! A routed request on its way to a backend: its body, its copies, its tries, its answer.

use std::net::IpAddr;
use std::pin::pin;
use std::sync::{Arc, OnceLock};

use http::header::COOKIE;
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use isthmus_http::body::Incoming;
use isthmus_http::marks::OVERLOADED;
use isthmus_http::upgrade;
use isthmus_model::{HashKey, ServiceId};
use tokio::time::{Instant, timeout_at};

use super::local::Refused;
use super::retry::{Ended, Exchange, ONLY_UNSENT};
use super::template::Template;
use super::{Call, mirror};
use crate::caller::connection::Connection;
use crate::cluster::NoEndpoint;
use crate::cluster::balance::hash;
use crate::cluster::breaker::Overflow;
use crate::cluster::endpoint::InFlight;
use crate::config::routes::Compiled;
use crate::config::view::ProxySnapshot;
use crate::exchange::answer::{failure, pass, refusal, switch, too_many};
use crate::exchange::body::ResponseBody;
use crate::pool::BackendError;
use crate::pool::progress::Progress;
use crate::pool::request_body::Payload;
use crate::telemetry::access_log::Record;
use crate::telemetry::metrics::Ruling;
use crate::telemetry::timing::Part;

/// Sends a request to a backend, and gives the answer to the caller.
pub(super) async fn run(
    connection: &Connection,
    view: &Arc<ProxySnapshot>,
    call: Box<Call>,
    service: ServiceId,
    route: Option<Arc<Compiled>>,
    mut record: Record,
) -> Response<ResponseBody> {
    let deadline = route.as_ref().and_then(|it| it.timeout).map(|it| Instant::now() + it);
    let v4 = connection.peer.is_ipv4();
    record.take_backend(view, service);
    let Some(cluster) = connection.shared.clusters.of(view, service, v4) else {
        return no_place(NoEndpoint::Nobody, service, connection, record);
    };
    let Call { head, body, host, asked_host } = *call;
    let key = cluster.hash_key().and_then(|by| key_of(by, &head.headers, connection.peer));
    let mut template = Template::new(head, host, route.as_deref());
    if let Some(entry) = &connection.entry {
        entry.introduce(view, connection, &mut template.head.headers, &asked_host);
    }
    let policy = route.as_ref().and_then(|it| it.retry.as_ref()).unwrap_or(&ONLY_UNSENT);
    // Of a body that is held back nobody knows yet whether it is wanted.
    let wants_whole = !template.expects
        && route
            .as_ref()
            .is_some_and(|it| it.retry.is_some() || it.hedge.is_some() || !it.mirrors.is_empty());
    // A workload that is unwell refuses what it hasn't looked at.
    let wants_again = route.as_ref().is_some_and(|it| it.retry.is_some()) || cluster.has_checks();
    if wants_whole {
        record.wait_for(Part::Client);
    }
    let wants = (wants_whole, wants_again);
    let payload = payload(body, wants, connection, deadline, record.progress()).await;
    record.wait_for(Part::Queue);
    let mut payload = match payload {
        Ok(payload) => payload,
        Err(Unreadable(status, reason)) => return refusal(status, reason, record),
    };
    if let Some(route) = &route {
        mirror::send(connection, view, route, &template, &payload);
    }
    let mut exchange = Exchange {
        connection,
        view,
        service,
        id: record.id,
        cluster,
        template,
        deadline,
        try_timeout: route.as_ref().and_then(|it| it.try_timeout),
        policy,
        key,
        hedge: route.as_ref().and_then(|it| it.hedge),
        audited: OnceLock::new(),
    };
    let ended = {
        // Pinned, so that there is room for it once, and not for each way to wait for it.
        let running = pin!(exchange.run(&mut payload, &mut record));
        match deadline {
            Some(deadline) => timeout_at(deadline, running).await,
            None => Ok(running.await),
        }
    };
    record.audit(exchange.audited.take());
    match ended {
        Ok(ended) => conclude(exchange, ended, route.as_deref(), record),
        Err(_) => {
            let reason = "the service didn't answer within the route's timeout";
            refusal(StatusCode::GATEWAY_TIMEOUT, reason, record)
        }
    }
}

/// Why a body can't be sent.
struct Unreadable(StatusCode, &'static str);

/// A request's body as it is sent: whole, if it is small and that is wanted.
async fn payload(
    body: Incoming,
    wants: (bool, bool),
    connection: &Connection,
    deadline: Option<Instant>,
    progress: Arc<Progress>,
) -> Result<Payload, Unreadable> {
    let body = match Payload::ready(body, wants, Arc::clone(&progress)) {
        Ok(payload) => return Ok(payload),
        Err(body) => body,
    };
    // Boxed, like all that few requests need room for.
    let collecting = Box::pin(Payload::collect(body, progress));
    let patience = deadline.unwrap_or_else(|| Instant::now() + connection.shared.limits.body);
    match timeout_at(patience, collecting).await {
        Ok(Ok(payload)) => Ok(payload),
        Ok(Err(_)) => Err(Unreadable(StatusCode::BAD_REQUEST, "the body broke off")),
        Err(_) => Err(Unreadable(StatusCode::REQUEST_TIMEOUT, "the body didn't come in time")),
    }
}

/// Answer for the caller.
fn conclude(
    exchange: Exchange<'_>,
    ended: Ended,
    route: Option<&Compiled>,
    mut record: Record,
) -> Response<ResponseBody> {
    let Exchange { connection, service, deadline, .. } = exchange;
    match ended {
        Ended::Answer(response, flight) => {
            exchange.note_refusal(&response, &mut record);
            let holding = Holding { flight, deadline };
            answer(connection, exchange.template, response, route, record, holding)
        }
        Ended::Failed(BackendError::Overloaded(what)) => overloaded(what, connection, record),
        Ended::Failed(error) => failure(&error, record),
        Ended::Refused(Refused::TooMany(refused)) => too_many(refused, record),
        Ended::Refused(Refused::Denied(decider)) => {
            record.decide(Ruling::Deny, decider);
            refusal(StatusCode::FORBIDDEN, "forbidden by mesh policy", record)
        }
        Ended::NoEndpoint(reason) => no_place(reason, service, connection, record),
    }
}

/// Guards held until the answer's body ends.
struct Holding {
    flight: InFlight,
    deadline: Option<Instant>,
}

fn answer(
    connection: &Connection,
    template: Template,
    response: Response<Incoming>,
    route: Option<&Compiled>,
    record: Record,
    holding: Holding,
) -> Response<ResponseBody> {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return match template.upgrade {
            Some(protocol) if upgrade::agrees(&protocol, response.headers()) => {
                switch(connection, response, &protocol, record)
            }
            Some(_) | None => {
                let reason = "the service switched to a protocol that nobody asked for";
                refusal(StatusCode::BAD_GATEWAY, reason, record)
            }
        };
    }
    let mut answer = pass(response, record);
    if let Some(route) = route {
        route.response_headers.apply(answer.headers_mut());
    }
    answer.body_mut().hold(holding.flight, holding.deadline);
    answer
}

fn no_place(
    reason: NoEndpoint,
    service: ServiceId,
    connection: &Connection,
    record: Record,
) -> Response<ResponseBody> {
    match reason {
        NoEndpoint::Nobody => {
            let known = connection.shared.host_services.unusable(service);
            let reason = known.as_deref().unwrap_or("the service has no workload");
            refusal(StatusCode::SERVICE_UNAVAILABLE, reason, record)
        }
        NoEndpoint::Overloaded => overloaded(Overflow::Requests, connection, record),
    }
}

/// The breaker is open. A caller who sees the header knows that trying again at once is no use.
fn overloaded(what: Overflow, connection: &Connection, record: Record) -> Response<ResponseBody> {
    connection.shared.metrics.count_overflow(what);
    let mut answer = refusal(StatusCode::SERVICE_UNAVAILABLE, what.reason(), record);
    answer.headers_mut().insert(OVERLOADED, HeaderValue::from_static(what.setting()));
    answer
}

/// Hash of a request; none if it lacks the hashed field.
fn key_of(by: &HashKey, fields: &HeaderMap, peer: IpAddr) -> Option<u64> {
    match by {
        HashKey::Header(name) => Some(hash(fields.get(&**name)?.as_bytes())),
        HashKey::Cookie(name) => {
            let lines = fields.get_all(COOKIE).iter().filter_map(|line| line.to_str().ok());
            let mut pairs =
                lines.flat_map(|line| line.split(';')).filter_map(|it| it.split_once('='));
            let (_, value) = pairs.find(|(key, _)| key.trim() == &**name)?;
            Some(hash(value.trim().as_bytes()))
        }
        HashKey::Source => Some(hash(peer.to_string().as_bytes())),
    }
}
