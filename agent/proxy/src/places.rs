//! Places for connections, so that no caller takes them all.
//!
//! A caller may take a place while it has fewer than are free. So one alone gets half of them, two a
//! third each, and whoever comes next finds some, without anything to configure.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// All places of a proxy, and who has them.
#[derive(Debug)]
pub(crate) struct Places {
    limit: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    /// Of those that have any.
    by_caller: HashMap<IpAddr, usize>,
}

/// A place that is given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    caller: IpAddr,
}

impl Places {
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, taken: Mutex::default() })
    }

    /// A place for a connection of this caller; none if it has its share already, or all are taken.
    pub(crate) fn take(self: &Arc<Self>, caller: IpAddr) -> Option<Place> {
        let mut taken = self.lock();
        let free = self.limit.saturating_sub(taken.all);
        if taken.by_caller.get(&caller).copied().unwrap_or(0) >= free {
            return None;
        }
        taken.all += 1;
        *taken.by_caller.entry(caller).or_default() += 1;
        Some(Place { places: Arc::clone(self), caller })
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        taken.all = taken.all.saturating_sub(1);
        if let Some(own) = taken.by_caller.get_mut(&self.caller) {
            *own = own.saturating_sub(1);
            if *own == 0 {
                taken.by_caller.remove(&self.caller);
            }
        }
    }
}

/// Places for requests, likewise. Taking one is cheap: each connection knows its caller's count.
#[derive(Debug)]
pub(crate) struct Requests {
    limit: usize,
    all: AtomicUsize,
    callers: Mutex<Callers>,
}

/// Those that have connections, and some that had.
#[derive(Debug, Default)]
struct Callers {
    known: HashMap<IpAddr, Weak<Caller>>,
    /// When there are so many, those that are gone are forgotten.
    sweep_at: usize,
}

#[derive(Debug)]
struct Caller {
    requests: Arc<Requests>,
    count: AtomicUsize,
}

/// What a connection knows of its caller's requests.
#[derive(Debug)]
pub(crate) struct Share(Arc<Caller>);

/// A request's place.
#[derive(Debug)]
pub(crate) struct RequestPlace(Arc<Caller>);

impl Requests {
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, all: AtomicUsize::new(0), callers: Mutex::default() })
    }

    /// For a connection of this caller.
    pub(crate) fn share(self: &Arc<Self>, caller: IpAddr) -> Share {
        let mut callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = callers.known.get(&caller).and_then(Weak::upgrade) {
            return Share(known);
        }
        if callers.known.len() >= callers.sweep_at {
            callers.known.retain(|_, caller| caller.strong_count() > 0);
            callers.sweep_at = 2 * callers.known.len() + 16;
        }
        let new = Arc::new(Caller { requests: Arc::clone(self), count: AtomicUsize::new(0) });
        callers.known.insert(caller, Arc::downgrade(&new));
        Share(new)
    }
}

impl Share {
    /// A place for a request; none if the caller has its share already, or all are taken.
    pub(crate) fn take(&self) -> Option<RequestPlace> {
        let requests = &self.0.requests;
        let all = requests.all.fetch_add(1, Ordering::Relaxed);
        let own = self.0.count.fetch_add(1, Ordering::Relaxed);
        // Dropped at once if there is none.
        let place = RequestPlace(Arc::clone(&self.0));
        (own < requests.limit.saturating_sub(all)).then_some(place)
    }
}

impl Drop for RequestPlace {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::Relaxed);
        self.0.requests.all.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const GREEDY: IpAddr = IpAddr::V4(Ipv4Addr::new(100, 64, 0, 1));
    const MODEST: IpAddr = IpAddr::V4(Ipv4Addr::new(100, 64, 0, 2));

    fn take_all(places: &Arc<Places>, caller: IpAddr) -> Vec<Place> {
        std::iter::from_fn(|| places.take(caller)).collect()
    }

    #[test]
    fn one_caller_gets_half_and_leaves_some_to_everybody_else() {
        let places = Places::new(4096);
        let greedy = take_all(&places, GREEDY);
        assert_eq!(greedy.len(), 2048);
        let modest = take_all(&places, MODEST);
        assert_eq!(modest.len(), 1024);
        for last in 3..=10 {
            assert!(places.take(IpAddr::V4(Ipv4Addr::new(100, 64, 0, last))).is_some());
        }
    }

    #[test]
    fn what_is_given_back_can_be_taken_again_and_callers_are_forgotten() {
        let places = Places::new(8);
        let mut greedy = take_all(&places, GREEDY);
        assert!(places.take(GREEDY).is_none());
        greedy.pop();
        assert!(places.take(GREEDY).is_some());
        drop(greedy);
        assert!(places.lock().by_caller.is_empty());
        assert_eq!(places.lock().all, 0);
    }

    #[test]
    fn requests_are_shared_out_likewise_over_all_connections_of_a_caller() {
        let requests = Requests::new(100);
        let (one, same, other) =
            (requests.share(GREEDY), requests.share(GREEDY), requests.share(MODEST));
        let greedy: Vec<_> = std::iter::from_fn(|| one.take()).collect();
        assert_eq!(greedy.len(), 50);
        assert!(same.take().is_none());
        assert_eq!(std::iter::from_fn(|| other.take()).collect::<Vec<_>>().len(), 25);
        drop(greedy);
        assert!(same.take().is_some());
        drop((one, same, other));
        assert_eq!(requests.all.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn callers_without_connections_are_forgotten() {
        let requests = Requests::new(100);
        for number in 0..1000_u32 {
            drop(requests.share(IpAddr::V4(Ipv4Addr::from(number))));
        }
        assert!(requests.callers.lock().unwrap().known.len() <= 16);
    }

    #[test]
    fn all_callers_together_never_get_more_than_there_are() {
        let places = Places::new(100);
        let callers = (1..=255).map(|last| IpAddr::V4(Ipv4Addr::new(100, 64, 1, last)));
        let taken: Vec<Place> = callers.flat_map(|caller| take_all(&places, caller)).collect();
        assert_eq!(taken.len(), 100);
    }
}
