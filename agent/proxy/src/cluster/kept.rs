//! State of a service that outlives its clusters.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::balance::Budget;
use super::endpoint::Turn;
use super::silence::Silence;
use super::{Kept, Place};

impl Kept {
    pub(super) fn new(now: Duration, silence: Arc<Silence>) -> Self {
        Self {
            silence,
            budget: Mutex::new(Budget::new(now)),
            counts: Arc::default(),
            under_way: AtomicUsize::new(0),
            retries: AtomicUsize::new(0),
            turn: AtomicUsize::new(0),
            count: AtomicUsize::new(0),
            ejected: AtomicUsize::new(0),
            changes: AtomicU64::new(0),
            next_look: AtomicU64::new(0),
        }
    }

    pub(super) fn recount(&self, places: &[Place]) {
        let ejected = places.iter().filter(|place| place.endpoint.is_out()).count();
        self.count.store(places.len(), Ordering::Relaxed);
        self.ejected.store(ejected, Ordering::Relaxed);
        self.changed();
    }

    /// Whether another workload may be ejected; one may in any case.
    pub(crate) fn may_eject(&self, max_percent: u8) -> bool {
        let ejected = self.ejected.load(Ordering::Relaxed);
        let count = self.count.load(Ordering::Relaxed);
        ejected == 0 || (ejected + 1) * 100 <= usize::from(max_percent) * count
    }

    pub(crate) fn note(&self, turn: Turn) {
        let less_one = |ejected: usize| Some(ejected.saturating_sub(1));
        match turn {
            Turn::Ejected => drop(self.ejected.fetch_add(1, Ordering::Relaxed)),
            Turn::Back => {
                // It never declines.
                let _ = self.ejected.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less_one);
            }
            Turn::Nothing => return,
        }
        self.changed();
    }

    /// Both only ever grow.
    pub(super) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire).wrapping_add(self.silence.changes())
    }

    pub(crate) fn changed(&self) {
        self.changes.fetch_add(1, Ordering::Release);
    }
}
