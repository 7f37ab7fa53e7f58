//! Notices when this host's own firewall stops what the overlay needs.
//!
//! A firewall that drops by default drops what the data plane hands to the proxy by the overlay's
//! device, and nothing of ours can overrule it: whatever one table of nftables accepts, another may still
//! drop. So the agent tries it: it puts the first packet of a connection into the device, as the data
//! plane does, and sees whether it reaches the proxy's listener. Tunnels can't be tried from the inside;
//! there it reads what rules there are.

mod advice;
mod probe;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use isthmus_core::CompiledSnapshot;
use isthmus_model::{Code, HostId, Problem, ServiceId};
use isthmus_net::listen::SynTrap;
use tokio::process::Command;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use crate::dataplane::Handle;
use crate::status::Shared;
use crate::words::peer_state;
use advice::{Firewall, proxy_problem, tunnel_problem};

const LOOK_EVERY: Duration = Duration::from_secs(10);
/// So many looks apart the rules are read where no tunnel is up: some hosts have very many.
const READ_RULES: u64 = 30;
/// The device and its routes are a moment old.
const FIRST_LOOK: Duration = Duration::from_secs(1);
/// A packet takes microseconds; a busy host may drop one.
const PATIENCE: Duration = Duration::from_millis(300);
const TRIES: usize = 3;
const POLL: Duration = Duration::from_millis(5);
/// For `nft`.
const LISTING: Duration = Duration::from_secs(5);

const PROXY: Code = Code::FirewallProxy;
const TUNNELS: Code = Code::FirewallTunnels;

/// Looks again and again, until the task is dropped.
pub(crate) async fn watch(
    shared: Arc<Shared>,
    packets: Handle,
    listeners: Vec<TcpListener>,
    mut own: watch::Receiver<Vec<IpAddr>>,
    states: watch::Receiver<Arc<CompiledSnapshot>>,
) {
    let _clear = Clear(Arc::clone(&shared));
    sleep(FIRST_LOOK).await;
    for look in 0_u64.. {
        let mut blocked = Vec::new();
        let addresses = own.borrow_and_update().clone();
        for address in addresses {
            let state = Arc::clone(&states.borrow());
            if is_blocked(&packets, &listeners, address, &state).await {
                blocked.push(address);
            }
        }
        let proxy = match blocked.as_slice() {
            [] => None,
            blocked => {
                let (device, port) = (&shared.settings.device, shared.ports.proxy());
                proxy_problem(&find_firewall().await, device, port, blocked)
            }
        };
        shared.problems.set(PROXY, proxy);
        if look % READ_RULES == 0 {
            let tunnels = if is_alone(&packets).await {
                tunnel_problem(&find_firewall().await, shared.ports.tunnels())
            } else {
                None
            };
            shared.problems.set(TUNNELS, tunnels);
        }
        // Another set of addresses is looked at at once.
        drop(timeout(LOOK_EVERY, own.changed()).await);
        sleep(FIRST_LOOK).await;
    }
}

/// Nobody knows any more when nobody looks.
struct Clear(Arc<Shared>);

impl Drop for Clear {
    fn drop(&mut self) {
        self.0.problems.set(PROXY, None);
        self.0.problems.set(TUNNELS, None);
    }
}

/// Whether the first packet of a connection to the proxy at `address` doesn't arrive.
async fn is_blocked(
    packets: &Handle,
    listeners: &[TcpListener],
    address: IpAddr,
    state: &CompiledSnapshot,
) -> bool {
    let listener = listeners.iter().find_map(|listener| {
        let local = listener.local_addr().ok()?;
        (local.is_ipv4() == address.is_ipv4()).then_some((listener, local.port()))
    });
    let Some((listener, port)) = listener else { return false };
    let Some(from) = nobody(state, address.is_ipv4()) else { return false };
    for _ in 0..TRIES {
        let Ok(sequence) = getrandom::u32() else { return false };
        let to = SocketAddr::new(address, port);
        let Some(packet) = probe::syn(SocketAddr::new(from, probe::PORT), to, sequence) else {
            return false;
        };
        match arrives(packets, listener, packet, sequence).await {
            Ok(true) => return false,
            Ok(false) => {}
            Err(error) => {
                tracing::debug!(%error, "couldn't try what the firewall does");
                return false;
            }
        }
    }
    true
}

async fn arrives(
    packets: &Handle,
    listener: &TcpListener,
    packet: Vec<u8>,
    sequence: u32,
) -> std::io::Result<bool> {
    let trap = SynTrap::set(listener, sequence)?;
    packets.write(packet);
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if trap.has_caught()? {
            return Ok(true);
        }
        sleep(POLL).await;
    }
    Ok(false)
}

/// An address of the mesh that stands for nobody.
fn nobody(state: &CompiledSnapshot, v4: bool) -> Option<IpAddr> {
    let snapshot = &state.snapshot;
    let mesh = snapshot.mesh.ipv4;
    let is_nobody = |address: &IpAddr| state.directory.place(*address).is_none();
    if !v4 {
        let address = snapshot.workload_ipv6(HostId(u32::MAX), ServiceId(u32::MAX));
        return Some(IpAddr::V6(address)).filter(is_nobody);
    }
    let first = mesh.network().to_bits();
    let addresses =
        (1..=u32::from(u16::MAX)).map(|number| Ipv4Addr::from_bits(first.saturating_add(number)));
    addresses
        .take_while(|address| mesh.contains(address))
        .filter(|address| !snapshot.mesh.virtual_ipv4.contains(address))
        .map(IpAddr::V4)
        .find(is_nobody)
}

/// Whether there are peers, and a tunnel to none of them.
async fn is_alone(packets: &Handle) -> bool {
    let Ok(sample) = packets.sample().await else { return false };
    !sample.peers.is_empty() && sample.peers.iter().all(|peer| peer_state(peer) != "up")
}

/// Firewall rules of this host that block tunnels.
pub(crate) async fn tunnels_kept_out(port: u16) -> Option<Problem> {
    tunnel_problem(&find_firewall().await, port)
}

async fn find_firewall() -> Firewall {
    let ufw = tokio::fs::read_to_string("/etc/ufw/ufw.conf").await.unwrap_or_default();
    Firewall::read(&list_rules().await, &ufw)
}

/// All rules of nftables as text; empty where they can't be had.
async fn list_rules() -> String {
    let mut nft = Command::new("nft");
    nft.args(["-s", "list", "ruleset"])
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    match timeout(LISTING, nft.output()).await {
        Ok(Ok(output)) => String::from_utf8_lossy(&output.stdout).into_owned(),
        Ok(Err(_)) | Err(_) => String::new(),
    }
}
