//! Epochs: they tell a controller's revisions from those of a future that it lost.
//!
//! A store that was restored from a backup has gone back: revisions that it makes from then on have the
//! numbers of others that agents know. So each run of a controller on a store is an *epoch* with a number of
//! its own, and agents remember the epoch of the revision that they work by.
//!
//! ```text
//!  epoch   7f…          a3…             c1…            restored: a3 ends at 20, and there is no c1
//!          ├── 1 … 12 ──┼── 12 … 20 ────┼── 20 … 31
//!                                       └── 20 … 24    epoch 0e…
//! ```

use isthmus_model::Revision;
use serde::{Deserialize, Serialize};

/// Runs that are remembered. An agent that was away for longer is believed.
const KEPT: usize = 256;

/// The runs of controllers on a store, the latest last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Epochs(Vec<Epoch>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Epoch {
    number: u64,
    /// The revision that it began with.
    first: u64,
}

impl Epochs {
    /// A controller begins to run at a revision.
    #[must_use]
    pub fn begin(&self, number: u64, revision: Revision) -> Self {
        let mut epochs = self.0.clone();
        epochs.push(Epoch { number, first: revision.0 });
        let surplus = epochs.len().saturating_sub(KEPT);
        epochs.drain(..surplus);
        Self(epochs)
    }

    /// The number of the one that runs; 0 before the first.
    #[must_use]
    pub fn current(&self) -> u64 {
        self.0.last().map_or(0, |epoch| epoch.number)
    }

    /// Whether a revision that an agent has can be one of this store's, which is at `now`. The epoch is 0
    /// where the agent doesn't know it.
    #[must_use]
    pub fn knows(&self, epoch: u64, revision: Revision, now: Revision) -> bool {
        if revision > now {
            return false;
        }
        if epoch == 0 || revision.0 == 0 {
            return true;
        }
        let Some(at) = self.0.iter().position(|it| it.number == epoch) else {
            let oldest = self.0.first().map_or(0, |it| it.first);
            return self.0.len() == KEPT && revision.0 <= oldest;
        };
        self.0.get(at + 1).is_none_or(|next| revision.0 <= next.first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(runs: &[(u64, u64)]) -> Epochs {
        let begin =
            |epochs: Epochs, (number, first): &(u64, u64)| epochs.begin(*number, Revision(*first));
        runs.iter().fold(Epochs::default(), begin)
    }

    #[test]
    fn what_a_store_made_is_known_whenever_it_was() {
        let epochs = runs(&[(7, 0), (8, 12), (9, 20)]);
        let knows = |epoch, revision| epochs.knows(epoch, Revision(revision), Revision(31));
        assert!(knows(7, 12) && knows(8, 12) && knows(8, 20) && knows(9, 31) && knows(0, 31));
        assert!(knows(0, 0) && knows(5, 0), "who has nothing claims nothing");
        assert!(!knows(9, 32) && !knows(0, 32));
    }

    #[test]
    fn a_future_that_was_lost_is_told_by_its_epoch() {
        let before = runs(&[(7, 0), (8, 12)]);
        let lost = before.begin(9, Revision(20));
        let restored = before.begin(10, Revision(20));
        for revision in 21..=31 {
            assert!(lost.knows(9, Revision(revision), Revision(31)));
            assert!(!restored.knows(9, Revision(revision), Revision(40)), "{revision}");
        }
        // What the epoch did after the backup was made is lost as well.
        assert!(!restored.knows(8, Revision(21), Revision(40)));
        assert!(restored.knows(8, Revision(20), Revision(40)));
    }

    #[test]
    fn who_was_away_for_very_long_is_believed() {
        let mut epochs = runs(&[(1, 0)]);
        for number in 0..2 * KEPT as u64 {
            epochs = epochs.begin(100 + number, Revision(number));
        }
        assert_eq!(epochs.0.len(), KEPT);
        assert!(epochs.knows(1, Revision(5), Revision(1_000)));
        assert!(!epochs.knows(1, Revision(999), Revision(1_000)));
    }
}
