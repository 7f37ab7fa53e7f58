//! Out of the tunnels: whose a datagram is, handshakes, what WireGuard's sessions have sealed, and where a peer is.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use super::Tunnels;
use super::peers::Slot;
use super::tunnel::{Admission, MIN_BUFFER, Message, Opened};
use crate::bulk::{Header, Key};
use crate::types::{DropReason, Event, Telemetry};

impl Tunnels {
    /// Whose tunnel a datagram of WireGuard's is for. Handshakes are admitted first: they cost an attacker
    /// little and us much.
    pub(crate) fn addressee(
        &mut self,
        from: SocketAddr,
        datagram: &[u8],
        telemetry: &mut Telemetry,
        now: Instant,
    ) -> Option<Slot> {
        let Some(message) = Message::of(datagram) else {
            telemetry.drop(DropReason::NotWireGuard);
            return None;
        };
        match message {
            Message::Initiation => {
                self.admit_handshake(from, datagram, telemetry, now)?;
                let initiator = self.keys.initiator(datagram);
                let slot = initiator.and_then(|key| self.peers.by_key(key));
                if slot.is_none() {
                    telemetry.drop(DropReason::UnknownPeer);
                }
                slot
            }
            Message::Response { index } => {
                let slot = self.session(index, telemetry)?;
                self.admit_handshake(from, datagram, telemetry, now)?;
                Some(slot)
            }
            Message::Cookie { index } => self.session(index, telemetry),
            Message::Data { index } => {
                let slot = self.session(index, telemetry);
                if slot.is_none() {
                    self.provoked(from, telemetry, now);
                }
                slot
            }
        }
    }

    fn session(&self, index: u32, telemetry: &mut Telemetry) -> Option<Slot> {
        let slot = self.peers.by_index(index);
        if slot.is_none() {
            telemetry.drop(DropReason::UnknownSession);
        }
        slot
    }

    /// Finds the peer whose bulk session a datagram is for; none if there is no such session.
    pub(crate) fn addressee_of_bulk(
        &mut self,
        session: Option<u32>,
        from: SocketAddr,
        telemetry: &mut Telemetry,
        now: Instant,
    ) -> Option<Slot> {
        let slot = session.and_then(|session| self.peers.by_bulk_session(session));
        if slot.is_none() {
            telemetry.drop(DropReason::UnknownSession);
            self.provoked(from, telemetry, now);
        }
        slot
    }

    fn admit_handshake(
        &mut self,
        from: SocketAddr,
        datagram: &[u8],
        telemetry: &mut Telemetry,
        now: Instant,
    ) -> Option<()> {
        if !self.admission.admit(from.ip(), now) {
            telemetry.drop(DropReason::HandshakeRate);
            return None;
        }
        self.note_load(now);
        let mut reply = [0; MIN_BUFFER];
        match self.keys.admit(from.ip(), datagram, &mut reply) {
            Admission::Pass => Some(()),
            Admission::Cookie(length) => {
                telemetry.drop(DropReason::HandshakeCookie);
                let reply = reply.get(..length).unwrap_or_default();
                if self.outbox.push(from, reply) {
                    telemetry.counters.sent.add(length);
                }
                None
            }
            Admission::Refuse => {
                telemetry.drop(DropReason::Unauthentic);
                None
            }
        }
    }

    /// Opens a datagram of a WireGuard session, and leaves the packet in its place.
    pub(crate) fn open_wireguard(
        &mut self,
        slot: Slot,
        from: SocketAddr,
        datagram: &mut [u8],
        telemetry: &mut Telemetry,
        now: Instant,
    ) -> Option<usize> {
        let room = datagram.len().max(MIN_BUFFER);
        if self.scratch.len() < room {
            self.scratch.resize(room, 0);
        }
        let mut opened = std::mem::take(&mut self.scratch);
        let length = self.opened(slot, from, datagram, opened.get_mut(..room)?, telemetry, now);
        if let Some((packet, place)) =
            length.and_then(|length| opened.get(..length).zip(datagram.get_mut(..length)))
        {
            place.copy_from_slice(packet);
        }
        self.scratch = opened;
        self.flush(slot, telemetry, now);
        length
    }

    /// Opens a datagram of a WireGuard session into `out`, and does what it asks for. Returns the
    /// packet's length, if it held one.
    fn opened(
        &mut self,
        slot: Slot,
        from: SocketAddr,
        datagram: &[u8],
        out: &mut [u8],
        telemetry: &mut Telemetry,
        now: Instant,
    ) -> Option<usize> {
        let peer = self.peers.wake(slot, &self.keys, now)?;
        let tunnel = peer.tunnel.as_mut()?;
        let opened = tunnel.open(from.ip(), datagram, out, now);
        let is_new_session = tunnel.take_confirmed(&opened);
        peer.received_bytes += datagram.len() as u64;
        match opened {
            Opened::Packet(length) => {
                self.heard(slot, from, is_new_session, telemetry, now);
                return Some(length);
            }
            Opened::Keepalive => self.heard(slot, from, is_new_session, telemetry, now),
            Opened::Completed(length) => {
                telemetry.counters.handshakes_completed += 1;
                self.heard(slot, from, is_new_session, telemetry, now);
                let packet = out.get(..length).unwrap_or_default();
                self.push_datagram(slot, from, packet, telemetry);
            }
            Opened::Answer(length) => {
                telemetry.counters.handshakes_answered += 1;
                self.answered(slot, from, telemetry, now);
                let answer = out.get(..length).unwrap_or_default();
                self.push_datagram(slot, from, answer, telemetry);
            }
            Opened::Cookie => {}
            Opened::Outdated => {
                telemetry.drop(DropReason::OutdatedHandshake);
                self.outdated(slot, telemetry, now);
            }
            Opened::Refused => telemetry.drop(DropReason::Unauthentic),
        }
        None
    }

    /// Whether a packet of so many bytes that was opened by a bulk session's key is one that hasn't come before.
    pub(crate) fn accept_bulk(
        &mut self,
        slot: Slot,
        (header, key): (Header, &Arc<Key>),
        bytes: usize,
        telemetry: &mut Telemetry,
        now: Instant,
    ) -> bool {
        let Some(peer) = self.peers.get_mut(slot) else { return false };
        if !peer.bulk.accept(header, key, now) {
            telemetry.drop(DropReason::Unauthentic);
            return false;
        }
        peer.received_bytes += bytes as u64;
        true
    }

    /// Something authentic came from a peer by a bulk session.
    pub(crate) fn heard_in_bulk(
        &mut self,
        slot: Slot,
        from: SocketAddr,
        is_packet: bool,
        telemetry: &mut Telemetry,
        now: Instant,
    ) {
        if let Some(peer) = self.peers.get_mut(slot).filter(|_| is_packet) {
            peer.bulk.last_received = Some(now);
        }
        self.heard(slot, from, false, telemetry, now);
    }

    /// A host that still speaks to an earlier life of this node is told by a handshake.
    fn provoked(&mut self, from: SocketAddr, telemetry: &mut Telemetry, now: Instant) {
        if let Some(slot) = self.peers.by_endpoint(from)
            && self.peers.may_be_provoked(slot, now)
        {
            self.shake_hands(slot, telemetry, now);
        }
    }

    /// A peer whose clock was set back can't begin a handshake: its time must exceed what it said
    /// last, perhaps for days. Ours it can answer. It goes where the peer is known to be, so a replay
    /// brings about no more than a handshake too many, once in a while.
    fn outdated(&mut self, slot: Slot, telemetry: &mut Telemetry, now: Instant) {
        if self.peers.may_be_asked_back(slot, now) {
            self.shake_hands(slot, telemetry, now);
        }
    }

    /// An initiation alone doesn't move a peer: it could be an old one, replayed to a node that has
    /// restarted and knows no timestamps. Where nothing better is known, it must do.
    fn answered(&mut self, slot: Slot, from: SocketAddr, telemetry: &mut Telemetry, now: Instant) {
        if self.peers.get(slot).is_some_and(|peer| peer.endpoint().is_none()) {
            self.moved(slot, from, telemetry, now);
        }
    }

    /// Something authentic came from a peer.
    fn heard(
        &mut self,
        slot: Slot,
        from: SocketAddr,
        is_new_session: bool,
        telemetry: &mut Telemetry,
        now: Instant,
    ) {
        self.moved(slot, from, telemetry, now);
        let Some(peer) = self.peers.get_mut(slot) else { return };
        let name = peer.name;
        if peer.silence.end() {
            telemetry.tell(Event::Answers { peer: name });
        }
        if is_new_session {
            peer.last_handshake = Some(now);
            if peer.is_host() && !self.offering.ciphers.is_empty() {
                self.peers.offer_bulk(slot, self.offering, now);
                self.tick_bulk(slot, telemetry, now);
            }
            let Some(peer) = self.peers.get_mut(slot) else { return };
            if peer.is_host() && peer.path.is_unmeasured() {
                peer.path.begin(now);
                self.probe(slot, telemetry, now);
            }
            telemetry.tell(Event::Connected { peer: name });
        }
    }

    fn moved(&mut self, slot: Slot, from: SocketAddr, telemetry: &mut Telemetry, now: Instant) {
        let Some(before) = self.peers.heard(slot, from, now) else { return };
        let Some(peer) = self.peers.get_mut(slot) else { return };
        let name = peer.name;
        if before.is_some() && peer.is_host() {
            peer.path.begin(now);
            self.probe(slot, telemetry, now);
        }
        if before.is_some() {
            telemetry.tell(Event::Roamed { peer: name, from: before, to: from });
        }
    }
}
