//! Mesh DNS: the names of the mesh, answered on the host's overlay addresses.
//!
//! [`zone`] is the pure part: from a [`ProxySnapshot`] and the bytes of a query to the bytes of an answer, or
//! to the finding that somebody else has to answer. [`server`] carries queries by UDP and TCP,
//! [`upstream`] relays to the host's own resolvers what isn't the mesh's, and [`resolver`] tells the
//! host to ask here.
//!
//! Answers follow the newest view at once; their short TTL bounds how long others believe old ones.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use isthmus_net::listen::{bind_freebind_tcp, bind_freebind_udp};
use isthmus_proxy::ProxySnapshot;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

pub mod keeper;
pub mod resolver;
mod server;
#[cfg(test)]
pub(crate) mod tests;
mod upstream;
mod wire;
pub mod zone;

/// The port that DNS is asked on.
pub const PORT: u16 = 53;

/// A server is asked once more when it doesn't answer in this time: the kernel may have to find the
/// way first.
const PROBE_PATIENCE: Duration = Duration::from_millis(500);
const PROBES: usize = 3;
/// `mesh.internal`, SOA, IN: the id is replaced.
const PROBE: &[u8] = b"\0\0\x01\0\0\x01\0\0\0\0\0\0\x04mesh\x08internal\0\0\x06\0\x01";

/// Configuration of mesh DNS: listeners and upstream servers.
#[derive(Clone, Debug)]
pub struct Config {
    /// Usually one of the host's own overlay addresses, with [`PORT`]. It need not exist yet.
    pub listen: SocketAddr,
    /// Upstream servers for names outside the mesh.
    pub upstream: Upstream,
    /// Whether `web.prod` is a name, too.
    pub short_names: bool,
    /// All of ours: who would ask there would ask us.
    pub own: Vec<IpAddr>,
}

/// Upstream servers for names outside the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upstream {
    /// These, in this order.
    Fixed(Vec<SocketAddr>),
    /// The `nameserver` lines of a file, which may change; see
    /// [`Resolver::upstream_file`](resolver::Resolver::upstream_file).
    ResolvConf(PathBuf),
}

impl Upstream {
    /// What the settings say: the servers listed there, or else those of a `resolv.conf`.
    #[must_use]
    pub fn from_settings(servers: &[SocketAddr], resolv_conf: PathBuf) -> Self {
        if servers.is_empty() {
            Self::ResolvConf(resolv_conf)
        } else {
            Self::Fixed(servers.to_vec())
        }
    }

    /// Whether there is a server other than `own`.
    #[must_use]
    pub fn has_server(&self, own: &[IpAddr]) -> bool {
        !upstream::usable(self, own).is_empty()
    }
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(_) => write!(f, "[dns] upstream"),
            Self::ResolvConf(path) => write!(f, "{}", path.display()),
        }
    }
}

/// Answers until it is dropped.
#[derive(Debug)]
pub struct Server {
    _task: JoinSet<()>,
}

impl Server {
    /// Begins to answer.
    ///
    /// # Errors
    ///
    /// If something else has the address and port, or the process may not bind them.
    pub fn start(config: Config, view: watch::Receiver<Arc<ProxySnapshot>>) -> io::Result<Self> {
        let udp = UdpSocket::from_std(bind_freebind_udp(config.listen)?)?;
        // Port 0 is for tests: both get the same one.
        let tcp = TcpListener::from_std(bind_freebind_tcp(udp.local_addr()?)?)?;
        let short = config.short_names;
        let forwarder = upstream::Forwarder::new(config.upstream, config.own);
        let mut task = JoinSet::new();
        task.spawn(server::run(udp, tcp, (forwarder, short), view));
        Ok(Self { _task: task })
    }
}

/// Whether `server` answers for the mesh; none if it doesn't answer at all, or can't just now.
pub async fn answers(server: SocketAddr) -> Option<bool> {
    for _ in 0..PROBES {
        let asked = upstream::ask(server, PROBE, zone::Transport::Udp);
        match timeout(PROBE_PATIENCE, asked).await {
            Ok(Ok(reply)) => return wire::has_answer(&reply),
            // Refused at once: later it may not be.
            Ok(Err(_)) => tokio::time::sleep(PROBE_PATIENCE / 5).await,
            Err(_) => {}
        }
    }
    None
}
