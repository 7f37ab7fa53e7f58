//! Reported endpoints of agents, until a revision has them.
//!
//! Each such revision concerns many hosts, so changes are gathered; and a host that moves again and again
//! (two links that take turns, or a member that wants to keep all others busy) is taken up a few times at
//! once, and then at its pace. Its last word counts.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use isthmus_model::Name;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

/// Moves that a host may make at once.
const BURST: u32 = 5;
/// Time until it may make one more.
const EVERY: Duration = Duration::from_secs(10);

/// Endpoints reported by agents and not yet in a revision.
#[derive(Debug, Default)]
pub(crate) struct Relocations {
    inner: Mutex<Inner>,
    /// There is something to look at.
    pub(crate) news: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    wanted: BTreeMap<Name, Vec<SocketAddr>>,
    /// When each host's moves will all be forgotten.
    paid_until: HashMap<Name, Instant>,
}

/// Changes due now.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Due {
    pub(crate) moves: BTreeMap<Name, Vec<SocketAddr>>,
    /// Who has to wait.
    pub(crate) held_back: Vec<Name>,
    /// Until when.
    pub(crate) again: Option<Instant>,
}

impl Relocations {
    pub(crate) fn say(&self, host: Name, endpoints: Vec<SocketAddr>) {
        self.inner().wanted.insert(host, endpoints);
        self.news.notify_one();
    }

    /// Takes what is due. What `is_news` denies costs nothing.
    pub(crate) fn take(&self, now: Instant, is_news: impl Fn(&Name, &[SocketAddr]) -> bool) -> Due {
        let mut inner = self.inner();
        inner.paid_until.retain(|_, until| *until > now);
        let mut due = Due::default();
        for (host, endpoints) in std::mem::take(&mut inner.wanted) {
            if !is_news(&host, &endpoints) {
                continue;
            }
            let paid_until = inner.paid_until.get(&host).copied().unwrap_or(now);
            let free_at = paid_until.checked_sub(EVERY * (BURST - 1)).unwrap_or(now);
            if free_at > now {
                due.again = Some(due.again.map_or(free_at, |again| again.min(free_at)));
                due.held_back.push(host.clone());
                inner.wanted.insert(host, endpoints);
                continue;
            }
            inner.paid_until.insert(host.clone(), paid_until + EVERY);
            due.moves.insert(host, endpoints);
        }
        due
    }

    /// They couldn't be taken up. What was said since then counts more.
    pub(crate) fn put_back(&self, moves: BTreeMap<Name, Vec<SocketAddr>>) {
        let mut inner = self.inner();
        for (host, endpoints) in moves {
            inner.wanted.entry(host).or_insert(endpoints);
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn at(port: u16) -> Vec<SocketAddr> {
        vec![SocketAddr::from(([192, 0, 2, 1], port))]
    }

    #[test]
    fn a_host_that_moves_all_the_time_is_followed_at_its_pace_and_others_at_once() {
        let relocations = Relocations::default();
        let start = Instant::now();
        let mut followed = 0;
        let mut last = at(0);
        for tick in 0..200_u16 {
            let now = start + Duration::from_millis(50) * u32::from(tick);
            relocations.say(name("churns"), at(tick + 1));
            if tick == 150 {
                relocations.say(name("moved-once"), at(9));
            }
            let due = relocations.take(now, |_, _| true);
            followed += due.moves.get("churns").map_or(0, |it| {
                last.clone_from(it);
                1
            });
            assert_eq!(due.moves.contains_key("moved-once"), tick == 150);
        }
        assert_eq!(followed, BURST);
        let again = relocations.take(start + EVERY * 2, |_, _| true);
        assert_eq!(again.moves[&name("churns")], at(200), "its last word counts");
    }

    #[test]
    fn what_is_no_news_costs_nothing_and_what_failed_is_tried_again() {
        let relocations = Relocations::default();
        let now = Instant::now();
        for _ in 0..100 {
            relocations.say(name("a"), at(1));
            assert_eq!(relocations.take(now, |_, _| false), Due::default());
        }
        relocations.say(name("a"), at(2));
        let due = relocations.take(now, |_, _| true);
        relocations.put_back(due.moves);
        assert_eq!(relocations.take(now, |_, _| true).moves[&name("a")], at(2));
    }
}
