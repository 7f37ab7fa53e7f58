//! The mesh's certificate authority.
//!
//! A host's certificate carries, besides its SPIFFE ID, the number of its membership (the first bytes
//! of the serial number). Numbers are never used again, so a certificate from before a host was
//! removed is told from one of a later membership under the same name. A host that joins anew keeps
//! its number; its certificates say how often it has, so that those from before are told, too.

use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, anyhow, bail};
use isthmus_model::{HostId, Name, TrustDomain};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData,
    SanType, SerialNumber,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer};
use x509_parser::prelude::{FromDer as _, X509Certificate};
use zeroize::Zeroizing;

use crate::{files, mesh_file, time};

pub(crate) const CERTIFICATE: &str = "ca.pem";
pub(crate) const KEY: &str = "ca.key";

/// Clocks of hosts may be behind ours. A short-lived certificate is backdated less, because agents
/// renew at half of its whole life.
const BACKDATED: Duration = Duration::from_secs(3_600);
const BACKDATED_PART: u32 = 10;
const CA_LIFETIME: Duration = Duration::from_secs(10 * 365 * 86_400);
const SERVER_LIFETIME: Duration = Duration::from_secs(90 * 86_400);
/// A host whose clock is behind must get as far as to hear that it is.
const SERVER_BACKDATED: Duration = Duration::from_secs(30 * 86_400);
const LARGEST_REQUEST: usize = 8_192;

const HOST_MARK: u8 = 0x10;
/// Of a host that has joined anew.
const REJOINED_MARK: u8 = 0x11;
const OTHER_MARK: u8 = 0x20;
const OPERATOR_MARK: u8 = 0x30;

/// Signs certificates.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    trust_domain: TrustDomain,
}

/// A certificate with the CA's behind it, in DER.
pub(crate) struct Issued {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    /// In seconds since the epoch.
    pub(crate) expires: i64,
}

/// A certificate and its key.
pub(crate) struct Credentials {
    pub(crate) issued: Issued,
    pub(crate) key: KeyPair,
}

/// A public key whose owner has proved to have the private one.
pub(crate) struct RequestedKey(rcgen::PublicKey);

/// Purpose of a host's certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Membership {
    /// The host's number.
    pub id: HostId,
    /// Number of times it has joined anew under it.
    pub generation: u32,
}

impl Authority {
    /// Makes a new CA in a state directory.
    pub(crate) fn create(state_dir: &Path, trust_domain: &TrustDomain) -> Result<Self> {
        let key = KeyPair::generate().context("Failed to make the CA's key")?;
        let mut params = params(&ca_name(trust_domain), CA_LIFETIME)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.use_authority_key_identifier_extension = false;
        let certificate = params.self_signed(&key).context("Failed to sign the CA")?;
        files::private_file(&state_dir.join(KEY), Zeroizing::new(key.serialize_pem()).as_bytes())?;
        files::private_file(&state_dir.join(CERTIFICATE), certificate.pem().as_bytes())?;
        Self::load(state_dir, trust_domain)
    }

    pub(crate) fn load(state_dir: &Path, trust_domain: &TrustDomain) -> Result<Self> {
        let key = Zeroizing::new(files::read(&state_dir.join(KEY))?);
        let key = KeyPair::from_pem(&key).context("Failed to read the CA's key, ca.key")?;
        let pem = files::read(&state_dir.join(CERTIFICATE))?;
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes())
            .context("Failed to read the CA's certificate, ca.pem")?;
        check_ca(&certificate, &key, trust_domain).with_context(|| {
            format!("The files in {} don't belong together", state_dir.display())
        })?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key)
            .context("Failed to read the CA's certificate, ca.pem")?;
        Ok(Self { issuer, certificate, trust_domain: trust_domain.clone() })
    }

    pub(crate) fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    pub(crate) fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Pin in join tokens.
    pub(crate) fn hash(&self) -> [u8; 32] {
        blake3::hash(&self.certificate).into()
    }

    /// The name by which clients know the controller, whatever its address.
    pub(crate) fn server_name(trust_domain: &TrustDomain) -> String {
        format!("controller.{trust_domain}")
    }

    pub(crate) fn server(&self, addresses: &[String]) -> Result<Credentials> {
        let name = Self::server_name(&self.trust_domain);
        let mut params = params("isthmus controller", SERVER_LIFETIME)?;
        params.not_before = (SystemTime::now() - SERVER_BACKDATED).into();
        params.subject_alt_names.push(SanType::DnsName(name.try_into()?));
        for address in addresses {
            let (host, _) = mesh_file::host_and_port(address)?;
            params.subject_alt_names.push(match host.parse::<IpAddr>() {
                Ok(ip) => SanType::IpAddress(ip),
                Err(_) => SanType::DnsName(host.to_owned().try_into()?),
            });
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate().context("Failed to make the server's key")?;
        Ok(Credentials { issued: self.sign(params, &key)?, key })
    }

    /// A certificate with a key of its own, which is made here.
    pub(crate) fn operator(&self, name: &Name, lifetime: Duration) -> Result<Credentials> {
        let key = KeyPair::generate().context("Failed to make the operator's key")?;
        let issued = self.sign(self.operator_params(name, time::now(), lifetime)?, &key)?;
        Ok(Credentials { issued, key })
    }

    /// A certificate for somebody else's key, which says when it was issued.
    pub(crate) fn operator_by_request(
        &self,
        name: &Name,
        key: &RequestedKey,
        issued: i64,
        lifetime: Duration,
    ) -> Result<Issued> {
        self.sign(self.operator_params(name, issued, lifetime)?, &key.0)
    }

    fn operator_params(
        &self,
        name: &Name,
        issued: i64,
        lifetime: Duration,
    ) -> Result<CertificateParams> {
        let mut params = params(&format!("operator {name}"), lifetime)?;
        self.identify(&mut params, &format!("operator/{name}"))?;
        params.serial_number = Some(operator_serial(issued)?);
        Ok(params)
    }

    pub(crate) fn host(
        &self,
        name: &Name,
        membership: Membership,
        key: &RequestedKey,
        lifetime: Duration,
    ) -> Result<Issued> {
        let mut params = params(&format!("host {name}"), lifetime)?;
        self.identify(&mut params, &format!("host/{name}"))?;
        params.serial_number = Some(host_serial(membership)?);
        self.sign(params, &key.0)
    }

    fn identify(&self, params: &mut CertificateParams, path: &str) -> Result<()> {
        let uri = format!("spiffe://{}/{path}", self.trust_domain);
        params.subject_alt_names.push(SanType::URI(uri.try_into()?));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        Ok(())
    }

    fn sign(&self, params: CertificateParams, key: &impl PublicKeyData) -> Result<Issued> {
        let expires = time::seconds(params.not_after.into());
        let leaf = params.signed_by(key, &self.issuer).context("Failed to sign a certificate")?;
        Ok(Issued { chain: vec![leaf.der().clone(), self.certificate.clone()], expires })
    }
}

impl RequestedKey {
    /// Reads a PKCS #10 request and checks its signature. Nothing else in it counts: what a
    /// certificate says is the controller's to decide.
    ///
    /// # Errors
    ///
    /// Fault of the request.
    pub(crate) fn from_der(der: &[u8]) -> Result<Self, String> {
        if der.len() > LARGEST_REQUEST {
            return Err(format!("it has {} bytes, more than {LARGEST_REQUEST}", der.len()));
        }
        let request =
            CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(der))
                .map_err(|error| error.to_string())?;
        Ok(Self(request.public_key))
    }

    pub(crate) fn hash(&self) -> blake3::Hash {
        blake3::hash(&self.0.subject_public_key_info())
    }
}

/// Files of several meshes make none: each host would refuse what such a controller signs.
fn check_ca(certificate: &[u8], key: &KeyPair, trust_domain: &TrustDomain) -> Result<()> {
    let (_, parsed) = X509Certificate::from_der(certificate).context("ca.pem is no certificate")?;
    if parsed.public_key().raw != key.subject_public_key_info().as_slice() {
        bail!("ca.key isn't the key of ca.pem; restore both from the same backup");
    }
    let name = parsed.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
    if name != Some(&*ca_name(trust_domain)) {
        let name = name.unwrap_or("somebody else");
        bail!(
            "mesh.toml is about {trust_domain:?}, but ca.pem is of {name:?}; restore both from the same backup",
            trust_domain = trust_domain.as_str()
        );
    }
    Ok(())
}

fn ca_name(trust_domain: &TrustDomain) -> String {
    format!("{trust_domain} CA")
}

/// The membership that a host's certificate was issued for.
pub(crate) fn membership_of_serial(serial: &[u8]) -> Option<Membership> {
    let serial = <&[u8; 16]>::try_from(serial).ok()?;
    let [mark, a, b, c, d, e, f, g, h, ..] = *serial;
    let id = HostId(u32::from_be_bytes([a, b, c, d]));
    match mark {
        HOST_MARK => Some(Membership { id, generation: 0 }),
        REJOINED_MARK => Some(Membership { id, generation: u32::from_be_bytes([e, f, g, h]) }),
        _ => None,
    }
}

/// When an operator's certificate was issued, in seconds since the epoch. Those that are older than this
/// mark were good for a year, and backdated as far as any.
pub(crate) fn issued_of_serial(serial: &[u8], begins: i64) -> i64 {
    match serial {
        [OPERATOR_MARK, a, b, c, d, e, f, g, h, ..] => {
            i64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h])
        }
        _ => begins.saturating_add_unsigned(BACKDATED.as_secs()),
    }
}

fn operator_serial(issued: i64) -> Result<SerialNumber> {
    let mut serial = random_serial()?;
    serial[0] = OPERATOR_MARK;
    serial[1..9].copy_from_slice(&issued.to_be_bytes());
    Ok(SerialNumber::from_slice(&serial))
}

fn host_serial(Membership { id, generation }: Membership) -> Result<SerialNumber> {
    let mut serial = random_serial()?;
    serial[0] = HOST_MARK;
    serial[1..5].copy_from_slice(&id.0.to_be_bytes());
    if generation > 0 {
        serial[0] = REJOINED_MARK;
        serial[5..9].copy_from_slice(&generation.to_be_bytes());
    }
    Ok(SerialNumber::from_slice(&serial))
}

fn random_serial() -> Result<[u8; 16]> {
    let mut serial = [0; 16];
    getrandom::fill(&mut serial).map_err(|error| anyhow!("No randomness: {error}"))?;
    serial[0] = OTHER_MARK;
    Ok(serial)
}

fn params(common_name: &str, lifetime: Duration) -> Result<CertificateParams> {
    let now = SystemTime::now();
    let mut params = CertificateParams::default();
    params.not_before = (now - BACKDATED.min(lifetime / BACKDATED_PART)).into();
    params.not_after = (now + lifetime).into();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.serial_number = Some(SerialNumber::from_slice(&random_serial()?));
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_do_not_belong_together_are_named() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (corp, else_) = ("corp.example".parse().unwrap(), "else.example".parse().unwrap());
        Authority::create(one.path(), &corp).unwrap();
        Authority::create(other.path(), &else_).unwrap();
        let said = |domain| format!("{:#}", Authority::load(one.path(), domain).err().unwrap());
        let text = said(&else_);
        assert!(text.contains("mesh.toml") && text.contains("ca.pem"), "{text}");
        std::fs::copy(other.path().join(KEY), one.path().join(KEY)).unwrap();
        let text = said(&corp);
        assert!(text.contains("ca.key isn't the key of ca.pem"), "{text}");
        for damage in ["", "-----BEGIN", "x"] {
            std::fs::write(one.path().join(KEY), damage).unwrap();
            assert!(said(&corp).contains("ca.key"), "{damage:?}");
        }
    }

    #[test]
    fn a_serial_tells_the_membership() {
        for generation in [0, 1, u32::MAX] {
            let membership = Membership { id: HostId(0x0102_0304), generation };
            let serial = host_serial(membership).unwrap().to_bytes();
            assert_eq!(membership_of_serial(&serial), Some(membership));
        }
        assert_eq!(membership_of_serial(&random_serial().unwrap()), None);
        assert_eq!(membership_of_serial(&[HOST_MARK, 0, 0, 0, 1]), None);
    }

    #[test]
    fn a_serial_tells_when_an_operators_certificate_was_issued() {
        for issued in [0, 1_700_000_000, i64::MAX] {
            let serial = operator_serial(issued).unwrap().to_bytes();
            assert_eq!(issued_of_serial(&serial, 5), issued);
            assert_eq!(membership_of_serial(&serial), None);
        }
        assert_eq!(issued_of_serial(&random_serial().unwrap(), 5), 3_605, "as it was before");
    }

    #[test]
    fn most_of_a_certificates_life_lies_ahead() {
        for seconds in [8, 86_400] {
            let params = params("x", Duration::from_secs(seconds)).unwrap();
            let now = time::now();
            let past = now - time::seconds(params.not_before.into());
            let ahead = time::seconds(params.not_after.into()) - now;
            assert!(past <= 1 + ahead / 9, "{past} s are over, {ahead} s are left");
        }
    }

    #[test]
    fn a_request_must_prove_its_key() {
        let key = KeyPair::generate().unwrap();
        let request = CertificateParams::default().serialize_request(&key).unwrap();
        let mut der = request.der().to_vec();
        assert!(RequestedKey::from_der(&der).is_ok());
        let last = der.len() - 1;
        der[last] ^= 1;
        assert!(RequestedKey::from_der(&der).is_err());
        assert!(RequestedKey::from_der(&[0; 100_000]).is_err());
        assert!(RequestedKey::from_der(b"").is_err());
    }
}
