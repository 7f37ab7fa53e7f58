//! Application settings: how the proxy on the server's side speaks to an application.

use std::fmt;
use std::net::SocketAddr;

/// An application's settings for the proxy in front of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Application {
    /// The PROXY protocol, if it wants one: it tells who calls before the first byte.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// The HTTP that it speaks.
    pub http: HttpVersion,
    /// Whether it gets requests' trailers by HTTP/1.1: many applications take them for header fields, some
    /// for those of another request. HTTP/2 keeps them apart.
    pub trailers: bool,
    /// Its listening port on loopback, if it doesn't listen on the service's port of its workload's addresses.
    pub listen: Option<SocketAddr>,
    /// Peer address that it sees.
    pub source: SeenSource,
}

impl Application {
    /// Its listening port, for a port by which it is called.
    #[must_use]
    pub const fn port(&self, called: u16) -> u16 {
        match self.listen {
            Some(address) => address.port(),
            None => called,
        }
    }

    /// Whether it is to see its callers' addresses.
    #[must_use]
    pub const fn shows_callers(&self) -> bool {
        matches!(self.source, SeenSource::Caller)
    }

    /// Whether it can only be reached by the proxy, whatever it speaks.
    #[must_use]
    pub const fn needs_proxy(&self) -> bool {
        self.proxy_protocol.is_some() || self.listen.is_some()
    }
}

/// Peer address that an application sees on connections from the proxy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SeenSource {
    /// Its own host's.
    #[default]
    Proxy,
    /// The caller's workload's.
    Caller,
}

/// A version of HAProxy's PROXY protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProxyProtocol {
    /// A line of text.
    V1,
    /// Binary, with the caller's identity.
    V2,
}

/// Protocol to an application, whatever its callers use.
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

impl fmt::Display for SeenSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Proxy => "proxy",
            Self::Caller => "caller",
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
