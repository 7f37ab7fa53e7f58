//! How much is taken on at once, altogether and from one source.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Counts what is under way.
#[derive(Debug)]
pub(super) struct Admission {
    max: usize,
    max_per_source: usize,
    under_way: Mutex<UnderWay>,
}

/// Sources that have something under way; bounded by `max`.
#[derive(Debug, Default)]
struct UnderWay {
    total: usize,
    sources: HashMap<IpAddr, usize>,
}

/// One thing under way.
#[derive(Debug)]
pub(super) struct Ticket {
    admission: Arc<Admission>,
    source: IpAddr,
}

impl Admission {
    pub(super) fn new(max: usize, max_per_source: usize) -> Arc<Self> {
        Arc::new(Self { max, max_per_source, under_way: Mutex::default() })
    }

    /// A ticket, unless there are too many.
    pub(super) fn admit(self: &Arc<Self>, source: IpAddr) -> Option<Ticket> {
        let mut under_way = self.lock();
        let of_source = under_way.sources.get(&source).copied().unwrap_or(0);
        if under_way.total >= self.max || of_source >= self.max_per_source {
            return None;
        }
        under_way.total += 1;
        under_way.sources.insert(source, of_source + 1);
        Some(Ticket { admission: Arc::clone(self), source })
    }

    fn lock(&self) -> MutexGuard<'_, UnderWay> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut under_way = self.admission.lock();
        under_way.total -= 1;
        let remaining = under_way.sources.get(&self.source).map_or(0, |count| count - 1);
        if remaining == 0 {
            under_way.sources.remove(&self.source);
        } else {
            under_way.sources.insert(self.source, remaining);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_source_cannot_take_everything_and_all_together_have_an_end() {
        let admission = Admission::new(3, 2);
        let [one, two] = ["10.0.0.1", "10.0.0.2"].map(|text| text.parse::<IpAddr>().unwrap());
        let first = admission.admit(one).unwrap();
        let _second = admission.admit(one).unwrap();
        assert!(admission.admit(one).is_none());
        let _third = admission.admit(two).unwrap();
        assert!(admission.admit(two).is_none());
        drop(first);
        assert!(admission.admit(two).is_some());
        assert!(admission.lock().sources.len() <= 2);
    }
}
