//! Hosts that each of the latest revisions concerned.

use std::collections::{BTreeSet, VecDeque};

use isthmus_model::{Name, Revision};

const KEPT: usize = 32;

/// The hosts whose slices changed, for the latest applied revisions.
#[derive(Clone, Debug, Default)]
pub struct RevisionHosts {
    recent: VecDeque<(Revision, BTreeSet<Name>)>,
}

impl RevisionHosts {
    /// Remembers whom a revision concerns, and forgets the oldest one.
    pub fn insert(&mut self, revision: Revision, affected: BTreeSet<Name>) {
        self.recent.push_back((revision, affected));
        if self.recent.len() > KEPT {
            self.recent.pop_front();
        }
    }

    /// Whom a revision concerned, if that is remembered.
    #[must_use]
    pub fn affected(&self, revision: Revision) -> Option<&BTreeSet<Name>> {
        self.recent.iter().find(|(known, _)| *known == revision).map(|(_, affected)| affected)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_latest_are_kept() {
        let mut rollouts = RevisionHosts::default();
        for number in 1..=1_000 {
            rollouts.insert(Revision(number), BTreeSet::new());
        }
        assert_eq!(rollouts.recent.len(), KEPT);
        assert!(rollouts.affected(Revision(1_000)).is_some());
        assert!(rollouts.affected(Revision(1)).is_none());
    }
}
