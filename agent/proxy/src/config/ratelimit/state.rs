//! Rate limit state, which outlives changes of other limits and of its own rate.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use http::request::Parts;
use isthmus_model::Principal;
use isthmus_model::ratelimit::{LimitKey, LimitScope, RateLimit, WHOLE, least_share, scaled};
use parking_lot::Mutex;

use super::Limiter;
use super::bucket::{Bucket, Pace};
use super::keyed::Keyed;
use crate::config::parties::Parties;

/// Callers whose refusals are counted by name, for each limit.
const MAX_REFUSED: usize = 32;

/// State of a rate limit.
#[derive(Debug)]
pub(super) struct State {
    buckets: Buckets,
    /// In billionths of the rate.
    share: AtomicU32,
    passed: AtomicU64,
    refused: AtomicU64,
    refused_by: Mutex<BTreeMap<String, u64>>,
}

#[derive(Debug)]
enum Buckets {
    One(Bucket, AtomicU64),
    Each(Keyed),
}

/// The state of a limit, after what it was before.
pub(super) fn after(before: Option<Arc<Limiter>>, limit: &RateLimit) -> Arc<State> {
    let kept = before.filter(|it| {
        let old = &it.limit;
        old.service == limit.service && old.per == limit.per && old.scope == limit.scope
    });
    let Some(before) = kept else { return Arc::new(State::new(limit)) };
    let state = &before.state;
    if limit.scope == LimitScope::Mesh {
        let share = scaled(state.share(), before.limit.hosts, limit.hosts);
        state.work_by(share.max(least_share(limit.hosts)));
    }
    Arc::clone(state)
}

impl State {
    fn new(limit: &RateLimit) -> Self {
        let share = match limit.scope {
            LimitScope::Mesh => least_share(limit.hosts),
            LimitScope::Host => WHOLE,
        };
        Self {
            buckets: match limit.per {
                LimitKey::All => Buckets::One(Bucket::default(), AtomicU64::default()),
                LimitKey::Identity | LimitKey::Header(_) => Buckets::Each(Keyed::new()),
            },
            share: AtomicU32::new(share),
            passed: AtomicU64::default(),
            refused: AtomicU64::default(),
            refused_by: Mutex::default(),
        }
    }

    pub(super) fn share(&self) -> u32 {
        self.share.load(Ordering::Relaxed)
    }

    pub(super) fn work_by(&self, share: u32) {
        self.share.store(share.min(WHOLE), Ordering::Relaxed);
    }

    /// Rate allowed here, in thousandths per second.
    pub(super) fn rate(&self, limit: &RateLimit) -> u64 {
        part(limit.rate, self.share())
    }

    fn pace(&self, limit: &RateLimit) -> Pace {
        let share = self.share();
        Pace::new(part(limit.rate, share), part(u64::from(limit.burst), share))
    }

    /// Takes a token.
    ///
    /// # Errors
    ///
    /// There is none; the nanoseconds until there is one.
    pub(super) fn take(
        &self,
        limit: &RateLimit,
        parties: &Parties,
        head: &Parts,
        now: u64,
    ) -> Result<(), u64> {
        let pace = self.pace(limit);
        match &self.buckets {
            Buckets::One(bucket, asked) => {
                asked.fetch_add(1, Ordering::Relaxed);
                bucket.take(pace, now)
            }
            Buckets::Each(keyed) => keyed.take(&key(limit, parties, head), pace, now),
        }
    }

    /// Undoes a taking at the same time.
    pub(super) fn give_back(&self, limit: &RateLimit, parties: &Parties, head: &Parts, now: u64) {
        let pace = self.pace(limit);
        match &self.buckets {
            Buckets::One(bucket, _) => bucket.give_back(pace),
            Buckets::Each(keyed) => keyed.give_back(&key(limit, parties, head), pace, now),
        }
    }

    pub(super) fn count_passed(&self) {
        self.passed.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_refused(&self, caller: &impl fmt::Display) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        let mut refused_by = self.refused_by.lock();
        let mut name = caller.to_string();
        if refused_by.len() >= MAX_REFUSED && !refused_by.contains_key(&name) {
            name = "other".to_owned();
        }
        *refused_by.entry(name).or_default() += 1;
    }

    /// Requests that passed, those that were refused, and whose.
    pub(super) fn counts(&self) -> (u64, u64, Vec<(String, u64)>) {
        let refused_by = self.refused_by.lock().clone().into_iter().collect();
        (self.passed.load(Ordering::Relaxed), self.refused.load(Ordering::Relaxed), refused_by)
    }

    /// Requests since this was called last; of the key that has most, where each has a bucket.
    pub(super) fn take_asked(&self) -> u64 {
        match &self.buckets {
            Buckets::One(_, asked) => asked.swap(0, Ordering::Relaxed),
            Buckets::Each(keyed) => keyed.take_most_asked(),
        }
    }
}

/// Compact key of a bucket.
enum Key<'a> {
    Caller([u8; 5]),
    /// Those without the header are one, and those who have it twice.
    Value(&'a [u8]),
}

impl std::ops::Deref for Key<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Caller(bytes) => bytes,
            Self::Value(bytes) => bytes,
        }
    }
}

fn key<'a>(limit: &RateLimit, parties: &Parties, head: &'a Parts) -> Key<'a> {
    match &limit.per {
        LimitKey::Header(name) => Key::Value(value(name, head)),
        LimitKey::Identity | LimitKey::All => {
            let (kind, [a, b, c, d]) = match parties.caller {
                Principal::Host(id) => (0, id.0.to_be_bytes()),
                Principal::Service(id) => (1, id.0.to_be_bytes()),
                Principal::Device(id) => (2, id.0.to_be_bytes()),
            };
            Key::Caller([kind, a, b, c, d])
        }
    }
}

/// The value of a header field that is there once. Whoever sends several might be another to each
/// reader: they share a bucket with those who send none.
fn value<'a>(name: &str, head: &'a Parts) -> &'a [u8] {
    let mut lines = head.headers.get_all(name).iter();
    match (lines.next(), lines.next()) {
        (Some(only), None) => only.as_bytes(),
        (Some(_), Some(_)) | (None, _) => b"",
    }
}

/// A share of a number.
fn part(whole: u64, share: u32) -> u64 {
    let part = u128::from(whole) * u128::from(share) / u128::from(WHOLE);
    u64::try_from(part).unwrap_or(whole)
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    #[test]
    fn nobody_gets_buckets_by_sending_a_header_twice() {
        let of = |values: &[&str]| {
            let request = Request::builder();
            let request = values.iter().fold(request, |it, value| it.header("x-key", *value));
            let head = request.body(()).unwrap().into_parts().0;
            value("x-key", &head).to_vec()
        };
        assert_eq!(of(&["a"]), b"a");
        assert_eq!(of(&["a", "b"]), of(&["c", "b"]));
        assert_eq!(of(&["a", "b"]), of(&[]));
    }
}
