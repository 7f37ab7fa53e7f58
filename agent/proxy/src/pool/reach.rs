//! Reachable addresses of this host's applications.
//!
//! An application may listen on all addresses, on those of one family, or where the topology says
//! (`listen`). Callers come by either family: so an application that doesn't take a connection at the address
//! that its caller used is tried at the workload's other one, and what worked is remembered.

use std::io;
use std::net::SocketAddr;

use parking_lot::Mutex;
use tokio::net::TcpStream;

use crate::cluster::dial::{Bind, Speaker, connect_as, connect_as_proxy};
use crate::config::listens::{Listens, Shown};
use crate::config::view::Map;

/// What earlier connections taught: the addresses at which nobody listened, while somebody did at the
/// workload's other one. There are no more of them than addresses of workloads here.
#[derive(Debug, Default)]
pub(crate) struct Reach(Mutex<Map<SocketAddr, SocketAddr>>);

impl Reach {
    /// Connects to the application that is asked for at `asked`.
    pub(crate) async fn connect(
        &self,
        bind: Bind,
        asked: SocketAddr,
        listens: Listens,
        shown: Option<Shown>,
    ) -> io::Result<TcpStream> {
        let dial = |address| dial(bind, address, shown);
        let other = match listens {
            Listens::There => return dial(asked).await,
            Listens::At(address) => return dial(address).await,
            Listens::OrAt(other) => SocketAddr::new(other, asked.port()),
        };
        let (first, second) = match self.0.lock().get(&asked) {
            Some(known) if *known == other => (other, asked),
            Some(_) | None => (asked, other),
        };
        let failed = match dial(first).await {
            Ok(stream) => return Ok(stream),
            Err(error) => error,
        };
        let Ok(stream) = dial(second).await else { return Err(failed) };
        self.learn(asked, second);
        Ok(stream)
    }

    fn learn(&self, asked: SocketAddr, works: SocketAddr) {
        let mut known = self.0.lock();
        if works == asked {
            known.remove(&asked);
        } else if known.insert(asked, works) != Some(works) {
            tracing::info!(%asked, at = %works, "An application listens on one family only");
        }
    }
}

async fn dial(bind: Bind, address: SocketAddr, shown: Option<Shown>) -> io::Result<TcpStream> {
    let Some(Shown { v4, v6 }) = shown else { return connect_as_proxy(bind, address).await };
    let caller = if address.is_ipv4() { v4.into() } else { v6.into() };
    connect_as(bind, Speaker::Caller(caller), address).await
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use tokio::net::TcpListener;

    use super::*;
    use crate::tests::support::bind;

    const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
    const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

    async fn reached(reach: &Reach, asked: SocketAddr, listens: Listens) -> io::Result<SocketAddr> {
        reach.connect(bind, asked, listens, None).await?.peer_addr()
    }

    #[tokio::test]
    async fn an_application_is_found_at_the_workloads_other_address_and_remembered() {
        let application = TcpListener::bind((V4, 0)).await.unwrap();
        let at = application.local_addr().unwrap();
        let asked = SocketAddr::new(V6, at.port());
        let reach = Reach::default();
        let refused = reached(&reach, asked, Listens::There).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(reached(&reach, asked, Listens::OrAt(V4)).await.unwrap(), at);
        assert_eq!(reach.0.lock().get(&asked), Some(&at));

        // It listens elsewhere after a restart: what was remembered is a hint.
        drop(application);
        let again = TcpListener::bind(asked).await.unwrap();
        assert_eq!(reached(&reach, asked, Listens::OrAt(V4)).await.unwrap(), asked);
        assert_eq!(reach.0.lock().len(), 0);
        drop(again);
        let refused = reached(&reach, asked, Listens::OrAt(V4)).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    }

    #[tokio::test]
    async fn where_the_topology_says_it_nobody_else_is_tried() {
        let application = TcpListener::bind((V4, 0)).await.unwrap();
        let at = application.local_addr().unwrap();
        let asked = SocketAddr::new(V6, at.port());
        let reach = Reach::default();
        assert_eq!(reached(&reach, asked, Listens::At(at)).await.unwrap(), at);
        let stranger = TcpListener::bind((V6, 0)).await.unwrap().local_addr().unwrap();
        drop(application);
        assert!(reached(&reach, stranger, Listens::At(at)).await.is_err());
    }
}
