//! A snapshot under way: resources by key, and what deltas do to them.

use std::collections::BTreeMap;

use isthmus_model::convert::{ConvertError, is_foreign, snapshot};
use isthmus_model::{Revision, Snapshot};
use isthmus_proto::v1;

/// The resources of one revision.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Resources {
    revision: u64,
    /// Epoch of the controller that made it; 0 if unknown.
    epoch: u64,
    by_key: BTreeMap<String, v1::Resource>,
}

/// Why a delta can't be applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DeltaError {
    /// It builds on a revision that isn't the present one: only everything helps.
    #[error("the controller sent a difference to revision {base}, this host has {present}")]
    WrongBase {
        /// Base revision of the delta.
        base: u64,
        /// What is there.
        present: u64,
    },
}

impl Resources {
    /// The revision; 0 for none.
    #[must_use]
    pub(crate) const fn revision(&self) -> u64 {
        self.revision
    }

    /// Epoch of the controller that made it; 0 if unknown.
    #[must_use]
    pub(crate) const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Whether this is the same revision, whichever run of a controller says it.
    #[must_use]
    pub(crate) fn is_same_as(&self, other: &Self) -> bool {
        (self.revision, &self.by_key) == (other.revision, &other.by_key)
    }

    /// What `delta` makes of these resources.
    ///
    /// # Errors
    /// See [`DeltaError`].
    pub(crate) fn with(&self, delta: v1::Delta) -> Result<Self, DeltaError> {
        let mut by_key = match delta.base {
            0 => BTreeMap::new(),
            base if base == self.revision => self.by_key.clone(),
            base => return Err(DeltaError::WrongBase { base, present: self.revision }),
        };
        for key in &delta.gone {
            by_key.remove(key);
        }
        by_key.extend(delta.changed.into_iter().map(|it| (it.key.clone(), it)));
        Ok(Self { revision: delta.revision, epoch: delta.epoch, by_key })
    }

    /// Keys of resources of a kind that this agent doesn't know.
    pub(crate) fn foreign(&self) -> impl Iterator<Item = &str> {
        self.by_key.values().filter(|it| is_foreign(it)).map(|it| &*it.key)
    }

    /// The snapshot that the resources make.
    ///
    /// # Errors
    /// Names the resource that is wrong.
    pub(crate) fn snapshot(&self) -> Result<Snapshot, ConvertError> {
        snapshot(Revision(self.revision), self.by_key.values())
    }
}

impl From<v1::SnapshotResources> for Resources {
    fn from(kept: v1::SnapshotResources) -> Self {
        let by_key = kept.resources.into_iter().map(|it| (it.key.clone(), it)).collect();
        Self { revision: kept.revision, epoch: kept.epoch, by_key }
    }
}

impl From<&Resources> for v1::SnapshotResources {
    fn from(resources: &Resources) -> Self {
        let Resources { revision, epoch, by_key } = resources;
        let resources = by_key.values().cloned().collect();
        Self { revision: *revision, epoch: *epoch, resources, capabilities: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(name: &str, order: u32) -> v1::Resource {
        let rule = v1::Rule { name: name.to_owned(), order, ..v1::Rule::default() };
        v1::Resource { key: format!("rule/{name}"), body: Some(v1::resource::Body::Rule(rule)) }
    }

    fn delta(revision: u64, base: u64, changed: &[v1::Resource], gone: &[&str]) -> v1::Delta {
        let gone = gone.iter().map(|key| (*key).to_owned()).collect();
        v1::Delta { revision, base, changed: changed.to_vec(), gone, epoch: 77 }
    }

    fn keys(resources: &Resources) -> Vec<&str> {
        resources.by_key.keys().map(String::as_str).collect()
    }

    #[test]
    fn a_delta_on_nothing_replaces_everything() {
        let first = Resources::default().with(delta(3, 0, &[rule("a", 1)], &[])).unwrap();
        let second = first.with(delta(9, 0, &[rule("b", 1)], &[])).unwrap();
        assert_eq!(keys(&second), ["rule/b"]);
        assert_eq!(second.revision(), 9);
    }

    #[test]
    fn changed_resources_come_and_gone_keys_go() {
        let first =
            Resources::default().with(delta(1, 0, &[rule("a", 1), rule("b", 2)], &[])).unwrap();
        let change = delta(2, 1, &[rule("b", 5), rule("c", 6)], &["rule/a", "rule/unheard-of"]);
        let second = first.with(change).unwrap();
        assert_eq!(keys(&second), ["rule/b", "rule/c"]);
        assert_eq!(second.by_key["rule/b"], rule("b", 5));
        assert_eq!(keys(&first), ["rule/a", "rule/b"], "the old revision is untouched");
    }

    #[test]
    fn a_key_that_is_gone_and_changed_is_changed() {
        let first = Resources::default().with(delta(1, 0, &[rule("a", 1)], &[])).unwrap();
        let second = first.with(delta(2, 1, &[rule("a", 2)], &["rule/a"])).unwrap();
        assert_eq!(second.by_key["rule/a"], rule("a", 2));
    }

    #[test]
    fn a_delta_on_another_revision_is_refused() {
        let first = Resources::default().with(delta(4, 0, &[], &[])).unwrap();
        let refused = first.with(delta(6, 5, &[], &[])).unwrap_err();
        assert_eq!(refused, DeltaError::WrongBase { base: 5, present: 4 });
    }

    #[test]
    fn resources_survive_the_disk() {
        let first = Resources::default().with(delta(4, 0, &[rule("a", 1)], &[])).unwrap();
        let kept = v1::SnapshotResources::from(&first);
        assert_eq!(Resources::from(kept), first);
        assert_eq!(first.epoch(), 77);
    }
}
