//! New flows: decided about, told from others, entered; and whether a flow's owner is still the one that it was.

use std::time::Instant;

use isthmus_model::{Layer4, Place};
use isthmus_packet::Headers;

use super::{Exit, Forwarder};
use crate::flows::{FlowRef, InsertError, LegKey, NewFlow};
use crate::judge::{Decision, Refusal};
use crate::snapshot::{Owner, Owners};
use crate::types::random::mix;
use crate::types::{DropReason, Event, Interface};

/// Source ports tried where the sender's own is taken.
const PORT_TRIES: u64 = 32;

impl Forwarder {
    /// Asks again whose a flow from the TUN device is. One that has changed hands is forgotten.
    pub(super) fn confirm_owner(
        &mut self,
        flow: FlowRef,
        owners: &mut dyn Owners,
        now: Instant,
    ) -> bool {
        let Some(entry) = self.flows.get(flow) else { return false };
        let asked = entry.legs[0].key.flow;
        // First: what changes meanwhile is seen at the next packet.
        let changes = owners.changes(&asked);
        let owner = match self.judge.state.place(asked.source) {
            Some(_) => owners.owner(&asked, &self.judge.state),
            None => owners.behind(asked.source.ip(), &self.judge.state),
        };
        let is_same = match (entry.from.place, owner) {
            (Place::Workload(_, service), Owner::Service(owner)) => service == owner,
            (Place::Workload(..), Owner::Unknown) => entry.is_tcp(),
            (Place::Workload(..), Owner::Host) => false,
            (Place::Host(host), Owner::Service(service)) => {
                self.judge.workload(host, service, asked.source.is_v4()).is_none()
            }
            (Place::Host(_), Owner::Host) => true,
            (Place::Host(_), Owner::Unknown) => !matches!(entry.layer4, Layer4::Udp(_)),
            (Place::Device(..) | Place::Virtual(_) | Place::Anycast, _) => false,
        };
        let epoch = self.judge.epoch;
        match self.flows.get_mut(flow) {
            Some(entry) if is_same => {
                entry.owner_asked = now;
                entry.owner_changes = changes;
                entry.owner_epoch = epoch;
            }
            Some(_) | None => {
                self.flows.remove(flow);
                self.telemetry.counters.flows_removed += 1;
            }
        }
        is_same
    }

    /// Decides about a packet that belongs to no flow.
    pub(super) fn admit(
        &mut self,
        ingress: Interface,
        packet: &[u8],
        headers: &Headers,
        owners: &mut dyn Owners,
        now: Instant,
    ) -> Option<(FlowRef, u8)> {
        // First: what changes meanwhile is seen at the next packet.
        let changes = owners.changes(&headers.key);
        let (new, leg) = match self.judge.decide(ingress, headers, owners) {
            Decision::New(new, leg) => (new, leg),
            Decision::Refuse(Refusal { drop: DropReason::Forged, .. }) => {
                self.refuse_source(ingress, headers, DropReason::Forged, now);
                return None;
            }
            Decision::Refuse(refusal) => {
                self.telemetry.drop(refusal.drop);
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
                self.telemetry.drop(reason);
                None
            }
        }
    }

    /// A source that may not come in by this port.
    pub(super) fn refuse_source(
        &mut self,
        ingress: Interface,
        headers: &Headers,
        reason: DropReason,
        now: Instant,
    ) -> Exit {
        if let Interface::Peer(peer) = ingress {
            self.forged.note(peer, headers.key.source, &mut self.telemetry, now);
        }
        self.dropped(reason)
    }

    fn count_verdict(&mut self, new: &NewFlow) {
        let decision = self.judge.state.policy.describe(&new.verdict);
        self.telemetry.counters.judge(decision.name, new.verdict.outcome);
    }

    fn insert(&mut self, mut new: NewFlow, now: Instant) -> Result<FlowRef, DropReason> {
        let original = LegKey { flow: new.original, port: new.ingress };
        if !new.verdict.denies() && self.answers_collide(&new, &original) {
            self.change_port(&mut new, &original)?;
        }
        let before = self.flows.find(&original).and_then(|(flow, _)| self.flows.get(flow));
        let is_told = before.is_some_and(|before| {
            before.is_denied() && before.from == new.from && before.epoch == self.judge.epoch
        });
        let inserted = self.flows.insert(&new, self.judge.epoch, now);
        let (flow, evicted) = inserted.map_err(|error| match error {
            InsertError::Full => DropReason::FlowTableFull,
            InsertError::Collision => DropReason::NoPort,
            InsertError::Rewrite => DropReason::NoRoute,
        })?;
        self.telemetry.counters.flows_created += 1;
        self.telemetry.counters.flows_evicted += evicted as u64;
        self.telemetry.counters.flows_removed += evicted as u64;
        if let Some(entry) = self.flows.get(flow) {
            let denial = self.denial(entry);
            if entry.is_denied() {
                if !is_told {
                    self.telemetry.tell(Event::Denied(denial));
                }
            } else if entry.verdict.audited() {
                self.telemetry.tell(Event::Audited(denial));
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
}
