//! The topologies that operators applied, as far as they are kept: what ran when, who wanted it, and what to
//! go back to.

use std::collections::BTreeMap;
use std::sync::Arc;

use isthmus_model::Revision;
use isthmus_model::topology::SourceFile;

/// Maximum number of revisions kept.
const KEPT: usize = 100;
/// And how many bytes of files, all together: the whole store is read into memory.
const KEPT_BYTES: usize = 16 << 20;
/// Whatever their size: the one that runs, and the one to go back to.
const ALWAYS_KEPT: usize = 2;

/// A revision that an operator's files made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppliedRevision {
    /// Its number. Others follow that aren't an operator's: hosts join and move.
    pub revision: Revision,
    /// When, in seconds since the epoch; 0 where nobody noted it.
    pub at: i64,
    /// Who; empty where nobody noted it.
    pub by: String,
    /// What they had to say about it.
    pub note: String,
    /// The files.
    pub files: Arc<[SourceFile]>,
}

/// All that are kept.
#[derive(Clone, Debug, Default)]
pub struct Revisions {
    kept: BTreeMap<Revision, AppliedRevision>,
}

impl FromIterator<AppliedRevision> for Revisions {
    fn from_iter<I: IntoIterator<Item = AppliedRevision>>(all: I) -> Self {
        Self { kept: all.into_iter().map(|one| (one.revision, one)).collect() }
    }
}

impl Revisions {
    /// All of them, the newest first.
    pub fn newest_first(&self) -> impl Iterator<Item = &AppliedRevision> {
        self.kept.values().rev()
    }

    /// The one that runs.
    #[must_use]
    pub fn newest(&self) -> Option<&AppliedRevision> {
        self.newest_first().next()
    }

    /// What was in force at a revision, whoever made that.
    #[must_use]
    pub fn in_force_at(&self, revision: Revision) -> Option<&AppliedRevision> {
        self.kept.range(..=revision).next_back().map(|(_, one)| one)
    }

    /// What an operator did not see who knows only what was there at a revision.
    #[must_use]
    pub fn newer_than(&self, revision: Revision) -> Option<&AppliedRevision> {
        self.newest().filter(|newest| newest.revision > revision)
    }

    /// Keeps one more; tells which had to go for it.
    pub fn insert(&mut self, one: AppliedRevision) -> Vec<Revision> {
        self.kept.insert(one.revision, one);
        let mut bytes = 0;
        let mut gone = Vec::new();
        for (number, one) in self.newest_first().enumerate() {
            bytes += one.bytes();
            if number >= ALWAYS_KEPT && (number >= KEPT || bytes > KEPT_BYTES) {
                gone.push(one.revision);
            }
        }
        gone.iter().for_each(|revision| drop(self.kept.remove(revision)));
        gone
    }
}

impl AppliedRevision {
    fn bytes(&self) -> usize {
        self.files.iter().map(|file| file.name.len() + file.text.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(revision: u64, bytes: usize) -> AppliedRevision {
        let file = SourceFile { name: "a".into(), text: "x".repeat(bytes) };
        AppliedRevision {
            revision: Revision(revision),
            at: 1,
            by: "alice".to_owned(),
            note: String::new(),
            files: Arc::new([file]),
        }
    }

    #[test]
    fn the_latest_are_kept_by_number_and_by_size() {
        let mut revisions = Revisions::default();
        let gone: Vec<_> = (1..=250).flat_map(|n| revisions.insert(applied(n * 2, 10))).collect();
        assert_eq!((revisions.kept.len(), gone.len()), (KEPT, 250 - KEPT));
        assert_eq!(revisions.newest().unwrap().revision, Revision(500));
        // Two large ones leave no room, but are there.
        (251..=252).for_each(|n| drop(revisions.insert(applied(n * 2, KEPT_BYTES))));
        let left: Vec<u64> = revisions.newest_first().map(|one| one.revision.0).collect();
        assert_eq!(left, [504, 502]);
    }

    #[test]
    fn what_was_in_force_is_the_latest_before() {
        let revisions: Revisions = [applied(3, 1), applied(9, 1)].into_iter().collect();
        let at = |revision| revisions.in_force_at(Revision(revision)).map(|one| one.revision.0);
        assert_eq!(
            [at(2), at(3), at(8), at(9), at(70)],
            [None, Some(3), Some(3), Some(9), Some(9)]
        );
        let newer = |revision| revisions.newer_than(Revision(revision)).map(|one| one.revision.0);
        assert_eq!([newer(0), newer(8), newer(9), newer(30)], [Some(9), Some(9), None, None]);
    }
}
