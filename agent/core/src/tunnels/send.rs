//! From the TUN device to the tunnels, or back: sealing, and making tunnels where there are none yet.

use std::time::{Duration, Instant};

use isthmus_packet::{Headers, Offload, SuperPacket};

use crate::bulk::message::Message;
use crate::control::{self, Control};
use crate::counters::DropReason;
use crate::event::Event;
use crate::flows::{FlowRef, Port};
use crate::forward::{Departure, Exit, Load, Passage};
use crate::mtu;
use crate::node::{Node, Owners, PeerName};
use crate::outbox::Way;
use crate::peers::{Peer, Slot};
use crate::sealing::{Cut, Sealing, padded, write_padded};
use crate::task::{Hairpin, Task};
use crate::tunnel::{MIN_BUFFER, OVERHEAD, Tunnel};

/// WireGuard's Keepalive-Timeout, and that with its Rekey-Timeout.
const KEEPALIVE: Duration = Duration::from_secs(10);
const UNANSWERED: Duration = Duration::from_secs(15);
/// Both sides of a bulk session could rekey: the second waits for the first.
const REKEY_JITTER: Duration = Duration::from_secs(10);
/// WireGuard pads packets to a multiple of this, to tell less of their length.
pub(crate) const PADDING: usize = 16;

/// Echoes that nobody waits for have this identifier and sequence.
const NOBODYS_PING: u16 = u16::MAX;

/// The largest packet that a super-packet is cut into.
const MAX_SEGMENT: usize = 65_535;

/// What became of a super-packet.
enum Super {
    /// Nothing yet: it is to be decided packet by packet.
    Refused,
    /// It was passed on, up to what is left to do.
    Passed(Option<Task>),
}

impl Node {
    pub(crate) fn outbound(
        &mut self,
        lane: u8,
        offload: Offload,
        packet: &mut [u8],
        owners: &mut dyn Owners,
        now: Instant,
    ) -> Option<Task> {
        if offload == Offload::NONE {
            let exit = self.route_one(packet, owners, now);
            return self.leave(lane, exit, now);
        }
        let Ok(headers) = Headers::parse(packet) else {
            self.counters.drop(DropReason::Malformed);
            return None;
        };
        let Some(segment) = offload.segment else {
            return self.pass_partial(lane, offload, packet, &headers, owners, now);
        };
        match self.pass_super(lane, offload, packet, &headers, segment, owners, now) {
            Super::Passed(task) => task,
            Super::Refused => {
                self.pass_segments(lane, packet, &headers, segment, owners, now);
                None
            }
        }
    }

    /// A packet that lacks nothing.
    fn route_one(&mut self, packet: &mut [u8], owners: &mut dyn Owners, now: Instant) -> Exit {
        self.counters.from_tun.add(packet.len());
        self.route(Port::Tun, packet, owners, now)
    }

    /// What is left to do for a packet that goes there.
    fn leave(&mut self, lane: u8, exit: Exit, now: Instant) -> Option<Task> {
        match exit {
            Exit::Done | Exit::Denied => None,
            Exit::ToTun(length) => {
                self.counters.to_tun.add(length);
                Some(Task::Write(Hairpin::complete(length)))
            }
            Exit::ToPeer(departure) => self.depart(lane, departure, now).map(Task::Seal),
        }
    }

    /// A packet that lacks its checksum. One that goes back to the kernel needs none.
    fn pass_partial(
        &mut self,
        lane: u8,
        offload: Offload,
        packet: &mut [u8],
        headers: &Headers,
        owners: &mut dyn Owners,
        now: Instant,
    ) -> Option<Task> {
        let is_whole = headers.transport.is_offloaded() && headers.fragment.is_none();
        let passage = if is_whole { self.passage(Port::Tun, headers, owners, now) } else { None };
        if let Some(passage) = passage
            && passage.egress == Port::Tun
            && let Some(hairpin) = self.turn_round(offload, packet, headers, passage, now)
        {
            return Some(Task::Write(hairpin));
        }
        if offload.complete(packet, headers).is_err() {
            self.counters.drop(DropReason::Malformed);
            return None;
        }
        let exit = match (passage, packet.get_mut(..headers.total_length)) {
            (Some(passage), Some(packet)) => {
                self.counters.from_tun.add(packet.len());
                self.pass(passage.flow, passage.leg, packet, headers, now)
            }
            (None, _) | (_, None) => self.route_one(packet, owners, now),
        };
        self.leave(lane, exit, now)
    }

    /// Sends an unfinished packet back to the kernel as unfinished as it came. None, with nothing done,
    /// if the device can't take it or it isn't what its vnet header says.
    fn turn_round(
        &mut self,
        offload: Offload,
        packet: &mut [u8],
        headers: &Headers,
        passage: Passage,
        now: Instant,
    ) -> Option<Hairpin> {
        if !self.coalesces || offload.checksum_start.map(usize::from) != Some(headers.l4_offset) {
            return None;
        }
        let length = headers.total_length;
        let load = match offload.segment {
            Some(segment) => {
                let whole = SuperPacket::new(packet, headers, segment).ok()?;
                Load { packets: whole.count(), bytes: whole.bytes() }
            }
            None => Load { packets: 1, bytes: length },
        };
        let hairpin = Hairpin::partial(headers, offload.segment)?;
        self.note(passage.flow, passage.leg, packet, headers, load, now);
        passage.rewrite.apply_partial(packet, headers);
        self.counters.from_tun.add_many(load.packets, load.bytes);
        self.counters.to_tun.add_many(load.packets, load.bytes);
        Some(hairpin)
    }

    /// Decides about a super-packet packet by packet.
    fn pass_segments(
        &mut self,
        lane: u8,
        packet: &[u8],
        headers: &Headers,
        segment: u16,
        owners: &mut dyn Owners,
        now: Instant,
    ) {
        let Ok(whole) = SuperPacket::new(packet, headers, segment) else {
            return self.counters.drop(DropReason::Malformed);
        };
        let mut one = [0; MAX_SEGMENT];
        let too_big = self.counters.dropped(DropReason::TooBig);
        for index in 0..whole.count() {
            // The sender was told by the first.
            if self.counters.dropped(DropReason::TooBig) > too_big {
                let rest = (whole.count() - index) as u64;
                return self.counters.drop_many(DropReason::TooBig, rest);
            }
            let Some(packet) = whole.write(index, &mut one).and_then(|n| one.get_mut(..n)) else {
                self.counters.drop(DropReason::Malformed);
                continue;
            };
            match self.route_one(packet, owners, now) {
                Exit::Done | Exit::Denied => {}
                Exit::ToTun(length) => self.pass_tun(packet.get(..length).unwrap_or_default()),
                Exit::ToPeer(departure) => {
                    if let Some(sealing) = self.depart(lane, departure, now) {
                        self.seal_now(&sealing, packet);
                    }
                }
            }
        }
    }

    /// Sends a super-packet of a flow that is known and allowed, and leads to a peer that can take
    /// it, or back to the kernel.
    #[expect(clippy::too_many_arguments, reason = "what a frame is, and what it meets with")]
    fn pass_super(
        &mut self,
        lane: u8,
        offload: Offload,
        packet: &mut [u8],
        headers: &Headers,
        segment: u16,
        owners: &mut dyn Owners,
        now: Instant,
    ) -> Super {
        let Some(passage) = self.passage(Port::Tun, headers, owners, now) else {
            return Super::Refused;
        };
        let Port::Peer(name) = passage.egress else {
            let hairpin = self.turn_round(offload, packet, headers, passage, now);
            return hairpin.map_or(Super::Refused, |it| Super::Passed(Some(Task::Write(it))));
        };
        let Some(slot) = self.peers.by_name(name) else { return Super::Refused };
        let Some(peer) = self.peers.get_mut(slot) else { return Super::Refused };
        let largest = headers.payload_offset + usize::from(segment);
        let has_session = peer.tunnel.as_ref().is_some_and(Tunnel::has_session);
        let is_whole = SuperPacket::new(packet, headers, segment).is_ok();
        if !is_whole || !has_session || peer.endpoint().is_none() || largest > peer.inner_limit() {
            return Super::Refused;
        }
        let dont_fragment = peer.is_host();
        peer.note_use(now);
        let headers = &Headers { key: passage.rewrite.key_after(headers), ..*headers };
        passage.rewrite.apply(packet, headers);
        let Ok(whole) = SuperPacket::new(packet, headers, segment) else {
            self.counters.drop(DropReason::Malformed);
            return Super::Passed(None);
        };
        let load = Load { packets: whole.count(), bytes: whole.bytes() };
        self.note(passage.flow, passage.leg, packet, headers, load, now);
        self.counters.from_tun.add_many(load.packets, load.bytes);
        let departure =
            Departure { slot, flow: passage.flow, length: headers.total_length, dont_fragment };
        if self.peers.get(slot).is_some_and(Peer::seals_in_bulk) {
            let cut = Cut::Segments { headers: *headers, segment };
            let sealing = self.depart_as(lane, departure, cut, &whole, now);
            return Super::Passed(sealing.map(Task::Seal));
        }
        for index in 0..whole.count() {
            self.seal_with(slot, whole.length(index), dont_fragment, PADDING, now, |out| {
                whole.write(index, out).is_some()
            });
        }
        Super::Passed(None)
    }

    /// What is left to do for a packet that goes to a peer by its bulk session.
    pub(crate) fn depart(
        &mut self,
        lane: u8,
        departure: Departure,
        now: Instant,
    ) -> Option<Sealing> {
        let length = departure.length;
        self.reserve(lane, departure, Cut::Whole(length), 1, |limit| sealed(length, limit), now)
    }

    fn depart_as(
        &mut self,
        lane: u8,
        departure: Departure,
        cut: Cut,
        whole: &SuperPacket<'_>,
        now: Instant,
    ) -> Option<Sealing> {
        let count = whole.count();
        let last = count.saturating_sub(1);
        let bytes =
            |limit| last * sealed(whole.length(0), limit) + sealed(whole.length(last), limit);
        self.reserve(lane, departure, cut, count, bytes, now)
    }

    /// Counts datagrams as sent, and gives them their numbers.
    fn reserve(
        &mut self,
        lane: u8,
        departure: Departure,
        cut: Cut,
        count: usize,
        bytes: impl FnOnce(usize) -> usize,
        now: Instant,
    ) -> Option<Sealing> {
        let Departure { slot, flow, dont_fragment, .. } = departure;
        let peer = self.peers.get_mut(slot)?;
        let Some(to) = peer.endpoint() else {
            self.counters.drop_many(DropReason::NoEndpoint, count as u64);
            return None;
        };
        let limit = peer.inner_limit();
        let (key, header) = peer.bulk.reserve(lane, flow.number(), count as u64)?;
        let bytes = bytes(limit);
        peer.sent_bytes += bytes as u64;
        peer.last_sent = Some(now);
        if departure.length > 0 {
            peer.bulk.last_sent = Some(now);
        }
        self.counters.sent.add_many(count, bytes);
        Some(Sealing { key, header, to, dont_fragment, padding: PADDING, limit, cut })
    }

    /// Seals into the node's own outbox.
    pub(crate) fn seal_now(&mut self, sealing: &Sealing, packet: &[u8]) {
        let lost = sealing.seal(packet, &mut self.outbox);
        self.counters.drop_many(DropReason::TransmitQueue, lost as u64);
    }

    /// Gives a packet of a flow to the TUN device, which mustn't overtake those before it.
    fn pass_tun(&mut self, packet: &[u8]) {
        self.push_tun(packet);
        self.tun_queue.holds_passed = true;
    }

    /// Gives a packet to the TUN device.
    pub(crate) fn push_tun(&mut self, packet: &[u8]) {
        if self.tun_queue.push(packet) {
            self.counters.to_tun.add(packet.len());
        } else {
            self.counters.drop(DropReason::TunQueue);
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
        let length = packet.len();
        if self.peers.get(slot).is_some_and(|peer| peer.bulk.cipher().is_some()) {
            let departure = Departure { slot, flow: FlowRef::NONE, length, dont_fragment };
            if let Some(mut sealing) = self.depart(0, departure, now) {
                sealing.padding = padding;
                self.seal_now(&sealing, packet);
            }
            return;
        }
        self.seal_with(slot, length, dont_fragment, padding, now, |out| {
            out.copy_from_slice(packet);
            true
        });
    }

    /// Seals a packet that `write` writes into exactly `length` bytes by the WireGuard session.
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
        let Some(tunnel) = &mut peer.tunnel else { return };
        let padded = padded(length, padding, limit);
        if self.scratch.len() < padded {
            self.scratch.resize(padded, 0);
        }
        let Some(plain) = self.scratch.get_mut(..padded) else { return };
        if !write_padded(plain, length, write) {
            return self.counters.drop(DropReason::Malformed);
        }
        let sealed = padded + OVERHEAD;
        let room = (sealed, sealed.max(MIN_BUFFER));
        let is_sent = self.outbox.push_with(Way { to, lane: 0, dont_fragment }, room, |out| {
            tunnel.seal(plain, out, now)
        });
        if !is_sent {
            return self.counters.drop(DropReason::TransmitQueue);
        }
        peer.sent_bytes += sealed as u64;
        peer.last_sent = Some(now);
        self.counters.sent.add(sealed);
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

    /// Finds out whether a peer that owes an answer still gives any.
    pub(crate) fn watch(&mut self, slot: Slot, now: Instant) {
        let Some(peer) = self.peers.get_mut(slot).filter(|peer| peer.is_host()) else { return };
        let due = peer.silence.tick(now);
        let name = peer.name;
        let has_session = peer.tunnel.as_ref().is_some_and(Tunnel::has_session);
        // A handshake asks for itself.
        if due.ask && has_session {
            let number = NOBODYS_PING;
            let echo = Control::EchoRequest { identifier: number, sequence: number };
            self.send_control(slot, echo, now);
        }
        if let Some(since) = due.tell {
            self.tell(Event::Silent { peer: name, since });
            // Perhaps it knows nothing of this session, or is elsewhere.
            self.shake_hands(slot, now);
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
        if !self.outbox.push(to, datagram) {
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
                for size in peer.path.sizes(above, ceiling) {
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

/// The bytes of a packet's datagram.
fn sealed(length: usize, limit: usize) -> usize {
    padded(length, PADDING, limit) + OVERHEAD
}
