//! Hosts that aren't as the topology has them: never joined, away, or behind.

use isthmus_controller_core::{Member, State};
use isthmus_model::{Code, Name, Problem};
use isthmus_proto::v1;

use crate::agents::{Refusal, View};
use crate::mesh::Mesh;
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
pub(crate) fn not_joined(state: &State) -> Vec<Problem> {
    let inventory = &state.inventory;
    let declared = state.topology.hosts.keys();
    let missing: Vec<&Name> =
        declared.filter(|name| inventory.member(name.as_str()).is_none()).collect();
    if missing.len() <= NAMED {
        return missing.into_iter().map(never_joined).collect();
    }
    let named: Vec<&str> = missing.iter().take(NAMED).map(|name| name.as_str()).collect();
    let (named, more) = (named.join(", "), missing.len() - NAMED);
    let text = format!("{named} and {more} more hosts are declared, and have never joined");
    let remedy = "`agentctl token create --uses 100`, and `agentctl join -` with that token on each of \
                  them; or remove their tables from the topology";
    vec![Problem::new(Code::HostNotJoined, text, remedy)]
}

fn never_joined(name: &Name) -> Problem {
    let text = format!("host {name} is declared, and has never joined");
    let remedy = format!(
        "`agentctl token create --host {name}`, and `agentctl join --name {name} -` with that token there; \
         or remove [host.{name}] from the topology"
    );
    Problem::new(Code::HostNotJoined, text, remedy).about(name.as_str())
}
