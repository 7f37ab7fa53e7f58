//! Queue of frames for the TUN device.

use std::collections::VecDeque;

use super::Forwarder;
use crate::tunnels::Buffers;
use crate::types::DropReason;

/// Packets that wait for the TUN device.
pub(crate) struct TunQueue {
    packets: VecDeque<Vec<u8>>,
    given: Option<Vec<u8>>,
    limit: usize,
    buffers: Buffers,
    /// Whether some aren't the node's own, but of flows that it has passed on: their order counts.
    pub(crate) holds_passed: bool,
}

impl TunQueue {
    pub(crate) fn new(limit: usize) -> Self {
        let buffers = Buffers::default();
        Self { packets: VecDeque::new(), given: None, limit, buffers, holds_passed: false }
    }

    /// False if too many wait.
    pub(crate) fn push(&mut self, packet: &[u8]) -> bool {
        let has_room = self.packets.len() < self.limit;
        if has_room {
            let mut copy = self.buffers.take();
            copy.clear();
            copy.extend_from_slice(packet);
            self.packets.push_back(copy);
        }
        has_room
    }

    pub(crate) fn poll(&mut self) -> Option<&[u8]> {
        if let Some(given) = self.given.take() {
            self.buffers.give(given);
        }
        let packet = self.packets.pop_front();
        self.holds_passed &= packet.is_some();
        Some(self.given.insert(packet?))
    }
}

impl Forwarder {
    /// Gives a packet of a flow to the TUN device, which mustn't overtake those before it.
    pub(crate) fn pass_tun(&mut self, packet: &[u8]) {
        self.push_tun(packet);
        self.tun_queue.holds_passed = true;
    }

    /// Gives a packet to the TUN device.
    pub(super) fn push_tun(&mut self, packet: &[u8]) {
        if self.tun_queue.push(packet) {
            self.telemetry.counters.to_tun.add(packet.len());
        } else {
            self.telemetry.drop(DropReason::TunQueue);
        }
    }
}
