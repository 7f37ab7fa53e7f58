//! Takes queries by UDP and TCP, and sends what [`zone`](super::zone) or the host's resolvers say.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use isthmus_model::Place;
use isthmus_net::sock_diag::Protocol;
use isthmus_proxy::ProxySnapshot;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::upstream::{Forwarder, framed, read_framed};
use super::zone::{self, Reply, Transport};
use crate::places::{self, Bounds, Places, Source, Users};

/// Queries that wait for other resolvers.
const FORWARDED: Bounds = Bounds { all: 1024, each: 256, root: 64 };
const STREAMS: Bounds = Bounds { all: 256, each: 32, root: 16 };
/// For the next query on a stream, or for its reader to take an answer.
const STREAM_PATIENCE: Duration = Duration::from_secs(10);
/// After an error that might come again at once.
const PAUSE: Duration = Duration::from_millis(100);
/// No query is longer; what is, isn't one.
const MAX_QUERY_BYTES: usize = 4096;

/// State shared by all sockets.
#[derive(Debug)]
struct Shared {
    view: watch::Receiver<Arc<ProxySnapshot>>,
    forwarder: Forwarder,
    short_names: bool,
    own: SocketAddr,
    users: Users,
    forwarded: Arc<Places>,
    streams: Arc<Places>,
}

/// Serves the sockets for ever.
pub(super) async fn run(
    udp: UdpSocket,
    tcp: TcpListener,
    (forwarder, short_names): (Forwarder, bool),
    view: watch::Receiver<Arc<ProxySnapshot>>,
) {
    let Ok(own) = udp.local_addr() else { return };
    let shared = Arc::new(Shared {
        view,
        own,
        forwarder,
        short_names,
        users: Users::open(),
        forwarded: Places::new(FORWARDED),
        streams: Places::new(STREAMS),
    });
    tokio::join!(
        serve_datagrams(Arc::new(udp), Arc::clone(&shared)),
        serve_streams(tcp, Arc::clone(&shared)),
    );
}

async fn serve_datagrams(socket: Arc<UdpSocket>, shared: Arc<Shared>) {
    let mut forwards = JoinSet::new();
    let mut buffer = vec![0; MAX_QUERY_BYTES];
    loop {
        let received = tokio::select! {
            Some(_) = forwards.join_next() => continue,
            received = socket.recv_from(&mut buffer) => received,
        };
        match received {
            Ok((length, from)) if shared.serves(from.ip()) => {
                on_datagram(&socket, &shared, &buffer[..length], from, &mut forwards).await;
            }
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(%error, "Failed to receive a DNS query");
                sleep(PAUSE).await;
            }
        }
    }
}

async fn on_datagram(
    socket: &Arc<UdpSocket>,
    shared: &Arc<Shared>,
    query: &[u8],
    from: SocketAddr,
    forwards: &mut JoinSet<()>,
) {
    match zone::answer(&shared.view(), shared.short_names, query, Transport::Udp) {
        Reply::Ignore => {}
        Reply::Answer(reply) => send(socket, &reply, from).await,
        Reply::Forward { max_bytes } => {
            let source = shared.source(Protocol::Udp, from);
            let Some(place) = shared.forwarded.take(source) else {
                return send(socket, &zone::failure(query), from).await;
            };
            let (socket, shared, query) = (Arc::clone(socket), Arc::clone(shared), query.to_vec());
            forwards.spawn(async move {
                let reply = shared.forward(&query, Transport::Udp, max_bytes, place).await;
                send(&socket, &reply, from).await;
            });
        }
    }
}

async fn send(socket: &UdpSocket, reply: &[u8], to: SocketAddr) {
    if let Err(error) = socket.send_to(reply, to).await {
        tracing::debug!(%error, "Failed to send a DNS answer");
    }
}

async fn serve_streams(listener: TcpListener, shared: Arc<Shared>) {
    let mut streams = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            Some(_) = streams.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, from)) if shared.serves(from.ip()) => {
                let source = shared.source(Protocol::Tcp, from);
                if let Some(place) = shared.streams.take(source) {
                    streams.spawn(serve_stream(stream, source, Arc::clone(&shared), place));
                }
            }
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(%error, "Failed to accept a DNS connection");
                sleep(PAUSE).await;
            }
        }
    }
}

async fn serve_stream(
    mut stream: TcpStream,
    source: Source,
    shared: Arc<Shared>,
    _place: places::Place,
) {
    while let Ok(Ok(query)) = timeout(STREAM_PATIENCE, read_framed(&mut stream)).await {
        if query.len() > MAX_QUERY_BYTES {
            return;
        }
        let reply = match zone::answer(&shared.view(), shared.short_names, &query, Transport::Tcp) {
            Reply::Ignore => return,
            Reply::Answer(reply) => reply,
            Reply::Forward { max_bytes } => match shared.forwarded.take(source) {
                Some(place) => shared.forward(&query, Transport::Tcp, max_bytes, place).await,
                None => zone::failure(&query),
            },
        };
        let sent = timeout(STREAM_PATIENCE, stream.write_all(&framed(&reply))).await;
        if !matches!(sent, Ok(Ok(()))) {
            return;
        }
    }
}

impl Shared {
    fn view(&self) -> Arc<ProxySnapshot> {
        Arc::clone(&self.view.borrow())
    }

    /// Members of the mesh and this host. A neighbour on the local network could send to an overlay
    /// address, too, and would find an open resolver to attack others with.
    fn serves(&self, source: IpAddr) -> bool {
        let source = source.to_canonical();
        let mesh = &self.view.borrow().snapshot.mesh;
        let is_member = match source {
            IpAddr::V4(source) => mesh.ipv4.contains(&source),
            IpAddr::V6(source) => mesh.prefix.parse(source).is_some(),
        };
        is_member || source.is_loopback() || self.own.ip() == source || is_local(source)
    }

    /// Whose query it is: a user's of this host, or another host's, whichever of its addresses it
    /// comes from.
    fn source(&self, protocol: Protocol, peer: SocketAddr) -> Source {
        let view = self.view();
        let place = view.directory.place(peer.ip().to_canonical());
        match place.and_then(Place::host) {
            Some(host) if host != view.snapshot.local => Source::Host(host),
            Some(_) | None => {
                let user = self.users.find(protocol, peer, self.own);
                user.unwrap_or_else(|| Source::remote(peer.ip()))
            }
        }
    }

    async fn forward(
        &self,
        query: &[u8],
        transport: Transport,
        max_bytes: usize,
        _place: places::Place,
    ) -> Vec<u8> {
        let reply = self.forwarder.relay(query, transport, max_bytes).await;
        reply.unwrap_or_else(|| zone::failure(query))
    }
}

/// Whether an address is this host's: who asked while the overlay's device wasn't there did it from
/// another one than usual.
fn is_local(address: IpAddr) -> bool {
    std::net::UdpSocket::bind((address, 0)).is_ok()
}
