//! Flows and tunnels as `agentctl` shows them.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use isthmus_model::{Layer4, Principal, PublicKey};
use isthmus_packet::FlowKey;
use isthmus_policy::{Outcome, Verdict};

use crate::flows::{Flow, FlowState};
use crate::snapshot::CompiledSnapshot;
use crate::tunnels::Peer;
use crate::types::{Cipher, Interface, PeerName};

/// A flow.
#[derive(Clone, Debug)]
pub struct FlowView {
    /// The process or identity that opened it.
    pub from: Principal,
    /// Whom it is for.
    pub to: Principal,
    /// The fields that the policy looked at.
    pub layer4: Layer4,
    /// As the originator's packets came in.
    pub original: FlowKey,
    /// As they went out.
    pub translated: FlowKey,
    /// The tunnel that the originator's packets came by; none: from this host.
    pub ingress: Option<PeerName>,
    /// The tunnel that they leave by; none: to this host.
    pub egress: Option<PeerName>,
    /// Decision.
    pub outcome: Outcome,
    /// In full; its rule ids are those of the current state.
    pub verdict: Verdict,
    /// The name of the rule that decided.
    pub rule: String,
    /// Progress.
    pub state: FlowState,
    /// Packets and bytes from the originator.
    pub forward: (u64, u64),
    /// Packets and bytes to the originator.
    pub backward: (u64, u64),
    /// Since its first packet.
    pub age: Duration,
    /// Since its last packet.
    pub idle: Duration,
}

/// A tunnel.
#[derive(Clone, Debug)]
pub struct PeerView {
    /// To whom.
    pub peer: PeerName,
    /// Its key.
    pub public_key: PublicKey,
    /// Endpoint from which it was last heard, or which is being tried.
    pub endpoint: Option<SocketAddr>,
    /// Since the last handshake that ended well.
    pub last_handshake: Option<Duration>,
    /// Since anything authentic came from it.
    pub last_heard: Option<Duration>,
    /// Bytes of datagrams received.
    pub received_bytes: u64,
    /// Bytes of datagrams sent.
    pub sent_bytes: u64,
    /// Bytes of the outer IP packet that the path carries.
    pub path_mtu: u16,
    /// Since the first packet that it gave no sign of life for, if it's silent.
    pub silent: Option<Duration>,
    /// Of the last ping or path probe.
    pub round_trip: Option<Duration>,
    /// Cipher for traffic to it; none: its WireGuard session seals.
    pub bulk: Option<Cipher>,
}

pub(crate) fn flow(state: &CompiledSnapshot, epoch: u32, flow: &Flow, now: Instant) -> FlowView {
    let local = state.local();
    let (from, to) = (flow.from.place.principal(local), flow.to.place.principal(local));
    // Rule ids of another state mean nothing here.
    let verdict =
        if flow.epoch == epoch { flow.verdict } else { state.judge(from, to, flow.layer4) };
    let peer = |port| match port {
        Interface::Tun => None,
        Interface::Peer(name) => Some(name),
    };
    let [forward, backward] = &flow.legs;
    FlowView {
        from,
        to,
        layer4: flow.layer4,
        original: forward.key.flow,
        translated: flow.translated(),
        ingress: peer(forward.key.port),
        egress: peer(backward.key.port),
        outcome: verdict.outcome,
        verdict,
        rule: state.policy.describe(&verdict).name.to_owned(),
        state: flow.state,
        forward: (forward.packets, forward.bytes),
        backward: (backward.packets, backward.bytes),
        age: now.saturating_duration_since(flow.created),
        idle: now.saturating_duration_since(flow.last_seen),
    }
}

pub(crate) fn peer(peer: &Peer, now: Instant) -> PeerView {
    let since = |then: Option<Instant>| then.map(|then| now.saturating_duration_since(then));
    PeerView {
        peer: peer.name,
        public_key: peer.key(),
        endpoint: peer.endpoint(),
        last_handshake: since(peer.last_handshake),
        last_heard: since(peer.last_heard),
        received_bytes: peer.received_bytes,
        sent_bytes: peer.sent_bytes,
        path_mtu: peer.path.mtu(),
        silent: since(peer.silence.since()),
        round_trip: peer.round_trip,
        bulk: peer.bulk.cipher(),
    }
}
