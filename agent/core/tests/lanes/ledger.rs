//! Ledger of everything that was sent and that arrived, with its invariants.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use isthmus_core::BULK_TYPE;
use isthmus_core::sim::packets::read;
use isthmus_core::sim::topology::endpoint;

use crate::traffic::Flow;

/// All that makes a nonce: the receiver and its session, both lanes, the counter.
type Nonce = (SocketAddr, u32, u8, u8, u64);

/// Observed packets.
#[derive(Default)]
pub(crate) struct Ledger {
    nonces: BTreeSet<Nonce>,
    /// Packets, by the flow: offered by the kernel, decided to be sent, and those that arrived.
    offered: BTreeMap<Flow, usize>,
    decided: BTreeMap<Flow, usize>,
    arrived: BTreeMap<Flow, Vec<u32>>,
    /// Datagrams, by where from and where to.
    carried: BTreeMap<(SocketAddr, SocketAddr), u64>,
    /// Sent a second time, by where to.
    pub(crate) replayed: BTreeMap<SocketAddr, u64>,
}

impl Ledger {
    pub(crate) fn offer(&mut self, flow: Flow, packets: usize) {
        *self.offered.entry(flow).or_default() += packets;
    }

    pub(crate) fn decide(&mut self, flow: Flow, packets: usize) {
        *self.decided.entry(flow).or_default() += packets;
    }

    /// Notes a datagram that was sealed.
    ///
    /// # Panics
    ///
    /// If one before had the same nonce.
    pub(crate) fn carry(&mut self, from: SocketAddr, to: SocketAddr, datagram: &[u8]) {
        *self.carried.entry((from, to)).or_default() += 1;
        if let Some(nonce) = nonce(to, datagram) {
            assert!(self.nonces.insert(nonce), "a nonce was used twice: {nonce:?}");
        }
    }

    /// Notes a packet that a kernel was given, and returns its flow.
    pub(crate) fn arrive(&mut self, packet: &[u8]) -> Option<Flow> {
        let (flow, number) = Flow::read(read(packet).payload(packet))?;
        self.arrived.entry(flow).or_default().push(number);
        Some(flow)
    }

    pub(crate) fn carried(&self, from: SocketAddr, to: SocketAddr) -> u64 {
        self.carried.get(&(from, to)).copied().unwrap_or_default()
    }

    pub(crate) fn decided_for(&self, host: u32) -> u64 {
        let flows = self.decided.iter().filter(|(flow, _)| flow.ends_at(host));
        flows.map(|(_, packets)| *packets as u64).sum()
    }

    pub(crate) fn arrived_in_all(&self) -> u64 {
        self.arrived.values().map(|numbers| numbers.len() as u64).sum()
    }

    /// By how many sessions packets went to a host.
    pub(crate) fn sessions_to(&self, host: u32) -> usize {
        let to = endpoint(host, false);
        let nonces = self.nonces.iter().filter(|nonce| nonce.0 == to);
        nonces.map(|nonce| nonce.1).collect::<BTreeSet<u32>>().len()
    }

    /// Whether some of a flow was decided to be sent, and some not.
    pub(crate) fn is_cut_midway(&self, flow: Flow) -> bool {
        let decided = self.decided.get(&flow).copied().unwrap_or_default();
        decided > 0 && decided < self.offered[&flow]
    }

    pub(crate) fn assert_all_arrived_in_order(&self, flow: Flow) {
        let all: Vec<u32> = (0..).take(self.offered[&flow]).collect();
        assert_eq!(self.numbers(flow), all, "{flow:?}");
    }

    pub(crate) fn assert_all_arrived(&self, flow: Flow) {
        let mut numbers = self.numbers(flow).to_vec();
        numbers.sort_unstable();
        let all: Vec<u32> = (0..).take(self.offered[&flow]).collect();
        assert_eq!(numbers, all, "{flow:?}");
    }

    pub(crate) fn assert_some_arrived_in_order(&self, flow: Flow) {
        let numbers = self.numbers(flow);
        assert!(numbers.is_sorted_by(|a, b| a < b), "{flow:?}: {numbers:?}");
    }

    fn numbers(&self, flow: Flow) -> &[u32] {
        self.arrived.get(&flow).map_or(&[], Vec::as_slice)
    }
}

/// None for a datagram of WireGuard's.
fn nonce(to: SocketAddr, datagram: &[u8]) -> Option<Nonce> {
    let (header, _) = datagram.split_first_chunk::<16>()?;
    let [kind, receiver, sender, _, session @ ..] = header;
    let (session, counter) = session.split_first_chunk::<4>()?;
    let counter = u64::from_le_bytes(*counter.first_chunk()?);
    (*kind == BULK_TYPE).then(|| (to, u32::from_le_bytes(*session), *receiver, *sender, counter))
}
