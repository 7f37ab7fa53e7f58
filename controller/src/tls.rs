//! TLS: version 1.3 only, hybrid key exchange preferred, a client certificate optional.

use std::sync::{Arc, PoisonError, RwLock};

use anyhow::{Context as _, Result};
use rustls::crypto::aws_lc_rs;
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::authority::{Authority, Credentials};

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
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = new;
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
        Some(Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner)))
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
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .context("Failed to set up TLS 1.3")?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec()];
    // Without tickets every connection shows its certificate anew.
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

fn issue(authority: &Authority, addresses: &[String]) -> Result<CertifiedKey> {
    let Credentials { issued, key } = authority.server(addresses)?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialized_der().to_vec()));
    let key = aws_lc_rs::sign::any_supported_type(&key).context("The server's key is unusable")?;
    Ok(CertifiedKey::new(issued.chain, key))
}
