//! Latencies, counted so that every quantile is true to a hundredth.

use std::collections::BTreeMap;
use std::time::Duration;

/// Each bucket is this much wider than the one before; its middle is less than 1 % from its ends.
const RATIO: f64 = 1.019;

/// Counts of latencies, by the microsecond's logarithm. Only the buckets that hold something take
/// memory, and there are fewer than 1,500 of them for whatever takes less than a month.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    buckets: BTreeMap<u16, u64>,
    count: u64,
    sum: Duration,
}

impl Histogram {
    /// Counts a latency.
    pub fn observe(&mut self, took: Duration) {
        *self.buckets.entry(bucket(took)).or_default() += 1;
        self.count += 1;
        self.sum += took;
    }

    /// How many there are.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// All of them together.
    #[must_use]
    pub const fn sum(&self) -> Duration {
        self.sum
    }

    /// How many took no longer than a bound.
    #[must_use]
    pub fn within(&self, bound: Duration) -> u64 {
        self.buckets.range(..=bucket(bound)).map(|(_, count)| count).sum()
    }

    /// What this share of them stayed below, true to 1 %. None if there are none.
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

    /// How many took about how long, by rising time.
    pub fn counts(&self) -> impl Iterator<Item = (Duration, u64)> + '_ {
        self.buckets.iter().map(|(bucket, count)| (middle(*bucket), *count))
    }

    /// Adds what another has counted.
    pub fn add(&mut self, other: &Self) {
        for (bucket, count) in &other.buckets {
            *self.buckets.entry(*bucket).or_default() += count;
        }
        self.count += other.count;
        self.sum += other.sum;
    }
}

fn bucket(took: Duration) -> u16 {
    let micros = (took.as_secs_f64() * 1e6).max(1.0);
    (micros.ln() / RATIO.ln()) as u16
}

fn middle(bucket: u16) -> Duration {
    Duration::from_secs_f64(RATIO.powf(f64::from(bucket) + 0.5) / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_true_to_a_hundredth() {
        let mut histogram = Histogram::default();
        // 10,000 latencies from 50 us to 5 s, each 1.00115 of the one before.
        let latencies: Vec<Duration> = (0..10_000)
            .map(|number| Duration::from_secs_f64(50e-6 * 1.00115_f64.powi(number)))
            .collect();
        latencies.iter().for_each(|took| histogram.observe(*took));
        for share in [0.01, 0.5, 0.9, 0.95, 0.99, 0.999, 1.0] {
            let exact = latencies[(10_000.0 * share) as usize - 1];
            let told = histogram.quantile(share).unwrap();
            let error = told.as_secs_f64() / exact.as_secs_f64() - 1.0;
            assert!(error.abs() <= 0.0105, "{share}: {told:?} for {exact:?}");
        }
        assert_eq!(
            (histogram.count(), histogram.within(Duration::from_secs(3600))),
            (10_000, 10_000)
        );
        assert_eq!(Histogram::default().quantile(0.5), None);
    }

    #[test]
    fn two_together_are_as_one() {
        let (mut one, mut other, mut both) =
            (Histogram::default(), Histogram::default(), Histogram::default());
        for number in 1..100 {
            let took = Duration::from_millis(number);
            if number % 3 == 0 { &mut one } else { &mut other }.observe(took);
            both.observe(took);
        }
        one.add(&other);
        assert_eq!(one, both);
        assert!((45..55).contains(&one.within(Duration::from_millis(50))));
    }
}
