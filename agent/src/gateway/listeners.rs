//! A gateway's listening sockets: opened and closed as the topology says, each accepting for the
//! proxy.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use isthmus_model::{ServiceId, Snapshot};
use isthmus_net::holders;
use isthmus_net::sock_diag::Protocol;
use isthmus_proxy::Visitor;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::own_ports::stop;

const BACKLOG: u32 = 1024;
/// After a failed `accept`, which is usually a lack of file descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// All doors of this host.
#[derive(Debug)]
pub(super) struct GatewayListeners {
    visitors: mpsc::Sender<Visitor>,
    open: BTreeMap<u16, GatewayListener>,
    /// By port: why it can't be opened.
    problems: BTreeMap<u16, Closed>,
}

/// Why a port isn't open, and what opens it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Closed {
    pub(super) why: String,
    pub(super) remedy: String,
}

#[derive(Debug)]
struct GatewayListener {
    gateway: ServiceId,
    task: JoinHandle<()>,
}

impl Drop for GatewayListener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl GatewayListeners {
    #[must_use]
    pub(super) fn new(visitors: mpsc::Sender<Visitor>) -> Self {
        Self { visitors, open: BTreeMap::new(), problems: BTreeMap::new() }
    }

    /// Opens and closes doors, so that they are those of a snapshot.
    pub(super) fn follow(&mut self, snapshot: &Snapshot) {
        let wanted = wanted(snapshot);
        self.open.retain(|port, listener| wanted.get(port) == Some(&listener.gateway));
        let mut problems = BTreeMap::new();
        for (port, gateway) in wanted {
            if self.open.contains_key(&port) {
                continue;
            }
            match listen(port) {
                Ok(listener) => {
                    let task = tokio::spawn(accept(listener, gateway, port, self.visitors.clone()));
                    self.open.insert(port, GatewayListener { gateway, task });
                }
                Err(error) => {
                    // Who has it isn't looked up again and again.
                    let known = self.problems.remove(&port);
                    problems.insert(port, known.unwrap_or_else(|| Closed::by(port, &error)));
                }
            }
        }
        self.problems = problems;
    }

    /// Why a port isn't open, if it isn't.
    #[must_use]
    pub(super) fn problem(&self, port: u16) -> Option<&Closed> {
        self.problems.get(&port)
    }
}

impl Closed {
    fn by(port: u16, error: &io::Error) -> Self {
        if error.kind() != io::ErrorKind::AddrInUse {
            let remedy = "let the agent open it (CAP_NET_BIND_SERVICE), or choose another port";
            let why = format!("port {port} can't be opened: {error}");
            return Self { why, remedy: remedy.to_owned() };
        }
        let holders = holders::of_port(Protocol::Tcp, port).unwrap_or_default();
        let who: Vec<String> = holders.iter().map(ToString::to_string).collect();
        let who = if who.is_empty() { "somebody".to_owned() } else { who.join(", ") };
        let remedy =
            format!("{}, or choose another port; it is tried again by itself", stop(&holders));
        Self { why: format!("port {port} can't be opened: {who} has it"), remedy }
    }
}

/// The ports that gateways have here. Where two want one, the first has it.
fn wanted(snapshot: &Snapshot) -> BTreeMap<u16, ServiceId> {
    let mut wanted = BTreeMap::new();
    for (id, service, _) in snapshot.local_services() {
        let listeners = service.gateway().map_or(&[][..], |gateway| &gateway.listeners);
        for port in listeners.iter().map(|listener| listener.port).collect::<BTreeSet<u16>>() {
            wanted.entry(port).or_insert(id);
        }
    }
    wanted
}

/// On all addresses, of both families where the host has both.
fn listen(port: u16) -> io::Result<TcpListener> {
    let bind = |socket: TcpSocket, address: SocketAddr| {
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    match TcpSocket::new_v6() {
        Ok(socket) => match bind(socket, (Ipv6Addr::UNSPECIFIED, port).into()) {
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {
                bind(TcpSocket::new_v4()?, (Ipv4Addr::UNSPECIFIED, port).into())
            }
            bound => bound,
        },
        Err(_) => bind(TcpSocket::new_v4()?, (Ipv4Addr::UNSPECIFIED, port).into()),
    }
}

async fn accept(
    listener: TcpListener,
    gateway: ServiceId,
    port: u16,
    visitors: mpsc::Sender<Visitor>,
) {
    loop {
        let accepted = match listener.accept().await {
            Ok((stream, _)) => stream.into_std(),
            Err(error) => Err(error),
        };
        let stream = match accepted {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(%error, port, "Failed to accept a gateway's client");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        if visitors.send(Visitor { stream, gateway, port }).await.is_err() {
            return;
        }
    }
}
