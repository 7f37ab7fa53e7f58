//! From the TUN device to the tunnels: sealing, and making tunnels where there are none yet.

use std::time::Instant;

use crate::control::{self, Control};
use crate::counters::DropReason;
use crate::event::Event;
use crate::flows::Port;
use crate::forward::Exit;
use crate::mtu;
use crate::node::{Node, Owners, PeerName};
use crate::peers::{Peer, Slot};
use crate::tunnel::{MIN_BUFFER, OVERHEAD, Tunnel};

/// WireGuard pads packets to a multiple of this, to tell less of their length.
const PADDING: usize = 16;

impl Node {
    pub(crate) fn outbound(&mut self, packet: &mut [u8], owners: &mut dyn Owners, now: Instant) {
        self.counters.from_tun.add(packet.len());
        if let Exit::ToTun(length) = self.route(Port::Tun, packet, owners, now) {
            let hairpin = self.buffers.copy(packet.get(..length).unwrap_or_default());
            self.push_tun(hairpin);
        }
    }

    /// Gives a packet to the TUN device.
    pub(crate) fn push_tun(&mut self, packet: Vec<u8>) {
        let length = packet.len();
        match self.tun_queue.push(packet) {
            Ok(()) => self.counters.to_tun.add(length),
            Err(packet) => {
                self.buffers.give(packet);
                self.counters.drop(DropReason::TunQueue);
            }
        }
    }

    /// Sends a packet by a peer's tunnel; if there is no session, it waits for the handshake.
    pub(crate) fn send(&mut self, slot: Slot, packet: &[u8], dont_fragment: bool, now: Instant) {
        let Some(peer) = self.peers.wake(slot, &self.keys, now) else {
            return self.counters.drop(DropReason::NoRoute);
        };
        let Some(tunnel) = &mut peer.tunnel else {
            return self.counters.drop(DropReason::NoRoute);
        };
        if tunnel.has_session() {
            return self.seal(slot, packet, dont_fragment, PADDING, now);
        }
        if !tunnel.enqueue(packet, dont_fragment, now) {
            self.counters.drop(DropReason::TunnelQueue);
        }
        self.shake_hands(slot, now);
    }

    fn seal(
        &mut self,
        slot: Slot,
        packet: &[u8],
        dont_fragment: bool,
        padding: usize,
        now: Instant,
    ) {
        let Some(peer) = self.peers.get_mut(slot) else { return };
        let (Some(to), limit) = (peer.endpoint(), peer.inner_limit()) else {
            return self.counters.drop(DropReason::NoEndpoint);
        };
        let Some(tunnel) = &mut peer.tunnel else { return };
        let length = packet.len();
        let padded = length.next_multiple_of(padding).min(limit.max(length));
        let source = if padded == length {
            packet
        } else {
            self.scratch.clear();
            self.scratch.extend_from_slice(packet);
            self.scratch.resize(padded, 0);
            &self.scratch
        };
        let sealed = padded + OVERHEAD;
        let size = (sealed, sealed.max(MIN_BUFFER));
        let is_sent = self.outbox.push_with(&mut self.buffers, to, dont_fragment, size, |out| {
            tunnel.seal(source, out, now)
        });
        if is_sent {
            peer.sent_bytes += sealed as u64;
            self.counters.sent.add(sealed);
        } else {
            self.counters.drop(DropReason::TransmitQueue);
        }
    }

    /// Tells a peer where this host is now, if it is to be told.
    pub(crate) fn announce(&mut self, slot: Slot, now: Instant) {
        if self.peers.get_mut(slot).is_some_and(Peer::take_announcement) {
            // An empty packet: WireGuard's keepalive.
            self.seal(slot, &[], true, 1, now);
        }
    }

    /// Begins a handshake, unless one is on its way or there is nobody to talk to.
    pub(crate) fn shake_hands(&mut self, slot: Slot, now: Instant) {
        let Some(peer) = self.peers.wake(slot, &self.keys, now) else { return };
        let Some(to) = peer.endpoint_for_try(0) else { return };
        let Some(tunnel) = &mut peer.tunnel else { return };
        let mut initiation = [0; MIN_BUFFER];
        if let Some(length) = tunnel.initiate(&mut initiation, now) {
            self.counters.handshakes_initiated += 1;
            self.push_datagram(slot, to, initiation.get(..length).unwrap_or_default());
        }
    }

    /// Sends what isn't a packet of a flow: handshakes, keepalives, cookies.
    pub(crate) fn push_datagram(&mut self, slot: Slot, to: std::net::SocketAddr, datagram: &[u8]) {
        if !self.outbox.push(&mut self.buffers, to, datagram) {
            return self.counters.drop(DropReason::TransmitQueue);
        }
        self.counters.sent.add(datagram.len());
        if let Some(peer) = self.peers.get_mut(slot) {
            peer.sent_bytes += datagram.len() as u64;
        }
    }

    /// Sends what has waited for a session.
    pub(crate) fn flush(&mut self, slot: Slot, now: Instant) {
        loop {
            let tunnel = self.peers.get_mut(slot).and_then(|peer| peer.tunnel.as_mut());
            let Some(waiting) = tunnel.and_then(|tunnel| tunnel.dequeue()) else { return };
            self.seal(slot, &waiting.packet, waiting.dont_fragment, PADDING, now);
        }
    }

    /// Speaks to another host's agent.
    pub(crate) fn send_control(&mut self, slot: Slot, message: Control, now: Instant) {
        let mut packet = [0; control::MAX_PACKET];
        if let Some(length) = self.write_control(slot, message, 0, &mut packet) {
            self.send(slot, packet.get(..length).unwrap_or_default(), true, now);
        }
    }

    /// Probes the path to another host, if it is time.
    pub(crate) fn probe(&mut self, slot: Slot, now: Instant) {
        let Some(peer) = self.peers.get_mut(slot) else { return };
        let PeerName::Host(host) = peer.name else { return };
        match peer.path.tick(now) {
            mtu::Action::Nothing => {}
            mtu::Action::Changed => {
                let bytes = peer.path.mtu();
                self.tell(Event::PathMtu { host, bytes });
            }
            mtu::Action::Probe { identifier, above, ceiling } => {
                let sizes =
                    mtu::LADDER.into_iter().filter(|size| (above + 1..=ceiling).contains(size));
                for size in sizes {
                    self.send_probe(slot, identifier, size, now);
                }
            }
        }
    }

    fn send_probe(&mut self, slot: Slot, identifier: u16, size: u16, now: Instant) {
        let Some(peer) = self.peers.get(slot) else { return };
        if !peer.tunnel.as_ref().is_some_and(Tunnel::has_session) {
            return;
        }
        let length = usize::from(size).saturating_sub(mtu::overhead(peer.endpoint()));
        let mut packet = [0; control::MAX_PACKET];
        let message = Control::Probe { identifier, size };
        if let Some(length) = self.write_control(slot, message, length, &mut packet) {
            let packet = packet.get(..length).unwrap_or_default();
            // Not padded: it must have just this size.
            self.seal(slot, packet, true, 1, now);
        }
    }

    fn write_control(
        &self,
        slot: Slot,
        message: Control,
        length: usize,
        out: &mut [u8],
    ) -> Option<usize> {
        let PeerName::Host(host) = self.peers.get(slot)?.name else { return None };
        let (from, to) = (self.state.host_ipv6(self.state.local()), self.state.host_ipv6(host));
        message.write(from, to, length, out)
    }
}
