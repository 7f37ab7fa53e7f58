//! Send queue: datagrams, in runs that the kernel can take as one (UDP_SEGMENT). Buffers are used again, so
//! that nothing is allocated per packet.

use std::collections::VecDeque;
use std::net::SocketAddr;

use super::sealing::PADDING;
use super::tunnel::OVERHEAD;
use crate::types::Transmit;

/// The kernel's limit (UDP_MAX_SEGMENTS is 128 now; it was 64).
const MAX_SEGMENTS: usize = 64;
/// A run must fit into one UDP datagram's length field, with room for the headers.
const MAX_RUN: usize = 65_000;
/// How many full packets a run holds. A super-packet of no more becomes one run, and arrives as one:
/// what is left of a larger one would be sent, received and written by itself.
pub fn segments_per_run(mtu: u16) -> u32 {
    let sealed = usize::from(mtu).next_multiple_of(PADDING) + OVERHEAD;
    (MAX_RUN / sealed).clamp(1, MAX_SEGMENTS) as u32
}

/// Buffers kept for later: as many as one batch of packets fills.
const POOL: usize = 32;
/// Larger buffers aren't kept.
const KEEP_CAPACITY: usize = 1 << 17;

/// Buffers to use again.
#[derive(Default)]
pub(crate) struct Buffers {
    free: Vec<Vec<u8>>,
}

impl Buffers {
    /// A buffer of any length, with anything in it.
    pub(crate) fn take(&mut self) -> Vec<u8> {
        self.free.pop().unwrap_or_default()
    }

    /// A buffer that isn't needed any more.
    pub(crate) fn give(&mut self, buffer: Vec<u8>) {
        if self.free.len() < POOL && buffer.capacity() <= KEEP_CAPACITY {
            self.free.push(buffer);
        }
    }
}

/// Destination and treatment that all datagrams of a run share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RunTarget {
    pub(crate) to: SocketAddr,
    /// The receiver's: a run may arrive as one message, in the lane of its first datagram.
    pub(crate) lane: u8,
    pub(crate) dont_fragment: bool,
}

/// A run of datagrams to one place.
struct Run {
    target: RunTarget,
    /// Longer than what is used of it: what was zeroed once isn't zeroed again.
    bytes: Vec<u8>,
    used: usize,
    segment: usize,
    count: usize,
}

impl Run {
    /// Whether a datagram may follow: same place, same treatment, not larger than those before, and
    /// none of those before was short.
    fn accepts(&self, target: RunTarget, length: usize) -> bool {
        self.target == target
            && length <= self.segment
            && self.count < MAX_SEGMENTS
            && self.used == self.segment * self.count
            && self.used + length <= MAX_RUN
    }

    /// Whether more datagrams like its first could still follow.
    fn is_open(&self) -> bool {
        self.accepts(self.target, self.segment)
    }
}

/// Datagrams that wait to be sent.
pub struct Outbox {
    runs: VecDeque<Run>,
    given: Option<Run>,
    waiting: usize,
    limit: usize,
    buffers: Buffers,
}

impl Outbox {
    /// Takes up to `limit` bytes.
    pub fn new(limit: usize) -> Self {
        let buffers = Buffers::default();
        Self { runs: VecDeque::new(), given: None, waiting: 0, limit, buffers }
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Adds a datagram that `write` writes into a buffer of at least `room` bytes, of which `length`
    /// will be used. False if too much waits already or `write` gave up.
    pub(crate) fn push_with(
        &mut self,
        target: RunTarget,
        (length, room): (usize, usize),
        write: impl FnOnce(&mut [u8]) -> Option<usize>,
    ) -> bool {
        if self.waiting + length > self.limit {
            return false;
        }
        let follows = self.runs.back().is_some_and(|run| run.accepts(target, length));
        if !follows {
            let bytes = self.buffers.take();
            let run = Run { target, bytes, used: 0, segment: length, count: 0 };
            self.runs.push_back(run);
        }
        let Some(run) = self.runs.back_mut() else { return false };
        let end = run.used + room.max(length);
        if run.bytes.len() < end {
            run.bytes.resize(end, 0);
        }
        let written = run.bytes.get_mut(run.used..end).and_then(write).filter(|n| *n == length);
        if written.is_some() {
            run.used += length;
            run.count += 1;
            self.waiting += length;
            return true;
        }
        if run.count == 0
            && let Some(run) = self.runs.pop_back()
        {
            self.buffers.give(run.bytes);
        }
        false
    }

    /// Adds a datagram.
    pub(crate) fn push(&mut self, to: SocketAddr, datagram: &[u8]) -> bool {
        let length = datagram.len();
        let target = RunTarget { to, lane: 0, dont_fragment: false };
        self.push_with(target, (length, length), |out| {
            out.copy_from_slice(datagram);
            Some(length)
        })
    }

    /// The next datagrams to send.
    pub fn poll(&mut self) -> Option<Transmit<'_>> {
        self.poll_if(|_| true)
    }

    /// Only what nothing can be added to any more: to be called between the packets of a batch, so
    /// that what is sealed is sent while it is in the cache.
    pub fn poll_full(&mut self) -> Option<Transmit<'_>> {
        let waits_behind = self.runs.len() > 1;
        self.poll_if(|run| waits_behind || !run.is_open())
    }

    fn poll_if(&mut self, is_ready: impl FnOnce(&Run) -> bool) -> Option<Transmit<'_>> {
        if let Some(given) = self.given.take() {
            self.buffers.give(given.bytes);
        }
        if !is_ready(self.runs.front()?) {
            return None;
        }
        let run = self.runs.pop_front()?;
        self.waiting -= run.used;
        let run = self.given.insert(run);
        Some(Transmit {
            to: run.target.to,
            contents: run.bytes.get(..run.used).unwrap_or_default(),
            segment_size: (run.count > 1).then_some(run.segment),
            dont_fragment: run.target.dont_fragment,
        })
    }
}

impl std::fmt::Debug for Outbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outbox").field("bytes", &self.waiting).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(outbox: &mut Outbox, port: u16, length: usize) -> bool {
        let to = SocketAddr::from(([192, 0, 2, 1], port));
        outbox.push(to, &vec![length as u8; length])
    }

    #[test]
    fn equal_datagrams_in_a_row_become_segments_of_one_run() {
        let mut outbox = Outbox::new(1 << 20);
        for length in [100, 100, 40, 100] {
            assert!(push(&mut outbox, 1, length));
        }
        let first = outbox.poll().unwrap();
        assert_eq!((first.contents.len(), first.segment_size), (240, Some(100)));
        let second = outbox.poll().unwrap();
        assert_eq!((second.contents.len(), second.segment_size), (100, None));
        assert!(outbox.poll().is_none());
    }

    #[test]
    fn runs_go_to_one_place_only_and_end_with_the_limits() {
        let mut outbox = Outbox::new(1 << 20);
        push(&mut outbox, 1, 10);
        push(&mut outbox, 2, 10);
        assert_eq!(outbox.poll().unwrap().contents.len(), 10);
        assert_eq!(outbox.poll().unwrap().contents.len(), 10);
        for _ in 0..100 {
            push(&mut outbox, 1, 10);
        }
        assert_eq!(outbox.poll().unwrap().contents.len(), 10 * MAX_SEGMENTS);
    }

    #[test]
    fn runs_go_to_one_lane_only() {
        let mut outbox = Outbox::new(1 << 20);
        for lane in [1, 1, 2, 1] {
            let to = SocketAddr::from(([192, 0, 2, 1], 1));
            let target = RunTarget { to, lane, dont_fragment: true };
            assert!(outbox.push_with(target, (10, 10), |out| Some(out.len())));
        }
        let mut lengths = Vec::new();
        while let Some(run) = outbox.poll() {
            lengths.push(run.contents.len());
        }
        assert_eq!(lengths, [20, 10, 10]);
    }

    #[test]
    fn what_waits_is_bounded() {
        let mut outbox = Outbox::new(1000);
        let taken = (0..100).filter(|_| push(&mut outbox, 1, 100)).count();
        assert_eq!(taken, 10);
    }
}
