//! Forwarding test: the mesh delivers what the kernel's own forwarding makes of the same frames, packet
//! by packet and byte by byte.
//!
//! ```text
//!   frames ─┬─▶ kernel ─────────────────────────────────▶ packets (1)
//!           ├─▶ node ═▶ node, device without offload ───▶ packets (2)     must be as (1)
//!           └─▶ node ═▶ node, device with it ─▶ kernel ─▶ packets (3)     must be as (1)
//! ```
//!
//! The second way tests splitting, the third putting together. What may differ is named where it is
//! let pass: [`Way`], [`settle_zero`], [`alike_but_for_hops`], [`alike_but_for_identification`].

mod batch;
mod flow;
mod generator;
mod hairpin;
mod kernel;
mod mesh;
mod packets;
mod random;

use std::ops::Range;

use batch::{Frame, Way};
use generator::{FLOWS, Generator};
use isthmus_net::testing::in_netns;
use isthmus_packet::{Headers, Offload, SuperPacket, VNET_HEADER, checksum, protocol};
use kernel::Kernel;
use mesh::{Mesh, Session};
use packets::{Row, whole};

/// Compared each way.
const PACKETS: usize = 1_000_000;
/// `ISTHMUS_SEED` is another.
const SEED: u64 = 3;

#[test]
fn what_comes_out_is_what_the_kernel_itself_forwards() {
    in_netns(|| {
        let seed = std::env::var("ISTHMUS_SEED").ok().map(|seed| seed.parse().expect("a number"));
        let mut comparison = Comparison::new(seed.unwrap_or(SEED));
        while comparison.packets < PACKETS {
            comparison.step();
        }
        // It was worth it: frames stood for many, on both sides.
        let Comparison { packets, frames_in, frames_out, .. } = comparison;
        println!("{packets} packets came in {frames_in} frames and went in {frames_out}");
        assert!(frames_in * 2 < packets && frames_out * 2 < packets);
    });
}

struct Comparison {
    seed: u64,
    generator: Generator,
    kernel: Kernel,
    /// They take turns.
    by_bulk: Meshes,
    by_wireguard: Meshes,
    /// What the kernel makes of a batch, and why.
    forwarded: Row,
    expected: Vec<Expected>,
    /// What our ways make of it.
    one_by_one: Row,
    frames: Row,
    put_together: Row,
    split: Row,
    batches: usize,
    packets: usize,
    frames_in: usize,
    frames_out: usize,
}

/// Without and with offload at the receiver's device.
struct Meshes {
    apart: Mesh,
    together: Mesh,
}

/// A packet that must come out.
struct Expected {
    flow: usize,
    way: Way,
    packet: Range<usize>,
}

impl Comparison {
    fn new(seed: u64) -> Self {
        let kernel = Kernel::new();
        let meshes = |session| Meshes {
            apart: Mesh::new(session, false),
            together: Mesh::new(session, true),
        };
        let (by_bulk, by_wireguard) = (meshes(Session::Bulk), meshes(Session::WireGuard));
        let hosts = [true, false].map(|v4| by_bulk.apart.addresses(v4));
        Self {
            seed,
            generator: Generator::new(seed, hosts),
            kernel,
            by_bulk,
            by_wireguard,
            forwarded: Row::new(),
            expected: Vec::new(),
            one_by_one: Row::new(),
            frames: Row::new(),
            put_together: Row::new(),
            split: Row::new(),
            batches: 0,
            packets: 0,
            frames_in: 0,
            frames_out: 0,
        }
    }

    /// Compares what comes of a batch of frames.
    fn step(&mut self) {
        for row in [&mut self.forwarded, &mut self.one_by_one, &mut self.frames] {
            row.clear();
        }
        self.put_together.clear();
        self.split.clear();
        self.expected.clear();
        let batch: Vec<(&Frame, &[u8])> = self.generator.batch().collect();
        for (frame, bytes) in &batch {
            forward(&mut self.kernel, frame, bytes, &mut self.forwarded, &mut self.expected);
            if frame.way == Way::Splitter {
                split(bytes, &mut self.split);
            }
        }
        let carried = || {
            let carried = batch.iter().filter(|(frame, _)| frame.way != Way::Splitter);
            carried.map(|(_, bytes)| *bytes)
        };
        let is_even = self.batches.is_multiple_of(2);
        let Meshes { apart, together } =
            if is_even { &mut self.by_bulk } else { &mut self.by_wireguard };
        apart.carry(carried(), &mut self.one_by_one);
        together.carry(carried(), &mut self.frames);
        for frame in self.frames.iter() {
            self.kernel.forward(frame, &mut self.put_together);
        }
        self.batches += 1;
        self.packets += self.expected.len();
        self.frames_in += batch.len();
        self.frames_out += self.frames.ranges.len();
        self.compare();
    }

    fn compare(&self) {
        self.all_alike(
            "what a node splits",
            &[Way::Tunnel, Way::WrongHeader],
            self.one_by_one.iter().map(whole),
            |way, kernels, ours| match way {
                Way::WrongHeader => kernels == ours,
                Way::Tunnel | Way::Splitter => alike_but_for_hops(kernels, ours),
            },
        );
        self.all_alike(
            "what is split alone",
            &[Way::Splitter],
            self.split.iter(),
            |_, kernels, ours| alike_but_for_hops(kernels, ours),
        );
        self.all_alike(
            "what a node puts together",
            &[Way::Tunnel],
            self.put_together.iter().map(whole),
            |_, kernels, ours| alike_but_for_identification(kernels, ours),
        );
    }

    fn all_alike<'a>(
        &self,
        what: &str,
        ways: &[Way],
        mut ours: impl Iterator<Item = &'a [u8]>,
        are_alike: impl Fn(Way, &[u8], &[u8]) -> bool,
    ) {
        for expected in self.expected.iter().filter(|expected| ways.contains(&expected.way)) {
            let kernels = self.forwarded.get(&expected.packet);
            let ours = ours.next().unwrap_or_default();
            if !are_alike(expected.way, kernels, ours) {
                self.fail(what, expected.flow, kernels, ours);
            }
        }
        if let Some(more) = ours.next() {
            self.fail(&format!("{what}, beyond all"), FLOWS, &[], more);
        }
    }

    fn fail(&self, what: &str, flow: usize, kernels: &[u8], ours: &[u8]) -> ! {
        let Self { seed, batches, .. } = self;
        let pairs = kernels.iter().zip(ours).enumerate();
        let differ: Vec<usize> = pairs
            .filter(|(_, (kernels, ours))| kernels != ours)
            .map(|(at, _)| at)
            .take(9)
            .collect();
        let (kernels_length, our_length) = (kernels.len(), ours.len());
        panic!(
            "{what}, seed {seed}, batch {batches}, flow {flow}: bytes {differ:?} differ first\n\
             kernel's, {kernels_length} bytes: {}\nours, {our_length} bytes: {}\n{}{}",
            hex(kernels),
            hex(ours),
            self.by_bulk.together.counters(),
            self.by_wireguard.together.counters(),
        );
    }
}

/// What the kernel makes of a frame.
fn forward(
    kernel: &mut Kernel,
    frame: &Frame,
    bytes: &[u8],
    forwarded: &mut Row,
    expected: &mut Vec<Expected>,
) {
    let count = kernel.forward(bytes, forwarded);
    if frame.way == Way::WrongHeader {
        assert_eq!(count, 0, "a router drops a packet with a wrong header");
        forwarded.push(bytes);
    }
    for frame_at in expected.len()..forwarded.ranges.len() {
        let Range { start, end } = forwarded.ranges[frame_at];
        let packet = start + VNET_HEADER..end;
        settle_zero(bytes, forwarded.get_mut(&packet));
        expected.push(Expected { flow: frame.flow, way: frame.way, packet });
    }
}

/// What the splitter makes of a frame that the tunnel doesn't carry.
fn split(frame: &[u8], out: &mut Row) {
    let mut frame = frame.to_vec();
    let (offload, packet) = Offload::read(&mut frame).expect("a frame");
    let headers = Headers::parse(packet).expect("a packet");
    let Some(size) = offload.segment else {
        offload.complete(packet, &headers).expect("a checksum to complete");
        return out.push(packet);
    };
    let whole = SuperPacket::new(packet, &headers, size).expect("a super-packet");
    for index in 0..whole.count() {
        assert!(out.push_with(|room| whole.write(index, room)), "segment {index}");
    }
}

/// Where the kernel completes the checksum of a single packet, it writes 0xffff for zero, also for
/// TCP, which has no need of that. Both are right, and ours is what TCP itself writes.
fn settle_zero(frame: &[u8], forwarded: &mut [u8]) {
    let lacks_checksum_only = frame[..2] == [1, 0];
    if !lacks_checksum_only {
        return;
    }
    let headers = Headers::parse(forwarded).expect("a packet");
    let field = headers.l4_offset + 16;
    if headers.key.protocol == protocol::TCP && forwarded[field..field + 2] == [0xff; 2] {
        forwarded[field..field + 2].fill(0);
    }
}

/// Forwarding takes a hop.
fn alike_but_for_hops(kernels: &[u8], ours: &[u8]) -> bool {
    let hops = if is_v4(kernels) { 8 } else { 7 };
    let left = ours.get(hops).map(|hops| hops - 1);
    left == kernels.get(hops).copied() && alike_but_for(hops..hops + 1, kernels, ours)
}

/// Identifications of packets that mustn't be fragmented mean nothing (RFC 6864 section 4.1), and
/// aren't kept when packets are put together.
fn alike_but_for_identification(kernels: &[u8], ours: &[u8]) -> bool {
    let is_atomic = is_v4(kernels) && kernels.get(6).is_some_and(|flags| flags & 0x40 != 0);
    kernels == ours || is_atomic && alike_but_for(4..6, kernels, ours)
}

/// Whether packets differ in nothing but some bytes, and in the sum of IPv4's header because of
/// them, which must be right.
fn alike_but_for(bytes: Range<usize>, kernels: &[u8], ours: &[u8]) -> bool {
    let is_v4 = is_v4(kernels);
    let (Some((head, rest)), Some((our_head, our_rest))) =
        (kernels.split_first_chunk::<20>(), ours.split_first_chunk::<20>())
    else {
        return false;
    };
    let may_differ = |at: usize| bytes.contains(&at) || is_v4 && (10..12).contains(&at);
    let is_right = |packet: &[u8]| {
        let header = packet.get(..usize::from(head[0] & 0x0f) * 4);
        header.is_some_and(|header| checksum::sum(header) == 0xffff)
    };
    head.iter().zip(our_head).enumerate().all(|(at, (a, b))| a == b || may_differ(at))
        && rest == our_rest
        && (!is_v4 || is_right(kernels) && is_right(ours))
}

fn is_v4(packet: &[u8]) -> bool {
    packet.first().is_some_and(|byte| byte >> 4 == 4)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
