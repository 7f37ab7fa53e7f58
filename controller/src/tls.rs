//! TLS: version 1.3 only, hybrid key exchange preferred, a client certificate optional.
//!
//! A host's certificate may be out of its time, and an operator's may have expired: see [`caller`](crate::caller).

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use isthmus_model::TrustDomain;
use parking_lot::RwLock;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::aws_lc_rs;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig,
    SignatureScheme,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};

use crate::authority::{Authority, Credentials};
use crate::caller::Caller;

/// The server's certificate, which is renewed while connections come and go.
pub(crate) struct ServerCertificate {
    current: RwLock<Arc<CertifiedKey>>,
}

impl ServerCertificate {
    pub(crate) fn new(authority: &Authority, addresses: &[String]) -> Result<Arc<Self>> {
        let current = RwLock::new(Arc::new(issue(authority, addresses)?));
        Ok(Arc::new(Self { current }))
    }

    pub(crate) fn renew(&self, authority: &Authority, addresses: &[String]) -> Result<()> {
        let new = Arc::new(issue(authority, addresses)?);
        *self.current.write() = new;
        Ok(())
    }
}

impl std::fmt::Debug for ServerCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerCertificate").finish_non_exhaustive()
    }
}

impl ResolvesServerCert for ServerCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.current.read()))
    }
}

pub(crate) fn server_config(
    authority: &Authority,
    certificate: Arc<ServerCertificate>,
) -> Result<Arc<ServerConfig>> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(authority.certificate().clone()).context("The CA's certificate is not usable")?;
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()
            .context("Failed to set up the check of clients' certificates")?;
    let verifier = ClientVerifier { verifier, trust_domain: authority.trust_domain().clone() };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .context("Failed to set up TLS 1.3")?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec()];
    // Without tickets every connection shows its certificate anew.
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// Verifies a certificate as of its own time, where somebody may come late.
#[derive(Debug)]
struct ClientVerifier {
    verifier: Arc<dyn ClientCertVerifier>,
    trust_domain: TrustDomain,
}

impl ClientCertVerifier for ClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.verifier.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.verifier.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.verifier.verify_client_cert(leaf, intermediates, now);
        match verified {
            Err(rustls::Error::InvalidCertificate(error)) if is_about_time(&error) => {
                let caller = Caller::from_certificate(leaf, &self.trust_domain);
                let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
                let expires = match &caller {
                    Some(Caller::Host { expires, .. }) => *expires,
                    Some(late @ Caller::Operator { expires, .. })
                        if seconds >= *expires && late.may_return(seconds) =>
                    {
                        *expires
                    }
                    Some(Caller::Operator { .. } | Caller::Anonymous) | None => {
                        return Err(error.into());
                    }
                };
                let seconds = u64::try_from(expires).unwrap_or(0);
                let then = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
                self.verifier.verify_client_cert(leaf, intermediates, then)
            }
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

fn is_about_time(error: &CertificateError) -> bool {
    matches!(
        error,
        CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. }
    )
}

fn issue(authority: &Authority, addresses: &[String]) -> Result<CertifiedKey> {
    let Credentials { issued, key } = authority.server(addresses)?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialized_der().to_vec()));
    let key = aws_lc_rs::sign::any_supported_type(&key).context("The server's key is unusable")?;
    Ok(CertifiedKey::new(issued.chain, key))
}
