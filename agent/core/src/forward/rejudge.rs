//! When the revision moves: every flow is judged again, at its next packet or by a sweep that finds
//! the idle ones. A flow that isn't allowed any more is cut: its entry goes, and the near ends of a
//! TCP connection are reset.

use std::time::{Duration, Instant};

use isthmus_model::Place;
use isthmus_policy::Outcome;

use super::{Exit, Forwarder};
use crate::flows::{Flow, FlowRef, FlowState};
use crate::judge::port_of;
use crate::types::{Denial, DropReason, Event, Interface, PeerName};

/// Flows looked at in one step of the sweep, a millisecond's work at most.
const STEP: u32 = 4096;
/// Between steps, so that packets get through.
const PAUSE: Duration = Duration::from_millis(5);

/// Progress of the sweep.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sweep {
    next: u32,
    pub(crate) due: Instant,
}

impl Sweep {
    pub(crate) fn new(now: Instant) -> Self {
        Self { next: 0, due: now }
    }
}

impl Forwarder {
    /// Whether a flow stands under the current revision; judges it if it hasn't been yet.
    #[inline(always)]
    pub(crate) fn is_judged(&mut self, flow: FlowRef, now: Instant) -> bool {
        match self.flows.get(flow) {
            Some(entry) if entry.epoch == self.judge.epoch => true,
            Some(_) => self.rejudge(flow, now),
            None => false,
        }
    }

    pub(crate) fn step_sweep(&mut self, now: Instant) {
        let Some(sweep) = self.sweep.filter(|sweep| sweep.due <= now) else { return };
        let Some(window) = self.flows.window(sweep.next, STEP) else {
            self.sweep = None;
            return;
        };
        for flow in window {
            self.is_judged(flow, now);
        }
        self.sweep = Some(Sweep { next: sweep.next.saturating_add(STEP), due: now + PAUSE });
    }

    fn rejudge(&mut self, flow: FlowRef, now: Instant) -> bool {
        let Some(entry) = self.flows.get(flow) else { return false };
        self.telemetry.counters.flows_rejudged += 1;
        if entry.is_denied() {
            self.flows.remove(flow);
            self.telemetry.counters.flows_removed += 1;
            return false;
        }
        let local = self.judge.state.local();
        let (from, to) = (entry.from.place.principal(local), entry.to.place.principal(local));
        let verdict = self.judge.state.judge(from, to, entry.layer4);
        let delivers_here = entry.legs[1].key.port == Interface::Tun;
        let was_inspected = entry.verdict.outcome == Outcome::Inspect;
        let changes_hands = delivers_here && was_inspected != (verdict.outcome == Outcome::Inspect);
        let around = self.judge.state.leads_around_proxy(entry.to.place, entry.layer4);
        if verdict.denies() || changes_hands || around || !self.still_stands(entry) {
            self.cut(flow, now);
            return false;
        }
        let epoch = self.judge.epoch;
        let audited = verdict.audited() && !entry.verdict.audited();
        if let Some(entry) = self.flows.get_mut(flow) {
            entry.verdict = verdict;
            entry.epoch = epoch;
        }
        if audited && let Some(entry) = self.flows.get(flow) {
            let denial = Denial { verdict, ..self.denial(entry) };
            self.telemetry.tell(Event::Audited(denial));
        }
        true
    }

    /// Whether both ends are still where they were, and the ways to them.
    fn still_stands(&self, flow: &Flow) -> bool {
        let state = &self.judge.state;
        let has_port = |port| match port {
            Interface::Tun => true,
            Interface::Peer(name) => state.has_peer(name),
        };
        let addressed = match state.place(flow.legs[0].key.flow.destination) {
            Some(Place::Virtual(service)) => match flow.to.place {
                Place::Workload(_, other) | Place::Virtual(other) => other == service,
                Place::Host(_) | Place::Device(..) | Place::Anycast => false,
            },
            Some(place) => place == flow.to.place,
            None => false,
        };
        addressed
            && state.place(flow.from.address) == Some(flow.from.place)
            && state.place(flow.to.address) == Some(flow.to.place)
            && port_of(state, flow.from.place) == flow.legs[0].key.port
            && port_of(state, flow.to.place) == flow.legs[1].key.port
            && flow.legs.iter().all(|leg| has_port(leg.key.port))
    }

    fn cut(&mut self, flow: FlowRef, now: Instant) {
        let Some(flow) = self.flows.remove(flow) else { return };
        self.telemetry.counters.flows_removed += 1;
        self.telemetry.counters.flows_cut += 1;
        if flow.is_tcp() && flow.state != FlowState::Closing {
            self.reset_near_ends(&flow, now);
        }
    }

    /// A flow as events show it.
    pub(crate) fn denial(&self, flow: &Flow) -> Denial {
        let local = self.judge.state.local();
        let outbound = match flow.legs[0].key.port {
            Interface::Tun | Interface::Peer(PeerName::Device(_)) => true,
            Interface::Peer(PeerName::Host(_)) => false,
        };
        Denial {
            from: flow.from.place.principal(local),
            to: flow.to.place.principal(local),
            original: flow.legs[0].key.flow,
            source: flow.from.address.ip(),
            layer4: flow.layer4,
            verdict: flow.verdict,
            revision: self.judge.state.revision(),
            outbound,
        }
    }

    pub(crate) fn dropped(&mut self, reason: DropReason) -> Exit {
        self.telemetry.drop(reason);
        Exit::Done
    }
}
