//! Rollouts in an operator's words.

use crate::topology::decl::RolloutDecl;

/// All that it says, by key; the same keys for every rollout.
pub(super) fn facts(rollout: &RolloutDecl) -> Vec<(&'static str, String)> {
    // Taken apart, so that a new field can't be forgotten here.
    let RolloutDecl {
        routes,
        stable,
        canary,
        steps,
        interval,
        success_rate,
        latency,
        min_requests,
        on_failure,
        auto_promote,
        origin: _,
    } = rollout;
    vec![
        ("route", routes.join(", ")),
        ("stable", stable.to_string()),
        ("canary", canary.to_string()),
        ("steps", list(steps)),
        ("interval", format!("{interval:?}")),
        ("success_rate", success_rate.to_string()),
        ("latency", list(latency)),
        ("min_requests", min_requests.to_string()),
        ("on_failure", on_failure.to_string()),
        ("auto_promote", auto_promote.to_string()),
    ]
}

fn list<T: ToString>(values: &[T]) -> String {
    if values.is_empty() {
        return "none".to_owned();
    }
    values.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
