//! One step on trial: what was measured since it began, and what that says.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use isthmus_model::topology::{LatencyBound, LatencyGoal, RolloutDecl};

use isthmus_model::{HostId, Name};

use super::evidence::chance_of;
use super::tally::{Counts, Tally};

/// How sure one must be before the interval is over. It is asked again and again, so it is small.
const SURE_EARLY: f64 = 0.001;
/// And after it.
const SURE: f64 = 0.01;
/// Fewer bad requests than this prove nothing, whatever the odds: before the interval is over, and after.
const FEWEST_EARLY: u64 = 5;
const FEWEST: u64 = 2;
/// For so many intervals a step may stay between good and bad. Then it is bad.
const MOST_INTERVALS: u32 = 10;
/// Callers may report so many times as many requests of the canary as its servers had: they report in their
/// own time.
const MOST_UNSERVED: u64 = 2;
/// By how many standard errors the stable's quantile is taken too high rather than too low.
const CAUTION: f64 = 2.3;

/// One of the two versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// The one that had the requests.
    Stable,
    /// The one that shall get them.
    Canary,
}

/// Measurements of a step.
///
/// Hosts measure, and a host's word may be false. So what callers say of the canary counts as far as its
/// servers say that they were asked; and nobody's word alone makes up for what all others see.
#[derive(Clone, Debug)]
pub struct Trial {
    state: State,
    stable: Tally,
    canary: Tally,
    /// The canary's, by the host that called it.
    by_caller: BTreeMap<HostId, Calls>,
    /// What the canary's servers were asked, by their own word.
    served: u64,
    /// The stable's in all steps: it has none left to compare with once the canary has everything.
    baseline: Tally,
}

/// ```text
///  Spreading ── all agents have the weights ──▶ Watching { since } ──▶ decided
///             (what they report until then doesn't count)
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Spreading,
    Watching { since: Instant },
}

#[derive(Clone, Copy, Debug, Default)]
struct Calls {
    requests: u64,
    failures: u64,
}

/// What is to be known of a step beside what was measured.
#[derive(Clone, Copy, Debug)]
pub struct Circumstances<'a> {
    /// The connected agents that don't yet work by the step's weights.
    pub behind: &'a [Name],
    /// Whether agents stand before the canary, who say what it was asked.
    pub has_servers: bool,
}

/// Decision of a trial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Nothing yet, and why.
    Wait(String),
    /// All goals hold.
    Advance,
    /// A goal is missed, and which.
    Fail(String),
}

/// Of so many requests so many were bad, and this share may be.
struct Evidence {
    goal: String,
    bad: u64,
    all: u64,
    allowed: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Finding {
    Holds,
    Unsure,
    Missed,
}

impl Trial {
    /// A step that begins.
    #[must_use]
    pub fn new() -> Self {
        let (stable, canary, baseline, by_caller) = Default::default();
        Self { state: State::Spreading, stable, canary, by_caller, served: 0, baseline }
    }

    /// The step after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self { baseline: self.baseline, ..Self::new() }
    }

    /// An agent reports how its requests went.
    pub fn handle_counts(&mut self, caller: HostId, version: Version, counts: &Counts) {
        match (version, self.state) {
            (Version::Stable, State::Watching { .. }) => {
                self.stable.add(counts);
                self.baseline.add(counts);
            }
            (Version::Stable, State::Spreading) => self.baseline.add(counts),
            (Version::Canary, State::Watching { .. }) => {
                self.canary.add(counts);
                let calls = self.by_caller.entry(caller).or_default();
                calls.requests = calls.requests.saturating_add(counts.requests);
                let failures = counts.failures.min(counts.requests);
                calls.failures = calls.failures.saturating_add(failures);
            }
            (Version::Canary, State::Spreading) => {}
        }
    }

    /// An agent before the canary reports how many requests it was asked.
    pub fn handle_served(&mut self, requests: u64) {
        if matches!(self.state, State::Watching { .. }) {
            self.served = self.served.saturating_add(requests);
        }
    }

    /// Measurements of a version in this step.
    #[must_use]
    pub const fn tally(&self, version: Version) -> &Tally {
        match version {
            Version::Stable => &self.stable,
            Version::Canary => &self.canary,
        }
    }

    /// Says what follows.
    #[must_use]
    pub fn decide(
        &mut self,
        declared: &RolloutDecl,
        circumstances: Circumstances<'_>,
        now: Instant,
    ) -> Decision {
        let Circumstances { behind, has_servers } = circumstances;
        let since = match self.state {
            State::Watching { since } => since,
            State::Spreading if behind.is_empty() => {
                self.state = State::Watching { since: now };
                now
            }
            State::Spreading => return Decision::Wait(format!("waits for {}", names(behind))),
        };
        let evidence = self.evidence(declared);
        let of_others = self.of_others(declared);
        let missed = |sure, fewest| {
            let mut all = evidence.iter().chain(&of_others);
            all.find(|it| it.finding(sure, fewest) == Finding::Missed)
        };
        if let Some(missed) = missed(SURE_EARLY, FEWEST_EARLY) {
            return Decision::Fail(missed.to_string());
        }
        let over = since + declared.interval;
        if now < over {
            let left = over - now;
            return Decision::Wait(format!("{} s of the interval left", left.as_secs() + 1));
        }
        if let Some(lacking) = self
            .lacking(declared)
            .or_else(|| has_servers.then(|| self.unserved(declared)).flatten())
        {
            return Decision::Wait(lacking);
        }
        if let Some(missed) = missed(SURE, FEWEST) {
            return Decision::Fail(missed.to_string());
        }
        match evidence.iter().find(|it| it.finding(SURE, FEWEST) == Finding::Unsure) {
            None => Decision::Advance,
            Some(unsure) if now >= since + declared.interval * MOST_INTERVALS => {
                Decision::Fail(unsure.to_string())
            }
            Some(unsure) => Decision::Wait(format!("{unsure}; too few to be sure")),
        }
    }

    fn lacking(&self, declared: &RolloutDecl) -> Option<String> {
        let fewest = u64::from(declared.min_requests);
        let relative =
            declared.latency.iter().any(|it| matches!(it.most, LatencyBound::OfStable(_)));
        let lacks = |tally: &Tally, name: &Name| {
            let requests = tally.requests();
            (requests < fewest)
                .then(|| format!("{name} had {requests} of at least {fewest} requests"))
        };
        lacks(&self.canary, &declared.canary)
            .or_else(|| lacks(&self.baseline, &declared.stable).filter(|_| relative))
    }

    /// What callers say of the canary and its servers don't.
    fn unserved(&self, declared: &RolloutDecl) -> Option<String> {
        let (called, served) = (self.canary.requests(), self.served);
        let believed = called.min(served.saturating_mul(MOST_UNSERVED));
        let enough = served >= u64::from(declared.min_requests) && believed == called;
        (!enough).then(|| {
            format!(
                "callers report {called} requests to {canary}, agents on hosts of {canary} report {served}",
                canary = declared.canary
            )
        })
    }

    /// What callers but the busiest see: requests of that one, true or not, hide no failures of others.
    fn of_others(&self, declared: &RolloutDecl) -> Option<Evidence> {
        if self.by_caller.len() < 2 {
            return None;
        }
        let busiest = self.by_caller.values().max_by_key(|calls| calls.requests)?;
        Some(Evidence {
            goal: format!(
                "failed that all callers but the busiest sent, success_rate is {}",
                declared.success_rate
            ),
            bad: self.canary.failures().saturating_sub(busiest.failures),
            all: self.canary.requests().saturating_sub(busiest.requests),
            allowed: 1.0 - declared.success_rate.ratio(),
        })
    }

    fn evidence(&self, declared: &RolloutDecl) -> Vec<Evidence> {
        let failures = Evidence {
            goal: format!("failed, success_rate is {}", declared.success_rate),
            bad: self.canary.failures(),
            all: self.canary.requests(),
            allowed: 1.0 - declared.success_rate.ratio(),
        };
        let latencies = declared.latency.iter().filter_map(|goal| self.latency(goal));
        std::iter::once(failures).chain(latencies).collect()
    }

    /// None while there is nothing to compare with.
    fn latency(&self, goal: &LatencyGoal) -> Option<Evidence> {
        let quantile = goal.quantile.ratio();
        let bound = match goal.most {
            LatencyBound::Time(bound) => bound,
            LatencyBound::OfStable(percent) => {
                let all = self.baseline.timed() as f64;
                let error = (quantile * (1.0 - quantile) / all).sqrt();
                let careful = (quantile + CAUTION * error).min(1.0);
                self.baseline.quantile(careful)?.mul_f64(f64::from(percent) / 100.0)
            }
        };
        Some(Evidence {
            goal: format!("took longer than {}, latency is {goal}", millis(bound)),
            bad: self.canary.slower_than(bound),
            all: self.canary.timed(),
            allowed: 1.0 - quantile,
        })
    }
}

impl Default for Trial {
    fn default() -> Self {
        Self::new()
    }
}

impl Evidence {
    fn finding(&self, sure: f64, fewest: u64) -> Finding {
        if self.bad as f64 <= self.all as f64 * self.allowed {
            return Finding::Holds;
        }
        if self.bad >= fewest && chance_of(self.bad, self.all, self.allowed) < sure {
            return Finding::Missed;
        }
        Finding::Unsure
    }
}

impl std::fmt::Display for Evidence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {} requests {}", self.bad, self.all, self.goal)
    }
}

fn millis(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

fn names(hosts: &[Name]) -> String {
    const SHOWN: usize = 3;
    let shown: Vec<&str> = hosts.iter().take(SHOWN).map(Name::as_str).collect();
    let mut text = shown.join(", ");
    if hosts.len() > SHOWN {
        let _ = write!(text, " and {} more", hosts.len() - SHOWN);
    }
    text + " to take the weights"
}
