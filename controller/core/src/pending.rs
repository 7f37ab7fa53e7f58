//! A topology that was applied on trial: unless somebody confirms it in time, the one before comes back.

use std::collections::BTreeMap;
use std::sync::Arc;

use isthmus_model::topology::Diagnostic;
use isthmus_model::topology::{SourceFile, Topology};
use isthmus_model::{Name, Revision};

use crate::rollout::Rollout;
use crate::state::State;

/// A revision that waits to be confirmed, and what is to come back otherwise.
#[derive(Clone, Debug, PartialEq)]
pub struct Pending {
    /// The revision.
    pub revision: Revision,
    /// Operator who applied it.
    pub by: String,
    /// Until when it waits, in seconds since the epoch.
    pub deadline: i64,
    /// Its duration, in seconds.
    pub within: u64,
    /// The files before.
    pub files: Arc<[SourceFile]>,
    /// Earlier progress of rollouts.
    pub rollouts: BTreeMap<Name, Rollout>,
}

impl Pending {
    /// How long it waits still, in seconds. A clock that was set back doesn't make it longer than it was.
    #[must_use]
    pub fn left(&self, now: i64) -> u64 {
        let left = self.deadline.saturating_sub(now);
        u64::try_from(left).unwrap_or(0).min(self.within)
    }
}

impl State {
    /// The topology from before a trial comes back, and rollouts go on where they were.
    ///
    /// # Errors
    ///
    /// What in it contradicts the mesh as it has become.
    pub fn undo(
        &self,
        pending: &Pending,
        topology: Topology,
        now: i64,
    ) -> Result<Self, Vec<Diagnostic>> {
        let mut next = self.apply(Arc::clone(&pending.files), topology, now)?;
        for (name, rollout) in &mut next.rollouts {
            let before = pending.rollouts.get(name).filter(|before| before.concerns(rollout));
            if let Some(before) = before
                && !self.rollouts.get(name).is_some_and(|during| during.concerns(before))
            {
                *rollout = before.clone();
            }
        }
        Ok(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_clock_makes_it_longer() {
        let pending = Pending {
            revision: Revision(2),
            by: String::new(),
            deadline: 1_000,
            within: 300,
            files: Arc::new([]),
            rollouts: BTreeMap::new(),
        };
        assert_eq!([800, 700, 0, 1_000, 5_000].map(|now| pending.left(now)), [200, 300, 300, 0, 0]);
    }
}
