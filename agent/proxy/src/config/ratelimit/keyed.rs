//! A bucket for each key, in a fixed amount of memory.
//!
//! Keys are known by a seeded hash. A set of slots takes a new key only where a bucket is full again: a full bucket is as
//! good as a new one, so nobody gains tokens by having a bucket thrown out, nor by throwing out others'. Keys that find
//! no slot share one bucket. Requests that have the header twice, or not at all, share one, too.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::bucket::{Bucket, Pace};

const SETS: usize = 1024;
const WAYS: usize = 8;

/// Buckets by key.
#[derive(Debug)]
pub(crate) struct Keyed {
    seed: RandomState,
    slots: Box<[Slot]>,
    others: Slot,
}

#[derive(Debug, Default)]
struct Slot {
    /// 0: nobody's yet.
    key: AtomicU64,
    bucket: Bucket,
    asked: AtomicU32,
}

impl Keyed {
    pub(crate) fn new() -> Self {
        let slots = (0..SETS * WAYS).map(|_| Slot::default()).collect();
        Self { seed: RandomState::new(), slots, others: Slot::default() }
    }

    /// Takes a token of a key's bucket.
    ///
    /// # Errors
    ///
    /// There is none; the nanoseconds until there is one.
    pub(crate) fn take(&self, key: &[u8], pace: Pace, now: u64) -> Result<(), u64> {
        let slot = self.slot(key, now);
        slot.asked.fetch_add(1, Ordering::Relaxed);
        slot.bucket.take(pace, now)
    }

    /// Undoes a taking at the same time.
    pub(crate) fn give_back(&self, key: &[u8], pace: Pace, now: u64) {
        self.slot(key, now).bucket.give_back(pace);
    }

    /// Requests of the key that had most, since this was called last.
    pub(crate) fn take_most_asked(&self) -> u64 {
        let slots = self.slots.iter().chain([&self.others]);
        let most = slots.map(|slot| slot.asked.swap(0, Ordering::Relaxed)).max();
        most.unwrap_or_default().into()
    }

    fn slot(&self, key: &[u8], now: u64) -> &Slot {
        let hash = self.seed.hash_one(key).max(1);
        let first = (hash as usize % SETS) * WAYS;
        let set = self.slots.get(first..first + WAYS).unwrap_or_default();
        if let Some(own) = set.iter().find(|slot| slot.key.load(Ordering::Relaxed) == hash) {
            return own;
        }
        for slot in set {
            let owner = slot.key.load(Ordering::Relaxed);
            let is_free = owner == 0 || slot.bucket.is_full(now);
            if is_free && slot.claim(owner, hash) {
                return slot;
            }
        }
        &self.others
    }
}

impl Slot {
    /// Another thread may have been faster, perhaps with the same key.
    fn claim(&self, owner: u64, key: u64) -> bool {
        let claimed = self.key.compare_exchange(owner, key, Ordering::Relaxed, Ordering::Relaxed);
        claimed.is_ok() || claimed == Err(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn each_key_has_a_bucket_of_its_own() {
        let keyed = Keyed::new();
        let pace = Pace::new(1_000, 2);
        for key in [b"a", b"b", b"c"] {
            let passed = (0..10).filter(|_| keyed.take(key, pace, SECOND).is_ok()).count();
            assert_eq!(passed, 2);
        }
    }

    #[test]
    fn a_flood_of_keys_gives_nobody_new_tokens() {
        let keyed = Keyed::new();
        let pace = Pace::new(1_000, 1);
        assert!(keyed.take(b"me", pace, SECOND).is_ok());
        let flood = |number: u32| keyed.take(&number.to_be_bytes(), pace, SECOND).is_ok();
        let passed = (0..100_000).filter(|number| flood(*number)).count();
        // The slots, and one for all who found none.
        assert!(passed <= SETS * WAYS, "{passed}");
        assert!(passed > SETS * WAYS * 9 / 10, "{passed}");
        assert!(keyed.take(b"me", pace, SECOND).is_err());
        // Once buckets are full again their slots serve others.
        assert!(keyed.take(b"new", pace, 3 * SECOND).is_ok());
        assert!(keyed.take(b"new", pace, 3 * SECOND).is_err());
    }
}
