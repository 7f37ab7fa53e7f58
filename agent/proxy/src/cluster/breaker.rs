//! Circuit breaker: the connections that callers of this host have to a service, and the requests that wait for one
//! (`max_connections` and `max_pending_requests`).
//!
//! Open connections count over all threads, whether in use or not. A pool (thread, caller, workload) without any
//! connection may open one in any case: otherwise it might wait for others that never close theirs. HTTP/2 needs no more
//! than that one. A request beyond the limits waits as long as for a connection to be made; a request that may not
//! wait gets 503 with the name of the limit. The retry budget takes the place of Envoy's `max_retries` unless that is set.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// Counts for one service.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    open: AtomicUsize,
    waiting: AtomicUsize,
    /// A connection was closed.
    freed: Notify,
}

/// What a request may have of a service.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room<'a> {
    pub(crate) gate: &'a Arc<Gate>,
    pub(crate) connections: usize,
    pub(crate) waiting: usize,
}

/// A connection that is open.
#[derive(Debug)]
pub(crate) struct Pass {
    gate: Arc<Gate>,
    /// Of the pool that it belongs to.
    own: Arc<AtomicUsize>,
}

/// A request that waits for a connection.
#[derive(Debug)]
pub(crate) struct Waiting<'a>(&'a Gate);

impl Gate {
    /// Connections that are open, and requests that wait for one.
    pub(crate) fn count(&self) -> (usize, usize) {
        (self.open.load(Ordering::Relaxed), self.waiting.load(Ordering::Relaxed))
    }

    /// Completes when a connection was closed.
    pub(crate) fn freed(&self) -> Notified<'_> {
        self.freed.notified()
    }
}

impl<'a> Room<'a> {
    /// Lets a connection be made, if there may be another one. `own` counts its pool's.
    pub(crate) fn open(self, own: &Arc<AtomicUsize>) -> Option<Pass> {
        let may = |open: usize| {
            (open < self.connections || own.load(Ordering::Relaxed) == 0).then_some(open + 1)
        };
        self.gate.open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, may).ok()?;
        own.fetch_add(1, Ordering::Relaxed);
        Some(Pass { gate: Arc::clone(self.gate), own: Arc::clone(own) })
    }

    /// Lets a request wait, unless too many do.
    pub(crate) fn wait(self) -> Option<Waiting<'a>> {
        let before = self.gate.waiting.fetch_add(1, Ordering::Relaxed);
        // Dropped at once if it is one too many.
        let waiting = Waiting(self.gate);
        (before < self.waiting).then_some(waiting)
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.own.fetch_sub(1, Ordering::Relaxed);
        self.gate.open.fetch_sub(1, Ordering::Relaxed);
        if self.gate.waiting.load(Ordering::Relaxed) > 0 {
            self.gate.freed.notify_one();
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Which limit of a breaker refused something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Overflow {
    Connections,
    Pending,
    Requests,
    Retries,
}

impl Overflow {
    pub(crate) const ALL: [Self; 4] =
        [Self::Connections, Self::Pending, Self::Requests, Self::Retries];

    /// What a refused request is told.
    pub(crate) const fn reason(self) -> &'static str {
        match self {
            Self::Connections => "too many connections to the service are open",
            Self::Pending => "too many requests to the service wait for a connection",
            Self::Requests => "too many requests to the service are under way",
            Self::Retries => "too many requests to the service are tried again",
        }
    }

    /// The key in `breaker`.
    pub(crate) const fn setting(self) -> &'static str {
        match self {
            Self::Connections => "max_connections",
            Self::Pending => "max_pending_requests",
            Self::Requests => "max_requests",
            Self::Retries => "max_retries",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_counted_over_all_pools_and_each_pool_gets_one() {
        let gate = Arc::new(Gate::default());
        let room = Room { gate: &gate, connections: 2, waiting: 1 };
        let (one, other) = (Arc::default(), Arc::default());
        let first = room.open(&one).unwrap();
        let _second = room.open(&one).unwrap();
        assert!(room.open(&one).is_none());
        let beyond = room.open(&other).expect("it has none");
        drop(beyond);
        assert!(room.open(&one).is_none());
        drop(first);
        assert!(room.open(&one).is_some());
    }

    #[test]
    fn so_many_wait_and_no_more() {
        let gate = Arc::new(Gate::default());
        let room = Room { gate: &gate, connections: 1, waiting: 1 };
        let first = room.wait().unwrap();
        assert!(room.wait().is_none());
        drop(first);
        assert!(room.wait().is_some());
        assert!(Room { waiting: 0, ..room }.wait().is_none());
    }

    #[tokio::test]
    async fn who_waits_hears_of_what_is_closed() {
        let gate = Arc::new(Gate::default());
        let room = Room { gate: &gate, connections: 1, waiting: 1 };
        let own = Arc::default();
        let open = room.open(&own).unwrap();
        let _waiting = room.wait().unwrap();
        let hears = gate.freed();
        drop(open);
        hears.await;
    }
}
