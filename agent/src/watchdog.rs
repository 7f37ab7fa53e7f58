//! Tells systemd that the agent works, so that one that hangs is started again: the control plane does as
//! long as this runs, the data plane as long as its node can be locked and each of its threads turns.

use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{sleep, timeout};

use crate::status::Shared;

/// Signs of life in the time after which systemd gives up: one that is late is no reason to.
const SIGNS: u32 = 4;

/// Runs for ever, where systemd wants to be told (`WatchdogSec=`).
pub(crate) async fn keep(shared: Arc<Shared>) {
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    let mut before = Vec::new();
    loop {
        sleep(limit / SIGNS).await;
        match turns(&shared, limit / SIGNS).await {
            Some(turns) if have_turned(&before, &turns) => before = turns,
            Some(_) | None => {
                tracing::error!(
                    "a thread of the data plane hangs: systemd isn't told that all is well"
                );
                continue;
            }
        }
        if let Err(error) = sd_notify::notify(&[NotifyState::Watchdog]) {
            tracing::debug!(%error, "couldn't notify systemd");
        }
    }
}

/// Loop counts of the data plane's threads; none without a data plane.
async fn turns(shared: &Shared, patience: Duration) -> Option<Vec<u64>> {
    let Some(packets) = shared.packets() else { return Some(Vec::new()) };
    timeout(patience, packets.turns()).await.ok()?.ok()
}

/// Each was woken when it was asked before. Another data plane begins anew.
fn have_turned(before: &[u64], now: &[u64]) -> bool {
    before.len() != now.len() || before.iter().zip(now).all(|(before, now)| before != now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_does_not_turn_is_noticed() {
        assert!(have_turned(&[], &[]), "there is no data plane");
        assert!(have_turned(&[], &[0, 0]), "it has just begun");
        assert!(have_turned(&[0, 7], &[1, 9]));
        assert!(!have_turned(&[1, 9], &[2, 9]));
        assert!(have_turned(&[2, 9], &[0, 0]), "another data plane");
    }
}
