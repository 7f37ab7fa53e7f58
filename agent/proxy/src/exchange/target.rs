//! By which version of HTTP a request goes on, and with which target.

use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderValue, Uri, Version};

use crate::pool::Wire;

/// gRPC needs HTTP/2; everything else goes on by HTTP/1.1, unless the application wants it otherwise.
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
