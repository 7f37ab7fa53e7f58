//! A timer wheel of seconds. A deadline beyond its horizon is put at the horizon and looked at again
//! there; one that moves later is found too early and put back. Only one that moves *sooner* must be
//! armed anew.

use std::time::{Duration, Instant};

use super::list::{self, List};
use super::{Slot, Timer};

const BUCKETS: usize = 512;
const STEP: Duration = Duration::from_secs(1);

pub(super) const NOT_ARMED: u32 = u32::MAX;

pub(super) struct Wheel {
    buckets: Box<[List]>,
    started: Instant,
    /// Steps that are done: bucket `done % BUCKETS` is empty, or its slots lie a turn ahead.
    done: u64,
    armed: usize,
}

impl Wheel {
    pub(super) fn new(now: Instant) -> Self {
        let buckets = vec![List::default(); BUCKETS].into();
        Self { buckets, started: now, done: 0, armed: 0 }
    }

    /// INVARIANT: the slot isn't armed.
    pub(super) fn arm(&mut self, slots: &mut [Slot], at: u32, due: Instant) {
        let bucket = self.bucket(due);
        slots[at as usize].bucket = bucket;
        list::push_back::<Timer>(slots, &mut self.buckets[bucket as usize], at);
        self.armed += 1;
    }

    pub(super) fn disarm(&mut self, slots: &mut [Slot], at: u32) {
        let bucket = std::mem::replace(&mut slots[at as usize].bucket, NOT_ARMED);
        if bucket != NOT_ARMED {
            list::unlink::<Timer>(slots, &mut self.buckets[bucket as usize], at);
            self.armed -= 1;
        }
    }

    pub(super) fn rearm_if_sooner(&mut self, slots: &mut [Slot], at: u32, due: Instant) {
        let bucket = slots[at as usize].bucket;
        if bucket == NOT_ARMED || self.steps_ahead(self.bucket(due)) >= self.steps_ahead(bucket) {
            return;
        }
        self.disarm(slots, at);
        self.arm(slots, at, due);
    }

    /// The next slot whose step has come, disarmed. None when time has been caught up with.
    pub(super) fn take_due(&mut self, slots: &mut [Slot], now: Instant) -> Option<u32> {
        let target = now.saturating_duration_since(self.started).as_secs();
        loop {
            if let Some(at) = self.buckets[self.current()].first() {
                self.disarm(slots, at);
                return Some(at);
            }
            if self.done >= target {
                return None;
            }
            // With nothing armed, or after a whole turn, the rest of the way is empty.
            let jump = if self.armed == 0 { target - self.done } else { 1 };
            self.done += jump;
        }
    }

    /// When the next non-empty bucket's step comes.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        if self.armed == 0 {
            return None;
        }
        let ahead = (0..BUCKETS as u64).find(|ahead| {
            let bucket = (self.done + ahead) % BUCKETS as u64;
            self.buckets[bucket as usize].first().is_some()
        })?;
        Some(self.started + STEP * u32::try_from(self.done + ahead).unwrap_or(u32::MAX))
    }

    fn current(&self) -> usize {
        (self.done % BUCKETS as u64) as usize
    }

    /// The bucket for the first step at or after `due`, but at least one step ahead, so that what is
    /// armed while a step is worked on isn't met again in it.
    fn bucket(&self, due: Instant) -> u32 {
        let due = due.saturating_duration_since(self.started);
        let step = due.as_secs() + u64::from(due.subsec_nanos() > 0);
        let ahead = step.saturating_sub(self.done).clamp(1, BUCKETS as u64 - 1);
        ((self.done + ahead) % BUCKETS as u64) as u32
    }

    fn steps_ahead(&self, bucket: u32) -> u64 {
        (u64::from(bucket) + BUCKETS as u64 - self.current() as u64) % BUCKETS as u64
    }
}
