//! Keeps the guard standing, whoever takes it away.

use std::sync::Arc;
use std::time::Duration;

use isthmus_model::{Code, Problem};
use isthmus_net::netlink::NetlinkError;
use isthmus_net::ruleset::{RulesetChange, RulesetMonitor};
use tokio::time::{sleep, timeout};

use super::Standing;
use super::taken::Taken;
use crate::status::Shared;

/// Whoever loads rules does it in several steps, and it takes the kernel a moment to tell them.
const SETTLE: Duration = Duration::from_millis(50);
/// Between two attempts, however often it is taken away: the network must go on.
const PAUSE: Duration = Duration::from_millis(200);
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The code of the problem that there is no guard.
pub(crate) const MISSING: Code = Code::GuardMissing;
const TAKEN: Code = Code::GuardTaken;
const BLIND: Code = Code::GuardUnwatched;

/// Keeps it until `stop` completes; the guard stays then. `monitor` has listened since before it was
/// raised.
pub(crate) async fn keep(
    shared: Arc<Shared>,
    standing: Arc<Standing>,
    monitor: Result<RulesetMonitor, NetlinkError>,
    stop: impl Future<Output = ()>,
) {
    let mut keeper = Keeper { shared: Arc::clone(&shared), standing, taken: None };
    tokio::select! {
        () = keeper.keep(monitor) => {}
        () = stop => {}
    }
    for code in [TAKEN, BLIND] {
        shared.problems.set(code, None);
    }
}

struct Keeper {
    shared: Arc<Shared>,
    standing: Arc<Standing>,
    taken: Option<Taken>,
}

impl Keeper {
    async fn keep(&mut self, mut monitor: Result<RulesetMonitor, NetlinkError>) {
        loop {
            match monitor {
                Ok(monitor) => {
                    self.shared.problems.set(BLIND, None);
                    self.follow(monitor).await;
                }
                Err(error) => {
                    let error = format!("{:#}", anyhow::Error::new(error));
                    self.shared.problems.raise(blind(&error));
                }
            }
            sleep(LOOK_EVERY).await;
            monitor = RulesetMonitor::start(&self.standing.table().await);
            // What happened before somebody listened.
            self.restore().await;
        }
    }

    /// Until nothing is told any more.
    async fn follow(&mut self, mut monitor: RulesetMonitor) {
        loop {
            match timeout(LOOK_EVERY, monitor.changed()).await {
                Ok(Ok(change)) if self.is_ours(&change) => {}
                Ok(Ok(change)) => {
                    sleep(SETTLE).await;
                    // Where the kernel lost messages, it may be as it was.
                    if self.restore().await && change.socket.is_some() {
                        self.note(change).await;
                    }
                    sleep(PAUSE).await;
                }
                Ok(Err(error)) => {
                    return tracing::warn!(%error, "the kernel tells no changes of its filter");
                }
                Err(_) => self.look_after().await,
            }
        }
    }

    fn is_ours(&self, change: &RulesetChange) -> bool {
        change.socket.is_some_and(|process| self.standing.nft.ran_as(process))
    }

    /// What couldn't be raised may be possible now, and what is long over needn't be told.
    async fn look_after(&mut self) {
        if self.shared.problems.has(MISSING) {
            self.restore().await;
        }
        if self.taken.as_ref().is_some_and(Taken::is_over) {
            self.taken = None;
            self.shared.problems.set(TAKEN, None);
        }
    }

    async fn restore(&self) -> bool {
        let restored = self.standing.restore().await;
        self.shared.problems.set(MISSING, restored.as_ref().err().map(missing));
        restored.is_ok()
    }

    async fn note(&mut self, by: RulesetChange) {
        let taken = Taken::after(self.taken.as_ref(), by);
        let table = self.standing.table().await;
        self.shared.problems.raise(taken.problem(TAKEN, "the overlay's filter", &table));
        self.taken = Some(taken);
    }
}

/// That there is no guard.
#[must_use]
pub(crate) fn missing(error: &anyhow::Error) -> Problem {
    Problem::new(
        MISSING,
        format!("overlay addresses aren't guarded against the underlay: {error:#}"),
        "`apt-get install nftables` (or dnf), and let the agent use it (CAP_NET_ADMIN)",
    )
}

fn blind(error: &str) -> Problem {
    Problem::new(
        BLIND,
        format!(
            "whether the overlay's filter still stands isn't told: {error}; it is raised anew now and then"
        ),
        "let the agent listen to nftables (CAP_NET_ADMIN)",
    )
}

#[cfg(test)]
mod tests {
    use isthmus_net::testing::in_netns;
    use tokio::process::Command;

    use super::*;
    use crate::guard::Guard;
    use crate::own_ports::OwnPorts;
    use crate::owners::SharedCgroups;
    use crate::settings::Settings;

    async fn nft(arguments: &[&str]) -> bool {
        Command::new("nft").args(arguments).output().await.unwrap().status.success()
    }

    #[test]
    fn what_is_flushed_before_anybody_keeps_it_is_put_back() {
        in_netns(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let settings = Settings::default();
                let prefixes = ["fd00:1:2::/48".parse().unwrap()];
                let guard = Guard::of(&settings, &OwnPorts::of(&settings), &prefixes);
                let table = guard.table();
                let monitor = RulesetMonitor::start(&table);
                let (standing, raised) = Standing::raise(guard).await;
                raised.unwrap();
                assert!(nft(&["flush", "ruleset"]).await);

                let shared = Shared::new(settings, SharedCgroups::default());
                let is_back = async {
                    while !nft(&["list", "table", "inet", &table]).await
                        || !shared.problems.has(TAKEN)
                    {
                        sleep(PAUSE).await;
                    }
                };
                let keeping = keep(Arc::clone(&shared), Arc::new(standing), monitor, is_back);
                // By what the kernel has told, not by a later look.
                timeout(LOOK_EVERY, keeping).await.unwrap();
            });
        });
    }
}
