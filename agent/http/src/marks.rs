//! Marks: the header fields that are Isthmus's own, all of them. Their names begin with [`OURS`], and no caller, application
//! or route may say one: [`crate::headers`] strips what begins so, in every spelling, from requests that come in.
//!
//! | field | on | written by | read by | stripped by |
//! | --- | --- | --- | --- | --- |
//! | `identity` | requests | the server's side | the application | requests: `to_next_hop`; `of_trailers` |
//! | `request-id` | requests | the client's side | the server's side, which logs the same one | `to_next_hop` there |
//! | `panic` | requests | the client's side: all workloads are unwell | the server's side, which passes its check over | `to_next_hop` there |
//! | `server-time` | answers | the server's side, unless a device asks | the client's side: where the time went | `to_caller` at the client's side |
//! | `denied-by` | answers | the server's side: policy refused it | the client's side: whose rule, for its log | `to_caller`, likewise |
//! | `ratelimited` | answers | whoever refuses by a rate limit | the client's side: no fault of the workload | `to_caller`, likewise |
//! | `unhealthy` | answers | the server's side: the workload fails its check | the client's side: tries another | `to_caller`, likewise |
//! | `leaving` | answers | the server's side, before it stops | the client's side: goes elsewhere from now on | `to_caller`, likewise |
//! | `overloaded` | answers | the client's side: a breaker is open | the application that called | nobody |

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

/// Prefix of header names that only the proxy may set.
pub const OURS: &str = "x-isthmus-";

/// Caller's SPIFFE ID: set by the proxy, so the application can trust it.
pub const IDENTITY: HeaderName = HeaderName::from_static("x-isthmus-identity");
/// Set by a caller's proxy on a request that passes although health checks fail.
pub const PANIC: HeaderName = HeaderName::from_static("x-isthmus-panic");
/// Application time until the answer's head, in microseconds: from agent to agent.
pub const SERVER_TIME: HeaderName = HeaderName::from_static("x-isthmus-server-time");
/// Between agents: that policy refused the request, and by which mark its decider is known.
pub const DENIED_BY: HeaderName = HeaderName::from_static("x-isthmus-denied-by");
/// Tells a caller's proxy that it was the mesh that refused, by the limit's name.
pub const RATE_LIMITED: HeaderName = HeaderName::from_static("x-isthmus-ratelimited");
/// Between agents: as what the caller's side logs the request, so that its lines on both hosts are found.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-isthmus-request-id");
/// Set on a proxy's answer for a workload that fails its check.
pub const UNHEALTHY: HeaderName = HeaderName::from_static("x-isthmus-unhealthy");
/// Added to an answer by a proxy that is about to stop.
pub const LEAVING: HeaderName = HeaderName::from_static("x-isthmus-leaving");
/// Set on a breaker's refusal, with the limit's name: our `x-envoy-overloaded`.
pub const OVERLOADED: HeaderName = HeaderName::from_static("x-isthmus-overloaded");

/// Application time, as reported by the other side.
pub fn server_time(headers: &HeaderMap) -> Option<Duration> {
    let micros = headers.get(SERVER_TIME)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_micros(micros))
}

/// Says it to the other side.
pub fn tell_server_time(headers: &mut HeaderMap, took: Duration) {
    let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    headers.insert(SERVER_TIME, HeaderValue::from(micros));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_other_side_says_is_read_if_it_is_a_number() {
        let mut headers = HeaderMap::new();
        tell_server_time(&mut headers, Duration::from_micros(200_123));
        assert_eq!(server_time(&headers), Some(Duration::from_micros(200_123)));
        for wrong in ["", "-1", "1e9", "99999999999999999999999", "1 "] {
            headers.insert(SERVER_TIME, wrong.parse().unwrap());
            assert_eq!(server_time(&headers), None, "{wrong}");
        }
    }
}
