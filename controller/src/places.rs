//! Places that nobody can take all of.
//!
//! Whoever has his share, and comes again, takes the place of his own oldest guest. Where all places are
//! taken, the oldest guest goes of whoever has most. So a newcomer finds a place as long as somebody has two
//! more than he, and is in nobody's way who has fewer. Who has only just come goes for nobody else.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;

/// Places for guests of `K`.
#[derive(Debug)]
pub(crate) struct Places<K> {
    inner: Mutex<Inner<K>>,
    limits: Limits,
}

/// Their number.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// For all.
    pub(crate) all: usize,
    /// For one.
    pub(crate) each: usize,
    /// Before that, nobody has to go for one of his own kind, or of another that has about as many.
    pub(crate) stays: Duration,
}

#[derive(Debug)]
struct Inner<K> {
    guests: HashMap<K, VecDeque<Guest>>,
    count: usize,
    next: u64,
}

#[derive(Debug)]
struct Guest {
    number: u64,
    since: Instant,
    /// Dropped where the guest has to go.
    _stay: oneshot::Sender<()>,
}

/// A guest's place; dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Place<K: Eq + Hash> {
    places: Arc<Places<K>>,
    who: K,
    number: u64,
    /// Ends once another has taken the place.
    pub(crate) taken: oneshot::Receiver<()>,
}

/// All who could go have only just come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full;

impl<K: Clone + Eq + Hash> Places<K> {
    pub(crate) fn new(limits: Limits) -> Arc<Self> {
        let inner = Inner { guests: HashMap::new(), count: 0, next: 0 };
        Arc::new(Self { inner: Mutex::new(inner), limits })
    }

    /// A guest comes.
    pub(crate) fn take(self: &Arc<Self>, who: K, now: Instant) -> Result<Place<K>, Full> {
        let mut inner = self.inner();
        let Limits { all, each, stays } = self.limits;
        let own = inner.guests.get(&who).map_or(0, VecDeque::len);
        if own >= each {
            inner.send_away(&who, now, stays)?;
        } else if inner.count >= all {
            match inner.most() {
                // Otherwise a few that come often enough would keep everybody else out.
                Some((fattest, most)) if most > own + 1 => {
                    inner.send_away(&fattest, now, Duration::ZERO)?;
                }
                Some((fattest, most)) if most > own => inner.send_away(&fattest, now, stays)?,
                // Among those with as many as the newcomer would have, the newcomer's oldest goes.
                Some(_) | None => inner.send_away(&who, now, stays)?,
            }
        }
        let number = inner.next;
        inner.next += 1;
        inner.count += 1;
        let (stay, taken) = oneshot::channel();
        let guest = Guest { number, since: now, _stay: stay };
        inner.guests.entry(who.clone()).or_default().push_back(guest);
        drop(inner);
        Ok(Place { places: Arc::clone(self), who, number, taken })
    }

    fn inner(&self) -> MutexGuard<'_, Inner<K>> {
        self.inner.lock()
    }
}

impl<K: Clone + Eq + Hash> Inner<K> {
    fn most(&self) -> Option<(K, usize)> {
        let most = self.guests.iter().max_by_key(|(_, guests)| guests.len())?;
        Some((most.0.clone(), most.1.len()))
    }

    fn send_away(&mut self, who: &K, now: Instant, stays: Duration) -> Result<(), Full> {
        let guests = self.guests.get_mut(who).ok_or(Full)?;
        let settled = |guest: &Guest| now.saturating_duration_since(guest.since) >= stays;
        if !guests.front().is_some_and(settled) {
            return Err(Full);
        }
        guests.pop_front();
        self.count -= 1;
        if guests.is_empty() {
            self.guests.remove(who);
        }
        Ok(())
    }
}

impl<K: Eq + Hash> Drop for Place<K> {
    fn drop(&mut self) {
        let mut inner = self.places.inner.lock();
        let Some(guests) = inner.guests.get_mut(&self.who) else { return };
        let before = guests.len();
        guests.retain(|guest| guest.number != self.number);
        let (gone, empty) = (before - guests.len(), guests.is_empty());
        inner.count -= gone;
        if empty {
            inner.guests.remove(&self.who);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot::error::TryRecvError;

    use super::*;

    const LIMITS: Limits = Limits { all: 10, each: 4, stays: Duration::ZERO };

    fn is_sent_away(place: &mut Place<u32>) -> bool {
        place.taken.try_recv() == Err(TryRecvError::Closed)
    }

    #[test]
    fn who_has_his_share_takes_his_own_oldest_place() {
        let places = Places::new(LIMITS);
        let now = Instant::now();
        let mut other = places.take(2, now).unwrap();
        let mut guests: Vec<_> = (0..100).map(|_| places.take(1, now).unwrap()).collect();
        let stay = guests.iter_mut().filter_map(|it| (!is_sent_away(it)).then_some(it.number));
        assert_eq!(stay.collect::<Vec<_>>(), [97, 98, 99, 100]);
        assert!(!is_sent_away(&mut other));
        drop(guests);
        assert_eq!(places.inner().count, 1);
    }

    #[test]
    fn where_all_is_taken_whoever_has_most_gives_way() {
        let places = Places::new(LIMITS);
        let now = Instant::now();
        let mut many: Vec<_> =
            [1, 1, 1, 1, 2, 2, 2, 3, 3, 4].map(|it| places.take(it, now).unwrap()).into();
        let mut newcomer = places.take(5, now).unwrap();
        let sent: Vec<u64> =
            many.iter_mut().filter_map(|it| is_sent_away(it).then_some(it.number)).collect();
        assert_eq!(sent, [0]);
        // One of those with most is in nobody's way but his own.
        drop(many);
        let mut each: Vec<_> = (10..19).map(|it| places.take(it, now).unwrap()).collect();
        let _again = places.take(10, now).unwrap();
        assert!(is_sent_away(&mut each[0]));
        assert!(!is_sent_away(&mut newcomer) && !each[1..].iter_mut().any(is_sent_away));
    }

    #[test]
    fn who_has_only_just_come_stays() {
        let limits = Limits { stays: Duration::from_secs(3), ..LIMITS };
        let places = Places::new(limits);
        let now = Instant::now();
        let _guests: Vec<_> = (0..4).map(|_| places.take(1, now).unwrap()).collect();
        assert_eq!(places.take(1, now).err(), Some(Full));
        assert!(places.take(1, now + limits.stays).is_ok());
    }

    #[test]
    fn some_that_come_all_the_time_keep_nobody_out() {
        let limits = Limits { stays: Duration::from_secs(3), ..LIMITS };
        let places = Places::new(limits);
        let now = Instant::now();
        let mut greedy: Vec<_> =
            [1, 1, 1, 1, 2, 2, 2, 2, 3, 3].map(|it| places.take(it, now).unwrap()).into();
        let mut modest: Vec<_> = (10..15).map(|it| places.take(it, now).unwrap()).collect();
        for _ in 0..100 {
            greedy.extend((1..=3).filter_map(|it| places.take(it, now).ok()));
        }
        assert!(!modest.iter_mut().any(is_sent_away));
        // Once nobody has two more than another, who has only just come stays.
        let rest: Vec<_> = (20..25).filter_map(|it| places.take(it, now).ok()).collect();
        assert_eq!(places.inner().count, limits.all);
        assert_eq!(places.take(30, now).err(), Some(Full));
        assert!(!modest.iter_mut().any(is_sent_away));
        drop((greedy, rest));
    }
}
