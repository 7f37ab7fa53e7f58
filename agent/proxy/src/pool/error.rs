//! Failures of a request at its backend.

use std::io;
use std::time::Instant;

use http::Request;
use hyper::client::conn::TrySendError;
use isthmus_http::body::BodyError;

use super::request_body::RequestBody;
use crate::cluster::breaker::Overflow;

/// Why an application gave no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BackendError {
    #[error("the application doesn't accept connections: {0}")]
    Refused(#[source] io::Error),
    #[error("the application didn't accept a connection in time")]
    TimedOut,
    #[error("its host doesn't answer")]
    Silent(Instant),
    #[error("the application didn't answer in time")]
    TryTimedOut,
    #[error("the application fails its health check")]
    Unhealthy,
    #[error("the application broke off: {0}")]
    Broken(#[source] BodyError),
    #[error("the caller broke off")]
    CutShort,
    #[error("the caller's body didn't come in time")]
    Late,
    #[error("a limit of the service's breaker is reached: {}", .0.setting())]
    Overloaded(Overflow),
}

/// Why there is no answer, and the request if no byte of it has left.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) error: BackendError,
    pub(crate) unsent: Option<Box<Request<RequestBody>>>,
}

impl Failure {
    pub(super) const fn unsent(error: BackendError, request: Box<Request<RequestBody>>) -> Self {
        Self { error, unsent: Some(request) }
    }

    pub(super) fn of_sending(mut error: TrySendError<Request<RequestBody>>) -> Self {
        let unsent = error.take_message().map(Box::new);
        Self { error: BackendError::Broken(error.into_error().into()), unsent }
    }
}
