//! Inbox: the way from tunnel datagrams to frames for the TUN device.
//!
//! Several threads share a node, behind a lock that they hold to decide and not to work. Opening
//! datagrams and writing frames is work, and needs an [`Inbox`] only:
//!
//! ```text
//!   find_keys (node) ──▶ open ──▶ decide_udp (node) ──▶ write
//! ```
//!
//! Datagrams of WireGuard's own sessions are opened by the node: boringtun changes its state with
//! each.

use std::io::IoSlice;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use isthmus_packet::{Headers, MAX_SEGMENTS, Run, RunHeader, VNET_HEADER, complete_checksum};

use super::Node;
use crate::bulk::{self, Key};
use crate::flows::Load;
use crate::forward::{Exit, Forwarder};
use crate::snapshot::Owners;
use crate::tunnels::Slot;
use crate::types::{DropReason, Interface, PeerName, Received, TunWriter, canonical};

/// One thread's work on a batch of messages, in the order in which they came.
#[derive(Default)]
pub struct Inbox {
    datagrams: Vec<Datagram>,
    keys: Vec<(u32, Arc<Key>)>,
    batch: Batch,
    frames: Vec<Frame>,
    /// Positions of the frames' parts in their message.
    pieces: Vec<Range<usize>>,
}

/// A datagram, and how far it is.
#[derive(Clone)]
struct Datagram {
    message: usize,
    bytes: Range<usize>,
    seal: Seal,
}

/// The session that sealed a datagram.
#[derive(Clone, Copy)]
enum Seal {
    WireGuard,
    /// By the bulk session whose key has this place.
    Closed(bulk::Header, usize),
    /// It was opened; the packet has this length.
    Open(bulk::Header, usize, usize),
    /// By a bulk session that there isn't.
    Unknown,
    /// It was seen before, or isn't authentic.
    Refused,
}

/// Packets of one peer and one message that were opened and not looked at yet.
#[derive(Default)]
struct Batch {
    slot: Slot,
    message: usize,
    packets: Vec<Packet>,
}

/// Position of a packet in its message, and whether its checksum is to be completed.
#[derive(Clone)]
struct Packet {
    bytes: Range<usize>,
    partial: bool,
}

/// A frame for the TUN device: a header, and parts of a message.
struct Frame {
    message: usize,
    /// None: the first part has its headers.
    header: Option<RunHeader>,
    pieces: Range<usize>,
}

impl Inbox {
    /// Opens in place what bulk sessions have sealed, after [`Node::find_keys`].
    pub fn open(&mut self, received: &mut [Received<'_>]) {
        for datagram in &mut self.datagrams {
            let Seal::Closed(header, place) = datagram.seal else { continue };
            let bytes = received
                .get_mut(datagram.message)
                .and_then(|message| message.contents.get_mut(datagram.bytes.clone()));
            let key = self.keys.get(place).map(|(_, key)| key);
            let length = key.zip(bytes).and_then(|(key, bytes)| key.open(header, bytes));
            datagram.seal = match length {
                Some(length) => Seal::Open(header, place, length),
                None => Seal::Refused,
            };
        }
    }

    /// Writes what [`Node::decide_udp`] has let pass, and empties the inbox.
    pub fn write(&mut self, received: &[Received<'_>], tun: &mut dyn TunWriter) {
        for frame in self.frames.drain(..) {
            let Some(message) = received.get(frame.message) else { continue };
            let pieces = self.pieces.get(frame.pieces).unwrap_or_default();
            let mut slices = [IoSlice::new(&[]); 1 + MAX_SEGMENTS];
            slices[0] = IoSlice::new(frame.header.as_ref().map_or(&NO_OFFLOAD, RunHeader::bytes));
            for (slice, piece) in slices[1..].iter_mut().zip(pieces) {
                *slice = IoSlice::new(message.contents.get(piece.clone()).unwrap_or_default());
            }
            tun.write(slices.get(..1 + pieces.len()).unwrap_or_default());
        }
        self.clear();
    }

    fn clear(&mut self) {
        self.datagrams.clear();
        self.keys.clear();
        self.frames.clear();
        self.pieces.clear();
    }

    /// The place of a session's key.
    fn place_of(&mut self, session: u32, key: &Arc<Key>) -> usize {
        let known = self.keys.iter().rposition(|(known, _)| *known == session);
        known.unwrap_or_else(|| {
            self.keys.push((session, Arc::clone(key)));
            self.keys.len() - 1
        })
    }

    /// A whole packet of a message.
    fn push_packet(&mut self, message: usize, packet: Range<usize>) {
        let start = self.pieces.len();
        self.pieces.push(packet);
        self.frames.push(Frame { message, header: None, pieces: start..start + 1 });
    }

    /// The payloads of a run, behind a header made for it.
    fn push_run(
        &mut self,
        message: usize,
        header: RunHeader,
        payloads: impl Iterator<Item = Range<usize>>,
    ) {
        let start = self.pieces.len();
        self.pieces.extend(payloads);
        let pieces = start..self.pieces.len();
        self.frames.push(Frame { message, header: Some(header), pieces });
    }
}

const NO_OFFLOAD: [u8; VNET_HEADER] = [0; VNET_HEADER];

impl Node {
    /// Finds what messages are sealed by. The inbox must be empty.
    pub fn find_keys(&self, inbox: &mut Inbox, received: &[Received<'_>]) {
        inbox.clear();
        for (message, received) in received.iter().enumerate() {
            let (length, step) = (received.contents.len(), received.segment_size.max(1));
            for start in (0..length).step_by(step) {
                let bytes = start..(start + step).min(length);
                let header = received.contents.get(bytes.clone()).and_then(bulk::Header::read);
                let seal = match header {
                    None => Seal::WireGuard,
                    Some(header) => match self.forward.tunnels.peers.receiving(header.session) {
                        None => Seal::Unknown,
                        Some(session) if !session.may_be_new(header) => Seal::Refused,
                        Some(session) => {
                            Seal::Closed(header, inbox.place_of(header.session, session.key()))
                        }
                    },
                };
                inbox.datagrams.push(Datagram { message, bytes, seal });
            }
        }
    }

    /// Decides about what was opened, and opens what WireGuard sessions have sealed.
    ///
    /// The owners are asked about connections that are older than this node: see `adopt.rs`.
    pub fn decide_udp(
        &mut self,
        inbox: &mut Inbox,
        received: &mut [Received<'_>],
        owners: &mut dyn Owners,
        now: Instant,
    ) {
        for message in received.iter_mut() {
            message.from = canonical(message.from);
        }
        let datagrams = std::mem::take(&mut inbox.datagrams);
        for datagram in &datagrams {
            self.forward.telemetry.counters.received.add(datagram.bytes.len());
            let Some(slot) = self.slot_of(datagram, received, now) else { continue };
            if (slot, datagram.message) != (inbox.batch.slot, inbox.batch.message) {
                self.deliver(inbox, received, owners, now);
                (inbox.batch.slot, inbox.batch.message) = (slot, datagram.message);
            }
            let packet = self.packet_of(slot, datagram, inbox, received, now);
            inbox.batch.packets.extend(packet);
        }
        self.deliver(inbox, received, owners, now);
        inbox.datagrams = datagrams;
    }

    /// Finds the peer of a datagram.
    fn slot_of(
        &mut self,
        datagram: &Datagram,
        received: &[Received<'_>],
        now: Instant,
    ) -> Option<Slot> {
        let message = received.get(datagram.message)?;
        let Forwarder { tunnels, telemetry, .. } = &mut self.forward;
        let session = match datagram.seal {
            Seal::WireGuard => {
                let bytes = message.contents.get(datagram.bytes.clone())?;
                return tunnels.addressee(message.from, bytes, telemetry, now);
            }
            Seal::Refused | Seal::Closed(..) => {
                telemetry.drop(DropReason::Unauthentic);
                return None;
            }
            Seal::Unknown => None,
            Seal::Open(header, ..) => Some(header.session),
        };
        tunnels.addressee_of_bulk(session, message.from, telemetry, now)
    }

    fn packet_of(
        &mut self,
        slot: Slot,
        datagram: &Datagram,
        inbox: &Inbox,
        received: &mut [Received<'_>],
        now: Instant,
    ) -> Option<Packet> {
        let message = received.get_mut(datagram.message)?;
        let (from, start) = (message.from, datagram.bytes.start);
        let Forwarder { tunnels, telemetry, .. } = &mut self.forward;
        match datagram.seal {
            Seal::WireGuard => {
                let sealed = message.contents.get_mut(datagram.bytes.clone())?;
                let length = tunnels.open_wireguard(slot, from, sealed, telemetry, now)?;
                Some(Packet { bytes: start..start + length, partial: false })
            }
            Seal::Open(header, place, length) => {
                let (_, key) = inbox.keys.get(place)?;
                let bytes = datagram.bytes.len();
                if !tunnels.accept_bulk(slot, (header, key), bytes, telemetry, now) {
                    return None;
                }
                // One place sent the whole message: it's enough to hear it once.
                if inbox.batch.packets.is_empty() {
                    tunnels.heard_in_bulk(slot, from, length > 0, telemetry, now);
                }
                let start = start + bulk::HEADER;
                let packet = Packet { bytes: start..start + length, partial: header.partial };
                (length > 0).then_some(packet)
            }
            Seal::Closed(..) | Seal::Unknown | Seal::Refused => None,
        }
    }

    /// Passes on what was opened, and empties the batch: packets of a flow that follow each other
    /// as one.
    fn deliver(
        &mut self,
        inbox: &mut Inbox,
        received: &mut [Received<'_>],
        owners: &mut dyn Owners,
        now: Instant,
    ) {
        let Batch { slot, message, packets } = std::mem::take(&mut inbox.batch);
        let peer = self.forward.tunnels.peers.get(slot).map(|peer| peer.name);
        if let (Some(peer), Some(received)) = (peer, received.get_mut(message)) {
            let mut opened = Opening { message, bytes: received.contents, peer };
            let mut rest = &packets[..];
            while !rest.is_empty() {
                let run = if self.coalesces { run_of(opened.bytes, rest) } else { None };
                let (these, others) = rest.split_at(run.as_ref().map_or(1, Run::count));
                rest = others;
                let run = run.filter(|run| run.count() > 1);
                if run
                    .is_some_and(|run| self.pass_run(&run, these, &mut opened, inbox, owners, now))
                {
                    continue;
                }
                for packet in these {
                    self.pass_one(packet, &mut opened, inbox, owners, now);
                }
            }
        }
        inbox.batch = Batch { slot, message, packets };
        inbox.batch.packets.clear();
    }

    fn pass_one(
        &mut self,
        packet: &Packet,
        opened: &mut Opening<'_>,
        inbox: &mut Inbox,
        owners: &mut dyn Owners,
        now: Instant,
    ) {
        let start = packet.bytes.start;
        let is_partial = packet.partial;
        let Some(packet) = opened.bytes.get_mut(packet.bytes.clone()) else { return };
        if is_partial && complete_checksum(packet).is_none() {
            return self.forward.telemetry.drop(DropReason::Malformed);
        }
        match self.forward.route(Interface::Peer(opened.peer), packet, owners, now) {
            Exit::Done | Exit::Denied => {}
            Exit::ToTun(length) => {
                self.forward.telemetry.counters.to_tun.add(length);
                inbox.push_packet(opened.message, start..start + length);
            }
            Exit::ToPeer(departure) => self.forward.seal(0, departure, packet, now),
        }
    }

    /// Lets a run pass to the TUN device as one packet, if its flow is known, allowed, and ends
    /// here. False, with nothing done, for any other.
    fn pass_run(
        &mut self,
        run: &Run,
        packets: &[Packet],
        opened: &mut Opening<'_>,
        inbox: &mut Inbox,
        owners: &mut dyn Owners,
        now: Instant,
    ) -> bool {
        let first = packets.first().and_then(|first| opened.bytes.get_mut(first.bytes.clone()));
        let Some(first) = first else { return false };
        let headers = run.headers();
        let Some(passage) =
            self.forward.passage(Interface::Peer(opened.peer), headers, owners, now)
        else {
            return false;
        };
        if passage.egress != Interface::Tun {
            return false;
        }
        let load = Load { packets: run.count(), bytes: run.bytes() };
        self.forward.note(passage.flow, passage.leg, first, headers, load, now);
        let key = passage.rewrite.key_after(headers);
        passage.rewrite.apply(first, headers);
        let Some(header) = run.header(first, &Headers { key, ..*headers }) else {
            self.forward.telemetry.drop(DropReason::Malformed);
            return true;
        };
        self.forward.telemetry.counters.to_tun.add_many(load.packets, load.bytes);
        let payloads = packets.iter().enumerate().map(|(at, packet)| {
            let start = packet.bytes.start + headers.payload_offset;
            start..start + run.payload(at)
        });
        inbox.push_run(opened.message, header, payloads);
        true
    }
}

/// Datagrams of one peer in one message.
struct Opening<'a> {
    message: usize,
    bytes: &'a mut [u8],
    peer: PeerName,
}

/// The packets at the start of `packets` that can pass as one; none if the first must pass alone.
fn run_of(bytes: &[u8], packets: &[Packet]) -> Option<Run> {
    let read = |packet: &Packet| {
        let bytes = bytes.get(packet.bytes.clone())?;
        Some((bytes, Headers::parse(bytes).ok()?, packet.partial))
    };
    let (first, headers, partial) = packets.first().and_then(read)?;
    let mut run = Run::begin(first, &headers, partial)?;
    for next in packets.get(1..)? {
        let joins = read(next)
            .is_some_and(|(packet, headers, partial)| run.join(first, packet, &headers, partial));
        if !joins {
            break;
        }
    }
    Some(run)
}

impl std::fmt::Debug for Inbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inbox").field("datagrams", &self.datagrams.len()).finish_non_exhaustive()
    }
}
