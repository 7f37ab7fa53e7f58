//! From the tunnels: opening, handshakes, roaming, and what agents say to each other.

use std::io::IoSlice;
use std::net::SocketAddr;
use std::ops::Range;
use std::time::Instant;

use isthmus_model::Place;

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
    /// Where in the arena each lies.
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
        for datagram in contents.chunks_mut(segment_size.max(1)) {
            self.counters.received.add(datagram.len());
            let Some(slot) = self.addressee(from, datagram, now) else { continue };
            if slot != batch.slot {
                self.deliver(&mut batch, owners, tun, now);
                batch.slot = slot;
            }
            self.open(slot, from, datagram, &mut batch, now);
        }
        self.deliver(&mut batch, owners, tun, now);
        self.batch = batch;
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
        owners: &mut dyn Owners,
        tun: &mut dyn TunWriter,
        now: Instant,
    ) {
        if let Some(name) = self.peers.get(batch.slot).map(|peer| peer.name) {
            self.pass_all(name, &mut batch.arena, &batch.packets, owners, tun, now);
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
        for (piece, packet) in frame[1..].iter_mut().zip(packets) {
            let payload = packet.start + headers.payload_offset..packet.end;
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
        let slot = self.peers.by_name(PeerName::Host(sender));
        let (Some(slot), Some(message)) = (slot, Control::read(headers.payload(packet))) else {
            return self.counters.drop(DropReason::Control);
        };
        self.handle_control(slot, sender, message, now);
    }

    fn handle_control(
        &mut self,
        slot: Slot,
        sender: isthmus_model::HostId,
        message: Control,
        now: Instant,
    ) {
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
