//! A controller on loopback, and who talks to it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use isthmus_controller::{Init, Settings, init, serve};
use isthmus_model::Capability;
use isthmus_model::token::Token;
use isthmus_proto::v1;
use isthmus_proto::v1::admin_client::AdminClient;
use isthmus_proto::v1::agent_message::Body as Say;
use isthmus_proto::v1::controller_message::Body as Heard;
use isthmus_proto::v1::join_client::JoinClient;
use isthmus_proto::v1::sync_client::SyncClient;
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};

const PATIENCE: Duration = Duration::from_secs(20);

/// A running controller.
pub(crate) struct Controller {
    pub(crate) address: SocketAddr,
    folder: TempDir,
    certificate_lifetime: Option<Duration>,
    /// Of operators who are added or renewed.
    pub(crate) operator_lifetime: Option<Duration>,
    stop: Option<oneshot::Sender<()>>,
    serving: Option<JoinHandle<anyhow::Result<()>>>,
}

/// A certificate and its key.
#[derive(Clone)]
pub(crate) struct Identity {
    pub(crate) chain: Vec<Vec<u8>>,
    pub(crate) key: Vec<u8>,
}

/// What a joined host has.
#[derive(Clone)]
pub(crate) struct Joined {
    pub(crate) id: u32,
    pub(crate) name: String,
    pub(crate) identity: Identity,
}

/// An agent's stream.
pub(crate) struct Agent {
    say: mpsc::Sender<v1::AgentMessage>,
    hear: Streaming<v1::ControllerMessage>,
    /// How it was greeted.
    pub(crate) welcome: Option<v1::Welcome>,
    /// What it knows, by key.
    pub(crate) resources: BTreeMap<String, v1::Resource>,
    pub(crate) revision: u64,
    /// Of the last delta.
    pub(crate) epoch: u64,
}

impl Controller {
    pub(crate) async fn start() -> Self {
        Self::start_with(None).await
    }

    /// Its hosts' certificates live so long.
    pub(crate) async fn start_with(certificate_lifetime: Option<Duration>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let folder = tempfile::tempdir().unwrap();
        init(Init {
            state_dir: folder.path().join("state"),
            name: "corp".parse().unwrap(),
            trust_domain: "corp.example".parse().unwrap(),
            addresses: vec![address.to_string()],
        })
        .unwrap();
        let mut controller = Self {
            address,
            folder,
            certificate_lifetime,
            operator_lifetime: None,
            stop: None,
            serving: None,
        };
        controller.serve(listener);
        controller
    }

    fn serve(&mut self, listener: TcpListener) {
        let mut settings = Settings::new(self.state());
        if let Some(lifetime) = self.certificate_lifetime {
            settings.certificate_lifetime = lifetime;
        }
        if let Some(lifetime) = self.operator_lifetime {
            settings.operator_lifetime = lifetime;
        }
        let (stop, stopped) = oneshot::channel::<()>();
        let stopped = async { drop(stopped.await) };
        self.stop = Some(stop);
        self.serving = Some(tokio::spawn(serve(settings, listener, stopped)));
    }

    /// Stops it and starts it on what it has stored.
    pub(crate) async fn restart(&mut self) {
        self.restart_after(|_| ()).await;
    }

    /// Likewise, with something done to its state meanwhile.
    pub(crate) async fn restart_after(&mut self, meanwhile: impl FnOnce(&Path)) {
        drop(self.stop.take());
        self.serving.take().unwrap().await.unwrap().unwrap();
        // Connections that were cut short let go of the store in their own time.
        eventually(async || isthmus_controller::store::Redb::open(&self.state()).is_ok()).await;
        meanwhile(&self.state());
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.serve(listener);
    }

    pub(crate) fn state(&self) -> std::path::PathBuf {
        self.folder.path().join("state")
    }

    /// A connection as somebody, or as nobody.
    pub(crate) async fn channel(&self, identity: Option<&Identity>) -> Channel {
        self.try_channel(client_config(&self.state().join("ca.pem"), identity)).await.unwrap()
    }

    pub(crate) async fn try_channel(
        &self,
        config: ClientConfig,
    ) -> Result<Channel, tonic::transport::Error> {
        let (address, connector) = (self.address, TlsConnector::from(Arc::new(config)));
        Endpoint::from_static("http://controller.corp.example")
            .connect_with_connector(tower::service_fn(move |_| {
                let connector = connector.clone();
                async move {
                    let stream = TcpStream::connect(address).await?;
                    stream.set_nodelay(true)?;
                    let name = ServerName::try_from("controller.corp.example").unwrap();
                    connector.connect(name, stream).await.map(TokioIo::new)
                }
            }))
            .await
    }

    pub(crate) fn operator_identity(&self) -> Identity {
        let folder = self.state().join("operator");
        let certificate = CertificateDer::from_pem_file(folder.join("operator.pem")).unwrap();
        let key = PrivateKeyDer::from_pem_file(folder.join("operator.key")).unwrap();
        Identity { chain: vec![certificate.to_vec()], key: key.secret_der().to_vec() }
    }

    /// Credentials that the first operator makes for another.
    pub(crate) async fn add_operator(&self, name: &str, role: &str) -> Identity {
        let key = KeyPair::generate().unwrap();
        let request = v1::AddOperatorRequest {
            name: name.to_owned(),
            role: role.to_owned(),
            certificate_request: certificate_request(&key),
        };
        let added = self.admin().await.add_operator(request).await.unwrap().into_inner();
        Identity { chain: added.certificate.unwrap().chain, key: key.serialize_der() }
    }

    pub(crate) async fn admin_as(&self, identity: &Identity) -> AdminClient<Channel> {
        AdminClient::new(self.channel(Some(identity)).await)
    }

    /// What operators did, the latest first: who, what, whether it was done.
    pub(crate) async fn audit(&self) -> Vec<(String, String, bool)> {
        let audit = self.admin().await.read_audit(any()).await.unwrap().into_inner();
        audit.acts.into_iter().map(|act| (act.who, act.what, act.done)).collect()
    }

    pub(crate) async fn admin(&self) -> AdminClient<Channel> {
        AdminClient::new(self.channel(Some(&self.operator_identity())).await)
    }

    pub(crate) async fn token(&self, request: v1::CreateTokenRequest) -> Token {
        let created = self.admin().await.create_token(request).await.unwrap().into_inner();
        created.token.parse().unwrap()
    }

    /// Joins with a fresh token of its own.
    pub(crate) async fn join(&self, name: &str) -> Joined {
        let host = name.to_owned();
        let token = self.token(v1::CreateTokenRequest { host, ..Default::default() }).await;
        self.join_with(&token, name).await.unwrap()
    }

    pub(crate) async fn join_with(&self, token: &Token, name: &str) -> Result<Joined, Status> {
        let (request, key) = join_request(token, name);
        self.join_by(request, &key).await
    }

    pub(crate) async fn join_by(
        &self,
        request: v1::JoinRequest,
        key: &KeyPair,
    ) -> Result<Joined, Status> {
        let name = request.host.clone();
        let mut client = JoinClient::new(self.channel(None).await);
        let response = client.join(request).await?.into_inner();
        let chain = response.certificate.unwrap().chain;
        let identity = Identity { chain, key: key.serialize_der() };
        Ok(Joined { id: response.host_id, name, identity })
    }

    /// The same host with a new certificate.
    pub(crate) async fn renew(&self, joined: &Joined) -> Result<Joined, Status> {
        let key = KeyPair::generate().unwrap();
        let request = v1::RenewRequest { certificate_request: certificate_request(&key) };
        let chain = self.sync(&joined.identity).await.renew(request).await?.into_inner().chain;
        let identity = Identity { chain, key: key.serialize_der() };
        Ok(Joined { identity, ..joined.clone() })
    }

    /// Applies one file; it must be good.
    pub(crate) async fn apply(&self, text: &str) -> v1::ApplyResponse {
        let applied = self.try_apply(text, false).await;
        assert!(applied.diagnostics.is_empty(), "{:?}", applied.diagnostics);
        assert!(applied.tests.iter().all(|test| test.passed), "{:?}", applied.tests);
        applied
    }

    pub(crate) async fn try_apply(&self, text: &str, dry_run: bool) -> v1::ApplyResponse {
        self.try_request(apply_request(text, dry_run)).await
    }

    pub(crate) async fn try_request(&self, request: v1::ApplyRequest) -> v1::ApplyResponse {
        self.admin().await.apply(request).await.unwrap().into_inner()
    }

    pub(crate) async fn status(&self) -> v1::MeshStatus {
        self.admin().await.read_status(v1::ReadStatusRequest {}).await.unwrap().into_inner()
    }

    pub(crate) async fn host(&self, name: &str) -> v1::HostStatus {
        let hosts = self.status().await.hosts;
        hosts.into_iter().find(|host| host.host.as_ref().unwrap().name == name).unwrap()
    }

    /// The rollout of a revision, once it is as wanted.
    pub(crate) async fn rollout(&self, revision: u64, wanted: impl Fn(&v1::Rollout) -> bool) {
        let request = v1::WatchRolloutRequest { revision };
        let mut rollouts = self.admin().await.watch_rollout(request).await.unwrap().into_inner();
        patiently(async {
            loop {
                let rollout = rollouts.message().await.unwrap().expect("the rollout goes on");
                if wanted(&rollout) {
                    return;
                }
            }
        })
        .await;
    }

    pub(crate) async fn sync(&self, identity: &Identity) -> SyncClient<Channel> {
        SyncClient::new(self.channel(Some(identity)).await)
    }

    /// A host's agent connects and says hello; it has yet to read the answer.
    pub(crate) async fn connect(&self, joined: &Joined) -> Agent {
        self.connect_again(joined, BTreeMap::new(), 0).await
    }

    pub(crate) async fn connect_again(
        &self,
        joined: &Joined,
        resources: BTreeMap<String, v1::Resource>,
        revision: u64,
    ) -> Agent {
        self.try_connect(joined, resources, revision, vec![]).await.unwrap()
    }

    /// As a run of its own.
    pub(crate) async fn try_connect(
        &self,
        joined: &Joined,
        resources: BTreeMap<String, v1::Resource>,
        revision: u64,
        instance: Vec<u8>,
    ) -> Result<Agent, Status> {
        let capabilities = Capability::ALL.map(|it| it.name().to_owned()).into();
        let hello = v1::Hello { revision, instance, capabilities, ..v1::Hello::default() };
        self.connect_saying(joined, resources, hello).await
    }

    /// Likewise, by a revision of an epoch.
    pub(crate) async fn connect_from(
        &self,
        joined: &Joined,
        resources: BTreeMap<String, v1::Resource>,
        revision: u64,
        epoch: u64,
    ) -> Result<Agent, Status> {
        let all = Capability::ALL.map(|it| it.name().to_owned());
        self.connect_able(joined, resources, revision, epoch, all.into()).await
    }

    /// An agent that understands only this.
    pub(crate) async fn connect_able(
        &self,
        joined: &Joined,
        resources: BTreeMap<String, v1::Resource>,
        revision: u64,
        epoch: u64,
        capabilities: Vec<String>,
    ) -> Result<Agent, Status> {
        let hello = v1::Hello { revision, epoch, capabilities, ..v1::Hello::default() };
        self.connect_saying(joined, resources, hello).await
    }

    async fn connect_saying(
        &self,
        joined: &Joined,
        resources: BTreeMap<String, v1::Resource>,
        hello: v1::Hello,
    ) -> Result<Agent, Status> {
        let (say, said) = mpsc::channel(16);
        let endpoints = v1::Endpoints { addresses: vec![format!("192.0.2.{}:51820", joined.id)] };
        let hello = v1::Hello { version: "1".to_owned(), endpoints: Some(endpoints), ..hello };
        let (revision, epoch) = (hello.revision, hello.epoch);
        say.send(v1::AgentMessage { body: Some(Say::Hello(hello)) }).await.unwrap();
        let mut client = self.sync(&joined.identity).await;
        let hear = client.stream(ReceiverStream::new(said)).await?.into_inner();
        Ok(Agent { say, hear, welcome: None, resources, revision, epoch })
    }
}

impl Agent {
    pub(crate) async fn say(&self, body: Say) {
        self.say.send(v1::AgentMessage { body: Some(body) }).await.unwrap();
    }

    /// The next message after the welcome.
    pub(crate) async fn hear(&mut self) -> Result<Option<Heard>, Status> {
        loop {
            let message = patiently(self.hear.message()).await?;
            match message.map(|message| message.body.expect("a body")) {
                Some(Heard::Welcome(welcome)) => self.welcome = Some(welcome),
                other => return Ok(other),
            }
        }
    }

    pub(crate) async fn delta(&mut self) -> v1::Delta {
        match self.hear().await {
            Ok(Some(Heard::Delta(delta))) => delta,
            other => panic!("no delta but {other:?}"),
        }
    }

    /// Takes the next delta and accepts it.
    pub(crate) async fn follow(&mut self) -> v1::Delta {
        let delta = self.delta().await;
        self.accept(&delta).await;
        delta
    }

    pub(crate) async fn accept(&mut self, delta: &v1::Delta) {
        if delta.base == 0 {
            self.resources.clear();
        } else {
            assert_eq!(delta.base, self.revision, "a delta builds on what the agent has");
        }
        delta.gone.iter().for_each(|key| drop(self.resources.remove(key)));
        for resource in &delta.changed {
            self.resources.insert(resource.key.clone(), resource.clone());
        }
        (self.revision, self.epoch) = (delta.revision, delta.epoch);
        self.say(Say::Accepted(v1::Accepted {
            revision: delta.revision,
            ..v1::Accepted::default()
        }))
        .await;
    }

    /// Follows until it knows what it should.
    pub(crate) async fn follow_until(&mut self, wanted: impl Fn(&Self) -> bool) {
        while !wanted(self) {
            self.follow().await;
        }
    }

    /// Follows until its own endpoints are known, which comes last after it connects.
    pub(crate) async fn settle(&mut self, controller: &Controller, name: &str) {
        let settled =
            |agent: &Self| agent.knows_host(name).is_some_and(|host| !host.endpoints.is_empty());
        self.follow_until(settled).await;
        eventually(async || {
            controller.host(name).await.revision == controller.status().await.revision
        })
        .await;
    }

    /// Follows up to a revision.
    pub(crate) async fn follow_to(&mut self, revision: u64) {
        self.follow_until(|agent| agent.revision >= revision).await;
    }

    pub(crate) fn knows_host(&self, name: &str) -> Option<&v1::Host> {
        self.resources.values().find_map(|resource| match &resource.body {
            Some(v1::resource::Body::Host(host)) if host.name == name => Some(host),
            _ => None,
        })
    }
}

/// For agents that hear only when a test lets them: they aren't asked about their routes.
pub(crate) fn apply_request(text: &str, dry_run: bool) -> v1::ApplyRequest {
    let file = v1::File { name: "mesh.toml".to_owned(), text: text.to_owned() };
    v1::ApplyRequest {
        files: vec![file],
        dry_run,
        despite_clashes: true,
        yes: true,
        ..v1::ApplyRequest::default()
    }
}

/// A join request with fresh keys.
pub(crate) fn join_request(token: &Token, name: &str) -> (v1::JoinRequest, KeyPair) {
    let key = KeyPair::generate().unwrap();
    let request = v1::JoinRequest {
        token_id: token.id.to_string(),
        token_secret: token.secret.to_vec(),
        host: name.to_owned(),
        public_key: random(),
        certificate_request: certificate_request(&key),
    };
    (request, key)
}

pub(crate) fn certificate_request(key: &KeyPair) -> Vec<u8> {
    CertificateParams::default().serialize_request(key).unwrap().der().to_vec()
}

pub(crate) fn random() -> Vec<u8> {
    let mut bytes = vec![0; 32];
    getrandom::fill(&mut bytes).unwrap();
    bytes
}

pub(crate) fn client_config(ca: &Path, identity: Option<&Identity>) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match identity {
        Some(Identity { chain, key }) => builder
            .with_client_auth_cert(
                chain.iter().cloned().map(CertificateDer::from).collect(),
                PrivateKeyDer::try_from(key.clone()).unwrap(),
            )
            .unwrap(),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

pub(crate) async fn patiently<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.expect("it happens in time")
}

/// Asks again and again.
pub(crate) async fn eventually(holds: impl AsyncFn() -> bool) {
    patiently(async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

/// A request that nothing but its type matters of.
pub(crate) fn any<T: Default>() -> Request<T> {
    Request::new(T::default())
}
