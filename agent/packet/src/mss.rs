//! Keeping TCP segments within the tunnel's MTU, for paths that lose "packet too big".

use super::checksum::{delta, update};
use super::{Headers, Transport};

const END: u8 = 0;
const NOP: u8 = 1;
const MAXIMUM_SEGMENT_SIZE: u8 = 2;
const FIXED_HEADER: usize = 20;
const CHECKSUM: usize = 16;

/// Lowers the MSS option of a SYN (RFC 9293 section 3.7.1) to at most `mss`, and returns whether
/// it changed. The transport checksum must be complete.
///
/// A SYN without the option, or whose options are malformed before it, is left alone.
pub fn clamp_mss(packet: &mut [u8], headers: &Headers, mss: u16) -> bool {
    let Some(change) = lower(packet, headers, mss) else { return false };
    let Some(field) =
        packet.get_mut(headers.l4_offset + CHECKSUM..).and_then(<[u8]>::first_chunk_mut::<2>)
    else {
        return false;
    };
    *field = update(u16::from_be_bytes(*field), change).to_be_bytes();
    true
}

/// As [`clamp_mss`], for a packet whose transport checksum holds only the pseudo-header's sum:
/// whoever completes it will read the new option.
pub fn clamp_mss_partial(packet: &mut [u8], headers: &Headers, mss: u16) -> bool {
    lower(packet, headers, mss).is_some()
}

/// Writes the lower value and returns the checksum's delta.
fn lower(packet: &mut [u8], headers: &Headers, mss: u16) -> Option<u16> {
    let Transport::Tcp { flags } = headers.transport else { return None };
    if !flags.syn() {
        return None;
    }
    let header = packet.get_mut(headers.l4_offset..headers.payload_offset)?;
    let offset = value_offset(header)?;
    let value = header.get_mut(offset..)?.first_chunk_mut::<2>()?;
    let old = u16::from_be_bytes(*value);
    if old <= mss {
        return None;
    }
    *value = mss.to_be_bytes();
    let change = delta(old, mss);
    // At an odd offset the value straddles two words, which swaps its weight (RFC 1071 section 2).
    Some(if offset.is_multiple_of(2) { change } else { change.swap_bytes() })
}

/// Offset of the MSS option's value in the TCP header.
fn value_offset(header: &[u8]) -> Option<usize> {
    let mut offset = FIXED_HEADER;
    loop {
        match *header.get(offset)? {
            END => return None,
            NOP => offset += 1,
            kind => {
                let length = usize::from(*header.get(offset + 1)?);
                if length < 2 || offset + length > header.len() {
                    return None;
                }
                if kind == MAXIMUM_SEGMENT_SIZE {
                    return (length == 4).then_some(offset + 2);
                }
                offset += length;
            }
        }
    }
}
