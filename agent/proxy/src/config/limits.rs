//! Timeouts and capacity limits of the proxy.

use std::time::Duration;

/// Bounds of one proxy. The defaults are what runs; tests shorten the times.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// For a request's head, from its first byte (for the first request: from the connection's
    /// beginning).
    pub(crate) head: Duration,
    /// For a body that must be here as a whole before it is sent.
    pub(crate) body: Duration,
    /// For the next bytes of a body that is passed on as it comes, while there is no answer.
    pub(crate) body_idle: Duration,
    /// For a request, from its head to its answer's end.
    pub(crate) request: Duration,
    /// For a caller to take more of an answer.
    pub(crate) unread: Duration,
    /// For the next request on a connection without any.
    pub(crate) idle: Duration,
    /// For a connection without requests that carries nothing: HAProxy's users and Envoy's are used to
    /// this. Keepalives of the kernel's don't count.
    pub(crate) stream_idle: Duration,
    /// For a connection to the application.
    pub(crate) connect: Duration,
    /// For requests under way when the proxy stops.
    pub(crate) drain: Duration,
    /// At a time; no caller gets more of them than are still free.
    pub(crate) connections: usize,
    /// Requests under way, over all connections: HTTP/2 multiplies them. Shared out like these, and so
    /// many again for gateways' clients.
    pub(crate) requests: usize,
    /// Connections of gateways' clients.
    pub(crate) visitors: usize,
    /// Wide windows of HTTP/2 at a time, shared out likewise; see `windows.rs`.
    pub(crate) wide_windows: usize,
    /// TLS handshakes under way: each costs a signature.
    pub(crate) handshakes: usize,
    /// For one of them.
    pub(crate) handshake: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head: Duration::from_secs(10),
            body: Duration::from_secs(30),
            body_idle: Duration::from_secs(300),
            request: Duration::from_secs(24 * 60 * 60),
            unread: Duration::from_secs(60),
            idle: Duration::from_secs(60),
            stream_idle: Duration::from_secs(3600),
            connect: Duration::from_secs(5),
            drain: Duration::from_secs(5),
            connections: 4096,
            requests: 8192,
            visitors: 10_240,
            wide_windows: 64,
            handshakes: 256,
            handshake: Duration::from_secs(10),
        }
    }
}
