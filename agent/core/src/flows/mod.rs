//! The flow table: what was decided for a flow, found by one look-up.
//!
//! A flow has two legs, one per direction. A leg is known by its packets' 5-tuple and the port that
//! they come in by; it holds how they are rewritten, and they leave by the other leg's port:
//!
//! ```text
//!             leg 0: key as the originator sends, rewrite ──▶
//!  port of leg 0                                              port of leg 1
//!             ◀── leg 1: key as the answers come in, rewrite
//! ```
//!
//! A denied flow has leg 0 only: it saves asking the policy for each retry.
//!
//! **Bounds.** *Half-open* flows, that is denied ones and those that only one side has spoken on, make
//! room for each other, oldest first, and never cost an established flow its place. Expiry is by a
//! timer wheel, so that nothing ever scans the table.

mod flow;
mod fragments;
mod list;
mod wheel;

use std::hash::BuildHasher;
use std::time::Instant;

use foldhash::fast::FixedState;
use hashbrown::HashTable;

use crate::types::Limits;
pub use flow::FlowState;
pub(crate) use flow::{End, Flow, Leg, LegKey, Load, NewFlow};
pub(crate) use fragments::FragmentFlow;
use list::{Linked, Links, List};
use wheel::Wheel;

/// Flows looked at in one step of expiry: packets wait meanwhile.
const STEP: usize = 1024;

/// A flow in the table, or one that was: references outlive flows harmlessly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FlowRef {
    at: u32,
    generation: u32,
}

impl FlowRef {
    /// No flow.
    pub(crate) const NONE: Self = Self { at: u32::MAX, generation: 0 };

    /// The same for all packets of the flow.
    pub(crate) const fn number(self) -> u32 {
        self.at
    }
}

/// Why a flow can't be inserted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InsertError {
    Full,
    /// Another live flow's answers would look the same.
    Collision,
    /// No rewrite leads from the original to the translated key.
    Rewrite,
}

pub(crate) struct FlowTable {
    slots: Vec<Slot>,
    free: Vec<u32>,
    index: HashTable<Indexed>,
    hasher: FixedState,
    wheel: Wheel,
    half_open: List,
    half_open_count: usize,
    limits: Limits,
}

/// A leg in the index. Its key stands in its flow: in a large table the look-up of a flow waits for
/// memory, and this small the index stays in the cache. With the hash here, growing it doesn't touch
/// the flows.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Indexed {
    hash: u32,
    /// The slot, and the leg in the lowest bit.
    place: u32,
}

struct Slot {
    generation: u32,
    flow: Option<Flow>,
    timer: Links,
    /// The bucket of the wheel that the slot is linked in.
    bucket: u32,
    queue: Links,
    is_half_open: bool,
}

impl FlowTable {
    pub(crate) fn new(limits: Limits, seed: u64, now: Instant) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            index: HashTable::new(),
            hasher: FixedState::with_seed(seed),
            wheel: Wheel::new(now),
            half_open: List::default(),
            half_open_count: 0,
            limits,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Finds the flow, and its leg, that a packet belongs to.
    #[inline(always)]
    pub(crate) fn find(&self, key: &LegKey) -> Option<(FlowRef, u8)> {
        let hash = self.hash(key);
        let is_it = |it: &Indexed| it.hash == hash && it.key(&self.slots) == Some(key);
        let found = *self.index.find(spread(hash), is_it)?;
        let at = found.slot();
        Some((FlowRef { at, generation: self.slots.get(at as usize)?.generation }, found.leg()))
    }

    #[inline]
    fn hash(&self, key: &LegKey) -> u32 {
        self.hasher.hash_one(key) as u32
    }

    #[inline(always)]
    pub(crate) fn get(&self, flow: FlowRef) -> Option<&Flow> {
        let slot = self.slots.get(flow.at as usize)?;
        if slot.generation == flow.generation { slot.flow.as_ref() } else { None }
    }

    /// To change what neither [`update`](Self::update) nor the index depends on.
    pub(crate) fn get_mut(&mut self, flow: FlowRef) -> Option<&mut Flow> {
        let slot = self.slots.get_mut(flow.at as usize)?;
        if slot.generation == flow.generation { slot.flow.as_mut() } else { None }
    }

    /// Changes a flow's state; timers and queues follow.
    #[inline]
    pub(crate) fn update(&mut self, flow: FlowRef, change: impl FnOnce(&mut Flow)) {
        let Some(entry) = self.get_mut(flow) else { return };
        let before = entry.state;
        change(entry);
        if entry.state != before {
            self.follow(flow.at);
        }
    }

    fn follow(&mut self, at: u32) {
        let Some(slot) = self.slots.get_mut(at as usize) else { return };
        let Some(flow) = &slot.flow else { return };
        let due = flow.last_seen + flow.timeout();
        if slot.is_half_open && !flow.is_half_open() {
            slot.is_half_open = false;
            self.half_open_count -= 1;
            list::unlink::<Queue>(&mut self.slots, &mut self.half_open, at);
        }
        self.wheel.rearm_if_sooner(&mut self.slots, at, due);
    }

    /// Whether a leg key is taken by a flow that isn't denied, other than the one that `original`
    /// belongs to already.
    pub(crate) fn is_taken(&self, key: &LegKey, original: &LegKey) -> bool {
        let Some((flow, _)) = self.find(key) else { return false };
        let same = self.find(original).is_some_and(|(own, _)| own == flow);
        !same && self.get(flow).is_some_and(|flow| !flow.is_denied())
    }

    /// Inserts a flow, in place of any that the originator's key belonged to.
    pub(crate) fn insert(
        &mut self,
        new: &NewFlow,
        epoch: u32,
        now: Instant,
    ) -> Result<(FlowRef, usize), InsertError> {
        let flow = Flow::new(new, epoch, now)?;
        let keys = [flow.legs[0].key, flow.legs[1].key];
        if !flow.is_denied() && self.is_taken(&keys[1], &keys[0]) {
            return Err(InsertError::Collision);
        }
        let used = if flow.is_denied() { &keys[..1] } else { &keys[..] };
        for key in used {
            if let Some((old, _)) = self.find(key) {
                self.remove(old);
            }
        }
        let evicted = self.make_room()?;
        let legs = used.len();
        let flow = self.place(flow, now);
        for (leg, key) in (0..).zip(&keys[..legs]) {
            self.index(key, Indexed { hash: self.hash(key), place: flow.at << 1 | leg });
        }
        Ok((flow, evicted))
    }

    /// INVARIANT: the leg's flow is in its slot, and no other flow has the key in the index.
    fn index(&mut self, key: &LegKey, leg: Indexed) {
        let is_it = |it: &Indexed| it.hash == leg.hash && it.key(&self.slots) == Some(key);
        // A service that calls itself from its own port: both legs look the same.
        match self.index.find_mut(spread(leg.hash), is_it) {
            Some(same) => *same = leg,
            None => drop(self.index.insert_unique(spread(leg.hash), leg, |it| spread(it.hash))),
        }
    }

    /// Returns how many half-open flows had to go.
    fn make_room(&mut self) -> Result<usize, InsertError> {
        let is_full = self.len() >= self.limits.flows;
        if !is_full && self.half_open_count < self.limits.half_open {
            return Ok(0);
        }
        let oldest = self.half_open.first().ok_or(InsertError::Full)?;
        let generation = self.slots.get(oldest as usize).map_or(0, |slot| slot.generation);
        self.remove(FlowRef { at: oldest, generation });
        Ok(1)
    }

    fn next_slot(&self) -> u32 {
        self.free.last().copied().unwrap_or(self.slots.len() as u32)
    }

    fn place(&mut self, flow: Flow, now: Instant) -> FlowRef {
        let due = now + flow.timeout();
        let at = self.next_slot();
        if self.free.pop().is_none() {
            self.slots.push(Slot::default());
        }
        let slot = &mut self.slots[at as usize];
        slot.flow = Some(flow);
        slot.is_half_open = true;
        let generation = slot.generation;
        self.half_open_count += 1;
        list::push_back::<Queue>(&mut self.slots, &mut self.half_open, at);
        self.wheel.arm(&mut self.slots, at, due);
        FlowRef { at, generation }
    }

    /// Removes a flow; references to it find nothing any more.
    pub(crate) fn remove(&mut self, flow: FlowRef) -> Option<Flow> {
        self.get(flow)?;
        let at = flow.at;
        self.wheel.disarm(&mut self.slots, at);
        let slot = self.slots.get_mut(at as usize)?;
        let removed = slot.flow.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        if std::mem::take(&mut slot.is_half_open) {
            self.half_open_count -= 1;
            list::unlink::<Queue>(&mut self.slots, &mut self.half_open, at);
        }
        for (leg, key) in (0..).zip(removed.legs.map(|leg| leg.key)) {
            let indexed = Indexed { hash: self.hash(&key), place: at << 1 | leg };
            if let Ok(entry) = self.index.find_entry(spread(indexed.hash), |it| *it == indexed) {
                entry.remove();
            }
        }
        self.free.push(at);
        Some(removed)
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.wheel.poll_timeout()
    }

    /// Removes what has been silent for too long, a step of it at a time: the deadline stays where
    /// it is until all of it is gone. Returns how many flows that were.
    pub(crate) fn handle_timeout(&mut self, now: Instant) -> usize {
        let mut removed = 0;
        for _ in 0..STEP {
            let Some(at) = self.wheel.take_due(&mut self.slots, now) else { break };
            let Some(slot) = self.slots.get(at as usize) else { continue };
            let Some(flow) = &slot.flow else { continue };
            let due = flow.last_seen + flow.timeout();
            let reference = FlowRef { at, generation: slot.generation };
            if due > now {
                self.wheel.arm(&mut self.slots, at, due);
            } else {
                removed += usize::from(self.remove(reference).is_some());
            }
        }
        removed
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Flow> {
        self.slots.iter().filter_map(|slot| slot.flow.as_ref())
    }

    /// The flows in a range of the table, for a sweep in steps; none past its end.
    pub(crate) fn window(&self, from: u32, count: u32) -> Option<Vec<FlowRef>> {
        let start = from as usize;
        if start >= self.slots.len() {
            return None;
        }
        let numbered = (from..).zip(&self.slots[start..]).take(count as usize);
        let used = numbered.filter(|(_, slot)| slot.flow.is_some());
        Some(used.map(|(at, slot)| FlowRef { at, generation: slot.generation }).collect())
    }
}

impl Indexed {
    const fn slot(self) -> u32 {
        self.place >> 1
    }

    const fn leg(self) -> u8 {
        (self.place & 1) as u8
    }

    #[inline]
    fn key(self, slots: &[Slot]) -> Option<&LegKey> {
        let flow = slots.get(self.slot() as usize)?.flow.as_ref()?;
        let [first, second] = &flow.legs;
        Some(if self.leg() == 0 { &first.key } else { &second.key })
    }
}

/// hashbrown takes a bucket by the lowest bits and tells its entries apart by the highest.
const fn spread(hash: u32) -> u64 {
    (hash as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

impl Default for Slot {
    fn default() -> Self {
        Self {
            generation: 0,
            flow: None,
            timer: Links::default(),
            bucket: wheel::NOT_ARMED,
            queue: Links::default(),
            is_half_open: false,
        }
    }
}

/// The list of half-open flows, oldest first.
struct Queue;

impl Linked<Queue> for Slot {
    fn links(&mut self) -> &mut Links {
        &mut self.queue
    }
}

/// The list of flows that a bucket of the wheel holds.
struct Timer;

impl Linked<Timer> for Slot {
    fn links(&mut self) -> &mut Links {
        &mut self.timer
    }
}

#[cfg(test)]
mod tests;
