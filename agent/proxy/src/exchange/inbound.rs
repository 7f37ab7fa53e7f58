//! The server's side: may a request pass, and what does the application here answer?

use std::net::SocketAddr;
use std::sync::Arc;

use http::header::{CONNECTION, UPGRADE};
use http::request::Parts;
use http::{HeaderValue, Request, Response, StatusCode};
use isthmus_http::body::Incoming;
use isthmus_http::headers;
use isthmus_http::marks::{PANIC, tell_server_time};
use isthmus_http::upgrade;
use isthmus_model::Principal;

use super::answer::{Stop, failure, pass, refusal, switch};
use super::body::ResponseBody;
use super::target::{target, wire};
use crate::caller::authorize;
use crate::caller::connection::Connection;
use crate::config::view::ProxySnapshot;
use crate::pool::request_body::RequestBody;
use crate::pool::{BackendError, Target};
use crate::telemetry::access_log::Record;

/// Whether a request may go on to the application here: authorisation, health, its place, rate limits.
pub(super) fn check(
    connection: &Connection,
    view: &Arc<ProxySnapshot>,
    head: &mut Parts,
    record: &mut Record,
) -> Result<(), Stop> {
    let tokens = super::settle(connection, view, head)?;
    if !authorize::is_authorized(connection, view, head, &tokens, record) {
        return Err(Stop::Denied);
    }
    if connection.shared.health.is_unhealthy(connection.parties.service)
        && !head.headers.contains_key(PANIC)
    {
        return Err(Stop::Unhealthy);
    }
    // First a place: what finds none takes nothing of a limit.
    record.occupy(connection.quota.take().ok_or(Stop::NoPermit)?);
    view.limits.admit(&connection.parties, head).map_err(Stop::TooMany)
}

/// Sends a request to the application here, and gives its answer.
pub(super) async fn forward(
    connection: &Connection,
    view: &Arc<ProxySnapshot>,
    (mut head, body, host): (Parts, Incoming, HeaderValue),
    mut record: Record,
) -> Response<ResponseBody> {
    let wanted_by = view.application(connection.parties.service, Some(connection.parties.port));
    let wanted = upgrade::wanted(head.version, &head.headers);
    let wire = wire(&head).wanted_by(wanted_by.http, wanted.is_some());

    let Some(uri) = target(&head.uri, &host, wire) else {
        return refusal(StatusCode::BAD_REQUEST, "a target that isn't a path", record);
    };
    let certificate =
        view.speaks_for_others(&connection.parties).then(|| headers::certificate(&head.headers));
    let caller_info = connection.caller_info(view);
    headers::to_application(&mut head.headers, host, &caller_info.identity, &connection.peer_text);
    if let Some(certificate) = certificate.flatten() {
        headers::show_certificate(&mut head.headers, certificate);
    }
    if let Some(protocol) = &wanted {
        head.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        head.headers.insert(UPGRADE, protocol.clone());
    }
    let mut request = Request::new(RequestBody::new(body, record.progress()));
    *request.method_mut() = head.method;
    *request.uri_mut() = uri;
    *request.headers_mut() = head.headers;
    *request.version_mut() = wire.version();

    let address = SocketAddr::new(connection.local, connection.parties.port);
    let introduce = wanted_by.proxy_protocol.map(|version| (version, connection.peer));
    let application = Target {
        address,
        source: None,
        introduce,
        external: None,
        host: None,
        caller: Some(connection.parties.caller),
        trailers: wanted_by.trailers,
        listens: view.listens(connection.parties.service, address),
        shown: view.shown(wanted_by, connection.peer),
    };
    record.begin_try();
    let sent = connection.shared.backends.send(application, wire, Box::new(request), None).await;
    record.end_try(None);
    let response = match sent {
        Ok(response) => response,
        // Nor is the application to blame.
        Err(_) if record.is_cut_short() => return failure(&BackendError::CutShort, record),
        Err(failed) => return failure(&failed.error, record),
    };
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let took = record.server_time();
        let mut answer = pass(response, record);
        // A device has no agent that would remove it.
        if !matches!(connection.parties.caller, Principal::Device(_)) {
            tell_server_time(answer.headers_mut(), took);
        }
        return answer;
    }
    match wanted {
        Some(protocol) if upgrade::agrees(&protocol, response.headers()) => {
            switch(connection, response, &protocol, record)
        }
        Some(_) | None => {
            let reason = "the application switched to a protocol that nobody asked for";
            refusal(StatusCode::BAD_GATEWAY, reason, record)
        }
    }
}
