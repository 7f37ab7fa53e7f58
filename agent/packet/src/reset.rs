//! Refusing a TCP connection in its own terms.

use super::build::Envelope;
use super::{Headers, TcpFlags, Transport, protocol};

/// Builds the RST that refuses the segment `offender` as a closed port would (RFC 9293 section
/// 3.10.7.1), and returns its length.
///
/// `None` for anything but an unfragmented TCP segment between two single hosts, for a RST, and
/// if `out` is too small (60 bytes always suffice).
pub fn tcp_reset(offender: &[u8], headers: &Headers, out: &mut [u8]) -> Option<usize> {
    let flags = answerable_flags(headers)?;
    let segment = offender.get(headers.l4_offset..)?.first_chunk::<20>()?;
    let [source_high, source_low, destination_high, destination_low, ..] = *segment;
    let word = |at: usize| segment.get(at..)?.first_chunk::<4>().copied();
    let (sequence, acknowledgement, control) = if flags.ack() {
        (word(8)?, [0; 4], TcpFlags::RST)
    } else {
        let end = u32::from_be_bytes(word(4)?).wrapping_add(segment_length(headers, flags));
        ([0; 4], end.to_be_bytes(), TcpFlags::RST | TcpFlags::ACK)
    };
    let mut tcp = [0; 20];
    tcp[..4].copy_from_slice(&[destination_high, destination_low, source_high, source_low]);
    tcp[4..8].copy_from_slice(&sequence);
    tcp[8..12].copy_from_slice(&acknowledgement);
    tcp[12..14].copy_from_slice(&[5 << 4, control]);
    let key = headers.key;
    Envelope::new(key.destination, key.source, protocol::TCP)?.seal(&tcp, &[], out)
}

fn answerable_flags(headers: &Headers) -> Option<TcpFlags> {
    let Transport::Tcp { flags } = headers.transport else { return None };
    let key = headers.key;
    let one_to_one = key.source.is_single_host() && key.destination.is_single_host();
    // A fragment doesn't tell how long its segment is, and so not what to acknowledge.
    (one_to_one && headers.fragment.is_none() && !flags.rst()).then_some(flags)
}

/// SEG.LEN: SYN and FIN count as a byte each (RFC 9293 section 3.4).
fn segment_length(headers: &Headers, flags: TcpFlags) -> u32 {
    let payload = headers.total_length.saturating_sub(headers.payload_offset);
    let payload = u32::try_from(payload).unwrap_or(u32::MAX);
    payload.wrapping_add(u32::from(flags.syn())).wrapping_add(u32::from(flags.fin()))
}
