//! When a connection has been quiet for too long.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use tokio::sync::{Notify, watch};

/// Watches one connection. There are two ways to be too quiet, and requests under way are neither:
/// not to finish a head that was begun, and not to begin another. Not to take what was asked for is
/// another matter.
///
/// Only the connection's own thread writes here. It neither reads a clock nor sets a timer for it:
/// the thread's worker counts ticks, and looks after all its connections with each.
#[derive(Debug)]
pub struct Activity {
    clock: Arc<Clock>,
    under_way: AtomicU32,
    phase: AtomicU8,
    /// The tick at which the phase was entered, or the last request ended.
    since: AtomicU32,
    /// Answers of which something was given to the caller that it hasn't taken yet.
    untaken: AtomicU32,
    /// The tick at which it last took something.
    taken: AtomicU32,
    /// HTTP/2 sends bytes that belong to no request.
    multiplexed: AtomicBool,
    /// No further requests, please.
    leaving: AtomicBool,
    /// Rings when `leaving` is said.
    farewell: Notify,
    /// Policy no longer lets the caller in: its socket is reset, not closed.
    cut: AtomicBool,
    /// Wakes the tasks of HTTP/2's streams; true once the connection is over.
    streams: OnceLock<watch::Sender<bool>>,
}

/// Ticks that a worker has counted.
#[derive(Debug, Default)]
pub struct Clock(AtomicU32);

/// Number of ticks that a connection may spend waiting.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    pub head: u32,
    pub idle: u32,
    pub unread: u32,
}

/// Nothing has come yet: the first head is expected at once.
const FRESH: u8 = 0;
const IDLE: u8 = 1;
/// A head has begun to arrive, on an HTTP/1 connection.
const IN_HEAD: u8 = 2;

/// A request under way.
#[derive(Debug)]
pub struct UnderWay {
    activity: Arc<Activity>,
    /// Part of its answer is given to the caller, and not taken yet.
    given: bool,
}

impl Clock {
    pub fn tick(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn now(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Activity {
    /// A connection that was just accepted.
    pub fn new(clock: Arc<Clock>) -> Self {
        let since = AtomicU32::new(clock.now());
        Self {
            clock,
            under_way: AtomicU32::new(0),
            phase: AtomicU8::new(FRESH),
            since,
            untaken: AtomicU32::new(0),
            taken: AtomicU32::new(0),
            multiplexed: AtomicBool::new(false),
            leaving: AtomicBool::new(false),
            farewell: Notify::new(),
            cut: AtomicBool::new(false),
            streams: OnceLock::new(),
        }
    }

    /// Bytes came from the caller.
    pub fn on_bytes(&self) {
        let phase = self.phase.load(Ordering::Relaxed);
        if phase != IN_HEAD && self.is_quiet() && !self.multiplexed.load(Ordering::Relaxed) {
            self.phase.store(IN_HEAD, Ordering::Relaxed);
            if phase == IDLE {
                self.since.store(self.clock.now(), Ordering::Relaxed);
            }
        }
    }

    /// A request's head is complete.
    pub fn on_request(self: &Arc<Self>) -> UnderWay {
        self.under_way.fetch_add(1, Ordering::Relaxed);
        self.phase.store(IDLE, Ordering::Relaxed);
        UnderWay { activity: Arc::clone(self), given: false }
    }

    /// The connection speaks HTTP/2.
    pub fn on_http2(&self) {
        self.multiplexed.store(true, Ordering::Relaxed);
    }

    pub fn is_http2(&self) -> bool {
        self.multiplexed.load(Ordering::Relaxed)
    }

    pub fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Relaxed)
    }

    /// No request is under way, nor has one begun to arrive.
    pub fn is_idle(&self) -> bool {
        self.is_quiet() && self.phase.load(Ordering::Relaxed) != IN_HEAD
    }

    /// Nothing has come yet.
    pub fn is_fresh(&self) -> bool {
        self.phase.load(Ordering::Relaxed) == FRESH
    }

    /// No request is under way.
    pub fn is_quiet(&self) -> bool {
        self.under_way.load(Ordering::Relaxed) == 0
    }

    pub fn is_too_quiet(&self, patience: Patience) -> bool {
        let allowed = match self.phase.load(Ordering::Relaxed) {
            IDLE => patience.idle,
            _ => patience.head,
        };
        let passed = self.clock.now().wrapping_sub(self.since.load(Ordering::Relaxed));
        self.is_quiet() && passed > allowed
    }

    /// Bytes went to the caller.
    pub fn on_sent(&self) {
        if self.untaken.load(Ordering::Relaxed) > 0 {
            self.taken.store(self.clock.now(), Ordering::Relaxed);
        }
    }

    /// Whether the caller has taken nothing of its answers for too long.
    pub fn is_not_reading(&self, allowed: u32) -> bool {
        let passed = self.clock.now().wrapping_sub(self.taken.load(Ordering::Relaxed));
        self.untaken.load(Ordering::Relaxed) > 0 && passed > allowed
    }

    /// Asks the connection to end after the requests under way.
    pub fn ask_to_leave(&self) {
        if !self.leaving.swap(true, Ordering::Relaxed) {
            self.farewell.notify_one();
        }
    }

    /// Completes once the connection is asked to end.
    pub async fn asked_to_leave(&self) {
        self.farewell.notified().await;
    }

    /// Wakers of the tasks of HTTP/2's streams.
    pub fn streams(&self) -> &watch::Sender<bool> {
        self.streams.get_or_init(|| watch::Sender::new(false))
    }

    /// Has the tasks of HTTP/2's streams find out whether their requests were cut.
    pub fn look_again(&self) {
        self.streams().send_replace(false);
    }

    /// Says whether this is news.
    pub fn cut(&self) -> bool {
        !self.cut.swap(true, Ordering::Relaxed)
    }

    pub fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Relaxed)
    }
}

impl UnderWay {
    /// The caller is given a part of the answer.
    pub fn give(&mut self) {
        if !std::mem::replace(&mut self.given, true) {
            self.activity.untaken.fetch_add(1, Ordering::Relaxed);
        }
        self.activity.taken.store(self.activity.clock.now(), Ordering::Relaxed);
    }

    /// It has taken all that it was given.
    pub fn on_taken(&mut self) {
        if std::mem::take(&mut self.given) {
            self.activity.untaken.fetch_sub(1, Ordering::Relaxed);
            self.activity.taken.store(self.activity.clock.now(), Ordering::Relaxed);
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.on_taken();
        self.activity.under_way.fetch_sub(1, Ordering::Relaxed);
        self.activity.since.store(self.activity.clock.now(), Ordering::Relaxed);
    }
}
