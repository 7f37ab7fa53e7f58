//! Gateway entry: how a client came in, and the listener that its requests are for.

use std::sync::OnceLock;

use http::{HeaderMap, HeaderValue, StatusCode};
use isthmus_http::headers;
use isthmus_model::edge::Listener;
use isthmus_model::host::split_port;
use isthmus_model::{Gateway, Service, ServiceId};

use super::connection::Connection;
use crate::config::view::ProxySnapshot;

/// Entry of a gateway's client.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) port: u16,
    secure: bool,
    /// Result of the handshake; empty without TLS.
    greeted: OnceLock<Greeting>,
}

/// Client information from a TLS handshake.
#[derive(Debug)]
pub(crate) struct Greeting {
    /// The name that was asked for, in its canonical form.
    pub(crate) name: Option<String>,
    /// Subject of the client's certificate.
    pub(crate) certificate: Option<HeaderValue>,
    /// Negotiated protocol (ALPN).
    pub(crate) http2: bool,
}

/// Why a gateway doesn't take a request.
pub(crate) struct Misdirected(pub(crate) StatusCode, pub(crate) &'static str);

impl Entry {
    /// None if the gateway has no such port.
    pub(crate) fn new(view: &ProxySnapshot, gateway: ServiceId, port: u16) -> Option<Self> {
        let gateway = view.snapshot.services.get(&gateway)?.gateway()?;
        let listener = gateway.listeners.iter().find(|listener| listener.port == port)?;
        Some(Self { port, secure: listener.tls.is_some(), greeted: OnceLock::new() })
    }

    /// Whether the client speaks the version of HTTP that TLS agreed on (RFC 9113, section 3.2).
    pub(crate) fn agreed_on(&self, is_http2: bool) -> bool {
        !self.secure || self.greeted.get().is_some_and(|greeting| greeting.http2 == is_http2)
    }

    pub(crate) const fn is_secure(&self) -> bool {
        self.secure
    }

    /// The handshake is over.
    pub(crate) fn on_greeting(&self, greeting: Greeting) {
        // Nobody greets twice.
        let _ = self.greeted.set(greeting);
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
        view: &ProxySnapshot,
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
