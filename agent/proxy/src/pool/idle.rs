//! Connections that wait for their next request.

use std::sync::Arc;
use std::time::{Duration, Instant};

use isthmus_http::h1::Conn;
use isthmus_http::io::Stream;
use parking_lot::Mutex;

/// Kept for each application, by each thread.
const MAX_IDLE: usize = 256;
/// Shorter than what common servers keep theirs for, so that they rarely close one under our hands.
const IDLE_TIME: Duration = Duration::from_secs(30);
/// Whoever has several and needed none of the rest for so long doesn't need them now.
const SPARE_AFTER: Duration = Duration::from_millis(50);
/// Above so many, not even its last one is left to a caller for whom others would open another.
const CROWDED: usize = 64;

/// A pool's own number: no two pools ever have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PoolId(pub(crate) u64);

/// Unused connections to one application. Its callers' pools share this room, or many callers would
/// keep an application busy with connections that nobody uses; a connection stays its pool's.
#[derive(Debug, Default)]
pub(crate) struct Idle {
    /// The longest unused first.
    waiting: Mutex<Vec<Waiting>>,
}

#[derive(Debug)]
struct Waiting {
    pool: PoolId,
    link: Arc<Conn<Stream>>,
    since: Instant,
}

impl Idle {
    pub(crate) fn put(&self, pool: PoolId, link: Arc<Conn<Stream>>) {
        let mut waiting = self.waiting.lock();
        if waiting.len() >= MAX_IDLE {
            waiting.remove(0);
        }
        waiting.push(Waiting { pool, link, since: Instant::now() });
    }

    /// The connection of this pool that was used last.
    pub(crate) fn take(&self, pool: PoolId) -> Option<Arc<Conn<Stream>>> {
        let mut waiting = self.waiting.lock();
        while let Some(at) = waiting.iter().rposition(|it| it.pool == pool) {
            let candidate = waiting.remove(at);
            if candidate.is_usable() {
                return Some(candidate.link);
            }
        }
        None
    }

    /// Closes what another pool can do without, for a pool that is about to open one: so there are
    /// hardly more of them than if all had shared theirs. Says whether it did.
    pub(crate) fn make_room(&self, pool: PoolId) -> bool {
        let mut waiting = self.waiting.lock();
        let now = Instant::now();
        let is_spare = |at: usize, it: &Waiting| {
            it.pool != pool
                && now.saturating_duration_since(it.since) >= SPARE_AFTER
                && waiting[at + 1..].iter().any(|other| other.pool == it.pool)
        };
        let mut spare = waiting.iter().enumerate().position(|(at, it)| is_spare(at, it));
        if waiting.len() >= CROWDED {
            spare = spare.or_else(|| waiting.iter().position(|it| it.pool != pool));
        }
        spare.map(|at| waiting.remove(at)).is_some()
    }

    /// Closes the oldest of another pool's, wanted or not. Says whether there was any.
    pub(crate) fn take_over(&self, pool: PoolId) -> bool {
        let mut waiting = self.waiting.lock();
        let other = waiting.iter().position(|it| it.pool != pool);
        other.map(|at| waiting.remove(at)).is_some()
    }

    /// Closes what a pool didn't use for a while. Says whether it has any left.
    pub(crate) fn sweep(&self, pool: PoolId) -> bool {
        let mut waiting = self.waiting.lock();
        waiting.retain(|it| it.pool != pool || it.is_usable());
        waiting.iter().any(|it| it.pool == pool)
    }
}

impl Waiting {
    fn is_usable(&self) -> bool {
        self.since.elapsed() < IDLE_TIME && self.link.is_silent()
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    const ONE: PoolId = PoolId(1);
    const OTHER: PoolId = PoolId(2);

    async fn link(server: SocketAddr) -> Arc<Conn<Stream>> {
        Arc::new(Conn::new(Stream::Plain(TcpStream::connect(server).await.unwrap())))
    }

    async fn listen() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    fn age(idle: &Idle, by: Duration) {
        idle.waiting.lock().iter_mut().for_each(|it| it.since -= by);
    }

    #[tokio::test]
    async fn a_pool_is_given_its_own_connections_and_the_newest_first() {
        let (_server, address) = listen().await;
        let idle = Idle::default();
        let (old, new) = (link(address).await, link(address).await);
        idle.put(ONE, Arc::clone(&old));
        idle.put(ONE, Arc::clone(&new));
        assert!(idle.take(OTHER).is_none());
        assert!(Arc::ptr_eq(&idle.take(ONE).unwrap(), &new));
        assert!(Arc::ptr_eq(&idle.take(ONE).unwrap(), &old));
        assert!(idle.take(ONE).is_none());
    }

    #[tokio::test]
    async fn many_callers_together_keep_no_more_than_one_does() {
        let (_server, address) = listen().await;
        let idle = Idle::default();
        let shared = link(address).await;
        for pool in 0..2 * MAX_IDLE as u64 {
            idle.put(PoolId(pool), Arc::clone(&shared));
        }
        assert_eq!(idle.waiting.lock().len(), MAX_IDLE);
        assert!(idle.take(PoolId(0)).is_none(), "the oldest have gone");
    }

    #[tokio::test]
    async fn who_opens_one_closes_what_others_do_not_need() {
        let (_server, address) = listen().await;
        let idle = Idle::default();
        for _ in 0..3 {
            idle.put(ONE, link(address).await);
        }
        assert!(!idle.make_room(OTHER), "they were used just now");
        age(&idle, SPARE_AFTER);
        assert!(!idle.make_room(ONE), "its own are no others'");
        assert!(idle.make_room(OTHER) && idle.make_room(OTHER));
        assert!(!idle.make_room(OTHER), "the last one stays");
        assert!(idle.take_over(OTHER) && !idle.take_over(OTHER));
        for pool in 10..10 + CROWDED as u64 {
            idle.put(PoolId(pool), link(address).await);
        }
        assert!(idle.make_room(OTHER));
    }
}
