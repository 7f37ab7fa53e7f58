//! A mesh on loopback: service `web` on this host with an application behind it, and two callers.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Once};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use isthmus_model::{
    Action, Host, HostId, Mesh, MeshPrefix, Origin, Protocol, PublicKey, RequestMatch, Revision,
    Rule, Rules, Service, ServiceId, Snapshot, Subject,
};
use isthmus_policy::Policy;
use parking_lot::Mutex;
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::caller::context::Shared;
use crate::cluster::dial::Speaker;
use crate::config::limits::Limits;
use crate::serve::accept_until;
use crate::serve::gateway::GatewayIo;
use crate::serve::worker::{self, WorkerHandle};
use crate::{Metrics, MetricsSnapshot, ProxySnapshot};

/// The workload of `web` on this host.
pub(crate) const WEB: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 64, 1, 2));
/// A workload of `api` on another host.
pub(crate) const API: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 64, 2, 2));
/// A workload of `batch` on another host.
pub(crate) const BATCH: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 64, 2, 3));
/// In the mesh's range, but nobody's.
pub(crate) const NOBODY: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 64, 2, 99));

pub(crate) const SOON: Duration = Duration::from_secs(10);

pub(crate) type Body = BoxBody<Bytes, hyper::Error>;

/// A running proxy.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    pub(crate) metrics: Arc<Metrics>,
    application_port: u16,
    views: watch::Sender<Arc<ProxySnapshot>>,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<std::io::Result<()>>,
}

/// A running application, and the heads of the requests that reached it.
pub(crate) struct Application {
    pub(crate) port: u16,
    seen: Arc<Mutex<Vec<http::request::Parts>>>,
}

impl Proxy {
    pub(crate) fn start(application_port: u16, rules: Vec<Rule>) -> Self {
        Self::start_within(Limits::default(), application_port, rules)
    }

    pub(crate) fn start_within(limits: Limits, application_port: u16, rules: Vec<Rule>) -> Self {
        Self::serve(limits, WEB, application_port, view(application_port, rules))
    }

    /// A proxy that listens on this address.
    pub(crate) fn serve(
        limits: Limits,
        address: IpAddr,
        application_port: u16,
        first: Arc<ProxySnapshot>,
    ) -> Self {
        Self::serve_at_edge(limits, address, application_port, first, GatewayIo::nowhere())
    }

    /// Likewise, with an outside.
    pub(crate) fn serve_at_edge(
        limits: Limits,
        address: IpAddr,
        application_port: u16,
        first: Arc<ProxySnapshot>,
        edge: GatewayIo,
    ) -> Self {
        listen();
        // A service with the proxy's own port is refused.
        let listener =
            std::iter::repeat_with(|| std::net::TcpListener::bind((address, 0)).unwrap())
                .find(|listener| listener.local_addr().unwrap().port() != application_port)
                .unwrap();
        let address = listener.local_addr().unwrap();
        let metrics = Arc::new(Metrics::default());
        let (views, view) = watch::channel(first);
        let (stop, stopped) = oneshot::channel::<()>();
        let stopped = async {
            let _ = stopped.await;
        };
        let metrics_ = Arc::clone(&metrics);
        // On the test's own thread, where its log is.
        let task = tokio::spawn(async move {
            let shared = Arc::new(Shared::new(limits, view, metrics_, bind, edge.host_services));
            let (door, arrivals) = WorkerHandle::new();
            let working = tokio::spawn(worker::run(Arc::clone(&shared), arrivals));
            accept_until(stopped, vec![listener], edge.visitors, &shared, vec![door]).await?;
            Ok(working.await?)
        });
        Self { address, metrics, application_port, views, stop: Some(stop), task }
    }

    /// A new revision with these rules.
    pub(crate) fn apply(&self, rules: Vec<Rule>) {
        self.views.send_replace(view(self.application_port, rules));
    }

    pub(crate) fn view(&self) -> Arc<ProxySnapshot> {
        Arc::clone(&self.views.borrow())
    }

    pub(crate) fn switch(&self, view: Arc<ProxySnapshot>) {
        self.views.send_replace(view);
    }

    /// The same view, but for a change of its snapshot.
    pub(crate) fn edited(&self, change: impl FnOnce(&mut Snapshot)) -> ProxySnapshot {
        let mut snapshot = Snapshot::clone(&self.view().snapshot);
        change(&mut snapshot);
        let policy = Policy::for_snapshot(&snapshot);
        ProxySnapshot::new(Arc::new(snapshot), Arc::new(policy))
    }

    pub(crate) fn begin_stop(&mut self) {
        let _ = self.stop.take().unwrap().send(());
    }

    pub(crate) async fn stopped(self) {
        timeout(SOON, self.task).await.unwrap().unwrap().unwrap();
    }

    pub(crate) async fn connect(&self, from: IpAddr) -> TcpStream {
        connect(from, self.address).await
    }

    /// Sends bytes on a connection of their own, and gives everything that comes back.
    pub(crate) async fn exchange(&self, from: IpAddr, bytes: impl AsRef<[u8]>) -> String {
        exchange(from, self.address, bytes).await
    }

    pub(crate) async fn http1(&self, from: IpAddr) -> http1::SendRequest<Body> {
        let io = TokioIo::new(self.connect(from).await);
        let (sender, connection) = http1::handshake(io).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        sender
    }

    pub(crate) async fn http2(&self, from: IpAddr) -> http2::SendRequest<Body> {
        let io = TokioIo::new(self.connect(from).await);
        let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
        tokio::spawn(connection);
        sender
    }

    /// Waits until the metrics are as wanted: requests are counted when they end, a moment after
    /// their last byte.
    pub(crate) async fn metrics_become(&self, wanted: impl Fn(&MetricsSnapshot) -> bool) {
        let reached = timeout(SOON, async {
            while !wanted(&self.metrics.snapshot()) {
                tokio::task::yield_now().await;
            }
        });
        assert!(reached.await.is_ok(), "{:?}", self.metrics.snapshot());
    }
}

impl Application {
    /// Answers each request with what `answer` makes of it.
    pub(crate) async fn start<A, F>(answer: A) -> Self
    where
        A: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        Self::start_at(WEB, answer).await
    }

    async fn start_at<A, F>(address: IpAddr, answer: A) -> Self
    where
        A: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        Self::start_on(SocketAddr::new(address, 0), answer).await
    }

    pub(crate) async fn start_on<A, F>(address: SocketAddr, answer: A) -> Self
    where
        A: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        let listener = TcpListener::bind(address).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::<Mutex<Vec<http::request::Parts>>>::default();
        let record = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((stream, peer)) = listener.accept().await {
                let (record, answer) = (Arc::clone(&record), answer.clone());
                let service = service_fn(move |mut request: Request<Incoming>| {
                    let upgrade = hyper::upgrade::on(&mut request);
                    let (mut head, body) = request.into_parts();
                    head.extensions.insert(peer);
                    record.lock().push(head.clone());
                    let mut request = Request::from_parts(head, body);
                    request.extensions_mut().insert(upgrade);
                    let answering = answer(request);
                    async move { Ok::<_, hyper::Error>(answering.await) }
                });
                tokio::spawn(async move {
                    auto::Builder::new(TokioExecutor::new())
                        .serve_connection_with_upgrades(TokioIo::new(stream), service)
                        .await
                });
            }
        });
        Self { port, seen }
    }

    /// Answers everything with a short text.
    pub(crate) async fn hello() -> Self {
        Self::hello_at(WEB).await
    }

    pub(crate) async fn hello_at(address: IpAddr) -> Self {
        Self::start_at(address, |_| async { Response::new(full("hello")) }).await
    }

    pub(crate) fn seen(&self) -> Vec<http::request::Parts> {
        self.seen.lock().clone()
    }
}

/// Without a mark, which only root may set.
pub(crate) fn bind(speaker: Speaker) -> std::io::Result<std::net::TcpStream> {
    let source = SocketAddr::new(speaker.address(), 0);
    let socket = Socket::new(Domain::for_address(source), Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    if !source.ip().is_unspecified() {
        socket.bind(&source.into())?;
    }
    Ok(socket.into())
}

pub(crate) async fn connect(from: IpAddr, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((from, 0).into()).unwrap();
    socket.connect(to).await.unwrap()
}

pub(crate) async fn exchange(from: IpAddr, to: SocketAddr, bytes: impl AsRef<[u8]>) -> String {
    let mut stream = connect(from, to).await;
    // The proxy may refuse to hear it all.
    let _ = stream.write_all(bytes.as_ref()).await;
    read_to_end(&mut stream).await
}

pub(crate) fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).map_err(|never| match never {}).boxed()
}

pub(crate) fn get(path: &str) -> Request<Body> {
    request("GET", path)
}

/// A request that can be sent by either version.
pub(crate) fn request(method: &str, path: &str) -> Request<Body> {
    let request = Request::builder().method(method);
    request.uri(format!("http://web.prod.mesh.internal{path}")).body(full("")).unwrap()
}

/// The same, as HTTP/1 clients send it.
pub(crate) fn request1(method: &str, path: &str) -> Request<Body> {
    let request = Request::builder().method(method).uri(path);
    request.header("host", "web.prod.mesh.internal").body(full("")).unwrap()
}

pub(crate) async fn text(response: Response<Incoming>) -> String {
    let body = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(body.to_vec()).unwrap()
}

pub(crate) async fn read_to_end(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    // A reset after the answer is an end, too.
    let _ = timeout(SOON, stream.read_to_end(&mut bytes)).await.expect("the connection ends");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Reads until what came ends in `end`.
pub(crate) async fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut bytes = Vec::new();
    while !bytes.ends_with(end.as_bytes()) {
        let byte = timeout(SOON, stream.read_u8()).await.expect("more comes");
        bytes.push(byte.unwrap_or_else(|_| panic!("{:?}", String::from_utf8_lossy(&bytes))));
    }
    String::from_utf8(bytes).unwrap()
}

pub(crate) fn allow(name: &str, from: &str, http: &[(Option<&str>, Option<&str>)]) -> Rule {
    rule(Action::Allow, name, from, http)
}

pub(crate) fn deny(name: &str, from: &str, http: &[(Option<&str>, Option<&str>)]) -> Rule {
    rule(Action::Deny, name, from, http)
}

fn rule(action: Action, name: &str, from: &str, http: &[(Option<&str>, Option<&str>)]) -> Rule {
    let request = |(method, path): &(Option<&str>, Option<&str>)| RequestMatch {
        method: method.map(Into::into),
        path: path.map(Into::into),
        ..RequestMatch::default()
    };
    Rule {
        name: name.into(),
        action,
        from: vec![from.parse().unwrap()],
        to: vec![Subject::Service("web".parse().unwrap())],
        ports: Vec::new(),
        http: http.iter().map(request).collect(),
        sni: Vec::new(),
        audit: false,
        origin: Origin { file: "mesh.toml".into(), line: 7 },
    }
}

fn view(application_port: u16, rules: Vec<Rule>) -> Arc<ProxySnapshot> {
    let snapshot = Snapshot {
        revision: Revision(1),
        mesh: Mesh {
            name: "corp".parse().unwrap(),
            trust_domain: "corp.example".parse().unwrap(),
            prefix: MeshPrefix::new([0xfd, 1, 2, 3, 4, 5]).unwrap(),
            ipv4: "127.64.0.0/10".parse().unwrap(),
            virtual_ipv4: "127.64.0.0/24".parse().unwrap(),
        },
        local: HostId(1),
        hosts: [
            (HostId(1), host("app-1", "127.64.1.0/24")),
            (HostId(2), host("db-1", "127.64.2.0/24")),
        ]
        .into(),
        services: [
            (ServiceId(1), service("web", 1, application_port, Protocol::Http, (1, WEB))),
            (ServiceId(2), service("api", 2, 9, Protocol::Tcp, (2, API))),
            (ServiceId(3), service("batch", 3, 9, Protocol::Tcp, (2, BATCH))),
        ]
        .into(),
        devices: BTreeMap::new(),
        rules: Rules { default: Action::Deny, audit: false, audited: Vec::new(), rules },
        routes: Vec::new(),
        limits: Vec::new(),
    };
    let policy = Policy::for_snapshot(&snapshot);
    Arc::new(ProxySnapshot::new(Arc::new(snapshot), Arc::new(policy)))
}

pub(crate) fn host(name: &str, block: &str) -> Host {
    Host {
        name: name.parse().unwrap(),
        site: None,
        labels: BTreeMap::new(),
        public_key: PublicKey([0; 32]),
        former_key: None,
        endpoints: Vec::new(),
        ipv4_block: block.parse().unwrap(),
    }
}

fn service(
    name: &str,
    number: u8,
    port: u16,
    protocol: Protocol,
    (host, workload): (u32, IpAddr),
) -> Service {
    let IpAddr::V4(workload) = workload else { panic!("{workload} is no IPv4 address") };
    Service {
        name: name.parse().unwrap(),
        namespace: "prod".parse().unwrap(),
        port,
        protocol,
        more: Vec::new(),
        virtual_ipv4: Ipv4Addr::new(127, 64, 0, number),
        placements: [(HostId(host), workload)].into(),
        leaving: Default::default(),
        selectors: Vec::new(),
        balance: isthmus_model::Balance::default(),
        edge: None,
        application: isthmus_model::Application::default(),
        paths: isthmus_model::PathMode::default(),
        guard: isthmus_model::PortGuard::default(),
        aliases: Vec::new(),
    }
}

thread_local! {
    static LOG: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What is logged on this thread, which is where a test and all its tasks run.
///
/// The subscriber is everybody's: with one for each test, `tracing` would now and then remember of
/// another test's thread that nobody listens.
pub(crate) struct Logged;

impl Logged {
    pub(crate) fn start() -> Self {
        listen();
        LOG.with_borrow_mut(Vec::clear);
        Self
    }

    /// The access log's line about a path, once it is there.
    pub(crate) async fn line(&self, path: &str) -> String {
        let found = timeout(SOON, async {
            loop {
                if let Some(line) = self.find(path) {
                    return line;
                }
                tokio::task::yield_now().await;
            }
        });
        found.await.expect("the request is logged")
    }

    pub(crate) fn has(&self, path: &str) -> bool {
        self.find(path).is_some()
    }

    /// The line that says this, once it is there.
    pub(crate) async fn line_with(&self, text: &str) -> String {
        let found = timeout(SOON, async {
            loop {
                if let Some(line) = Self::search(text) {
                    return line;
                }
                tokio::task::yield_now().await;
            }
        });
        found.await.expect("it is logged")
    }

    fn find(&self, path: &str) -> Option<String> {
        Self::search(&format!("\"path\":\"{path}\""))
    }

    fn search(path: &str) -> Option<String> {
        let text = LOG.with_borrow(|log| String::from_utf8_lossy(log).into_owned());
        text.lines().find(|line| line.contains(path)).map(str::to_owned)
    }
}

fn listen() {
    static LISTENING: Once = Once::new();
    LISTENING.call_once(|| {
        let subscriber = tracing_subscriber::fmt().json().with_writer(|| Sink).finish();
        tracing::subscriber::set_global_default(subscriber).unwrap();
    });
}

struct Sink;

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        LOG.with_borrow_mut(|log| Write::write(log, bytes))
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
