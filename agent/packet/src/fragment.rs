//! Fragments after the first carry no ports: what was decided for the first holds for them.

use std::fmt;
use std::time::{Duration, Instant};

use hashbrown::HashMap;

use super::{Address, Headers};

/// Key shared by the fragments of one datagram (RFC 791 section 3.2, RFC 8200 section 4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FragmentKey {
    source: Address,
    destination: Address,
    identification: u32,
    /// Zero for IPv6, whose reassembly doesn't look at the protocol.
    protocol: u8,
}

impl Headers {
    /// The datagram that this packet is a fragment of, if it is one.
    pub fn fragment_key(&self) -> Option<FragmentKey> {
        self.fragment.map(|fragment| FragmentKey {
            source: self.key.source,
            destination: self.key.destination,
            identification: fragment.identification,
            protocol: if self.key.source.is_v4() { self.key.protocol } else { 0 },
        })
    }
}

/// The bounds of a [`FragmentTable`].
#[derive(Clone, Copy, Debug)]
pub struct FragmentLimits {
    /// Datagrams remembered in all; the oldest makes room.
    pub datagrams: u32,
    /// Datagrams remembered of one source; its own oldest makes room, so that it can't crowd out
    /// others.
    pub datagrams_per_source: u32,
    /// How long a decision holds. Reassembly waits for 15 to 60 s (RFC 791 section 3.2,
    /// RFC 8200 section 4.5).
    pub lifetime: Duration,
}

impl Default for FragmentLimits {
    fn default() -> Self {
        Self { datagrams: 4096, datagrams_per_source: 256, lifetime: Duration::from_secs(30) }
    }
}

/// Remembers what was decided for the first fragment of each datagram.
///
/// Later fragments that come before the first find nothing and are dropped: to hold them would
/// give memory to whoever asks for it, and senders send in order.
///
/// Entries are in one list by age, and in one such list per source.
///
/// INVARIANT: both lists have the same order, and entries leave only from the old end of their
/// source's list. The oldest entry of all is its source's oldest, so evicting it keeps this true.
pub struct FragmentTable<T> {
    limits: FragmentLimits,
    slots: Vec<Slot<T>>,
    free: Option<u32>,
    index: HashMap<FragmentKey, u32>,
    sources: HashMap<Address, Queue>,
    oldest: Option<u32>,
    newest: Option<u32>,
}

struct Slot<T> {
    key: FragmentKey,
    value: T,
    expires: Instant,
    older: Option<u32>,
    /// The next free slot, if this one is free.
    newer: Option<u32>,
    newer_of_source: Option<u32>,
}

struct Queue {
    oldest: u32,
    newest: u32,
    length: u32,
}

impl<T: Copy> FragmentTable<T> {
    /// Makes an empty table.
    pub fn new(limits: FragmentLimits) -> Self {
        Self {
            limits,
            slots: Vec::new(),
            free: None,
            index: HashMap::new(),
            sources: HashMap::new(),
            oldest: None,
            newest: None,
        }
    }

    /// Notes the decision for a first fragment. One for the same datagram replaces it, since
    /// identifications come round again.
    pub fn remember(&mut self, key: FragmentKey, value: T, now: Instant) {
        self.handle_timeout(now);
        let expires = now + self.limits.lifetime;
        if let Some(slot) = self.index.get(&key).map(|at| &mut self.slots[*at as usize]) {
            slot.value = value;
            slot.expires = expires;
            return;
        }
        if self.limits.datagrams == 0 || self.limits.datagrams_per_source == 0 {
            return;
        }
        self.make_room(key.source);
        self.append(Slot { key, value, expires, older: None, newer: None, newer_of_source: None });
    }

    /// Decision for the first fragment of this datagram; `None` if it hasn't been seen.
    pub fn decision(&self, key: &FragmentKey, now: Instant) -> Option<T> {
        let slot = &self.slots[*self.index.get(key)? as usize];
        (slot.expires > now).then_some(slot.value)
    }

    /// Forgets everything, as when a new revision makes the decisions void.
    pub fn clear(&mut self) {
        *self = Self::new(self.limits);
    }

    /// Datagrams that are remembered now.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// When [`handle_timeout`](Self::handle_timeout) has something to do.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.oldest.map(|at| self.slots[at as usize].expires)
    }

    /// Forgets what has expired.
    pub fn handle_timeout(&mut self, now: Instant) {
        while self.poll_timeout().is_some_and(|expires| expires <= now) {
            self.evict_oldest();
        }
    }

    fn make_room(&mut self, source: Address) {
        let own = self.sources.get(&source);
        if let Some(queue) = own.filter(|queue| queue.length >= self.limits.datagrams_per_source) {
            self.remove_source_oldest(queue.oldest);
        } else if self.len() >= self.limits.datagrams as usize {
            self.evict_oldest();
        }
    }

    fn evict_oldest(&mut self) {
        if let Some(oldest) = self.oldest {
            self.remove_source_oldest(oldest);
        }
    }

    fn append(&mut self, slot: Slot<T>) {
        let (key, at) = (slot.key, self.place(slot));
        self.slots[at as usize].older = self.newest;
        match self.newest {
            Some(newest) => self.slots[newest as usize].newer = Some(at),
            None => self.oldest = Some(at),
        }
        self.newest = Some(at);
        self.index.insert(key, at);
        let fresh = Queue { oldest: at, newest: at, length: 0 };
        let queue = self.sources.entry(key.source).or_insert(fresh);
        if queue.length > 0 {
            self.slots[queue.newest as usize].newer_of_source = Some(at);
        }
        queue.newest = at;
        queue.length += 1;
    }

    fn place(&mut self, slot: Slot<T>) -> u32 {
        match self.free {
            Some(at) => {
                self.free = self.slots[at as usize].newer;
                self.slots[at as usize] = slot;
                at
            }
            None => {
                self.slots.push(slot);
                // INVARIANT: never more slots than `limits.datagrams`, which is a u32.
                (self.slots.len() - 1) as u32
            }
        }
    }

    /// Removes an entry that is the oldest of its source.
    fn remove_source_oldest(&mut self, at: u32) {
        let free = self.free.replace(at);
        let slot = &mut self.slots[at as usize];
        let (key, next) = (slot.key, slot.newer_of_source.take());
        let (older, newer) = (slot.older.take(), slot.newer);
        slot.newer = free;
        match older {
            Some(older) => self.slots[older as usize].newer = newer,
            None => self.oldest = newer,
        }
        match newer {
            Some(newer) => self.slots[newer as usize].older = older,
            None => self.newest = older,
        }
        self.index.remove(&key);
        match (next, self.sources.get_mut(&key.source)) {
            (Some(next), Some(queue)) => {
                queue.oldest = next;
                queue.length -= 1;
            }
            (Some(_) | None, _) => {
                self.sources.remove(&key.source);
            }
        }
    }
}

impl<T: Copy> Default for FragmentTable<T> {
    fn default() -> Self {
        Self::new(FragmentLimits::default())
    }
}

impl<T> fmt::Debug for FragmentTable<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FragmentTable")
            .field("limits", &self.limits)
            .field("datagrams", &self.index.len())
            .finish_non_exhaustive()
    }
}
