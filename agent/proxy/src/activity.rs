//! When a connection has been quiet for too long.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::limits::Limits;

/// Watches one connection. There are two ways to be too quiet, and requests under way are neither:
/// not to finish a head that was begun, and not to begin another.
///
/// hyper's own head timer can't tell the two apart: it runs on idle connections as well.
#[derive(Debug)]
pub(crate) struct Activity {
    head: Duration,
    idle: Duration,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug)]
struct State {
    under_way: usize,
    /// A head has begun to arrive, on an HTTP/1 connection.
    in_head: bool,
    /// Where this was last found false or true: `deadline` counts from here.
    since: Instant,
    /// HTTP/2 sends bytes that belong to no request.
    multiplexed: bool,
}

/// A request under way.
#[derive(Debug)]
pub(crate) struct UnderWay(Arc<Activity>);

impl Activity {
    /// A connection that was just accepted; its first request is expected at once.
    pub(crate) fn new(limits: &Limits) -> Self {
        let state =
            State { under_way: 0, in_head: true, since: Instant::now(), multiplexed: false };
        Self {
            head: limits.head,
            idle: limits.idle,
            state: Mutex::new(state),
            changed: Notify::new(),
        }
    }

    /// Bytes came from the caller.
    pub(crate) fn on_bytes(&self) {
        let mut state = self.lock();
        if state.under_way == 0 && !state.in_head && !state.multiplexed {
            state.in_head = true;
            state.since = Instant::now();
            self.changed.notify_one();
        }
    }

    /// A request's head is complete.
    pub(crate) fn on_request(self: &Arc<Self>, multiplexed: bool) -> UnderWay {
        let mut state = self.lock();
        state.under_way += 1;
        state.in_head = false;
        state.multiplexed = multiplexed;
        UnderWay(Arc::clone(self))
    }

    pub(crate) fn is_quiet(&self) -> bool {
        self.lock().under_way == 0
    }

    /// Completes once the connection has been quiet for too long.
    pub(crate) async fn too_quiet(&self) {
        loop {
            let deadline = self.deadline();
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                return;
            }
            tokio::select! {
                () = self.changed.notified() => {}
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {}
            }
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let state = self.lock();
        let patience = if state.in_head { self.head } else { self.idle };
        (state.under_way == 0).then(|| state.since + patience)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.under_way -= 1;
        state.since = Instant::now();
        self.0.changed.notify_one();
    }
}
