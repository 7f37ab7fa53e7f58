//! Mesh DNS: the names of the mesh, answered on the host's overlay addresses.
//!
//! [`zone`] is the pure part: from a [`View`] and the bytes of a query to the bytes of an answer, or
//! to the finding that somebody else has to answer. [`server`] carries queries by UDP and TCP,
//! [`upstream`] relays to the host's own resolvers what isn't the mesh's, and [`resolver`] tells the
//! host to ask here.
//!
//! Answers follow the newest view at once; their short TTL bounds how long others believe old ones.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use isthmus_net::listen::{bind_freebind_tcp, bind_freebind_udp};
use isthmus_proxy::View;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::watch;

mod admission;
pub mod resolver;
mod server;
#[cfg(test)]
mod tests;
mod upstream;
mod wire;
pub mod zone;

/// The port that DNS is asked on.
pub const PORT: u16 = 53;

/// Where mesh DNS listens, and whom it asks about other names.
#[derive(Clone, Debug)]
pub struct Config {
    /// Usually the host's own overlay addresses, with [`PORT`]. They need not exist yet.
    pub listen: Vec<SocketAddr>,
    /// Who answers names that aren't the mesh's.
    pub upstream: Upstream,
}

/// Who answers names that aren't the mesh's.
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
}

/// Answers until `stop` completes.
///
/// # Errors
///
/// If something else has one of the addresses and ports, or the process may not bind them.
pub async fn serve(
    config: Config,
    view: watch::Receiver<Arc<View>>,
    stop: impl Future<Output = ()>,
) -> io::Result<()> {
    let mut sockets = Vec::new();
    for address in &config.listen {
        let udp = UdpSocket::from_std(bind_freebind_udp(*address)?)?;
        // Port 0 is for tests: both get the same one.
        let tcp = TcpListener::from_std(bind_freebind_tcp(udp.local_addr()?)?)?;
        sockets.push((udp, tcp));
    }
    let own: Vec<IpAddr> = config.listen.iter().map(SocketAddr::ip).collect();
    server::run(sockets, upstream::Forwarder::new(config.upstream, own), view, stop).await;
    Ok(())
}
