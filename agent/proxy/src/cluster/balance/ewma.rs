//! Peak-EWMA: how long an endpoint takes to answer, remembered so that slowness shows at once and is
//! forgotten slowly.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// In this time all but 1/e of an old measurement is forgotten.
const DECAY: Duration = Duration::from_secs(10);
/// Assumed latency of an unknown endpoint: low, so that it is tried.
const UNKNOWN_MS: f32 = 1.0;
/// A failure counts as an answer that took so many times what is expected: who fails fast doesn't
/// attract traffic, and who fails once in a while isn't shunned for long.
const FAILURE_FACTOR: f32 = 3.0;
/// Minimum latency that a fast failure counts as.
const WORST_FAILURE_MS: f32 = 1000.0;

/// An endpoint's latency. One word, so that no request waits for another here: milliseconds as a
/// float above, the time of the last change in milliseconds below.
#[derive(Debug)]
pub(crate) struct PeakEwma(AtomicU64);

#[derive(Clone, Copy)]
struct Seen {
    ms: f32,
    at_ms: u32,
}

impl PeakEwma {
    /// Of an endpoint that nobody knows. Times count from the same origin everywhere.
    pub(crate) fn new(now: Duration) -> Self {
        Self(AtomicU64::new(Seen { ms: UNKNOWN_MS, at_ms: millis(now) }.packed()))
    }

    /// An answer took so long.
    pub(crate) fn observe(&self, took: Duration, now: Duration) {
        self.update(took, now, |_| 0.0);
    }

    /// A failure took so long.
    pub(crate) fn observe_failure(&self, took: Duration, now: Duration) {
        self.update(took, now, |expected| (expected * FAILURE_FACTOR).min(WORST_FAILURE_MS));
    }

    /// Forgets what was before: an answer took so long.
    pub(crate) fn reset(&self, took: Duration, now: Duration) {
        let seen = Seen { ms: took.as_secs_f32() * 1000.0, at_ms: millis(now) };
        self.0.store(seen.packed(), Ordering::Relaxed);
    }

    fn update(&self, took: Duration, now: Duration, at_least: impl Fn(f32) -> f32) {
        let update = |word| {
            let seen = Seen::unpacked(word);
            let decayed = seen.decayed(now);
            let took_ms = (took.as_secs_f32() * 1000.0).max(at_least(decayed));
            let keep = decay(seen.age(now));
            // A peak counts in full; a valley, by its weight.
            let ms =
                if took_ms > decayed { took_ms } else { seen.ms * keep + took_ms * (1.0 - keep) };
            Some(Seen { ms, at_ms: millis(now) }.packed())
        };
        // The closure never declines.
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, update);
    }

    /// Expected cost of one more request, with so many under way.
    pub(crate) fn cost(&self, under_way: usize, now: Duration) -> f64 {
        let seen = Seen::unpacked(self.0.load(Ordering::Relaxed));
        f64::from(seen.decayed(now)) * (under_way + 1) as f64
    }

    /// The latency that is expected.
    pub(crate) fn latency(&self, now: Duration) -> Duration {
        let seen = Seen::unpacked(self.0.load(Ordering::Relaxed));
        Duration::from_secs_f32(seen.decayed(now) / 1000.0)
    }
}

impl Seen {
    fn packed(self) -> u64 {
        u64::from(self.ms.to_bits()) << 32 | u64::from(self.at_ms)
    }

    fn unpacked(word: u64) -> Self {
        Self { ms: f32::from_bits((word >> 32) as u32), at_ms: word as u32 }
    }

    fn age(self, now: Duration) -> Duration {
        let age = millis(now).wrapping_sub(self.at_ms);
        // Two threads may see the clock in different order.
        let age = if age > u32::MAX / 2 { 0 } else { age };
        Duration::from_millis(age.into())
    }

    /// Without news the memory fades towards what is expected of a stranger, so that an endpoint
    /// that was slow once is tried again.
    fn decayed(self, now: Duration) -> f32 {
        let keep = decay(self.age(now));
        self.ms * keep + UNKNOWN_MS.min(self.ms) * (1.0 - keep)
    }
}

fn decay(age: Duration) -> f32 {
    (-age.as_secs_f32() / DECAY.as_secs_f32()).exp()
}

fn millis(time: Duration) -> u32 {
    time.as_millis() as u32
}

#[cfg(test)]
mod tests {
    use super::super::choice::{Level, Sharpness};
    use super::super::tests::random;
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_peak_shows_at_once_and_fades() {
        let ewma = PeakEwma::new(Duration::ZERO);
        for step in 0..100 {
            ewma.observe(2 * MS, step * 100 * MS);
        }
        let now = 10_000 * MS;
        assert!((1.9..2.1).contains(&ewma.cost(0, now)), "{}", ewma.cost(0, now));
        ewma.observe(500 * MS, now);
        assert!(ewma.cost(0, now) >= 499.0);
        assert!(ewma.cost(0, now + DECAY) < 200.0 && ewma.cost(0, now + DECAY) > 150.0);
        assert!(ewma.cost(0, now + 10 * DECAY) < 2.0, "it is tried again some time");
    }

    #[test]
    fn failures_add_up_and_are_forgotten_by_who_is_back() {
        let ewma = PeakEwma::new(Duration::ZERO);
        ewma.observe(2 * MS, Duration::ZERO);
        ewma.observe_failure(MS / 10, Duration::ZERO);
        assert_eq!(ewma.latency(Duration::ZERO), 6 * MS);
        for _ in 0..20 {
            ewma.observe_failure(MS / 10, Duration::ZERO);
        }
        assert_eq!(ewma.latency(Duration::ZERO), 1000 * MS);
        ewma.observe_failure(5000 * MS, Duration::ZERO);
        assert_eq!(ewma.latency(Duration::ZERO), 5000 * MS);
        ewma.reset(3 * MS, MS);
        assert_eq!(ewma.latency(MS), 3 * MS);
    }

    /// Requests one after the other to two endpoints; each answer's time is given by `took`.
    fn share_of_second(took: impl Fn(usize, u64) -> Duration) -> f64 {
        let endpoints = [PeakEwma::new(Duration::ZERO), PeakEwma::new(Duration::ZERO)];
        let level = Level::new([(0, 1.0), (1, 1.0)].into_iter());
        let (mut now, mut counts) = (Duration::ZERO, [0.0, 0.0]);
        for number in 0..100_000 {
            let cost = |at: usize| endpoints[at].cost(0, now);
            let at = level.cheaper_of_two(random(number), Sharpness::Measured, cost).unwrap();
            let took = took(at, random(number ^ 0xffff_0000));
            now += took;
            endpoints[at].observe(took, now);
            counts[at] += 1.0;
        }
        counts[1] / (counts[0] + counts[1])
    }

    #[test]
    fn equals_share_equally_at_low_concurrency_and_the_slow_get_little() {
        // Exponential times, as a server's often are.
        let exponential = |mean: f64, random: u64| {
            let uniform = ((random >> 11) as f64 + 1.0) / (1_u64 << 53) as f64;
            Duration::from_secs_f64(-uniform.ln() * mean)
        };
        let equal = share_of_second(|_, random| exponential(0.002, random));
        assert!((0.4..0.6).contains(&equal), "{equal}");
        let steady = share_of_second(|at, _| Duration::from_micros([1000, 1050][at]));
        assert!((0.4..0.5).contains(&steady), "{steady}");
        let slower = share_of_second(|at, random| exponential([0.002, 0.02][at], random));
        assert!(slower < 0.05, "{slower}");
    }

    #[test]
    fn requests_under_way_count() {
        let ewma = PeakEwma::new(Duration::ZERO);
        ewma.observe(10 * MS, Duration::ZERO);
        assert_eq!(ewma.cost(4, Duration::ZERO), 5.0 * ewma.cost(0, Duration::ZERO));
        assert_eq!(ewma.latency(Duration::ZERO), 10 * MS);
    }

    #[test]
    fn a_clock_that_another_thread_read_earlier_does_no_harm() {
        let ewma = PeakEwma::new(1_000 * MS);
        ewma.observe(10 * MS, 1_000 * MS);
        assert_eq!(ewma.cost(0, 999 * MS), ewma.cost(0, 1_000 * MS));
    }
}
