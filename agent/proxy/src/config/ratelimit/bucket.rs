//! Token buckets that many threads take from without a lock.
//!
//! A bucket is one number: the time at which it will be full again (the generic cell rate algorithm's
//! "theoretical arrival time"). Time is a number of nanoseconds, and comes in as an argument.

use std::sync::atomic::{AtomicU64, Ordering};

/// Fill rate and capacity of a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pace {
    /// Nanoseconds for each token.
    pub(crate) interval: u64,
    /// Tokens that a full bucket holds.
    pub(crate) burst: u64,
}

/// A bucket; full when it is new.
#[derive(Debug, Default)]
pub(crate) struct Bucket {
    full_at: AtomicU64,
}

impl Pace {
    /// So many tokens per second, in thousandths; none at all for 0.
    pub(crate) fn new(millis_per_second: u64, burst: u64) -> Self {
        let interval = 1_000_000_000_000_u64.checked_div(millis_per_second).unwrap_or(u64::MAX / 4);
        Self { interval: interval.max(1), burst: burst.max(1) }
    }

    const fn capacity(self) -> u64 {
        self.interval.saturating_mul(self.burst)
    }
}

impl Bucket {
    /// Takes a token.
    ///
    /// # Errors
    ///
    /// There is none; the nanoseconds until there is one.
    pub(crate) fn take(&self, pace: Pace, now: u64) -> Result<(), u64> {
        let mut full_at = self.full_at.load(Ordering::Relaxed);
        loop {
            // Of a debt that a slower pace left behind no more counts than the bucket holds.
            let owed = full_at.saturating_sub(now).min(pace.capacity());
            let after = owed.saturating_add(pace.interval);
            if after > pace.capacity() {
                return Err(after - pace.capacity());
            }
            let next = now.saturating_add(after);
            match self.full_at.compare_exchange_weak(
                full_at,
                next,
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Ok(()),
                Err(newer) => full_at = newer,
            }
        }
    }

    /// Puts a token back that was just taken.
    pub(crate) fn give_back(&self, pace: Pace) {
        let earlier = |full_at: u64| Some(full_at.saturating_sub(pace.interval));
        // It never declines.
        let _ = self.full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, earlier);
    }

    /// Whether nothing is missing: then it is as good as a new one.
    pub(crate) fn is_full(&self, now: u64) -> bool {
        self.full_at.load(Ordering::Relaxed) <= now
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_burst_passes_and_then_one_per_interval() {
        let (bucket, pace) = (Bucket::default(), Pace::new(10_000, 5));
        let now = 7 * SECOND;
        let passed = (0..20).filter(|_| bucket.take(pace, now).is_ok()).count();
        assert_eq!(passed, 5);
        assert_eq!(bucket.take(pace, now), Err(SECOND / 10));
        assert_eq!(bucket.take(pace, now + SECOND / 10), Ok(()));
        assert_eq!(bucket.take(pace, now + SECOND / 10), Err(SECOND / 10));
        assert!(!bucket.is_full(now + SECOND / 2) && bucket.is_full(now + SECOND));
    }

    #[test]
    fn nothing_passes_at_no_pace_but_the_burst() {
        let (bucket, pace) = (Bucket::default(), Pace::new(0, 1));
        assert_eq!(bucket.take(pace, 0), Ok(()));
        assert!(bucket.take(pace, 3600 * SECOND).is_err());
    }

    proptest! {
        /// No more than burst + rate x time passes, whatever the times and however the pace changes;
        /// and who waits as long as told gets a token.
        #[test]
        fn never_more_than_the_rate(
            rate in 1_000_u64..1_000_000,
            burst in 1_u64..100,
            steps in proptest::collection::vec(0_u64..50_000_000, 1..300),
        ) {
            let (bucket, pace) = (Bucket::default(), Pace::new(rate, burst));
            let mut now = SECOND;
            let mut passed = 0_u64;
            for step in steps {
                now += step;
                match bucket.take(pace, now) {
                    Ok(()) => passed += 1,
                    Err(wait) => {
                        prop_assert!(wait <= pace.interval);
                        prop_assert!(bucket.take(pace, now + wait - 1).is_err() );
                    }
                }
                let most = burst + (now - SECOND) / pace.interval + 1;
                prop_assert!(passed <= most, "{passed} of {most}");
            }
        }
    }
}
