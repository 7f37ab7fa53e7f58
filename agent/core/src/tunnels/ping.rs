//! Pings between agents, which measure the tunnel and need no policy.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use isthmus_model::{HostId, Place};
use isthmus_packet::{Address, FlowKey};

use super::Tunnels;
use super::control::Control;
use super::peers::Slot;
use crate::snapshot::balance;
use crate::types::{Event, PeerName, Telemetry};

/// Pings that may be on their way; more push out the oldest.
const CAPACITY: usize = 256;

/// A ping on its way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ping {
    host: HostId,
    target: IpAddr,
    identifier: u16,
    sequence: u16,
    sent: Instant,
}

/// Pings on their way, oldest first.
pub(crate) type Pings = VecDeque<Ping>;

impl Tunnels {
    /// Asks the agent that has `target` for an answer. Returns the host that is asked; none if the
    /// address is nobody's.
    pub(crate) fn ping(
        &mut self,
        target: IpAddr,
        (identifier, sequence): (u16, u16),
        telemetry: &mut Telemetry,
        now: Instant,
    ) -> Option<HostId> {
        let host = self.host_of(target.into())?;
        if host == self.state.local() {
            let round_trip = Duration::ZERO;
            telemetry.tell(Event::Pong { from: host, target, identifier, sequence, round_trip });
            return Some(host);
        }
        let slot = self.peers.by_name(PeerName::Host(host))?;
        if self.pings.len() >= CAPACITY {
            self.pings.pop_front();
        }
        self.pings.push_back(Ping { host, target, identifier, sequence, sent: now });
        let echo = Control::EchoRequest { identifier, sequence };
        self.send_control(slot, echo, telemetry, now);
        Some(host)
    }

    /// Finds the peer that would get a flow to this address.
    fn host_of(&self, target: Address) -> Option<HostId> {
        match self.state.place(target)? {
            Place::Virtual(service) => {
                let flow = FlowKey {
                    source: self.state.own_address(target.is_v4()),
                    destination: target,
                    source_port: 0,
                    destination_port: 0,
                    protocol: 0,
                };
                Some(balance::pick(&self.state, service, &flow)?.0)
            }
            Place::Anycast => Some(self.state.local()),
            place @ (Place::Host(_) | Place::Workload(..) | Place::Device(..)) => place.host(),
        }
    }

    pub(super) fn take_pong(
        &mut self,
        slot: Slot,
        from: HostId,
        (identifier, sequence): (u16, u16),
        telemetry: &mut Telemetry,
        now: Instant,
    ) {
        let is_it = |ping: &Ping| {
            (ping.host, ping.identifier, ping.sequence) == (from, identifier, sequence)
        };
        let Some(ping) = self.pings.iter().position(is_it).and_then(|at| self.pings.remove(at))
        else {
            return;
        };
        let round_trip = now.saturating_duration_since(ping.sent);
        if let Some(peer) = self.peers.get_mut(slot) {
            peer.round_trip = Some(round_trip);
        }
        let target = ping.target;
        telemetry.tell(Event::Pong { from, target, identifier, sequence, round_trip });
    }
}
