//! Outlier ejection: an endpoint that keeps failing gets no requests for a while, then one to prove itself.
//!
//! ```text
//!   Healthy ──failures in a row──▶ Ejected ──time──▶ Probing ──success──▶ Healthy
//!                                     ▲                 │
//!                                     └─────failure─────┘   (for twice as long)
//! ```
//!
//! A failure is a 5xx, a 429, no answer in time, or the equivalent gRPC status; it also counts as three times the
//! expected latency (`ewma.rs`). Five failures in a row eject, and so does a success rate far below that of the other
//! endpoints (`success_rate.rs`). The first ejection lasts a second, where Envoy's lasts 30: the probe is a real
//! request, so it costs little. If the probe fails and may be repeated, it is retried elsewhere, outside of the retry
//! budget: the caller doesn't pay for the probe. At most half of the endpoints are ejected (`max_ejection_percent`).
//! A request that the caller broke off, or whose body the caller is late with, is not the endpoint's failure.

use std::time::Duration;

use isthmus_model::Outlier;

/// Kinds of an endpoint's failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// It answered that it can't.
    Answer,
    /// It didn't answer.
    NoAnswer,
    /// Its host says that it fails its health check.
    Unhealthy,
}

/// Recent outcomes of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ejection {
    Healthy {
        /// In a row.
        failures: u32,
        /// In a row.
        unanswered: u32,
        /// Number of earlier ejections; older ones count less.
        times: u32,
        since: Duration,
    },
    Ejected {
        until: Duration,
        /// In a row.
        times: u32,
        unhealthy: bool,
    },
    /// One request is under way that will tell.
    Probing { times: u32, unhealthy: bool },
}

/// Whether an endpoint may take a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// It may, since then.
    Open { since: Duration },
    /// From then on one may, that will tell.
    Closed { until: Duration },
    /// One is under way that will tell.
    Probing,
}

impl Ejection {
    /// Of an endpoint that nobody knows.
    pub(crate) const fn new(now: Duration) -> Self {
        Self::Healthy { failures: 0, unanswered: 0, times: 0, since: now }
    }

    pub(crate) const fn admission(self) -> Admission {
        match self {
            Self::Healthy { since, .. } => Admission::Open { since },
            Self::Ejected { until, .. } => Admission::Closed { until },
            Self::Probing { .. } => Admission::Probing,
        }
    }

    pub(crate) const fn is_out(self) -> bool {
        !matches!(self, Self::Healthy { .. })
    }

    /// Whether its host said that it fails its health check.
    pub(crate) const fn is_unhealthy(self) -> bool {
        matches!(
            self,
            Self::Ejected { unhealthy: true, .. } | Self::Probing { unhealthy: true, .. }
        )
    }

    /// Whether nothing is held against it.
    pub(crate) const fn is_spotless(self) -> bool {
        matches!(self, Self::Healthy { failures: 0, .. })
    }

    /// Says whether a request may be sent that will tell: the first one after its time.
    pub(crate) fn begin_probe(&mut self, now: Duration) -> bool {
        match *self {
            Self::Ejected { until, times, unhealthy } if now >= until => {
                *self = Self::Probing { times, unhealthy };
                true
            }
            Self::Healthy { .. } | Self::Ejected { .. } | Self::Probing { .. } => false,
        }
    }

    /// Says whether the endpoint is back by this.
    pub(crate) fn on_success(&mut self, now: Duration) -> bool {
        match *self {
            // Of requests that were sent before; the probe tells.
            Self::Ejected { .. } => false,
            Self::Healthy { times, since, .. } => {
                *self = Self::Healthy { failures: 0, unanswered: 0, times, since };
                false
            }
            Self::Probing { times, .. } => {
                *self = Self::Healthy { failures: 0, unanswered: 0, times, since: now };
                true
            }
        }
    }

    /// Says whether the endpoint is ejected by this; `may_eject` says whether another one may be.
    /// `random` jitters the pause by a quarter.
    pub(crate) fn on_failure(
        &mut self,
        failure: Failure,
        settings: &Outlier,
        may_eject: bool,
        (now, random): (Duration, u64),
    ) -> bool {
        let unhealthy = failure == Failure::Unhealthy;
        let times = match *self {
            Self::Healthy { failures, unanswered, times, since } => {
                let failures = failures.saturating_add(1);
                let unanswered =
                    if failure == Failure::NoAnswer { unanswered.saturating_add(1) } else { 0 };
                let reaches = |count: u32, limit: u32| limit != 0 && count >= limit;
                let enough = reaches(failures, settings.consecutive_5xx)
                    || reaches(unanswered, settings.consecutive_local_origin_failure);
                if !(unhealthy || enough && may_eject) {
                    *self = Self::Healthy { failures, unanswered, times, since };
                    return false;
                }
                remembered(times, now.saturating_sub(since), settings)
            }
            Self::Probing { times, .. } => times,
            Self::Ejected { .. } => return false,
        };
        // To ask whether it still fails its check costs nothing, so the pause doesn't grow.
        let times = if unhealthy { times } else { times.saturating_add(1) };
        let pause = pause(if unhealthy { 1 } else { times }, settings, random);
        *self = Self::Ejected { until: now + pause, times, unhealthy };
        true
    }

    /// It succeeds less often than its like. Says whether that ejects it.
    pub(crate) fn on_low_success(
        &mut self,
        settings: &Outlier,
        (now, random): (Duration, u64),
    ) -> bool {
        let Self::Healthy { times, since, .. } = *self else { return false };
        let times = remembered(times, now.saturating_sub(since), settings) + 1;
        // One success says little here: not before there can be a new rate.
        let pause = pause(times, settings, random).max(settings.interval);
        *self = Self::Ejected { until: now + pause, times, unhealthy: false };
        true
    }

    /// The probe ended without telling anything: its client went away.
    pub(crate) fn on_cancel(&mut self, now: Duration) -> bool {
        let Self::Probing { times, unhealthy } = *self else { return false };
        *self = Self::Ejected { until: now, times, unhealthy };
        true
    }
}

/// Each interval of health makes up for an ejection.
fn remembered(times: u32, healthy: Duration, settings: &Outlier) -> u32 {
    let intervals = healthy.as_nanos().checked_div(settings.interval.as_nanos()).unwrap_or(0);
    times.saturating_sub(u32::try_from(intervals).unwrap_or(u32::MAX))
}

fn pause(times: u32, settings: &Outlier, random: u64) -> Duration {
    let doubled = settings
        .base_ejection_time
        .saturating_mul(1 << (times - 1).min(16))
        .min(settings.max_ejection_time);
    let jitter = (random % 512) as f64 / 1024.0 - 0.25;
    doubled.mul_f64(1.0 + jitter)
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn fail(state: &mut Ejection, failure: Failure, now: Duration) -> bool {
        state.on_failure(failure, &Outlier::default(), true, (now, 256))
    }

    fn failed() -> Ejection {
        let mut state = Ejection::new(Duration::ZERO);
        for _ in 1..5 {
            assert!(!fail(&mut state, Failure::Answer, Duration::ZERO));
            assert!(!state.is_out());
        }
        assert!(fail(&mut state, Failure::Answer, Duration::ZERO));
        state
    }

    #[test]
    fn failures_in_a_row_eject_and_a_probe_brings_back() {
        let mut state = failed();
        assert_eq!(state.admission(), Admission::Closed { until: S });
        assert!(!state.begin_probe(S / 2));
        assert!(state.begin_probe(S));
        assert!(!state.begin_probe(2 * S), "one probe at a time");
        assert_eq!(state.admission(), Admission::Probing);
        assert!(state.on_success(2 * S));
        assert_eq!(state.admission(), Admission::Open { since: 2 * S });
    }

    #[test]
    fn a_success_between_failures_starts_the_count_again() {
        let mut state = Ejection::new(S);
        for _ in 0..10 {
            for _ in 1..5 {
                assert!(!fail(&mut state, Failure::NoAnswer, S));
            }
            assert!(!state.is_spotless());
            state.on_success(S);
            assert!(state.is_spotless());
        }
    }

    #[test]
    fn each_detector_has_its_own_limit_and_zero_is_off() {
        let first = |settings: Outlier, failure| {
            let mut state = Ejection::new(S);
            (1..100).find(|_| state.on_failure(failure, &settings, true, (S, 0)))
        };
        let settings = Outlier {
            consecutive_5xx: 7,
            consecutive_local_origin_failure: 3,
            ..Outlier::default()
        };
        assert_eq!(first(settings, Failure::Answer), Some(7));
        assert_eq!(first(settings, Failure::NoAnswer), Some(3));
        assert_eq!(first(settings, Failure::Unhealthy), Some(1));
        let off = Outlier {
            consecutive_5xx: 0,
            consecutive_local_origin_failure: 0,
            ..Outlier::default()
        };
        assert_eq!(first(off, Failure::NoAnswer), None);
    }

    #[test]
    fn who_may_not_be_ejected_is_once_it_may() {
        let mut state = Ejection::new(S);
        let settings = Outlier::default();
        for _ in 0..20 {
            assert!(!state.on_failure(Failure::Answer, &settings, false, (S, 0)));
        }
        assert!(state.on_failure(Failure::Answer, &settings, true, (S, 0)));
        let mut unhealthy = Ejection::new(S);
        assert!(unhealthy.on_failure(Failure::Unhealthy, &settings, false, (S, 0)));
        assert!(unhealthy.is_unhealthy());
    }

    #[test]
    fn whether_it_still_fails_its_check_is_asked_again_and_again() {
        let mut state = Ejection::new(S);
        assert!(fail(&mut state, Failure::Unhealthy, S));
        for second in 2..10 {
            assert_eq!(state.admission(), Admission::Closed { until: second * S });
            assert!(state.begin_probe(second * S));
            assert!(fail(&mut state, Failure::Unhealthy, second * S));
        }
    }

    #[test]
    fn each_failed_probe_doubles_the_pause_to_a_limit() {
        let mut state = failed();
        let mut now = Duration::ZERO;
        for expected in [1, 2, 4, 8, 16, 32, 60, 60] {
            let Admission::Closed { until } = state.admission() else { panic!("{state:?}") };
            assert_eq!(until - now, expected * S);
            now = until;
            assert!(state.begin_probe(now));
            assert!(fail(&mut state, Failure::Answer, now));
        }
    }

    #[test]
    fn who_comes_and_goes_stays_out_longer_until_it_has_been_well_for_long() {
        let pause_after = |healthy: Duration| {
            let mut state = failed();
            assert!(state.begin_probe(S) && state.on_success(S));
            let now = S + healthy;
            for _ in 0..5 {
                fail(&mut state, Failure::Answer, now);
            }
            let Admission::Closed { until } = state.admission() else { panic!("{state:?}") };
            until - now
        };
        assert_eq!(pause_after(3 * S), 2 * S);
        assert_eq!(pause_after(10 * S), S);
    }

    #[test]
    fn a_low_success_rate_ejects_until_there_can_be_another() {
        let mut state = Ejection::new(S);
        assert!(state.on_low_success(&Outlier::default(), (S, 256)));
        assert_eq!(state.admission(), Admission::Closed { until: 11 * S });
        assert!(!state.on_low_success(&Outlier::default(), (S, 256)), "it is out already");
    }

    #[test]
    fn pauses_are_jittered_by_a_quarter() {
        let settings = Outlier::default();
        let pauses: Vec<Duration> = (0..512).map(|random| pause(1, &settings, random)).collect();
        assert!(pauses.iter().all(|it| (S * 3 / 4..S * 5 / 4).contains(it)), "{pauses:?}");
        assert!(pauses.iter().max().unwrap() > &(S * 6 / 5));
    }

    #[test]
    fn late_answers_do_not_end_an_ejection_and_a_lost_probe_is_repeated() {
        let mut state = failed();
        assert!(!state.on_success(S / 2));
        assert!(state.begin_probe(S));
        assert!(state.on_cancel(2 * S));
        assert!(state.begin_probe(2 * S));
    }
}
