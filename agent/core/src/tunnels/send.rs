//! Into the tunnels. What goes by a bulk session gets its numbers here and is sealed elsewhere; what goes by WireGuard's
//! is sealed here; where there is no session yet, packets wait for the handshake.

use std::net::SocketAddr;
use std::time::Instant;

use isthmus_packet::SuperPacket;

use super::Tunnels;
use super::outbox::RunTarget;
use super::peers::{Peer, Slot};
use super::sealing::{Cut, PADDING, Sealing, padded, write_padded};
use super::tunnel::{MIN_BUFFER, OVERHEAD};
use crate::types::{DropReason, Telemetry};

/// Metadata of a packet that leaves through a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EgressMeta {
    pub(crate) slot: Slot,
    /// The same for all packets of a flow, which go by one lane.
    pub(crate) flow: u32,
    pub(crate) length: usize,
    pub(crate) dont_fragment: bool,
}

/// Number for packets that belong to no flow.
const NO_FLOW: u32 = u32::MAX;

/// Number of datagrams that leave, and their packets' sizes: all are as long as the first, except the last.
#[derive(Clone, Copy)]
struct Sizes {
    count: usize,
    first: usize,
    last: usize,
}

impl Tunnels {
    /// The remaining work for a packet that goes to a peer over its bulk session.
    pub(crate) fn depart(
        &mut self,
        lane: u8,
        egress: EgressMeta,
        telemetry: &mut Telemetry,
        now: Instant,
    ) -> Option<Sealing> {
        let length = egress.length;
        let sizes = Sizes { count: 1, first: length, last: length };
        self.reserve(lane, egress, Cut::Whole(length), sizes, telemetry, now)
    }

    /// Likewise for a super-packet, which leaves as many.
    pub(crate) fn depart_as(
        &mut self,
        lane: u8,
        egress: EgressMeta,
        cut: Cut,
        whole: &SuperPacket<'_>,
        telemetry: &mut Telemetry,
        now: Instant,
    ) -> Option<Sealing> {
        let count = whole.count();
        let (first, last) = (whole.length(0), whole.length(count.saturating_sub(1)));
        self.reserve(lane, egress, cut, Sizes { count, first, last }, telemetry, now)
    }

    /// Counts datagrams as sent, and gives them their numbers.
    fn reserve(
        &mut self,
        lane: u8,
        egress: EgressMeta,
        cut: Cut,
        sizes: Sizes,
        telemetry: &mut Telemetry,
        now: Instant,
    ) -> Option<Sealing> {
        let EgressMeta { slot, flow, dont_fragment, .. } = egress;
        let count = sizes.count;
        let peer = self.peers.get_mut(slot)?;
        let Some(to) = peer.endpoint() else {
            telemetry.counters.drop_many(DropReason::NoEndpoint, count as u64);
            return None;
        };
        let limit = peer.inner_limit();
        let (key, header) = peer.bulk.reserve(lane, flow, count as u64)?;
        let bytes =
            count.saturating_sub(1) * sealed(sizes.first, limit) + sealed(sizes.last, limit);
        peer.sent_bytes += bytes as u64;
        peer.last_sent = Some(now);
        if egress.length > 0 {
            peer.bulk.last_sent = Some(now);
        }
        telemetry.counters.sent.add_many(count, bytes);
        Some(Sealing { key, header, to, dont_fragment, padding: PADDING, limit, cut })
    }

    /// Seals into the outbox.
    pub(crate) fn seal_now(&mut self, sealing: &Sealing, packet: &[u8], telemetry: &mut Telemetry) {
        let lost = sealing.seal(packet, &mut self.outbox);
        telemetry.counters.drop_many(DropReason::TransmitQueue, lost as u64);
    }

    /// Sends a packet by a peer's tunnel; if there is no session, it waits for the handshake.
    pub(crate) fn send(
        &mut self,
        slot: Slot,
        packet: &[u8],
        dont_fragment: bool,
        telemetry: &mut Telemetry,
        now: Instant,
    ) {
        let Some(peer) = self.peers.wake(slot, &self.keys, now) else {
            return telemetry.drop(DropReason::NoRoute);
        };
        let Some(tunnel) = &mut peer.tunnel else {
            return telemetry.drop(DropReason::NoRoute);
        };
        if tunnel.has_session() {
            let length = packet.len();
            let egress = EgressMeta { slot, flow: NO_FLOW, length, dont_fragment };
            return self.seal(egress, packet, PADDING, telemetry, now);
        }
        if !tunnel.enqueue(packet, dont_fragment, now) {
            telemetry.drop(DropReason::TunnelQueue);
        }
        self.shake_hands(slot, telemetry, now);
    }

    /// Sends a packet of agents that has just this size, if there is a session.
    pub(super) fn send_unpadded(
        &mut self,
        slot: Slot,
        packet: &[u8],
        telemetry: &mut Telemetry,
        now: Instant,
    ) {
        let length = packet.len();
        let egress = EgressMeta { slot, flow: NO_FLOW, length, dont_fragment: true };
        self.seal(egress, packet, 1, telemetry, now);
    }

    fn seal(
        &mut self,
        egress: EgressMeta,
        packet: &[u8],
        padding: usize,
        telemetry: &mut Telemetry,
        now: Instant,
    ) {
        if self.peers.get(egress.slot).is_some_and(|peer| peer.bulk.cipher().is_some()) {
            if let Some(mut sealing) = self.depart(0, egress, telemetry, now) {
                sealing.padding = padding;
                self.seal_now(&sealing, packet, telemetry);
            }
            return;
        }
        self.seal_with(egress, padding, telemetry, now, |out| {
            out.copy_from_slice(packet);
            true
        });
    }

    /// Seals a segment of a super-packet by the WireGuard session.
    pub(crate) fn seal_segment(
        &mut self,
        egress: EgressMeta,
        telemetry: &mut Telemetry,
        now: Instant,
        write: impl FnOnce(&mut [u8]) -> bool,
    ) {
        self.seal_with(egress, PADDING, telemetry, now, write);
    }

    /// Seals a packet that `write` writes into exactly its length of bytes by the WireGuard session.
    fn seal_with(
        &mut self,
        egress: EgressMeta,
        padding: usize,
        telemetry: &mut Telemetry,
        now: Instant,
        write: impl FnOnce(&mut [u8]) -> bool,
    ) {
        let EgressMeta { slot, length, dont_fragment, .. } = egress;
        let Some(peer) = self.peers.get_mut(slot) else { return };
        let (Some(to), limit) = (peer.endpoint(), peer.inner_limit()) else {
            return telemetry.drop(DropReason::NoEndpoint);
        };
        let Some(tunnel) = &mut peer.tunnel else { return };
        let padded = padded(length, padding, limit);
        if self.scratch.len() < padded {
            self.scratch.resize(padded, 0);
        }
        let Some(plain) = self.scratch.get_mut(..padded) else { return };
        if !write_padded(plain, length, write) {
            return telemetry.drop(DropReason::Malformed);
        }
        let sealed = padded + OVERHEAD;
        let room = (sealed, sealed.max(MIN_BUFFER));
        let is_sent =
            self.outbox.push_with(RunTarget { to, lane: 0, dont_fragment }, room, |out| {
                tunnel.seal(plain, out, now)
            });
        if !is_sent {
            return telemetry.drop(DropReason::TransmitQueue);
        }
        peer.sent_bytes += sealed as u64;
        peer.last_sent = Some(now);
        telemetry.counters.sent.add(sealed);
    }

    /// Tells a peer where this host is now, if it is to be told.
    pub(super) fn announce(&mut self, slot: Slot, telemetry: &mut Telemetry, now: Instant) {
        if self.peers.get_mut(slot).is_some_and(Peer::take_announcement) {
            // An empty packet: WireGuard's keepalive.
            self.send_unpadded(slot, &[], telemetry, now);
        }
    }

    /// Begins a handshake, unless one is on its way or there is nobody to talk to.
    pub(super) fn shake_hands(&mut self, slot: Slot, telemetry: &mut Telemetry, now: Instant) {
        let Some(peer) = self.peers.wake(slot, &self.keys, now) else { return };
        let Some(to) = peer.endpoint_for_try(0) else { return };
        let Some(tunnel) = &mut peer.tunnel else { return };
        let mut initiation = [0; MIN_BUFFER];
        if let Some(length) = tunnel.initiate(&mut initiation, now) {
            telemetry.counters.handshakes_initiated += 1;
            let initiation = initiation.get(..length).unwrap_or_default();
            self.push_datagram(slot, to, initiation, telemetry);
        }
    }

    /// Sends what isn't a packet of a flow: handshakes, keepalives, cookies.
    pub(super) fn push_datagram(
        &mut self,
        slot: Slot,
        to: SocketAddr,
        datagram: &[u8],
        telemetry: &mut Telemetry,
    ) {
        if !self.outbox.push(to, datagram) {
            return telemetry.drop(DropReason::TransmitQueue);
        }
        telemetry.counters.sent.add(datagram.len());
        if let Some(peer) = self.peers.get_mut(slot) {
            peer.sent_bytes += datagram.len() as u64;
        }
    }

    /// Sends what has waited for a session.
    pub(super) fn flush(&mut self, slot: Slot, telemetry: &mut Telemetry, now: Instant) {
        loop {
            let tunnel = self.peers.get_mut(slot).and_then(|peer| peer.tunnel.as_mut());
            let Some(waiting) = tunnel.and_then(|tunnel| tunnel.dequeue()) else { return };
            let (length, dont_fragment) = (waiting.packet.len(), waiting.dont_fragment);
            let egress = EgressMeta { slot, flow: NO_FLOW, length, dont_fragment };
            self.seal(egress, &waiting.packet, PADDING, telemetry, now);
        }
    }
}

/// The bytes of a packet's datagram.
fn sealed(length: usize, limit: usize) -> usize {
    padded(length, PADDING, limit) + OVERHEAD
}
