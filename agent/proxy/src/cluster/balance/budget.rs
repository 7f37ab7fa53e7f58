//! A retry budget: retries are a share of requests, so that they can't multiply an outage.

use std::time::Duration;

use isthmus_model::route::Share;

/// Retries that a service without much traffic may have anyway, in a second.
const FLOOR_PER_SECOND: f64 = 1.0;
/// Maximum balance: a burst.
const MOST: f64 = 10.0;

/// Tokens: each request pays in a part of one, each retry takes a whole one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    tokens: f64,
    since: Duration,
}

impl Budget {
    pub(crate) const fn new(now: Duration) -> Self {
        Self { tokens: MOST, since: now }
    }

    /// A request begins.
    pub(crate) fn deposit(&mut self, share: Share, now: Duration) {
        self.refill(now);
        self.tokens = (self.tokens + share.ratio()).min(MOST);
    }

    /// Whether a retry may be made; it then is counted.
    pub(crate) fn withdraw(&mut self, now: Duration) -> bool {
        self.refill(now);
        let enough = self.tokens >= 1.0;
        if enough {
            self.tokens -= 1.0;
        }
        enough
    }

    fn refill(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.since).as_secs_f64();
        self.since = self.since.max(now);
        self.tokens = (self.tokens + passed * FLOOR_PER_SECOND).min(MOST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn with_everything_failing_retries_stay_within_their_share() {
        let share = Share::new(200_000).unwrap();
        let mut budget = Budget::new(Duration::ZERO);
        let mut retries = 0;
        // 1,000 requests per second for ten seconds; each would be tried again three times.
        for request in 0..10_000_u32 {
            let now = Duration::from_millis(1) * request;
            budget.deposit(share, now);
            retries += (0..3).filter(|_| budget.withdraw(now)).count();
        }
        assert!((2_000..=2_021).contains(&retries), "{retries}");
    }

    #[test]
    fn a_quiet_service_may_retry_a_little() {
        let mut budget = Budget::new(Duration::ZERO);
        let none = Share::new(0).unwrap();
        let burst = (0..100).filter(|_| budget.withdraw(Duration::ZERO)).count();
        assert_eq!(burst, 10);
        budget.deposit(none, Duration::from_secs(3));
        let later = (0..100).filter(|_| budget.withdraw(Duration::from_secs(3))).count();
        assert_eq!(later, 3);
    }
}
