//! Super-packets: one packet that stands for many of one flow, as the kernel makes them for
//! devices that split (TSO, USO).
//!
//! A super-packet is split straight into the place where its segments are sealed: the payload is
//! copied and summed in one pass.

use super::checksum::{self, add, checksum, fold};
use super::headers::Stream;
use super::{BadOffload, Headers, TcpFlags};

const PSH: u8 = 0x08;

/// A super-packet from the kernel, ready to be split.
///
/// Only addresses and ports of it may have been rewritten: checksums are computed anew.
#[derive(Clone, Copy, Debug)]
pub struct SuperPacket<'a> {
    header: &'a [u8],
    payload: &'a [u8],
    size: usize,
    l4_offset: usize,
    stream: Stream,
    is_v4: bool,
    /// Of the pseudo-header, without the length.
    pseudo_header: u16,
}

impl<'a> SuperPacket<'a> {
    /// # Errors
    ///
    /// If the packet isn't one that the kernel makes: of TCP or UDP, not a fragment, with a payload.
    pub fn new(packet: &'a [u8], headers: &Headers, size: u16) -> Result<Self, BadOffload> {
        let stream = headers.transport.stream().ok_or(BadOffload)?;
        let header = packet.get(..headers.payload_offset).ok_or(BadOffload)?;
        let payload = packet.get(headers.payload_offset..headers.total_length).ok_or(BadOffload)?;
        let l4_length = headers.payload_offset.checked_sub(headers.l4_offset).ok_or(BadOffload)?;
        if size == 0 || payload.is_empty() || headers.fragment.is_some() || l4_length < 8 {
            return Err(BadOffload);
        }
        let key = &headers.key;
        Ok(Self {
            header,
            payload,
            size: size.into(),
            l4_offset: headers.l4_offset,
            stream,
            is_v4: key.source.is_v4(),
            pseudo_header: checksum::pseudo_header(key.source, key.destination, key.protocol, 0),
        })
    }

    /// Number of segments.
    pub const fn count(&self) -> usize {
        self.payload.len().div_ceil(self.size)
    }

    /// The bytes of all the packets.
    pub const fn bytes(&self) -> usize {
        self.payload.len() + self.count() * self.header.len()
    }

    /// The length of a segment's packet; 0 beyond the last.
    pub fn length(&self, index: usize) -> usize {
        let left = self.payload.len().saturating_sub(index * self.size);
        if left == 0 { 0 } else { self.header.len() + left.min(self.size) }
    }

    /// Writes a segment's packet to the start of `out`, and returns its length. None if there is no
    /// such segment or no room.
    #[inline]
    pub fn write(&self, index: usize, out: &mut [u8]) -> Option<usize> {
        self.cut(index, out, false)
    }

    /// As [`write`](Self::write), but leaves the checksum as the kernel did: it holds the sum of the
    /// pseudo-header only, and [`Offload::complete`](super::Offload::complete) finishes it.
    #[inline]
    pub fn write_partial(&self, index: usize, out: &mut [u8]) -> Option<usize> {
        self.cut(index, out, true)
    }

    #[inline]
    fn cut(&self, index: usize, out: &mut [u8], partial: bool) -> Option<usize> {
        let start = index * self.size;
        let end = (start + self.size).min(self.payload.len());
        let payload = self.payload.get(start..end).filter(|payload| !payload.is_empty())?;
        let length = self.header.len() + payload.len();
        let (header, body) = out.get_mut(..length)?.split_at_mut_checked(self.header.len())?;
        header.copy_from_slice(self.header);
        let sum = if partial {
            body.copy_from_slice(payload);
            0
        } else {
            copy_and_sum(payload, body)
        };
        let (ip, l4) = header.split_at_mut_checked(self.l4_offset)?;
        if self.is_v4 {
            finish_v4(ip, index, length)?;
        } else {
            let payload_length = u16::try_from(length - 40).ok()?;
            ip.get_mut(4..6)?.copy_from_slice(&payload_length.to_be_bytes());
        }
        let l4_length = length - self.l4_offset;
        let is_last = end == self.payload.len();
        match self.stream {
            Stream::Tcp => finish_tcp(l4, start, is_last)?,
            Stream::Udp => {
                l4.get_mut(4..6)?.copy_from_slice(&u16::try_from(l4_length).ok()?.to_be_bytes());
            }
        }
        let field = self.stream.checksum_offset();
        l4.get_mut(field..field + 2)?.fill(0);
        let pseudo_header = fold(u64::from(self.pseudo_header) + l4_length as u64);
        if partial {
            l4.get_mut(field..field + 2)?.copy_from_slice(&pseudo_header.to_be_bytes());
            return Some(length);
        }
        let value = match !add(add(pseudo_header, checksum::sum(l4)), sum) {
            0 if self.stream == Stream::Udp => 0xffff,
            value => value,
        };
        l4.get_mut(field..field + 2)?.copy_from_slice(&value.to_be_bytes());
        Some(length)
    }
}

/// Each segment is a datagram of its own, numbered on from the first (as the kernel's own
/// segmentation does).
fn finish_v4(ip: &mut [u8], index: usize, length: usize) -> Option<()> {
    let identification = u16::from_be_bytes(*ip.get(4..)?.first_chunk()?);
    ip.get_mut(2..4)?.copy_from_slice(&u16::try_from(length).ok()?.to_be_bytes());
    ip.get_mut(4..6)?.copy_from_slice(&identification.wrapping_add(index as u16).to_be_bytes());
    ip.get_mut(10..12)?.fill(0);
    let value = checksum(ip);
    ip.get_mut(10..12)?.copy_from_slice(&value.to_be_bytes());
    Some(())
}

/// What ends the data is said by the last segment, what begins a reaction by the first (RFC 3168
/// section 6.1.2: CWR).
fn finish_tcp(tcp: &mut [u8], start: usize, is_last: bool) -> Option<()> {
    let sequence = u32::from_be_bytes(*tcp.get(4..)?.first_chunk()?);
    tcp.get_mut(4..8)?.copy_from_slice(&sequence.wrapping_add(start as u32).to_be_bytes());
    let flags = tcp.get_mut(13)?;
    if !is_last {
        *flags &= !(TcpFlags::FIN | PSH);
    }
    if start > 0 {
        *flags &= !TcpFlags::CWR;
    }
    Some(())
}

/// Copies, and returns the one's complement sum of what was copied. Both slices are equally long.
#[inline]
fn copy_and_sum(from: &[u8], to: &mut [u8]) -> u16 {
    let mut total = 0u64;
    let (from_words, from_rest) = from.as_chunks::<8>();
    let (to_words, to_rest) = to.as_chunks_mut::<8>();
    for (from, to) in from_words.iter().zip(to_words) {
        *to = *from;
        let word = u64::from_ne_bytes(*from);
        total += (word & 0xffff_ffff) + (word >> 32);
    }
    for (from, to) in from_rest.iter().zip(to_rest) {
        *to = *from;
    }
    add(u16::from_be(fold(total)), checksum::sum(from_rest))
}
