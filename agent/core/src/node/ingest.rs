//! From the TUN device: one packet at a time, or many in one, up to what is left to do without the node.

use std::time::Instant;

use isthmus_packet::{Headers, Offload, SuperPacket};

use super::Node;
use super::task::{Hairpin, Task};
use crate::flows::Load;
use crate::forward::{Exit, Forwarder, Passage};
use crate::snapshot::Owners;
use crate::tunnels::{Cut, EgressMeta, Peer};
use crate::types::{DropReason, Interface};

/// The largest packet that a super-packet is cut into.
const MAX_SEGMENT: usize = 65_535;

/// Outcome of a super-packet.
enum Super {
    /// Nothing yet: it is to be decided packet by packet.
    Refused,
    /// It was passed on, up to what is left to do.
    Passed(Option<Task>),
}

impl Node {
    pub(super) fn ingest(
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
            self.forward.telemetry.drop(DropReason::Malformed);
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
        self.forward.telemetry.counters.from_tun.add(packet.len());
        self.forward.route(Interface::Tun, packet, owners, now)
    }

    /// The remaining work for a packet that goes there.
    fn leave(&mut self, lane: u8, exit: Exit, now: Instant) -> Option<Task> {
        match exit {
            Exit::Done | Exit::Denied => None,
            Exit::ToTun(length) => {
                self.forward.telemetry.counters.to_tun.add(length);
                Some(Task::Write(Hairpin::complete(length)))
            }
            Exit::ToPeer(egress) => {
                let Forwarder { tunnels, telemetry, .. } = &mut self.forward;
                tunnels.depart(lane, egress, telemetry, now).map(Task::Seal)
            }
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
        let passage = if is_whole {
            self.forward.passage(Interface::Tun, headers, owners, now)
        } else {
            None
        };
        if let Some(passage) = passage
            && passage.egress == Interface::Tun
            && let Some(hairpin) = self.turn_round(offload, packet, headers, passage, now)
        {
            return Some(Task::Write(hairpin));
        }
        if offload.complete(packet, headers).is_err() {
            self.forward.telemetry.drop(DropReason::Malformed);
            return None;
        }
        let exit = match (passage, packet.get_mut(..headers.total_length)) {
            (Some(passage), Some(packet)) => {
                self.forward.telemetry.counters.from_tun.add(packet.len());
                self.forward.pass(passage.flow, passage.leg, packet, headers, now)
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
        self.forward.note(passage.flow, passage.leg, packet, headers, load, now);
        passage.rewrite.apply_partial(packet, headers);
        self.forward.telemetry.counters.from_tun.add_many(load.packets, load.bytes);
        self.forward.telemetry.counters.to_tun.add_many(load.packets, load.bytes);
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
            return self.forward.telemetry.drop(DropReason::Malformed);
        };
        let mut one = [0; MAX_SEGMENT];
        let too_big = self.forward.telemetry.counters.dropped(DropReason::TooBig);
        for index in 0..whole.count() {
            // The sender was told by the first.
            if self.forward.telemetry.counters.dropped(DropReason::TooBig) > too_big {
                let rest = (whole.count() - index) as u64;
                return self.forward.telemetry.counters.drop_many(DropReason::TooBig, rest);
            }
            let Some(packet) = whole.write(index, &mut one).and_then(|n| one.get_mut(..n)) else {
                self.forward.telemetry.drop(DropReason::Malformed);
                continue;
            };
            match self.route_one(packet, owners, now) {
                Exit::Done | Exit::Denied => {}
                Exit::ToTun(length) => {
                    self.forward.pass_tun(packet.get(..length).unwrap_or_default())
                }
                Exit::ToPeer(egress) => self.forward.seal(lane, egress, packet, now),
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
        let Some(passage) = self.forward.passage(Interface::Tun, headers, owners, now) else {
            return Super::Refused;
        };
        let Interface::Peer(name) = passage.egress else {
            let hairpin = self.turn_round(offload, packet, headers, passage, now);
            return hairpin.map_or(Super::Refused, |it| Super::Passed(Some(Task::Write(it))));
        };
        let Some(slot) = self.forward.tunnels.peers.by_name(name) else { return Super::Refused };
        let Some(peer) = self.forward.tunnels.peers.get_mut(slot) else { return Super::Refused };
        let largest = headers.payload_offset + usize::from(segment);
        let has_session = peer.has_session();
        let is_whole = SuperPacket::new(packet, headers, segment).is_ok();
        if !is_whole || !has_session || peer.endpoint().is_none() || largest > peer.inner_limit() {
            return Super::Refused;
        }
        let dont_fragment = peer.is_host();
        peer.note_use(now);
        let headers = &Headers { key: passage.rewrite.key_after(headers), ..*headers };
        passage.rewrite.apply(packet, headers);
        let Ok(whole) = SuperPacket::new(packet, headers, segment) else {
            self.forward.telemetry.drop(DropReason::Malformed);
            return Super::Passed(None);
        };
        let load = Load { packets: whole.count(), bytes: whole.bytes() };
        self.forward.note(passage.flow, passage.leg, packet, headers, load, now);
        self.forward.telemetry.counters.from_tun.add_many(load.packets, load.bytes);
        let Forwarder { tunnels, telemetry, .. } = &mut self.forward;
        let (flow, length) = (passage.flow.number(), headers.total_length);
        let egress = EgressMeta { slot, flow, length, dont_fragment };
        if tunnels.peers.get(slot).is_some_and(Peer::seals_in_bulk) {
            let cut = Cut::Segments { headers: *headers, segment };
            let sealing = tunnels.depart_as(lane, egress, cut, &whole, telemetry, now);
            return Super::Passed(sealing.map(Task::Seal));
        }
        for index in 0..whole.count() {
            let egress = EgressMeta { length: whole.length(index), ..egress };
            tunnels.seal_segment(egress, telemetry, now, |out| whole.write(index, out).is_some());
        }
        Super::Passed(None)
    }
}
