//! The way to the applications, and to proxies of other hosts before them: connections, pooled for
//! each address, and for each caller that the proxy speaks for: whatever an application makes of bytes
//! that it can't place, it is never another caller's request.
//!
//! hyper-util's ready-made client pools by the request's authority, which is the caller's to choose
//! and must reach the application unchanged. So the pool is ours, on hyper's connections.

mod error;
pub(crate) mod idle;
pub(crate) mod progress;
pub(crate) mod reach;
pub(crate) mod replay;
pub(crate) mod request_body;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use http::header::HOST;
use http::{Request, Response, Version};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use isthmus_http::body::Incoming;
use isthmus_http::h1::client::{self, Failed, Server};
use isthmus_http::h1::{Conn, Keep};
use isthmus_http::h2::{Gather, Gathered};
use isthmus_http::io::Stream;
use isthmus_http::limits::UNSENT_BYTES;
use isthmus_model::{HostId, HttpVersion, Principal, ProxyProtocol, ServiceId};
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use self::idle::{Idle, PoolId};
use self::reach::Reach;
use self::request_body::RequestBody;
use crate::cluster::breaker::{Allowance, ConnectionPermit, Overflow};
use crate::cluster::dial::{Bind, Speaker, announce, connect_as};
use crate::cluster::silence::Silence;
use crate::cluster::windows::{ANSWER_BYTES, ANSWER_STREAM_BYTES};
use crate::config::host_services::HostServices;
use crate::config::listens::{Listens, Shown};
use crate::config::view::Map;

pub(crate) use self::error::{BackendError, Failure};

/// All that the proxy has connections to.
#[derive(Debug)]
pub(crate) struct Backends {
    connect_timeout: Duration,
    bind: Bind,
    host_services: Arc<dyn HostServices>,
    silence: Arc<Silence>,
    reach: Arc<Reach>,
    /// Apart from each other: those whose connections are counted, and those whose aren't.
    applications: Mutex<Map<(Target, bool), Arc<Application>>>,
    /// State shared by the pools of several callers.
    idle: Mutex<Map<SocketAddr, Weak<Idle>>>,
    pools: AtomicU64,
}

/// Target and source address of requests: callers that share a connection share an identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    /// None to an application of this host, and to the outside.
    pub(crate) source: Option<IpAddr>,
    /// What the application wants to be told of each connection, and about whom: such connections
    /// aren't shared with other callers.
    pub(crate) introduce: Option<(ProxyProtocol, IpAddr)>,
    /// The external service that stands for it, if it is outside of the mesh, and the
    /// [`HostServices::epoch`] that its connections are of.
    pub(crate) external: Option<(ServiceId, u64)>,
    /// The host whose proxy this is, if it is another's.
    pub(crate) host: Option<HostId>,
    /// For whom, where no source says it.
    pub(crate) caller: Option<Principal>,
    /// Whether a request's trailers are passed on by HTTP/1 (see [`Server::Application`]).
    pub(crate) trailers: bool,
    /// Other addresses at which an application of this host may listen.
    pub(crate) listens: Listens,
    /// As whom an application of this host sees the proxy, if not as the proxy.
    pub(crate) shown: Option<Shown>,
}

/// Protocol of an application.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wire {
    Http1,
    /// HTTP/2 with prior knowledge, which gRPC needs.
    Http2,
}

impl Wire {
    /// HTTP version for an application. Upgrades are HTTP/1.1's.
    pub(crate) const fn wanted_by(self, version: HttpVersion, is_upgrade: bool) -> Self {
        match version {
            HttpVersion::Auto => self,
            HttpVersion::Http2 if !is_upgrade => Self::Http2,
            HttpVersion::Http1 | HttpVersion::Http2 => Self::Http1,
        }
    }

    pub(crate) const fn version(self) -> Version {
        match self {
            Self::Http1 => Version::HTTP_11,
            Self::Http2 => Version::HTTP_2,
        }
    }
}

impl Target {
    /// Kind of server there.
    const fn server(&self) -> Server {
        match self.source {
            Some(_) => Server::Proxy,
            None => Server::Application { takes_trailers: self.trailers },
        }
    }
}

/// One caller's connections to one application.
#[derive(Debug)]
struct Application {
    id: PoolId,
    target: Target,
    connect_timeout: Duration,
    bind: Bind,
    host_services: Arc<dyn HostServices>,
    silence: Arc<Silence>,
    reach: Arc<Reach>,
    idle: Arc<Idle>,
    /// One connection carries all; the lock is held while it is being made.
    multiplexed: tokio::sync::Mutex<Option<http2::SendRequest<RequestBody>>>,
    /// Connections, where they are counted.
    open: Arc<AtomicUsize>,
    /// Requests that wait for one of them to be free, and what tells them.
    waiting: AtomicUsize,
    returned: Notify,
}

impl Backends {
    pub(crate) fn new(
        connect_timeout: Duration,
        bind: Bind,
        host_services: Arc<dyn HostServices>,
        silence: Arc<Silence>,
    ) -> Self {
        Self {
            connect_timeout,
            bind,
            host_services,
            silence,
            reach: Arc::default(),
            applications: Mutex::default(),
            idle: Mutex::default(),
            pools: AtomicU64::new(0),
        }
    }

    /// Another one like it, with nothing open yet.
    pub(crate) fn without_connections(&self) -> Self {
        let silence = Arc::clone(&self.silence);
        let new =
            Self::new(self.connect_timeout, self.bind, Arc::clone(&self.host_services), silence);
        Self { reach: Arc::clone(&self.reach), ..new }
    }

    /// Known listening addresses of applications.
    pub(crate) fn reach(&self) -> &Reach {
        &self.reach
    }

    /// Factory for sockets bound to an address.
    pub(crate) const fn bind(&self) -> Bind {
        self.bind
    }

    /// Sends a request, and gives its answer's head. `allowance` says what there may be of connections,
    /// if they are counted. All that is large or rare is boxed here, or each request would take that room
    /// on every level that waits for it.
    pub(crate) async fn send(
        &self,
        target: Target,
        wire: Wire,
        request: Box<Request<RequestBody>>,
        allowance: Option<Allowance<'_>>,
    ) -> Result<Response<Incoming>, Failure> {
        let application = self.application(target, allowance.is_some());
        match wire {
            Wire::Http1 => application.send_http1(request, allowance).await,
            Wire::Http2 => application.send_http2(request, allowance).await,
        }
    }

    /// Closes what nobody used for a while.
    pub(crate) fn sweep(&self) {
        self.applications.lock().retain(|_, application| {
            // Whoever is sending holds another reference.
            application.idle.sweep(application.id) || Arc::strong_count(application) > 1
        });
        self.idle.lock().retain(|_, idle| idle.strong_count() > 0);
    }

    fn application(&self, target: Target, is_counted: bool) -> Arc<Application> {
        let make = || {
            Arc::new(Application {
                id: PoolId(self.pools.fetch_add(1, Ordering::Relaxed)),
                target,
                connect_timeout: self.connect_timeout,
                bind: self.bind,
                host_services: Arc::clone(&self.host_services),
                silence: Arc::clone(&self.silence),
                reach: Arc::clone(&self.reach),
                idle: self.idle_of(&target),
                multiplexed: tokio::sync::Mutex::default(),
                open: Arc::default(),
                waiting: AtomicUsize::new(0),
                returned: Notify::new(),
            })
        };
        Arc::clone(self.applications.lock().entry((target, is_counted)).or_insert_with(make))
    }

    /// Idle connections of a pool, grouped by application.
    fn idle_of(&self, target: &Target) -> Arc<Idle> {
        if target.source.is_some() {
            return Arc::default();
        }
        let mut known = self.idle.lock();
        if let Some(idle) = known.get(&target.address).and_then(Weak::upgrade) {
            return idle;
        }
        let idle = Arc::default();
        known.insert(target.address, Arc::downgrade(&idle));
        idle
    }
}

impl Application {
    async fn send_http1(
        self: &Arc<Self>,
        mut request: Box<Request<RequestBody>>,
        allowance: Option<Allowance<'_>>,
    ) -> Result<Response<Incoming>, Failure> {
        loop {
            let (link, reused) = match self.idle.take(self.id) {
                Some(link) => (link, true),
                None => {
                    let began = Instant::now();
                    let opened = Box::pin(self.open(allowance)).await;
                    request.body().progress().connected(began.elapsed());
                    match opened {
                        Ok(opened) => opened,
                        Err(error) => return Err(Failure::unsent(error, request)),
                    }
                }
            };
            let keeper = Arc::clone(self) as Arc<dyn Keep<Stream>>;
            let begun = Instant::now();
            let exchanged = tokio::select! {
                biased;
                done = client::exchange(link, keeper, request, self.target.server()) => done,
                since = self.silence.lose(self.target.host, begun) => return Err(silent(since)),
            };
            match exchanged {
                Ok(response) => return Ok(response),
                // The application closed it meanwhile.
                Err(Failed { unsent: Some(same), .. } | Failed { repeatable: Some(same), .. })
                    if reused =>
                {
                    request = same;
                }
                Err(Failed { error, unsent, .. }) => {
                    return Err(Failure { error: BackendError::Broken(error), unsent });
                }
            }
        }
    }

    /// A new connection; or, once there are as many as there may be, one that others have done with.
    /// Says, too, whether it was used before.
    async fn open(
        &self,
        allowance: Option<Allowance<'_>>,
    ) -> Result<(Arc<Conn<Stream>>, bool), BackendError> {
        self.idle.make_room(self.id);
        let Some(allowance) = allowance else {
            return Ok((Arc::new(Conn::new(self.connect(false).await?)), false));
        };
        let _waiting = allowance.wait().ok_or(BackendError::Overloaded(Overflow::Pending))?;
        let pass = match allowance.open(&self.open) {
            Some(pass) => pass,
            None => match timeout(self.connect_timeout, self.turn(allowance)).await {
                Ok(Turn::Returned(link)) => return Ok((link, true)),
                Ok(Turn::Opens(pass)) => pass,
                Err(_) => return Err(BackendError::Overloaded(Overflow::Connections)),
            },
        };
        Ok((Arc::new(Conn::holding(self.connect(false).await?, Some(Box::new(pass)))), false))
    }

    /// Waits until a connection comes back, or another one may be made.
    async fn turn(&self, allowance: Allowance<'_>) -> Turn {
        let _waits = Waits::begin(&self.waiting);
        loop {
            // Listens before it looks, so that nothing happens in between.
            let (mut returned, mut freed) =
                (pin!(self.returned.notified()), pin!(allowance.counts.freed()));
            returned.as_mut().enable();
            freed.as_mut().enable();
            if let Some(link) = self.idle.take(self.id) {
                return Turn::Returned(link);
            }
            if let Some(pass) = allowance.open(&self.open) {
                return Turn::Opens(pass);
            }
            // Others that need theirs no longer shall not keep this one waiting.
            if self.idle.take_over(self.id) {
                continue;
            }
            tokio::select! {
                () = returned => {}
                () = freed => {}
            }
        }
    }

    async fn send_http2(
        &self,
        mut request: Box<Request<RequestBody>>,
        allowance: Option<Allowance<'_>>,
    ) -> Result<Response<Incoming>, Failure> {
        // The URI's authority says it; nginx refuses a request that has both.
        request.headers_mut().remove(HOST);
        // Waiting for another request's connection to be made is waiting for it, too.
        let began = Instant::now();
        let connected = self.multiplexed(allowance).await;
        request.body().progress().connected(began.elapsed());
        let mut sender = match connected {
            Ok(sender) => sender,
            Err(error) => return Err(Failure::unsent(error, request)),
        };
        let response = tokio::select! {
            biased;
            sent = sender.try_send_request(*request) => sent.map_err(Failure::of_sending)?,
            since = self.silence.lose(self.target.host, Instant::now()) => {
                return Err(silent(since));
            }
        };
        Ok(response.map(Incoming::from))
    }

    async fn multiplexed(
        &self,
        allowance: Option<Allowance<'_>>,
    ) -> Result<http2::SendRequest<RequestBody>, BackendError> {
        let usable = |sender: &&http2::SendRequest<RequestBody>| sender.is_ready();
        if let Ok(multiplexed) = self.multiplexed.try_lock()
            && let Some(sender) = multiplexed.as_ref().filter(usable)
        {
            return Ok(sender.clone());
        }
        let waiting =
            allowance.map(|allowance| allowance.wait().ok_or(Overflow::Pending)).transpose();
        let _waiting = waiting.map_err(BackendError::Overloaded)?;
        let mut multiplexed = self.multiplexed.lock().await;
        if let Some(sender) = multiplexed.as_ref().filter(usable) {
            return Ok(sender.clone());
        }
        // There is only this one: it counts, and isn't refused.
        let pass = allowance.and_then(|allowance| {
            Allowance { connections: usize::MAX, ..allowance }.open(&self.open)
        });
        Ok(multiplexed.insert(Box::pin(self.connect_http2(pass)).await?).clone())
    }

    async fn connect_http2(
        &self,
        pass: Option<ConnectionPermit>,
    ) -> Result<http2::SendRequest<RequestBody>, BackendError> {
        let gather = Gather::new(Arc::new(Conn::new(self.connect(true).await?)));
        let io = TokioIo::new(Gathered(Arc::clone(&gather)));
        tokio::spawn(gather.send());
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_connection_window_size(ANSWER_BYTES)
            .initial_stream_window_size(ANSWER_STREAM_BYTES)
            .max_send_buf_size(UNSENT_BYTES)
            .max_header_list_size(self.target.server().author().most_list_bytes())
            .handshake(io)
            .await
            .map_err(|error| BackendError::Broken(error.into()))?;
        tokio::spawn(async move {
            let _pass = pass;
            if let Err(error) = connection.await {
                tracing::debug!(%error, "A connection to an application failed");
            }
        });
        Ok(sender)
    }

    /// Connects to the workload's address, or where its application listens instead. Not to 127.0.0.1
    /// unless the topology says so: another service, or anybody, may listen there.
    async fn connect(&self, http2: bool) -> Result<Stream, BackendError> {
        let connecting = async {
            let stream = self.dial().await?;
            // If it fails requests are merely slower.
            let _ = stream.set_nodelay(true);
            self.secure(stream, http2).await
        };
        let connected = tokio::select! {
            biased;
            connected = timeout(self.connect_timeout, connecting) => connected,
            since = self.silence.lose(self.target.host, Instant::now()) => {
                return Err(BackendError::Silent(since));
            }
        };
        match connected {
            Ok(Ok(stream)) => Ok(stream),
            // The data plane says it, too, after a while.
            Ok(Err(error)) => match self.target.host.and_then(|host| self.silence.since(host)) {
                Some(since) => Err(BackendError::Silent(since)),
                None => Err(BackendError::Refused(error)),
            },
            Err(_) => Err(BackendError::TimedOut),
        }
    }

    /// Begins TLS, where an external server wants it.
    async fn secure(&self, stream: TcpStream, http2: bool) -> io::Result<Stream> {
        let Some((external, _)) = self.target.external else { return Ok(Stream::Plain(stream)) };
        let Some((config, name)) = self.host_services.client_tls(external, http2)? else {
            return Ok(Stream::Plain(stream));
        };
        let stream = TlsConnector::from(config).connect(name, stream).await?;
        if http2 && stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            return Err(io::Error::other("the server didn't agree to speak HTTP/2"));
        }
        Ok(Stream::Tls(Box::new(stream.into())))
    }

    async fn dial(&self) -> io::Result<TcpStream> {
        let Target { address, source, introduce, listens, shown, .. } = self.target;
        let stream = match source {
            None if self.target.external.is_some() => TcpStream::connect(address).await?,
            None => self.reach.connect(self.bind, address, listens, shown).await?,
            Some(source) => connect_as(self.bind, Speaker::Host(source), address).await?,
        };
        if let Some((version, caller)) = introduce {
            // Requests of several connections of the caller's come by this one: no port is theirs.
            announce(&stream, version, (caller, 0).into(), address, None).await?;
        }
        Ok(stream)
    }
}

impl Keep<Stream> for Application {
    fn keep(&self, link: Arc<Conn<Stream>>) {
        self.idle.put(self.id, link);
        if self.waiting.load(Ordering::Relaxed) > 0 {
            self.returned.notify_one();
        }
    }
}

/// Reasons for which a request has waited.
enum Turn {
    /// A connection that was used before.
    Returned(Arc<Conn<Stream>>),
    /// It may make one.
    Opens(ConnectionPermit),
}

/// Counts who waits.
struct Waits<'a>(&'a AtomicUsize);

impl<'a> Waits<'a> {
    fn begin(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn silent(since: Instant) -> Failure {
    Failure { error: BackendError::Silent(since), unsent: None }
}
