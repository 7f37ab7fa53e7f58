//! Convergence: how far a revision has got. On the wire it is a `Rollout`, and what everybody else calls a
//! rollout is a `Delivery` there ([`crate::rollout`]).

use std::collections::BTreeSet;

use isthmus_model::{Name, Revision};
use isthmus_proto::v1;

use crate::mesh::Mesh;

/// Convergence of the hosts that a revision affects. Hosts removed meanwhile don't count.
pub(crate) fn of(mesh: &Mesh, revision: Revision, affected: &BTreeSet<Name>) -> v1::Rollout {
    let now = mesh.now();
    let mut convergence = v1::Rollout { revision: revision.0, ..v1::Rollout::default() };
    for name in affected {
        if now.state.inventory.member(name.as_str()).is_none() {
            continue;
        }
        let agent = mesh.agents.view(name);
        // A later revision holds what an earlier one said, unless it says otherwise.
        if agent.accepted >= revision {
            let warned = |problem| v1::WarnedBy { host: name.to_string(), problem: Some(problem) };
            convergence.warned.extend(agent.warnings.into_iter().map(warned));
            convergence.accepted.push(name.to_string());
        } else if let Some(refusal) = agent.refused.filter(|it| it.revision >= revision) {
            let (host, reason) = (name.to_string(), refusal.reason);
            convergence.refused.push(v1::RefusedBy { host, reason });
        } else if agent.connected {
            convergence.waiting.push(name.to_string());
        } else {
            convergence.disconnected.push(name.to_string());
        }
    }
    convergence.complete = convergence.waiting.is_empty() && convergence.disconnected.is_empty();
    convergence
}
