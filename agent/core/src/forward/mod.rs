//! Forwarding path of every packet, in either direction: classify, find or make its flow, rewrite,
//! send on.

mod admit;
mod forged;
mod leave;
mod refuse;
mod rejudge;
mod translate;
mod tun_queue;

use std::sync::Arc;
use std::time::{Duration, Instant};

use isthmus_model::Place;
use isthmus_packet::{FlowKey, FragmentTable, Headers, Rewrite, Transport, protocol};

use crate::flows::{FlowRef, FlowTable, FragmentFlow, LegKey};
use crate::judge::Judge;
use crate::snapshot::{CompiledSnapshot, Deaf, Owner, Owners};
use crate::tunnels::{Control, EgressMeta, Forged, Tunnels};
use crate::types::random::Random;
use crate::types::{Config, DropReason, Interface, Telemetry};
use forged::ForgedLog;
use rejudge::Sweep;
pub(crate) use tun_queue::TunQueue;

/// Time for which the owner of a connectionless flow is cached: ports change hands.
const OWNER_HOLDS: Duration = Duration::from_secs(1);

/// Next step of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Nowhere; it was dropped, or sealed already.
    Done,
    /// Nowhere: the policy denies its flow.
    Denied,
    /// To the TUN device, so many bytes of it.
    ToTun(usize),
    /// To a peer that has a bulk session.
    ToPeer(EgressMeta),
}

/// Destination and rewrite shared by consecutive packets of a flow.
#[derive(Clone, Copy)]
pub(crate) struct Passage {
    pub(crate) flow: FlowRef,
    pub(crate) leg: u8,
    pub(crate) egress: Interface,
    pub(crate) rewrite: Rewrite,
}

/// Passes packets on.
pub(crate) struct Forwarder {
    pub(crate) judge: Judge,
    pub(crate) tunnels: Tunnels,
    pub(crate) flows: FlowTable,
    pub(crate) fragments: FragmentTable<FragmentFlow>,
    sweep: Option<Sweep>,
    forged: ForgedLog,
    pub(crate) tun_queue: TunQueue,
    pub(crate) telemetry: Telemetry,
    /// The TUN device's.
    mtu: usize,
}

impl Forwarder {
    pub(crate) fn new(config: &Config, state: Arc<CompiledSnapshot>, now: Instant) -> Self {
        let mut seeds = Random::new(config.seed);
        let tunnels = Tunnels::new(config, Arc::clone(&state), &mut seeds, now);
        let proxy_port = config.proxy_port;
        Self {
            judge: Judge { state, epoch: 0, proxy_port, deaf: Deaf::default() },
            tunnels,
            flows: FlowTable::new(config.limits, seeds.next(), now),
            fragments: FragmentTable::default(),
            sweep: None,
            forged: ForgedLog::default(),
            tun_queue: TunQueue::new(config.limits.tun_packets),
            telemetry: Telemetry::default(),
            mtu: config.mtu.into(),
        }
    }

    /// A new revision: peers that it doesn't have are cut at once, flows are judged again at their
    /// next packet, idle ones within a second.
    pub(crate) fn handle_state(&mut self, state: Arc<CompiledSnapshot>, now: Instant) {
        self.judge.state = Arc::clone(&state);
        self.judge.epoch = self.judge.epoch.wrapping_add(1);
        self.tunnels.handle_state(state, &mut self.telemetry);
        self.sweep = Some(Sweep::new(now));
        self.step_sweep(now);
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        self.telemetry.counters.flows_removed += self.flows.handle_timeout(now) as u64;
        self.fragments.handle_timeout(now);
        self.forged.handle_timeout(&mut self.telemetry, now);
        self.step_sweep(now);
        self.tunnels.handle_timeout(&mut self.telemetry, now);
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let timers = [
            self.flows.poll_timeout(),
            self.fragments.poll_timeout(),
            self.forged.poll_timeout(),
            self.sweep.map(|sweep| sweep.due),
            self.tunnels.poll_timeout(),
        ];
        timers.into_iter().flatten().min()
    }

    /// The way of packets of a flow that is known and allowed, for many at once. None for any other.
    #[inline(always)]
    pub(crate) fn passage(
        &mut self,
        ingress: Interface,
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
        ingress: Interface,
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
            && let Some(Place::Host(_)) = self.judge.state.place(key.destination)
        {
            let telemetry = &mut self.telemetry;
            return match self.tunnels.take_control(ingress, packet, &headers, telemetry, now) {
                Ok(()) => Exit::Done,
                Err(Forged) => self.refuse_source(ingress, &headers, DropReason::Forged, now),
            };
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
        ingress: Interface,
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
            if ingress == Interface::Tun {
                owners.refused(&headers.key);
            }
            return Exit::Done;
        };
        let exit = self.pass(flow, leg, packet, headers, now);
        if exit == Exit::Denied && ingress == Interface::Tun {
            owners.refused(&headers.key);
        }
        exit
    }

    /// A connectionless server that listens on all addresses answers from the host's own, whichever
    /// it was asked at. What it answers tells which workload's address is meant.
    fn answer_of_workload(
        &self,
        ingress: Interface,
        headers: &Headers,
        owners: &mut dyn Owners,
    ) -> Option<FlowKey> {
        let key = headers.key;
        let v4 = key.source.is_v4();
        let is_udp = headers.transport == Transport::Udp;
        if ingress != Interface::Tun || !is_udp || key.source != self.judge.state.own_address(v4) {
            return None;
        }
        let local = self.judge.state.local();
        let (service, answer) = self.judge.state.local_services().iter().find_map(|service| {
            let source = self.judge.state.workload_address(local, *service, v4)?;
            let answer = FlowKey { source, ..key };
            let (_, leg) = self.flows.find(&LegKey { flow: answer, port: Interface::Tun })?;
            (leg == 1).then_some((*service, answer))
        })?;
        (owners.owner(&key, &self.judge.state) == Owner::Service(service)).then_some(answer)
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
        let ingress = Interface::Tun;
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
        ingress: Interface,
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
        if is_refused && ingress == Interface::Tun {
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
        if opens && !(entry.is_denied() && ingress != Interface::Tun) {
            return false;
        }
        if leg != 0 || ingress != Interface::Tun {
            return true;
        }
        let is_udp = matches!(entry.legs[0].key.flow.protocol, protocol::UDP | protocol::UDP_LITE);
        let is_stale = is_udp
            && (now >= entry.owner_asked + OWNER_HOLDS
                || owners.changes(&headers.key) != entry.owner_changes);
        if !is_stale && entry.owner_epoch == self.judge.epoch {
            return true;
        }
        self.confirm_owner(flow, owners, now)
    }
}
