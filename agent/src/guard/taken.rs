//! The problem that is told when somebody has changed or removed a filter of ours.

use std::time::{Duration, Instant};

use isthmus_model::{Code, Problem};
use isthmus_net::ruleset::RulesetChange;

/// For so long an operator is told.
const REMEMBERED: Duration = Duration::from_secs(600);

/// When a table was taken away last, and how it came to that.
#[derive(Debug)]
pub(crate) struct Taken {
    at: Instant,
    times: u64,
    by: RulesetChange,
}

impl Taken {
    /// Once more than in `before`.
    pub(crate) fn after(before: Option<&Self>, by: RulesetChange) -> Self {
        let times = before.map_or(0, |it| it.times) + 1;
        Self { at: Instant::now(), times, by }
    }

    /// Whether it is over long enough to be told no more.
    pub(crate) fn is_over(&self) -> bool {
        self.at.elapsed() >= REMEMBERED
    }

    /// Of the filter in `table`, of which `what` tells what it is for.
    pub(crate) fn problem(&self, code: Code, what: &str, table: &str) -> Problem {
        let who = match (&*self.by.program, self.by.socket) {
            ("", _) => "somebody".to_owned(),
            (program, None | Some(0)) => format!("\"{program}\""),
            (program, Some(process)) => format!("\"{program}\" (process {process})"),
        };
        let times = if self.times == 1 { "once".into() } else { format!("{} times", self.times) };
        Problem::new(
            code,
            format!("{what} was changed or removed {times}, last by {who}; it was put back"),
            format!(
                "have it leave the table {table} alone: a firewall's script should flush its own \
                 tables, not the whole ruleset"
            ),
        )
    }
}
