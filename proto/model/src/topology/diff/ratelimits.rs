//! Limits in an operator's words.

use crate::ratelimit::RateLimit;

/// All that a limit says, by key; the same keys for every limit.
pub(super) fn facts(limit: &RateLimit) -> Vec<(&'static str, String)> {
    // Taken apart, so that a new field can't be forgotten here.
    let RateLimit { name: _, service, matches, rate, burst, per, scope, hosts: _, origin: _ } =
        limit;
    let matches: Vec<String> = matches.iter().map(ToString::to_string).collect();
    vec![
        ("service", service.to_string()),
        ("match", if matches.is_empty() { "everything".to_owned() } else { matches.join(", ") }),
        ("rate", format!("{}", *rate as f64 / 1000.0)),
        ("burst", burst.to_string()),
        ("per", per.to_string()),
        ("scope", scope.to_string()),
    ]
}
