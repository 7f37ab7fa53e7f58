//! After `apply`: waiting for the agents, and telling who has accepted.

use std::time::{Duration, Instant};

use anyhow::Result;
use isthmus_model::Code;
use isthmus_proto::v1;
use isthmus_proto::v1::admin_client::AdminClient;
use serde_json::{Value, json};
use tokio::time::timeout_at;
use tonic::transport::Channel;

use crate::errors::{Exit, refused};
use crate::output::{Tone, clean, paint};
use crate::problems;
use crate::transport::ask_controller;
use crate::words::{count, rough};

/// Convergence of a revision.
#[derive(Clone, Debug, Default)]
pub(crate) struct Progress {
    last: v1::Rollout,
    took: Duration,
    /// Time limit of the wait.
    patience: Duration,
    /// Whether somebody pressed Ctrl-C.
    interrupted: bool,
}

/// Waits until every connected agent has answered, at most until `patience` is over; the time is
/// counted from `started`.
pub(crate) async fn wait(
    admin: &mut AdminClient<Channel>,
    revision: u64,
    started: Instant,
    patience: Duration,
) -> Result<Progress> {
    let deadline = tokio::time::Instant::now() + patience;
    let request = v1::WatchRolloutRequest { revision };
    let mut stream = ask_controller(admin.watch_rollout(request)).await?;
    let mut progress = Progress { patience, ..Progress::default() };
    loop {
        let message = tokio::select! {
            message = timeout_at(deadline, stream.message()) => message,
            _ = tokio::signal::ctrl_c() => {
                progress.interrupted = true;
                break;
            }
        };
        let Ok(message) = message else { break };
        match message {
            Ok(Some(rollout)) => {
                let done = rollout.complete || rollout.waiting.is_empty();
                progress.last = rollout;
                if done {
                    break;
                }
            }
            Ok(None) => break,
            Err(status) => return Err(refused(&status, "the controller").into()),
        }
    }
    progress.last.revision = revision;
    progress.took = started.elapsed();
    Ok(progress)
}

impl Progress {
    /// Whether a connected agent refused, is silent, or works by the revision with warnings.
    pub(crate) fn exit(&self) -> Exit {
        let v1::Rollout { refused, waiting, warned, .. } = &self.last;
        let all = refused.is_empty() && waiting.is_empty() && warned.is_empty();
        if all && !self.interrupted { Exit::Success } else { Exit::Incomplete }
    }

    /// Whether a problem there is told here already: this revision brought it, or was refused.
    pub(crate) fn tells_of(&self, host: &str, problem: &v1::Problem) -> bool {
        let same = |it: &v1::Problem| (&it.code, &it.subject) == (&problem.code, &problem.subject);
        let v1::Rollout { warned, refused, .. } = &self.last;
        let warns =
            warned.iter().any(|it| it.host == host && it.problem.as_ref().is_some_and(same));
        let is_refusal = problem.code == Code::RevisionRefused.name();
        warns || is_refusal && refused.iter().any(|it| it.host == host)
    }

    pub(crate) fn text(&self) -> String {
        let v1::Rollout { revision, accepted, waiting, disconnected, refused, warned, .. } =
            &self.last;
        let connected = accepted.len() + waiting.len() + refused.len();
        let took = rough(self.took);
        let tone = if self.exit() == Exit::Success { Tone::Good } else { Tone::Warn };
        let mut text = if connected == 0 && self.interrupted {
            format!("revision {revision}: no agent has answered yet\n")
        } else if connected == 0 {
            format!("revision {revision}: no connected agent is concerned\n")
        } else {
            let agents = format!("{} of {} accepted", accepted.len(), count(connected, "agent"));
            format!("revision {revision}: {} in {took}\n", paint(&agents, tone))
        };
        if self.interrupted {
            let applied = paint("interrupted, but applied:", Tone::Warn);
            text.push_str(&format!("  {applied} agents get it without this command, too\n"));
            if !accepted.is_empty() {
                text.push_str(&format!("  works at {}\n", clean(&accepted.join(", "))));
            }
        }
        for refusal in refused {
            let host = paint(&clean(&refusal.host), Tone::Strong);
            let reason = clean(&refusal.reason);
            text.push_str(&format!("  {} {host}: {reason}\n", paint("refused by", Tone::Bad)));
        }
        for warning in warned {
            let host = paint(&clean(&warning.host), Tone::Strong);
            let problem = warning.problem.clone().unwrap_or_default();
            let warned = paint("accepted with a warning by", Tone::Warn);
            text.push_str(&format!("  {warned} {host}: {}\n", problems::sentence(&problem)));
        }
        if !waiting.is_empty() {
            let names = clean(&waiting.join(", "));
            let silent = paint("no answer", Tone::Bad);
            let when = match self.interrupted {
                true => "before the interruption".to_owned(),
                false => format!("within {}", rough(self.patience)),
            };
            text.push_str(&format!("  {silent} {when} from {names}\n"));
        }
        if !disconnected.is_empty() {
            let (verb, pronoun) =
                if disconnected.len() == 1 { ("is", "it returns") } else { ("are", "they return") };
            let hosts = count(disconnected.len(), "host");
            let names = clean(&disconnected.join(", "));
            text.push_str(&format!(
                "  {hosts} {verb} away and will get it when {pronoun}: {names}\n"
            ));
        }
        text
    }

    pub(crate) fn json(&self) -> Value {
        let refused: Value = self
            .last
            .refused
            .iter()
            .map(|one| json!({ "host": one.host, "reason": one.reason }))
            .collect();
        let warned: Value = self
            .last
            .warned
            .iter()
            .map(|one| {
                let problem = one.problem.clone().unwrap_or_default();
                json!({ "host": one.host, "problem": problems::json(&[problem])[0] })
            })
            .collect();
        json!({
            "accepted": self.last.accepted,
            "waiting": self.last.waiting,
            "disconnected": self.last.disconnected,
            "refused": refused,
            "warned": warned,
            "interrupted": self.interrupted,
            "milliseconds": u64::try_from(self.took.as_millis()).unwrap_or(u64::MAX),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(accepted: &[&str], waiting: &[&str], away: &[&str], refused: &[&str]) -> Progress {
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        let refusal = |host: &&str| v1::RefusedBy {
            host: (*host).to_owned(),
            reason: "100.64.0.0/12 is routed elsewhere".to_owned(),
        };
        Progress {
            last: v1::Rollout {
                revision: 7,
                accepted: names(accepted),
                waiting: names(waiting),
                disconnected: names(away),
                refused: refused.iter().map(refusal).collect(),
                warned: Vec::new(),
                complete: waiting.is_empty(),
            },
            took: Duration::from_millis(41),
            patience: Duration::from_secs(10),
            interrupted: false,
        }
    }

    fn plain(progress: &Progress) -> String {
        anstream::adapter::strip_str(&progress.text()).to_string()
    }

    #[test]
    fn a_full_rollout_is_one_line() {
        let all = progress(&["a", "b", "c"], &[], &[], &[]);
        assert_eq!(plain(&all), "revision 7: 3 of 3 agents accepted in 41 ms\n");
        assert_eq!(all.exit(), Exit::Success);
    }

    #[test]
    fn hosts_that_are_away_are_named_and_dont_fail() {
        let away = progress(&["a"], &[], &["app-3"], &[]);
        assert!(plain(&away).contains("1 host is away and will get it when it returns: app-3"));
        assert_eq!(away.exit(), Exit::Success);
        assert_eq!(away.json()["disconnected"][0], "app-3");
    }

    #[test]
    fn who_presses_ctrl_c_hears_what_was_made() {
        let interrupted =
            Progress { interrupted: true, ..progress(&["a", "b"], &["c"], &["d"], &[]) };
        assert_eq!(
            plain(&interrupted),
            "revision 7: 2 of 3 agents accepted in 41 ms\n  \
             interrupted, but applied: agents get it without this command, too\n  works at a, b\n  \
             no answer before the interruption from c\n  \
             1 host is away and will get it when it returns: d\n"
        );
        let early = Progress { interrupted: true, ..progress(&[], &[], &[], &[]) };
        assert!(plain(&early).starts_with("revision 7: no agent has answered yet\n"));
        assert_eq!((early.exit(), &early.json()["interrupted"]), (Exit::Incomplete, &true.into()));
    }

    #[test]
    fn agents_that_refuse_or_are_silent_are_named_and_fail() {
        let refused = progress(&["a"], &[], &[], &["app-1"]);
        assert!(plain(&refused).contains("refused by app-1: 100.64.0.0/12"), "{}", plain(&refused));
        assert!(plain(&refused).contains("1 of 2 agents"));
        assert_eq!(refused.exit(), Exit::Incomplete);
        assert_eq!(refused.json()["refused"][0]["host"], "app-1");
        let mut warned = progress(&["a"], &[], &[], &[]);
        let problem = v1::Problem {
            text: "the disk is full".into(),
            remedy: "make room".into(),
            ..v1::Problem::default()
        };
        warned.last.warned = vec![v1::WarnedBy { host: "a".into(), problem: Some(problem) }];
        let text = plain(&warned);
        assert!(text.contains("warning by a: the disk is full; make room"), "{text}");
        assert_eq!(warned.exit(), Exit::Incomplete);
        assert_eq!(warned.json()["warned"][0]["problem"]["remedy"], "make room");
        let silent = progress(&[], &["app-2"], &[], &[]);
        assert!(plain(&silent).contains("no answer within 10 s from app-2"));
        assert_eq!(silent.exit(), Exit::Incomplete);
    }
}
