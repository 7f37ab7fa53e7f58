//! The proxy's own answers to gRPC requests: a gRPC client understands a status of gRPC's, in an answer
//! that consists of its head only ("Trailers-Only").
//!
//! <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>

use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Version};

pub const STATUS: HeaderName = HeaderName::from_static("grpc-status");
/// When to try again, in milliseconds
/// (<https://github.com/grpc/proposal/blob/master/A6-client-retries.md>).
pub const PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");
const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// Whether a request is gRPC, and not gRPC-Web.
pub fn is_call(head: &Parts) -> bool {
    let content_type = head.headers.get(CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    let rest = content_type.strip_prefix(b"application/grpc");
    head.version == Version::HTTP_2
        && rest.is_some_and(|rest| rest.is_empty() || matches!(rest[0], b'+' | b';'))
}

/// Says in an answer's head what is wrong, in gRPC's words. The HTTP status is 200 then.
pub fn refuse(headers: &mut HeaderMap, status: StatusCode, reason: &str) {
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(STATUS, HeaderValue::from(code(status)));
    if let Ok(message) = HeaderValue::from_str(&encoded(reason)) {
        headers.insert(MESSAGE, message);
    }
}

/// gRPC's own table for answers of proxies ("HTTP to gRPC Status Code Mapping"), but for two: what
/// took too long is DEADLINE_EXCEEDED, and what is too much RESOURCE_EXHAUSTED, so that clients don't
/// try at once what isn't to be tried again.
const fn code(status: StatusCode) -> u16 {
    match status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        408 | 504 => 4,
        413 | 429 | 431 => 8,
        502 | 503 => 14,
        _ => 2,
    }
}

/// Percent-encoded, but for printable ASCII.
fn encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if matches!(byte, b' '..=b'~') && byte != b'%' {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(content_type: &str, version: Version) -> Parts {
        let request = http::Request::builder().version(version).header(CONTENT_TYPE, content_type);
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn calls_are_told_from_other_requests() {
        for content_type in ["application/grpc", "application/grpc+proto", "application/grpc;a=b"] {
            assert!(is_call(&head(content_type, Version::HTTP_2)), "{content_type}");
            assert!(!is_call(&head(content_type, Version::HTTP_11)), "{content_type}");
        }
        for content_type in ["application/grpc-web", "application/json", ""] {
            assert!(!is_call(&head(content_type, Version::HTTP_2)), "{content_type}");
        }
    }

    #[test]
    fn refusals_have_a_status_and_a_message() {
        for (status, code) in
            [(400, "13"), (403, "7"), (429, "8"), (500, "2"), (502, "14"), (503, "14"), (504, "4")]
        {
            let mut headers = HeaderMap::new();
            refuse(&mut headers, StatusCode::from_u16(status).unwrap(), "50 % of ä\n");
            assert_eq!(headers[STATUS], code, "{status}");
            assert_eq!(headers[MESSAGE], "50 %25 of %C3%A4%0A");
        }
    }
}
