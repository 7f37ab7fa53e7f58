//! Conversations between agents through the tunnel: bulk sessions, the path's MTU, signs of life, pings.

use std::time::{Duration, Instant};

use isthmus_model::{HostId, Place};
use isthmus_packet::Headers;

use super::control::{self, Control};
use super::peers::Slot;
use super::{Tunnels, mtu};
use crate::bulk;
use crate::bulk::message::{Heard, Message};
use crate::types::{DropReason, Event, Interface, PeerName, Telemetry};

/// WireGuard's Keepalive-Timeout, and that with its Rekey-Timeout.
const KEEPALIVE: Duration = Duration::from_secs(10);
const UNANSWERED: Duration = Duration::from_secs(15);
/// Both sides of a bulk session could rekey: the second waits for the first.
const REKEY_JITTER: Duration = Duration::from_secs(10);
/// Echoes that nobody waits for have this identifier and sequence.
const NOBODYS_PING: u16 = u16::MAX;

/// A packet claims a source that isn't its sender's.
pub(crate) struct Forged;

impl Tunnels {
    /// A packet to the port that agents speak on, at a host's own address.
    pub(crate) fn take_control(
        &mut self,
        ingress: Interface,
        packet: &[u8],
        headers: &Headers,
        telemetry: &mut Telemetry,
        now: Instant,
    ) -> Result<(), Forged> {
        let local = self.state.local();
        let source = self.state.place(headers.key.source);
        let destination = self.state.place(headers.key.destination);
        let (Interface::Peer(PeerName::Host(sender)), Some(Place::Host(speaker))) =
            (ingress, source)
        else {
            telemetry.drop(DropReason::Control);
            return Ok(());
        };
        if sender != speaker || destination != Some(Place::Host(local)) {
            return Err(Forged);
        }
        let payload = headers.payload(packet);
        let Some(slot) = self.peers.by_name(PeerName::Host(sender)) else {
            telemetry.drop(DropReason::Control);
            return Ok(());
        };
        if let Some(heard) = Heard::read(payload) {
            self.handle_bulk(slot, sender, &heard, telemetry, now);
        } else if let Some(message) = Control::read(payload) {
            self.handle_control(slot, sender, message, telemetry, now);
        } else {
            telemetry.drop(DropReason::Control);
        }
        Ok(())
    }

    fn handle_bulk(
        &mut self,
        slot: Slot,
        sender: HostId,
        heard: &Heard,
        telemetry: &mut Telemetry,
        now: Instant,
    ) {
        let ends = bulk::Ends { here: self.state.local(), there: sender };
        let Some(peer) = self.peers.get_mut(slot) else { return };
        match heard {
            Heard::Offer(offer) => {
                peer.bulk.handle_offer(offer, self.offering.ciphers, ends, now);
                self.tick_bulk(slot, telemetry, now);
            }
            Heard::Answer(answer) => {
                if let Some(ready) = peer.bulk.handle_answer(answer, ends) {
                    self.send_bulk_message(slot, Message::Ready(&ready), telemetry, now);
                }
            }
            Heard::Ready(ready) => peer.bulk.handle_ready(ready),
        }
    }

    fn handle_control(
        &mut self,
        slot: Slot,
        sender: HostId,
        message: Control,
        telemetry: &mut Telemetry,
        now: Instant,
    ) {
        match message {
            Control::Probe { identifier, size } => {
                let answer = Control::ProbeAck { identifier, size };
                self.send_control(slot, answer, telemetry, now);
            }
            Control::ProbeAck { identifier, size } => {
                let Some(peer) = self.peers.get_mut(slot) else { return };
                if peer.path.handle_ack(identifier, size, now) {
                    let bytes = peer.path.mtu();
                    telemetry.tell(Event::PathMtu { host: sender, bytes });
                }
            }
            Control::EchoRequest { identifier, sequence } => {
                let answer = Control::EchoReply { identifier, sequence };
                self.send_control(slot, answer, telemetry, now);
            }
            Control::EchoReply { identifier, sequence } => {
                self.take_pong(slot, sender, (identifier, sequence), telemetry, now);
            }
        }
    }

    /// What bulk sessions need as time passes: messages repeated and, in place of boringtun, which
    /// doesn't see their traffic, WireGuard's timers (section 6 of its paper).
    pub(super) fn tick_bulk(&mut self, slot: Slot, telemetry: &mut Telemetry, now: Instant) {
        let Some(peer) = self.peers.get(slot) else { return };
        let PeerName::Host(host) = peer.name else { return };
        if !peer.has_session() {
            return self.peers.end_bulk(slot);
        }
        let mut packet = [0; control::MAX_PACKET];
        let (from, to) = (self.state.host_ipv6(self.state.local()), self.state.host_ipv6(host));
        while let Some(message) = self.peers.get_mut(slot).and_then(|peer| peer.bulk.poll(now)) {
            let length = message.bytes(|payload| control::packet(from, to, payload, &mut packet));
            // Larger than what the narrowest path carries whole.
            let packet = packet.get(..length.unwrap_or_default()).unwrap_or_default();
            self.send(slot, packet, false, telemetry, now);
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
            self.shake_hands(slot, telemetry, now);
        } else if owes_answer {
            self.send_unpadded(slot, &[], telemetry, now);
        }
    }

    fn send_bulk_message(
        &mut self,
        slot: Slot,
        message: Message<'_>,
        telemetry: &mut Telemetry,
        now: Instant,
    ) {
        let Some(PeerName::Host(host)) = self.peers.get(slot).map(|peer| peer.name) else { return };
        let mut packet = [0; control::MAX_PACKET];
        let (from, to) = (self.state.host_ipv6(self.state.local()), self.state.host_ipv6(host));
        let length = message.bytes(|payload| control::packet(from, to, payload, &mut packet));
        let packet = packet.get(..length.unwrap_or_default()).unwrap_or_default();
        self.send(slot, packet, true, telemetry, now);
    }

    /// Finds out whether a peer that owes an answer still gives any.
    pub(super) fn watch(&mut self, slot: Slot, telemetry: &mut Telemetry, now: Instant) {
        let Some(peer) = self.peers.get_mut(slot).filter(|peer| peer.is_host()) else { return };
        let due = peer.silence.tick(now);
        let name = peer.name;
        let has_session = peer.has_session();
        // A handshake asks for itself.
        if due.ask && has_session {
            let number = NOBODYS_PING;
            let echo = Control::EchoRequest { identifier: number, sequence: number };
            self.send_control(slot, echo, telemetry, now);
        }
        if let Some(since) = due.tell {
            telemetry.tell(Event::Silent { peer: name, since });
            // Perhaps it knows nothing of this session, or is elsewhere.
            self.shake_hands(slot, telemetry, now);
        }
    }

    /// Probes the path to another host, if it is time.
    pub(super) fn probe(&mut self, slot: Slot, telemetry: &mut Telemetry, now: Instant) {
        let Some(peer) = self.peers.get_mut(slot) else { return };
        let PeerName::Host(host) = peer.name else { return };
        match peer.path.tick(now) {
            mtu::Action::Nothing => {}
            mtu::Action::Changed => {
                let bytes = peer.path.mtu();
                telemetry.tell(Event::PathMtu { host, bytes });
            }
            mtu::Action::Probe { identifier, above, ceiling } => {
                for size in peer.path.sizes(above, ceiling) {
                    self.send_probe(slot, identifier, size, telemetry, now);
                }
            }
        }
    }

    fn send_probe(
        &mut self,
        slot: Slot,
        identifier: u16,
        size: u16,
        telemetry: &mut Telemetry,
        now: Instant,
    ) {
        let Some(peer) = self.peers.get(slot) else { return };
        if !peer.has_session() {
            return;
        }
        let length = usize::from(size).saturating_sub(mtu::overhead(peer.endpoint()));
        let mut packet = [0; control::MAX_PACKET];
        let message = Control::Probe { identifier, size };
        if let Some(length) = self.write_control(slot, message, length, &mut packet) {
            let packet = packet.get(..length).unwrap_or_default();
            self.send_unpadded(slot, packet, telemetry, now);
        }
    }

    /// Speaks to another host's agent.
    pub(super) fn send_control(
        &mut self,
        slot: Slot,
        message: Control,
        telemetry: &mut Telemetry,
        now: Instant,
    ) {
        let mut packet = [0; control::MAX_PACKET];
        if let Some(length) = self.write_control(slot, message, 0, &mut packet) {
            let packet = packet.get(..length).unwrap_or_default();
            self.send(slot, packet, true, telemetry, now);
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
