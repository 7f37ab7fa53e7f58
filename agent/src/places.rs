//! Places that many ask for, and that no one of them may take from all others.
//!
//! Each door of the agent has so many places for what is under way at it. A source gets a part of them
//! only, and root, who has to be able to look at a host in trouble, some that nobody else gets.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use isthmus_model::HostId;
use isthmus_net::sock_diag::{Lookup, Protocol, SocketDiag};
use parking_lot::Mutex;

/// Key of a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Source {
    /// A user of this host.
    User(u32),
    /// Another member of the mesh, by whichever of its addresses.
    Host(HostId),
    /// Somebody else.
    Address(IpAddr),
}

const ROOT: Source = Source::User(0);

/// Limits on places.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub all: usize,
    /// For one source other than root.
    pub each: usize,
    /// Of all, for root only.
    pub root: usize,
}

/// Counts the places that are taken.
#[derive(Debug)]
pub(crate) struct Places {
    bounds: Bounds,
    taken: Mutex<Taken>,
}

/// Sources that have a place; bounded by their number.
#[derive(Debug, Default)]
struct Taken {
    all: usize,
    sources: HashMap<Source, usize>,
}

/// A place that is taken until this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    source: Source,
}

impl Source {
    /// Whoever is at `peer`, who can't have a user here. Who has one IPv6 address mostly has a whole
    /// network of them.
    #[must_use]
    pub(crate) fn remote(peer: IpAddr) -> Self {
        Self::Address(match peer.to_canonical() {
            IpAddr::V6(address) => {
                Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into()
            }
            v4 @ IpAddr::V4(_) => v4,
        })
    }
}

/// Tells the users of this host apart that are at the other end of sockets of the agent's.
#[derive(Debug)]
pub(crate) struct Users(Option<Mutex<SocketDiag>>);

impl Users {
    /// Without the kernel's help, all users of this host are one.
    #[must_use]
    pub(crate) fn open() -> Self {
        let opened = SocketDiag::open();
        if let Err(error) = &opened {
            tracing::warn!(%error, "the users of this host share their places at the agent's doors");
        }
        Self(opened.ok().map(Mutex::new))
    }

    /// The user of this host whose socket is `peer`, speaking to `own`; none if it isn't of this host.
    #[must_use]
    pub(crate) fn find(
        &self,
        protocol: Protocol,
        peer: SocketAddr,
        own: SocketAddr,
    ) -> Option<Source> {
        let mut sockets = self.0.as_ref()?.lock();
        let found = sockets.lookup(&Lookup { protocol, local: peer, remote: own });
        found.ok().flatten().filter(|it| !it.listening).map(|it| Source::User(it.uid))
    }
}

impl Places {
    #[must_use]
    pub(crate) fn new(bounds: Bounds) -> Arc<Self> {
        Arc::new(Self { bounds, taken: Mutex::default() })
    }

    /// A place, unless there are too many.
    pub(crate) fn take(self: &Arc<Self>, source: Source) -> Option<Place> {
        let Bounds { all, each, root } = self.bounds;
        let (all, each) = if source == ROOT { (all, all) } else { (all - root.min(all), each) };
        let mut taken = self.taken.lock();
        let of_source = taken.sources.get(&source).copied().unwrap_or(0);
        // What root has is of its own part first.
        let of_root = taken.sources.get(&ROOT).copied().unwrap_or(0);
        let counted = if source == ROOT { taken.all } else { taken.all - of_root.min(root) };
        if counted >= all || of_source >= each {
            return None;
        }
        taken.all += 1;
        taken.sources.insert(source, of_source + 1);
        Some(Place { places: Arc::clone(self), source })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock();
        taken.all -= 1;
        let remaining = taken.sources.get(&self.source).map_or(0, |count| count - 1);
        if remaining == 0 {
            taken.sources.remove(&self.source);
        } else {
            taken.sources.insert(self.source, remaining);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn one_source_cannot_take_everything_and_all_together_have_an_end() {
        let places = Places::new(Bounds { all: 3, each: 2, root: 0 });
        let [one, two] = ["10.0.0.1", "10.0.0.2"].map(|text| Source::remote(text.parse().unwrap()));
        let first = places.take(one).unwrap();
        let _second = places.take(one).unwrap();
        assert!(places.take(one).is_none());
        let _third = places.take(two).unwrap();
        assert!(places.take(two).is_none());
        drop(first);
        assert!(places.take(two).is_some());
        assert!(places.taken.lock().sources.len() <= 2);
    }

    #[test]
    fn some_places_are_roots_however_many_others_ask() {
        let places = Places::new(Bounds { all: 5, each: 1, root: 2 });
        let others: Vec<Place> =
            (1..=100).filter_map(|uid| places.take(Source::User(uid))).collect();
        assert_eq!(others.len(), 3);
        let root: Vec<Place> = (0..100).filter_map(|_| places.take(ROOT)).collect();
        assert_eq!(root.len(), 2);
        drop(others);
        assert!(places.take(Source::User(1)).is_some());
        drop(root);
        let root: Vec<Place> = (0..100).filter_map(|_| places.take(ROOT)).collect();
        assert_eq!(root.len(), 5, "what nobody uses, root may use");
        assert!(places.take(Source::User(1)).is_none());
    }

    #[test]
    fn root_in_its_own_places_takes_none_from_others() {
        let places = Places::new(Bounds { all: 4, each: 4, root: 2 });
        let _root = [places.take(ROOT).unwrap(), places.take(ROOT).unwrap()];
        let others: Vec<Place> = (0..9).filter_map(|_| places.take(Source::User(7))).collect();
        assert_eq!(others.len(), 2);
    }

    #[test]
    fn a_network_of_ipv6_addresses_is_one_source() {
        let source = |text: &str| Source::remote(text.parse().unwrap());
        assert_eq!(source("2001:db8::1"), source("2001:db8::ffff:0:0:1"));
        assert_ne!(source("2001:db8::1"), source("2001:db8:0:1::1"));
        assert_eq!(source("::ffff:192.0.2.1"), source("192.0.2.1"));
    }

    #[test]
    fn who_connects_from_this_host_is_a_user() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let own = listener.local_addr().unwrap();
        let client = TcpStream::connect(own).unwrap();
        let peer = client.local_addr().unwrap();
        let users = Users::open();
        let found = users.find(Protocol::Tcp, peer, own);
        assert_eq!(found, Some(Source::User(isthmus_net::process::own_user())));
        let elsewhere = "192.0.2.1:5000".parse().unwrap();
        assert_eq!(users.find(Protocol::Tcp, elsewhere, own), None);
    }
}
