//! Certificates by ACME (RFC 8555): asked for, and renewed when a third of their time is left.
//!
//! ```text
//!  agent ── order ──▶ authority ── TLS, "acme-tls/1" ──▶ the gateway's door: the answer (RFC 8737)
//!        ◀─ certificate ──
//! ```
//!
//! What comes of it are files in the state directory, which the gateway reads like any others:
//!
//! ```text
//!  DIR/acme/                0700
//!    account-HASH.json      who this agent is to one authority
//!    HOST-HASH.pem          key and chain, in one file because they change together
//! ```
//!
//! The challenge by TLS needs no port but the gateway's own, and nothing of its routes.

use std::collections::HashMap;
use std::fs;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, anyhow, bail};
use bytes::Bytes;
use http::header::HOST;
use http::{Request, Response, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use instant_acme::{
    Account, AccountCredentials, AuthorizationStatus, BodyWrapper, BytesResponse, ChallengeType,
    HttpClient, Identifier, NewAccount, NewOrder, OrderStatus, RetryPolicy,
};
use isthmus_model::Snapshot;
use isthmus_model::edge::{Acme, Certificate, CertificateFiles, Listener};
use isthmus_proxy::ProxySnapshot;
use rcgen::{CertificateParams, CustomExtension, KeyPair};
use rustls::crypto::aws_lc_rs;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use zeroize::Zeroizing;

use super::{AgentServices, files};
use crate::state_dir;

/// ALPN protocol of a challenge (RFC 8737 section 6.2).
const PROTOCOL: &[u8] = b"acme-tls/1";
/// A chain with its key is smaller.
const ROOM: usize = 16 << 10;
/// For one answer of the authority, and for a whole order.
const PATIENCE: Duration = Duration::from_secs(30);
const ORDER: Duration = Duration::from_secs(180);
/// Between two looks at what is due.
const LOOK: Duration = Duration::from_secs(3);
/// After a first failure; each next one waits three times longer. Authorities count failures.
const PAUSE: Duration = Duration::from_secs(30);
const LONGEST_PAUSE: Duration = Duration::from_secs(6 * 3600);
/// No answer of an authority has more.
const MOST_BYTES: usize = 1 << 20;

/// A wanted certificate, and its names.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wanted {
    acme: Acme,
    hosts: Vec<String>,
    file: PathBuf,
}

/// Recent outcome.
#[derive(Debug)]
struct Failure {
    pause: Duration,
    again: Instant,
}

/// The certificate's file in this folder, and its key's: they are one.
pub(super) fn files_of(folder: &Path, acme: &Acme, listener: &Listener) -> CertificateFiles {
    let hosts = names(listener);
    let mut hash = blake3::Hasher::new();
    for part in hosts.iter().map(String::as_str).chain([&*acme.directory]) {
        hash.update(part.as_bytes()).update(b"\n");
    }
    let hash = hash.finalize().to_hex();
    // For people; a name is too long for a file's, and whoever wrote it may be wrong.
    let is_plain = |it: &char| it.is_ascii_alphanumeric() || matches!(it, '.' | '-');
    let first: String =
        hosts.iter().take(1).flat_map(|it| it.chars()).filter(is_plain).take(63).collect();
    let file = folder.join(format!("{first}-{}.pem", &hash[..16]));
    CertificateFiles { certificate: file.clone(), key: file }
}

fn names(listener: &Listener) -> Vec<String> {
    listener.hosts.iter().map(ToString::to_string).collect()
}

/// Certificates that the gateways of this host want.
fn wanted(folder: &Path, snapshot: &Snapshot) -> Vec<Wanted> {
    let gateways = snapshot.local_services().filter_map(|(_, service, _)| service.gateway());
    let listeners = gateways.flat_map(|gateway| &gateway.listeners);
    let mut wanted: Vec<Wanted> = Vec::new();
    for listener in listeners {
        let Some(Certificate::Acme(acme)) = listener.tls.as_ref().map(|tls| &tls.certificate)
        else {
            continue;
        };
        let file = files_of(folder, acme, listener).certificate;
        let one = Wanted { acme: acme.clone(), hosts: names(listener), file };
        if !wanted.contains(&one) {
            wanted.push(one);
        }
    }
    wanted
}

/// Orders what is due, one after the other, until it is dropped.
pub(super) async fn run(
    services: Arc<AgentServices>,
    mut views: watch::Receiver<Arc<ProxySnapshot>>,
) {
    let mut failures: HashMap<PathBuf, Failure> = HashMap::new();
    loop {
        let snapshot = Arc::clone(&views.borrow_and_update().snapshot);
        let wanted = wanted(&services.folder, &snapshot);
        failures.retain(|file, _| wanted.iter().any(|it| it.file == *file));
        services.retain_orders(|file| wanted.iter().any(|it| it.file == *file));
        for one in &wanted {
            let waits = failures.get(&one.file).is_some_and(|it| Instant::now() < it.again);
            if !waits && is_due(&one.file) {
                attempt(&services, one, &mut failures).await;
            }
        }
        tokio::select! {
            () = sleep(LOOK) => {}
            changed = views.changed() => if changed.is_err() {
                return;
            }
        }
    }
}

/// Whether there is no usable certificate, or less than a third of its time is left.
fn is_due(file: &Path) -> bool {
    let Ok((from, until)) = files::validity(file) else { return true };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |it| it.as_secs());
    i64::try_from(now).unwrap_or(i64::MAX) >= until - (until - from) / 3
}

async fn attempt(services: &AgentServices, one: &Wanted, failures: &mut HashMap<PathBuf, Failure>) {
    let directory = &one.acme.directory;
    services.note_order(&one.file, format!("its certificate is being ordered from {directory}"));
    let ordered = timeout(ORDER, order(services, one)).await;
    services.challenges.write().clear();
    match ordered.map_err(|_| anyhow!("it took longer than {ORDER:?}")).flatten() {
        Ok(()) => {
            failures.remove(&one.file);
            services.retain_orders(|file| file != one.file);
            tracing::info!(hosts = ?one.hosts, %directory, "got a certificate");
        }
        Err(error) => {
            let before = failures.get(&one.file).map(|it| it.pause * 3);
            let pause = before.unwrap_or(PAUSE).min(LONGEST_PAUSE);
            let again = Instant::now() + pause;
            failures.insert(one.file.clone(), Failure { pause, again });
            let minutes = pause.as_secs().div_ceil(60);
            let problem = format!(
                "{directory} gave no certificate: {error:#}; the next try is in {minutes} min"
            );
            tracing::error!(hosts = ?one.hosts, "{problem}");
            services.note_order(&one.file, problem);
        }
    }
}

async fn order(services: &AgentServices, one: &Wanted) -> anyhow::Result<()> {
    state_dir::make_directory(&services.folder)
        .with_context(|| format!("Failed to make {}", services.folder.display()))?;
    check_room(&services.folder)?;
    let account = account(&services.folder, &one.acme).await?;
    let identifiers: Vec<_> = one.hosts.iter().cloned().map(Identifier::Dns).collect();
    let mut order = account.new_order(&NewOrder::new(&identifiers)).await?;
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization?;
        match authorization.status {
            AuthorizationStatus::Valid => continue,
            AuthorizationStatus::Pending => {}
            AuthorizationStatus::Invalid
            | AuthorizationStatus::Revoked
            | AuthorizationStatus::Expired
            | AuthorizationStatus::Deactivated => {
                bail!("it doesn't authorise us ({:?})", authorization.status)
            }
        }
        let mut challenge = authorization
            .challenge(ChallengeType::TlsAlpn01)
            .context("it doesn't offer the challenge tls-alpn-01")?;
        let name = challenge.identifier().to_string();
        let answer = answer(&name, challenge.key_authorization().digest().as_ref())?;
        services.challenges.write().insert(name, answer);
        challenge.set_ready().await?;
    }
    let patience = RetryPolicy::new().timeout(ORDER);
    match order.poll_ready(&patience).await? {
        OrderStatus::Ready => {}
        other @ (OrderStatus::Pending
        | OrderStatus::Processing
        | OrderStatus::Valid
        | OrderStatus::Invalid) => return Err(refusal(&mut order, other).await),
    }
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(one.hosts.clone())?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    order.finalize_csr(params.serialize_request(&key)?.der()).await?;
    let chain = order.poll_certificate(&patience).await?;
    let text = Zeroizing::new(format!("{}{chain}", *Zeroizing::new(key.serialize_pem())));
    state_dir::replace(&one.file, text.as_bytes())
        .with_context(|| format!("Failed to write {}", one.file.display()))
}

/// Authorities give only so many certificates: none is asked for that couldn't be kept.
fn check_room(folder: &Path) -> anyhow::Result<()> {
    let probe = folder.join("room");
    state_dir::replace(&probe, &[0; ROOM])
        .and_then(|()| fs::remove_file(&probe))
        .with_context(|| format!("{} has no room for a certificate", folder.display()))
}

/// The authority's error about a name, which the order itself doesn't contain.
async fn refusal(order: &mut instant_acme::Order, status: OrderStatus) -> anyhow::Error {
    let mut authorizations = order.authorizations();
    while let Some(Ok(authorization)) = authorizations.next().await {
        for challenge in &authorization.challenges {
            if let Some(problem) = &challenge.error {
                return anyhow!("{}: {problem}", authorization.identifier());
            }
        }
    }
    anyhow!("the order is {status:?}")
}

/// The account that was used before, or a new one.
async fn account(folder: &Path, acme: &Acme) -> anyhow::Result<Account> {
    let client = || -> anyhow::Result<Box<dyn HttpClient>> {
        Ok(Box::new(Client { tls: files::trusting(acme.ca.as_deref())? }))
    };
    let owner = [&*acme.directory, acme.email.as_deref().unwrap_or_default()].join("\n");
    let hash = blake3::hash(owner.as_bytes()).to_hex();
    let file = folder.join(format!("account-{}.json", &hash[..16]));
    match fs::read(&file).map(Zeroizing::new) {
        Ok(kept) => {
            let credentials: AccountCredentials = serde_json::from_slice(&kept)
                .with_context(|| format!("{} is damaged: remove it", file.display()))?;
            let builder = Account::builder_with_http(client()?);
            return Ok(builder.from_credentials(credentials).await?);
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => {
            return Err(error).with_context(|| format!("Failed to read {}", file.display()));
        }
    }
    let contact = acme.email.as_ref().map(|email| format!("mailto:{email}"));
    let contact: Vec<&str> = contact.as_deref().into_iter().collect();
    let new = NewAccount {
        contact: &contact,
        terms_of_service_agreed: true,
        only_return_existing: false,
    };
    let builder = Account::builder_with_http(client()?);
    let (account, credentials) = builder.create(&new, acme.directory.to_string(), None).await?;
    let kept = Zeroizing::new(serde_json::to_vec(&credentials)?);
    state_dir::replace(&file, &kept)
        .with_context(|| format!("Failed to write {}", file.display()))?;
    Ok(account)
}

/// TLS that proves to the authority that we answer for a name (RFC 8737 section 3).
fn answer(name: &str, digest: &[u8]) -> anyhow::Result<Arc<ServerConfig>> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new([name.to_owned()])?;
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let certificate = params.self_signed(&key)?;
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let signer = aws_lc_rs::sign::any_supported_type(&key)?;
    let certified = CertifiedKey::new(vec![certificate.der().clone()], signer);
    let builder = ServerConfig::builder_with_provider(files::provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth();
    let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    Ok(Arc::new(config))
}

/// HTTP as an authority needs it: few requests, one after the other.
struct Client {
    tls: Arc<ClientConfig>,
}

impl HttpClient for Client {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, instant_acme::Error>> + Send>> {
        let tls = Arc::clone(&self.tls);
        Box::pin(async move {
            let asked = timeout(PATIENCE, ask(tls, request)).await;
            let answer = asked.map_err(|_| anyhow!("no answer in {PATIENCE:?}")).flatten();
            answer
                .map(BytesResponse::from)
                .map_err(|error| instant_acme::Error::Other(error.into()))
        })
    }
}

async fn ask(
    tls: Arc<ClientConfig>,
    request: Request<BodyWrapper<Bytes>>,
) -> anyhow::Result<Response<Full<Bytes>>> {
    let (mut parts, body) = request.into_parts();
    let authority = parts.uri.authority().context("a URL without a host")?.clone();
    let host = authority.host().trim_matches(['[', ']']).to_owned();
    let stream = TcpStream::connect((host.as_str(), authority.port_u16().unwrap_or(443))).await?;
    let stream = TlsConnector::from(tls).connect(ServerName::try_from(host)?, stream).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    parts.uri = path.parse::<Uri>()?;
    parts.headers.insert(HOST, authority.as_str().parse()?);
    let exchange = async {
        let response = sender.send_request(Request::from_parts(parts, body)).await?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, MOST_BYTES).collect().await;
        let body = body.map_err(|error| anyhow!("its answer broke off: {error}"))?;
        Ok(Response::from_parts(head, Full::new(body.to_bytes())))
    };
    tokio::pin!(exchange);
    tokio::select! {
        answered = &mut exchange => answered,
        ended = connection => {
            ended?;
            exchange.await
        }
    }
}

#[cfg(test)]
mod tests {
    use isthmus_model::route::HostMatch;

    use super::*;

    fn listener(hosts: &[&str]) -> Listener {
        Listener {
            port: 443,
            hosts: hosts.iter().map(|host| HostMatch::Exact((*host).into())).collect(),
            tls: None,
            https_redirect: false,
        }
    }

    #[test]
    fn no_certificate_is_asked_for_that_could_not_be_kept() {
        let folder = tempfile::tempdir().unwrap();
        check_room(folder.path()).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        // A folder where the file would go: refused, also for root.
        fs::create_dir(folder.path().join("room.new")).unwrap();
        let error = check_room(folder.path()).unwrap_err();
        assert!(error.to_string().contains("no room"), "{error}");
    }

    #[test]
    fn a_file_is_for_its_names_and_its_authority() {
        let acme = |directory: &str| Acme { directory: directory.into(), email: None, ca: None };
        let folder = Path::new("/s/acme");
        let of = |directory, hosts: &[&str]| {
            files_of(folder, &acme(directory), &listener(hosts)).certificate
        };
        let one = of("https://a/", &["shop.example", "www.example"]);
        assert!(one.to_str().unwrap().starts_with("/s/acme/shop.example-"), "{}", one.display());
        assert_eq!(one, of("https://a/", &["shop.example", "www.example"]));
        assert_ne!(one, of("https://b/", &["shop.example", "www.example"]));
        assert_ne!(one, of("https://a/", &["shop.example"]));
        for name in ["../../etc/passwd", &"a".repeat(253), ""] {
            let file = of("https://a/", &[name]);
            assert_eq!(file.parent(), Some(folder), "{}", file.display());
            assert!(file.file_name().is_some_and(|it| it.len() < 100), "{}", file.display());
        }
    }

    #[test]
    fn a_certificate_is_due_when_a_third_of_its_time_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("c.pem");
        assert!(is_due(&file), "there is none");
        let now =
            i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()).unwrap();
        for (age, left, due) in
            [(100, 9000, false), (6000, 3200, false), (6000, 2900, true), (9000, -1, true)]
        {
            let mut params = CertificateParams::new(["shop.example".to_owned()]).unwrap();
            let at = |seconds: i64| {
                let time = UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap());
                time.into()
            };
            (params.not_before, params.not_after) = (at(now - age), at(now + left));
            let key = KeyPair::generate().unwrap();
            fs::write(&file, params.self_signed(&key).unwrap().pem()).unwrap();
            assert_eq!(is_due(&file), due, "{age} {left}");
        }
    }
}
