//! Events of the data plane: logged, and kept for the status.

use std::sync::Arc;
use std::time::{Duration, Instant};

use isthmus_core::{CompiledSnapshot, Event, PeerName};
use isthmus_model::{Code, Problem};
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;

use super::{DENIALS_LOGGED, SILENCE_LOOKS};
use crate::callers::Caller;
use crate::status::{Pong, Shared};
use crate::words::{self, peer_name};

/// Logs and passes on what the node tells.
pub(super) async fn listen(
    shared: Arc<Shared>,
    mut events: mpsc::Receiver<Event>,
    states: watch::Receiver<Arc<CompiledSnapshot>>,
) {
    let mut denials = RateLimit::new(DENIALS_LOGGED);
    let mut looks = tokio::time::interval(SILENCE_LOOKS);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            event = events.recv() => {
                let Some(event) = event else { return };
                let state = Arc::clone(&states.borrow());
                on_event(&shared, &state, &mut denials, event);
            }
            _ = looks.tick(), if !shared.proxy.silence().hosts().is_empty() => {
                let state = Arc::clone(&states.borrow());
                look_for_silence(&shared, &state).await;
            }
        }
    }
}

/// An event may be lost, and nobody shall be taken for silent for ever.
pub(super) async fn look_for_silence(shared: &Shared, state: &CompiledSnapshot) {
    let Some(packets) = shared.packets() else { return };
    let Ok(sample) = packets.sample().await else { return };
    let now = Instant::now();
    shared.proxy.silence().replace(sample.peers.iter().filter_map(|peer| match peer.peer {
        PeerName::Host(host) => Some((host, now.checked_sub(peer.silent?)?)),
        PeerName::Device(_) => None,
    }));
    tell_silence(shared, state);
}

/// Says who doesn't answer.
pub(super) fn tell_silence(shared: &Shared, state: &CompiledSnapshot) {
    let silent = shared.proxy.silence().hosts();
    let problem = |host| {
        let name = peer_name(state, PeerName::Host(host));
        let port = shared.ports.tunnels();
        Problem::new(
            Code::HostSilent,
            format!("host {name} doesn't answer: requests go elsewhere, or get 503"),
            format!(
                "`agentctl check` on {name}, if it is on: its agent may be down, or UDP port {port} not \
                 pass between the two"
            ),
        )
        .about(name)
    };
    shared.problems.replace(Code::HostSilent, silent.into_iter().map(|(host, _)| problem(host)));
}

pub(super) fn on_event(
    shared: &Shared,
    state: &CompiledSnapshot,
    denials: &mut RateLimit,
    event: Event,
) {
    match event {
        Event::Forged { from, source, packets } => {
            let peer = peer_name(state, from);
            tracing::warn!(%peer, %source, packets, "dropped packets with a forged source address");
            if let PeerName::Host(host) = from {
                shared.note_forgery(host, source, packets);
            }
        }
        Event::Denied(denial) if denials.allows() => log_denial(shared, state, &denial, "denied"),
        Event::Audited(denial) if denials.allows() => {
            log_denial(shared, state, &denial, "would deny");
        }
        Event::Denied(_) | Event::Audited(_) => {}
        Event::Connected { peer } => {
            tracing::debug!(peer = %peer_name(state, peer), "tunnel up");
        }
        Event::Silent { peer: PeerName::Host(host), since } => {
            shared.proxy.silence().begin(host, since);
            tell_silence(shared, state);
        }
        Event::Answers { peer: PeerName::Host(host) } => {
            shared.proxy.silence().end(host);
            tell_silence(shared, state);
        }
        // Nobody waits for devices.
        Event::Silent { .. } | Event::Answers { .. } => {}
        Event::Roamed { peer, from, to } => {
            tracing::debug!(peer = %peer_name(state, peer), ?from, %to, "peer moved");
        }
        Event::PathMtu { host, bytes } => {
            let peer = peer_name(state, PeerName::Host(host));
            tracing::debug!(%peer, bytes, "measured the path");
        }
        Event::Pong { from, target: _, identifier, sequence, round_trip } => {
            shared.pings.answer(identifier, sequence, Pong { from, round_trip });
        }
    }
}

pub(super) fn log_denial(
    shared: &Shared,
    state: &CompiledSnapshot,
    denial: &isthmus_core::Denial,
    what: &'static str,
) {
    let name = |principal| {
        state.identity(principal).map_or_else(|| "unknown".to_owned(), ToString::to_string)
    };
    // Rule ids mean nothing to another revision.
    let same = denial.revision == state.revision();
    let by = denial.verdict.would_deny.unwrap_or(denial.verdict.decided_by);
    let decision = same.then(|| state.policy.describe_decider(by));
    let caller = shared.callers.of(&denial.original);
    tracing::info!(
        from = name(denial.from),
        to = name(denial.to),
        layer4 = %denial.layer4,
        source = words::end(denial.layer4, denial.source, denial.original.source_port),
        destination = words::end(
            denial.layer4,
            denial.original.destination.ip(),
            words::asked_port(denial.layer4)
        ),
        user = caller.as_ref().map(Caller::user),
        unit = caller.as_ref().map(Caller::unit).filter(|unit| !unit.is_empty()),
        program = caller.as_ref().map(Caller::program).filter(|program| !program.is_empty()),
        rule = decision.map_or("of an old revision", |decision| decision.name),
        origin = decision.and_then(|it| it.origin).map(tracing::field::display),
        side = if denial.outbound { "sender" } else { "receiver" },
        "{what} a flow"
    );
}

/// So many in each second.
#[derive(Debug)]
pub(super) struct RateLimit {
    per_second: u32,
    left: u32,
    since: tokio::time::Instant,
    suppressed: u64,
}

impl RateLimit {
    pub(super) fn new(per_second: u32) -> Self {
        Self { per_second, left: per_second, since: tokio::time::Instant::now(), suppressed: 0 }
    }

    pub(super) fn allows(&mut self) -> bool {
        if self.since.elapsed() >= Duration::from_secs(1) {
            if self.suppressed > 0 {
                tracing::info!(flows = self.suppressed, "more flows were denied than are logged");
            }
            *self = Self::new(self.per_second);
        }
        let allowed = self.left > 0;
        self.left = self.left.saturating_sub(1);
        self.suppressed += u64::from(!allowed);
        allowed
    }
}
