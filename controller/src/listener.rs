//! Takes connections: a handshake in time, a name for whoever is at the other end, and a place for it.
//!
//! ```text
//!  TCP ──▶ handshake ──▶ who?  nobody, or no member any more ──▶ a place by address, for half a minute
//!          by address          a host that is a member        ──▶ a place by host
//!                              an operator, not revoked       ──▶ a place by name; hosts have others
//! ```
//!
//! Addresses count only as long as nothing else is known: thousands of hosts may be behind one.

use std::hash::Hash;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use isthmus_model::{HostId, Name, TrustDomain};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Sleep, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;
use tracing::{debug, warn};

use crate::authority::Membership;
use crate::caller::{Caller, Peer};
use crate::limits::subject;
use crate::mesh::Mesh;
use crate::places::{Full, Limits, Place, Places};

const HANDSHAKE: Duration = Duration::from_secs(5);
/// One takes milliseconds: whoever is silent for longer gives way. Not earlier, because all hosts behind
/// one address come at once when the controller was away.
const HANDSHAKES: Limits = Limits { all: 512, each: 64, stays: Duration::from_secs(1) };
/// A join takes under two seconds; one that is under way isn't broken off for the next of its source.
const STRANGERS: Limits = Limits { all: 256, each: 64, stays: Duration::from_secs(3) };
const STRANGER_STAYS: Duration = Duration::from_secs(30);
/// An agent has one connection, and for a moment another that is to take its place.
const HOSTS: Limits = Limits { all: 8_192, each: 4, stays: Duration::ZERO };
const OPERATORS: Limits = Limits { all: 256, each: 64, stays: Duration::ZERO };
/// Whoever has shown a certificate says something at once.
const SILENCE: Duration = Duration::from_secs(10);
/// When the process is out of file descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// A connection after its handshake.
pub(crate) struct Connection {
    stream: TlsStream<TcpStream>,
    peer: Peer,
    ends: Option<Pin<Box<Sleep>>>,
    /// It ends where nothing is heard until then, and goes on otherwise.
    first_word: Option<Pin<Box<Sleep>>>,
    is_over: bool,
    place: CallerPlace,
}

enum CallerPlace {
    Stranger(Place<IpAddr>),
    Host(Place<HostId>),
    Operator(Place<Name>),
}

struct Acceptor {
    tls: TlsAcceptor,
    trust_domain: TrustDomain,
    mesh: Arc<Mesh>,
    handshakes: Arc<Places<IpAddr>>,
    strangers: Arc<Places<IpAddr>>,
    hosts: Arc<Places<HostId>>,
    operators: Arc<Places<Name>>,
}

/// Takes connections until nobody wants them any more.
pub(crate) async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    trust_domain: TrustDomain,
    mesh: Arc<Mesh>,
    accepted: mpsc::Sender<io::Result<Connection>>,
) {
    let acceptor = Arc::new(Acceptor {
        tls: acceptor,
        trust_domain,
        mesh,
        handshakes: Places::new(HANDSHAKES),
        strangers: Places::new(STRANGERS),
        hosts: Places::new(HOSTS),
        operators: Places::new(OPERATORS),
    });
    loop {
        let (stream, address) = tokio::select! {
            () = accepted.closed() => return,
            taken = listener.accept() => match taken {
                Ok(taken) => taken,
                Err(error) => {
                    warn!(%error, "failed to accept a connection");
                    sleep(PAUSE).await;
                    continue;
                }
            },
        };
        let (acceptor, accepted) = (Arc::clone(&acceptor), accepted.clone());
        tokio::spawn(async move {
            match acceptor.welcome(stream, address).await {
                Ok(connection) => drop(accepted.send(Ok(connection)).await),
                Err(error) => debug!(%address, %error, "turned a connection away"),
            }
        });
    }
}

impl Acceptor {
    async fn welcome(&self, stream: TcpStream, address: SocketAddr) -> io::Result<Connection> {
        stream.set_nodelay(true)?;
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        let source = subject(address.ip());
        let crowded = || {
            self.mesh.crowd.note(&self.mesh.problems, address.ip(), Instant::now());
            too_many()
        };
        let mut place = self.handshakes.take(source, Instant::now()).map_err(|Full| crowded())?;
        let stream = tokio::select! {
            done = timeout(HANDSHAKE, self.tls.accept(stream)) => done??,
            _ = &mut place.taken => return Err(crowded()),
        };
        drop(place);
        let caller = self.caller(&stream)?;
        let place = match &caller {
            Caller::Host { name, membership, .. } if self.is_member(name, *membership) => {
                CallerPlace::Host(take(&self.hosts, membership.id)?)
            }
            Caller::Operator { name, issued, .. } if self.is_operator(name, *issued) => {
                CallerPlace::Operator(take(&self.operators, name.clone())?)
            }
            // Who was removed or revoked is told so, and gets nothing else.
            Caller::Host { .. } | Caller::Operator { .. } | Caller::Anonymous => {
                let place = self.strangers.take(source, Instant::now());
                CallerPlace::Stranger(place.map_err(|Full| crowded())?)
            }
        };
        let (ends, first_word) = match place {
            CallerPlace::Stranger(_) => (Some(STRANGER_STAYS), None),
            CallerPlace::Host(_) | CallerPlace::Operator(_) => (None, Some(SILENCE)),
        };
        let alarm = |after: Duration| Box::pin(sleep(after));
        Ok(Connection {
            stream,
            peer: Peer { address, caller },
            ends: ends.map(alarm),
            first_word: first_word.map(alarm),
            is_over: false,
            place,
        })
    }

    fn is_member(&self, name: &Name, membership: Membership) -> bool {
        self.mesh.now().has(name.as_str(), membership)
    }

    fn is_operator(&self, name: &Name, issued: i64) -> bool {
        self.mesh.staff.operators().role(name, issued).is_some()
    }

    fn caller(&self, stream: &TlsStream<TcpStream>) -> io::Result<Caller> {
        let Some(leaf) = stream.get_ref().1.peer_certificates().and_then(<[_]>::first) else {
            return Ok(Caller::Anonymous);
        };
        Caller::from_certificate(leaf, &self.trust_domain).ok_or_else(|| {
            io::Error::other("its certificate is neither a host's nor an operator's")
        })
    }
}

fn take<K: Clone + Eq + Hash>(places: &Arc<Places<K>>, who: K) -> io::Result<Place<K>> {
    places.take(who, Instant::now()).map_err(|Full| too_many())
}

fn too_many() -> io::Error {
    io::Error::other("too many connections")
}

impl CallerPlace {
    /// Whether another has taken it.
    fn is_taken(&mut self, context: &mut Context<'_>) -> bool {
        let taken = match self {
            Self::Stranger(place) => &mut place.taken,
            Self::Host(place) => &mut place.taken,
            Self::Operator(place) => &mut place.taken,
        };
        Pin::new(taken).poll(context).is_ready()
    }
}

impl Connection {
    fn is_over(&mut self, context: &mut Context<'_>) -> bool {
        let over = |alarm: &mut Option<Pin<Box<Sleep>>>, context: &mut Context<'_>| {
            alarm.as_mut().is_some_and(|alarm| alarm.as_mut().poll(context).is_ready())
        };
        self.is_over = self.is_over
            || over(&mut self.ends, context)
            || over(&mut self.first_word, context)
            || self.place.is_taken(context);
        self.is_over
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_over(context) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            self.first_word = None;
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
