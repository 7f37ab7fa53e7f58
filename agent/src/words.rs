//! Words for people: names of peers, states of tunnels, ends of flows.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use isthmus_core::{CompiledSnapshot, PeerName, PeerView};
use isthmus_model::Layer4;

/// WireGuard's sessions end so long after their handshake.
const SESSION_LIFE: Duration = Duration::from_secs(180);

/// A peer by the name that the topology has for it.
pub(crate) fn peer_name(state: &CompiledSnapshot, peer: PeerName) -> String {
    let snapshot = &state.snapshot;
    match peer {
        PeerName::Host(id) => snapshot
            .hosts
            .get(&id)
            .map_or_else(|| format!("host {}", id.0), |it| it.name.to_string()),
        PeerName::Device(id) => snapshot
            .devices
            .get(&id)
            .map_or_else(|| format!("device {}", id.0), |it| it.name.to_string()),
    }
}

/// Whether there is a session that packets can go by, and a host at its other end.
pub(crate) fn is_up(peer: &PeerView) -> bool {
    peer.silent.is_none() && peer.last_handshake.is_some_and(|since| since < SESSION_LIFE)
}

/// "up", "silent", "connecting" or "idle".
pub(crate) fn peer_state(peer: &PeerView) -> &'static str {
    if is_up(peer) {
        "up"
    } else if peer.silent.is_some() {
        "silent"
    } else if peer.sent_bytes > 0 && peer.last_handshake.is_none() {
        "connecting"
    } else {
        "idle"
    }
}

/// The port that the flow is for, even where it is led to the proxy's.
pub(crate) const fn asked_port(layer4: Layer4) -> u16 {
    match layer4 {
        Layer4::Tcp(port) | Layer4::Udp(port) => port,
        Layer4::Icmp | Layer4::Other(_) => 0,
    }
}

/// One end of a flow, with its port where it has one.
pub(crate) fn end(layer4: Layer4, address: IpAddr, port: u16) -> String {
    match layer4 {
        Layer4::Tcp(_) | Layer4::Udp(_) => SocketAddr::new(address, port).to_string(),
        Layer4::Icmp | Layer4::Other(_) => address.to_string(),
    }
}
