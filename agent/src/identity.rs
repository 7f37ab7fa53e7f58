//! Who this host is: its keys, its certificate, and the mesh that it belongs to.
//!
//! Private keys are made here and leave the host never. The types that hold them erase them when
//! dropped and can't be printed.

use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail, ensure};
use aws_lc_rs::agreement;
use isthmus_model::{HostId, Identity as MeshIdentity, Name, PublicKey, TrustDomain};
use rcgen::{
    CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData as _,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use x509_parser::prelude::{FromDer as _, GeneralName, ParsedExtension, X509Certificate};
use zeroize::Zeroizing;

/// A member's whole identity. No `Debug`: it holds secrets.
#[expect(missing_debug_implementations, reason = "holds private keys")]
#[derive(Clone)]
pub struct Identity {
    pub member: Member,
    pub tunnel: TunnelKey,
    pub tls: TlsIdentity,
}

/// What is no secret: which host of which mesh this is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub host_id: HostId,
    pub host: Name,
    pub mesh: String,
    pub trust_domain: TrustDomain,
    /// Where the controller listens, as `host:port`.
    pub controllers: Vec<String>,
}

/// The WireGuard private key.
#[expect(missing_debug_implementations, reason = "holds a private key")]
#[derive(Clone)]
pub struct TunnelKey(Zeroizing<[u8; 32]>);

impl TunnelKey {
    /// # Errors
    /// When the system has no randomness to give.
    pub fn generate() -> anyhow::Result<Self> {
        let mut bytes = Zeroizing::new([0; 32]);
        getrandom::fill(&mut *bytes).context("Failed to get random bytes from the kernel")?;
        // Curve25519's clamping, so that the key reads the same wherever it is shown.
        bytes[0] &= 248;
        bytes[31] = (bytes[31] & 127) | 64;
        Ok(Self(bytes))
    }

    #[must_use]
    pub const fn from_bytes(bytes: Zeroizing<[u8; 32]>) -> Self {
        Self(bytes)
    }

    #[must_use]
    pub fn bytes(&self) -> &Zeroizing<[u8; 32]> {
        &self.0
    }

    /// # Errors
    /// Never for a key of ours; the library's interface allows for it.
    pub fn public(&self) -> anyhow::Result<PublicKey> {
        let refused = |_| anyhow::anyhow!("Failed to compute the tunnel's public key");
        let private = agreement::PrivateKey::from_private_key(&agreement::X25519, &*self.0)
            .map_err(|_| anyhow::anyhow!("Failed to read the tunnel's private key"))?;
        let public = private.compute_public_key().map_err(refused)?;
        Ok(PublicKey(public.as_ref().try_into().context("X25519 keys have 32 bytes")?))
    }
}

/// A TLS key that has no certificate yet.
#[expect(missing_debug_implementations, reason = "holds a private key")]
pub struct TlsKey(KeyPair);

impl TlsKey {
    /// # Errors
    /// When the system has no randomness to give.
    pub fn generate() -> anyhow::Result<Self> {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256);
        Ok(Self(pair.context("Failed to make a TLS key")?))
    }

    /// A PKCS #10 request: the public key, and the proof that we hold the private one. It names
    /// nobody: the controller decides who the certificate is for.
    ///
    /// # Errors
    /// When signing fails.
    pub fn request(&self) -> anyhow::Result<Vec<u8>> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let request =
            params.serialize_request(&self.0).context("Failed to make a certificate request")?;
        Ok(request.der().to_vec())
    }

    /// The identity that the key and the controller's answer make together.
    ///
    /// # Errors
    /// When the chain isn't for this key and host, or doesn't end in `ca`.
    pub fn with_chain(
        self,
        chain: Vec<Vec<u8>>,
        ca_hash: &blake3::Hash,
        member: &Member,
    ) -> anyhow::Result<TlsIdentity> {
        let chain: Vec<_> = chain.into_iter().map(CertificateDer::from).collect();
        let [leaf, ca] = <[_; 2]>::try_from(chain)
            .map_err(|_| anyhow::anyhow!("The controller sent no chain of leaf and CA"))?;
        ensure!(
            blake3::hash(&ca) == *ca_hash,
            "The controller sent a certificate of another CA than its own"
        );
        let parsed = parse(&leaf)?;
        ensure!(
            parsed.public_key().raw == self.0.subject_public_key_info().as_slice(),
            "The controller sent a certificate for another key"
        );
        let wanted = MeshIdentity::Host(member.host.clone()).spiffe(&member.trust_domain);
        ensure!(
            uris(&parsed).any(|uri| uri == wanted),
            "The controller sent a certificate that isn't for {wanted}"
        );
        let key = Zeroizing::new(self.0.serialize_der());
        Ok(TlsIdentity { key, leaf, ca, obtained: SystemTime::now() })
    }
}

/// What the host shows to the controller, and how it knows the controller.
#[expect(missing_debug_implementations, reason = "holds a private key")]
#[derive(Clone)]
pub struct TlsIdentity {
    /// PKCS #8, DER.
    pub key: Zeroizing<Vec<u8>>,
    pub leaf: CertificateDer<'static>,
    pub ca: CertificateDer<'static>,
    /// When this host got the certificate. Its own beginning lies before that, because clocks
    /// differ, by more than its whole life perhaps.
    pub obtained: SystemTime,
}

impl TlsIdentity {
    /// A copy of the key in the form that rustls takes.
    #[must_use]
    pub fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.to_vec()).into()
    }

    /// Whether key, certificate and CA belong together, and to this host.
    ///
    /// # Errors
    /// Names what doesn't belong to what.
    pub fn check(&self, member: &Member) -> anyhow::Result<()> {
        let (leaf, ca) = (parse(&self.leaf)?, parse(&self.ca)?);
        let key = PrivatePkcs8KeyDer::from(&self.key[..]);
        let key = KeyPair::try_from(&key).context("The key is none")?;
        ensure!(
            leaf.public_key().raw == key.subject_public_key_info().as_slice(),
            "The key doesn't belong to the certificate"
        );
        let issued_by = leaf.issuer().as_raw() == ca.subject().as_raw();
        let same_key = match (authority_key(&leaf), subject_key(&ca)) {
            (Some(one), Some(other)) => one == other,
            (None, _) | (_, None) => true,
        };
        ensure!(issued_by && same_key, "The certificate doesn't belong to the CA");
        let wanted = MeshIdentity::Host(member.host.clone()).spiffe(&member.trust_domain);
        let names: Vec<&str> = uris(&leaf).collect();
        ensure!(
            names.is_empty() || names.contains(&&*wanted),
            "The certificate is for {}, but this host is {wanted}",
            names.join(", ")
        );
        Ok(())
    }

    /// From when until when this host can use the certificate.
    ///
    /// # Errors
    /// When it isn't a certificate.
    pub fn validity(&self) -> anyhow::Result<Validity> {
        let parsed = parse(&self.leaf)?;
        let at = |seconds: i64| {
            let seconds = u64::try_from(seconds).unwrap_or(0);
            SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
        };
        let validity = parsed.validity();
        Ok(Validity {
            from: at(validity.not_before.timestamp()).max(self.obtained),
            until: at(validity.not_after.timestamp()),
        })
    }
}

/// A certificate's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    pub from: SystemTime,
    pub until: SystemTime,
}

impl Validity {
    /// How long to wait, at `now`, before asking for a new certificate: until half of its life is
    /// over, earlier by up to a tenth of it so that hosts that joined together don't renew together.
    /// `jitter` is from 0 to 1.
    #[must_use]
    pub fn renewal_in(&self, now: SystemTime, jitter: f64) -> Duration {
        let life = self.until.duration_since(self.from).unwrap_or_default();
        let at = self.from + life.mul_f64(0.5 - 0.1 * jitter.clamp(0.0, 1.0));
        at.duration_since(now).unwrap_or_default()
    }
}

/// The trust domain that a controller's certificate claims: what follows `controller.` in its DNS
/// name. To be believed only when the certificate is verified for that name.
///
/// # Errors
/// When the certificate names no controller.
pub fn controller_trust_domain(leaf: &CertificateDer<'_>) -> anyhow::Result<TrustDomain> {
    let parsed = parse(leaf)?;
    let names = parsed.subject_alternative_name().ok().flatten();
    let names = names.iter().flat_map(|names| &names.value.general_names);
    for name in names {
        if let GeneralName::DNSName(name) = name
            && let Some(domain) = name.strip_prefix("controller.")
        {
            return domain.parse().context("The controller's certificate has a bad name");
        }
    }
    bail!("The server's certificate isn't that of an Isthmus controller")
}

fn parse<'a>(certificate: &'a CertificateDer<'_>) -> anyhow::Result<X509Certificate<'a>> {
    let (_, parsed) =
        X509Certificate::from_der(certificate).context("Failed to read a certificate")?;
    Ok(parsed)
}

fn uris<'a>(certificate: &'a X509Certificate<'_>) -> impl Iterator<Item = &'a str> {
    let names = certificate.subject_alternative_name().ok().flatten();
    names
        .map_or(&[][..], |names| &names.value.general_names)
        .iter()
        .filter_map(|name| if let GeneralName::URI(uri) = name { Some(*uri) } else { None })
}

fn authority_key<'a>(certificate: &'a X509Certificate<'_>) -> Option<&'a [u8]> {
    certificate.extensions().iter().find_map(|it| {
        let ParsedExtension::AuthorityKeyIdentifier(it) = it.parsed_extension() else {
            return None;
        };
        it.key_identifier.as_ref().map(|it| it.0)
    })
}

fn subject_key<'a>(certificate: &'a X509Certificate<'_>) -> Option<&'a [u8]> {
    certificate.extensions().iter().find_map(|it| {
        let ParsedExtension::SubjectKeyIdentifier(it) = it.parsed_extension() else {
            return None;
        };
        Some(it.0)
    })
}

/// [`Member`] as its file spells it.
#[derive(Serialize, Deserialize)]
struct MemberFile {
    host_id: u32,
    host: String,
    mesh: String,
    trust_domain: String,
    controllers: Vec<String>,
}

impl Member {
    /// # Errors
    /// Never for a value of ours; the library's interface allows for it.
    pub fn to_toml(&self) -> anyhow::Result<String> {
        let file = MemberFile {
            host_id: self.host_id.0,
            host: self.host.to_string(),
            mesh: self.mesh.clone(),
            trust_domain: self.trust_domain.to_string(),
            controllers: self.controllers.clone(),
        };
        toml::to_string(&file).context("Failed to write down the membership")
    }

    /// # Errors
    /// Says what of the text can't be right.
    pub fn from_toml(text: &str) -> anyhow::Result<Self> {
        let file: MemberFile = toml::from_str(text)?;
        ensure!(!file.controllers.is_empty(), "controllers: there are none");
        Ok(Self {
            host_id: HostId(file.host_id),
            host: file.host.parse().context("host")?,
            mesh: file.mesh,
            trust_domain: file.trust_domain.parse().context("trust_domain")?,
            controllers: file.controllers,
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::tls::tests::{Authority, HostCertificate};

    pub(crate) fn member() -> Member {
        Member {
            host_id: HostId(7),
            host: "app-1".parse().unwrap(),
            mesh: "corp".to_owned(),
            trust_domain: "corp.example".parse().unwrap(),
            controllers: vec!["192.0.2.1:7443".to_owned()],
        }
    }

    pub(crate) fn identity() -> Identity {
        identity_by(&Authority::new(), &HostCertificate::of(&member()))
    }

    pub(crate) fn identity_by(authority: &Authority, names: &HostCertificate) -> Identity {
        let key = TlsKey::generate().unwrap();
        let chain = authority.sign(&key.request().unwrap(), names);
        let tls = key.with_chain(chain, &authority.hash(), &member()).unwrap();
        Identity { member: member(), tunnel: TunnelKey::generate().unwrap(), tls }
    }

    #[test]
    fn a_public_key_follows_from_the_private_one() {
        // RFC 7748, section 6.1: Alice's keys.
        let alice = [
            0x77, 0x07, 0x6d, 0x0a, 0x73, 0x18, 0xa5, 0x7d, 0x3c, 0x16, 0xc1, 0x72, 0x51, 0xb2,
            0x66, 0x45, 0xdf, 0x4c, 0x2f, 0x87, 0xeb, 0xc0, 0x99, 0x2a, 0xb1, 0x77, 0xfb, 0xa5,
            0x1d, 0xb9, 0x2c, 0x2a,
        ];
        let key = TunnelKey::from_bytes(Zeroizing::new(alice));
        assert_eq!(key.public().unwrap().0[..4], [0x85, 0x20, 0xf0, 0x09]);
    }

    #[test]
    fn a_certificate_for_another_host_key_or_ca_is_refused() {
        let authority = Authority::new();
        let sign = |key: &TlsKey, host: &str| {
            let names = HostCertificate { host: host.to_owned(), ..HostCertificate::of(&member()) };
            authority.sign(&key.request().unwrap(), &names)
        };
        let key = TlsKey::generate().unwrap();
        let chain = sign(&key, "app-2");
        let error = key.with_chain(chain, &authority.hash(), &member()).err().unwrap();
        assert!(error.to_string().contains("host/app-1"), "{error}");

        let (key, other) = (TlsKey::generate().unwrap(), TlsKey::generate().unwrap());
        let chain = sign(&other, "app-1");
        let error = key.with_chain(chain, &authority.hash(), &member()).err().unwrap();
        assert!(error.to_string().contains("another key"), "{error}");

        let key = TlsKey::generate().unwrap();
        let chain = sign(&key, "app-1");
        let error = key.with_chain(chain, &Authority::new().hash(), &member()).err().unwrap();
        assert!(error.to_string().contains("another CA"), "{error}");
    }

    #[test]
    fn renewal_comes_before_half_of_the_life_is_over() {
        let from = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
        let validity = Validity { from, until: from + Duration::from_secs(1_000) };
        assert_eq!(validity.renewal_in(from, 0.0), Duration::from_secs(500));
        assert_eq!(validity.renewal_in(from, 1.0), Duration::from_secs(400));
        let late = from + Duration::from_secs(700);
        assert_eq!(validity.renewal_in(late, 0.0), Duration::ZERO);
    }

    #[test]
    fn a_certificates_life_begins_when_the_host_gets_it() {
        let backdated = HostCertificate {
            age: Duration::from_secs(300),
            left: Duration::from_secs(20),
            ..HostCertificate::of(&member())
        };
        let before = SystemTime::now();
        let validity = identity_by(&Authority::new(), &backdated).tls.validity().unwrap();
        assert!(validity.renewal_in(before, 1.0) > Duration::from_secs(6));
    }

    #[test]
    fn a_membership_survives_its_file() {
        let text = member().to_toml().unwrap();
        assert_eq!(Member::from_toml(&text).unwrap(), member());
        assert!(Member::from_toml("host_id = 1\n").is_err());
    }
}
