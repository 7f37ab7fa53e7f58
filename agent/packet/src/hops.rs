//! Hop limit: forwarding costs a packet one hop.

use super::checksum::{delta, update};

/// Takes one off the TTL or hop limit of an IP packet, fixing IPv4's header checksum, and returns
/// what is left.
///
/// `None`, with the packet untouched, if it may not be forwarded again (RFC 1812 section 5.3.1,
/// RFC 8200 section 3) or isn't an IP packet: answer with
/// [`Reason::HopsExceeded`](super::Reason::HopsExceeded).
#[inline]
pub fn decrement_hops(packet: &mut [u8]) -> Option<u8> {
    match packet.first().map(|byte| byte >> 4) {
        Some(4) => {
            let ip = packet.first_chunk_mut::<20>()?;
            let left = ip[8].checked_sub(1).filter(|left| *left > 0)?;
            // The TTL shares its checksum word with the protocol.
            let change =
                delta(u16::from_be_bytes([ip[8], ip[9]]), u16::from_be_bytes([left, ip[9]]));
            let checksum = update(u16::from_be_bytes([ip[10], ip[11]]), change);
            ip[10..12].copy_from_slice(&checksum.to_be_bytes());
            ip[8] = left;
            Some(left)
        }
        Some(6) => {
            let ip = packet.first_chunk_mut::<40>()?;
            ip[7] = ip[7].checked_sub(1).filter(|left| *left > 0)?;
            Some(ip[7])
        }
        Some(_) | None => None,
    }
}
