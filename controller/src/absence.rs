//! Hosts that aren't as the topology has them: never joined, away, or behind.

use std::collections::HashMap;

use isthmus_controller_core::{Member, State};
use isthmus_model::{Code, Name, Problem};
use isthmus_proto::v1;

use crate::agents::{Refusal, View};
use crate::mesh::Mesh;
use crate::operators::Departure;
use crate::time;

/// Names that one problem lists.
const NAMED: usize = 10;

/// All that is wrong with a host: as the controller sees it, then by its agent's own word.
pub(crate) fn problems(
    mesh: &Mesh,
    name: &str,
    member: Option<&Member>,
    agent: &View,
) -> Vec<v1::Problem> {
    let away = (!agent.connected).then(|| {
        let since = agent.left.unwrap_or(mesh.began);
        at(away(name, member, agent, time::now()), since)
    });
    let refused = agent.refused.as_ref().map(|refusal| at(refused(name, refusal), refusal.at));
    let seen = away.into_iter().chain(refused);
    seen.chain(agent.lacks.iter().cloned()).chain(agent.problems.iter().cloned()).collect()
}

fn at(problem: Problem, since: i64) -> v1::Problem {
    v1::Problem { since, ..problem.to_message(std::time::SystemTime::UNIX_EPOCH) }
}

fn away(name: &str, member: Option<&Member>, agent: &View, now: i64) -> Problem {
    let whence = agent.address.map_or_else(String::new, |it| format!(" (it came from {it})"));
    let expired = member.map(|it| it.certificate_expires).filter(|expires| *expires <= now);
    let expired = expired.map_or_else(String::new, |expires| {
        let at = time::show(expires);
        format!("; its certificate expired at {at}, and is renewed once it is back")
    });
    let text = match agent.left {
        Some(_) => {
            format!("the agent of {name} isn't connected{whence}: it works by what it has{expired}")
        }
        None => format!("the agent of {name} hasn't connected since the controller began{expired}"),
    };
    let remedy = format!(
        "`systemctl start isthmus-agent` on {name}, if the machine is on; `agentctl check` there says what \
         else is in the way; `agentctl host remove {name}` here if it won't come back"
    );
    Problem::new(Code::HostAway, text, remedy).about(name)
}

fn refused(name: &str, Refusal { revision, reason, at: _ }: &Refusal) -> Problem {
    let text = format!("{name} refused revision {revision} and works by the one before: {reason}");
    let remedy = "mend that there, and it takes the revision by itself; or apply a topology that it can take";
    Problem::new(Code::RevisionRefused, text, remedy).about(name)
}

/// Hosts that the topology declares and that have never joined: one problem each, or one for all where
/// there are many.
pub(crate) fn not_joined(state: &State, gone: &HashMap<String, Departure>) -> Vec<Problem> {
    let missing = missing(state).filter(|name| !gone.contains_key(name.as_str()));
    each_or_all(missing.collect(), never_joined, |named| {
        let text = format!("{named} are declared, and have never joined");
        let remedy = "`agentctl token create --uses 100`, and `agentctl join -` with that token on each of \
                      them; or remove their tables from the topology";
        Problem::new(Code::HostNotJoined, text, remedy)
    })
}

/// Hosts that the topology declares and that left, or were removed.
pub(crate) fn left(state: &State, gone: &HashMap<String, Departure>) -> Vec<Problem> {
    let left = missing(state).filter(|name| gone.contains_key(name.as_str()));
    each_or_all(
        left.collect(),
        |name| departed(name, &gone[name.as_str()]),
        |named| {
            let text = format!("{named} are declared, and have left the mesh or were removed");
            Problem::new(Code::HostLeft, text, "remove their tables from the topology")
        },
    )
}

fn missing(state: &State) -> impl Iterator<Item = &Name> {
    let declared = state.topology.hosts.keys();
    declared.filter(|name| state.inventory.member(name.as_str()).is_none())
}

fn each_or_all(
    hosts: Vec<&Name>,
    one: impl Fn(&Name) -> Problem,
    all: impl Fn(&str) -> Problem,
) -> Vec<Problem> {
    if hosts.len() <= NAMED {
        return hosts.into_iter().map(one).collect();
    }
    let named: Vec<&str> = hosts.iter().take(NAMED).map(|name| name.as_str()).collect();
    vec![all(&format!("{} and {} more hosts", named.join(", "), hosts.len() - NAMED))]
}

fn never_joined(name: &Name) -> Problem {
    let text = format!("host {name} is declared, and has never joined");
    Problem::new(Code::HostNotJoined, text, let_in(name)).about(name.as_str())
}

fn departed(name: &Name, Departure { at, by }: &Departure) -> Problem {
    let at = time::show(*at);
    let how = match by {
        None => format!("left the mesh at {at}"),
        Some(by) => format!("was removed from the mesh by {by} at {at}"),
    };
    let text = format!("host {name} is declared, and {how}");
    Problem::new(Code::HostLeft, text, let_in(name)).about(name.as_str())
}

fn let_in(name: &Name) -> String {
    format!(
        "`agentctl token create --host {name}`, and `agentctl join --name {name} -` with that token there; \
         or remove [host.{name}] from the topology"
    )
}
