//! Certificates and keys, from the files that the topology names.
//!
//! They are this host's own: neither the controller nor another host ever sees them. Files are read
//! again when they change; what is wrong with new ones is told, and the old ones stay in use.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use isthmus_model::edge::{CertificateFiles, ClientCertificates, Origination};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, Ticketer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// More than any certificate chain or set of authorities has.
const MOST_BYTES: u64 = 4 << 20;
/// Where distributions keep whom they trust.
const SYSTEM_AUTHORITIES: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
];

/// Fingerprint of files, with their owners and modes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Stamp(Vec<(u64, u64, i64, i64)>);

impl Stamp {
    /// Of files as they are now; a missing one has a stamp, too.
    #[must_use]
    pub(super) fn of(files: &[&Path]) -> Self {
        let stamp = |path: &&Path| {
            fs::metadata(path)
                .map_or((0, 0, 0, 0), |it| (it.ino(), it.size(), it.ctime(), it.ctime_nsec()))
        };
        Self(files.iter().map(stamp).collect())
    }
}

/// Files of a listener's TLS configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Served {
    pub(super) certificate: CertificateFiles,
    pub(super) client: Option<ClientCertificates>,
}

/// Remedy for unusable files, by their current state.
#[must_use]
pub(super) fn remedy(files: &[&Path], keys: &[&Path]) -> String {
    let again = "it is read again by itself";
    if let Some(path) = files.iter().find(|path| !path.exists()) {
        return format!("put it at {} (`ls -l {}`); {again}", path.display(), path.display());
    }
    let is_open = |path: &&&Path| fs::metadata(path).is_ok_and(|found| found.mode() & 0o077 != 0);
    if let Some(path) = keys.iter().find(is_open) {
        return format!("`chmod 600 {}`; {again}", path.display());
    }
    format!("write a certificate and the key that belongs to it there, both in PEM; {again}")
}

/// The private keys among a listener's files.
#[must_use]
pub(super) fn keys_of_listener(tls: &Served) -> [&Path; 1] {
    [&tls.certificate.key]
}

/// The private keys among an external service's files.
#[must_use]
pub(super) fn keys_of_origination(tls: &Origination) -> Vec<&Path> {
    tls.certificate.iter().map(|files| files.key.as_path()).collect()
}

/// The files that a listener needs.
#[must_use]
pub(super) fn of_listener(tls: &Served) -> Vec<&Path> {
    let ca = tls.client.as_ref().map(|client| client.ca.as_path());
    of_certificate(&tls.certificate).into_iter().chain(ca).collect()
}

/// The files that an external service needs.
#[must_use]
pub(super) fn of_origination(tls: &Origination) -> Vec<&Path> {
    let own = tls.certificate.iter().flat_map(of_certificate);
    tls.ca.as_deref().into_iter().chain(own).collect()
}

fn of_certificate(files: &CertificateFiles) -> [&Path; 2] {
    [&files.certificate, &files.key]
}

/// TLS as a listener speaks it: 1.2 or 1.3, with tickets under keys that nobody else has and that
/// change every few hours.
///
/// # Errors
/// Names the file that can't be used.
pub(super) fn server(tls: &Served) -> anyhow::Result<(Arc<ServerConfig>, Option<i64>)> {
    let provider = provider();
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?;
    let builder = match &tls.client {
        None => builder.with_no_client_auth(),
        Some(client) => {
            let roots = Arc::new(authorities(&client.ca)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
            let verifier =
                if client.required { verifier } else { verifier.allow_unauthenticated() };
            builder.with_client_cert_verifier(verifier.build()?)
        }
    };
    let (chain, key) = certificate(&tls.certificate)?;
    let expires = expiry(&chain);
    let mut config = builder.with_single_cert(chain, key).with_context(|| unusable(tls))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.ticketer = Ticketer::new()?;
    Ok((Arc::new(config), expires))
}

fn unusable(tls: &Served) -> String {
    let CertificateFiles { certificate, key } = &tls.certificate;
    format!("{} and {} can't be used together", certificate.display(), key.display())
}

/// TLS as it is begun with an external server: by HTTP/1.1 and by HTTP/2.
///
/// # Errors
/// Names the file that can't be used.
pub(super) fn client(tls: &Origination) -> anyhow::Result<[Arc<ClientConfig>; 2]> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots(tls.ca.as_deref())?);
    let config = match &tls.certificate {
        None => builder.with_no_client_auth(),
        Some(files) => {
            let (chain, key) = certificate(files)?;
            let what = || format!("{} can't be shown", files.certificate.display());
            builder.with_client_auth_cert(chain, key).with_context(what)?
        }
    };
    Ok([&b"http/1.1"[..], b"h2"].map(|protocol| {
        let mut config = config.clone();
        config.alpn_protocols = vec![protocol.to_vec()];
        Arc::new(config)
    }))
}

/// TLS with servers whose certificates these issue, or those whom the host trusts.
///
/// # Errors
/// Names the file that can't be used.
pub(super) fn trusting(ca: Option<&Path>) -> anyhow::Result<Arc<ClientConfig>> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots(ca)?);
    Ok(Arc::new(builder.with_no_client_auth()))
}

fn roots(ca: Option<&Path>) -> anyhow::Result<RootCertStore> {
    match ca {
        Some(ca) => authorities(ca),
        None => system_authorities(),
    }
}

/// Between which two times the first certificate of a file is good, in seconds since 1970.
///
/// # Errors
/// If there is none.
pub(super) fn validity(path: &Path) -> anyhow::Result<(i64, i64)> {
    let chain = certificates(path)?;
    let first = chain.first().context("it holds no certificate")?;
    let (_, parsed) = x509_parser::parse_x509_certificate(first)?;
    let validity = parsed.validity();
    Ok((validity.not_before.timestamp(), validity.not_after.timestamp()))
}

pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn certificate(
    files: &CertificateFiles,
) -> anyhow::Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let chain = certificates(&files.certificate)?;
    let path = &files.key;
    let mode = fs::metadata(path).with_context(|| cant_read(path))?.mode();
    if mode & 0o077 != 0 {
        let (path, mode) = (path.display(), mode & 0o777);
        bail!(
            "{path} may be read by others than its owner (mode {mode:o}): run `chmod 600 {path}`"
        );
    }
    let key = PrivateKeyDer::from_pem_slice(&read(path)?).map_err(|error| {
        anyhow::anyhow!("{} holds no private key in PEM: {error}", path.display())
    })?;
    Ok((chain, key))
}

fn certificates(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let text = read(path)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let chain = chain.map_err(|error| anyhow::anyhow!("{} isn't PEM: {error}", path.display()))?;
    if chain.is_empty() {
        bail!("{} holds no certificate", path.display());
    }
    Ok(chain)
}

fn authorities(path: &Path) -> anyhow::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).with_context(|| format!("{}: no authority", path.display()))?;
    }
    Ok(roots)
}

/// Whom the host trusts. Some of those are odd; they are left out.
fn system_authorities() -> anyhow::Result<RootCertStore> {
    let configured = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let known = SYSTEM_AUTHORITIES.into_iter().map(PathBuf::from);
    let Some(path) = configured.into_iter().chain(known).find(|path| path.exists()) else {
        bail!("this host has no certificate authorities: install ca-certificates, or give `ca`");
    };
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates(&path)?);
    Ok(roots)
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let size = fs::metadata(path).with_context(|| cant_read(path))?.len();
    if size > MOST_BYTES {
        bail!("{} is too large for certificates", path.display());
    }
    fs::read(path).with_context(|| cant_read(path))
}

fn cant_read(path: &Path) -> String {
    format!("Failed to read {}", path.display())
}

/// When the first certificate of a chain expires, in seconds since 1970.
fn expiry(chain: &[CertificateDer<'_>]) -> Option<i64> {
    let (_, parsed) = x509_parser::parse_x509_certificate(chain.first()?).ok()?;
    Some(parsed.validity().not_after.timestamp())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn written(folder: &Path) -> CertificateFiles {
        let made = rcgen::generate_simple_self_signed(["shop.example".to_owned()]).unwrap();
        let (certificate, key) = (folder.join("c.pem"), folder.join("k.pem"));
        fs::write(&certificate, made.cert.pem()).unwrap();
        fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        CertificateFiles { certificate, key }
    }

    #[test]
    fn a_certificate_and_its_key_make_a_server() {
        let folder = tempfile::tempdir().unwrap();
        let tls = Served { certificate: written(folder.path()), client: None };
        let (config, expires) = server(&tls).unwrap();
        assert!(expires.is_some());
        assert_eq!(config.alpn_protocols, [b"h2".to_vec(), b"http/1.1".to_vec()]);
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let files = written(folder.path());
        fs::set_permissions(&files.key, fs::Permissions::from_mode(0o640)).unwrap();
        let error = server(&Served { certificate: files, client: None }).unwrap_err();
        assert!(error.to_string().contains("k.pem may be read by others"), "{error}");
        assert!(error.to_string().contains("mode 640"), "{error}");
    }

    #[test]
    fn what_is_wrong_names_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let (files, other) = (written(folder.path()), tempfile::tempdir().unwrap());
        let foreign = CertificateFiles { key: written(other.path()).key, ..files.clone() };
        let error = server(&Served { certificate: foreign, client: None }).unwrap_err();
        assert!(error.to_string().contains("can't be used together"), "{error}");
        fs::write(&files.certificate, "nothing").unwrap();
        let error = server(&Served { certificate: files.clone(), client: None }).unwrap_err();
        assert!(error.to_string().contains("c.pem holds no certificate"), "{error}");
        fs::remove_file(&files.certificate).unwrap();
        let error = server(&Served { certificate: files, client: None }).unwrap_err();
        assert!(error.to_string().contains("c.pem"), "{error}");
    }

    #[test]
    fn a_stamp_tells_new_files_from_old() {
        let folder = tempfile::tempdir().unwrap();
        let files = written(folder.path());
        let paths = of_certificate(&files);
        let before = Stamp::of(&paths);
        assert_eq!(before, Stamp::of(&paths));
        fs::set_permissions(&files.key, fs::Permissions::from_mode(0o640)).unwrap();
        let opened = Stamp::of(&paths);
        assert_ne!(before, opened, "a mode counts, too");
        let _ = fs::rename(&files.key, folder.path().join("moved"));
        assert_ne!(opened, Stamp::of(&paths));
    }

    #[test]
    fn the_remedy_is_for_what_is_wrong_with_the_files() {
        let folder = tempfile::tempdir().unwrap();
        let files = written(folder.path());
        let all = of_certificate(&files);
        fs::set_permissions(&files.key, fs::Permissions::from_mode(0o644)).unwrap();
        let said = remedy(&all, &[&files.key]);
        assert!(said.starts_with(&format!("`chmod 600 {}`", files.key.display())), "{said}");
        fs::remove_file(&files.certificate).unwrap();
        assert!(remedy(&all, &[&files.key]).starts_with("put it at"));
    }
}
