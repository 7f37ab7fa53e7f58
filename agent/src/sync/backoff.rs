//! Back-off between attempts to reach a controller.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(10);

/// Doubles from 100 ms to 10 s. Each wait is between half of that and all of it, at random, so
/// that a controller which returns isn't met by all of its agents at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff {
    next: Duration,
}

impl Backoff {
    #[must_use]
    pub(crate) const fn new() -> Self {
        Self { next: FIRST }
    }

    /// The next wait; `random` is from 0 to 1.
    pub(crate) fn wait(&mut self, random: f64) -> Duration {
        let wait = self.next.mul_f64(0.5 + 0.5 * random.clamp(0.0, 1.0));
        self.next = (self.next * 2).min(LONGEST);
        wait
    }

    /// Something worked: begin again.
    pub(crate) const fn reset(&mut self) {
        self.next = FIRST;
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new()
    }
}

/// From 0 to 1. Without randomness all hosts would merely wait equally long.
#[must_use]
pub(crate) fn random() -> f64 {
    let number = getrandom::u32().unwrap_or(u32::MAX);
    f64::from(number) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_ten_seconds() {
        let mut backoff = Backoff::new();
        let waits: Vec<u128> = (0..9).map(|_| backoff.wait(1.0).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        backoff.reset();
        assert_eq!(backoff.wait(1.0), FIRST);
    }

    #[test]
    fn chance_takes_off_up_to_a_half() {
        assert_eq!(Backoff::new().wait(0.0), FIRST / 2);
        let some = (0..100).map(|_| Backoff::new().wait(random()));
        assert!(some.clone().all(|wait| wait >= FIRST / 2 && wait <= FIRST));
    }
}
