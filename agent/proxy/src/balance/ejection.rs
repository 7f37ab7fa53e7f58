//! Outlier ejection: an endpoint that keeps failing gets no requests for a while, then one to prove
//! itself.
//!
//! ```text
//!   Healthy ──5 failures in a row──▶ Ejected ──time──▶ Probing ──success──▶ Healthy
//!                                        ▲                │
//!                                        └────failure─────┘   (for twice as long)
//! ```

use std::time::Duration;

/// Envoy's `consecutive_5xx`.
const FAILURES: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// How an endpoint has done lately.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ejection {
    Healthy {
        /// In a row.
        failures: u32,
    },
    Ejected {
        until: Duration,
        /// In a row.
        times: u32,
    },
    /// One request is under way that will tell.
    Probing { times: u32 },
}

/// Whether an endpoint may take a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    Open,
    /// This one request: call [`Ejection::begin_probe`] if it is sent.
    Probe,
    Closed,
}

impl Default for Ejection {
    fn default() -> Self {
        Self::Healthy { failures: 0 }
    }
}

impl Ejection {
    pub(crate) fn admission(self, now: Duration) -> Admission {
        match self {
            Self::Healthy { .. } => Admission::Open,
            Self::Ejected { until, .. } if now >= until => Admission::Probe,
            Self::Ejected { .. } | Self::Probing { .. } => Admission::Closed,
        }
    }

    pub(crate) fn begin_probe(&mut self) {
        if let Self::Ejected { times, .. } = *self {
            *self = Self::Probing { times };
        }
    }

    pub(crate) fn on_success(&mut self) {
        match self {
            // Of requests that were sent before; the probe tells.
            Self::Ejected { .. } => {}
            Self::Healthy { .. } | Self::Probing { .. } => *self = Self::default(),
        }
    }

    /// Says whether the endpoint is ejected by this. `random` jitters the pause by a quarter.
    pub(crate) fn on_failure(&mut self, now: Duration, random: u64) -> bool {
        let times = match *self {
            Self::Healthy { failures } if failures + 1 < FAILURES => {
                *self = Self::Healthy { failures: failures + 1 };
                return false;
            }
            Self::Healthy { .. } => 1,
            Self::Probing { times } => times + 1,
            Self::Ejected { .. } => return false,
        };
        *self = Self::Ejected { until: now + pause(times, random), times };
        true
    }

    /// The probe ended without telling anything: its client went away.
    pub(crate) fn on_cancel(&mut self, now: Duration) {
        if let Self::Probing { times } = *self {
            *self = Self::Ejected { until: now, times };
        }
    }
}

fn pause(times: u32, random: u64) -> Duration {
    let doubled = FIRST_PAUSE.saturating_mul(1 << (times - 1).min(16)).min(LONGEST_PAUSE);
    let jitter = (random % 512) as f64 / 1024.0 - 0.25;
    doubled.mul_f64(1.0 + jitter)
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn failed() -> Ejection {
        let mut state = Ejection::default();
        for _ in 1..FAILURES {
            assert!(!state.on_failure(Duration::ZERO, 256));
            assert_eq!(state.admission(Duration::ZERO), Admission::Open);
        }
        assert!(state.on_failure(Duration::ZERO, 256));
        state
    }

    #[test]
    fn failures_in_a_row_eject_and_a_probe_brings_back() {
        let mut state = failed();
        assert_eq!(state.admission(S / 2), Admission::Closed);
        assert_eq!(state.admission(S), Admission::Probe);
        state.begin_probe();
        assert_eq!(state.admission(2 * S), Admission::Closed, "one probe at a time");
        state.on_success();
        assert_eq!(state, Ejection::Healthy { failures: 0 });
    }

    #[test]
    fn a_success_between_failures_starts_the_count_again() {
        let mut state = Ejection::default();
        for _ in 0..10 {
            for _ in 1..FAILURES {
                assert!(!state.on_failure(S, 0));
            }
            state.on_success();
        }
        assert_eq!(state.admission(S), Admission::Open);
    }

    #[test]
    fn each_failed_probe_doubles_the_pause_to_a_limit() {
        let mut state = failed();
        let mut now = Duration::ZERO;
        for expected in [1, 2, 4, 8, 16, 32, 60, 60] {
            let Ejection::Ejected { until, .. } = state else { panic!("{state:?}") };
            assert_eq!(until - now, expected * S);
            now = until;
            state.begin_probe();
            assert!(state.on_failure(now, 256));
        }
    }

    #[test]
    fn pauses_are_jittered_by_a_quarter() {
        let pauses: Vec<Duration> = (0..512).map(|random| pause(1, random)).collect();
        assert!(pauses.iter().all(|it| (S * 3 / 4..S * 5 / 4).contains(it)), "{pauses:?}");
        assert!(pauses.iter().max().unwrap() > &(S * 6 / 5));
    }

    #[test]
    fn late_answers_do_not_end_an_ejection_and_a_lost_probe_is_repeated() {
        let mut state = failed();
        state.on_success();
        assert_eq!(state.admission(S / 2), Admission::Closed);
        state.begin_probe();
        state.on_cancel(2 * S);
        assert_eq!(state.admission(2 * S), Admission::Probe);
    }
}
