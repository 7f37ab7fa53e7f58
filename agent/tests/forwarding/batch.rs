//! Frames in the making, and what can go wrong with them.

use std::ops::Range;

use isthmus_packet::{Headers, VNET_HEADER, checksum, protocol};

use super::flow::{CWR, Flow, Look};
use super::mesh::{LARGEST, LIMIT};
use super::random::Random;

const MORE_FRAGMENTS: u16 = 0x2000;
const FRAGMENT_HEADER: u8 = 44;
const NOISE: usize = 1 << 18;

/// A frame of a batch.
#[derive(Clone)]
pub(crate) struct Frame {
    bytes: Range<usize>,
    pub(crate) flow: usize,
    pub(crate) way: Way,
}

/// What a frame meets with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Way {
    /// The tunnel carries it.
    Tunnel,
    /// Its packets are too large for the tunnel, and may not be fragmented: their sender is told,
    /// so that only the splitter is left to be looked at.
    Splitter,
    /// The sum of its IPv4 header is wrong. A router drops such a packet; the tunnel is none, and
    /// leaves that to the receiver.
    WrongHeader,
}

/// Frames, the way a kernel gives them. What changes a packet changes the last one.
pub(crate) struct Batch {
    bytes: Vec<u8>,
    frames: Vec<Frame>,
    /// What payloads are cut from.
    noise: Vec<u8>,
}

impl Batch {
    pub(crate) fn new(random: &mut Random) -> Self {
        let noise = (0..NOISE).map(|_| random.next() as u8).collect();
        Self { bytes: Vec::new(), frames: Vec::new(), noise }
    }

    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.frames.clear();
    }

    pub(crate) fn frames(&self) -> impl ExactSizeIterator<Item = (&Frame, &[u8])> {
        self.frames.iter().map(|frame| (frame, &self.bytes[frame.bytes.clone()]))
    }

    pub(crate) fn frame_count(&self) -> usize {
        self.frames.len()
    }

    pub(crate) fn byte_count(&self) -> usize {
        self.bytes.len()
    }

    /// Adds a packet that lacks nothing.
    pub(crate) fn put(
        &mut self,
        number: usize,
        flow: &mut Flow,
        payload: usize,
        look: &Look,
        random: &mut Random,
    ) {
        self.put_unfinished(number, flow, payload, look, None, random);
        self.finish();
        flow.move_on(payload, 1);
    }

    /// Adds a packet without checksums. With a `segment` it is to stand for many.
    pub(crate) fn put_unfinished(
        &mut self,
        number: usize,
        flow: &Flow,
        payload: usize,
        look: &Look,
        segment: Option<usize>,
        random: &mut Random,
    ) {
        let start = self.bytes.len();
        self.bytes.resize(start + VNET_HEADER, 0);
        flow.write(&mut self.bytes, payload, look);
        let mut left = payload + look.behind;
        let mut from = random.below(NOISE);
        while left > 0 {
            let piece = left.min(NOISE - from);
            self.bytes.extend_from_slice(&self.noise[from..from + piece]);
            (left, from) = (left - piece, 0);
        }
        let largest = flow.header_length(look) + segment.unwrap_or(payload) + look.behind;
        let fits = largest <= LIMIT || flow.may_be_large() && largest <= LARGEST;
        let way = if fits { Way::Tunnel } else { Way::Splitter };
        self.frames.push(Frame { bytes: start..self.bytes.len(), flow: number, way });
    }

    fn last(&mut self) -> (&mut [u8], Headers) {
        let frame = self.frames.last().expect("a frame was put");
        let packet = &mut self.bytes[frame.bytes.start + VNET_HEADER..frame.bytes.end];
        let headers = Headers::parse(packet).expect("a packet");
        (packet, headers)
    }

    /// Computes all checksums.
    fn finish(&mut self) {
        let (packet, headers) = self.last();
        assert!(checksum::fill(packet, &headers));
    }

    /// Leaves the checksum, and perhaps segmentation, to who reads the frame.
    pub(crate) fn leave(&mut self, segment: Option<usize>) {
        self.finish();
        let (packet, headers) = self.last();
        let is_tcp = headers.key.protocol == protocol::TCP;
        let flags = if is_tcp { packet[headers.l4_offset + 13] } else { 0 };
        set_checksum(packet, &headers, partial_sum(&headers));
        let kind = match (is_tcp, headers.key.source.is_v4()) {
            (true, true) => 1,
            (true, false) => 4,
            (false, _) => 5,
        };
        let mut header = [0; VNET_HEADER];
        let mut put = |at: usize, value: usize| {
            header[at..at + 2].copy_from_slice(&(value as u16).to_ne_bytes());
        };
        put(6, headers.l4_offset);
        put(8, checksum_field(&headers) - headers.l4_offset);
        if let Some(segment) = segment {
            put(2, headers.payload_offset);
            put(4, segment);
            header[1] = kind | flags & CWR;
        }
        header[0] = 1;
        let start = self.frames.last().map_or(0, |frame| frame.bytes.start);
        self.bytes[start..start + VNET_HEADER].copy_from_slice(&header);
    }

    /// The payload changed on its way; or the checksum, if there is no payload.
    pub(crate) fn spoil_payload(&mut self, random: &mut Random) {
        let (packet, _) = self.last();
        if let Some(byte) = packet.last_mut() {
            *byte ^= 1 << random.below(8);
        }
    }

    pub(crate) fn spoil_checksum(&mut self, random: &mut Random) {
        let (packet, headers) = self.last();
        packet[checksum_field(&headers)] ^= 1 << random.below(8);
    }

    /// UDP over IPv4 may do without; over IPv6 the receiver drops it.
    pub(crate) fn drop_checksum(&mut self) {
        let (packet, headers) = self.last();
        set_checksum(packet, &headers, 0);
    }

    /// A checksum that would be right if all that IP carries were the datagram.
    pub(crate) fn sum_all(&mut self) {
        self.drop_checksum();
        let (packet, headers) = self.last();
        let all = &packet[headers.l4_offset..headers.total_length];
        let value = !checksum::add(partial_sum(&headers), checksum::sum(all));
        set_checksum(packet, &headers, value);
    }

    /// Changes the payload so that the checksum comes out as zero, if there is any payload.
    pub(crate) fn sum_up_to_zero(&mut self) {
        self.finish();
        let (packet, headers) = self.last();
        let (field, at) = (checksum_field(&headers), headers.payload_offset);
        let word = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
        if headers.total_length >= at + 2 {
            let value = checksum::add(word(at), word(field));
            packet[at..at + 2].copy_from_slice(&value.to_be_bytes());
            self.finish();
        }
    }

    /// The sum of an IPv4 header.
    pub(crate) fn spoil_header(&mut self) {
        let (packet, headers) = self.last();
        if headers.key.source.is_v4() {
            packet[11] ^= 0x10;
            self.frames.last_mut().expect("a frame was put").way = Way::WrongHeader;
        }
    }

    /// The last frame comes twice.
    pub(crate) fn again(&mut self) {
        self.frames.extend(self.frames.last().cloned());
    }

    /// The last two frames come the other way round.
    pub(crate) fn swap(&mut self) {
        if let [.., one, two] = &mut self.frames[..] {
            std::mem::swap(one, two);
        }
    }

    /// The last packet comes in pieces instead; those after the first in any order.
    pub(crate) fn fragment(&mut self, piece: usize, random: &mut Random) {
        let Some(Frame { bytes, flow, .. }) = self.frames.pop() else { return };
        let whole = self.bytes.split_off(bytes.start);
        let is_v4 = whole[VNET_HEADER] >> 4 == 4;
        let (header, body) = whole.split_at(VNET_HEADER + if is_v4 { 20 } else { 40 });
        let first = self.frames.len();
        let identification = random.next() as u32;
        for (index, part) in body.chunks(piece).enumerate() {
            let start = self.bytes.len();
            let offset = (index * piece) as u16;
            let more = index * piece + part.len() < body.len();
            self.bytes.extend_from_slice(header);
            if is_v4 {
                make_fragment_v4(&mut self.bytes[start + VNET_HEADER..], part.len(), offset, more);
            } else {
                let ip = &mut self.bytes[start + VNET_HEADER..];
                ip[4..6].copy_from_slice(&(8 + part.len() as u16).to_be_bytes());
                let next = std::mem::replace(&mut ip[6], FRAGMENT_HEADER);
                self.bytes.extend([next, 0]);
                self.bytes.extend((offset | u16::from(more)).to_be_bytes());
                self.bytes.extend(identification.to_be_bytes());
            }
            self.bytes.extend_from_slice(part);
            self.frames.push(Frame { bytes: start..self.bytes.len(), flow, way: Way::Tunnel });
        }
        for at in first + 1..self.frames.len() {
            self.frames.swap(at, random.between(first + 1, at));
        }
    }
}

fn make_fragment_v4(ip: &mut [u8], length: usize, offset: u16, more: bool) {
    let field = (offset / 8) | if more { MORE_FRAGMENTS } else { 0 };
    ip[2..4].copy_from_slice(&(20 + length as u16).to_be_bytes());
    ip[6..8].copy_from_slice(&field.to_be_bytes());
    ip[10..12].fill(0);
    let value = checksum::checksum(&ip[..20]);
    ip[10..12].copy_from_slice(&value.to_be_bytes());
}

/// Where in the packet the transport's checksum is.
fn checksum_field(headers: &Headers) -> usize {
    headers.l4_offset + if headers.key.protocol == protocol::TCP { 16 } else { 6 }
}

pub(crate) fn set_checksum(packet: &mut [u8], headers: &Headers, value: u16) {
    let field = checksum_field(headers);
    packet[field..field + 2].copy_from_slice(&value.to_be_bytes());
}

/// What the kernel leaves of the checksum.
pub(crate) fn partial_sum(headers: &Headers) -> u16 {
    let key = &headers.key;
    let length = headers.total_length - headers.l4_offset;
    checksum::pseudo_header(key.source, key.destination, key.protocol, length)
}
