//! The internet checksum (RFC 1071), its incremental update (RFC 1624), and the pseudo-headers of
//! IPv4 (RFC 9293 section 3.1) and IPv6 (RFC 8200 section 8.1).
//!
//! A *sum* here is the folded one's complement sum in network order; a *checksum* is its
//! complement, as headers hold it. A *delta* is the sum of `new + !old` for every changed word:
//! adding it to a sum replaces the old words by the new.

use super::{Address, Headers, Transport, protocol};

/// The one's complement sum of `bytes`; an odd last byte is padded with zero.
#[inline]
pub fn sum(bytes: &[u8]) -> u16 {
    // RFC 1071 section 2 (B): byte order doesn't matter until the end, so whole native words can
    // be added, and the compiler vectorises this loop.
    let mut total = 0u64;
    let (words, rest) = bytes.as_chunks::<8>();
    for word in words {
        let word = u64::from_ne_bytes(*word);
        total += (word & 0xffff_ffff) + (word >> 32);
    }
    let mut last = [0u8; 8];
    if let Some(padded) = last.get_mut(..rest.len()) {
        padded.copy_from_slice(rest);
    }
    let last = u64::from_ne_bytes(last);
    total += (last & 0xffff_ffff) + (last >> 32);
    u16::from_be(fold(total))
}

/// The checksum of `bytes`, as a header holds it.
#[inline]
pub fn checksum(bytes: &[u8]) -> u16 {
    !sum(bytes)
}

/// Adds two one's complement sums.
#[inline]
pub const fn add(a: u16, b: u16) -> u16 {
    fold(a as u64 + b as u64)
}

/// The delta that replaces the words summing to `old` by those summing to `new`.
#[inline]
pub const fn delta(old: u16, new: u16) -> u16 {
    add(!old, new)
}

/// Applies a delta to a checksum (RFC 1624 equation 3).
///
/// A checksum that a sender can have computed is never 0xffff, and neither is the result; so an
/// update and its inverse give back the same bytes.
#[inline]
pub const fn update(checksum: u16, delta: u16) -> u16 {
    !add(!checksum, delta)
}

/// Folds a wide sum of 16-bit words into one, adding the carries.
#[inline]
pub(crate) const fn fold(sum: u64) -> u16 {
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    sum as u16
}

/// The sum of the pseudo-header of either IP version.
///
/// Both versions count the same words: IPv6 only has wider fields, whose upper halves are zero
/// for anything shorter than a jumbogram.
#[inline]
pub fn pseudo_header(source: Address, destination: Address, protocol: u8, length: usize) -> u16 {
    let addresses = u64::from(source.sum()) + u64::from(destination.sum());
    fold(addresses + u64::from(protocol) + length as u64)
}

/// Whether every checksum in the packet that can be checked is right.
///
/// The transport checksum of a fragment can't be: it covers bytes that aren't here. SCTP's CRC32c
/// and unknown protocols aren't looked at. UDP without a checksum is right over IPv4 and wrong
/// over IPv6 (RFC 8200 section 8.1).
pub fn verify(packet: &[u8], headers: &Headers) -> bool {
    header_is_right(packet, headers) && transport_is_right(packet, headers)
}

/// Computes and stores every checksum of a packet that isn't a fragment.
///
/// Returns false, with the packet possibly changed, when the headers don't belong to it.
pub fn fill(packet: &mut [u8], headers: &Headers) -> bool {
    if headers.fragment.is_some() || !fill_header(packet, headers) {
        return false;
    }
    let Some(field) = checksum_offset(headers.transport) else { return true };
    if !put(packet, headers.l4_offset + field, 0) {
        return false;
    }
    let Some(covered) = covered(packet, headers) else { return false };
    let value = match !add(transport_pseudo_header(headers, covered.length), sum(covered.bytes)) {
        0 if zero_means_none(headers.transport) => 0xffff,
        value => value,
    };
    put(packet, headers.l4_offset + field, value)
}

/// Offset of a transport's checksum from the start of its header.
#[inline]
pub(crate) const fn checksum_offset(transport: Transport) -> Option<usize> {
    match transport {
        Transport::Tcp { .. } => Some(16),
        Transport::Udp | Transport::UdpLite => Some(6),
        Transport::EchoRequest { .. }
        | Transport::EchoReply { .. }
        | Transport::IcmpError { .. }
        | Transport::Icmp { .. } => Some(2),
        Transport::Sctp | Transport::Other | Transport::LaterFragment => None,
    }
}

/// Whether a checksum of zero would read as "no checksum" and 0xffff must be sent instead
/// (RFC 768; RFC 3828 section 3.1).
#[inline]
pub(crate) const fn zero_means_none(transport: Transport) -> bool {
    matches!(transport, Transport::Udp | Transport::UdpLite)
}

fn header_is_right(packet: &[u8], headers: &Headers) -> bool {
    if !headers.key.source.is_v4() {
        return true;
    }
    packet.get(..headers.l4_offset).is_some_and(|header| sum(header) == 0xffff)
}

fn transport_is_right(packet: &[u8], headers: &Headers) -> bool {
    let Some(field) = checksum_offset(headers.transport) else { return true };
    if headers.fragment.is_some() {
        return true;
    }
    let stored = packet.get(headers.l4_offset + field..).and_then(<[u8]>::first_chunk::<2>);
    if stored == Some(&[0, 0]) && zero_means_none(headers.transport) {
        return headers.key.source.is_v4() && headers.transport == Transport::Udp;
    }
    covered(packet, headers).is_some_and(|covered| {
        add(transport_pseudo_header(headers, covered.length), sum(covered.bytes)) == 0xffff
    })
}

fn fill_header(packet: &mut [u8], headers: &Headers) -> bool {
    if !headers.key.source.is_v4() {
        return true;
    }
    put(packet, 10, 0) && {
        let value = packet.get(..headers.l4_offset).map(checksum);
        value.is_some_and(|value| put(packet, 10, value))
    }
}

struct Covered<'a> {
    bytes: &'a [u8],
    /// Length in the pseudo-header.
    length: usize,
}

/// The part of the packet that the transport's checksum covers.
fn covered<'a>(packet: &'a [u8], headers: &Headers) -> Option<Covered<'a>> {
    let segment = packet.get(headers.l4_offset..headers.total_length)?;
    let length_field =
        || segment.get(4..)?.first_chunk::<2>().map(|b| u16::from_be_bytes(*b).into());
    match headers.transport {
        Transport::Udp => {
            let length = length_field()?;
            Some(Covered { bytes: segment.get(..length)?, length })
        }
        // RFC 3828 section 3.1: the field is the coverage; zero means everything.
        Transport::UdpLite => {
            let coverage = match length_field()? {
                0 => segment.len(),
                coverage => coverage,
            };
            Some(Covered { bytes: segment.get(..coverage)?, length: segment.len() })
        }
        Transport::Tcp { .. }
        | Transport::EchoRequest { .. }
        | Transport::EchoReply { .. }
        | Transport::IcmpError { .. }
        | Transport::Icmp { .. }
        | Transport::Sctp
        | Transport::Other
        | Transport::LaterFragment => Some(Covered { bytes: segment, length: segment.len() }),
    }
}

/// ICMP for IPv4 is the one transport whose checksum has no pseudo-header.
fn transport_pseudo_header(headers: &Headers, length: usize) -> u16 {
    let key = &headers.key;
    if key.protocol == protocol::ICMP {
        return 0;
    }
    pseudo_header(key.source, key.destination, key.protocol, length)
}

fn put(packet: &mut [u8], offset: usize, value: u16) -> bool {
    let field = packet.get_mut(offset..).and_then(<[u8]>::first_chunk_mut::<2>);
    field.map(|field| *field = value.to_be_bytes()).is_some()
}
