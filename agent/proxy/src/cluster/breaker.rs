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
pub(crate) struct ConnectionCounts {
    open: AtomicUsize,
    waiting: AtomicUsize,
    /// A connection was closed.
    freed: Notify,
}

/// A request's share of a service's connections.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Allowance<'a> {
    pub(crate) counts: &'a Arc<ConnectionCounts>,
    pub(crate) connections: usize,
    pub(crate) waiting: usize,
}

/// A connection that is open.
#[derive(Debug)]
pub(crate) struct ConnectionPermit {
    counts: Arc<ConnectionCounts>,
    /// Of the pool that it belongs to.
    own: Arc<AtomicUsize>,
}

/// A request that waits for a connection.
#[derive(Debug)]
pub(crate) struct Waiting<'a>(&'a ConnectionCounts);

impl ConnectionCounts {
    /// Connections that are open, and requests that wait for one.
    pub(crate) fn count(&self) -> (usize, usize) {
        (self.open.load(Ordering::Relaxed), self.waiting.load(Ordering::Relaxed))
    }

    /// Completes when a connection was closed.
    pub(crate) fn freed(&self) -> Notified<'_> {
        self.freed.notified()
    }
}

impl<'a> Allowance<'a> {
    /// Lets a connection be made, if there may be another one. `own` counts its pool's.
    pub(crate) fn open(self, own: &Arc<AtomicUsize>) -> Option<ConnectionPermit> {
        let may = |open: usize| {
            (open < self.connections || own.load(Ordering::Relaxed) == 0).then_some(open + 1)
        };
        self.counts.open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, may).ok()?;
        own.fetch_add(1, Ordering::Relaxed);
        Some(ConnectionPermit { counts: Arc::clone(self.counts), own: Arc::clone(own) })
    }

    /// Lets a request wait, unless too many do.
    pub(crate) fn wait(self) -> Option<Waiting<'a>> {
        let before = self.counts.waiting.fetch_add(1, Ordering::Relaxed);
        // Dropped at once if it is one too many.
        let waiting = Waiting(self.counts);
        (before < self.waiting).then_some(waiting)
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.own.fetch_sub(1, Ordering::Relaxed);
        self.counts.open.fetch_sub(1, Ordering::Relaxed);
        if self.counts.waiting.load(Ordering::Relaxed) > 0 {
            self.counts.freed.notify_one();
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The breaker limit that refused something.
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

    /// Reason sent with a refusal.
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
        let counts = Arc::new(ConnectionCounts::default());
        let allowance = Allowance { counts: &counts, connections: 2, waiting: 1 };
        let (one, other) = (Arc::default(), Arc::default());
        let first = allowance.open(&one).unwrap();
        let _second = allowance.open(&one).unwrap();
        assert!(allowance.open(&one).is_none());
        let beyond = allowance.open(&other).expect("it has none");
        drop(beyond);
        assert!(allowance.open(&one).is_none());
        drop(first);
        assert!(allowance.open(&one).is_some());
    }

    #[test]
    fn so_many_wait_and_no_more() {
        let counts = Arc::new(ConnectionCounts::default());
        let allowance = Allowance { counts: &counts, connections: 1, waiting: 1 };
        let first = allowance.wait().unwrap();
        assert!(allowance.wait().is_none());
        drop(first);
        assert!(allowance.wait().is_some());
        assert!(Allowance { waiting: 0, ..allowance }.wait().is_none());
    }

    #[tokio::test]
    async fn who_waits_hears_of_what_is_closed() {
        let counts = Arc::new(ConnectionCounts::default());
        let allowance = Allowance { counts: &counts, connections: 1, waiting: 1 };
        let own = Arc::default();
        let open = allowance.open(&own).unwrap();
        let _waiting = allowance.wait().unwrap();
        let hears = counts.freed();
        drop(open);
        hears.await;
    }
}
