use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::ServerConfig;
use rustls_pki_types::{CertificateSigningRequestDer, PrivatePkcs8KeyDer};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::identity::Member;

/// A CA as the controller has one.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

/// Facts of a host's certificate.
pub(crate) struct HostCertificate {
    pub(crate) host: String,
    pub(crate) trust_domain: String,
    /// Since when it has been good, and for how much longer.
    pub(crate) age: Duration,
    pub(crate) left: Duration,
    /// By how many seconds the controller's clock differs from ours.
    pub(crate) moved: i64,
}

impl HostCertificate {
    pub(crate) fn of(member: &Member) -> Self {
        Self {
            host: member.host.to_string(),
            trust_domain: member.trust_domain.to_string(),
            age: Duration::ZERO,
            left: Duration::from_secs(3600),
            moved: 0,
        }
    }
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.distinguished_name.push(DnType::CommonName, "test CA");
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    pub(crate) fn hash(&self) -> blake3::Hash {
        blake3::hash(self.0.der())
    }

    pub(crate) fn sign(&self, request: &[u8], names: &HostCertificate) -> Vec<Vec<u8>> {
        let request = CertificateSigningRequestDer::from(request);
        let mut request = CertificateSigningRequestParams::from_der(&request).unwrap();
        let uri = format!("spiffe://{}/host/{}", names.trust_domain, names.host);
        request.params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        request.params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        request.params.use_authority_key_identifier_extension = true;
        let moved = Duration::from_secs(names.moved.unsigned_abs());
        let now = std::time::SystemTime::now();
        let now = if names.moved < 0 { now - moved } else { now + moved };
        request.params.not_before = (now - names.age).into();
        request.params.not_after = (now + names.left).into();
        let leaf = request.signed_by(&self.0).unwrap();
        vec![leaf.der().to_vec(), self.0.der().to_vec()]
    }

    /// A server's configuration with a certificate for `name`.
    pub(crate) fn server(&self, name: &str) -> Arc<ServerConfig> {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let leaf = params.signed_by(&key, &self.0).unwrap();
        let chain = vec![leaf.der().clone(), self.0.der().clone()];
        let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Arc::new(config)
    }
}

/// Accepts one connection, and says where.
async fn listen(config: Arc<ServerConfig>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        drop(TlsAcceptor::from(config).accept(stream).await);
    });
    address
}

async fn join(server: Arc<ServerConfig>, pin: &Arc<PinnedCa>) -> Result<(), ConnectError> {
    let address = listen(server).await;
    let name = ServerName::try_from("controller").unwrap();
    connect(&address, joining_config(pin).unwrap(), name).await.map(drop)
}

#[tokio::test]
async fn a_controller_with_the_pinned_ca_is_accepted_and_tells_its_trust_domain() {
    let authority = Authority::new();
    let pin = PinnedCa::new(authority.hash().into());
    assert_eq!(pin.trust_domain(), None);
    join(authority.server("controller.corp.example"), &pin).await.unwrap();
    assert_eq!(pin.trust_domain(), Some("corp.example".parse().unwrap()));
}

#[tokio::test]
async fn a_controller_with_another_ca_is_refused_as_such() {
    let pin = PinnedCa::new(Authority::new().hash().into());
    let server = Authority::new().server("controller.corp.example");
    let error = join(server, &pin).await.unwrap_err();
    assert!(matches!(error, ConnectError::ForeignCa { .. }), "{error}");
    assert_eq!(pin.trust_domain(), None);
}

#[tokio::test]
async fn a_certificate_that_is_not_a_controllers_is_refused() {
    let authority = Authority::new();
    let pin = PinnedCa::new(authority.hash().into());
    let error = join(authority.server("www.corp.example"), &pin).await.unwrap_err();
    assert!(matches!(error, ConnectError::Handshake { .. }), "{error}");
    assert_eq!(pin.trust_domain(), None);
}

/// Only the CA's own signature makes a leaf genuine: presenting the pinned CA isn't enough.
#[tokio::test]
async fn the_pinned_ca_beside_a_foreign_leaf_is_refused() {
    let (genuine, forger) = (Authority::new(), Authority::new());
    let pin = PinnedCa::new(genuine.hash().into());
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["controller.corp.example".to_owned()]).unwrap();
    let leaf = params.signed_by(&key, &forger.0).unwrap();
    let chain = vec![leaf.der().clone(), genuine.0.der().clone()];
    let server = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, PrivatePkcs8KeyDer::from(key.serialize_der()).into())
        .unwrap();
    let error = join(Arc::new(server), &pin).await.unwrap_err();
    assert!(matches!(error, ConnectError::Handshake { .. }), "{error}");
}

#[tokio::test]
async fn a_member_refuses_a_controller_of_another_name() {
    let tls = crate::identity::tests::identity().tls;
    let authority = Authority::new();
    let tls = TlsIdentity { ca: authority.0.der().clone(), ..tls };
    let config = member_config(&tls).unwrap();
    let name = controller_name(&"corp.example".parse().unwrap()).unwrap();
    let address = listen(authority.server("controller.evil.example")).await;
    let error = connect(&address, config.clone(), name.clone()).await.unwrap_err();
    assert!(matches!(error, ConnectError::Handshake { .. }), "{error}");
    let address = listen(authority.server("controller.corp.example")).await;
    connect(&address, config, name).await.unwrap();
}

#[tokio::test]
async fn a_member_is_told_of_a_controller_with_another_ca_and_which() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let ca = ours.0.der().clone();
    let tls = TlsIdentity { ca, ..crate::identity::tests::identity().tls };
    let name = controller_name(&"corp.example".parse().unwrap()).unwrap();
    let address = listen(theirs.server("controller.corp.example")).await;
    let error = connect(&address, member_config(&tls).unwrap(), name).await.unwrap_err();
    assert!(matches!(error, ConnectError::AnotherMesh { .. }), "{error}");
    let said = error.to_string();
    for part in [
        &*address,
        &ours.hash().to_hex()[..12],
        &theirs.hash().to_hex()[..12],
        "controller of corp.example",
    ] {
        assert!(said.contains(part), "{part} in {said}");
    }
}

#[tokio::test]
async fn nobody_listening_is_named_with_the_address() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let config = joining_config(&PinnedCa::new([0; 32])).unwrap();
    let name = ServerName::try_from("controller").unwrap();
    let error = connect(&address, config, name).await.unwrap_err();
    assert!(matches!(error, ConnectError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains(&address), "{error}");
}
