//! The mesh's edge, as requests see it: clients from outside at a gateway's doors, and servers
//! outside that callers here ask for.
//!
//! ```text
//!  client ── TLS ──▶ listener of a gateway (proxy) ══ as the gateway ══▶ WORKLOAD:15001
//!  caller ─▶ VIRTUAL:15001 (proxy) ── TLS ──▶ external server
//! ```
//!
//! A gateway speaks to the mesh under its own identity, whoever its client is: rules about the
//! gateway say what the world may do. What it knows of a client is in headers, and only there.

use std::borrow::Cow;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use http::HeaderValue;
use isthmus_http::io::Stream;
use isthmus_model::ServiceId;
use isthmus_model::host::canonical;
use rustls::server::{Acceptor, ClientHello};
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::ServerName;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_rustls::LazyConfigAcceptor;

use crate::caller::connection::Connection;
use crate::caller::context::Shared;
use crate::caller::entry::{Entry, Greeting};
use crate::cluster::permits::Caller;
use crate::config::host_services::HostServices;

/// A client that has come to a gateway.
#[derive(Debug)]
pub struct Visitor {
    /// Nothing has been read from it.
    pub stream: std::net::TcpStream,
    /// Its owner.
    pub gateway: ServiceId,
    /// The gateway's port that it came to.
    pub port: u16,
}

/// Sockets and certificates for gateways.
#[derive(Debug)]
pub struct GatewayIo {
    /// The host.
    pub host_services: Arc<dyn HostServices>,
    /// Those who come to its gateways.
    pub visitors: mpsc::Receiver<Visitor>,
}

impl GatewayIo {
    /// Nobody comes, and nothing is outside.
    #[must_use]
    pub fn nowhere() -> Self {
        Self { host_services: Arc::new(Nothing), visitors: mpsc::channel(1).1 }
    }
}

/// Greets a client of a gateway: by TLS, where the listener speaks it. None if it doesn't behave.
/// Callers of the mesh have been greeted by the tunnel.
pub(crate) async fn greet(connection: &Connection, stream: TcpStream) -> Option<Stream> {
    let Some(entry) = connection.entry.as_ref().filter(|entry| entry.is_secure()) else {
        return Some(Stream::Plain(stream));
    };
    let patience = connection.shared.limits.handshake;
    match timeout(patience, shake_hands(connection, entry, stream)).await {
        Ok(Ok(stream)) => Some(stream),
        Ok(Err(error)) => {
            tracing::debug!(%error, port = entry.port, "A gateway's client failed to speak TLS");
            None
        }
        Err(_) => None,
    }
}

async fn shake_hands(
    connection: &Connection,
    entry: &Entry,
    stream: TcpStream,
) -> io::Result<Stream> {
    let Shared { host_services, handshakes, .. } = &*connection.shared;
    let hello = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
    let name = hello.client_hello().server_name().map(|name| canonical(name).map(Cow::into_owned));
    let name = name.transpose().map_err(io::Error::other)?;
    if is_challenge(&hello.client_hello()) {
        let config = name.and_then(|name| host_services.challenge_tls(&name));
        let config = config.ok_or_else(|| io::Error::other("nobody is asked about this name"))?;
        hello.into_stream(config).await?.shutdown().await?;
        return Err(io::Error::other("an authority asked who answers for this name, and was told"));
    }
    let config = host_services.server_tls(connection.parties.service, entry.port, name.as_deref());
    let config = config.ok_or_else(|| io::Error::other("no certificate for this name"))?;
    // From here on it costs much. Whoever is slow loses its turn with its patience.
    let _turn = handshakes.wait_for(Caller::visitor(connection.peer)).await;
    let stream = hello.into_stream(config).await?;
    let chain = stream.get_ref().1.peer_certificates();
    let facts = chain.and_then(|chain| chain.first()).map(|it| host_services.facts(it));
    let certificate = facts.and_then(|facts| HeaderValue::from_str(&facts).ok());
    let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    entry.on_greeting(Greeting { name, certificate, http2 });
    Ok(Stream::Tls(Box::new(stream.into())))
}

/// Whether this is an authority that asks who answers for a name (RFC 8737 section 3).
fn is_challenge(hello: &ClientHello<'_>) -> bool {
    let mut protocols = hello.alpn().into_iter().flatten();
    protocols.next() == Some(b"acme-tls/1") && protocols.next().is_none()
}

/// For hosts without gateways.
#[derive(Debug)]
struct Nothing;

impl HostServices for Nothing {
    fn server_tls(&self, _: ServiceId, _: u16, _: Option<&str>) -> Option<Arc<ServerConfig>> {
        None
    }

    fn challenge_tls(&self, _: &str) -> Option<Arc<ServerConfig>> {
        None
    }

    fn client_tls(
        &self,
        _: ServiceId,
        _: bool,
    ) -> io::Result<Option<(Arc<ClientConfig>, ServerName<'static>)>> {
        Ok(None)
    }

    fn epoch(&self, _: ServiceId) -> u64 {
        0
    }

    fn addresses(&self, _: ServiceId) -> Arc<[IpAddr]> {
        Arc::default()
    }

    fn facts(&self, _: &[u8]) -> String {
        String::new()
    }
}
