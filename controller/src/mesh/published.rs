//! Published state: a revision, and what follows from it.

use std::sync::Arc;

use isthmus_controller_core::{MeshIdentity, MeshSnapshot, State};
use isthmus_model::topology::{self, Topology};

use super::Published;
use crate::authority::Membership;
use crate::store::Saved;

impl Published {
    pub(super) fn new(state: State) -> Self {
        let world = Arc::new(MeshSnapshot::new(&state));
        Self { state, world }
    }

    /// Whether a host is a member, by this membership.
    pub(crate) fn has(&self, host: &str, membership: Membership) -> bool {
        let member = self.state.inventory.member(host);
        member.is_some_and(|it| membership == Membership { id: it.id, generation: it.generation })
    }

    /// Whether a membership began after all that this controller knows: it was restored from a backup.
    pub(crate) fn never_saw(&self, host: &str, membership: Membership) -> bool {
        let member = self.state.inventory.member(host).filter(|it| it.id == membership.id);
        let later = member.is_some_and(|it| it.generation < membership.generation);
        later || self.state.allocation.never_gave(membership.id)
    }

    /// The world only changes with the revision.
    pub(super) fn after(now: &Self, state: State) -> Self {
        if state.revision == now.state.revision {
            return Self { state, world: Arc::clone(&now.world) };
        }
        Self::new(state)
    }
}

pub(super) fn restore(identity: MeshIdentity, saved: Saved) -> anyhow::Result<State> {
    let Saved { revision, files, allocation, members, rollouts, leaving, .. } = saved;
    let topology = if files.is_empty() {
        Topology::default()
    } else {
        topology::parse(&files).map_err(|diagnostics| {
            let first = diagnostics.first().map(ToString::to_string).unwrap_or_default();
            anyhow::anyhow!(
                "This version doesn't understand the stored topology: {first}. Run the version that stored it, and apply a topology that both understand"
            )
        })?
    };
    Ok(State {
        identity,
        revision,
        files: files.into(),
        topology: Arc::new(topology),
        inventory: members.into_iter().collect(),
        allocation,
        rollouts,
        leaving,
    })
}
