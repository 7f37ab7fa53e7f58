//! What every packet goes through, whichever way it came: classify, find or make its flow, rewrite,
//! send on.

use std::time::{Duration, Instant};

use isthmus_model::{Layer4, Place};
use isthmus_packet::{
    FlowKey, Headers, Reason, Rewrite, Transport, clamp_mss, decrement_hops, protocol,
};

use crate::control::Control;
use crate::counters::DropReason;
use crate::decide::{Decision, Refusal};
use crate::event::Event;
use crate::flows::{FlowRef, InsertError, LegKey, NewFlow, Port};
use crate::node::{Node, Owner, Owners, PeerName};
use crate::peers::{Peer, Slot};
use crate::random::mix;
use crate::tunnel::Tunnel;

/// No link carries less IPv6 (RFC 8200 section 5): its senders needn't make smaller packets.
const IPV6_MINIMUM: usize = 1280;
/// How long the owner of a connectionless flow is taken for granted: ports change hands.
const OWNER_HOLDS: Duration = Duration::from_secs(1);
/// Source ports tried where the sender's own is taken.
const PORT_TRIES: u64 = 32;

/// Where a packet goes from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Nowhere; it was dropped, or sealed already.
    Done,
    /// Nowhere: the policy denies its flow.
    Denied,
    /// To the TUN device, so many bytes of it.
    ToTun(usize),
    /// To a peer that has a bulk session.
    ToPeer(Departure),
}

/// A packet that is to be sealed by a bulk session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Departure {
    pub(crate) slot: Slot,
    pub(crate) flow: FlowRef,
    pub(crate) length: usize,
    pub(crate) dont_fragment: bool,
}

/// What was decided for a first fragment.
#[derive(Clone, Copy)]
pub(crate) struct FragmentFlow {
    /// [`FlowRef::NONE`] if it was refused without one.
    flow: FlowRef,
    /// The first fragment's, as it came.
    key: FlowKey,
    leg: u8,
    ingress: Port,
    /// What makes the datagram the flow's, where its source isn't what the flow knows.
    adapt: Option<Rewrite>,
}

/// What packets of a flow in a row have in common: where they go, and as what.
#[derive(Clone, Copy)]
pub(crate) struct Passage {
    pub(crate) flow: FlowRef,
    pub(crate) leg: u8,
    pub(crate) egress: Port,
    pub(crate) rewrite: Rewrite,
}

/// What a packet, or many of one flow, weigh.
#[derive(Clone, Copy)]
pub(crate) struct Load {
    pub(crate) packets: usize,
    pub(crate) bytes: usize,
}

impl Node {
    /// The way of packets of a flow that is known and allowed, for many at once. None for any other.
    #[inline(always)]
    pub(crate) fn passage(
        &mut self,
        ingress: Port,
        headers: &Headers,
        owners: &mut dyn Owners,
        now: Instant,
    ) -> Option<Passage> {
        let (flow, leg) = self.flows.find(&LegKey { flow: headers.key, port: ingress })?;
        if !self.is_valid(flow, leg, headers, owners, now) {
            return None;
        }
        let entry = self.flows.get(flow).filter(|entry| !entry.is_denied())?;
        let [first, second] = &entry.legs;
        let (here, there) = if leg == 0 { (first, second) } else { (second, first) };
        Some(Passage { flow, leg, egress: there.key.port, rewrite: here.rewrite })
    }

    /// A packet that came in by a port.
    pub(crate) fn route(
        &mut self,
        ingress: Port,
        packet: &mut [u8],
        owners: &mut dyn Owners,
        now: Instant,
    ) -> Exit {
        let Ok(headers) = Headers::parse(packet) else {
            return self.dropped(DropReason::Malformed);
        };
        let Some(packet) = packet.get_mut(..headers.total_length) else {
            return self.dropped(DropReason::Malformed);
        };
        let key = &headers.key;
        if !key.source.is_single_host() || !key.destination.is_single_host() {
            return self.dropped(DropReason::NotUnicast);
        }
        if Control::is_control(&headers)
            && let Some(Place::Host(_)) = self.state.place(key.destination)
        {
            self.take_control(ingress, packet, &headers, now);
            return Exit::Done;
        }
        match headers.transport {
            Transport::LaterFragment => {
                self.pass_later_fragment(ingress, packet, &headers, owners, now)
            }
            Transport::IcmpError { .. } => self.pass_icmp_error(ingress, packet, &headers, now),
            Transport::Tcp { .. }
            | Transport::Udp
            | Transport::UdpLite
            | Transport::Sctp
            | Transport::EchoRequest { .. }
            | Transport::EchoReply { .. }
            | Transport::Icmp { .. }
            | Transport::Other => self.pass_packet(ingress, packet, &headers, owners, now),
        }
    }

    fn pass_packet(
        &mut self,
        ingress: Port,
        packet: &mut [u8],
        headers: &Headers,
        owners: &mut dyn Owners,
        now: Instant,
    ) -> Exit {
        let key = LegKey { flow: headers.key, port: ingress };
        let known = match self.flows.find(&key) {
            Some((flow, leg)) if self.is_valid(flow, leg, headers, owners, now) => {
                Some((flow, leg))
            }
            Some(_) | None => None,
        };
        if known.is_none()
            && let Some(answer) = self.answer_of_workload(ingress, headers, owners)
        {
            return self.pass_as(answer, packet, headers, now);
        }
        let known = known.or_else(|| self.admit(ingress, packet, headers, owners, now));
        if let Some(fragments) = headers.fragment_key() {
            let (flow, leg) = known.unwrap_or((FlowRef::NONE, 0));
            let known = FragmentFlow { flow, key: headers.key, leg, ingress, adapt: None };
            self.fragments.remember(fragments, known, now);
        }
        let Some((flow, leg)) = known else {
            if ingress == Port::Tun {
                owners.refused(&headers.key);
            }
            return Exit::Done;
        };
        let exit = self.pass(flow, leg, packet, headers, now);
        if exit == Exit::Denied && ingress == Port::Tun {
            owners.refused(&headers.key);
        }
        exit
    }

    /// A connectionless server that listens on all addresses answers from the host's own, whichever
    /// it was asked at. What it answers tells which workload's address is meant.
    fn answer_of_workload(
        &self,
        ingress: Port,
        headers: &Headers,
        owners: &mut dyn Owners,
    ) -> Option<FlowKey> {
        let key = headers.key;
        let v4 = key.source.is_v4();
        let is_udp = headers.transport == Transport::Udp;
        if ingress != Port::Tun || !is_udp || key.source != self.state.own_address(v4) {
            return None;
        }
        let local = self.state.local();
        let (service, answer) = self.state.local_services().iter().find_map(|service| {
            let source = self.state.workload_address(local, *service, v4)?;
            let answer = FlowKey { source, ..key };
            let (_, leg) = self.flows.find(&LegKey { flow: answer, port: Port::Tun })?;
            (leg == 1).then_some((*service, answer))
        })?;
        (owners.owner(&key, &self.state) == Owner::Service(service)).then_some(answer)
    }

    /// Passes a packet as if it had come with another key.
    fn pass_as(
        &mut self,
        key: FlowKey,
        packet: &mut [u8],
        headers: &Headers,
        now: Instant,
    ) -> Exit {
        let Ok(rewrite) = Rewrite::between(&headers.key, &key) else {
            return self.dropped(DropReason::UnknownFlow);
        };
        let ingress = Port::Tun;
        let known = self.flows.find(&LegKey { flow: key, port: ingress });
        if let (Some(fragments), Some((flow, leg))) = (headers.fragment_key(), known) {
            // The rest of the datagram has the same source as this, and no ports to find a flow by.
            let known = FragmentFlow { flow, key, leg, ingress, adapt: Some(rewrite) };
            self.fragments.remember(fragments, known, now);
        }
        rewrite.apply(packet, headers);
        match (Headers::parse(packet), known) {
            (Ok(headers), Some((flow, leg))) if self.is_judged(flow, now) => {
                self.pass(flow, leg, packet, &headers, now)
            }
            (Ok(_) | Err(_), _) => self.dropped(DropReason::UnknownFlow),
        }
    }

    fn pass_later_fragment(
        &mut self,
        ingress: Port,
        packet: &mut [u8],
        headers: &Headers,
        owners: &mut dyn Owners,
        now: Instant,
    ) -> Exit {
        let known = headers
            .fragment_key()
            .and_then(|key| self.fragments.decision(&key, now))
            .filter(|known| known.ingress == ingress);
        let Some(known) = known else { return self.dropped(DropReason::UnknownFragment) };
        let exit = if !self.is_judged(known.flow, now) {
            self.dropped(DropReason::UnknownFragment)
        } else if let Some(adapt) = known.adapt {
            adapt.apply(packet, headers);
            let headers = Headers { key: adapt.key_after(headers), ..*headers };
            self.pass(known.flow, known.leg, packet, &headers, now)
        } else {
            self.pass(known.flow, known.leg, packet, headers, now)
        };
        let is_refused = exit == Exit::Denied || known.flow == FlowRef::NONE;
        if is_refused && ingress == Port::Tun {
            owners.refused(&known.key);
        }
        exit
    }

    /// Whether a flow that was found may be used as it is for this packet.
    #[inline(always)]
    fn is_valid(
        &mut self,
        flow: FlowRef,
        leg: u8,
        headers: &Headers,
        owners: &mut dyn Owners,
        now: Instant,
    ) -> bool {
        if !self.is_judged(flow, now) {
            return false;
        }
        let Some(entry) = self.flows.get(flow) else { return false };
        let ingress = entry.legs[usize::from(leg & 1)].key.port;
        // Ports are used again: whoever opens a connection is looked at afresh.
        let opens = matches!(headers.transport, Transport::Tcp { flags } if flags.opens());
        if opens && !(entry.is_denied() && ingress != Port::Tun) {
            return false;
        }
        if leg != 0 || ingress != Port::Tun {
            return true;
        }
        let is_udp = matches!(entry.legs[0].key.flow.protocol, protocol::UDP | protocol::UDP_LITE);
        let is_stale = is_udp
            && (now >= entry.owner_asked + OWNER_HOLDS
                || owners.changes(&headers.key) != entry.owner_changes);
        if !is_stale && entry.owner_epoch == self.epoch {
            return true;
        }
        self.confirm_owner(flow, owners, now)
    }

    /// Asks again whose a flow from the TUN device is. One that has changed hands is forgotten.
    fn confirm_owner(&mut self, flow: FlowRef, owners: &mut dyn Owners, now: Instant) -> bool {
        let Some(entry) = self.flows.get(flow) else { return false };
        let asked = entry.legs[0].key.flow;
        // First: what changes meanwhile is seen at the next packet.
        let changes = owners.changes(&asked);
        let owner = match self.state.place(asked.source) {
            Some(_) => owners.owner(&asked, &self.state),
            None => owners.behind(asked.source.ip(), &self.state),
        };
        let is_same = match (entry.from.place, owner) {
            (Place::Workload(_, service), Owner::Service(owner)) => service == owner,
            (Place::Workload(..), Owner::Unknown) => entry.is_tcp(),
            (Place::Workload(..), Owner::Host) => false,
            (Place::Host(host), Owner::Service(service)) => {
                self.workload(host, service, asked.source.is_v4()).is_none()
            }
            (Place::Host(_), Owner::Host) => true,
            (Place::Host(_), Owner::Unknown) => !matches!(entry.layer4, Layer4::Udp(_)),
            (Place::Device(..) | Place::Virtual(_) | Place::Anycast, _) => false,
        };
        let epoch = self.epoch;
        match self.flows.get_mut(flow) {
            Some(entry) if is_same => {
                entry.owner_asked = now;
                entry.owner_changes = changes;
                entry.owner_epoch = epoch;
            }
            Some(_) | None => {
                self.flows.remove(flow);
                self.counters.flows_removed += 1;
            }
        }
        is_same
    }

    /// Decides about a packet that belongs to no flow.
    fn admit(
        &mut self,
        ingress: Port,
        packet: &[u8],
        headers: &Headers,
        owners: &mut dyn Owners,
        now: Instant,
    ) -> Option<(FlowRef, u8)> {
        // First: what changes meanwhile is seen at the next packet.
        let changes = owners.changes(&headers.key);
        let (new, leg) = match self.decide(ingress, headers, owners) {
            Decision::New(new, leg) => (new, leg),
            Decision::Refuse(Refusal { drop: DropReason::Forged, .. }) => {
                self.refuse_source(ingress, headers, DropReason::Forged, now);
                return None;
            }
            Decision::Refuse(refusal) => {
                self.counters.drop(refusal.drop);
                if let Some(reason) = refusal.answer {
                    self.turn_away(ingress, packet, headers, reason, now);
                }
                return None;
            }
        };
        self.count_verdict(&new);
        let is_denied = new.verdict.denies();
        let key = LegKey { flow: new.original, port: new.ingress };
        let is_in_use = self.flows.find(&key).and_then(|(flow, leg)| {
            self.flows.get(flow).filter(|entry| leg == 1 && !entry.is_denied())
        });
        if is_denied && is_in_use.is_some() {
            // Whoever answers a flow tries to open one the other way: that mustn't cost the flow.
            self.deny(ingress, packet, headers, now);
            return None;
        }
        match self.insert(new, now) {
            Ok(flow) => {
                if let Some(entry) = self.flows.get_mut(flow) {
                    entry.owner_changes = changes;
                }
                Some((flow, leg))
            }
            Err(_) if is_denied => {
                self.deny(ingress, packet, headers, now);
                None
            }
            Err(reason) => {
                self.counters.drop(reason);
                None
            }
        }
    }

    /// A source that may not come in by this port.
    pub(crate) fn refuse_source(
        &mut self,
        ingress: Port,
        headers: &Headers,
        reason: DropReason,
        now: Instant,
    ) -> Exit {
        if let Port::Peer(peer) = ingress {
            let lost = self.forged.note(peer, headers.key.source, &mut self.events, now);
            self.counters.events_lost += u64::from(lost);
        }
        self.dropped(reason)
    }

    fn count_verdict(&mut self, new: &NewFlow) {
        let decision = self.state.policy.describe(&new.verdict);
        self.counters.judge(decision.name, new.verdict.outcome);
    }

    fn insert(&mut self, mut new: NewFlow, now: Instant) -> Result<FlowRef, DropReason> {
        let original = LegKey { flow: new.original, port: new.ingress };
        if !new.verdict.denies() && self.answers_collide(&new, &original) {
            self.change_port(&mut new, &original)?;
        }
        let before = self.flows.find(&original).and_then(|(flow, _)| self.flows.get(flow));
        let is_told = before.is_some_and(|before| {
            before.is_denied() && before.from == new.from && before.epoch == self.epoch
        });
        let inserted = self.flows.insert(&new, self.epoch, now);
        let (flow, evicted) = inserted.map_err(|error| match error {
            InsertError::Full => DropReason::FlowTableFull,
            InsertError::Collision => DropReason::NoPort,
            InsertError::Rewrite => DropReason::NoRoute,
        })?;
        self.counters.flows_created += 1;
        self.counters.flows_evicted += evicted as u64;
        self.counters.flows_removed += evicted as u64;
        if let Some(entry) = self.flows.get(flow) {
            let denial = self.denial(entry);
            if entry.is_denied() {
                if !is_told {
                    self.tell(Event::Denied(denial));
                }
            } else if entry.verdict.audited() {
                self.tell(Event::Audited(denial));
            }
        }
        Ok(flow)
    }

    fn answers_collide(&self, new: &NewFlow, original: &LegKey) -> bool {
        let answers = LegKey { flow: new.translated.reversed(), port: new.egress };
        self.flows.is_taken(&answers, original)
    }

    /// Gives a flow another source port, so that its answers can be told from another's.
    fn change_port(&self, new: &mut NewFlow, original: &LegKey) -> Result<(), DropReason> {
        let key = new.translated;
        let wanted = [key.source_port, key.destination_port].map(u64::from);
        for attempt in 0..PORT_TRIES {
            let port = mix([wanted[0], wanted[1], attempt]) % (65_536 - 1024) + 1024;
            new.translated.source_port = port as u16;
            if !self.answers_collide(new, original) {
                return Ok(());
            }
        }
        Err(DropReason::NoPort)
    }

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
            Port::Tun => {
                self.note(flow, leg, packet, headers, one(headers), now);
                self.clamp(ingress, packet, headers);
                rewrite.apply(packet, headers);
                Exit::ToTun(headers.total_length)
            }
            Port::Peer(name) => {
                let Some(ready) = self.prepare(ingress, name, packet, headers, now) else {
                    return Exit::Done;
                };
                self.note(flow, leg, packet, headers, one(headers), now);
                self.finish(ingress, ready, rewrite, packet, headers, now);
                let Ready { slot, dont_fragment } = ready;
                if self.peers.get(slot).is_some_and(Peer::seals_in_bulk) {
                    let length = headers.total_length;
                    return Exit::ToPeer(Departure { slot, flow, length, dont_fragment });
                }
                self.send(slot, packet, dont_fragment, now);
                Exit::Done
            }
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
        ingress: Port,
        name: PeerName,
        packet: &[u8],
        headers: &Headers,
        now: Instant,
    ) -> Option<Ready> {
        let slot = self.peers.by_name(name);
        let Some((slot, peer)) = slot.and_then(|slot| Some((slot, self.peers.get(slot)?))) else {
            self.counters.drop(DropReason::NoRoute);
            return None;
        };
        let (limit, is_host) = (peer.inner_limit(), peer.is_host());
        if peer.endpoint().is_none() {
            self.counters.drop(DropReason::NoEndpoint);
            self.answer(ingress, packet, headers, Reason::HostUnreachable, now);
            return None;
        }
        let opens = || matches!(headers.transport, Transport::Tcp { flags } if flags.opens());
        // While nobody tries to reach it, this is what begins to.
        let is_tried = || peer.tunnel.as_ref().is_some_and(Tunnel::is_shaking_hands);
        if peer.silence.refuses(now) && opens() && is_tried() {
            self.counters.drop(DropReason::Silent);
            self.answer(ingress, packet, headers, Reason::HostUnreachable, now);
            return None;
        }
        if matches!(ingress, Port::Peer(_)) && headers.ttl <= 1 {
            self.counters.drop(DropReason::HopsExceeded);
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
            self.counters.drop(DropReason::TooBig);
            self.answer(ingress, packet, headers, Reason::PacketTooBig { mtu }, now);
            return None;
        }
        self.counters.oversized += u64::from(!fits);
        Some(Ready { slot, dont_fragment: fits && is_host })
    }

    /// Makes a packet what the peer is to get.
    fn finish(
        &mut self,
        ingress: Port,
        ready: Ready,
        rewrite: Rewrite,
        packet: &mut [u8],
        headers: &Headers,
        now: Instant,
    ) {
        self.clamp(ingress, packet, headers);
        if let Some(peer) = self.peers.get_mut(ready.slot) {
            let limit = peer.inner_limit();
            peer.note_use(now);
            clamp_to(limit.min(self.mtu), packet, headers);
        }
        rewrite.apply(packet, headers);
        if matches!(ingress, Port::Peer(_)) {
            decrement_hops(packet);
        }
    }

    /// Keeps what the receiver will send within the path that this came by.
    fn clamp(&self, ingress: Port, packet: &mut [u8], headers: &Headers) {
        let is_syn = matches!(headers.transport, Transport::Tcp { flags } if flags.syn());
        if !is_syn {
            return;
        }
        let Port::Peer(name) = ingress else { return };
        if let Some(peer) = self.peers.by_name(name).and_then(|slot| self.peers.get(slot)) {
            clamp_to(peer.inner_limit().min(self.mtu), packet, headers);
        }
    }
}

/// A packet may go to this peer.
#[derive(Clone, Copy)]
struct Ready {
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
