//! Whether a try that failed is made again.

use http::{HeaderMap, Method, StatusCode};
use isthmus_http::grpc;
use isthmus_http::marks::UNHEALTHY;
use isthmus_model::route::{Retry, RetryOn};

use super::ejection::Failure;

/// Failure of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attempt {
    /// No byte of the request has left.
    NotSent,
    /// The proxy before it says that it fails its health check, and has passed nothing on.
    Unhealthy,
    /// The backend broke off, or took too long; it may have acted.
    Reset,
    /// It answered.
    Answered {
        status: StatusCode,
        /// Of an answer that consists of its head only.
        grpc: Option<u8>,
    },
}

impl Attempt {
    pub(crate) fn answered(status: StatusCode, headers: &HeaderMap) -> Self {
        // Whatever the status: gRPC's is another field's.
        if headers.contains_key(UNHEALTHY) {
            return Self::Unhealthy;
        }
        let grpc = headers.get(grpc::STATUS).and_then(|code| code.to_str().ok()?.parse().ok());
        Self::Answered { status, grpc }
    }

    /// What ejects the endpoint, if it is to blame. 429 and RESOURCE_EXHAUSTED count, or who refuses
    /// fast would attract traffic.
    pub(crate) fn failure(self) -> Option<Failure> {
        match self {
            Self::Unhealthy => Some(Failure::Unhealthy),
            Self::NotSent | Self::Reset => Some(Failure::NoAnswer),
            Self::Answered { status, grpc } => {
                let fails = status.is_server_error()
                    || status == StatusCode::TOO_MANY_REQUESTS
                    || matches!(grpc, Some(4 | 8 | 13 | 14 | 15));
                fails.then_some(Failure::Answer)
            }
        }
    }
}

/// Whether the policy asks for another try.
pub(crate) fn wants_retry(policy: &Retry, attempt: Attempt) -> bool {
    use Attempt::{NotSent, Reset, Unhealthy};
    policy.on.iter().any(|on| match (on, attempt) {
        (RetryOn::ConnectFailure | RetryOn::GatewayError, NotSent | Unhealthy) => true,
        (RetryOn::Reset, Reset | NotSent | Unhealthy) => true,
        (RetryOn::ServerError, NotSent | Reset | Unhealthy) => true,
        (RetryOn::ServerError, Attempt::Answered { status, .. }) => status.is_server_error(),
        (RetryOn::GatewayError, Attempt::Answered { status, .. }) => {
            matches!(status.as_u16(), 502..=504)
        }
        (RetryOn::Status(wanted), Attempt::Answered { status, .. }) => status == *wanted,
        (RetryOn::Grpc(wanted), Attempt::Answered { grpc, .. }) => grpc == Some(*wanted),
        (
            RetryOn::ConnectFailure
            | RetryOn::Reset
            | RetryOn::GatewayError
            | RetryOn::Status(_)
            | RetryOn::Grpc(_),
            _,
        ) => false,
    })
}

/// Whether another try can do no harm: nothing has left, or the method may be repeated
/// (RFC 9110, section 9.2.2), or the route says so.
pub(crate) fn may_repeat(policy: &Retry, method: &Method, attempt: Attempt) -> bool {
    matches!(attempt, Attempt::NotSent | Attempt::Unhealthy)
        || method.is_idempotent()
        || policy.non_idempotent
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use isthmus_model::route::Share;

    use super::*;

    fn policy(on: &[&str]) -> Retry {
        Retry {
            attempts: 1,
            on: on.iter().map(|on| on.parse().unwrap()).collect(),
            budget: Share::ALL,
            backoff: Duration::from_millis(1),
            non_idempotent: false,
        }
    }

    fn status(code: u16) -> Attempt {
        Attempt::Answered { status: StatusCode::from_u16(code).unwrap(), grpc: None }
    }

    fn grpc(code: u8) -> Attempt {
        Attempt::Answered { status: StatusCode::OK, grpc: Some(code) }
    }

    #[test]
    fn each_condition_covers_what_it_says() {
        let (not_sent, reset) = (Attempt::NotSent, Attempt::Reset);
        let cases: &[(&str, &[Attempt], &[Attempt])] = &[
            ("5xx", &[not_sent, reset, status(500), status(599)], &[status(429), grpc(14)]),
            ("gateway-error", &[not_sent, status(502), status(504)], &[reset, status(500)]),
            ("connect-failure", &[not_sent], &[reset, status(503)]),
            ("reset", &[reset, not_sent], &[status(503)]),
            ("429", &[status(429)], &[status(503), reset, not_sent]),
            ("unavailable", &[grpc(14)], &[grpc(13), status(503)]),
        ];
        for (on, covered, others) in cases {
            let policy = policy(&[on]);
            for attempt in *covered {
                assert!(wants_retry(&policy, *attempt), "{on}: {attempt:?}");
            }
            for attempt in *others {
                assert!(!wants_retry(&policy, *attempt), "{on}: {attempt:?}");
            }
        }
        assert!(wants_retry(&policy(&["429", "reset"]), reset));
    }

    #[test]
    fn what_an_unhealthy_workloads_proxy_refused_is_as_if_it_was_never_sent() {
        let headers = HeaderMap::from_iter([(UNHEALTHY, "true".parse().unwrap())]);
        let refused = Attempt::answered(StatusCode::SERVICE_UNAVAILABLE, &headers);
        assert_eq!(refused, Attempt::Unhealthy);
        assert!(may_repeat(&policy(&["reset"]), &Method::POST, refused));
        assert!(wants_retry(&policy(&["connect-failure"]), refused));
        assert!(!wants_retry(&policy(&["429"]), refused));
    }

    #[test]
    fn what_may_have_been_done_is_not_done_twice() {
        let mut policy = policy(&["5xx"]);
        assert!(may_repeat(&policy, &Method::POST, Attempt::NotSent));
        assert!(!may_repeat(&policy, &Method::POST, Attempt::Reset));
        assert!(!may_repeat(&policy, &Method::PATCH, status(503)));
        for method in [Method::GET, Method::PUT, Method::DELETE, Method::HEAD] {
            assert!(may_repeat(&policy, &method, Attempt::Reset), "{method}");
        }
        policy.non_idempotent = true;
        assert!(may_repeat(&policy, &Method::POST, Attempt::Reset));
    }

    #[test]
    fn fast_refusals_are_failures_and_clients_mistakes_are_not() {
        for attempt in [status(500), status(503), status(429), grpc(8), grpc(14), Attempt::Reset] {
            assert!(attempt.failure().is_some(), "{attempt:?}");
        }
        for attempt in [status(200), status(404), status(403), grpc(0), grpc(5)] {
            assert!(attempt.failure().is_none(), "{attempt:?}");
        }
    }
}
