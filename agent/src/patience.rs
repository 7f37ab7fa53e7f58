//! Back-off for repairs of things that somebody else keeps taking away.
//!
//! Once, or now and then, it is put back at once. Whoever takes it again and again wants it gone, or
//! is a program that would fight for ever: then the pauses grow, and an operator has to decide.

use std::time::{Duration, Instant};

/// So often it is put back at once.
const AT_ONCE: u32 = 5;
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);
/// What wasn't taken for so long isn't fought over any more.
const CALM: Duration = Duration::from_secs(180);

/// History of one setting that other programs remove.
#[derive(Clone, Debug, Default)]
pub(crate) struct Patience {
    total: u64,
    /// In a row, without a time of calm between them.
    row: u32,
    last: Option<Instant>,
}

impl Patience {
    /// It was taken away, and is put back.
    pub(crate) fn on_restored(&mut self, now: Instant) {
        self.settle(now);
        self.total += 1;
        self.row += 1;
        self.last = Some(now);
    }

    /// When it may be put back the next time.
    #[must_use]
    pub(crate) fn not_before(&self) -> Option<Instant> {
        let doublings = self.row.checked_sub(AT_ONCE)?;
        let pause = SHORTEST.saturating_mul(1 << doublings.min(6)).min(LONGEST);
        Some(self.last? + pause)
    }

    /// Forgets about it after a time of calm. Says whether there is something to remember still.
    pub(crate) fn settle(&mut self, now: Instant) -> bool {
        if self.last.is_some_and(|last| now.saturating_duration_since(last) >= CALM) {
            (self.row, self.last) = (0, None);
        }
        self.last.is_some()
    }

    /// Whether somebody keeps taking it away.
    #[must_use]
    pub(crate) const fn is_contended(&self) -> bool {
        self.row >= AT_ONCE
    }

    /// Number of times it was restored.
    #[must_use]
    pub(crate) const fn total(&self) -> u64 {
        self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fight_gets_slower_and_never_stops_and_is_forgotten_after_a_time_of_calm() {
        let mut now = Instant::now();
        let mut patience = Patience::default();
        let mut pauses = Vec::new();
        for _ in 0..16 {
            now = patience.not_before().map_or(now, |at| at.max(now));
            patience.on_restored(now);
            let pause = patience.not_before().map_or(Duration::ZERO, |at| at - now);
            pauses.push(pause.as_secs());
        }
        assert_eq!(pauses, [0, 0, 0, 0, 1, 2, 4, 8, 16, 32, 60, 60, 60, 60, 60, 60]);
        assert!(patience.is_contended() && patience.settle(now));

        now += CALM;
        assert!(!patience.settle(now) && !patience.is_contended());
        patience.on_restored(now);
        assert_eq!((patience.not_before(), patience.total()), (None, 17));
    }

    #[test]
    fn what_is_taken_now_and_then_is_put_back_at_once() {
        let mut now = Instant::now();
        let mut patience = Patience::default();
        for _ in 0..100 {
            patience.on_restored(now);
            assert_eq!(patience.not_before(), None);
            now += CALM;
        }
    }
}
