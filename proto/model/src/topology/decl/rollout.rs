//! A rollout's declaration.

use std::sync::Arc;
use std::time::Duration;

use crate::name::Name;
use crate::route::Share;
use crate::rules::Origin;

/// The quantiles that a rollout's `latency` knows, in millionths.
pub(crate) const QUANTILES: [(&str, u32); 4] =
    [("p50", 500_000), ("p90", 900_000), ("p95", 950_000), ("p99", 990_000)];

/// `[rollout.NAME]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RolloutDecl {
    /// `route`: the names of the routes whose weights it moves.
    pub routes: Vec<Arc<str>>,
    /// `stable`: the service that has the requests.
    pub stable: Name,
    /// `canary`: the one that shall get them.
    pub canary: Name,
    /// `steps`: the canary's share in percent, rising.
    pub steps: Vec<u8>,
    /// `interval`: how long each step is watched at least.
    pub interval: Duration,
    /// `success_rate`: the least share of requests that must succeed.
    pub success_rate: Share,
    /// `latency`
    pub latency: Vec<LatencyGoal>,
    /// `min_requests`: a step isn't judged good on fewer.
    pub min_requests: u32,
    /// `on_failure`
    pub on_failure: OnFailure,
    /// `auto_promote`: whether the canary takes over by itself after the last step.
    pub auto_promote: bool,
    /// Where it stands.
    pub origin: Origin,
}

/// One entry of `latency`: what a share of the canary's requests must not take longer than.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatencyGoal {
    /// Which share: 0.99 for `p99`.
    pub quantile: Share,
    /// Than what.
    pub most: LatencyBound,
}

/// What a latency is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LatencyBound {
    /// A time.
    Time(Duration),
    /// So many percent of what the same share of the stable's requests take.
    OfStable(u32),
}

/// What becomes of a canary that does badly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFailure {
    /// All requests go to the stable again.
    Rollback,
    /// The weights stay, and an operator decides.
    Pause,
}

impl LatencyGoal {
    /// `p99`
    #[must_use]
    pub fn name(&self) -> &'static str {
        let known =
            QUANTILES.iter().find(|(_, millionths)| Share::new(*millionths) == Some(self.quantile));
        known.map_or("latency", |(name, _)| name)
    }
}

impl std::fmt::Display for LatencyGoal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.most {
            LatencyBound::Time(time) => write!(f, "{} {time:?}", self.name()),
            LatencyBound::OfStable(percent) => {
                write!(f, "{} {percent}% of the stable's", self.name())
            }
        }
    }
}

impl std::fmt::Display for OnFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Rollback => "rollback",
            Self::Pause => "pause",
        })
    }
}
