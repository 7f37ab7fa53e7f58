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
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};

use http::{HeaderMap, HeaderValue, StatusCode};
use isthmus_model::edge::Listener;
use isthmus_model::host::{canonical, split_port};
use isthmus_model::{External, Gateway, Service, ServiceId};
use rustls::server::{Acceptor, ClientHello};
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::ServerName;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_rustls::LazyConfigAcceptor;

use super::Shared;
use super::connection::Connection;
use crate::cluster::permits::Caller;
use crate::config::view::View;
use crate::http::headers;
use crate::http::io::Stream;

/// What the proxy needs its host for. Asked often, so answers are at hand.
pub trait Outside: fmt::Debug + Send + Sync {
    /// How TLS is spoken on a gateway's port with a client that asks for a name, or for none.
    fn server_tls(
        &self,
        gateway: ServiceId,
        port: u16,
        name: Option<&str>,
    ) -> Option<Arc<ServerConfig>>;

    /// How TLS is spoken with an authority that asks who answers for a name (RFC 8737), if one is
    /// expected.
    fn challenge_tls(&self, name: &str) -> Option<Arc<ServerConfig>>;

    /// How TLS is spoken with an external server, and the name that it must prove. None if it
    /// speaks none.
    ///
    /// # Errors
    ///
    /// If the files that this takes can't be used.
    fn client_tls(
        &self,
        external: ServiceId,
        http2: bool,
    ) -> io::Result<Option<(Arc<ClientConfig>, ServerName<'static>)>>;

    /// Changes with what [`Outside::client_tls`] gives: a connection that was made under another
    /// one isn't used again.
    fn epoch(&self, external: ServiceId) -> u64;

    /// The newest addresses of an external server; none if none are known.
    fn addresses(&self, external: ServiceId) -> Arc<[IpAddr]>;

    /// Why it has none that may be dialled, if that is known.
    fn unusable(&self, external: ServiceId) -> Option<String> {
        let _ = external;
        None
    }

    /// Which port was asked for by a connection that leads to the proxy: its own end, and the caller's.
    fn asked_port(&self, own: SocketAddr, caller: SocketAddr) -> Option<u16> {
        let _ = (own, caller);
        None
    }

    /// What a verified client certificate says, as the value of a header.
    fn facts(&self, certificate: &[u8]) -> String;
}

/// A client that has come to a gateway.
#[derive(Debug)]
pub struct Visitor {
    /// Nothing has been read from it.
    pub stream: std::net::TcpStream,
    /// Whose it is.
    pub gateway: ServiceId,
    /// Which of the gateway's ports it came to.
    pub port: u16,
}

/// What the proxy is given to work at the mesh's edge.
#[derive(Debug)]
pub struct Edge {
    /// The host.
    pub outside: Arc<dyn Outside>,
    /// Those who come to its gateways.
    pub visitors: mpsc::Receiver<Visitor>,
}

/// How a gateway's client came in.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) port: u16,
    secure: bool,
    /// What the handshake told; empty without TLS.
    greeted: OnceLock<Greeting>,
}

#[derive(Debug)]
struct Greeting {
    /// The name that was asked for, in its canonical form.
    name: Option<String>,
    /// What the client's certificate says.
    certificate: Option<HeaderValue>,
    /// What was agreed on (ALPN).
    http2: bool,
}

/// Why a gateway doesn't take a request.
pub(crate) struct Misdirected(pub(crate) StatusCode, pub(crate) &'static str);

impl Edge {
    /// Nobody comes, and nothing is outside.
    #[must_use]
    pub fn nowhere() -> Self {
        Self { outside: Arc::new(Nothing), visitors: mpsc::channel(1).1 }
    }
}

/// Greets a client of a gateway: by TLS, where the listener speaks it. None if it doesn't behave.
/// Callers of the mesh have been greeted by the tunnel.
pub(crate) async fn greet(connection: &Connection, stream: TcpStream) -> Option<Stream> {
    let Some(entry) = connection.entry.as_ref().filter(|entry| entry.secure) else {
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
    let Shared { outside, handshakes, .. } = &*connection.shared;
    let hello = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
    let name = hello.client_hello().server_name().map(|name| canonical(name).map(Cow::into_owned));
    let name = name.transpose().map_err(io::Error::other)?;
    if is_challenge(&hello.client_hello()) {
        let config = name.and_then(|name| outside.challenge_tls(&name));
        let config = config.ok_or_else(|| io::Error::other("nobody is asked about this name"))?;
        hello.into_stream(config).await?.shutdown().await?;
        return Err(io::Error::other("an authority asked who answers for this name, and was told"));
    }
    let config = outside.server_tls(connection.parties.service, entry.port, name.as_deref());
    let config = config.ok_or_else(|| io::Error::other("no certificate for this name"))?;
    // From here on it costs much. Whoever is slow loses its turn with its patience.
    let _turn = handshakes.wait_for(Caller::visitor(connection.peer)).await;
    let stream = hello.into_stream(config).await?;
    let chain = stream.get_ref().1.peer_certificates();
    let facts = chain.and_then(|chain| chain.first()).map(|it| outside.facts(it));
    let certificate = facts.and_then(|facts| HeaderValue::from_str(&facts).ok());
    let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    // Nobody greets twice.
    let _ = entry.greeted.set(Greeting { name, certificate, http2 });
    Ok(Stream::Tls(Box::new(stream.into())))
}

/// Whether this is an authority that asks who answers for a name (RFC 8737 section 3).
fn is_challenge(hello: &ClientHello<'_>) -> bool {
    let mut protocols = hello.alpn().into_iter().flatten();
    protocols.next() == Some(b"acme-tls/1") && protocols.next().is_none()
}

impl Entry {
    /// None if the gateway has no such port.
    pub(crate) fn new(view: &View, gateway: ServiceId, port: u16) -> Option<Self> {
        let gateway = view.snapshot.services.get(&gateway)?.gateway()?;
        let listener = gateway.listeners.iter().find(|listener| listener.port == port)?;
        Some(Self { port, secure: listener.tls.is_some(), greeted: OnceLock::new() })
    }

    /// Whether the client speaks the version of HTTP that TLS agreed on (RFC 9113, section 3.2).
    pub(crate) fn agreed_on(&self, is_http2: bool) -> bool {
        !self.secure || self.greeted.get().is_some_and(|greeting| greeting.http2 == is_http2)
    }

    fn certificate(&self) -> Option<&HeaderValue> {
        self.greeted.get()?.certificate.as_ref()
    }

    /// The listener that a request for this host, in its canonical form, is for. By TLS it must be for the listener that
    /// the client shook hands with: another may demand more of its clients.
    pub(crate) fn admit<'a>(
        &self,
        gateway: &'a Gateway,
        host: &HeaderValue,
    ) -> Result<&'a Listener, Misdirected> {
        let (host, _) = split_port(host.to_str().unwrap_or_default());
        let asked = gateway.listener(self.port, Some(host));
        let Some((asked, listener)) = asked.and_then(|it| Some((it, gateway.listeners.get(it)?)))
        else {
            return Err(Misdirected(StatusCode::NOT_FOUND, "no listener is for this host"));
        };
        if !self.secure {
            return Ok(listener);
        }
        let name = self.greeted.get().and_then(|greeting| greeting.name.as_deref());
        let is_named = gateway.listener(self.port, name) == Some(asked);
        let proves = match listener.tls.as_ref().and_then(|tls| tls.client.as_ref()) {
            Some(client) => !client.required || self.certificate().is_some(),
            None => true,
        };
        if is_named && proves {
            Ok(listener)
        } else {
            let reason = "this connection was made for another host";
            Err(Misdirected(StatusCode::MISDIRECTED_REQUEST, reason))
        }
    }

    /// Writes into a request's header fields what is known of the client; what it says itself
    /// counts only if it is a proxy that the gateway trusts.
    pub(crate) fn introduce(
        &self,
        view: &View,
        connection: &Connection,
        fields: &mut HeaderMap,
        host: &HeaderValue,
    ) {
        let peer = connection.peer;
        let service = view.snapshot.services.get(&connection.parties.service);
        let proxies = service.and_then(Service::gateway).map(|gateway| &gateway.trusted_proxies);
        let trusted = proxies.is_some_and(|all| all.iter().any(|network| network.contains(&peer)));
        let scheme = if self.secure { "https" } else { "http" };
        headers::announce(fields, (scheme, host, self.port), &connection.peer_text, trusted);
        if let Some(certificate) = self.certificate() {
            headers::show_certificate(fields, certificate.clone());
        }
    }
}

/// The host as an external server expects it.
pub(crate) fn host_of(external: &External) -> Option<HeaderValue> {
    let usual = if external.tls.is_some() { 443 } else { 80 };
    let host = if external.host.contains(':') {
        format!("[{}]", external.host)
    } else {
        external.host.to_string()
    };
    let host = if external.port == usual { host } else { format!("{host}:{}", external.port) };
    HeaderValue::from_str(&host).ok()
}

/// Where there is no edge.
#[derive(Debug)]
struct Nothing;

impl Outside for Nothing {
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
