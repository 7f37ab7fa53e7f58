//! Tally of one version's requests, as agents measured them.

use std::collections::BTreeMap;
use std::time::Duration;

/// A latency may be told this much wrong.
const RATIO: f64 = 1.01;
/// More than a month. So there are fewer than 3,000 buckets.
const LONGEST: Duration = Duration::from_secs(1 << 22);

/// What one report says of a version's requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests that ended.
    pub requests: u64,
    /// Those among them that failed: 5xx, or no answer.
    pub failures: u64,
    /// Counts by duration.
    pub latencies: Vec<(Duration, u64)>,
}

/// All reports together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    requests: u64,
    failures: u64,
    timed: u64,
    latencies: BTreeMap<u16, u64>,
}

impl Tally {
    /// Adds what a report says. It comes from an agent: nothing in it must be true.
    pub fn add(&mut self, counts: &Counts) {
        self.requests = self.requests.saturating_add(counts.requests);
        let failures = counts.failures.min(counts.requests);
        self.failures = self.failures.saturating_add(failures);
        for (took, count) in &counts.latencies {
            let bucket = self.latencies.entry(bucket(*took)).or_default();
            *bucket = bucket.saturating_add(*count);
            self.timed = self.timed.saturating_add(*count);
        }
    }

    /// Requests that ended.
    #[must_use]
    pub const fn requests(&self) -> u64 {
        self.requests
    }

    /// Those that failed.
    #[must_use]
    pub const fn failures(&self) -> u64 {
        self.failures
    }

    /// Requests whose latency is known.
    pub(super) const fn timed(&self) -> u64 {
        self.timed
    }

    /// Number that took longer than a bound.
    pub(super) fn slower_than(&self, bound: Duration) -> u64 {
        let first = bucket(bound).saturating_add(1);
        self.latencies
            .range(first..)
            .map(|(_, count)| count)
            .fold(0, |sum, it| sum.saturating_add(*it))
    }

    /// Quantile; none if there are none.
    #[must_use]
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let rank = ((self.timed as f64 * share).ceil() as u64).clamp(1, self.timed.max(1));
        let mut seen = 0_u64;
        let found = self.latencies.iter().find(|(_, count)| {
            seen = seen.saturating_add(**count);
            seen >= rank
        });
        found.map(|(bucket, _)| middle(*bucket))
    }
}

fn bucket(took: Duration) -> u16 {
    let micros = (took.min(LONGEST).as_secs_f64() * 1e6).max(1.0);
    (micros.ln() / RATIO.ln()) as u16
}

fn middle(bucket: u16) -> Duration {
    Duration::from_secs_f64(RATIO.powf(f64::from(bucket) + 0.5) / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_and_bounds_are_true_to_a_hundredth() {
        let mut tally = Tally::default();
        let latencies = (1..=1_000).map(|number| (Duration::from_millis(number), 1)).collect();
        tally.add(&Counts { requests: 1_000, failures: 3, latencies });
        let p99 = tally.quantile(0.99).unwrap().as_secs_f64();
        assert!((p99 / 0.990 - 1.0).abs() < 0.01, "{p99}");
        let slower = tally.slower_than(Duration::from_millis(900));
        assert!((91..=100).contains(&slower), "{slower}");
        assert_eq!((tally.requests(), tally.failures()), (1_000, 3));
        assert_eq!(Tally::default().quantile(0.5), None);
    }

    #[test]
    fn nonsense_stays_bounded() {
        let mut tally = Tally::default();
        for number in 0..100_000_u64 {
            let latencies =
                vec![(Duration::from_nanos(number << 40), u64::MAX), (Duration::MAX, 1)];
            tally.add(&Counts { requests: u64::MAX, failures: u64::MAX, latencies });
        }
        assert!(tally.latencies.len() <= 3_000);
        assert_eq!(tally.requests(), u64::MAX);
    }
}
