//! Latencies, counted so that every quantile is true to a hundredth.
//!
//! Buckets are log-linear: each power of two is split into 64, so that a bucket's middle is less than
//! 0.8 % from its ends. Numbers of buckets come from shifts alone.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Below 64 units (a microsecond) a bucket is one unit wide.
const UNIT_NANOS_LOG2: u32 = 4;
const PAGE: usize = 64;
const PAGE_LOG2: u32 = 6;
/// The last one ends at 78 hours; whatever takes longer is counted there.
const PAGES: usize = 39;

/// What a proxy counts latencies in, from many threads at once. Only the powers of two in which there is
/// something take memory.
pub(crate) struct Latencies {
    pages: [OnceLock<Box<[AtomicU64; PAGE]>>; PAGES],
    sum_nanos: AtomicU64,
}

/// Counts of latencies at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    buckets: BTreeMap<u16, u64>,
    count: u64,
    sum: Duration,
}

impl Latencies {
    pub(crate) fn observe(&self, took: Duration) {
        let (page, at) = place(took);
        let page = self.pages[page].get_or_init(|| Box::new([const { AtomicU64::new(0) }; PAGE]));
        page[at].fetch_add(1, Ordering::Relaxed);
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.sum_nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    pub(crate) fn snapshot(&self) -> Histogram {
        let mut histogram = Histogram::default();
        for (number, page) in self.pages.iter().enumerate() {
            let counts = page.get().into_iter().flat_map(|page| page.iter().enumerate());
            for (at, count) in counts {
                histogram.put(bucket((number, at)), count.load(Ordering::Relaxed));
            }
        }
        histogram.sum = Duration::from_nanos(self.sum_nanos.load(Ordering::Relaxed));
        histogram
    }
}

impl Default for Latencies {
    fn default() -> Self {
        Self { pages: [const { OnceLock::new() }; PAGES], sum_nanos: AtomicU64::new(0) }
    }
}

impl fmt::Debug for Latencies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.snapshot().fmt(f)
    }
}

impl Histogram {
    /// Counts a latency.
    pub fn observe(&mut self, took: Duration) {
        self.put(bucket(place(took)), 1);
        self.sum += took;
    }

    /// Their number.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// All of them together.
    #[must_use]
    pub const fn sum(&self) -> Duration {
        self.sum
    }

    /// Number that took no longer than a bound, to a bucket's precision.
    #[must_use]
    pub fn within(&self, bound: Duration) -> u64 {
        self.buckets.range(..=bucket(place(bound))).map(|(_, count)| count).sum()
    }

    /// Quantile, to a precision of 1 %. None if nothing was counted.
    #[must_use]
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let rank = ((self.count as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        let found = self.buckets.iter().find(|(_, count)| {
            seen += **count;
            seen >= rank
        });
        found.map(|(bucket, _)| middle(*bucket))
    }

    /// Counts by duration, in rising order.
    pub fn counts(&self) -> impl Iterator<Item = (Duration, u64)> + '_ {
        self.buckets.iter().map(|(bucket, count)| (middle(*bucket), *count))
    }

    /// Adds what another has counted.
    pub fn add(&mut self, other: &Self) {
        for (bucket, count) in &other.buckets {
            self.put(*bucket, *count);
        }
        self.sum += other.sum;
    }

    /// Difference from an earlier histogram.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut since = Self::default();
        for (bucket, count) in &self.buckets {
            let before = earlier.buckets.get(bucket).copied().unwrap_or(0);
            since.put(*bucket, count.saturating_sub(before));
        }
        since.sum = self.sum.saturating_sub(earlier.sum);
        since
    }

    fn put(&mut self, bucket: u16, count: u64) {
        if count > 0 {
            *self.buckets.entry(bucket).or_default() += count;
            self.count += count;
        }
    }
}

/// The page and the place on it.
fn place(took: Duration) -> (usize, usize) {
    let units = u64::try_from(took.as_nanos() >> UNIT_NANOS_LOG2).unwrap_or(u64::MAX);
    let shift = units.checked_ilog2().unwrap_or(0).saturating_sub(PAGE_LOG2);
    let page = if units < PAGE as u64 { 0 } else { shift as usize + 1 };
    if page < PAGES { (page, (units >> shift) as usize % PAGE) } else { (PAGES - 1, PAGE - 1) }
}

const fn bucket((page, at): (usize, usize)) -> u16 {
    (page * PAGE + at) as u16
}

fn middle(bucket: u16) -> Duration {
    let (page, at) = (usize::from(bucket) / PAGE, u64::from(bucket) % PAGE as u64);
    let (shift, first) = match page {
        0 => (0, at),
        page => (page - 1, at + PAGE as u64),
    };
    Duration::from_nanos(((2 * first + 1) << shift) << (UNIT_NANOS_LOG2 - 1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn quantiles_are_true_to_a_hundredth(
            // From a microsecond to an hour, evenly by the logarithm.
            mut latencies in prop::collection::vec((0.0..22.0_f64).prop_map(|power| {
                Duration::from_secs_f64(1e-6 * power.exp())
            }), 1..400),
            share in 0.0..=1.0_f64,
        ) {
            let counted = Latencies::default();
            latencies.iter().for_each(|took| counted.observe(*took));
            latencies.sort();
            let histogram = counted.snapshot();
            for share in [share, 0.5, 0.95, 0.99, 1.0] {
                let rank = ((latencies.len() as f64 * share).ceil() as usize).max(1);
                let exact = latencies[rank - 1].as_secs_f64();
                let told = histogram.quantile(share).unwrap().as_secs_f64();
                prop_assert!((told / exact - 1.0).abs() <= 0.01, "{share}: {told} for {exact}");
            }
            prop_assert_eq!(histogram.count(), latencies.len() as u64);
            prop_assert_eq!(histogram.within(Duration::MAX), histogram.count());
            let sum: Duration = latencies.iter().sum();
            prop_assert_eq!(histogram.sum(), sum);
        }
    }

    #[test]
    fn nothing_is_too_short_or_too_long() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile(0.5), None);
        for took in [Duration::ZERO, Duration::from_secs(300_000), Duration::MAX / 2] {
            histogram.observe(took);
            assert_eq!(histogram.within(took), histogram.count());
        }
        assert_eq!(histogram.count(), 3);
        assert!(histogram.quantile(1.0).unwrap() > Duration::from_secs(270_000));
        assert!(histogram.quantile(0.1).unwrap() < Duration::from_nanos(20));
    }

    #[test]
    fn two_together_are_as_one_and_the_difference_is_the_other() {
        let (mut one, mut other, mut both) =
            (Histogram::default(), Histogram::default(), Histogram::default());
        for number in 1..100 {
            let took = Duration::from_millis(number);
            if number % 3 == 0 { &mut one } else { &mut other }.observe(took);
            both.observe(took);
        }
        assert_eq!(both.since(&one), other);
        one.add(&other);
        assert_eq!(one, both);
        assert_eq!(one.since(&both), Histogram::default());
        assert!((45..55).contains(&one.within(Duration::from_millis(50))));
    }
}
