//! Random packets of random flows: what a host sends, and what it should not.

use isthmus_packet::{Address, FlowKey};

use super::batch::{Batch, Frame};
use super::flow::{ACK, CWR, ECE, FIN, Flow, Look, PSH, RST, SYN, URG};
use super::mesh::{LARGEST, LIMIT};
use super::random::Random;

pub(crate) const FLOWS: usize = 10_000;
/// As many as the agent reads before it sends what they led to.
const BATCH_FRAMES: usize = 64;
const BATCH_BYTES: usize = 128 << 10;
/// The longest that a device gives.
const SUPER_PACKET: usize = 65_535;
/// Smaller segments of larger super-packets test nothing more.
const TCP_SEGMENTS: usize = 600;
/// The kernel neither makes nor takes more (UDP_MAX_SEGMENTS).
const UDP_SEGMENTS: usize = 128;
/// Room for all headers.
const HEADERS: usize = 180;

/// Makes batches of frames.
pub(crate) struct Generator {
    random: Random,
    flows: Vec<Flow>,
    batch: Batch,
}

impl Generator {
    /// `hosts`: the addresses of sender and receiver, of either family.
    pub(crate) fn new(seed: u64, hosts: [[Address; 2]; 2]) -> Self {
        let mut random = Random(seed);
        let flows = (0..FLOWS).map(|_| Flow::new(&mut random, hosts)).collect();
        let batch = Batch::new(&mut random);
        Self { random, flows, batch }
    }

    /// Makes packets of these flows only.
    pub(crate) fn of(seed: u64, keys: impl Iterator<Item = FlowKey>) -> Self {
        let mut random = Random(seed);
        let flows = keys.map(|key| Flow::of(key, &mut random)).collect();
        let batch = Batch::new(&mut random);
        Self { random, flows, batch }
    }

    /// The next frames, with nothing wrong about any of them.
    pub(crate) fn faultless_batch(&mut self) -> impl ExactSizeIterator<Item = (&Frame, &[u8])> {
        self.batch.clear();
        while self.batch.frame_count() < BATCH_FRAMES && self.batch.byte_count() < BATCH_BYTES {
            match self.random.below(4) {
                0 | 1 => self.super_packet(),
                2 => self.unfinished(),
                _ => self.finished(),
            }
        }
        self.batch.frames()
    }

    /// The next frames.
    pub(crate) fn batch(&mut self) -> impl ExactSizeIterator<Item = (&Frame, &[u8])> {
        self.batch.clear();
        while self.batch.frame_count() < BATCH_FRAMES && self.batch.byte_count() < BATCH_BYTES {
            match self.random.below(16) {
                0..6 => self.super_packet(),
                6..12 => self.row(),
                12 => self.unfinished(),
                13 => self.fragments(),
                _ => self.oddity(),
            }
        }
        self.batch.frames()
    }

    /// One that stands for many.
    fn super_packet(&mut self) {
        let Self { random, flows, batch } = self;
        let number = random.below(flows.len());
        let flow = &mut flows[number];
        let mut look = flow.look(random);
        look.flags |= random.of(&[0, 0, 0, PSH, FIN, FIN | PSH, CWR, ECE, URG, CWR | PSH]);
        if random.one_in(8) {
            look.between = flow.between(random);
        }
        let full = LIMIT - flow.header_length(&look);
        let size = match random.below(12) {
            0 => random.between(1, 100),
            1 => random.of(&[536, 1000, 1200, 1220, 1232]),
            2 => random.between(full, 30_000),
            3..7 => full,
            _ => random.between(100, full),
        };
        let room = SUPER_PACKET - flow.header_length(&look);
        let segments = if flow.is_tcp() { TCP_SEGMENTS } else { UDP_SEGMENTS };
        let largest = room.min(size * segments);
        let payload = match random.below(4) {
            0 => largest,
            1 => size * random.between(2, largest / size),
            _ => random.between(size, largest),
        };
        // The kernel never says "many" of what is one.
        let payload = payload.clamp(size + 1, room);
        batch.put_unfinished(number, flow, payload, &look, Some(size), random);
        batch.leave(Some(size));
        flow.move_on(payload, payload.div_ceil(size));
    }

    /// Packets of a few flows that follow each other, with all that may come between.
    fn row(&mut self) {
        let random = &mut self.random;
        let mut looks = Vec::new();
        let flags = if random.one_in(8) { random.of(&[ECE, CWR, URG, FIN]) } else { 0 };
        for _ in 0..random.between(1, 3) {
            let number = random.below(self.flows.len());
            let look = self.flows[number].look(random);
            looks.push((number, Look { flags: ACK | flags, ..look }));
        }
        let size = match random.below(4) {
            0 => random.between(1, 300),
            _ => random.between(300, LIMIT - HEADERS),
        };
        for _ in 0..random.between(2, 50) {
            let at = if self.random.one_in(6) { self.random.below(looks.len()) } else { 0 };
            let (number, look) = &mut looks[at];
            self.next_of_row(*number, look, size);
        }
    }

    fn next_of_row(&mut self, number: usize, usual: &mut Look, size: usize) {
        let Self { random, flows, batch } = self;
        let flow = &mut flows[number];
        let event = random.below(80);
        let mut look = usual.clone();
        let mut payload = size;
        match event {
            0 => payload = 0,
            1 => payload = random.between(1, size),
            2 => payload = random.between(1, LIMIT - HEADERS),
            3 => look.class |= 3,
            4 => look.flags |= PSH,
            5 => look.flags |= FIN,
            6 => look.flags ^= random.of(&[ECE, CWR, URG]),
            7 => flow.acknowledgement = flow.acknowledgement.wrapping_add(1000),
            8 => flow.window ^= 0x80,
            9 => flow.identification ^= 0x1000,
            10 => flow.sequence ^= 0x1000,
            11 => flow.hops = random.between(2, 255) as u8,
            12 => usual.tcp_options = flow.tcp_options(random),
            13 | 14 if !flow.is_tcp() => look.behind = random.between(1, 20),
            _ => {}
        }
        batch.put(number, flow, payload, &look, random);
        match event {
            13 if !flow.is_tcp() => batch.sum_all(),
            15 if !flow.is_tcp() => {
                batch.sum_up_to_zero();
                batch.drop_checksum();
            }
            16 => batch.spoil_payload(random),
            17 => batch.spoil_header(),
            18 => batch.again(),
            19 => batch.swap(),
            _ => {}
        }
    }

    /// One that lacks its checksum.
    fn unfinished(&mut self) {
        let Self { random, flows, batch } = self;
        let number = random.below(flows.len());
        let flow = &mut flows[number];
        let mut look = flow.look(random);
        look.flags |= random.of(&[0, PSH, FIN, URG]);
        if random.one_in(4) {
            look.between = flow.between(random);
        }
        let payload = match random.below(4) {
            0 => random.below(40),
            1 => random.between(0, LARGEST - flow.header_length(&look)),
            _ => random.between(0, LIMIT - HEADERS),
        };
        batch.put_unfinished(number, flow, payload, &look, None, random);
        if random.one_in(20) {
            batch.sum_up_to_zero();
        }
        batch.leave(None);
        flow.move_on(payload, 1);
    }

    /// One that lacks nothing.
    fn finished(&mut self) {
        let Self { random, flows, batch } = self;
        let number = random.below(flows.len());
        let flow = &mut flows[number];
        let look = flow.look(random);
        let payload = random.between(0, LARGEST - flow.header_length(&look));
        batch.put(number, flow, payload, &look, random);
    }

    /// A datagram in pieces.
    fn fragments(&mut self) {
        let Self { random, flows, batch } = self;
        let number = random.below(flows.len());
        let flow = &mut flows[number];
        let look = flow.look(random);
        let payload = random.between(200, 6000);
        batch.put(number, flow, payload, &look, random);
        let piece = random.between(10, 150) * 8;
        batch.fragment(piece, random);
        if random.one_in(4) {
            batch.again();
        }
    }

    /// What is a packet in its own right, and rare.
    fn oddity(&mut self) {
        let Self { random, flows, batch } = self;
        let number = random.below(flows.len());
        let flow = &mut flows[number];
        let mut look = flow.look(random);
        look.flags =
            random.of(&[ACK, ACK | PSH, ACK | FIN, ACK | URG, ACK | ECE | CWR, SYN, RST, 0]);
        look.class = random.next() as u8;
        if random.one_in(2) {
            look.between = flow.between(random);
        }
        let payload = match random.below(3) {
            0 => 0,
            1 if flow.may_be_large() => random.between(0, LARGEST - flow.header_length(&look)),
            _ => random.between(0, LIMIT - HEADERS),
        };
        batch.put(number, flow, payload, &look, random);
        match random.below(8) {
            0 => batch.spoil_payload(random),
            1 => batch.spoil_header(),
            2 if !flow.is_tcp() => batch.drop_checksum(),
            3 => batch.spoil_checksum(random),
            4 => batch.again(),
            _ => {}
        }
    }
}
