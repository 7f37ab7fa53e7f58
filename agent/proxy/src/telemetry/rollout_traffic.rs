//! Outcomes of requests of single routes, by backend, for whoever decides about their weights; and of all
//! that services here are asked, for whoever doubts it.
//! Apart from the metrics: exact whatever the number of series, and nothing while nobody asks.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::histogram::Histogram;

/// In the place of a route: what services here are asked.
pub(crate) const SERVED: &str = "";
/// A rollout has two; a host may have many services.
const MAX_BACKENDS: usize = 256;
const MAX_ROUTES: usize = 1024;

/// Counts of the watched routes since they were taken last.
#[derive(Debug, Default)]
pub struct Measured {
    is_on: AtomicBool,
    routes: Mutex<BTreeMap<String, BTreeMap<String, Traffic>>>,
}

/// Requests of one route to one backend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Those that failed: answered 5xx, or not at all.
    pub failures: u64,
    /// Their total duration.
    pub latencies: Histogram,
}

impl Measured {
    /// Counts for these routes from now on, and for no others.
    pub fn watch(&self, routes: impl IntoIterator<Item = String>) {
        let mut watched = self.routes.lock();
        let mut before = std::mem::take(&mut *watched);
        watched.extend(routes.into_iter().take(MAX_ROUTES).map(|route| {
            let counted = before.remove(&route).unwrap_or_default();
            (route, counted)
        }));
        self.is_on.store(!watched.is_empty(), Ordering::Relaxed);
    }

    /// Counts since the last call: route, backend, traffic.
    #[must_use]
    pub fn take(&self) -> Vec<(String, String, Traffic)> {
        if !self.is_on.load(Ordering::Relaxed) {
            return Vec::new();
        }
        let mut taken = Vec::new();
        for (route, backends) in &mut *self.routes.lock() {
            for (backend, traffic) in std::mem::take(backends) {
                taken.push((route.clone(), backend, traffic));
            }
        }
        taken
    }

    pub(crate) fn count(&self, route: &str, backend: &str, failed: bool, took: Duration) {
        if !self.is_on.load(Ordering::Relaxed) {
            return;
        }
        let mut routes = self.routes.lock();
        let Some(backends) = routes.get_mut(route) else { return };
        if !backends.contains_key(backend) {
            if backends.len() == MAX_BACKENDS {
                return;
            }
            backends.insert(backend.to_owned(), Traffic::default());
        }
        if let Some(traffic) = backends.get_mut(backend) {
            traffic.failures += u64::from(failed);
            traffic.latencies.observe(took);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_watched_routes_are_counted_and_what_is_taken_is_gone() {
        let measured = Measured::default();
        let second = Duration::from_secs(1);
        measured.count("api", "api-v1", false, second);
        assert_eq!(measured.take(), []);
        measured.watch(["api".to_owned()]);
        measured.count("api", "api-v1", false, second);
        measured.count("api", "api-v2", true, second);
        measured.count("other", "api-v2", true, second);
        // What stays watched loses nothing.
        measured.watch(["api".to_owned(), "new".to_owned()]);
        let taken = measured.take();
        let counts: Vec<_> = taken
            .iter()
            .map(|(route, backend, it)| (&**route, &**backend, it.failures, it.latencies.count()))
            .collect();
        assert_eq!(counts, [("api", "api-v1", 0, 1), ("api", "api-v2", 1, 1)]);
        assert_eq!(measured.take(), []);
    }

    #[test]
    fn memory_stays_bounded() {
        let measured = Measured::default();
        measured.watch((0..10_000).map(|number| format!("route {number}")));
        for number in 0..10_000 {
            measured.count("route 0", &number.to_string(), false, Duration::ZERO);
        }
        assert_eq!(measured.take().len(), MAX_BACKENDS);
        assert_eq!(measured.routes.lock().len(), MAX_ROUTES);
    }
}
