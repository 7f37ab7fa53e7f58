//! Host identity: its keys, its certificate, and the mesh that it belongs to.
//!
//! Private keys are made here and leave the host never. The types that hold them erase them when
//! dropped and can't be printed.

use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail, ensure};
use aws_lc_rs::agreement;
use ipnet::IpNet;
use isthmus_model::{HostId, Identity as MeshIdentity, Name, PublicKey, TrustDomain};
use rcgen::{
    CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData as _,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use x509_parser::prelude::{FromDer as _, GeneralName, ParsedExtension, X509Certificate};
use zeroize::Zeroizing;

use crate::clock::Clock;

/// Addresses of controllers that are kept, former ones among them.
const MOST_CONTROLLERS: usize = 16;

/// A member's whole identity. No `Debug`: it holds secrets.
#[expect(missing_debug_implementations, reason = "holds private keys")]
#[derive(Clone)]
pub struct Identity {
    pub member: Member,
    pub tunnel: TunnelKey,
    /// While the host's tunnel key changes: the one that comes. The mesh may know this host by it already.
    pub next: Option<TunnelKey>,
    pub tls: TlsIdentity,
}

/// What a controller knows this host by: no tunnel key, which may change meanwhile.
#[expect(missing_debug_implementations, reason = "holds a private key")]
pub struct Credentials {
    pub member: Member,
    pub tls: TlsIdentity,
}

impl Identity {
    #[must_use]
    pub fn credentials(&self) -> Credentials {
        Credentials { member: self.member.clone(), tls: self.tls.clone() }
    }
}

/// What is no secret: which host of which mesh this is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub host_id: HostId,
    pub host: Name,
    pub mesh: String,
    pub trust_domain: TrustDomain,
    /// Addresses of the controller, as `host:port`.
    pub controllers: Vec<String>,
    /// All addresses of the mesh, by the last snapshot: they are guarded also where that is lost.
    pub prefixes: Vec<IpNet>,
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

    /// # Errors
    /// When it isn't a key of the kind that [`TlsKey::generate`] makes.
    pub fn from_der(der: &[u8]) -> anyhow::Result<Self> {
        let key = PrivatePkcs8KeyDer::from(der);
        let pair = KeyPair::from_pkcs8_der_and_sign_algo(&key, &PKCS_ECDSA_P256_SHA256);
        Ok(Self(pair.context("Failed to read a TLS key")?))
    }

    /// PKCS #8, DER.
    #[must_use]
    pub fn to_der(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.0.serialize_der())
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
        Ok(TlsIdentity { key: self.to_der(), leaf, ca, obtained: SystemTime::now() })
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

    /// The certificate's time.
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
            from: at(validity.not_before.timestamp()),
            obtained: self.obtained,
            until: at(validity.not_after.timestamp()),
        })
    }
}

/// A certificate's time: by the controller's clock, but for `obtained`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    pub from: SystemTime,
    /// By this host's clock.
    pub obtained: SystemTime,
    pub until: SystemTime,
}

impl Validity {
    /// How long to wait before asking for a new certificate: until half of its life is over, earlier
    /// by up to a tenth of it so that hosts that joined together don't renew together. `jitter` is
    /// from 0 to 1. Its life begins when this host gets it, unless our clock was set since.
    #[must_use]
    pub(crate) fn renewal_in(&self, clock: &Clock, jitter: f64) -> Duration {
        let now = clock.now();
        let obtained = clock.when(self.obtained);
        let from = if obtained < now { obtained.max(self.from) } else { self.from };
        let life = self.until.duration_since(from).unwrap_or_default();
        let at = from + life.mul_f64(0.5 - 0.1 * jitter.clamp(0.0, 1.0));
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

/// `host:port`, as far as it can be told without asking anybody.
fn is_address(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let good_host =
        !host.is_empty() && host.len() <= 255 && host.bytes().all(|it| it.is_ascii_graphic());
    good_host && port.parse::<u16>().is_ok_and(|port| port != 0)
}

/// [`Member`] as its file spells it.
#[derive(Serialize, Deserialize)]
struct MemberFile {
    host_id: u32,
    host: String,
    mesh: String,
    trust_domain: String,
    controllers: Vec<String>,
    /// Older agents wrote none.
    #[serde(default)]
    prefixes: Vec<String>,
}

impl Member {
    /// Whether this is the same membership, wherever its controllers are and whatever its addresses.
    #[must_use]
    pub fn is_same_as(&self, other: &Self) -> bool {
        let Self { host_id, host, mesh, trust_domain, controllers: _, prefixes: _ } = self;
        (host_id, host, mesh, trust_domain)
            == (&other.host_id, &other.host, &other.mesh, &other.trust_domain)
    }

    /// The same with the controllers that a controller says there are. Those known before stay behind
    /// them, for the case that the new ones are wrong.
    #[must_use]
    pub fn with_controllers(&self, said: &[String]) -> Self {
        let mut controllers: Vec<String> = Vec::new();
        let said = said.iter().filter(|address| is_address(address));
        for address in said.chain(&self.controllers) {
            if controllers.len() < MOST_CONTROLLERS && !controllers.contains(address) {
                controllers.push(address.clone());
            }
        }
        Self { controllers, ..self.clone() }
    }

    /// # Errors
    /// Never for a value of ours; the library's interface allows for it.
    pub fn to_toml(&self) -> anyhow::Result<String> {
        let file = MemberFile {
            host_id: self.host_id.0,
            host: self.host.to_string(),
            mesh: self.mesh.clone(),
            trust_domain: self.trust_domain.to_string(),
            controllers: self.controllers.clone(),
            prefixes: self.prefixes.iter().map(ToString::to_string).collect(),
        };
        toml::to_string(&file).context("Failed to write down the membership")
    }

    /// # Errors
    /// Says what of the text can't be right.
    pub fn from_toml(text: &str) -> anyhow::Result<Self> {
        let file: MemberFile = toml::from_str(text)?;
        ensure!(!file.controllers.is_empty(), "controllers: there are none");
        let prefixes: Result<_, _> = file.prefixes.iter().map(|it| it.parse()).collect();
        Ok(Self {
            host_id: HostId(file.host_id),
            host: file.host.parse().context("host")?,
            mesh: file.mesh,
            trust_domain: file.trust_domain.parse().context("trust_domain")?,
            controllers: file.controllers,
            prefixes: prefixes.context("prefixes")?,
        })
    }
}

#[cfg(test)]
pub(crate) mod tests;
