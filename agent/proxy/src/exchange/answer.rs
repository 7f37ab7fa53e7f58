//! Answers: the application's, and the proxy's own to what goes no further.

use http::header::{CONNECTION, CONTENT_TYPE, RETRY_AFTER, UPGRADE, WWW_AUTHENTICATE};
use http::{HeaderValue, Response, StatusCode, Version};
use isthmus_http::body::Incoming;
use isthmus_http::grpc;
use isthmus_http::headers;
use isthmus_http::marks::{DENIED_BY, LEAVING, RATE_LIMITED, UNHEALTHY};

use super::body::ResponseBody;
use crate::caller::connection::{Connection, Tunnel};
use crate::config::jwt::TokenError;
use crate::config::life::Cut;
use crate::config::parties::Side;
use crate::config::ratelimit::TooMany;
use crate::pool::BackendError;
use crate::telemetry::access_log::{Decider, Record};
use crate::telemetry::metrics::Ruling;
use crate::telemetry::timing::Part;

/// Why a request goes no further than its checks.
pub(super) enum Stop {
    /// It is no proper request.
    Improper(&'static str),
    TooManyFields,
    /// Its caller is no longer who it was.
    Stranger,
    BadToken(TokenError),
    /// By policy. The record knows which rule.
    Denied,
    /// Its workload fails the health check.
    Unhealthy,
    /// Its caller, or everybody, has too many requests under way.
    NoPermit,
    TooMany(TooMany),
}

impl Stop {
    /// Answer for its caller.
    pub(super) fn answer(self, version: Version, mut record: Record) -> Response<ResponseBody> {
        match self {
            Self::Improper(reason) => rejection(reason, version, record),
            Self::TooManyFields => {
                let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
                refusal(status, "more header fields than HTTP/1.1 takes here", record)
            }
            Self::Stranger => refusal(StatusCode::FORBIDDEN, "forbidden by mesh policy", record),
            Self::BadToken(error) => {
                record.decide(Ruling::Deny, Decider::Words(format!("token: {error}")));
                challenge(record)
            }
            Self::Denied => {
                let mark = record.mark();
                let mut answer = refusal(StatusCode::FORBIDDEN, "forbidden by mesh policy", record);
                answer.headers_mut().extend(mark.map(|mark| (DENIED_BY, mark)));
                answer
            }
            Self::Unhealthy => {
                let mut answer = failure(&BackendError::Unhealthy, record);
                answer.headers_mut().insert(UNHEALTHY, HeaderValue::from_static("true"));
                answer
            }
            Self::NoPermit => {
                let reason = "the mesh proxy has too many requests under way";
                refusal(StatusCode::SERVICE_UNAVAILABLE, reason, record)
            }
            Self::TooMany(refused) => too_many(refused, record),
        }
    }
}

/// Gives the application's answer to the caller.
pub(crate) fn pass(response: Response<Incoming>, mut record: Record) -> Response<ResponseBody> {
    let (head, body) = response.into_parts();
    record.answer(head.status);
    record.note_grpc(&head.headers);
    let mut answer = Response::new(ResponseBody::application(body, record));
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
) -> Response<ResponseBody> {
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

    let mut answer = Response::new(ResponseBody::nothing());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *answer.headers_mut() = headers;
    answer
}

pub(crate) fn failure(error: &BackendError, mut record: Record) -> Response<ResponseBody> {
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
pub(crate) fn rejection(
    reason: &str,
    version: Version,
    mut record: Record,
) -> Response<ResponseBody> {
    record.explain(reason.to_owned());
    let mut answer = refusal(StatusCode::BAD_REQUEST, reason, record);
    if version != Version::HTTP_2 {
        answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    answer
}

/// The answer to a token that isn't believed (RFC 6750, section 3). Why is in the access log only.
fn challenge(record: Record) -> Response<ResponseBody> {
    let mut answer = refusal(StatusCode::UNAUTHORIZED, "the token isn't valid", record);
    let words = HeaderValue::from_static("Bearer error=\"invalid_token\"");
    answer.headers_mut().insert(WWW_AUTHENTICATE, words);
    answer
}

/// The answer to what comes too soon. It names the limit, so that the caller's side can tell it from
/// an application's refusal.
pub(crate) fn too_many(refused: TooMany, mut record: Record) -> Response<ResponseBody> {
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
pub(crate) fn refusal(
    status: StatusCode,
    reason: &str,
    mut record: Record,
) -> Response<ResponseBody> {
    record.answer(status);
    if record.is_grpc {
        let text = format!("{reason} (request {})", record.id);
        let mut answer = Response::new(ResponseBody::own(String::new(), record));
        grpc::refuse(answer.headers_mut(), status, &text);
        return answer;
    }
    let text = format!("{reason} (request {})\n", record.id);
    let mut answer = Response::new(ResponseBody::own(text, record));
    *answer.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    answer.headers_mut().insert(CONTENT_TYPE, plain);
    answer
}

/// The answer to a request that was cut before it had one.
pub(super) fn cut_off(cut: Cut) -> Response<ResponseBody> {
    let mut answer = Response::new(ResponseBody::nothing());
    *answer.status_mut() = cut.status();
    answer
}

/// Tells a caller to go elsewhere with its next request. So no connection is closed under the hands
/// of somebody who is sending one.
pub(super) fn take_leave(answer: &mut Response<ResponseBody>, version: Version, side: Side) {
    if version != Version::HTTP_2 {
        answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    if side == Side::Server {
        answer.headers_mut().insert(LEAVING, HeaderValue::from_static("true"));
    }
}
