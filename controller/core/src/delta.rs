//! Delta between two slices.

use std::collections::BTreeMap;

/// The resources that changed, and the keys of those that are gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delta<R> {
    /// New or different, by key.
    pub changed: BTreeMap<String, R>,
    /// No longer there.
    pub gone: Vec<String>,
}

impl<R: Clone + PartialEq> Delta<R> {
    /// Delta from `old` to `new`.
    #[must_use]
    pub fn between(old: &BTreeMap<String, R>, new: &BTreeMap<String, R>) -> Self {
        let changed = new
            .iter()
            .filter(|(key, resource)| old.get(*key) != Some(resource))
            .map(|(key, resource)| (key.clone(), resource.clone()))
            .collect();
        let gone = old.keys().filter(|key| !new.contains_key(*key)).cloned().collect();
        Self { changed, gone }
    }

    /// Whether old and new were the same.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changed.is_empty() && self.gone.is_empty()
    }

    /// Turns the old resources into the new ones.
    pub fn apply(self, resources: &mut BTreeMap<String, R>) {
        for key in self.gone {
            resources.remove(&key);
        }
        resources.extend(self.changed);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn resources() -> impl Strategy<Value = BTreeMap<String, u8>> {
        proptest::collection::btree_map("[a-f]", 0_u8..3, 0..6)
    }

    proptest! {
        #[test]
        fn deltas_compose(a in resources(), b in resources(), c in resources()) {
            let mut followed = a.clone();
            Delta::between(&a, &b).apply(&mut followed);
            prop_assert_eq!(&followed, &b);
            Delta::between(&b, &c).apply(&mut followed);
            prop_assert_eq!(&followed, &c);
            prop_assert!(Delta::between(&c, &followed).is_empty());
        }

        #[test]
        fn a_delta_holds_only_what_differs(a in resources(), b in resources()) {
            let delta = Delta::between(&a, &b);
            for (key, value) in &delta.changed {
                prop_assert_ne!(a.get(key), Some(value));
            }
            for key in &delta.gone {
                prop_assert!(a.contains_key(key) && !b.contains_key(key));
            }
        }
    }
}
