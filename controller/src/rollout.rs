//! How far a revision has got.

use std::collections::BTreeSet;

use isthmus_model::{Name, Revision};
use isthmus_proto::v1;

use crate::mesh::Mesh;

/// Where those whom a revision concerns stand. Hosts removed meanwhile don't count.
pub(crate) fn rollout(mesh: &Mesh, revision: Revision, affected: &BTreeSet<Name>) -> v1::Rollout {
    let now = mesh.now();
    let mut rollout = v1::Rollout { revision: revision.0, ..v1::Rollout::default() };
    for name in affected {
        if now.state.inventory.member(name.as_str()).is_none() {
            continue;
        }
        let agent = mesh.agents.view(name);
        // A later revision holds what an earlier one said, unless it says otherwise.
        if agent.accepted >= revision {
            let warned = |problem| v1::WarnedBy { host: name.to_string(), problem: Some(problem) };
            rollout.warned.extend(agent.warnings.into_iter().map(warned));
            rollout.accepted.push(name.to_string());
        } else if let Some(refusal) = agent.refused.filter(|it| it.revision >= revision) {
            let (host, reason) = (name.to_string(), refusal.reason);
            rollout.refused.push(v1::RefusedBy { host, reason });
        } else if agent.connected {
            rollout.waiting.push(name.to_string());
        } else {
            rollout.disconnected.push(name.to_string());
        }
    }
    rollout.complete = rollout.waiting.is_empty() && rollout.disconnected.is_empty();
    rollout
}
