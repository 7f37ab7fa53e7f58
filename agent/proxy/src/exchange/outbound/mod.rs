//! The client's side: which backend, and which of its workloads, takes a request.
//!
//! ```text
//!  caller ─ TUN ─ flow table ──▶ VIRTUAL:15001 (proxy) ══ as the caller's workload ══▶ WORKLOAD:8080
//! ```
//!
//! The connection's local address is the service that was asked, its remote one says who asks. The
//! proxy dials from the caller's own workload address, so that the other side sees who calls, not
//! through whom. A workload of this host is not dialled but served here, judged by the same policy.

mod attempt;
mod forward;
mod hedge;
mod local;
mod mirror;
mod retry;
mod template;

use std::borrow::Cow;
use std::sync::Arc;

use http::header::{CONTENT_TYPE, HOST, LOCATION};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderValue, Response, StatusCode};
use isthmus_http::body::Incoming;
use isthmus_model::edge::Listener;
use isthmus_model::host::split_port;
use isthmus_model::{Service, ServiceId};
use isthmus_policy::path::canonical;

use crate::caller::authorize::{is_allowed, is_authorized, normalize_path, tokens};
use crate::caller::connection::Connection;
use crate::caller::entry::Misdirected;
use crate::config::host_services;
use crate::config::routes::{Act, Asked, Chosen, Compiled, location, target};
use crate::config::view::ProxySnapshot;
use crate::exchange::answer::{Stop, refusal, rejection};
use crate::exchange::body::ResponseBody;
use crate::telemetry::access_log::Record;

/// A request that is to be routed.
pub(crate) struct Call {
    pub(crate) head: Parts,
    pub(crate) body: Incoming,
    pub(crate) host: HeaderValue,
    /// Before any route changed it.
    pub(crate) asked_host: HeaderValue,
}

impl Call {
    pub(crate) fn new(head: Parts, body: Incoming, host: HeaderValue) -> Self {
        Self { head, body, asked_host: host.clone(), host }
    }
}

/// Whether a request may be routed: authorisation, its place, rate limits.
pub(super) fn check(
    connection: &Connection,
    view: &Arc<ProxySnapshot>,
    head: &mut Parts,
    record: &mut Record,
) -> Result<(), Stop> {
    if !connection.caller_info(view).holds {
        return Err(Stop::Stranger);
    }
    super::settle(connection, view, head)?;
    // First a place: what finds none takes nothing of a limit.
    record.occupy(connection.quota.take().ok_or(Stop::NoPermit)?);
    // A gateway's clients come from nobody who could have been asked.
    if connection.entry.is_some() {
        view.limits.admit(&connection.parties, head).map_err(Stop::TooMany)?;
    }
    Ok(())
}

/// Serves one request of a caller on this host.
pub(crate) async fn handle(
    connection: &Connection,
    view: &Arc<ProxySnapshot>,
    mut call: Box<Call>,
    mut record: Record,
) -> Response<ResponseBody> {
    let asked = connection.parties.service;
    match listener(connection, view, &call.host) {
        Ok(Some(listener)) if listener.https_redirect => return to_https(&call, record),
        Ok(_) => {}
        Err(Misdirected(status, reason)) => return refusal(status, reason, record),
    }
    let Ok(chosen) = choose(view, (asked, connection.parties.is_own_port), &call) else {
        return rejection("a path that can be read in two ways", call.head.version, record);
    };
    let Some(Chosen { route, prefix }) = chosen else {
        if view.is_gateway(asked) {
            return refusal(StatusCode::NOT_FOUND, "no route is for this request", record);
        }
        if !reaches_outside(connection, view, asked, &mut call, &mut record) {
            return refusal(StatusCode::FORBIDDEN, "forbidden by mesh policy", record);
        }
        return forward::run(connection, view, call, asked, None, record).await;
    };
    record.take_route(&route);
    if let Some(status) = inject_fault(connection, &route).await {
        return refusal(status, "a fault that the route injects", record);
    }
    match &route.act {
        Act::Respond { status, body } => respond(*status, body, &route, record),
        Act::Redirect(redirect) => {
            let to = new_place(connection, &call, redirect, prefix.as_deref());
            send_elsewhere(redirect.status, &to, &route, record)
        }
        Act::Forward { to, rewrite } => {
            let Some(backend) = to.pick(connection.shared.chance.next()) else {
                let reason = "the route leads nowhere";
                return refusal(StatusCode::INTERNAL_SERVER_ERROR, reason, record);
            };
            // The other side judges what it is asked for. What only this side sees is judged here.
            if connection.entry.is_none()
                && backend != asked
                && !passes_here(connection, view, &call, asked, &mut record)
            {
                return refusal(StatusCode::FORBIDDEN, "forbidden by mesh policy", record);
            }
            if let Some(change) = &rewrite.path {
                let (path, query) = (path_of(&call.head), call.head.uri.query());
                let Some(new) = target(change, prefix.as_deref(), &path, query) else {
                    return rejection("a path that can't be changed", call.head.version, record);
                };
                call.head.uri = new.into();
            }
            // As the other side would: a workload of this host has none.
            if normalize_path(view, backend, &mut call.head).is_none() {
                let reason = "a path that can be read in two ways";
                return rejection(reason, call.head.version, record);
            }
            if !reaches_outside(connection, view, backend, &mut call, &mut record) {
                return refusal(StatusCode::FORBIDDEN, "forbidden by mesh policy", record);
            }
            if let Some(host) = rewrite.host.as_deref().map(HeaderValue::from_str) {
                call.host = host.unwrap_or(call.host);
            }
            forward::run(connection, view, call, backend, Some(route), record).await
        }
    }
}

fn new_place(
    connection: &Connection,
    call: &Call,
    redirect: &isthmus_model::route::Redirect,
    prefix: Option<&str>,
) -> String {
    let place = whole_host(call, connection.asked_port());
    let (path, query) = (path_of(&call.head), call.head.uri.query());
    location(redirect, prefix, place, &path, query)
}

/// Serves one request of another host's caller to an external server.
pub(crate) async fn send_out(
    connection: &Connection,
    view: &Arc<ProxySnapshot>,
    mut call: Box<Call>,
    record: Record,
) -> Response<ResponseBody> {
    let service = connection.parties.service;
    if let Some(host) = view.external(service).and_then(host_services::host_of) {
        call.host = host;
    }
    forward::run(connection, view, call, service, None, record).await
}

/// The listener that a request of a gateway's client is for; none for callers of the mesh.
fn listener<'a>(
    connection: &Connection,
    view: &'a ProxySnapshot,
    host: &HeaderValue,
) -> Result<Option<&'a Listener>, Misdirected> {
    let Some(entry) = &connection.entry else { return Ok(None) };
    let service = view.snapshot.services.get(&connection.parties.service);
    let gone = Misdirected(StatusCode::NOT_FOUND, "the gateway is gone");
    entry.admit(service.and_then(Service::gateway).ok_or(gone)?, host).map(Some)
}

/// The same by HTTPS, on its usual port.
fn to_https(call: &Call, mut record: Record) -> Response<ResponseBody> {
    let (host, _) = split_port(call.host.to_str().unwrap_or_default());
    let target = call.head.uri.path_and_query().map_or("/", PathAndQuery::as_str);
    let Ok(to) = HeaderValue::from_str(&format!("https://{host}{target}")) else {
        return refusal(StatusCode::BAD_REQUEST, "a target that can't be a Location", record);
    };
    record.answer(StatusCode::MOVED_PERMANENTLY);
    let mut answer = Response::new(ResponseBody::own(String::new(), record));
    *answer.status_mut() = StatusCode::MOVED_PERMANENTLY;
    answer.headers_mut().insert(LOCATION, to);
    answer
}

/// Judges what crosses the edge, here: what comes in, so that refused requests don't burden the
/// mesh, and what goes out, since nobody else will. Everything else may pass.
fn reaches_outside(
    connection: &Connection,
    view: &Arc<ProxySnapshot>,
    backend: ServiceId,
    call: &mut Call,
    record: &mut Record,
) -> bool {
    let external = view.external(backend);
    if connection.entry.is_none() && external.is_none() {
        return true;
    }
    if let Some(host) = external.and_then(host_services::host_of) {
        call.host = host;
    }
    let Some(parties) = view.parties_here(&connection.parties, backend) else { return false };
    let tokens = tokens(connection, view, backend, &call.head);
    tokens.is_ok_and(|tokens| is_allowed(connection, view, &parties, &call.head, &tokens, record))
}

fn passes_here(
    connection: &Connection,
    view: &Arc<ProxySnapshot>,
    call: &Call,
    asked: ServiceId,
    record: &mut Record,
) -> bool {
    let tokens = tokens(connection, view, asked, &call.head);
    tokens.is_ok_and(|tokens| is_authorized(connection, view, &call.head, &tokens, record))
}

/// A path that two programs could read in two ways.
struct Ambiguous;

fn choose(
    view: &ProxySnapshot,
    (asked, is_own_port): (ServiceId, bool),
    call: &Call,
) -> Result<Option<Chosen>, Ambiguous> {
    // Routes are about the service's own port.
    let table = view.routes.of(asked).filter(|_| is_own_port);
    let Some(table) = table else { return Ok(None) };
    if table.compares_paths() && call.head.uri.path() != "*" {
        canonical(call.head.uri.path()).map_err(|_| Ambiguous)?;
    }
    let (host, _) = split_port(call.host.to_str().unwrap_or_default());
    Ok(table.choose(&Asked {
        method: call.head.method.as_str(),
        host,
        path: &path_of(&call.head),
        query: call.head.uri.query(),
        headers: &call.head.headers,
    }))
}

/// The path in the form that routes are compared with: canonical where it can be, and with the slash
/// at its end, which means something to routes.
fn path_of(head: &Parts) -> Cow<'_, str> {
    let path = head.uri.path();
    let slash = if path.len() > 1 && path.ends_with('/') { "/" } else { "" };
    match canonical(path) {
        Ok(Cow::Owned(form)) => Cow::Owned(form + slash),
        // But for that slash it is the path itself.
        Ok(Cow::Borrowed(_)) | Err(_) => Cow::Borrowed(path),
    }
}

/// The host and port that a client believes it speaks to.
fn whole_host(call: &Call, asked_port: u16) -> (&str, u16) {
    let (name, port) = split_port(call.host.to_str().unwrap_or_default());
    (name, port.and_then(|port| port.parse().ok()).unwrap_or(asked_port))
}

/// Waits, or says what to answer, as often as the route wants it.
async fn inject_fault(connection: &Connection, route: &Compiled) -> Option<StatusCode> {
    let chance = &connection.shared.chance;
    if let Some((time, share)) = route.delay
        && share.takes(chance.next())
    {
        tokio::time::sleep(time).await;
    }
    let (status, share) = route.abort?;
    if share.takes(chance.next()) { StatusCode::from_u16(status).ok() } else { None }
}

fn respond(
    status: u16,
    body: &str,
    route: &Compiled,
    mut record: Record,
) -> Response<ResponseBody> {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    record.answer(status);
    let mut answer = Response::new(ResponseBody::own(body.to_owned(), record));
    *answer.status_mut() = status;
    if !body.is_empty() {
        let plain = HeaderValue::from_static("text/plain; charset=utf-8");
        answer.headers_mut().insert(CONTENT_TYPE, plain);
    }
    route.response_headers.apply(answer.headers_mut());
    answer
}

fn send_elsewhere(
    status: u16,
    to: &str,
    route: &Compiled,
    record: Record,
) -> Response<ResponseBody> {
    let Ok(to) = HeaderValue::from_str(to) else {
        return refusal(StatusCode::BAD_REQUEST, "a target that can't be a Location", record);
    };
    let mut answer = respond(status, "", route, record);
    answer.headers_mut().insert(LOCATION, to);
    answer
}

/// Puts the host where the other side looks for it.
fn set_host(head: &mut Parts, host: &HeaderValue) {
    head.headers.insert(HOST, host.clone());
}
