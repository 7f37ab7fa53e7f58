//! A timer wheel of seconds. A deadline beyond its horizon is put at the horizon and looked at again
//! there; one that moves later is found too early and put back. Only one that moves *sooner* must be
//! armed anew.

use std::time::{Duration, Instant};

use super::list::{self, List};
use super::{Slot, Timer};

const BUCKETS: usize = 512;
const WORDS: usize = BUCKETS / 64;
const STEP: Duration = Duration::from_secs(1);

pub(super) const NOT_ARMED: u32 = u32::MAX;

/// Bitmap of occupied buckets: the data plane asks for the next one at every turn.
#[derive(Default)]
struct Occupied([u64; WORDS]);

pub(super) struct Wheel {
    buckets: Box<[List]>,
    occupied: Occupied,
    started: Instant,
    /// Steps that are done: bucket `done % BUCKETS` is empty, or its slots lie a turn ahead.
    done: u64,
    armed: usize,
}

impl Wheel {
    pub(super) fn new(now: Instant) -> Self {
        let buckets = vec![List::default(); BUCKETS].into();
        Self { buckets, occupied: Occupied::default(), started: now, done: 0, armed: 0 }
    }

    /// INVARIANT: the slot isn't armed.
    pub(super) fn arm(&mut self, slots: &mut [Slot], at: u32, due: Instant) {
        let bucket = self.bucket(due);
        slots[at as usize].bucket = bucket;
        list::push_back::<Timer>(slots, &mut self.buckets[bucket as usize], at);
        self.occupied.insert(bucket as usize);
        self.armed += 1;
    }

    pub(super) fn disarm(&mut self, slots: &mut [Slot], at: u32) {
        let bucket = std::mem::replace(&mut slots[at as usize].bucket, NOT_ARMED);
        if bucket != NOT_ARMED {
            let list = &mut self.buckets[bucket as usize];
            list::unlink::<Timer>(slots, list, at);
            if list.first().is_none() {
                self.occupied.remove(bucket as usize);
            }
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
        let ahead = self.occupied.first_from(self.current())?;
        Some(self.started + STEP * u32::try_from(self.done + ahead as u64).unwrap_or(u32::MAX))
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

impl Occupied {
    fn insert(&mut self, bucket: usize) {
        self.0[bucket / 64] |= 1 << (bucket % 64);
    }

    fn remove(&mut self, bucket: usize) {
        self.0[bucket / 64] &= !(1 << (bucket % 64));
    }

    /// Distance from a bucket to the next occupied one, round the wheel.
    fn first_from(&self, bucket: usize) -> Option<usize> {
        let (start, bit) = (bucket / 64, bucket % 64);
        let here = self.0[start];
        let after = (1..WORDS).map(|step| self.0[(start + step) % WORDS]);
        // The start's word is looked at twice: from the bucket on, and up to it.
        let words = std::iter::once(here & (!0 << bit))
            .chain(after)
            .chain(std::iter::once(here & !(!0 << bit)));
        let (step, word) = words.enumerate().find(|(_, word)| *word != 0)?;
        Some(step * 64 + word.trailing_zeros() as usize - bit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::random::Random;

    /// Reference result of `poll_timeout`, by looking at every bucket.
    fn walk(wheel: &Wheel) -> Option<Instant> {
        let ahead = (0..BUCKETS as u64).find(|ahead| {
            let bucket = (wheel.done + ahead) % BUCKETS as u64;
            wheel.buckets[bucket as usize].first().is_some()
        })?;
        Some(wheel.started + STEP * u32::try_from(wheel.done + ahead).unwrap())
    }

    #[test]
    fn the_next_deadline_is_the_one_that_a_walk_finds() {
        let start = Instant::now();
        let mut random = Random::new(1);
        for slot_count in [1, 2, 30] {
            let mut slots: Vec<Slot> = (0..slot_count).map(|_| Slot::default()).collect();
            let (mut wheel, mut now) = (Wheel::new(start), start);
            let mut empty = 0;
            for _ in 0..5_000 {
                let at = (random.next() % slot_count) as u32;
                let due = now + Duration::from_millis(random.next() % 700_000);
                match random.next() % 4 {
                    0 if slots[at as usize].bucket == NOT_ARMED => wheel.arm(&mut slots, at, due),
                    0 => wheel.rearm_if_sooner(&mut slots, at, due),
                    1 => wheel.disarm(&mut slots, at),
                    2 => now += Duration::from_millis(random.next() % 90_000),
                    _ => while wheel.take_due(&mut slots, now).is_some() {},
                }
                assert_eq!(wheel.poll_timeout(), walk(&wheel));
                empty += usize::from(wheel.armed == 0);
            }
            assert!((1..5_000).contains(&empty), "it was empty {empty} times");
        }
    }
}
