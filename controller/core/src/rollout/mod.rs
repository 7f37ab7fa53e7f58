//! Progressive delivery: what `[rollout.NAME]` asks for, carried out.
//!
//! Not to be confused with [`RevisionHosts`](crate::Rollouts), which is about how far a revision has got.
//!
//! A [`Rollout`] is what must survive a restart: whose requests move, and which [`Phase`] that has
//! reached. The weights that follow from it are put into the routes when a [`MeshSnapshot`](crate::World)
//! is made of a state, so each step is a revision like any other. A [`Trial`] is what must not: what
//! agents measured since the step began. Together with the topology's words it [decides](Trial::decide).

mod evidence;
mod tally;
mod trial;

use isthmus_model::Name;
use isthmus_model::route::{Backend, Route, RouteAction};
use isthmus_model::topology::{OnFailure, RolloutDecl};
use serde::{Deserialize, Serialize};

use crate::text;

pub use tally::{Counts, Tally};
pub use trial::{Circumstances, Decision, Trial, Version};

/// Progress of a rollout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollout {
    routes: Vec<String>,
    #[serde(with = "text")]
    stable: Name,
    #[serde(with = "text")]
    canary: Name,
    /// Its phase.
    pub phase: Phase,
    /// Since when, in seconds since the epoch.
    pub since: i64,
}

/// Phase of a rollout.
///
/// ```text
///               ┌────── next step ──────┐
///               ▼                       │ all goals hold
///  new ──▶ Progressing ─────────────────┴─▶ after the last step ──▶ Promoted
///           │   ▲   │                            │                     ▲
///     pause │   │   │ a goal is missed           │ auto_promote        │ promote (from
///           ▼   │   │                            ▼ = false             │ everywhere)
///         Paused ◀──┼─ on_failure = "pause"    Paused ─────────────────┤
///           │       ▼                                                  │
///           └──▶ RolledBack ───────────────────────────────────────────┘
///        abort     │    ▲
///                  │    └── abort, from everywhere
///                  └─ retry ──▶ Progressing, from the first step
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// The canary has this share, in percent, and is being watched.
    Progressing {
        /// Its share.
        weight: u8,
    },
    /// The canary has this share until somebody says more.
    Paused {
        /// Its share.
        weight: u8,
        /// The operator or goal that stopped it.
        why: String,
    },
    /// The canary has everything.
    Promoted,
    /// The stable has everything.
    RolledBack {
        /// The operator or goal that decided so.
        why: String,
    },
}

/// Order of an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Stay at these weights.
    Pause,
    /// Go on.
    Resume,
    /// Give the canary everything.
    Promote,
    /// Give the stable everything.
    Abort,
    /// Start anew, after a rollback.
    Retry,
}

/// Why an order has no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidTransition(String);

impl Rollout {
    /// One that begins now.
    #[must_use]
    pub fn new(declared: &RolloutDecl, now: i64) -> Self {
        Self {
            routes: declared.routes.iter().map(ToString::to_string).collect(),
            stable: declared.stable.clone(),
            canary: declared.canary.clone(),
            phase: Phase::Progressing { weight: first(declared) },
            since: now,
        }
    }

    /// Whether this is about the same routes and versions; otherwise it starts anew.
    #[must_use]
    pub fn is_of(&self, declared: &RolloutDecl) -> bool {
        self.stable == declared.stable
            && self.canary == declared.canary
            && self.routes.iter().map(String::as_str).eq(declared.routes.iter().map(|it| &**it))
    }

    /// Whether another one is about the same routes and versions.
    #[must_use]
    pub fn concerns(&self, other: &Self) -> bool {
        (&self.routes, &self.stable, &self.canary) == (&other.routes, &other.stable, &other.canary)
    }

    /// The names of its routes.
    pub(crate) fn routes(&self) -> &[String] {
        &self.routes
    }

    /// The canary's share, in percent.
    #[must_use]
    pub const fn weight(&self) -> u8 {
        match self.phase {
            Phase::Progressing { weight } | Phase::Paused { weight, .. } => weight,
            Phase::Promoted => 100,
            Phase::RolledBack { .. } => 0,
        }
    }

    /// Next phase once all goals of a step hold.
    #[must_use]
    pub fn after_success(&self, name: &Name, declared: &RolloutDecl) -> Phase {
        let weight = self.weight();
        match declared.steps.iter().find(|step| **step > weight) {
            Some(next) => Phase::Progressing { weight: *next },
            None if declared.auto_promote => Phase::Promoted,
            None => Phase::Paused {
                weight,
                why: format!("all steps went well; `agentctl rollout promote {name}` ends it"),
            },
        }
    }

    /// Next phase once a goal is missed.
    #[must_use]
    pub fn after_failure(&self, declared: &RolloutDecl, why: String) -> Phase {
        match declared.on_failure {
            OnFailure::Rollback => Phase::RolledBack { why },
            OnFailure::Pause => Phase::Paused { weight: self.weight(), why },
        }
    }

    /// Next phase after an operator's order.
    ///
    /// # Errors
    ///
    /// It has no sense in this phase.
    pub fn obey(
        &self,
        order: Order,
        operator: &str,
        declared: &RolloutDecl,
    ) -> Result<Phase, InvalidTransition> {
        let weight = self.weight();
        let senseless = |text: &str| Err(InvalidTransition(text.to_owned()));
        match (order, &self.phase) {
            (Order::Pause, Phase::Progressing { .. }) => {
                Ok(Phase::Paused { weight, why: format!("paused by {operator}") })
            }
            (Order::Resume, Phase::Paused { .. }) => Ok(Phase::Progressing { weight }),
            (Order::Retry, Phase::RolledBack { .. }) => {
                Ok(Phase::Progressing { weight: first(declared) })
            }
            (Order::Promote, Phase::Promoted) => senseless("it is promoted already"),
            (Order::Promote, _) => Ok(Phase::Promoted),
            (Order::Abort, Phase::RolledBack { .. }) => senseless("it is rolled back already"),
            (Order::Abort, _) => Ok(Phase::RolledBack { why: format!("aborted by {operator}") }),
            (Order::Pause, Phase::Paused { .. }) => senseless("it is paused already"),
            (Order::Pause | Order::Resume, Phase::Promoted) => senseless("it is over: promoted"),
            (Order::Pause | Order::Resume, Phase::RolledBack { .. }) => {
                senseless("it is rolled back; `agentctl rollout retry` starts it anew")
            }
            (Order::Resume, Phase::Progressing { .. }) => senseless("it isn't paused"),
            (Order::Retry, Phase::Progressing { .. } | Phase::Paused { .. } | Phase::Promoted) => {
                senseless("only what was rolled back can be tried again")
            }
        }
    }

    /// Gives the two versions their shares of a route, if it is one of this rollout's.
    pub(crate) fn weigh(&self, route: &mut Route) {
        if !self.routes.iter().any(|name| **name == *route.name) {
            return;
        }
        if let RouteAction::Forward { to, .. } = &mut route.action {
            let canary = u32::from(self.weight());
            *to = vec![
                Backend { service: self.stable.clone(), weight: 100 - canary },
                Backend { service: self.canary.clone(), weight: canary },
            ];
        }
    }
}

impl Phase {
    /// In one word.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Progressing { .. } => "progressing",
            Self::Paused { .. } => "paused",
            Self::Promoted => "promoted",
            Self::RolledBack { .. } => "rolled back",
        }
    }

    /// Who or what stopped it; empty while it goes on, or went well.
    #[must_use]
    pub fn why(&self) -> &str {
        match self {
            Self::Paused { why, .. } | Self::RolledBack { why } => why,
            Self::Progressing { .. } | Self::Promoted => "",
        }
    }
}

/// A topology has at least one step.
fn first(declared: &RolloutDecl) -> u8 {
    declared.steps.first().copied().unwrap_or(100)
}

#[cfg(test)]
mod tests;
