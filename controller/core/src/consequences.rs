//! Consequences of a new topology that an operator should know before it is applied: what hardly anybody means, which
//! has to be asked, and what comes of it without being said.

use std::collections::BTreeMap;
use std::fmt::Display;

use isthmus_model::route::{Route, RouteAction};
use isthmus_model::topology::{ServiceDecl, Topology};
use isthmus_model::{Edge, HostId, Name};

use crate::rollout::Rollout;
use crate::state::State;
use crate::world::{placements, routes};

/// One host of so many may go without a question.
const TENTH: usize = 10;
/// More names than this say no more than their number.
const NAMES_SHOWN: usize = 8;

/// Consequences of the step from one state to the next, a sentence each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Consequences {
    /// What may be a mistake: it is done only if somebody says yes to it.
    pub asks: Vec<String>,
    /// Notices.
    pub notes: Vec<String>,
}

impl Consequences {
    /// Compares what is with what would be.
    #[must_use]
    pub fn of(before: &State, after: &State) -> Self {
        let mut notes = lost_workloads(before, after);
        notes.extend(rollouts(before, after));
        Self { asks: asks(&before.topology, &after.topology), notes }
    }
}

fn asks(before: &Topology, after: &Topology) -> Vec<String> {
    if says_nothing(after) && !says_nothing(before) {
        return vec![format!(
            "the files say nothing: they would take away all {}, {} and {}",
            count(before.hosts.len(), "host"),
            count(before.services.len(), "service"),
            count(before.rules.rules.len(), "rule"),
        )];
    }
    let mut asks = Vec::new();
    let gone: Vec<&Name> =
        before.hosts.keys().filter(|name| !after.hosts.contains_key(*name)).collect();
    if gone.len() * TENTH > before.hosts.len() {
        let all = count(before.hosts.len(), "host");
        let those = list(&gone);
        asks.push(format!("it takes {} of {all} out of the topology: {those}", gone.len()));
    }
    let renamed = |name: &Name| after.services.values().any(|it| it.aliases.contains(name));
    let lost: Vec<&Name> = before
        .services
        .keys()
        .filter(|name| !after.services.contains_key(*name) && !renamed(name))
        .collect();
    if lost.len() * 2 > before.services.len() {
        let all = count(before.services.len(), "service");
        asks.push(format!("it removes {} of {all}: {}", lost.len(), list(&lost)));
    }
    let was_gateway = before.services.iter().filter(|(_, declared)| is_gateway(declared));
    for (name, _) in was_gateway {
        if !after.services.get(name).is_some_and(is_gateway) {
            asks.push(format!("it removes gateway {name}: clients outside of the mesh lose it"));
        }
    }
    for host in gone {
        let behind = before.devices.iter().filter(|(_, device)| device.via == *host);
        let devices: Vec<&Name> = behind.map(|(name, _)| name).collect();
        if !devices.is_empty() {
            let devices = list(&devices);
            asks.push(format!("it removes host {host}, the gateway of devices: {devices}"));
        }
    }
    asks
}

fn says_nothing(topology: &Topology) -> bool {
    let Topology { hosts, services, devices, rules, .. } = topology;
    hosts.is_empty() && services.is_empty() && devices.is_empty() && rules.rules.is_empty()
}

const fn is_gateway(declared: &ServiceDecl) -> bool {
    matches!(declared.edge, Some(Edge::Gateway(_)))
}

fn lost_workloads(before: &State, after: &State) -> Vec<String> {
    let (were, are) = (placements(before), placements(after));
    let lost = were.into_iter().filter(|(service, _)| {
        after.topology.services.contains_key(*service) && !are.contains_key(*service)
    });
    let sentence = |(service, hosts): (&Name, Vec<HostId>)| {
        let members = before.inventory.members();
        let names: Vec<&Name> =
            members.filter(|it| hosts.contains(&it.id)).map(|it| &it.name).collect();
        format!("service {service} loses its last workload: it was on {}", list(&names))
    };
    lost.map(sentence).collect()
}

fn rollouts(before: &State, after: &State) -> Vec<String> {
    let sentence = |(name, rollout): (&Name, &Rollout)| {
        let at = format!("{} at {} %", rollout.phase.name(), rollout.weight());
        match after.rollouts.get(name) {
            None => {
                Some(format!("rollout {name} ends ({at}); {}", weights(before, after, rollout)))
            }
            Some(next) if next.concerns(rollout) => None,
            Some(next) => {
                Some(format!("rollout {name} ({at}) begins anew, at {} %", next.weight()))
            }
        }
    };
    before.rollouts.iter().filter_map(sentence).collect()
}

/// What a rollout's routes give to whom, before and after it.
fn weights(before: &State, after: &State, rollout: &Rollout) -> String {
    let by_name = |state: &State| -> BTreeMap<String, String> {
        let forward = |route: Route| Some((route.name.to_string(), backends(&route)?));
        routes(state).into_iter().filter_map(forward).collect()
    };
    let (were, are) = (by_name(before), by_name(after));
    let step = |route: &String| match (were.get(route), are.get(route)) {
        (Some(was), Some(is)) if was == is => format!("route {route} stays at {is}"),
        (Some(was), Some(is)) => format!("route {route} goes from {was} to {is}"),
        (_, _) => format!("route {route} is gone, too"),
    };
    rollout.routes().iter().map(step).collect::<Vec<_>>().join("; ")
}

/// "api-v1 75 %, api-v2 25 %"
fn backends(route: &Route) -> Option<String> {
    let RouteAction::Forward { to, .. } = &route.action else { return None };
    let all: u64 = to.iter().map(|backend| u64::from(backend.weight)).sum();
    let share = |weight: u32| u64::from(weight) * 100 / all.max(1);
    let shares = to.iter().filter(|backend| backend.weight > 0);
    let shares = shares.map(|backend| format!("{} {} %", backend.service, share(backend.weight)));
    Some(shares.collect::<Vec<_>>().join(", "))
}

fn count(number: usize, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

fn list(names: &[impl Display]) -> String {
    let shown: Vec<String> = names.iter().take(NAMES_SHOWN).map(ToString::to_string).collect();
    let shown = shown.join(", ");
    match names.len().saturating_sub(NAMES_SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
