//! Upload progress, as the carriers of a request's body see it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use isthmus_http::interim::Interim;
use parking_lot::Mutex;

use crate::config::life::Life;

/// Progress of a request, for code without access to its record.
#[derive(Debug)]
pub(crate) struct Progress {
    started: Instant,
    /// Of the request's body, so far.
    pub(crate) bytes: AtomicU64,
    /// Nanoseconds; since the last try.
    waited: AtomicU64,
    connecting: AtomicU64,
    /// Nanoseconds from the start; 0 while nobody waits for the caller.
    waiting_since: AtomicU64,
    /// The caller's bytes ended before their end.
    broken: AtomicBool,
    interim: Interim,
    pub(crate) life: Life,
}

/// The requests of a connection that are under way, and can be cut.
#[derive(Debug)]
pub(crate) struct Live(Mutex<Vec<Arc<Progress>>>);

impl Live {
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    pub(crate) fn add(&self, progress: &Arc<Progress>) {
        self.0.lock().push(Arc::clone(progress));
    }

    pub(crate) fn remove(&self, progress: &Arc<Progress>) {
        let mut live = self.0.lock();
        if let Some(at) = live.iter().position(|it| Arc::ptr_eq(it, progress)) {
            live.swap_remove(at);
        }
    }

    /// Shows requests under way to `cut`; whether it has cut any.
    pub(crate) fn cut_any(&self, mut cut: impl FnMut(&Progress) -> bool) -> bool {
        // All are shown, also once one was cut.
        self.0.lock().iter().filter(|progress| cut(progress)).count() > 0
    }
}

impl Progress {
    pub(crate) fn new(started: Instant) -> Self {
        Self {
            started,
            bytes: AtomicU64::new(0),
            waited: AtomicU64::new(0),
            connecting: AtomicU64::new(0),
            waiting_since: AtomicU64::new(0),
            broken: AtomicBool::new(false),
            interim: Interim::default(),
            life: Life::default(),
        }
    }

    pub(crate) const fn started(&self) -> Instant {
        self.started
    }

    /// The caller's next bytes aren't here.
    pub(crate) fn wait(&self) {
        if self.waiting_since.load(Ordering::Relaxed) == 0 {
            self.waiting_since.store(nanos(self.started.elapsed()).max(1), Ordering::Relaxed);
        }
    }

    /// They are here.
    pub(crate) fn receive(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.end_waiting(|| self.started.elapsed());
    }

    /// No more of them will come.
    pub(crate) fn break_off(&self) {
        self.broken.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }

    /// Time spent waiting for the caller's next bytes.
    pub(crate) fn waits(&self) -> Duration {
        match self.waiting_since.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            since => self.started.elapsed().saturating_sub(Duration::from_nanos(since)),
        }
    }

    /// Whether the caller's next bytes are waited for.
    pub(crate) fn is_waiting(&self) -> bool {
        self.waiting_since.load(Ordering::Relaxed) != 0
    }

    pub(crate) fn connected(&self, took: Duration) {
        self.connecting.fetch_add(nanos(took), Ordering::Relaxed);
    }

    fn end_waiting(&self, now: impl FnOnce() -> Duration) {
        if self.waiting_since.load(Ordering::Relaxed) != 0 {
            let since = self.waiting_since.swap(0, Ordering::Relaxed);
            self.waited.fetch_add(nanos(now()).saturating_sub(since), Ordering::Relaxed);
        }
    }

    /// Time spent waiting for the caller and for connections since the last call.
    pub(crate) fn take(&self, now: Instant) -> (Duration, Duration) {
        self.end_waiting(|| now - self.started);
        let take = |nanos: &AtomicU64| Duration::from_nanos(nanos.swap(0, Ordering::Relaxed));
        (take(&self.waited), take(&self.connecting))
    }
}

impl AsRef<Interim> for Progress {
    fn as_ref(&self) -> &Interim {
        &self.interim
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
