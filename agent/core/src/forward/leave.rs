//! Packets of a flow on their way out: whether they can go there, what the path takes, and as what.

use std::time::Instant;

use isthmus_packet::{Headers, Reason, Rewrite, Transport, clamp_mss, decrement_hops};

use super::{Exit, Forwarder};
use crate::flows::{FlowRef, Load};
use crate::tunnels::{EgressMeta, Peer, Slot};
use crate::types::{DropReason, Interface, PeerName};

/// No link carries less IPv6 (RFC 8200 section 5): its senders needn't make smaller packets.
const IPV6_MINIMUM: usize = 1280;

impl Forwarder {
    /// Sends a packet of a flow on.
    #[inline]
    pub(crate) fn pass(
        &mut self,
        flow: FlowRef,
        leg: u8,
        packet: &mut [u8],
        headers: &Headers,
        now: Instant,
    ) -> Exit {
        let Some(entry) = self.flows.get(flow) else {
            return self.dropped(DropReason::UnknownFlow);
        };
        let [first, second] = &entry.legs;
        let (here, there) = if leg == 0 { (first, second) } else { (second, first) };
        let (ingress, egress, rewrite) = (here.key.port, there.key.port, here.rewrite);
        if entry.is_denied() {
            self.note(flow, leg, packet, headers, one(headers), now);
            self.deny(ingress, packet, headers, now);
            return Exit::Denied;
        }
        match egress {
            Interface::Tun => {
                self.note(flow, leg, packet, headers, one(headers), now);
                self.clamp(ingress, packet, headers);
                rewrite.apply(packet, headers);
                Exit::ToTun(headers.total_length)
            }
            Interface::Peer(name) => {
                let Some(next_hop) = self.prepare(ingress, name, packet, headers, now) else {
                    return Exit::Done;
                };
                self.note(flow, leg, packet, headers, one(headers), now);
                self.finish(ingress, next_hop, rewrite, packet, headers, now);
                let NextHop { slot, dont_fragment } = next_hop;
                if self.tunnels.peers.get(slot).is_some_and(Peer::seals_in_bulk) {
                    let length = headers.total_length;
                    let flow = flow.number();
                    return Exit::ToPeer(EgressMeta { slot, flow, length, dont_fragment });
                }
                self.tunnels.send(slot, packet, dont_fragment, &mut self.telemetry, now);
                Exit::Done
            }
        }
    }

    /// Seals a packet that goes to a peer's bulk session into the outbox.
    pub(crate) fn seal(&mut self, lane: u8, egress: EgressMeta, packet: &[u8], now: Instant) {
        let Self { tunnels, telemetry, .. } = self;
        if let Some(sealing) = tunnels.depart(lane, egress, telemetry, now) {
            tunnels.seal_now(&sealing, packet, telemetry);
        }
    }

    #[inline]
    pub(crate) fn note(
        &mut self,
        flow: FlowRef,
        leg: u8,
        packet: &[u8],
        headers: &Headers,
        load: Load,
        now: Instant,
    ) {
        let acknowledged = acknowledged(packet, headers);
        let transport = headers.transport;
        self.flows.update(flow, |entry| entry.note(leg, transport, acknowledged, load, now));
    }

    /// Checks that a packet can go to a peer at all, and answers it if not.
    fn prepare(
        &mut self,
        ingress: Interface,
        name: PeerName,
        packet: &[u8],
        headers: &Headers,
        now: Instant,
    ) -> Option<NextHop> {
        let slot = self.tunnels.peers.by_name(name);
        let Some((slot, peer)) = slot.and_then(|slot| Some((slot, self.tunnels.peers.get(slot)?)))
        else {
            self.telemetry.drop(DropReason::NoRoute);
            return None;
        };
        let (limit, is_host) = (peer.inner_limit(), peer.is_host());
        if peer.endpoint().is_none() {
            self.telemetry.drop(DropReason::NoEndpoint);
            self.answer(ingress, packet, headers, Reason::HostUnreachable, now);
            return None;
        }
        let opens = || matches!(headers.transport, Transport::Tcp { flags } if flags.opens());
        // While nobody tries to reach it, this is what begins to.
        if peer.silence.refuses(now) && opens() && peer.is_shaking_hands() {
            self.telemetry.drop(DropReason::Silent);
            self.answer(ingress, packet, headers, Reason::HostUnreachable, now);
            return None;
        }
        if matches!(ingress, Interface::Peer(_)) && headers.ttl <= 1 {
            self.telemetry.drop(DropReason::HopsExceeded);
            self.answer(ingress, packet, headers, Reason::HopsExceeded, now);
            return None;
        }
        let fits = headers.total_length <= limit;
        let v4 = headers.key.source.is_v4();
        let must_shrink =
            if v4 { headers.dont_fragment } else { headers.total_length > limit.max(IPV6_MINIMUM) };
        if !fits && must_shrink {
            let mtu = if v4 { limit } else { limit.max(IPV6_MINIMUM) };
            let mtu = u32::try_from(mtu).unwrap_or(u32::MAX);
            self.telemetry.drop(DropReason::TooBig);
            self.answer(ingress, packet, headers, Reason::PacketTooBig { mtu }, now);
            return None;
        }
        self.telemetry.counters.oversized += u64::from(!fits);
        Some(NextHop { slot, dont_fragment: fits && is_host })
    }

    /// Makes a packet what the peer is to get.
    fn finish(
        &mut self,
        ingress: Interface,
        next_hop: NextHop,
        rewrite: Rewrite,
        packet: &mut [u8],
        headers: &Headers,
        now: Instant,
    ) {
        self.clamp(ingress, packet, headers);
        if let Some(peer) = self.tunnels.peers.get_mut(next_hop.slot) {
            let limit = peer.inner_limit();
            peer.note_use(now);
            clamp_to(limit.min(self.mtu), packet, headers);
        }
        rewrite.apply(packet, headers);
        if matches!(ingress, Interface::Peer(_)) {
            decrement_hops(packet);
        }
    }

    /// Keeps what the receiver will send within the path that this came by.
    fn clamp(&self, ingress: Interface, packet: &mut [u8], headers: &Headers) {
        let is_syn = matches!(headers.transport, Transport::Tcp { flags } if flags.syn());
        if !is_syn {
            return;
        }
        let Interface::Peer(name) = ingress else { return };
        if let Some(peer) =
            self.tunnels.peers.by_name(name).and_then(|slot| self.tunnels.peers.get(slot))
        {
            clamp_to(peer.inner_limit().min(self.mtu), packet, headers);
        }
    }
}

/// The peer that a packet goes to next.
#[derive(Clone, Copy)]
struct NextHop {
    slot: Slot,
    dont_fragment: bool,
}

const fn one(headers: &Headers) -> Load {
    Load { packets: 1, bytes: headers.total_length }
}

fn clamp_to(limit: usize, packet: &mut [u8], headers: &Headers) {
    let is_syn = matches!(headers.transport, Transport::Tcp { flags } if flags.syn());
    if is_syn {
        let ip = if headers.key.source.is_v4() { 20 } else { 40 };
        let mss = u16::try_from(limit.saturating_sub(ip + 20)).unwrap_or(u16::MAX);
        clamp_mss(packet, headers, mss);
    }
}

#[inline]
fn acknowledged(packet: &[u8], headers: &Headers) -> Option<u32> {
    let Transport::Tcp { flags } = headers.transport else { return None };
    let field = packet.get(headers.l4_offset + 8..)?.first_chunk::<4>()?;
    flags.ack().then_some(u32::from_be_bytes(*field))
}
