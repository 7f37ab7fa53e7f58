//! Relays questions that aren't about the mesh to the host's own resolvers.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use isthmus_net::tun::interface_index;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::zone::Transport;
use super::{PORT, Upstream, wire};

/// For one resolver's answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// As the C library: more would only make failures slower.
const MAX_SERVERS: usize = 3;
/// Between two looks at `resolv.conf`.
const REFRESH: Duration = Duration::from_secs(5);
/// Of a datagram.
const MAX_REPLY_BYTES: usize = 4096;
const SERVER_FAILURE: u8 = 2;
const REFUSED: u8 = 5;

/// Knows whom to ask, and asks.
#[derive(Debug)]
pub(super) struct Forwarder {
    upstream: Upstream,
    /// Asking ourselves would never end.
    own: Vec<IpAddr>,
    servers: Mutex<Option<(Instant, Arc<[SocketAddr]>)>>,
}

impl Forwarder {
    pub(super) fn new(upstream: Upstream, own: Vec<IpAddr>) -> Self {
        Self { upstream, own, servers: Mutex::default() }
    }

    /// An answer from the first server that has one, at most `max_bytes` long. None if there is no
    /// server, or none answers.
    pub(super) async fn relay(
        &self,
        query: &[u8],
        transport: Transport,
        max_bytes: usize,
    ) -> Option<Vec<u8>> {
        let mut last = None;
        for server in self.servers().iter() {
            let asked = timeout(PATIENCE, ask(*server, query, transport)).await;
            match asked {
                Ok(Ok(reply)) if matches!(reply[3] & 0x0f, SERVER_FAILURE | REFUSED) => {
                    last = Some(reply);
                }
                Ok(Ok(reply)) => return Some(fitted(reply, max_bytes)),
                Ok(Err(error)) => tracing::debug!(%server, %error, "A resolver didn't answer"),
                Err(_) => tracing::debug!(%server, "A resolver didn't answer in time"),
            }
        }
        last.map(|reply| fitted(reply, max_bytes))
    }

    pub(super) fn servers(&self) -> Arc<[SocketAddr]> {
        let mut servers = self.servers.lock();
        if let Some((read, known)) = servers.as_ref()
            && read.elapsed() < REFRESH
        {
            return Arc::clone(known);
        }
        let usable: Arc<[SocketAddr]> = usable(&self.upstream, &self.own).into();
        *servers = Some((Instant::now(), Arc::clone(&usable)));
        usable
    }
}

/// The servers to ask: not ourselves, and not too many.
pub(super) fn usable(upstream: &Upstream, own: &[IpAddr]) -> Vec<SocketAddr> {
    let found = match upstream {
        Upstream::Fixed(found) => found.clone(),
        Upstream::ResolvConf(path) => nameservers(path),
    };
    let usable = found.into_iter().filter(|server| !own.contains(&server.ip()));
    usable.take(MAX_SERVERS).collect()
}

/// The servers that a `resolv.conf` names; none if it can't be read.
pub(super) fn nameservers(path: &Path) -> Vec<SocketAddr> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let is_server = words.next() == Some("nameserver");
        server(words.next().filter(|_| is_server)?)
    });
    servers.collect()
}

/// An address as `resolv.conf` has it. One that means something on one link only names that link, by
/// name or number: `fe80::1%eth0`.
fn server(text: &str) -> Option<SocketAddr> {
    let Some((address, link)) = text.split_once('%') else {
        return Some(SocketAddr::new(text.parse().ok()?, PORT));
    };
    let scope = link.parse().ok().or_else(|| interface_index(link))?;
    Some(SocketAddrV6::new(address.parse().ok()?, PORT, 0, scope).into())
}

/// Asks one server. The id and the source port are new and random: whoever would forge an answer
/// has to guess both.
pub(super) async fn ask(
    server: SocketAddr,
    query: &[u8],
    transport: Transport,
) -> io::Result<Vec<u8>> {
    let mut asked = query.to_vec();
    let mut id = [0; 2];
    getrandom::fill(&mut id).map_err(io::Error::other)?;
    asked[..2].copy_from_slice(&id);
    let mut reply = match transport {
        Transport::Udp => ask_by_udp(server, &asked).await?,
        Transport::Tcp => ask_by_tcp(server, &asked).await?,
    };
    reply[..2].copy_from_slice(&query[..2]);
    Ok(reply)
}

async fn ask_by_udp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    // The kernel then takes datagrams from this server only.
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut buffer = vec![0; MAX_REPLY_BYTES + 1];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if !wire::answers(&buffer[..length], query) {
            continue;
        }
        buffer.truncate(length);
        return Ok(fitted(buffer, MAX_REPLY_BYTES));
    }
}

async fn ask_by_tcp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    stream.write_all(&framed(query)).await?;
    let reply = read_framed(&mut stream).await?;
    if wire::answers(&reply, query) {
        Ok(reply)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidData, "the answer is to another question"))
    }
}

/// A message as it travels over TCP: behind its length.
pub(super) fn framed(message: &[u8]) -> Vec<u8> {
    let length = u16::try_from(message.len()).unwrap_or(u16::MAX);
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend_from_slice(&message[..usize::from(length)]);
    framed
}

pub(super) async fn read_framed(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut message = vec![0; usize::from(length)];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

fn fitted(reply: Vec<u8>, max_bytes: usize) -> Vec<u8> {
    if reply.len() > max_bytes { wire::truncated(reply) } else { reply }
}
