//! The packets that host 1's lanes send, each with a number in it.

use std::net::IpAddr;

use isthmus_core::sim::Topology;
use isthmus_core::sim::packets::{ACK, tcp, tcp_key, udp, udp_key};
use isthmus_packet::{FlowKey, Headers, Offload};

/// Payload bytes of a packet: its flow's name, its number, and more.
pub(crate) const SEGMENT: usize = 100;

/// The flows. Each stays with one lane, as it does with a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Flow {
    Bulk,
    Log,
    Mixed,
    /// By the rule that the next revision doesn't have.
    Cut,
    /// To a host that it doesn't have.
    Gone,
    /// Begins among the others.
    New,
}

/// Packets that the kernel gives a lane in one read.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    pub(crate) flow: Flow,
    /// Of how many packets.
    pub(crate) count: usize,
    pub(crate) offload: Offload,
    pub(crate) packet: Vec<u8>,
}

impl Flow {
    pub(crate) const ALL: [Self; 6] =
        [Self::Bulk, Self::Log, Self::Mixed, Self::Cut, Self::Gone, Self::New];

    pub(crate) const fn is_cut(self) -> bool {
        match self {
            Self::Cut | Self::Gone => true,
            Self::Bulk | Self::Log | Self::Mixed | Self::New => false,
        }
    }

    pub(crate) const fn ends_at(self, host: u32) -> bool {
        match self {
            Self::Gone => host == 3,
            Self::Bulk | Self::Log | Self::Mixed | Self::Cut | Self::New => host == 2,
        }
    }

    const fn is_tcp(self) -> bool {
        match self {
            Self::Bulk | Self::Mixed => true,
            Self::Log | Self::Cut | Self::Gone | Self::New => false,
        }
    }

    const fn service(self) -> (&'static str, u16) {
        match self {
            Self::Bulk | Self::Mixed => ("web", 80),
            Self::Log | Self::New => ("log", 514),
            Self::Cut => ("old", 515),
            Self::Gone => ("far", 516),
        }
    }

    /// As its client's socket has it.
    pub(crate) fn key(self, topology: &Topology) -> FlowKey {
        let (service, port) = self.service();
        let from: (IpAddr, u16) = (topology.host_address(1, true), 4000 + self as u16);
        let to = (topology.vip(service, true), port);
        if self.is_tcp() { tcp_key(from, to) } else { udp_key(from, to) }
    }

    /// So many packets in a row, from a number on, in one frame.
    fn frame(self, first: u32, count: usize, topology: &Topology) -> Frame {
        let payload: Vec<u8> = (first..).take(count).flat_map(|at| self.payload(at)).collect();
        let key = self.key(topology);
        let sequence = 101 + first * SEGMENT as u32;
        let packet = if self.is_tcp() {
            tcp(&key, ACK, sequence, 501, &payload)
        } else {
            udp(&key, &payload)
        };
        let headers = Headers::parse(&packet).expect("a packet of ours");
        let offload = Offload {
            checksum_start: u16::try_from(headers.l4_offset).ok(),
            segment: Some(SEGMENT as u16),
        };
        let offload = if count > 1 { offload } else { Offload::NONE };
        Frame { flow: self, count, offload, packet }
    }

    fn payload(self, number: u32) -> [u8; SEGMENT] {
        let mut payload = [self as u8; SEGMENT];
        payload[1..5].copy_from_slice(&number.to_be_bytes());
        payload
    }

    /// Header of a test payload.
    pub(crate) fn read(payload: &[u8]) -> Option<(Self, u32)> {
        let (flow, rest) = payload.split_first()?;
        let number = rest.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))?;
        let flow = Self::ALL.into_iter().find(|it| *it as u8 == *flow)?;
        (payload.len() == SEGMENT).then_some((flow, number))
    }
}

/// Batches that each lane of host 1 reads.
pub(crate) fn lanes(topology: &Topology) -> [Vec<Vec<Frame>>; 3] {
    let plans: [&[&[(Flow, usize)]]; 3] = [
        &[
            &[(Flow::Bulk, 5), (Flow::Log, 1)],
            &[(Flow::Log, 1), (Flow::Bulk, 3), (Flow::Bulk, 1)],
            &[(Flow::Bulk, 4), (Flow::Log, 1)],
            &[(Flow::Log, 1), (Flow::Log, 1)],
        ],
        &[
            &[(Flow::Mixed, 1), (Flow::Cut, 1), (Flow::Mixed, 2)],
            &[(Flow::Cut, 1)],
            &[(Flow::Mixed, 3), (Flow::Cut, 2)],
            &[(Flow::Mixed, 1), (Flow::Cut, 1)],
        ],
        &[
            &[(Flow::Gone, 1), (Flow::New, 3), (Flow::New, 1)],
            &[(Flow::New, 2), (Flow::Gone, 3)],
            &[(Flow::Gone, 1), (Flow::New, 2)],
            &[(Flow::New, 1), (Flow::Gone, 1)],
        ],
    ];
    let mut next = [0u32; Flow::ALL.len()];
    plans.map(|batches| {
        let mut frame = |(flow, count): &(Flow, usize)| {
            let first = next[*flow as usize];
            next[*flow as usize] += *count as u32;
            flow.frame(first, *count, topology)
        };
        batches.iter().map(|batch| batch.iter().map(&mut frame).collect()).collect()
    })
}
