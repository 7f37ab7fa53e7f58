//! The connection to who is to get a stream: the application at the server's side, one of the
//! workloads at the client's.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Instant;

use http::StatusCode;
use isthmus_model::{HostId, ServiceId};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::caller::connection::Connection;
use crate::cluster::Draw;
use crate::cluster::balance::Attempt;
use crate::cluster::breaker::{ConnectionPermit, Overflow};
use crate::cluster::dial::{Speaker, announce, connect_as};
use crate::cluster::endpoint::InFlight;
use crate::config::parties::Side;
use crate::config::view::ProxySnapshot;

/// Workloads that are tried for one connection.
const TRIES: usize = 3;

/// Destination of a stream.
#[derive(Debug)]
pub(super) struct Upstream {
    pub(super) stream: TcpStream,
    pub(super) service: ServiceId,
    /// Of the workload, at the client's side.
    pub(super) host: Option<HostId>,
    _held: Option<(InFlight, ConnectionPermit)>,
}

/// Dials who takes a stream to `service`.
pub(super) async fn dial(
    connection: &Connection,
    view: &ProxySnapshot,
    service: ServiceId,
) -> io::Result<Upstream> {
    let parties = &connection.parties;
    match parties.side {
        Side::Server => {
            let address = (connection.local, parties.port).into();
            let caller = SocketAddr::new(connection.peer, connection.peer_port);
            let stream = to_application(connection, view, service, caller, address).await?;
            Ok(Upstream { stream, service, host: None, _held: None })
        }
        Side::Client => to_workload(connection, view, service).await,
    }
}

async fn to_workload(
    connection: &Connection,
    view: &ProxySnapshot,
    service: ServiceId,
) -> io::Result<Upstream> {
    let v4 = connection.peer.is_ipv4();
    let nobody = || io::Error::new(io::ErrorKind::NotFound, "the service has no workload");
    let shared = &connection.shared;
    let cluster = shared.clusters.of(view, service, v4).ok_or_else(nobody)?;
    let source = view.speaks_from(&connection.parties, v4).ok_or_else(nobody)?;
    // All connections are the service's alike: no pool has a first one.
    let open = Arc::new(AtomicUsize::new(1));
    let mut tried = Vec::new();
    loop {
        let draw = Draw { key: None, random: shared.chance.next() };
        let picked = shared.clusters.pick(&cluster, &tried, draw);
        let (endpoint, mut flight) = picked.map_err(|_| nobody())?;
        tried.push(endpoint.host);
        let Some(pass) = cluster.allowance().open(&open) else {
            flight.forget();
            shared.metrics.count_overflow(Overflow::Connections);
            return Err(io::Error::other(Overflow::Connections.reason()));
        };
        let port = connection.parties.port_of(service).unwrap_or(cluster.port);
        let address = (endpoint.address, port).into();
        let dialled = if endpoint.host == view.snapshot.local {
            let caller = SocketAddr::new(source, connection.peer_port);
            to_application(connection, view, service, caller, address).await
        } else {
            connect(connection, address, source, endpoint.host).await
        };
        // A workload that accepts is as good as one that answers well.
        let attempt = match &dialled {
            Ok(_) => Attempt::Answered { status: StatusCode::OK, grpc: None },
            Err(_) => Attempt::NotSent,
        };
        let _ = flight.tell(attempt, cluster.outlier(), shared.chance.next());
        match dialled {
            Ok(stream) => {
                let host = Some(endpoint.host);
                return Ok(Upstream { stream, service, host, _held: Some((flight, pass)) });
            }
            Err(error) if tried.len() == TRIES || !cluster.has_others(&tried) => {
                return Err(error);
            }
            Err(error) => {
                tracing::debug!(%error, %address, "A workload doesn't accept connections");
            }
        }
    }
}

/// Connects to an application of this host, and tells it who calls if it wants to know.
async fn to_application(
    connection: &Connection,
    view: &ProxySnapshot,
    service: ServiceId,
    caller: SocketAddr,
    address: SocketAddr,
) -> io::Result<TcpStream> {
    let backends = &connection.shared.backends;
    let application = view.application(service, Some(address.port()));
    let listens = view.listens(service, address);
    let shown = view.shown(application, caller.ip());
    let connecting = backends.reach().connect(backends.bind(), address, listens, shown);
    let stream = timeout(connection.shared.limits.connect, connecting).await??;
    // If it fails bytes are merely slower.
    let _ = stream.set_nodelay(true);
    if let Some(version) = application.proxy_protocol {
        let identity = connection.parties.from.spiffe(&view.snapshot.mesh.trust_domain);
        announce(&stream, version, caller, address, Some(&identity)).await?;
    }
    Ok(stream)
}

/// Connects to a workload of another host.
async fn connect(
    connection: &Connection,
    address: SocketAddr,
    source: IpAddr,
    host: HostId,
) -> io::Result<TcpStream> {
    let connecting = connect_as(connection.shared.backends.bind(), Speaker::Host(source), address);
    let silence = connection.shared.metrics.silence();
    let stream = tokio::select! {
        biased;
        connected = timeout(connection.shared.limits.connect, connecting) => connected??,
        _ = silence.lose(Some(host), Instant::now()) => {
            return Err(io::Error::new(io::ErrorKind::HostUnreachable, "its host doesn't answer"));
        }
    };
    // If it fails bytes are merely slower.
    let _ = stream.set_nodelay(true);
    Ok(stream)
}
