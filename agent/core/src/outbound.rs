//! From the TUN device to the tunnels: sealing, and making tunnels where there are none yet.

use std::time::{Duration, Instant};

use crate::bulk;
use crate::bulk::message::Message;
use crate::control::{self, Control};
use crate::counters::DropReason;
use crate::event::Event;
use crate::flows::Port;
use crate::forward::{Exit, Load};
use crate::mtu;
use crate::node::{Node, Owners, PeerName};
use crate::packet::{BadOffload, Headers, Offload, SuperPacket};
use crate::peers::{Peer, Slot};
use crate::tunnel::{MIN_BUFFER, OVERHEAD, Tunnel};

/// WireGuard's Keepalive-Timeout, and that with its Rekey-Timeout.
const KEEPALIVE: Duration = Duration::from_secs(10);
const UNANSWERED: Duration = Duration::from_secs(15);
/// Both sides of a bulk session could rekey: the second waits for the first.
const REKEY_JITTER: Duration = Duration::from_secs(10);
/// WireGuard pads packets to a multiple of this, to tell less of their length.
pub(crate) const PADDING: usize = 16;

impl Node {
    pub(crate) fn outbound(
        &mut self,
        offload: Offload,
        packet: &mut [u8],
        owners: &mut dyn Owners,
        now: Instant,
    ) {
        match offload.segment {
            None if offload.checksum_start.is_none() => self.outbound_one(packet, owners, now),
            segment => self.outbound_unfinished(offload, segment, packet, owners, now),
        }
    }

    fn outbound_one(&mut self, packet: &mut [u8], owners: &mut dyn Owners, now: Instant) {
        self.counters.from_tun.add(packet.len());
        if let Exit::ToTun(length) = self.route(Port::Tun, packet, owners, now) {
            let hairpin = self.buffers.copy(packet.get(..length).unwrap_or_default());
            self.push_tun(hairpin);
        }
    }

    /// A packet that lacks its checksum, or stands for many.
    fn outbound_unfinished(
        &mut self,
        offload: Offload,
        segment: Option<u16>,
        packet: &mut [u8],
        owners: &mut dyn Owners,
        now: Instant,
    ) {
        let Ok(headers) = Headers::parse(packet) else {
            return self.counters.drop(DropReason::Malformed);
        };
        let Some(segment) = segment else {
            return match offload.complete(packet, &headers) {
                Ok(()) => self.outbound_one(packet, owners, now),
                Err(BadOffload) => self.counters.drop(DropReason::Malformed),
            };
        };
        if self.pass_super(packet, &headers, segment, owners, now) {
            return;
        }
        // Whatever isn't simply passed on is decided packet by packet.
        let Ok(whole) = SuperPacket::new(packet, &headers, segment) else {
            return self.counters.drop(DropReason::Malformed);
        };
        let mut one = self.buffers.take(usize::from(u16::MAX));
        for index in 0..whole.count() {
            if let Some(packet) = whole.write(index, &mut one).and_then(|n| one.get_mut(..n)) {
                self.outbound_one(packet, owners, now);
            }
        }
        self.buffers.give(one);
    }

    /// Sends a super-packet of a flow that is known and allowed, and leads to a peer that can take
    /// it. False, with nothing done, for any other.
    fn pass_super(
        &mut self,
        packet: &mut [u8],
        headers: &Headers,
        segment: u16,
        owners: &mut dyn Owners,
        now: Instant,
    ) -> bool {
        let Some(passage) = self.passage(Port::Tun, headers, owners, now) else { return false };
        let Port::Peer(name) = passage.egress else { return false };
        let Some(slot) = self.peers.by_name(name) else { return false };
        let Some(peer) = self.peers.get_mut(slot) else { return false };
        let largest = headers.payload_offset + usize::from(segment);
        let has_session = peer.tunnel.as_ref().is_some_and(Tunnel::has_session);
        let is_whole = SuperPacket::new(packet, headers, segment).is_ok();
        if !is_whole || !has_session || peer.endpoint().is_none() || largest > peer.inner_limit() {
            return false;
        }
        let dont_fragment = peer.is_host();
        peer.path.note_use();
        let key = passage.rewrite.key_after(headers);
        passage.rewrite.apply(packet, headers);
        let Ok(whole) = SuperPacket::new(packet, &Headers { key, ..*headers }, segment) else {
            self.counters.drop(DropReason::Malformed);
            return true;
        };
        let count = whole.count();
        let load = Load { packets: count, bytes: whole.bytes() };
        self.note(passage.flow, passage.leg, packet, headers, load, now);
        self.counters.from_tun.add_many(load.packets, load.bytes);
        for index in 0..count {
            let length = whole.length(index);
            self.seal_with(slot, length, dont_fragment, PADDING, now, |out| {
                whole.write(index, out).is_some()
            });
        }
        true
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
        self.seal_with(slot, packet.len(), dont_fragment, padding, now, |out| {
            out.copy_from_slice(packet);
            true
        });
    }

    /// Seals a packet that `write` writes into exactly `length` bytes.
    fn seal_with(
        &mut self,
        slot: Slot,
        length: usize,
        dont_fragment: bool,
        padding: usize,
        now: Instant,
        write: impl FnOnce(&mut [u8]) -> bool,
    ) {
        let Some(peer) = self.peers.get_mut(slot) else { return };
        let (Some(to), limit) = (peer.endpoint(), peer.inner_limit()) else {
            return self.counters.drop(DropReason::NoEndpoint);
        };
        let padded = length.next_multiple_of(padding).min(limit.max(length));
        let sealed = padded + OVERHEAD;
        let bulk = &mut peer.bulk;
        let mut is_written = true;
        let is_sent = if bulk.cipher().is_some() {
            let room = (sealed, sealed);
            self.outbox.push_with(&mut self.buffers, to, dont_fragment, room, |datagram| {
                let plain = datagram.get_mut(bulk::HEADER..bulk::HEADER + padded)?;
                is_written = write_padded(plain, length, write);
                (is_written && bulk.seal(datagram)).then_some(sealed)
            })
        } else {
            let Some(tunnel) = &mut peer.tunnel else { return };
            if self.scratch.len() < padded {
                self.scratch.resize(padded, 0);
            }
            let Some(plain) = self.scratch.get_mut(..padded) else { return };
            is_written = write_padded(plain, length, write);
            let room = (sealed, sealed.max(MIN_BUFFER));
            is_written
                && self.outbox.push_with(&mut self.buffers, to, dont_fragment, room, |out| {
                    tunnel.seal(plain, out, now)
                })
        };
        match (is_sent, is_written) {
            (true, _) => {
                peer.sent_bytes += sealed as u64;
                peer.last_sent = Some(now);
                if length > 0 && peer.bulk.cipher().is_some() {
                    peer.bulk.last_sent = Some(now);
                }
                self.counters.sent.add(sealed);
            }
            (false, true) => self.counters.drop(DropReason::TransmitQueue),
            (false, false) => self.counters.drop(DropReason::Malformed),
        }
    }

    /// What bulk sessions need as time passes: messages repeated and, in place of boringtun, which
    /// doesn't see their traffic, WireGuard's timers (section 6 of its paper).
    pub(crate) fn tick_bulk(&mut self, slot: Slot, now: Instant) {
        let Some(peer) = self.peers.get(slot) else { return };
        let PeerName::Host(host) = peer.name else { return };
        if !peer.tunnel.as_ref().is_some_and(Tunnel::has_session) {
            return self.peers.end_bulk(slot);
        }
        let mut packet = [0; control::MAX_PACKET];
        let (from, to) = (self.state.host_ipv6(self.state.local()), self.state.host_ipv6(host));
        while let Some(message) = self.peers.get_mut(slot).and_then(|peer| peer.bulk.poll(now)) {
            let length = message.bytes(|payload| control::packet(from, to, payload, &mut packet));
            // Larger than what the narrowest path carries whole.
            let packet = packet.get(..length.unwrap_or_default()).unwrap_or_default();
            self.send(slot, packet, false, now);
        }
        let Some(peer) = self.peers.get(slot) else { return };
        let silent =
            |then: Option<Instant>, patience| then.is_none_or(|then| now >= then + patience);
        // One of both sides rekeys, unless it has nothing to say.
        let patience = if self.state.local() < host { Duration::ZERO } else { REKEY_JITTER };
        let is_unanswered =
            peer.bulk.last_sent > peer.last_heard && silent(peer.last_heard, UNANSWERED);
        let owes_answer =
            peer.bulk.last_received > peer.last_sent && silent(peer.last_sent, KEEPALIVE);
        if peer.bulk.is_old(patience, now) || is_unanswered {
            self.shake_hands(slot, now);
        } else if owes_answer {
            self.seal(slot, &[], true, 1, now);
        }
    }

    pub(crate) fn send_bulk_message(&mut self, slot: Slot, message: Message<'_>, now: Instant) {
        let Some(PeerName::Host(host)) = self.peers.get(slot).map(|peer| peer.name) else { return };
        let mut packet = [0; control::MAX_PACKET];
        let (from, to) = (self.state.host_ipv6(self.state.local()), self.state.host_ipv6(host));
        let length = message.bytes(|payload| control::packet(from, to, payload, &mut packet));
        self.send(slot, packet.get(..length.unwrap_or_default()).unwrap_or_default(), true, now);
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

/// Writes a packet to the start of `plain`, and zeros behind it.
fn write_padded(plain: &mut [u8], length: usize, write: impl FnOnce(&mut [u8]) -> bool) -> bool {
    let Some((packet, zeros)) = plain.split_at_mut_checked(length) else { return false };
    zeros.fill(0);
    write(packet)
}
