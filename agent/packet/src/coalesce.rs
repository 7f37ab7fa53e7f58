//! Making one packet of many, so that the kernel takes them in one write: the receiver's half of
//! segmentation, with the kernel's own rules for it (`net/ipv4/tcp_offload.c`, `udp_offload.c`).
//!
//! What comes out when the kernel splits a run again is what went in, byte for byte, but for one
//! thing: IPv4 identifications of packets that mustn't be fragmented, which mean nothing
//! (RFC 6864 section 4.1).

use super::checksum::{self, add};
use super::headers::Stream;
use super::{Headers, Offload, VNET_HEADER};

const ACK: u8 = 0x10;
const PSH: u8 = 0x08;
const MORE_FRAGMENTS_AND_OFFSET: u8 = 0x3f;

/// Segments in a run: what one UDP message brings at the most.
pub const MAX_SEGMENTS: usize = 64;
/// A run is an IP packet as far as its length goes.
const MAX_LENGTH: usize = 65_535;
/// IPv6, and TCP with all of its options.
const MAX_HEADER: usize = 40 + 60;

/// Properties shared by all packets of a run, and the condition for the next one.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    headers: Headers,
    stream: Stream,
    segment: usize,
    /// Bytes of the whole packet so far.
    length: usize,
    count: usize,
    /// TCP's next sequence number.
    next_sequence: u32,
    pushed: bool,
    /// Nothing may follow: the last packet was short, or said so.
    closed: bool,
}

/// Vnet header and the packet's headers of a run, for the kernel.
#[derive(Debug)]
pub struct RunHeader {
    bytes: [u8; VNET_HEADER + MAX_HEADER],
    length: usize,
}

impl RunHeader {
    /// Both, one behind the other.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

impl Run {
    /// Begins a run. None if the packet must stay alone: it isn't plain data, or its checksum is
    /// wrong, which must be the receiver's to see. A partial checksum has nothing to be verified.
    #[inline]
    pub fn begin(packet: &[u8], headers: &Headers, partial: bool) -> Option<Self> {
        let stream = headers.transport.stream()?;
        let payload = is_plain(packet, headers, stream, partial)?;
        let (sequence, pushed) = match stream {
            Stream::Tcp => {
                let tcp = packet.get(headers.l4_offset..)?.first_chunk::<14>()?;
                (u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]), tcp[13] & PSH != 0)
            }
            Stream::Udp => (0, false),
        };
        Some(Self {
            headers: *headers,
            stream,
            segment: payload,
            length: headers.total_length,
            count: 1,
            next_sequence: sequence.wrapping_add(payload as u32),
            pushed,
            closed: pushed,
        })
    }

    /// Adds a packet, if it follows. `first` is the run's first packet, unchanged.
    #[inline]
    pub fn join(&mut self, first: &[u8], packet: &[u8], headers: &Headers, partial: bool) -> bool {
        let Some(next) = self.follows(first, packet, headers, partial) else { return false };
        self.length += next.payload;
        self.count += 1;
        self.next_sequence = self.next_sequence.wrapping_add(next.payload as u32);
        self.pushed |= next.pushed;
        self.closed = next.pushed || next.payload < self.segment;
        true
    }

    #[inline]
    fn follows(
        &self,
        first: &[u8],
        packet: &[u8],
        headers: &Headers,
        partial: bool,
    ) -> Option<Next> {
        let payload = headers.total_length - headers.payload_offset;
        let fits = !self.closed
            && self.count < MAX_SEGMENTS
            && payload <= self.segment
            && payload > 0
            && self.length + payload <= MAX_LENGTH
            && headers.key == self.headers.key
            && headers.fragment.is_none()
            && headers.transport.stream() == Some(self.stream)
            && headers.payload_offset == self.headers.payload_offset
            && headers.l4_offset == self.headers.l4_offset;
        if !fits || !self.same_ip(first, packet) {
            return None;
        }
        let l4 = headers.l4_offset;
        let pushed = match self.stream {
            Stream::Tcp => {
                let old = first.get(l4..headers.payload_offset)?;
                let new = packet.get(l4..headers.payload_offset)?;
                let sequence = u32::from_be_bytes(*new.get(4..)?.first_chunk()?);
                // Ports are in the key; acknowledgement, offset, flags but PSH, window, urgent
                // pointer and options must be the same.
                let same = sequence == self.next_sequence
                    && old.get(8..13) == new.get(8..13)
                    && (old.get(13)? ^ new.get(13)?) & !PSH == 0
                    && old.get(14..16) == new.get(14..16)
                    && old.get(18..) == new.get(18..);
                if !same {
                    return None;
                }
                new.get(13)? & PSH != 0
            }
            Stream::Udp => false,
        };
        is_plain(packet, headers, self.stream, partial)?;
        Some(Next { payload, pushed })
    }

    /// Whether the IP headers differ in nothing but lengths, checksum and identification.
    #[inline]
    fn same_ip(&self, first: &[u8], packet: &[u8]) -> bool {
        if !self.headers.key.source.is_v4() {
            // Version, class and flow label; next header and hop limit.
            return first.get(..4) == packet.get(..4) && first.get(6..8) == packet.get(6..8);
        }
        let (Some(old), Some(new)) = (first.first_chunk::<20>(), packet.first_chunk::<20>()) else {
            return false;
        };
        let identification = |ip: &[u8; 20]| u16::from_be_bytes([ip[4], ip[5]]);
        let follows = identification(new) == identification(old).wrapping_add(self.count as u16);
        let dont_fragment = old[6] & 0x40 != 0;
        old[..2] == new[..2] && old[6..9] == new[6..9] && (follows || dont_fragment)
    }

    /// Number of packets.
    pub const fn count(&self) -> usize {
        self.count
    }

    /// The bytes of all its packets.
    pub const fn bytes(&self) -> usize {
        self.length + (self.count - 1) * self.headers.payload_offset
    }

    /// The length of a packet's payload.
    pub const fn payload(&self, index: usize) -> usize {
        if index + 1 < self.count {
            self.segment
        } else {
            self.length - self.headers.payload_offset - index * self.segment
        }
    }

    /// The headers of its first packet.
    pub const fn headers(&self) -> &Headers {
        &self.headers
    }

    /// The headers of the whole, made of those of its first packet (which may have been rewritten
    /// meanwhile).
    pub fn header(&self, first: &[u8], headers: &Headers) -> Option<RunHeader> {
        let vnet = Offload::header_of(headers, Some(u16::try_from(self.segment).ok()?))?;
        let length = VNET_HEADER + headers.payload_offset;
        let mut bytes = [0; VNET_HEADER + MAX_HEADER];
        bytes[..VNET_HEADER].copy_from_slice(&vnet);
        let packet = bytes.get_mut(VNET_HEADER..length)?;
        packet.copy_from_slice(first.get(..headers.payload_offset)?);
        let (ip, l4) = packet.split_at_mut_checked(headers.l4_offset)?;
        let total = u16::try_from(self.length).ok()?;
        let l4_length = self.length - headers.l4_offset;
        if headers.key.source.is_v4() {
            ip.get_mut(2..4)?.copy_from_slice(&total.to_be_bytes());
            ip.get_mut(10..12)?.fill(0);
            let value = checksum::checksum(ip);
            ip.get_mut(10..12)?.copy_from_slice(&value.to_be_bytes());
        } else {
            ip.get_mut(4..6)?.copy_from_slice(&(total - 40).to_be_bytes());
        }
        match self.stream {
            Stream::Tcp if self.pushed => *l4.get_mut(13)? |= PSH,
            Stream::Tcp => {}
            Stream::Udp => {
                l4.get_mut(4..6)?.copy_from_slice(&u16::try_from(l4_length).ok()?.to_be_bytes());
            }
        }
        let field = self.stream.checksum_offset();
        let key = &headers.key;
        let partial = checksum::pseudo_header(key.source, key.destination, key.protocol, l4_length);
        l4.get_mut(field..field + 2)?.copy_from_slice(&partial.to_be_bytes());
        Some(RunHeader { bytes, length })
    }
}

struct Next {
    payload: usize,
    pushed: bool,
}

/// The length of the packet's payload, if the packet is nothing but data with a right checksum.
#[inline]
fn is_plain(packet: &[u8], headers: &Headers, stream: Stream, partial: bool) -> Option<usize> {
    let payload = headers.total_length.checked_sub(headers.payload_offset)?;
    let ip_header = if headers.key.source.is_v4() { 20 } else { 40 };
    if payload == 0 || headers.fragment.is_some() || headers.l4_offset != ip_header {
        return None;
    }
    if ip_header == 20 && packet.get(6)? & (MORE_FRAGMENTS_AND_OFFSET | 0x80) != 0 {
        return None;
    }
    let segment = packet.get(headers.l4_offset..headers.total_length)?;
    let is_data = match stream {
        Stream::Tcp => *segment.get(13)? & !PSH == ACK,
        Stream::Udp => {
            let claimed = u16::from_be_bytes(*segment.get(4..)?.first_chunk()?);
            let has_checksum = partial || segment.get(6..8)? != [0, 0];
            has_checksum && usize::from(claimed) == segment.len()
        }
    };
    if !is_data {
        return None;
    }
    let key = &headers.key;
    let is_right = partial || {
        let pseudo_header =
            checksum::pseudo_header(key.source, key.destination, key.protocol, segment.len());
        add(pseudo_header, checksum::sum(segment)) == 0xffff
    };
    // A wrong sum of the IP header is the receiver's to see, too.
    let header_is_right = ip_header == 40 || checksum::sum(packet.get(..20)?) == 0xffff;
    (is_right && header_is_right).then_some(payload)
}
