//! TLS towards the controller: version 1.3 only, and only ever to a controller whose CA we know.
//!
//! A member knows the CA's certificate. A host that joins knows only its hash, from the token:
//! [`PinnedCa`] finds the CA in the chain that the server presents, and then verifies the server
//! as usual. Either says so where the CA is another, and which. Connections are made here and handed to
//! tonic ready, so that errors stay precise.

use std::error::Error;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use hyper_util::rt::TokioIo;
use isthmus_model::TrustDomain;
use parking_lot::Mutex;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore,
    SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};

use crate::clock::words;
use crate::identity::{TlsIdentity, controller_trust_domain};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Why there is no connection to a controller.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    /// Nobody answers there.
    #[error("can't reach the controller at {address}: {reason}")]
    Unreachable {
        /// As the token or the settings give it.
        address: String,
        /// The system's words.
        reason: String,
    },
    /// Somebody else answers there.
    #[error(
        "the server at {address} is not the controller that issued the token, or its CA was \
         changed: {ca}; have a token made where that controller runs"
    )]
    ForeignCa {
        /// As the token gives it.
        address: String,
        /// Which CA was expected, and which there is.
        ca: ForeignCa,
    },
    /// Another mesh's controller answers there, or this mesh's was set up anew.
    #[error(
        "the certificate of the controller at {address} is signed by another CA than this host's \
         mesh has: {ca}"
    )]
    AnotherMesh {
        /// As the identity gives it.
        address: String,
        /// Which CA was expected, and which there is.
        ca: ForeignCa,
    },
    /// The controller isn't what its CA says, or doesn't know us.
    #[error("the TLS handshake with the controller at {address} failed: {reason}")]
    Handshake {
        /// As the token or the settings give it.
        address: String,
        /// What failed.
        reason: String,
    },
}

/// The configuration of a member: knows the CA, shows its certificate.
///
/// # Errors
/// When the identity's certificate or key can't be used.
pub(crate) fn member_config(tls: &TlsIdentity) -> anyhow::Result<Arc<ClientConfig>> {
    let config = builder()?
        .dangerous()
        .with_custom_certificate_verifier(KnownCa::new(&tls.ca)?)
        .with_client_auth_cert(vec![tls.leaf.clone()], tls.private_key())
        .context("Failed to use this host's TLS key")?;
    Ok(finish(config))
}

/// The configuration of a host that joins: knows the CA's hash.
///
/// # Errors
/// Never in practice; the library's interface allows for it.
pub(crate) fn joining_config(pin: &Arc<PinnedCa>) -> anyhow::Result<Arc<ClientConfig>> {
    let verifier: Arc<dyn ServerCertVerifier> = Arc::clone(pin) as _;
    let mut config =
        builder()?.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
    // We don't know the controller's name yet.
    config.enable_sni = false;
    Ok(finish(config))
}

/// The name that a controller of this trust domain is verified for.
///
/// # Errors
/// When the trust domain is too long to be part of a name.
pub(crate) fn controller_name(domain: &TrustDomain) -> anyhow::Result<ServerName<'static>> {
    let name = format!("controller.{domain}");
    ServerName::try_from(name).context("The trust domain doesn't make a server's name")
}

/// Connects to `address` (`host:port`), trying each address that the name stands for.
///
/// # Errors
/// Says whether nobody, or the wrong one, answers.
pub(crate) async fn connect(
    address: &str,
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
) -> Result<TlsStream<TcpStream>, ConnectError> {
    let unreachable =
        |reason: String| ConnectError::Unreachable { address: address.into(), reason };
    let connected = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await;
    let stream = match connected {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(unreachable(error.to_string())),
        Err(_) => return Err(unreachable("no answer within 5 s".to_owned())),
    };
    // Small messages that wait for nobody.
    drop(stream.set_nodelay(true));
    let handshake = TlsConnector::from(config).connect(name, stream);
    match tokio::time::timeout(CONNECT_TIMEOUT, handshake).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(handshake_error(address, &error)),
        Err(_) => Err(unreachable("no TLS within 5 s".to_owned())),
    }
}

/// Puts gRPC on a connection. The channel lives as long as the connection: it doesn't reconnect.
///
/// # Errors
/// When the server doesn't speak HTTP/2.
pub(crate) async fn channel(stream: TlsStream<TcpStream>) -> anyhow::Result<Channel> {
    let stream = Mutex::new(Some(TokioIo::new(stream)));
    let connector = tower::service_fn(move |_| {
        let stream = stream.lock().take();
        std::future::ready(stream.ok_or_else(|| io::Error::other("the connection is lost")))
    });
    // The address is for the `:authority` header only.
    let channel = Endpoint::from_static("http://controller")
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .connect_with_connector(connector)
        .await;
    channel.map_err(|error| anyhow::anyhow!("{}", reason(&error)))
}

/// What is behind an error of the transport, whose own words are "transport error". Whether the other
/// side refuses our certificate shows only when the connection is used.
#[must_use]
pub(crate) fn reason(error: &(dyn Error + 'static)) -> String {
    let mut words: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let said = error.to_string();
        if said != "transport error" && !words.iter().any(|before| before.contains(&said)) {
            words.push(said);
        }
        next = error.source();
    }
    let said = words.join(": ");
    match said.split_once("received fatal alert: ") {
        Some((_, "CertificateExpired")) => {
            "the controller refused this host's certificate as expired, and can't renew an expired one: upgrade it, or join anew".to_owned()
        }
        Some((_, alert)) => format!("the controller refused this host's certificate ({alert})"),
        None => format!("the connection to the controller was lost: {said}"),
    }
}

/// Accepts exactly the controllers whose CA has a known hash.
pub(crate) struct PinnedCa {
    hash: blake3::Hash,
    provider: Arc<CryptoProvider>,
    found: Mutex<Option<TrustDomain>>,
}

impl PinnedCa {
    #[must_use]
    pub(crate) fn new(hash: [u8; 32]) -> Arc<Self> {
        let hash = blake3::Hash::from_bytes(hash);
        Arc::new(Self { hash, provider: provider(), found: Mutex::new(None) })
    }

    /// The CA's hash.
    #[must_use]
    pub(crate) const fn hash(&self) -> &blake3::Hash {
        &self.hash
    }

    /// The trust domain of the controller that was accepted last.
    #[must_use]
    pub(crate) fn trust_domain(&self) -> Option<TrustDomain> {
        self.found.lock().clone()
    }
}

/// Whoever answers has another CA than the one that we know.
#[derive(Clone, Debug)]
pub(crate) struct ForeignCa {
    /// Of the CA that we know.
    expected: blake3::Hash,
    /// Of the one that the server presents, if it presents any.
    found: Option<blake3::Hash>,
    /// What it claims to be a controller of. Nobody vouches for that.
    domain: Option<TrustDomain>,
    /// Whether the CA is known from a token only.
    is_pinned: bool,
}

impl ForeignCa {
    fn error(
        expected: blake3::Hash,
        is_pinned: bool,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
    ) -> rustls::Error {
        // Controllers send their CA after their own certificate.
        let found = others.last().map(|ca| blake3::hash(ca));
        let domain = controller_trust_domain(leaf).ok();
        let foreign = Self { expected, found, domain, is_pinned };
        rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(foreign))))
    }
}

impl fmt::Display for ForeignCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Enough to tell them apart.
        let brief = |hash: &blake3::Hash| hash.to_hex()[..12].to_owned();
        write!(f, "expected the CA {}, got ", brief(&self.expected))?;
        match &self.found {
            Some(found) => f.write_str(&brief(found))?,
            None => f.write_str("none")?,
        }
        match &self.domain {
            Some(domain) => write!(f, " (a controller of {domain})"),
            None => f.write_str(" (not a controller's)"),
        }
    }
}

impl Error for ForeignCa {}

/// Verifies as usual by a CA, and tells servers of another CA from other faults.
#[derive(Debug)]
struct KnownCa {
    hash: blake3::Hash,
    usual: Arc<WebPkiServerVerifier>,
}

impl KnownCa {
    fn new(ca: &CertificateDer<'_>) -> anyhow::Result<Arc<Self>> {
        let usual =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots(ca)?), provider()).build();
        let usual = usual.context("The mesh's CA certificate can't be used")?;
        Ok(Arc::new(Self { hash: blake3::hash(ca), usual }))
    }
}

impl ServerCertVerifier for KnownCa {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified =
            self.usual.verify_server_cert(end_entity, intermediates, name, ocsp_response, now);
        verified.map_err(|error| {
            // A CA that was made anew has the same name, and another key.
            let is_foreign = matches!(
                error,
                rustls::Error::InvalidCertificate(
                    CertificateError::UnknownIssuer | CertificateError::BadSignature
                )
            );
            if is_foreign {
                ForeignCa::error(self.hash, false, end_entity, intermediates)
            } else {
                error
            }
        })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.usual.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.usual.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.usual.supported_verify_schemes()
    }
}

impl ServerCertVerifier for PinnedCa {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(ca) = intermediates.iter().find(|found| blake3::hash(found) == self.hash) else {
            return Err(ForeignCa::error(self.hash, true, end_entity, intermediates));
        };
        let general = |error: anyhow::Error| rustls::Error::General(format!("{error:#}"));
        let domain = controller_trust_domain(end_entity).map_err(general)?;
        let name = controller_name(&domain).map_err(general)?;
        let roots = Arc::new(roots(ca).map_err(general)?);
        let verified = WebPkiServerVerifier::builder_with_provider(roots, self.provider.clone())
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?
            .verify_server_cert(end_entity, intermediates, &name, ocsp_response, now)?;
        *self.found.lock() = Some(domain);
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl fmt::Debug for PinnedCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PinnedCa").field("hash", &self.hash.to_hex()).finish_non_exhaustive()
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn builder() -> anyhow::Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>> {
    ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .context("Failed to set up TLS 1.3")
}

fn roots(ca: &CertificateDer<'_>) -> anyhow::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.clone().into_owned()).context("The mesh's CA certificate can't be used")?;
    Ok(roots)
}

fn finish(mut config: ClientConfig) -> Arc<ClientConfig> {
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

fn handshake_error(address: &str, error: &io::Error) -> ConnectError {
    let address = address.to_owned();
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    if let Some(rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(cause)))) = tls
        && let Some(ca) = cause.downcast_ref::<ForeignCa>()
    {
        let ca = ca.clone();
        return if ca.is_pinned {
            ConnectError::ForeignCa { address, ca }
        } else {
            ConnectError::AnotherMesh { address, ca }
        };
    }
    if let Some(rustls::Error::InvalidCertificate(error)) = tls
        && let Some(reason) = wrong_time(error)
    {
        return ConnectError::Handshake { address, reason };
    }
    ConnectError::Handshake { address, reason: error.to_string() }
}

/// Controllers renew their certificates long before they end: it is this host's clock that is wrong.
fn wrong_time(error: &CertificateError) -> Option<String> {
    let apart = |late: &UnixTime, early: &UnixTime| {
        words(Duration::from_secs(late.as_secs().saturating_sub(early.as_secs())))
    };
    if let CertificateError::ExpiredContext { time, not_after } = error {
        return Some(format!(
            "by this host's clock the controller's certificate expired {} ago; the clock must be ahead: set it",
            apart(time, not_after)
        ));
    }
    let CertificateError::NotValidYetContext { time, not_before } = error else { return None };
    Some(format!(
        "by this host's clock the controller's certificate begins in {} only; the clock must be behind: set it",
        apart(not_before, time)
    ))
}

#[cfg(test)]
pub(crate) mod tests;
