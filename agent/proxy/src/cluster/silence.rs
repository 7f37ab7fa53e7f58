//! Hosts that don't answer, as the data plane finds: what is asked of them waits no longer than it must.

use std::collections::HashMap;
use std::future::pending;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use isthmus_model::HostId;
use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use tokio::sync::Notify;
use tokio::time::sleep_until;

/// A request to a host that is silent already may find it back.
const PROMPT: Duration = Duration::from_millis(250);
/// A request that began so long before the silence has surely arrived.
const ARRIVED: Duration = Duration::from_secs(1);
/// Such a request waits for the silence to end, but not for ever.
const PATIENCE: Duration = Duration::from_secs(10);

/// Hosts that don't answer.
#[derive(Debug, Default)]
pub struct Silence {
    since: RwLock<HashMap<HostId, Instant>>,
    changes: AtomicU64,
    changed: Notify,
}

impl Silence {
    /// A host has been silent since then.
    pub fn begin(&self, host: HostId, since: Instant) {
        self.write().insert(host, since);
        self.note();
    }

    /// A host answers, or isn't there any more.
    pub fn end(&self, host: HostId) {
        if self.write().remove(&host).is_some() {
            self.note();
        }
    }

    /// These are all that are silent.
    pub fn replace(&self, all: impl IntoIterator<Item = (HostId, Instant)>) {
        let mut since = self.write();
        let before = std::mem::take(&mut *since);
        // Those that are known keep their time: it was measured better.
        since.extend(all.into_iter().map(|(host, at)| (host, *before.get(&host).unwrap_or(&at))));
        let is_same = *since == before;
        drop(since);
        if !is_same {
            self.note();
        }
    }

    /// All that are silent, in order.
    #[must_use]
    pub fn hosts(&self) -> Vec<(HostId, Instant)> {
        let mut hosts: Vec<_> = self.read().iter().map(|(host, since)| (*host, *since)).collect();
        hosts.sort_unstable();
        hosts
    }

    /// Moves whenever somebody falls silent or answers.
    pub(crate) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    pub(crate) fn since(&self, host: HostId) -> Option<Instant> {
        self.read().get(&host).copied()
    }

    /// Completes when something that was begun then, of a host, isn't worth waiting for any longer;
    /// says since when the host is silent. Never where there is no host.
    pub(crate) async fn lose(&self, host: Option<HostId>, begun: Instant) -> Instant {
        let Some(host) = host else { return pending().await };
        loop {
            // Listens before it looks, so that nothing happens in between.
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            let Some(since) = self.since(host) else {
                changed.await;
                continue;
            };
            let has_arrived = since.saturating_duration_since(begun) > ARRIVED;
            let until = if has_arrived { since + PATIENCE } else { begun + PROMPT };
            // Boxed, since nearly nobody gets here.
            let over = Box::pin(sleep_until(until.into()));
            tokio::select! {
                () = over => return since,
                () = changed => {}
            }
        }
    }

    fn note(&self) {
        self.changes.fetch_add(1, Ordering::Release);
        self.changed.notify_waiters();
    }

    fn read(&self) -> RwLockReadGuard<'_, HashMap<HostId, Instant>> {
        self.since.read()
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashMap<HostId, Instant>> {
        self.since.write()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: HostId = HostId(2);

    #[tokio::test(start_paused = true)]
    async fn what_has_arrived_waits_longer_than_what_has_not() {
        let silence = Silence::default();
        let now = tokio::time::Instant::now().into_std();
        silence.begin(HOST, now);
        let began = tokio::time::Instant::now();
        assert_eq!(silence.lose(Some(HOST), now).await, now);
        assert_eq!(began.elapsed(), PROMPT);
        let early = now - 2 * ARRIVED;
        silence.lose(Some(HOST), early).await;
        assert_eq!(began.elapsed(), PATIENCE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_that_answers_again_is_waited_for() {
        let silence = Silence::default();
        let now = tokio::time::Instant::now().into_std();
        silence.begin(HOST, now);
        let waits = tokio::time::timeout(Duration::from_secs(60), silence.lose(Some(HOST), now));
        let answers = async { silence.end(HOST) };
        assert!(tokio::join!(waits, answers).0.is_err());
        assert_eq!(silence.hosts(), []);
    }

    #[test]
    fn replacing_changes_only_what_is_new() {
        let silence = Silence::default();
        let now = Instant::now();
        silence.begin(HOST, now);
        let changes = silence.changes();
        silence.replace([(HOST, now + PROMPT)]);
        assert_eq!((silence.changes(), silence.since(HOST)), (changes, Some(now)));
        silence.replace([]);
        assert_eq!((silence.changes(), silence.since(HOST)), (changes + 1, None));
    }
}
