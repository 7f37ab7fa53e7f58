//! Formats of the files in the state directory.

use std::time::SystemTime;

use anyhow::{Context as _, anyhow, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use isthmus_proto::v1;
use prost::Message as _;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

use super::{Joining, SNAPSHOT_MAGIC};
use crate::identity::{TlsIdentity, TlsKey, TunnelKey};
use crate::join::Keys;

pub(super) fn encode_key(key: &TunnelKey) -> Zeroizing<String> {
    let mut text = Zeroizing::new(STANDARD.encode(**key.bytes()));
    text.push('\n');
    text
}

pub(super) fn decode_key(text: &[u8]) -> anyhow::Result<TunnelKey> {
    let decoded = STANDARD.decode(text.trim_ascii_end());
    let bytes = Zeroizing::new(decoded.map_err(|_| anyhow!("isn't base64"))?);
    let mut key = Zeroizing::new([0; 32]);
    ensure!(bytes.len() == key.len(), "has {} bytes instead of 32", bytes.len());
    key.copy_from_slice(&bytes);
    Ok(TunnelKey::from_bytes(key))
}

/// The keys, if they are for this join. Damaged ones are no loss: nobody has answered to them.
pub(super) fn decode_joining(text: &[u8], token: &str, host: &str) -> Option<Keys> {
    let joining: Joining = toml::from_str(std::str::from_utf8(text).ok()?).ok()?;
    if joining.token != token || joining.host != host {
        return None;
    }
    let tunnel = decode_key(joining.tunnel_key.as_bytes()).ok()?;
    let tls = Zeroizing::new(STANDARD.decode(&joining.tls_key).ok()?);
    Some(Keys { tunnel, tls: TlsKey::from_der(&tls).ok()? })
}

pub(super) fn encode_tls(tls: &TlsIdentity) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(4096));
    for (label, der) in
        [("PRIVATE KEY", &tls.key[..]), ("CERTIFICATE", &tls.leaf), ("CERTIFICATE", &tls.ca)]
    {
        let body = Zeroizing::new(STANDARD.encode(der));
        text.push_str(&format!("-----BEGIN {label}-----\n"));
        for line in body.as_bytes().chunks(64) {
            text.extend(line.iter().map(|byte| char::from(*byte)));
            text.push('\n');
        }
        text.push_str(&format!("-----END {label}-----\n"));
    }
    text
}

pub(super) fn decode_tls(text: &[u8], obtained: SystemTime) -> anyhow::Result<TlsIdentity> {
    let key = PrivatePkcs8KeyDer::from_pem_slice(text).context("no key")?;
    let key = Zeroizing::new(key.secret_pkcs8_der().to_vec());
    let chain: Vec<_> =
        CertificateDer::pem_slice_iter(text).collect::<Result<_, _>>().context("no chain")?;
    let [leaf, ca] = <[_; 2]>::try_from(chain).map_err(|_| anyhow!("no leaf and CA"))?;
    let tls = TlsIdentity { key, leaf, ca, obtained };
    tls.validity()?;
    Ok(tls)
}

pub(super) fn encode_snapshot(resources: &v1::SnapshotResources) -> Vec<u8> {
    let body = resources.encode_to_vec();
    [SNAPSHOT_MAGIC, blake3::hash(&body).as_bytes(), &body].concat()
}

pub(super) fn decode_snapshot(bytes: &[u8]) -> anyhow::Result<v1::SnapshotResources> {
    let rest = bytes.strip_prefix(SNAPSHOT_MAGIC).context("it doesn't begin as one")?;
    let (hash, body) = rest.split_first_chunk::<32>().context("it is cut short")?;
    ensure!(blake3::hash(body) == *hash, "its hash doesn't match");
    v1::SnapshotResources::decode(body).context("it can't be read")
}
