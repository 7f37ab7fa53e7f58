//! Takes connections: a handshake in time, no more at once than there is room for, and a name for
//! whoever is at the other end.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use isthmus_model::TrustDomain;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Sleep, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;
use tracing::{debug, warn};

use crate::caller::{Caller, Peer};

const HANDSHAKE: Duration = Duration::from_secs(5);
const MOST_HANDSHAKES: usize = 128;
/// Those with a certificate.
const MOST_KNOWN: usize = 8_192;
const MOST_STRANGERS: usize = 256;
/// A join takes under two seconds; a stranger needs no more.
const STRANGER_STAYS: Duration = Duration::from_secs(30);
/// When the process is out of file descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// A connection after its handshake.
pub(crate) struct Connection {
    stream: TlsStream<TcpStream>,
    peer: Peer,
    ends: Option<Pin<Box<Sleep>>>,
    _room: OwnedSemaphorePermit,
}

struct Door {
    acceptor: TlsAcceptor,
    trust_domain: TrustDomain,
    handshakes: Arc<Semaphore>,
    known: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
}

/// Takes connections until nobody wants them any more.
pub(crate) async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    trust_domain: TrustDomain,
    accepted: mpsc::Sender<io::Result<Connection>>,
) {
    let door = Arc::new(Door {
        acceptor,
        trust_domain,
        handshakes: Arc::new(Semaphore::new(MOST_HANDSHAKES)),
        known: Arc::new(Semaphore::new(MOST_KNOWN)),
        strangers: Arc::new(Semaphore::new(MOST_STRANGERS)),
    });
    loop {
        // Waiting here leaves the others in the kernel's queue, which is bounded too.
        let Ok(turn) = Arc::clone(&door.handshakes).acquire_owned().await else { return };
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
        let (door, accepted) = (Arc::clone(&door), accepted.clone());
        tokio::spawn(async move {
            let connection = door.welcome(stream, address).await;
            drop(turn);
            match connection {
                Ok(connection) => drop(accepted.send(Ok(connection)).await),
                Err(error) => debug!(%address, %error, "turned a connection away"),
            }
        });
    }
}

impl Door {
    async fn welcome(&self, stream: TcpStream, address: SocketAddr) -> io::Result<Connection> {
        stream.set_nodelay(true)?;
        let stream = timeout(HANDSHAKE, self.acceptor.accept(stream)).await??;
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        let caller = self.caller(&stream)?;
        let (room, ends) = match caller {
            Caller::Anonymous => (&self.strangers, Some(Box::pin(sleep(STRANGER_STAYS)))),
            Caller::Host { .. } | Caller::Operator { .. } => (&self.known, None),
        };
        let room = Arc::clone(room)
            .try_acquire_owned()
            .map_err(|_| io::Error::other("too many connections"))?;
        Ok(Connection { stream, peer: Peer { address, caller }, ends, _room: room })
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
        if let Some(ends) = &mut self.ends
            && ends.as_mut().poll(context).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
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
