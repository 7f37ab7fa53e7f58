//! Device and sockets of the overlay.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::time::Duration;

use anyhow::Context as _;
use isthmus_net::listen::bind_transparent_tcp;
use isthmus_net::steering::Steering;
use isthmus_net::tun::{Tun, TunError};
use isthmus_net::udp::UdpSocket;

use crate::kept_device;
use crate::settings::Settings;

/// The device that was kept, or else a new one.
pub(super) async fn device(
    kept: Option<Tun>,
    settings: &Settings,
    mtu: u16,
) -> anyhow::Result<Tun> {
    match kept {
        Some(kept) => Ok(kept),
        None => create_device(&settings.device, mtu, settings.lanes()).await,
    }
}

/// A killed agent's device is gone a moment after its process, if nobody keeps it.
async fn create_device(name: &str, mtu: u16, lanes: u8) -> anyhow::Result<Tun> {
    let create = || Tun::with_queues(name, mtu.into(), lanes.into()).inspect(kept_device::keep);
    for _ in 0..20 {
        match create() {
            Err(TunError::Exists(_)) => tokio::time::sleep(Duration::from_millis(50)).await,
            made => return Ok(made?),
        }
    }
    Ok(create()?)
}

/// For each lane one socket per family; a host without IPv6 has one.
pub(super) fn tunnel_sockets(port: u16, lanes: u8) -> std::io::Result<Vec<Vec<UdpSocket>>> {
    let steering = Steering { kind: isthmus_core::BULK_TYPE };
    let bind = |ip: IpAddr| UdpSocket::bind_group((ip, port).into(), lanes, steering);
    let v4 = bind(Ipv4Addr::UNSPECIFIED.into())?;
    let v6 = match bind(Ipv6Addr::UNSPECIFIED.into()) {
        Ok(v6) => v6,
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => return Err(error),
        Err(error) => {
            tracing::warn!(%error, "no tunnels over IPv6");
            Vec::new()
        }
    };
    let mut v6 = v6.into_iter();
    Ok(v4.into_iter().map(|v4| std::iter::once(v4).chain(v6.next()).collect()).collect())
}

pub(super) fn proxy_listeners(port: u16) -> std::io::Result<Vec<TcpListener>> {
    let bind = |ip: IpAddr| bind_transparent_tcp(SocketAddr::new(ip, port));
    let v4 = bind(Ipv4Addr::UNSPECIFIED.into())?;
    match bind(Ipv6Addr::UNSPECIFIED.into()) {
        Ok(v6) => Ok(vec![v4, v6]),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => Err(error),
        Err(_) => Ok(vec![v4]),
    }
}

pub(super) fn clones(listeners: &[TcpListener]) -> anyhow::Result<Vec<TcpListener>> {
    let clones = listeners.iter().map(TcpListener::try_clone).collect::<Result<_, _>>();
    clones.context("Failed to keep the proxy's port")
}
