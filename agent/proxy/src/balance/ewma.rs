//! Peak-EWMA: how long an endpoint takes to answer, remembered so that slowness shows at once and is
//! forgotten slowly.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// In this time all but 1/e of an old measurement is forgotten.
const DECAY: Duration = Duration::from_secs(10);
/// What an endpoint that nobody knows yet is taken to need: little, so that it is tried.
const UNKNOWN_MS: f32 = 1.0;

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
        let took_ms = took.as_secs_f32() * 1000.0;
        let update = |word| {
            let seen = Seen::unpacked(word);
            let decayed = seen.decayed(now);
            let keep = decay(seen.age(now));
            // A peak counts in full; a valley, by its weight.
            let ms =
                if took_ms > decayed { took_ms } else { seen.ms * keep + took_ms * (1.0 - keep) };
            Some(Seen { ms, at_ms: millis(now) }.packed())
        };
        // The closure never declines.
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, update);
    }

    /// What a further request is expected to cost, where so many are under way.
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
