//! Services that the proxy needs from its host: TLS files, addresses of external servers, who was asked.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::HeaderValue;
use isthmus_model::{External, ServiceId};
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::ServerName;

/// Services of the host that the proxy needs. Called often, so answers must be at hand.
pub trait HostServices: fmt::Debug + Send + Sync {
    /// TLS configuration of a gateway's port for a client that asks for a name, or for none.
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

    /// Changes with what [`HostServices::client_tls`] gives: a connection that was made under another
    /// one isn't used again.
    fn epoch(&self, external: ServiceId) -> u64;

    /// The newest addresses of an external server; none if none are known.
    fn addresses(&self, external: ServiceId) -> Arc<[IpAddr]>;

    /// Why it has none that may be dialled, if that is known.
    fn unusable(&self, external: ServiceId) -> Option<String> {
        let _ = external;
        None
    }

    /// Original port of a connection that was redirected to the proxy: its own end, and the caller's.
    fn asked_port(&self, own: SocketAddr, caller: SocketAddr) -> Option<u16> {
        let _ = (own, caller);
        None
    }

    /// Header value that describes a verified client certificate.
    fn facts(&self, certificate: &[u8]) -> String;
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
