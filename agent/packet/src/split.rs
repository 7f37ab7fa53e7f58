//! Splitting IPv4 packets that are too large for the tunnel (RFC 791 section 3.2).

use super::{Headers, checksum};

/// Why a packet can't be fragmented.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SplitError {
    /// Only its sender may fragment it: answer with
    /// [`Reason::PacketTooBig`](super::Reason::PacketTooBig). Always so for IPv6.
    #[error("packet must not be fragmented")]
    DontFragment,
    /// No room for eight bytes after the header.
    #[error("MTU is too small for fragments")]
    MtuTooSmall,
    /// The headers don't belong to this packet.
    #[error("headers do not match the packet")]
    Mismatch,
}

/// Gives the packet to `out` in fragments of at most `mtu` bytes, or whole if it fits, and returns
/// how many there were.
///
/// Works on what is a fragment already, and copies to later fragments only the options that want
/// to be (RFC 791 section 3.1). The packet is used up: each header is written over payload that is
/// already out, which needs no other buffer. Checksums must be complete.
///
/// # Errors
///
/// Nothing has been given to `out` then, and the packet is as it was.
pub fn fragment_ipv4(
    packet: &mut [u8],
    headers: &Headers,
    mtu: usize,
    mut out: impl FnMut(&[u8]),
) -> Result<usize, SplitError> {
    let packet = packet.get_mut(..headers.total_length).ok_or(SplitError::Mismatch)?;
    if packet.len() <= mtu {
        out(packet);
        return Ok(1);
    }
    if headers.dont_fragment || !headers.key.source.is_v4() {
        return Err(SplitError::DontFragment);
    }
    let header = packet.get(..headers.l4_offset).ok_or(SplitError::Mismatch)?;
    let first = Header::first(header).ok_or(SplitError::Mismatch)?;
    let later = Header::later(header).ok_or(SplitError::Mismatch)?;
    if first.room(mtu) == 0 {
        return Err(SplitError::MtuTooSmall);
    }
    Ok(emit(packet, headers, &first, &later, mtu, &mut out))
}

fn emit(
    packet: &mut [u8],
    headers: &Headers,
    first: &Header,
    later: &Header,
    mtu: usize,
    out: &mut impl FnMut(&[u8]),
) -> usize {
    let (base, more_after) = headers.fragment.map_or((0, false), |f| (f.offset, f.more));
    let mut count = 0;
    let mut position = headers.l4_offset;
    while position < packet.len() {
        let header = if count == 0 { first } else { later };
        // The last fragment need not end on eight bytes.
        let rest_fits = packet.len() - position + header.length <= mtu;
        let end = if rest_fits { packet.len() } else { position + header.room(mtu) };
        let offset = usize::from(base) + position - headers.l4_offset;
        let more = more_after || end < packet.len();
        // INVARIANT: later headers aren't longer than the first, so there is always room.
        let start = position - header.length;
        let Some(fragment) = packet.get_mut(start..end) else { return count };
        header.write(fragment, offset, more);
        out(fragment);
        count += 1;
        position = end;
    }
    count
}

struct Header {
    bytes: [u8; 60],
    length: usize,
}

impl Header {
    fn first(header: &[u8]) -> Option<Self> {
        let mut bytes = [0; 60];
        bytes.get_mut(..header.len())?.copy_from_slice(header);
        Some(Self { bytes, length: header.len() })
    }

    /// Keeps the fixed part and the options whose "copied" flag is set.
    fn later(header: &[u8]) -> Option<Self> {
        const END: u8 = 0;
        const NOP: u8 = 1;
        const COPIED: u8 = 0x80;
        let (fixed, mut options) = header.split_at_checked(20)?;
        let mut this = Self::first(fixed)?;
        while let Some((&kind, rest)) = options.split_first() {
            let length = match kind {
                END => break,
                NOP => 1,
                _ => usize::from(*rest.first()?).max(2),
            };
            let (option, rest) = options.split_at_checked(length)?;
            if kind & COPIED != 0 {
                this.bytes.get_mut(this.length..this.length + length)?.copy_from_slice(option);
                this.length += length;
            }
            options = rest;
        }
        this.length = this.length.next_multiple_of(4);
        let words = u8::try_from(this.length / 4).ok()?;
        this.bytes[0] = 0x40 | words;
        Some(this)
    }

    /// The payload that fits: a multiple of eight bytes.
    const fn room(&self, mtu: usize) -> usize {
        mtu.saturating_sub(self.length) & !7
    }

    fn write(&self, fragment: &mut [u8], offset: usize, more: bool) {
        let length = u16::try_from(fragment.len()).unwrap_or(u16::MAX);
        let field = u16::try_from(offset / 8).unwrap_or(u16::MAX) & 0x1fff;
        let field = field | if more { 0x2000 } else { 0 };
        let Some(header) = fragment.get_mut(..self.length) else { return };
        header.copy_from_slice(self.bytes.get(..self.length).unwrap_or_default());
        if let Some(ip) = header.first_chunk_mut::<20>() {
            ip[2..4].copy_from_slice(&length.to_be_bytes());
            ip[6..8].copy_from_slice(&field.to_be_bytes());
            ip[10..12].fill(0);
        }
        let sum = checksum::checksum(header);
        if let Some(ip) = header.first_chunk_mut::<20>() {
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
        }
    }
}
