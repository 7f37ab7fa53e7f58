//! Packets in a row, in one piece of memory.

use std::io::IoSlice;
use std::ops::Range;

use isthmus_core::TunWriter;
use isthmus_packet::VNET_HEADER;

/// More than any batch makes.
const CAPACITY: usize = 64 << 20;

/// Frames or packets in a row.
pub(crate) struct Row {
    bytes: Vec<u8>,
    used: usize,
    pub(crate) ranges: Vec<Range<usize>>,
}

impl Row {
    pub(crate) fn new() -> Self {
        Self { bytes: vec![0; CAPACITY], used: 0, ranges: Vec::new() }
    }

    pub(crate) fn clear(&mut self) {
        self.used = 0;
        self.ranges.clear();
    }

    pub(crate) fn get(&self, range: &Range<usize>) -> &[u8] {
        &self.bytes[range.clone()]
    }

    pub(crate) fn get_mut(&mut self, range: &Range<usize>) -> &mut [u8] {
        &mut self.bytes[range.clone()]
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.ranges.iter().map(|range| self.get(range))
    }

    /// Adds what `write` writes, if it does.
    pub(crate) fn push_with(&mut self, write: impl FnOnce(&mut [u8]) -> Option<usize>) -> bool {
        let Some(length) = write(&mut self.bytes[self.used..]) else { return false };
        self.ranges.push(self.used..self.used + length);
        self.used += length;
        true
    }

    pub(crate) fn push(&mut self, packet: &[u8]) {
        self.push_with(|room| {
            room[..packet.len()].copy_from_slice(packet);
            Some(packet.len())
        });
    }
}

/// Keeps frames as a node writes them.
impl TunWriter for Row {
    fn write(&mut self, frame: &[IoSlice<'_>]) {
        self.push_with(|room| {
            let mut end = 0;
            for piece in frame {
                room[end..end + piece.len()].copy_from_slice(piece);
                end += piece.len();
            }
            Some(end)
        });
    }
}

/// The packet of a frame that lacks nothing.
pub(crate) fn whole(frame: &[u8]) -> &[u8] {
    let (header, packet) = frame.split_first_chunk::<VNET_HEADER>().expect("a frame");
    // Flags: "needs no check" may be set; "lacks its checksum" may not. Then the kind: none.
    assert_eq!((header[0] & 1, header[1]), (0, 0), "something is left to be done");
    packet
}
