//! Carries out the topology's rollouts: gathers what agents measure, asks the core what follows, and
//! makes revisions of it.
//!
//! (How far a revision has got is [`rollout`](crate::rollout)'s.)

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use isthmus_controller_core::State;
use isthmus_controller_core::rollout::{
    Circumstances, Counts, Decision, Order, Phase, Rollout, Tally, Trial, Version,
};
use isthmus_model::topology::RolloutDecl;
use isthmus_model::{HostId, Name, Revision};
use isthmus_proto::v1;
use isthmus_proto::v1::steer_delivery_request::Order as Asked;
use parking_lot::{Mutex, MutexGuard};
use tonic::Status;
use tracing::{error, info};

use crate::mesh::{Mesh, Published};
use crate::operators::Deed;

/// Agents report each second.
const TICK: Duration = Duration::from_millis(250);
/// In the place of a route's name: what workloads of the reporting host were asked.
const SERVED: &str = "";
/// Of one report.
const MOST_TRAFFIC: usize = 1_024;
const MOST_LATENCIES: usize = 4_096;

/// The steps that are being watched, by the rollout's name.
#[derive(Debug, Default)]
pub(crate) struct Trials {
    running: Mutex<BTreeMap<Name, Running>>,
}

#[derive(Debug)]
struct Running {
    trial: Trial,
    /// The phase and its beginning: another is another trial.
    of: (Phase, i64),
    /// The first revision with its weights.
    revision: Revision,
    waits_for: String,
}

/// Next step of a rollout.
struct Step {
    name: Name,
    decided_in: Phase,
    then: Phase,
}

impl Trials {
    /// An agent tells what it measured. Only who may call counts, and who has the canary.
    pub(crate) fn handle_report(
        &self,
        host: HostId,
        now: &Published,
        traffic: Vec<v1::BackendTraffic>,
    ) {
        if traffic.is_empty() {
            return;
        }
        let state = &now.state;
        let mut running = self.running();
        for traffic in traffic.into_iter().take(MOST_TRAFFIC) {
            let mut rollouts = state.topology.rollouts.iter();
            let concerned = rollouts.find(|(_, it)| match &*traffic.route {
                SERVED => traffic.backend == it.canary.as_str(),
                route => it.routes.iter().any(|it| **it == *route),
            });
            let Some((name, declared)) = concerned else { continue };
            let phase = state.rollouts.get(name).map(|rollout| &rollout.phase);
            let running = running.get_mut(name).filter(|it| Some(&it.of.0) == phase);
            let Some(running) = running else { continue };
            if traffic.route == SERVED {
                if now.world.serves(host, &traffic.backend) {
                    running.trial.handle_served(traffic.requests);
                }
                continue;
            }
            if !now.world.has_route(host, &traffic.route) {
                continue;
            }
            let version = match &*traffic.backend {
                backend if backend == declared.canary.as_str() => Version::Canary,
                backend if backend == declared.stable.as_str() => Version::Stable,
                _ => continue,
            };
            running.trial.handle_counts(host, version, &counts(traffic));
        }
    }

    /// Steps that are due now.
    fn steps(&self, mesh: &Mesh, now: Instant) -> Vec<Step> {
        let published = mesh.now();
        let mut running = self.running();
        let progressing = |name: &Name| {
            let rollout = published.state.rollouts.get(name);
            rollout.is_some_and(|it| matches!(it.phase, Phase::Progressing { .. }))
        };
        // Of what is over the last step stays, to be shown.
        running.retain(|name, _| published.state.rollouts.contains_key(name));
        let mut steps = Vec::new();
        for (name, rollout) in &published.state.rollouts {
            let Some(declared) = published.state.topology.rollouts.get(name) else { continue };
            if !progressing(name) {
                continue;
            }
            let running = Running::of(&mut running, name, rollout, &published);
            let behind = behind(mesh, &published, running.revision);
            let has_servers = published.world.has_servers(declared.canary.as_str());
            let circumstances = Circumstances { behind: &behind, has_servers };
            let then = match running.trial.decide(declared, circumstances, now) {
                Decision::Wait(why) => {
                    running.waits_for = why;
                    continue;
                }
                Decision::Advance => rollout.after_success(name, declared),
                Decision::Fail(why) => rollout.after_failure(declared, why),
            };
            steps.push(Step { name: name.clone(), decided_in: rollout.phase.clone(), then });
        }
        steps
    }

    fn running(&self) -> MutexGuard<'_, BTreeMap<Name, Running>> {
        self.running.lock()
    }
}

impl Running {
    /// The trial of a step; a new one if there is none of this step yet.
    fn of<'a>(
        all: &'a mut BTreeMap<Name, Self>,
        name: &Name,
        rollout: &Rollout,
        published: &Published,
    ) -> &'a mut Self {
        let of = (rollout.phase.clone(), rollout.since);
        let fresh = |trial| Self {
            trial,
            of: of.clone(),
            revision: published.state.revision,
            waits_for: String::new(),
        };
        let running = all.entry(name.clone()).or_insert_with(|| fresh(Trial::new()));
        if running.of != of {
            let before = std::mem::take(&mut running.trial);
            *running = fresh(before.next());
        }
        running
    }
}

/// The connected agents that don't work by a revision yet. One that refuses it, or is away, goes on
/// with the weights that it has, and holds nobody up.
fn behind(mesh: &Mesh, published: &Published, revision: Revision) -> Vec<Name> {
    let members = published.state.inventory.members().map(|member| &member.name);
    let lags = |name: &&Name| {
        let agent = mesh.agents.view(name);
        let refuses = agent.refused.is_some_and(|it| it.revision >= revision);
        agent.connected && agent.accepted < revision && !refuses
    };
    members.filter(lags).cloned().collect()
}

/// Carries out rollouts, for ever.
pub(crate) async fn follow(mesh: Arc<Mesh>) {
    let mut tick = tokio::time::interval(TICK);
    loop {
        tick.tick().await;
        let steps = mesh.trials.steps(&mesh, Instant::now());
        if steps.is_empty() {
            continue;
        }
        // A panic in there is logged by `work`.
        let _ = mesh.work(move |mesh| steps.into_iter().for_each(|step| take(mesh, step))).await;
    }
}

fn take(mesh: &Mesh, step: Step) {
    let Step { name, decided_in, then } = step;
    let (phase, why) = (then.name(), then.why().to_owned());
    match mesh.advance_rollout(&name, &decided_in, then, None) {
        Ok(true) => {
            let now = mesh.now();
            let weight = now.state.rollouts.get(&name).map_or(0, Rollout::weight);
            info!(rollout = %name, phase, weight, why, "a rollout moved");
        }
        // An operator was faster.
        Ok(false) => {}
        Err(error) => error!(rollout = %name, %error, "failed to store a rollout's step"),
    }
}

/// The routes whose traffic decides about a rollout that goes on.
pub(crate) fn watched(state: &State) -> Vec<String> {
    let goes_on = |name: &Name| {
        let rollout = state.rollouts.get(name);
        rollout.is_some_and(|it| matches!(it.phase, Phase::Progressing { .. }))
    };
    let rollouts = state.topology.rollouts.iter().filter(|(name, _)| goes_on(name));
    let mut watched: Vec<String> = rollouts
        .flat_map(|(_, declared)| declared.routes.iter().map(ToString::to_string))
        .collect();
    if !watched.is_empty() {
        watched.push(SERVED.to_owned());
    }
    watched
}

/// In words, for the audit log.
pub(crate) fn what(request: &v1::SteerDeliveryRequest) -> String {
    let order = match request.order() {
        Asked::Pause => "pause",
        Asked::Resume => "resume",
        Asked::Promote => "promote",
        Asked::Abort => "abort",
        Asked::Retry => "retry",
        Asked::Unspecified => "nothing",
    };
    format!("steer rollout {}: {order}", request.name)
}

/// An operator steers a rollout.
pub(crate) fn steer(
    mesh: &Mesh,
    request: &v1::SteerDeliveryRequest,
    deed: &Deed,
) -> Result<v1::Delivery, Status> {
    let operator = &*deed.who;
    let order = match request.order() {
        Asked::Pause => Order::Pause,
        Asked::Resume => Order::Resume,
        Asked::Promote => Order::Promote,
        Asked::Abort => Order::Abort,
        Asked::Retry => Order::Retry,
        Asked::Unspecified => return Err(Status::invalid_argument("The request has no order.")),
    };
    let now = mesh.now();
    let found = now.state.topology.rollouts.get_key_value(&*request.name);
    let found = found.and_then(|(name, it)| Some((name, it, now.state.rollouts.get(name)?)));
    let Some((name, declared, rollout)) = found else {
        return Err(Status::not_found(format!(
            "There is no rollout {:?}; `agentctl rollout list` shows all.",
            request.name
        )));
    };
    let then = rollout.obey(order, operator, declared).map_err(|senseless| {
        Status::failed_precondition(format!("Rollout {name:?} can't do that: {senseless}."))
    })?;
    info!(rollout = %name, operator, phase = then.name(), "an operator steers a rollout");
    if !mesh.advance_rollout(name, &rollout.phase, then, Some(deed)).map_err(Status::from)? {
        let text = format!("Rollout {name:?} moved at this moment; look and decide again.");
        return Err(Status::aborted(text));
    }
    let now = mesh.now();
    let after = now.state.rollouts.get(name).unwrap_or(rollout);
    Ok(show(mesh, name, declared, after))
}

/// All rollouts, as operators see them.
pub(crate) fn all(mesh: &Mesh) -> Vec<v1::Delivery> {
    let now = mesh.now();
    let declared = now.state.topology.rollouts.iter();
    let shown =
        declared.filter_map(|(name, it)| Some(show(mesh, name, it, now.state.rollouts.get(name)?)));
    shown.collect()
}

fn show(mesh: &Mesh, name: &Name, declared: &RolloutDecl, rollout: &Rollout) -> v1::Delivery {
    let running = mesh.trials.running();
    let of = (rollout.phase.clone(), rollout.since);
    // After the last step, what was measured in it.
    let is_over = !matches!(rollout.phase, Phase::Progressing { .. });
    let running = running.get(name).filter(|running| is_over || running.of == of);
    let nothing = Tally::default();
    let version = |service: &Name, version| {
        traffic(service, running.map_or(&nothing, |running| running.trial.tally(version)))
    };
    let why = match rollout.phase.why() {
        "" if is_over => "",
        "" => running.map_or("", |running| &*running.waits_for),
        why => why,
    };
    v1::Delivery {
        name: name.to_string(),
        routes: declared.routes.iter().map(ToString::to_string).collect(),
        phase: rollout.phase.name().to_owned(),
        weight: rollout.weight().into(),
        steps: declared.steps.iter().map(|step| u32::from(*step)).collect(),
        since: rollout.since,
        why: why.to_owned(),
        stable: Some(version(&declared.stable, Version::Stable)),
        canary: Some(version(&declared.canary, Version::Canary)),
        origin: declared.origin.to_string(),
    }
}

fn traffic(service: &Name, tally: &Tally) -> v1::VersionTraffic {
    let micros = |share| {
        let time = tally.quantile(share).unwrap_or_default();
        u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
    };
    v1::VersionTraffic {
        service: service.to_string(),
        requests: tally.requests(),
        failures: tally.failures(),
        p50_microseconds: micros(0.5),
        p99_microseconds: micros(0.99),
    }
}

fn counts(traffic: v1::BackendTraffic) -> Counts {
    let latencies = traffic.latencies.into_iter().take(MOST_LATENCIES);
    Counts {
        requests: traffic.requests,
        failures: traffic.failures,
        latencies: latencies
            .map(|it| (Duration::from_micros(it.microseconds), it.requests))
            .collect(),
    }
}
