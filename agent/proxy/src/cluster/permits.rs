//! Fair limits: a fixed number of places for connections and requests, of which no caller can take all.
//!
//! A caller may take a place while it has fewer than are free. So one alone gets half of them (of 4,096 connections, or
//! of 8,192 requests under way), two get a third each, and whoever comes next finds some, without anything to configure.
//!
//! In the mesh each address is one caller. On the internet one machine has a whole IPv6 /64, and whoever rents a network
//! a whole /48: a /64 counts as one caller, and a /48 gets three quarters.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// Of a network, for each place that is free.
const NETWORK_SHARE: usize = 3;

/// Key by which callers are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Caller {
    address: IpAddr,
    /// Its owner.
    network: Option<IpAddr>,
}

impl Caller {
    /// A member of the mesh.
    pub(crate) const fn member(address: IpAddr) -> Self {
        Self { address, network: None }
    }

    /// A client of a gateway.
    pub(crate) fn visitor(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V6(address) => {
                let first = |bits: u32| {
                    IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << (128 - bits))))
                };
                Self { address: first(64), network: Some(first(48)) }
            }
            address @ IpAddr::V4(_) => Self { address, network: None },
        }
    }
}

/// All places of a proxy, and who has them.
#[derive(Debug)]
pub(crate) struct FairLimit {
    limit: usize,
    taken: Mutex<Taken>,
    /// One was given back.
    freed: Notify,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    /// Of those that have any.
    by_caller: HashMap<IpAddr, usize>,
    by_network: HashMap<IpAddr, usize>,
}

/// A place that is given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    limit: Arc<FairLimit>,
    caller: Caller,
}

impl FairLimit {
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, taken: Mutex::default(), freed: Notify::new() })
    }

    /// A place for this caller; none if it has its share already, or all are taken.
    pub(crate) fn take(self: &Arc<Self>, caller: Caller) -> Option<Permit> {
        let mut taken = self.taken.lock();
        let free = self.limit.saturating_sub(taken.all);
        let has = |of: &HashMap<IpAddr, usize>, key| of.get(&key).copied().unwrap_or(0);
        let of_network = caller.network.map_or(0, |network| has(&taken.by_network, network));
        if has(&taken.by_caller, caller.address) >= free || of_network >= NETWORK_SHARE * free {
            return None;
        }
        taken.all += 1;
        *taken.by_caller.entry(caller.address).or_default() += 1;
        if let Some(network) = caller.network {
            *taken.by_network.entry(network).or_default() += 1;
        }
        Some(Permit { limit: Arc::clone(self), caller })
    }

    /// Waits for a place.
    pub(crate) async fn wait_for(self: &Arc<Self>, caller: Caller) -> Permit {
        loop {
            // Listens before it looks, so that nothing happens in between.
            let mut freed = std::pin::pin!(self.freed.notified());
            freed.as_mut().enable();
            if let Some(permit) = self.take(caller) {
                return permit;
            }
            freed.await;
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut taken = self.limit.taken.lock();
        taken.all = taken.all.saturating_sub(1);
        less_one(&mut taken.by_caller, self.caller.address);
        if let Some(network) = self.caller.network {
            less_one(&mut taken.by_network, network);
        }
        drop(taken);
        self.limit.freed.notify_waiters();
    }
}

fn less_one(counts: &mut HashMap<IpAddr, usize>, of: IpAddr) {
    if let Some(own) = counts.get_mut(&of) {
        *own = own.saturating_sub(1);
        if *own == 0 {
            counts.remove(&of);
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
    known: HashMap<IpAddr, Weak<Asker>>,
    networks: HashMap<IpAddr, Weak<AtomicUsize>>,
    /// When there are so many, those that are gone are forgotten.
    sweep_at: usize,
}

#[derive(Debug)]
struct Asker {
    requests: Arc<Requests>,
    count: AtomicUsize,
    /// All of its network's.
    network: Option<Arc<AtomicUsize>>,
}

/// A connection's handle on its caller's requests.
#[derive(Debug)]
pub(crate) struct RequestQuota(Arc<Asker>);

/// A request's place.
#[derive(Debug)]
pub(crate) struct RequestPermit(Arc<Asker>);

impl Requests {
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, all: AtomicUsize::new(0), callers: Mutex::default() })
    }

    /// For a connection of this caller.
    pub(crate) fn quota(self: &Arc<Self>, caller: Caller) -> RequestQuota {
        let mut callers = self.callers.lock();
        if let Some(known) = callers.known.get(&caller.address).and_then(Weak::upgrade) {
            return RequestQuota(known);
        }
        if callers.known.len() >= callers.sweep_at {
            callers.known.retain(|_, caller| caller.strong_count() > 0);
            callers.networks.retain(|_, network| network.strong_count() > 0);
            callers.sweep_at = 2 * callers.known.len() + 16;
        }
        let network = caller.network.map(|network| {
            let known = callers.networks.get(&network).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let new = Arc::default();
                callers.networks.insert(network, Arc::downgrade(&new));
                new
            })
        });
        let (requests, count) = (Arc::clone(self), AtomicUsize::new(0));
        let new = Arc::new(Asker { requests, count, network });
        callers.known.insert(caller.address, Arc::downgrade(&new));
        RequestQuota(new)
    }
}

impl RequestQuota {
    /// A place for a request; none if the caller has its share already, or all are taken.
    pub(crate) fn take(&self) -> Option<RequestPermit> {
        let requests = &self.0.requests;
        let all = requests.all.fetch_add(1, Ordering::Relaxed);
        let own = self.0.count.fetch_add(1, Ordering::Relaxed);
        let network = self.0.network.as_ref();
        let of_network = network.map_or(0, |count| count.fetch_add(1, Ordering::Relaxed));
        // Dropped at once if there is none.
        let permit = RequestPermit(Arc::clone(&self.0));
        let free = requests.limit.saturating_sub(all);
        (own < free && of_network < NETWORK_SHARE * free).then_some(permit)
    }
}

impl Drop for RequestPermit {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::Relaxed);
        if let Some(network) = &self.0.network {
            network.fetch_sub(1, Ordering::Relaxed);
        }
        self.0.requests.all.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const GREEDY: Caller = member(Ipv4Addr::new(100, 64, 0, 1));
    const MODEST: Caller = member(Ipv4Addr::new(100, 64, 0, 2));

    const fn member(address: Ipv4Addr) -> Caller {
        Caller::member(IpAddr::V4(address))
    }

    /// Somebody of 2001:db8:NETWORK:SUBNET::/64.
    fn visitor(network: u16, subnet: u16, host: u16) -> Caller {
        let address = Ipv6Addr::new(0x2001, 0xdb8, network, subnet, 0, 0, 0, host);
        Caller::visitor(IpAddr::V6(address))
    }

    fn take_all(limit: &Arc<FairLimit>, caller: Caller) -> Vec<Permit> {
        std::iter::from_fn(|| limit.take(caller)).collect()
    }

    #[test]
    fn one_64_is_one_caller_and_one_48_does_not_take_all() {
        let limit = FairLimit::new(10_240);
        let mut taken: Vec<Permit> = Vec::new();
        for host in 0..6_000 {
            taken.extend(limit.take(visitor(1, 1, host)));
        }
        assert_eq!(taken.len(), 5_120);
        for subnet in 0..6_000 {
            taken.extend(limit.take(visitor(1, subnet, 1)));
        }
        assert_eq!(taken.len(), 7_680);
        let other = take_all(&limit, visitor(2, 1, 1));
        assert_eq!(other.len(), 1_280);
        // By IPv4 each is one, also where the socket speaks both.
        let mapped = |last| Ipv4Addr::new(192, 0, 2, last).to_ipv6_mapped().into();
        assert!(limit.take(Caller::visitor(mapped(1))).is_some());
        assert_ne!(Caller::visitor(mapped(1)), Caller::visitor(mapped(2)));
        drop((taken, other));
        let left = limit.taken.lock();
        assert!(left.by_caller.is_empty() && left.by_network.is_empty());
    }

    #[test]
    fn requests_of_one_64_or_48_do_not_take_all() {
        let requests = Requests::new(100);
        let hosts: Vec<RequestQuota> =
            (0..200).map(|host| requests.quota(visitor(1, 1, host))).collect();
        let mut taken: Vec<RequestPermit> = hosts.iter().filter_map(RequestQuota::take).collect();
        assert_eq!(taken.len(), 50);
        let quotas: Vec<RequestQuota> =
            (2..200).map(|subnet| requests.quota(visitor(1, subnet, 1))).collect();
        taken.extend(quotas.iter().filter_map(RequestQuota::take));
        assert_eq!(taken.len(), 75);
        assert!(requests.quota(visitor(2, 1, 1)).take().is_some());
        drop((taken, hosts, quotas));
        assert!(requests.callers.lock().networks.values().all(|it| it.upgrade().is_none()));
    }

    #[tokio::test]
    async fn who_waits_for_a_place_gets_the_one_that_it_may_have() {
        let limit = FairLimit::new(2);
        let held = limit.take(GREEDY).unwrap();
        let mut waits = Box::pin(limit.wait_for(GREEDY));
        assert!(futures_now(&mut waits).is_none(), "it has its share");
        let other = limit.wait_for(MODEST).await;
        drop(held);
        drop(waits.await);
        drop(other);
    }

    fn futures_now<T>(future: &mut (impl Future<Output = T> + Unpin)) -> Option<T> {
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        match std::pin::Pin::new(future).poll(&mut cx) {
            std::task::Poll::Ready(done) => Some(done),
            std::task::Poll::Pending => None,
        }
    }

    #[test]
    fn one_caller_gets_half_and_leaves_some_to_everybody_else() {
        let limit = FairLimit::new(4096);
        let greedy = take_all(&limit, GREEDY);
        assert_eq!(greedy.len(), 2048);
        let modest = take_all(&limit, MODEST);
        assert_eq!(modest.len(), 1024);
        for last in 3..=10 {
            assert!(limit.take(member(Ipv4Addr::new(100, 64, 0, last))).is_some());
        }
    }

    #[test]
    fn what_is_given_back_can_be_taken_again_and_callers_are_forgotten() {
        let limit = FairLimit::new(8);
        let mut greedy = take_all(&limit, GREEDY);
        assert!(limit.take(GREEDY).is_none());
        greedy.pop();
        assert!(limit.take(GREEDY).is_some());
        drop(greedy);
        assert!(limit.taken.lock().by_caller.is_empty());
        assert_eq!(limit.taken.lock().all, 0);
    }

    #[test]
    fn requests_are_shared_out_likewise_over_all_connections_of_a_caller() {
        let requests = Requests::new(100);
        let (one, same, other) =
            (requests.quota(GREEDY), requests.quota(GREEDY), requests.quota(MODEST));
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
            drop(requests.quota(member(Ipv4Addr::from(number))));
        }
        assert!(requests.callers.lock().known.len() <= 16);
    }

    #[test]
    fn all_callers_together_never_get_more_than_there_are() {
        let limit = FairLimit::new(100);
        let callers = (1..=255).map(|last| member(Ipv4Addr::new(100, 64, 1, last)));
        let taken: Vec<Permit> = callers.flat_map(|caller| take_all(&limit, caller)).collect();
        assert_eq!(taken.len(), 100);
    }
}
