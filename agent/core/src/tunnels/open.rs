//! From the tunnels: whose a datagram is, handshakes, roaming, and what agents say to each other.

use std::net::SocketAddr;
use std::time::Instant;

use isthmus_model::{HostId, Place};
use isthmus_packet::Headers;

use crate::bulk;
use crate::bulk::message::{Heard, Message as BulkMessage};
use crate::control::Control;
use crate::counters::DropReason;
use crate::event::Event;
use crate::flows::Port;
use crate::node::{Node, PeerName};
use crate::peers::Slot;
use crate::tunnel::{Admission, MIN_BUFFER, Message};

impl Node {
    /// Whose tunnel a datagram is for. Handshakes are admitted first: they cost an attacker little
    /// and us much.
    pub(crate) fn addressee(
        &mut self,
        from: SocketAddr,
        datagram: &[u8],
        now: Instant,
    ) -> Option<Slot> {
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
                if self.outbox.push(from, reply) {
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
    pub(crate) fn provoked(&mut self, from: SocketAddr, now: Instant) {
        if let Some(slot) = self.peers.by_endpoint(from)
            && self.peers.may_be_provoked(slot, now)
        {
            self.shake_hands(slot, now);
        }
    }

    /// A peer whose clock was set back can't begin a handshake: its time must exceed what it said
    /// last, perhaps for days. Ours it can answer. It goes where the peer is known to be, so a replay
    /// brings about no more than a handshake too many, once in a while.
    pub(crate) fn outdated(&mut self, slot: Slot, now: Instant) {
        if self.peers.may_be_asked_back(slot, now) {
            self.shake_hands(slot, now);
        }
    }

    /// An initiation alone doesn't move a peer: it could be an old one, replayed to a node that has
    /// restarted and knows no timestamps. Where nothing better is known, it must do.
    pub(crate) fn answered(&mut self, slot: Slot, from: SocketAddr, now: Instant) {
        if self.peers.get(slot).is_some_and(|peer| peer.endpoint().is_none()) {
            self.moved(slot, from, now);
        }
    }

    /// Something authentic came from a peer.
    pub(crate) fn heard(
        &mut self,
        slot: Slot,
        from: SocketAddr,
        is_new_session: bool,
        now: Instant,
    ) {
        self.moved(slot, from, now);
        let Some(peer) = self.peers.get_mut(slot) else { return };
        if peer.silence.end() {
            let name = peer.name;
            self.tell(Event::Answers { peer: name });
        }
        let Some(peer) = self.peers.get_mut(slot) else { return };
        if is_new_session {
            peer.last_handshake = Some(now);
            let name = peer.name;
            if peer.is_host() && !self.offering.ciphers.is_empty() {
                self.peers.offer_bulk(slot, self.offering, now);
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
                peer.bulk.handle_offer(offer, self.offering.ciphers, ends, now);
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
