//! How the proxy at the server's side speaks to an application.

use std::fmt;

/// What an application wants of the proxy before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Application {
    /// The PROXY protocol, if it wants one: it tells who calls before the first byte.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// The HTTP that it speaks.
    pub http: HttpVersion,
    /// Whether it gets requests' trailers by HTTP/1.1: many applications take them for header fields, some
    /// for those of another request. HTTP/2 keeps them apart.
    pub trailers: bool,
}

/// A version of HAProxy's PROXY protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProxyProtocol {
    /// A line of text.
    V1,
    /// Binary, with the caller's identity.
    V2,
}

/// What is spoken to an application, whatever its callers speak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HttpVersion {
    /// HTTP/2 for gRPC, HTTP/1.1 for everything else.
    #[default]
    Auto,
    /// HTTP/1.1
    Http1,
    /// HTTP/2 without TLS, by prior knowledge. Upgrades (WebSocket) stay HTTP/1.1.
    Http2,
}

impl fmt::Display for ProxyProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
        })
    }
}

impl fmt::Display for HttpVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Http1 => "1.1",
            Self::Http2 => "2",
        })
    }
}
