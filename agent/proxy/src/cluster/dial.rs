//! Connections to workloads and applications, and as whom the proxy makes them.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use isthmus_http::{copy, proxy_protocol};
use isthmus_model::ProxyProtocol;
use tokio::net::{TcpSocket, TcpStream};

/// Makes a socket that isn't connected yet. To applications the proxy is known by such sockets.
pub type Bind = fn(Speaker) -> io::Result<std::net::TcpStream>;

/// Owner of a socket's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaker {
    /// This host's; whichever the kernel chooses, where it is unspecified.
    Host(IpAddr),
    /// A caller's, wherever it is. What is sent to it is to come back to the socket.
    Caller(IpAddr),
}

impl Speaker {
    /// Its address.
    #[must_use]
    pub const fn address(self) -> IpAddr {
        match self {
            Self::Host(address) | Self::Caller(address) => address,
        }
    }
}

/// Connects to a workload or to an application here.
pub(crate) async fn connect_as(
    bind: Bind,
    speaker: Speaker,
    address: SocketAddr,
) -> io::Result<TcpStream> {
    TcpSocket::from_std_stream(bind(speaker)?).connect(address).await
}

/// Connects to an application here as the proxy.
pub(crate) async fn connect_as_proxy(bind: Bind, address: SocketAddr) -> io::Result<TcpStream> {
    let any = match address {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    connect_as(bind, Speaker::Host(any), address).await
}

/// Tells an application what it wants to be told of a connection before the first byte: who calls.
pub(crate) async fn announce(
    stream: &TcpStream,
    version: ProxyProtocol,
    caller: SocketAddr,
    application: SocketAddr,
    identity: Option<&str>,
) -> io::Result<()> {
    let version = match version {
        ProxyProtocol::V1 => proxy_protocol::Version::V1,
        ProxyProtocol::V2 => proxy_protocol::Version::V2,
    };
    let header = proxy_protocol::header(version, caller, application, identity);
    copy::write_all(stream, &header).await
}
