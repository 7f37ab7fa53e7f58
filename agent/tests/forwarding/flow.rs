//! A flow of the test, and the headers of its packets.

use isthmus_packet::{Address, FlowKey, protocol};

use super::random::Random;

pub(crate) const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const PSH: u8 = 0x08;
pub(crate) const ACK: u8 = 0x10;
pub(crate) const URG: u8 = 0x20;
pub(crate) const ECE: u8 = 0x40;
pub(crate) const CWR: u8 = 0x80;

const DONT_FRAGMENT: u8 = 0x40;
/// IPv6 extension headers.
const HOP_BY_HOP: u8 = 0;
const DESTINATION: u8 = 60;
/// Ports beyond mean something to agents.
const PORTS: usize = 15_000;

/// What packets of a flow have in common, and the next one's numbers.
pub(crate) struct Flow {
    pub(crate) key: FlowKey,
    pub(crate) class: u8,
    pub(crate) hops: u8,
    label: [u8; 3],
    pub(crate) identification: u16,
    dont_fragment: bool,
    pub(crate) sequence: u32,
    pub(crate) acknowledgement: u32,
    pub(crate) window: u16,
    has_timestamps: bool,
}

/// What differs from packet to packet.
#[derive(Clone, Default)]
pub(crate) struct Look {
    pub(crate) flags: u8,
    pub(crate) class: u8,
    /// Options of IPv4, or the extension headers of IPv6 after the first one's kind.
    pub(crate) between: Vec<u8>,
    pub(crate) tcp_options: Vec<u8>,
    /// Bytes after what UDP says is its end.
    pub(crate) behind: usize,
}

impl Flow {
    pub(crate) fn new(random: &mut Random, hosts: [[Address; 2]; 2]) -> Self {
        let [source, destination] = random.of(&hosts);
        let mut port = || random.between(1, PORTS) as u16;
        let (source_port, destination_port) = (port(), port());
        let protocol = random.of(&[protocol::TCP, protocol::UDP]);
        let key = FlowKey { source, destination, source_port, destination_port, protocol };
        Self::of(key, random)
    }

    pub(crate) fn of(key: FlowKey, random: &mut Random) -> Self {
        Self {
            key,
            class: random.next() as u8,
            hops: random.between(2, 255) as u8,
            label: [random.next() as u8, random.next() as u8, random.next() as u8],
            identification: if random.one_in(4) { 0 } else { random.next() as u16 },
            dont_fragment: random.one_in(2),
            sequence: random.next() as u32,
            acknowledgement: random.next() as u32,
            window: random.next() as u16,
            has_timestamps: random.one_in(2),
        }
    }

    pub(crate) fn is_v4(&self) -> bool {
        self.key.source.is_v4()
    }

    pub(crate) fn is_tcp(&self) -> bool {
        self.key.protocol == protocol::TCP
    }

    /// Whether routers may fragment its packets.
    pub(crate) fn may_be_large(&self) -> bool {
        self.is_v4() && !self.dont_fragment
    }

    pub(crate) fn move_on(&mut self, payload: usize, packets: usize) {
        self.sequence = self.sequence.wrapping_add(payload as u32);
        self.identification = self.identification.wrapping_add(packets as u16);
    }

    /// A packet's look: data, as the flow usually sends it.
    pub(crate) fn look(&self, random: &mut Random) -> Look {
        let tcp_options = self.tcp_options(random);
        Look { flags: ACK, class: self.class, tcp_options, ..Look::default() }
    }

    /// None, timestamps, SACK blocks, or both.
    pub(crate) fn tcp_options(&self, random: &mut Random) -> Vec<u8> {
        let mut options = Vec::new();
        if !self.is_tcp() {
            return options;
        }
        if self.has_timestamps {
            options.extend([1, 1, 8, 10]);
            options.extend(random.next().to_be_bytes());
        }
        if random.one_in(4) {
            let blocks = random.between(1, if self.has_timestamps { 3 } else { 4 });
            options.extend([1, 1, 5, 2 + 8 * blocks as u8]);
            options.extend((0..blocks).flat_map(|_| random.next().to_be_bytes()));
        }
        options
    }

    /// IPv4 options or IPv6 extension headers.
    pub(crate) fn between(&self, random: &mut Random) -> Vec<u8> {
        if self.is_v4() { v4_options(random) } else { extensions(self.key.protocol, random) }
    }

    /// Of IP and transport together.
    pub(crate) fn header_length(&self, look: &Look) -> usize {
        let transport = if self.is_tcp() { 20 + look.tcp_options.len() } else { 8 };
        let ip = if self.is_v4() {
            20 + look.between.len()
        } else {
            40 + look.between.len().saturating_sub(1)
        };
        ip + transport
    }

    /// Writes all headers of a packet, with zeros for checksums.
    pub(crate) fn write(&self, out: &mut Vec<u8>, payload: usize, look: &Look) {
        let total = self.header_length(look) + payload + look.behind;
        match (self.key.source.v4_octets(), self.key.destination.v4_octets()) {
            (Some(source), Some(destination)) => {
                self.write_v4(out, total, look);
                out.extend(source);
                out.extend(destination);
                out.extend(&look.between);
            }
            _ => self.write_v6(out, total, look),
        }
        out.extend(self.key.source_port.to_be_bytes());
        out.extend(self.key.destination_port.to_be_bytes());
        if self.is_tcp() {
            self.write_tcp(out, look);
        } else {
            out.extend((8 + payload as u16).to_be_bytes());
            out.extend([0, 0]);
        }
    }

    fn write_v4(&self, out: &mut Vec<u8>, total: usize, look: &Look) {
        out.extend([0x45 + (look.between.len() / 4) as u8, look.class]);
        out.extend((total as u16).to_be_bytes());
        out.extend(self.identification.to_be_bytes());
        let flags = if self.dont_fragment { DONT_FRAGMENT } else { 0 };
        out.extend([flags, 0, self.hops, self.key.protocol, 0, 0]);
    }

    fn write_v6(&self, out: &mut Vec<u8>, total: usize, look: &Look) {
        let (next, chain) = look.between.split_first().unwrap_or((&self.key.protocol, &[]));
        let [high, middle, low] = self.label;
        out.extend([0x60 | look.class >> 4, look.class << 4 | high & 0x0f, middle, low]);
        out.extend(((total - 40) as u16).to_be_bytes());
        out.extend([*next, self.hops]);
        out.extend(self.key.source.v6_octets());
        out.extend(self.key.destination.v6_octets());
        out.extend(chain);
    }

    fn write_tcp(&self, out: &mut Vec<u8>, look: &Look) {
        let urgent: u16 = if look.flags & URG != 0 { 17 } else { 0 };
        out.extend(self.sequence.to_be_bytes());
        out.extend(self.acknowledgement.to_be_bytes());
        out.extend([0x50 + (look.tcp_options.len() << 2) as u8, look.flags]);
        out.extend(self.window.to_be_bytes());
        out.extend([0, 0]);
        out.extend(urgent.to_be_bytes());
        out.extend(&look.tcp_options);
    }
}

/// Such as forwarding leaves as they are.
fn v4_options(random: &mut Random) -> Vec<u8> {
    match random.below(4) {
        // A stream identifier, no operation, the end.
        0 => vec![136, 4, 0, 9, 1, 1, 1, 0],
        // Router alert (RFC 2113).
        1 => vec![148, 4, 0, 0],
        // Record route, full.
        2 => vec![7, 7, 8, 10, 1, 2, 3, 0],
        _ => vec![1; random.between(1, 10) * 4],
    }
}

/// Hop-by-hop options, destination options: the first one's kind, then all of them, up to the
/// transport.
fn extensions(transport: u8, random: &mut Random) -> Vec<u8> {
    let kinds: &[u8] = random.of(&[
        &[HOP_BY_HOP],
        &[DESTINATION],
        &[HOP_BY_HOP, DESTINATION],
        &[DESTINATION, DESTINATION],
    ]);
    let mut chain = vec![kinds[0]];
    for (kind, next) in kinds.iter().zip(kinds[1..].iter().chain([&transport])) {
        // The kernel drops what has more than seven bytes of padding for each hop.
        let words = if *kind == HOP_BY_HOP { 0 } else { random.below(2) };
        chain.extend([*next, words as u8]);
        pad(&mut chain, 6 + words * 8, random);
    }
    chain
}

/// Padding, in options of up to seven bytes.
fn pad(chain: &mut Vec<u8>, length: usize, random: &mut Random) {
    let end = chain.len() + length;
    while chain.len() < end {
        match random.between(1, (end - chain.len()).min(7)) {
            1 => chain.push(0),
            option => {
                chain.extend([1, option as u8 - 2]);
                chain.resize(chain.len() + option - 2, 0);
            }
        }
    }
}
