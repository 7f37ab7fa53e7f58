//! Stream counters.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use isthmus_http::copy::Counts;
use parking_lot::Mutex;

use super::metrics::Ruling;

/// Services come and go; their series stay. Beyond this many they share one.
const MAX_SERIES: usize = 4096;

/// Labels of streams.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamLabels {
    /// The service that was asked; `other` once there are too many.
    pub service: String,
    /// `client` or `server`.
    pub side: &'static str,
    /// `tcp` or `tls`.
    pub carries: &'static str,
    /// Decision.
    pub ruling: Ruling,
}

/// Sums since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamTotals {
    /// Streams that were judged.
    pub connections: u64,
    /// Those that are open.
    pub active: u64,
    /// Bytes from callers.
    pub bytes_up: u64,
    /// Bytes to callers.
    pub bytes_down: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counters(Mutex<BTreeMap<StreamLabels, Arc<Totals>>>);

/// Of the streams with the same labels.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    connections: AtomicU64,
    active: AtomicU64,
    bytes: Counts,
}

/// Bytes per direction, of one stream and of all of its kind.
#[derive(Debug)]
pub(crate) struct Carried {
    pub(crate) bytes: Counts,
    totals: Arc<Totals>,
}

impl Carried {
    /// Counts the stream in; dropping it counts it out.
    pub(crate) fn new(totals: Arc<Totals>) -> Self {
        totals.connections.fetch_add(1, Ordering::Relaxed);
        totals.active.fetch_add(1, Ordering::Relaxed);
        Self { bytes: Counts::default(), totals }
    }

    pub(crate) fn counts(&self) -> [&Counts; 2] {
        [&self.bytes, &self.totals.bytes]
    }
}

impl Drop for Carried {
    fn drop(&mut self) {
        self.totals.active.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Counters {
    pub(crate) fn of(&self, mut labels: StreamLabels) -> Arc<Totals> {
        let mut all = self.0.lock();
        if all.len() >= MAX_SERIES && !all.contains_key(&labels) {
            "other".clone_into(&mut labels.service);
        }
        Arc::clone(all.entry(labels).or_default())
    }

    pub(crate) fn snapshot(&self) -> Vec<(StreamLabels, StreamTotals)> {
        let all = self.0.lock();
        all.iter().map(|(labels, totals)| (labels.clone(), totals.now())).collect()
    }
}

impl Totals {
    fn now(&self) -> StreamTotals {
        StreamTotals {
            connections: self.connections.load(Ordering::Relaxed),
            active: self.active.load(Ordering::Relaxed),
            bytes_up: self.bytes.up.load(Ordering::Relaxed),
            bytes_down: self.bytes.down.load(Ordering::Relaxed),
        }
    }
}
