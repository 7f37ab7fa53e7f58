//! One request: is it proper, may it pass, and where does it go?

pub(crate) mod body;
pub(crate) mod outbound;

use std::borrow::Cow;
use std::convert::Infallible;
use std::future::{Future as _, poll_fn};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;

use http::header::{
    CONNECTION, CONTENT_TYPE, COOKIE, HOST, RETRY_AFTER, TRANSFER_ENCODING, UPGRADE,
    WWW_AUTHENTICATE,
};
use http::request::Parts;
use http::uri::{PathAndQuery, Scheme};
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use isthmus_model::Principal;
use isthmus_model::host::canonical_authority;

use self::body::Answer;
use self::outbound::Call;
use crate::caller::authorize;
use crate::caller::connection::{Connection, Tunnel};
use crate::config::life::Cut;
use crate::config::parties::Side;
use crate::config::ratelimit::TooMany;
use crate::config::view::View;
use crate::http::body::Incoming;
use crate::http::grpc;
use crate::http::headers::{self, list};
use crate::http::limits::Author;
use crate::http::marks::{DENIED_BY, LEAVING, PANIC, RATE_LIMITED, UNHEALTHY, tell_server_time};
use crate::http::trace::Trace;
use crate::http::upgrade;
use crate::pool::progress::Progress;
use crate::pool::request_body::Upload;
use crate::pool::{BackendError, Target, Wire};
use crate::telemetry::access_log::{Decider, Record};
use crate::telemetry::metrics::Ruling;
use crate::telemetry::timing::Part;

/// Serves one request. There is always an answer.
pub(crate) async fn handle(
    connection: Arc<Connection>,
    request: Request<Incoming>,
    progress: Arc<Progress>,
) -> Result<Response<Answer>, Infallible> {
    let version = request.version();
    let (shared, side) = (Arc::clone(&connection.shared), connection.parties.side);
    let mut answer = {
        let mut serving = pin!(serve(connection, request, Arc::clone(&progress)));
        poll_fn(|cx| match progress.life.why_cut() {
            Some(cut) => Poll::Ready(Ok(cut_off(cut))),
            None => serving.as_mut().poll(cx),
        })
        .await?
    };
    if shared.leaving.load(Ordering::Relaxed) && answer.status() != StatusCode::SWITCHING_PROTOCOLS
    {
        take_leave(&mut answer, version, side);
    }
    Ok(answer)
}

/// The answer to a request that was cut before it had one.
fn cut_off(cut: Cut) -> Response<Answer> {
    let mut answer = Response::new(Answer::nothing());
    *answer.status_mut() = cut.status();
    answer
}

/// Tells a caller to go elsewhere with its next request. So no connection is closed under the hands
/// of somebody who is sending one.
fn take_leave(answer: &mut Response<Answer>, version: Version, side: Side) {
    if version != Version::HTTP_2 {
        answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    if side == Side::Server {
        answer.headers_mut().insert(LEAVING, HeaderValue::from_static("true"));
    }
}

async fn serve(
    connection: Arc<Connection>,
    request: Request<Incoming>,
    progress: Arc<Progress>,
) -> Result<Response<Answer>, Infallible> {
    let under_way = connection.activity.on_request();
    let (mut head, body) = request.into_parts();
    let shared = &connection.shared;
    let tracing = shared.metrics.watchers().tracing();
    let trace = Trace::of(&mut head.headers, &tracing, &shared.chance);
    let ledger = Arc::clone(&connection.ledger);
    let ends = [
        SocketAddr::new(connection.peer, connection.peer_port),
        SocketAddr::new(connection.local, connection.parties.port),
    ];
    let mut record = Record::new(ledger, ends, &head, trace, under_way, progress);

    let host = match settle(&mut head) {
        Ok(host) => host,
        Err(Improper(reason)) => return Ok(rejection(reason, head.version, record)),
    };
    if has_too_many_fields(&head) {
        let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        return Ok(refusal(status, "more header fields than HTTP/1.1 takes here", record));
    }
    let view = connection.view();
    if connection.parties.side == Side::Client && !connection.standing(&view).holds {
        return Ok(refusal(StatusCode::FORBIDDEN, "forbidden by mesh policy", record));
    }
    if authorize::settle_path(&view, connection.parties.service, &mut head).is_none() {
        return Ok(rejection("a path that can be read in two ways", head.version, record));
    }
    let tokens = match authorize::tokens(&connection, &view, connection.parties.service, &head) {
        Ok(tokens) => tokens,
        Err(error) => {
            record.decide(Ruling::Deny, Decider::Words(format!("token: {error}")));
            return Ok(challenge(record));
        }
    };
    if connection.parties.side == Side::Server
        && !authorize::may_pass(&connection, &view, &head, &tokens, &mut record)
    {
        let mark = record.mark();
        let mut answer = refusal(StatusCode::FORBIDDEN, "forbidden by mesh policy", record);
        answer.headers_mut().extend(mark.map(|mark| (DENIED_BY, mark)));
        return Ok(answer);
    }
    if connection.parties.side == Side::Server
        && connection.shared.health.is_unhealthy(connection.parties.service)
        && !head.headers.contains_key(PANIC)
    {
        let mut answer = failure(&BackendError::Unhealthy, record);
        answer.headers_mut().insert(UNHEALTHY, HeaderValue::from_static("true"));
        return Ok(answer);
    }
    // First a place: what finds none takes nothing of a limit.
    let Some(place) = connection.share.take() else {
        let reason = "the mesh proxy has too many requests under way";
        return Ok(refusal(StatusCode::SERVICE_UNAVAILABLE, reason, record));
    };
    record.occupy(place);
    // A gateway's clients come from nobody who could have been asked.
    if (connection.parties.side == Side::Server || connection.entry.is_some())
        && let Err(refused) = view.limits.admit(&connection.parties, &head)
    {
        return Ok(too_many(refused, record));
    }
    Ok(match connection.parties.side {
        Side::Server if view.external(connection.parties.service).is_some() => {
            let asked_host = host.clone();
            let call = Box::new(Call { head, body, host, asked_host });
            Box::pin(outbound::send_out(&connection, &view, call, record)).await
        }
        Side::Server => forward(&connection, &view, (head, body, host), record).await,
        Side::Client => {
            record.decide(Ruling::Allow, Decider::Nobody);
            let asked_host = host.clone();
            let call = Box::new(Call { head, body, host, asked_host });
            // Boxed, since the other side's requests would take its room with them, too.
            Box::pin(outbound::handle(&connection, &view, call, record)).await
        }
    })
}

/// What is wrong with a request, in words for its sender.
struct Improper(&'static str);

/// Makes a request the one that is judged and passed on alike. Gives the host that it is for.
fn settle(head: &mut Parts) -> Result<HeaderValue, Improper> {
    proper(head)?;
    if !headers::remove_nominated(&mut head.headers) {
        return Err(Improper("a Connection that names what is not for it to name"));
    }
    settle_host(head)
}

/// Brings the host that a request is for into its one form, and into `Host`: there policy, routes and
/// the application find it.
fn settle_host(head: &mut Parts) -> Result<HeaderValue, Improper> {
    let mut lines = head.headers.get_all(HOST).iter();
    let (line, another) = (lines.next(), lines.next());
    if another.is_some() {
        return Err(Improper("more than one Host"));
    }
    let told = line.map(|line| line.to_str().map_err(|_| NO_HOST).and_then(form_of)).transpose()?;
    let target = head.uri.authority().map(|target| form_of(target.as_str())).transpose()?;
    let host = match (target, told) {
        // HTTP/2 has both only if they agree (RFC 9113, section 8.3.1).
        (Some(target), Some(told)) if head.version == Version::HTTP_2 && target != told => {
            return Err(Improper("a Host that isn't the authority"));
        }
        // By HTTP/1 the line doesn't count (RFC 9112, section 3.2.2), but must be there.
        (Some(_), None) if head.version == Version::HTTP_11 => return Err(Improper("no Host")),
        (Some(host), _) => host,
        (None, Some(Cow::Borrowed(host))) if line.is_some_and(|it| it.len() == host.len()) => {
            return line.cloned().ok_or(NO_HOST);
        }
        (None, Some(host)) => host,
        (None, None) if head.version == Version::HTTP_10 => "localhost".into(),
        (None, None) => return Err(Improper("no Host")),
    };
    let host = HeaderValue::from_str(&host).map_err(|_| NO_HOST)?;
    head.headers.insert(HOST, host.clone());
    Ok(host)
}

const NO_HOST: Improper = Improper("a Host that isn't a host and port");

fn form_of(host: &str) -> Result<Cow<'_, str>, Improper> {
    canonical_authority(host).map_err(|_| NO_HOST)
}

/// Whether the next hop, which reads HTTP/1.1, would refuse what has come by HTTP/2.
fn has_too_many_fields(head: &Parts) -> bool {
    let most = Author::Anybody.most_fields();
    if head.version != Version::HTTP_2 || head.headers.len() <= most || wire(head) == Wire::Http2 {
        return false;
    }
    // HTTP/2 may split it, and it's passed on as one.
    let crumbs = head.headers.get_all(COOKIE).iter().count();
    head.headers.len() - crumbs.saturating_sub(1) > most
}

/// What has been read properly and still doesn't pass. Framing that could be read in two ways was
/// refused before, by `http1` and by hyper; the codings are looked at again for HTTP/2, which has none.
fn proper(head: &Parts) -> Result<(), Improper> {
    if head.version == Version::HTTP_2 && head.headers.contains_key(TRANSFER_ENCODING) {
        let mut codings = list(&head.headers, &TRANSFER_ENCODING);
        if codings.next().is_some_and(|coding| !coding.eq_ignore_ascii_case("chunked")) {
            return Err(Improper("a Transfer-Encoding other than chunked"));
        }
        if codings.next().is_some() {
            return Err(Improper("more than one Transfer-Encoding"));
        }
    }
    if head.uri.scheme().is_some_and(|it| *it != Scheme::HTTP && *it != Scheme::HTTPS) {
        return Err(Improper("a scheme other than http and https"));
    }
    if head.method == Method::CONNECT {
        return Err(Improper("CONNECT, which is not for services"));
    }
    // Not `path()`, which is `/` where there is none.
    let path = head.uri.path_and_query().map_or("/", PathAndQuery::as_str);
    if path.starts_with('/') || (path == "*" && head.method == Method::OPTIONS) {
        Ok(())
    } else {
        Err(Improper("a target that isn't a path"))
    }
}

async fn forward(
    connection: &Connection,
    view: &Arc<View>,
    (mut head, body, host): (Parts, Incoming, HeaderValue),
    mut record: Record,
) -> Response<Answer> {
    let wanted_by = view.application(connection.parties.service, Some(connection.parties.port));
    let wanted = upgrade::wanted(head.version, &head.headers);
    let wire = wire(&head).wanted_by(wanted_by.http, wanted.is_some());

    let Some(uri) = target(&head.uri, &host, wire) else {
        return refusal(StatusCode::BAD_REQUEST, "a target that isn't a path", record);
    };
    let certificate =
        view.speaks_for_others(&connection.parties).then(|| headers::certificate(&head.headers));
    let standing = connection.standing(view);
    headers::to_application(&mut head.headers, host, &standing.identity, &connection.peer_text);
    if let Some(certificate) = certificate.flatten() {
        headers::show_certificate(&mut head.headers, certificate);
    }
    if let Some(protocol) = &wanted {
        head.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        head.headers.insert(UPGRADE, protocol.clone());
    }
    let mut request = Request::new(Upload::new(body, record.progress()));
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

pub(crate) fn wire(head: &Parts) -> Wire {
    let content_type = head.headers.get(CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    if head.version == Version::HTTP_2 && content_type.starts_with(b"application/grpc") {
        Wire::Http2
    } else {
        Wire::Http1
    }
}

/// The target as the application gets it: a path by HTTP/1, a whole URI by HTTP/2.
pub(crate) fn target(uri: &Uri, host: &HeaderValue, wire: Wire) -> Option<Uri> {
    let path = uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    let builder = Uri::builder().path_and_query(path);
    let builder = match wire {
        Wire::Http1 => builder,
        Wire::Http2 => builder.scheme("http").authority(host.as_bytes()),
    };
    builder.build().ok()
}

/// Gives the application's answer to the caller.
pub(crate) fn pass(response: Response<Incoming>, mut record: Record) -> Response<Answer> {
    let (head, body) = response.into_parts();
    record.answer(head.status);
    record.note_grpc(&head.headers);
    let mut answer = Response::new(Answer::application(body, record));
    *answer.status_mut() = head.status;
    *answer.headers_mut() = head.headers;
    headers::to_caller(answer.headers_mut());
    answer
}

/// Agrees to an upgrade, now that the application has. The connection's task carries the bytes.
pub(crate) fn switch(
    connection: &Connection,
    mut response: Response<Incoming>,
    protocol: &HeaderValue,
    mut record: Record,
) -> Response<Answer> {
    let Some(application) = response.body_mut().take_switched() else {
        return refusal(
            StatusCode::BAD_GATEWAY,
            "a switch of protocols without a connection",
            record,
        );
    };
    record.answer(StatusCode::SWITCHING_PROTOCOLS);
    record.wait_for(Part::Server);
    let mut headers = std::mem::take(response.headers_mut());
    headers::to_caller(&mut headers);
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, protocol.clone());
    connection.leave_tunnel(Tunnel { application, record });

    let mut answer = Response::new(Answer::nothing());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *answer.headers_mut() = headers;
    answer
}

pub(crate) fn failure(error: &BackendError, mut record: Record) -> Response<Answer> {
    tracing::debug!(%error, request_id = %record.id, "No answer from an application");
    record.explain(error.to_string());
    if let BackendError::Broken(broken) = error {
        return refusal(StatusCode::BAD_GATEWAY, &broken.as_answer(), record);
    }
    let (status, reason) = match error {
        BackendError::Silent(since) => {
            let (host, seconds) = (record.host(), since.elapsed().as_secs());
            let reason = format!("host {host} doesn't answer since {seconds} s");
            return refusal(StatusCode::SERVICE_UNAVAILABLE, &reason, record);
        }
        BackendError::Refused(_) => {
            (StatusCode::SERVICE_UNAVAILABLE, "the application doesn't accept connections")
        }
        BackendError::Unhealthy => {
            (StatusCode::SERVICE_UNAVAILABLE, "the application fails its health check")
        }
        BackendError::TryTimedOut => {
            (StatusCode::GATEWAY_TIMEOUT, "the application didn't answer in time")
        }
        BackendError::TimedOut => {
            (StatusCode::GATEWAY_TIMEOUT, "the application didn't accept a connection in time")
        }
        BackendError::Broken(_) => (StatusCode::BAD_GATEWAY, "the application gave no answer"),
        BackendError::CutShort => (StatusCode::BAD_REQUEST, "the body broke off"),
        BackendError::Late => (StatusCode::REQUEST_TIMEOUT, "the body didn't come in time"),
        BackendError::Overloaded(limit) => (StatusCode::SERVICE_UNAVAILABLE, limit.reason()),
    };
    refusal(status, reason, record)
}

/// The answer to what is no proper request. What comes behind it isn't trusted either.
pub(crate) fn rejection(reason: &str, version: Version, mut record: Record) -> Response<Answer> {
    record.explain(reason.to_owned());
    let mut answer = refusal(StatusCode::BAD_REQUEST, reason, record);
    if version != Version::HTTP_2 {
        answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    answer
}

/// The answer to a token that isn't believed (RFC 6750, section 3). Why is in the access log only.
fn challenge(record: Record) -> Response<Answer> {
    let mut answer = refusal(StatusCode::UNAUTHORIZED, "the token isn't valid", record);
    let words = HeaderValue::from_static("Bearer error=\"invalid_token\"");
    answer.headers_mut().insert(WWW_AUTHENTICATE, words);
    answer
}

/// The answer to what comes too soon. It names the limit, so that the caller's side can tell it from
/// an application's refusal.
pub(crate) fn too_many(refused: TooMany, mut record: Record) -> Response<Answer> {
    let (seconds, millis) = (refused.seconds(), refused.millis());
    let name = HeaderValue::from_str(&refused.limit);
    record.decide(Ruling::Limit, Decider::Limit(refused.limit, refused.origin));
    let mut answer = refusal(StatusCode::TOO_MANY_REQUESTS, "too many requests", record);
    let headers = answer.headers_mut();
    headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    if headers.contains_key(grpc::STATUS) {
        headers.insert(grpc::PUSHBACK, HeaderValue::from(millis));
    }
    if let Ok(name) = name {
        headers.insert(RATE_LIMITED, name);
    }
    answer
}

/// An answer in the proxy's own words. They never name a rule: whom the mesh lets in is not the
/// caller's to learn. The number leads to the line in the access log.
pub(crate) fn refusal(status: StatusCode, reason: &str, mut record: Record) -> Response<Answer> {
    record.answer(status);
    if record.is_grpc {
        let text = format!("{reason} (request {})", record.id);
        let mut answer = Response::new(Answer::own(String::new(), record));
        grpc::refuse(answer.headers_mut(), status, &text);
        return answer;
    }
    let text = format!("{reason} (request {})\n", record.id);
    let mut answer = Response::new(Answer::own(text, record));
    *answer.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    answer.headers_mut().insert(CONTENT_TYPE, plain);
    answer
}
