//! From the tunnels: opening, handshakes, roaming, and what agents say to each other.

use std::io::IoSlice;
use std::net::SocketAddr;
use std::ops::Range;
use std::time::Instant;

use isthmus_model::{HostId, Place};

use crate::bulk;
use crate::bulk::message::{Heard, Message as BulkMessage};
use crate::control::Control;
use crate::counters::DropReason;
use crate::event::Event;
use crate::flows::Port;
use crate::forward::{Exit, Load};
use crate::node::{Node, Owners, PeerName, Received, TunWriter};
use crate::packet::{Headers, MAX_SEGMENTS, Run, VNET_HEADER};
use crate::peers::Slot;
use crate::tunnel::{Admission, MIN_BUFFER, Message, Opened};

/// Packets of one peer that were opened and not looked at yet.
#[derive(Default)]
pub(crate) struct Batch {
    slot: Slot,
    /// Whether they lie in the arena or where they were received.
    in_arena: bool,
    /// Where in it each lies.
    packets: Vec<Range<usize>>,
    /// What boringtun opened: it copies.
    arena: Vec<u8>,
}

impl Batch {
    /// Room for a datagram behind what is there.
    fn room(&mut self, length: usize) -> (usize, &mut [u8]) {
        let start = self.packets.last().map_or(0, |last| last.end);
        let end = start + length.max(MIN_BUFFER);
        if self.arena.len() < end {
            self.arena.resize(end, 0);
        }
        (start, self.arena.get_mut(start..end).unwrap_or_default())
    }
}

impl Node {
    pub(crate) fn inbound(
        &mut self,
        received: Received<'_>,
        owners: &mut dyn Owners,
        tun: &mut dyn TunWriter,
        now: Instant,
    ) {
        let Received { from, contents, segment_size } = received;
        let mut batch = std::mem::take(&mut self.batch);
        let mut start = 0;
        while start < contents.len() {
            let end = (start + segment_size.max(1)).min(contents.len());
            let datagram = contents.get(start..end).unwrap_or_default();
            self.counters.received.add(datagram.len());
            let bulk = bulk::Header::read(datagram);
            let slot = match bulk {
                Some(header) => self.bulk_session(from, header.session, now),
                None => self.addressee(from, datagram, now),
            };
            if let Some(slot) = slot {
                if slot != batch.slot || batch.in_arena == bulk.is_some() {
                    self.deliver(&mut batch, contents, owners, tun, now);
                    (batch.slot, batch.in_arena) = (slot, bulk.is_none());
                }
                let datagram = contents.get_mut(start..end).unwrap_or_default();
                match bulk {
                    Some(header) => {
                        if let Some(packet) = self.open_bulk(&batch, from, header, datagram, now) {
                            batch.packets.push(start + packet.start..start + packet.end);
                        }
                    }
                    None => self.open(slot, from, datagram, &mut batch, now),
                }
            }
            start = end;
        }
        self.deliver(&mut batch, contents, owners, tun, now);
        self.batch = batch;
    }

    /// Opens a datagram of a bulk session in place, and tells where in it the packet lies.
    fn open_bulk(
        &mut self,
        batch: &Batch,
        from: SocketAddr,
        header: bulk::Header,
        datagram: &mut [u8],
        now: Instant,
    ) -> Option<Range<usize>> {
        let peer = self.peers.get_mut(batch.slot)?;
        let Some(length) = peer.bulk.open(header, datagram, now) else {
            self.counters.drop(DropReason::Unauthentic);
            return None;
        };
        peer.received_bytes += datagram.len() as u64;
        let is_keepalive = length == 0;
        // One place sent the whole message: it's enough to hear it once.
        if batch.packets.is_empty() {
            if !is_keepalive {
                peer.bulk.last_received = Some(now);
            }
            self.heard(batch.slot, from, false, now);
        }
        (!is_keepalive).then_some(bulk::HEADER..bulk::HEADER + length)
    }

    fn bulk_session(&mut self, from: SocketAddr, session: u32, now: Instant) -> Option<Slot> {
        let slot = self.peers.by_bulk_session(session);
        if slot.is_none() {
            self.counters.drop(DropReason::UnknownSession);
            self.provoked(from, now);
        }
        slot
    }

    fn open(
        &mut self,
        slot: Slot,
        from: SocketAddr,
        datagram: &[u8],
        batch: &mut Batch,
        now: Instant,
    ) {
        let Some(peer) = self.peers.wake(slot, &self.keys, now) else { return };
        let Some(tunnel) = &mut peer.tunnel else { return };
        let (start, out) = batch.room(datagram.len());
        let opened = tunnel.open(from.ip(), datagram, out, now);
        let is_new_session = tunnel.take_confirmed(&opened);
        peer.received_bytes += datagram.len() as u64;
        match opened {
            Opened::Packet(length) => {
                self.heard(slot, from, is_new_session, now);
                batch.packets.push(start..start + length);
            }
            Opened::Keepalive => self.heard(slot, from, is_new_session, now),
            Opened::Completed(length) => {
                self.counters.handshakes_completed += 1;
                self.heard(slot, from, is_new_session, now);
                self.push_datagram(slot, from, out.get(..length).unwrap_or_default());
            }
            Opened::Answer(length) => {
                self.counters.handshakes_answered += 1;
                self.answered(slot, from, now);
                self.push_datagram(slot, from, out.get(..length).unwrap_or_default());
            }
            Opened::Cookie => {}
            Opened::Refused => self.counters.drop(DropReason::Unauthentic),
        }
        self.flush(slot, now);
    }

    /// Passes on what was opened, and empties the batch.
    fn deliver(
        &mut self,
        batch: &mut Batch,
        message: &mut [u8],
        owners: &mut dyn Owners,
        tun: &mut dyn TunWriter,
        now: Instant,
    ) {
        if let Some(name) = self.peers.get(batch.slot).map(|peer| peer.name) {
            let bytes = if batch.in_arena { &mut batch.arena[..] } else { message };
            self.pass_all(name, bytes, &batch.packets, owners, tun, now);
        }
        batch.packets.clear();
    }

    /// Passes on packets of one peer: those of a flow that follow each other as one.
    fn pass_all(
        &mut self,
        peer: PeerName,
        bytes: &mut [u8],
        packets: &[Range<usize>],
        owners: &mut dyn Owners,
        tun: &mut dyn TunWriter,
        now: Instant,
    ) {
        let mut rest = packets;
        while !rest.is_empty() {
            let run = if self.coalesces { run_of(bytes, rest) } else { None };
            let (these, others) = rest.split_at(run.as_ref().map_or(1, Run::count));
            rest = others;
            let is_passed = match &run {
                Some(run) if run.count() > 1 => {
                    self.pass_run(peer, run, bytes, these, owners, tun, now)
                }
                Some(_) | None => false,
            };
            if is_passed {
                continue;
            }
            for packet in these {
                if let Some(packet) = bytes.get_mut(packet.clone()) {
                    self.pass_one(peer, packet, owners, tun, now);
                }
            }
        }
    }

    fn pass_one(
        &mut self,
        peer: PeerName,
        packet: &mut [u8],
        owners: &mut dyn Owners,
        tun: &mut dyn TunWriter,
        now: Instant,
    ) {
        if let Exit::ToTun(length) = self.route(Port::Peer(peer), packet, owners, now) {
            self.counters.to_tun.add(length);
            let packet = packet.get(..length).unwrap_or_default();
            tun.write(&[IoSlice::new(&[0; VNET_HEADER]), IoSlice::new(packet)]);
        }
    }

    /// Writes a run to the TUN device as one packet, if its flow is known, allowed, and ends here.
    /// False, with nothing done, for any other.
    #[expect(clippy::too_many_arguments, reason = "what a run is made of, and who is asked")]
    fn pass_run(
        &mut self,
        peer: PeerName,
        run: &Run,
        bytes: &mut [u8],
        packets: &[Range<usize>],
        owners: &mut dyn Owners,
        tun: &mut dyn TunWriter,
        now: Instant,
    ) -> bool {
        let Some(first) = packets.first().and_then(|first| bytes.get_mut(first.clone())) else {
            return false;
        };
        let headers = run.headers();
        let Some(passage) = self.passage(Port::Peer(peer), headers, owners, now) else {
            return false;
        };
        if passage.egress != Port::Tun {
            return false;
        }
        let load = Load { packets: run.count(), bytes: run.bytes() };
        self.note(passage.flow, passage.leg, first, headers, load, now);
        let key = passage.rewrite.key_after(headers);
        passage.rewrite.apply(first, headers);
        let Some(header) = run.header(first, &Headers { key, ..*headers }) else {
            self.counters.drop(DropReason::Malformed);
            return true;
        };
        let mut frame = [IoSlice::new(&[]); 1 + MAX_SEGMENTS];
        frame[0] = IoSlice::new(header.bytes());
        for (at, (piece, packet)) in frame[1..].iter_mut().zip(packets).enumerate() {
            let start = packet.start + headers.payload_offset;
            let payload = start..start + run.payload(at);
            *piece = IoSlice::new(bytes.get(payload).unwrap_or_default());
        }
        self.counters.to_tun.add_many(load.packets, load.bytes);
        tun.write(frame.get(..1 + packets.len()).unwrap_or_default());
        true
    }

    /// Whose tunnel a datagram is for. Handshakes are admitted first: they cost an attacker little
    /// and us much.
    fn addressee(&mut self, from: SocketAddr, datagram: &[u8], now: Instant) -> Option<Slot> {
        let Some(message) = Message::of(datagram) else {
            self.counters.drop(DropReason::NotWireGuard);
            return None;
        };
        match message {
            Message::Initiation => {
                self.admit_handshake(from, datagram, now)?;
                let initiator = self.keys.initiator(datagram);
                let slot = initiator.and_then(|key| self.peers.by_key(key));
                if slot.is_none() {
                    self.counters.drop(DropReason::UnknownPeer);
                }
                slot
            }
            Message::Response { index } => {
                let slot = self.session(index)?;
                self.admit_handshake(from, datagram, now)?;
                Some(slot)
            }
            Message::Cookie { index } => self.session(index),
            Message::Data { index } => {
                let slot = self.peers.by_index(index);
                if slot.is_none() {
                    self.counters.drop(DropReason::UnknownSession);
                    self.provoked(from, now);
                }
                slot
            }
        }
    }

    fn session(&mut self, index: u32) -> Option<Slot> {
        let slot = self.peers.by_index(index);
        if slot.is_none() {
            self.counters.drop(DropReason::UnknownSession);
        }
        slot
    }

    fn admit_handshake(&mut self, from: SocketAddr, datagram: &[u8], now: Instant) -> Option<()> {
        if !self.admission.admit(from.ip(), now) {
            self.counters.drop(DropReason::HandshakeRate);
            return None;
        }
        self.note_load(now);
        let mut reply = [0; MIN_BUFFER];
        match self.keys.admit(from.ip(), datagram, &mut reply) {
            Admission::Pass => Some(()),
            Admission::Cookie(length) => {
                self.counters.drop(DropReason::HandshakeCookie);
                let reply = reply.get(..length).unwrap_or_default();
                if self.outbox.push(&mut self.buffers, from, reply) {
                    self.counters.sent.add(length);
                }
                None
            }
            Admission::Refuse => {
                self.counters.drop(DropReason::Unauthentic);
                None
            }
        }
    }

    /// A host that still speaks to an earlier life of this node is told by a handshake.
    fn provoked(&mut self, from: SocketAddr, now: Instant) {
        if let Some(slot) = self.peers.by_endpoint(from)
            && self.peers.may_be_provoked(slot, now)
        {
            self.shake_hands(slot, now);
        }
    }

    /// An initiation alone doesn't move a peer: it could be an old one, replayed to a node that has
    /// restarted and knows no timestamps. Where nothing better is known, it must do.
    fn answered(&mut self, slot: Slot, from: SocketAddr, now: Instant) {
        if self.peers.get(slot).is_some_and(|peer| peer.endpoint().is_none()) {
            self.moved(slot, from, now);
        }
    }

    /// Something authentic came from a peer.
    fn heard(&mut self, slot: Slot, from: SocketAddr, is_new_session: bool, now: Instant) {
        self.moved(slot, from, now);
        let Some(peer) = self.peers.get_mut(slot) else { return };
        if is_new_session {
            peer.last_handshake = Some(now);
            let name = peer.name;
            if peer.is_host() && !self.ciphers.is_empty() {
                self.peers.offer_bulk(slot, self.life, self.ciphers, now);
                self.tick_bulk(slot, now);
            }
            let Some(peer) = self.peers.get_mut(slot) else { return };
            if peer.is_host() && peer.path.is_unmeasured() {
                peer.path.begin(now);
                self.probe(slot, now);
            }
            self.tell(Event::Connected { peer: name });
        }
    }

    fn moved(&mut self, slot: Slot, from: SocketAddr, now: Instant) {
        let Some(before) = self.peers.heard(slot, from, now) else { return };
        let Some(peer) = self.peers.get_mut(slot) else { return };
        let name = peer.name;
        if before.is_some() && peer.is_host() {
            peer.path.begin(now);
            self.probe(slot, now);
        }
        if before.is_some() {
            self.tell(Event::Roamed { peer: name, from: before, to: from });
        }
    }

    /// A packet to the port that agents speak on, at a host's own address.
    pub(crate) fn take_control(
        &mut self,
        ingress: Port,
        packet: &[u8],
        headers: &Headers,
        now: Instant,
    ) {
        let local = self.state.local();
        let source = self.state.place(headers.key.source);
        let destination = self.state.place(headers.key.destination);
        let (Port::Peer(PeerName::Host(sender)), Some(Place::Host(speaker))) = (ingress, source)
        else {
            return self.counters.drop(DropReason::Control);
        };
        if sender != speaker || destination != Some(Place::Host(local)) {
            self.refuse_source(ingress, headers, DropReason::Forged, now);
            return;
        }
        let payload = headers.payload(packet);
        let Some(slot) = self.peers.by_name(PeerName::Host(sender)) else {
            return self.counters.drop(DropReason::Control);
        };
        if let Some(heard) = Heard::read(payload) {
            return self.handle_bulk(slot, sender, &heard, now);
        }
        match Control::read(payload) {
            Some(message) => self.handle_control(slot, sender, message, now),
            None => self.counters.drop(DropReason::Control),
        }
    }

    fn handle_bulk(&mut self, slot: Slot, sender: HostId, heard: &Heard, now: Instant) {
        let ends = bulk::Ends { here: self.state.local(), there: sender };
        let Some(peer) = self.peers.get_mut(slot) else { return };
        match heard {
            Heard::Offer(offer) => {
                peer.bulk.handle_offer(offer, self.ciphers, ends, now);
                self.tick_bulk(slot, now);
            }
            Heard::Answer(answer) => {
                if let Some(ready) = peer.bulk.handle_answer(answer, ends) {
                    self.send_bulk_message(slot, BulkMessage::Ready(&ready), now);
                }
            }
            Heard::Ready(ready) => peer.bulk.handle_ready(ready),
        }
    }

    fn handle_control(&mut self, slot: Slot, sender: HostId, message: Control, now: Instant) {
        match message {
            Control::Probe { identifier, size } => {
                self.send_control(slot, Control::ProbeAck { identifier, size }, now);
            }
            Control::ProbeAck { identifier, size } => {
                let Some(peer) = self.peers.get_mut(slot) else { return };
                if peer.path.handle_ack(identifier, size, now) {
                    let bytes = peer.path.mtu();
                    self.tell(Event::PathMtu { host: sender, bytes });
                }
            }
            Control::EchoRequest { identifier, sequence } => {
                self.send_control(slot, Control::EchoReply { identifier, sequence }, now);
            }
            Control::EchoReply { identifier, sequence } => {
                self.take_pong(slot, sender, identifier, sequence, now);
            }
        }
    }
}

/// The packets at the start of `packets` that can pass as one; none if the first must pass alone.
fn run_of(bytes: &[u8], packets: &[Range<usize>]) -> Option<Run> {
    let read = |packet: &Range<usize>| {
        let packet = bytes.get(packet.clone())?;
        Some((packet, Headers::parse(packet).ok()?))
    };
    let (first, headers) = packets.first().and_then(read)?;
    let mut run = Run::begin(first, &headers)?;
    for next in packets.get(1..)? {
        let joins = read(next).is_some_and(|(packet, headers)| run.join(first, packet, &headers));
        if !joins {
            break;
        }
    }
    Some(run)
}
