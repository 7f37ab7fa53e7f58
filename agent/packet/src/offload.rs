//! The virtio-net header that a TUN device with `IFF_VNET_HDR` puts before each packet: what the
//! kernel left to us, and what we leave to it.
//!
//! ```text
//!   byte 0   flags        1: the checksum is to be completed
//!        1   gso_type     0 none, 1 TCP/IPv4, 4 TCP/IPv6, 5 UDP; 0x80 beside TCP: CWR is set
//!        2   hdr_len      of all headers, a hint
//!        4   gso_size     payload bytes of each segment
//!        6   csum_start   where the checksum's coverage begins
//!        8   csum_offset  from there to the checksum
//! ```
//!
//! Fields are in the host's byte order (virtio 1.2 section 5.1.6, legacy interface; the kernel's
//! `TUNSETVNETLE` is off).

use super::checksum::{self, checksum_offset, zero_means_none};
use super::headers::Stream;
use super::{Headers, TcpFlags, Transport};

/// The header's length.
pub const VNET_HEADER: usize = 10;

const NEEDS_CHECKSUM: u8 = 1;
const TCP_V4: u8 = 1;
const TCP_V6: u8 = 4;
const UDP: u8 = 5;
const WITH_CWR: u8 = 0x80;

/// Checksum work that a packet still needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// The transport's checksum holds the sum of the pseudo-header only; its coverage begins here.
    pub checksum_start: Option<u16>,
    /// The packet is many: the payload of each is so long, but for the last.
    pub segment: Option<u16>,
}

/// A virtio-net header that contradicts itself or the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the virtio-net header doesn't fit the packet")]
pub struct BadOffload;

impl Offload {
    /// Nothing: the packet is as it would be on a wire.
    pub const NONE: Self = Self { checksum_start: None, segment: None };

    /// Reads the header at the start of a frame, and returns the packet behind it.
    ///
    /// # Errors
    ///
    /// If the frame is too short, or of a kind that we didn't ask the kernel for.
    pub fn read(frame: &mut [u8]) -> Result<(Self, &mut [u8]), BadOffload> {
        let (header, packet) = frame.split_first_chunk_mut::<VNET_HEADER>().ok_or(BadOffload)?;
        let word = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
        let needs_checksum = header[0] & NEEDS_CHECKSUM != 0;
        let segment = match header[1] & !WITH_CWR {
            0 => None,
            TCP_V4 | TCP_V6 | UDP if word(4) > 0 && needs_checksum => Some(word(4)),
            _ => return Err(BadOffload),
        };
        Ok((Self { checksum_start: needs_checksum.then(|| word(6)), segment }, packet))
    }

    /// Makes a single packet complete: computes the checksum that the kernel left to us.
    ///
    /// # Errors
    ///
    /// If the coverage isn't the transport's.
    pub fn complete(self, packet: &mut [u8], headers: &Headers) -> Result<(), BadOffload> {
        let Some(start) = self.checksum_start else { return Ok(()) };
        let start = usize::from(start);
        let field = start + checksum_offset(headers.transport).ok_or(BadOffload)?;
        if start != headers.l4_offset || headers.fragment.is_some() {
            return Err(BadOffload);
        }
        let covered = packet.get(start..headers.total_length).ok_or(BadOffload)?;
        let value = match checksum::checksum(covered) {
            0 if zero_means_none(headers.transport) => 0xffff,
            value => value,
        };
        let bytes = packet.get_mut(field..).and_then(<[u8]>::first_chunk_mut::<2>);
        *bytes.ok_or(BadOffload)? = value.to_be_bytes();
        Ok(())
    }

    /// The header for a packet whose transport's checksum is partial, and that may stand for many.
    pub fn header_of(headers: &Headers, segment: Option<u16>) -> Option<[u8; VNET_HEADER]> {
        let stream = headers.transport.stream()?;
        let mut header = [0; VNET_HEADER];
        let mut put = |at: usize, value: u16| {
            header[at..at + 2].copy_from_slice(&value.to_ne_bytes());
        };
        if let Some(segment) = segment {
            put(2, u16::try_from(headers.payload_offset).ok()?);
            put(4, segment);
        }
        put(6, u16::try_from(headers.l4_offset).ok()?);
        put(8, stream.checksum_offset() as u16);
        header[0] = NEEDS_CHECKSUM;
        header[1] = segment.map_or(0, |_| kind_of(headers, stream));
        Some(header)
    }
}

/// Completes a partial checksum of a packet that isn't one of many. None if it isn't a packet, or has
/// no checksum.
pub fn complete_checksum(packet: &mut [u8]) -> Option<()> {
    let headers = Headers::parse(packet).ok()?;
    let checksum_start = Some(u16::try_from(headers.l4_offset).ok()?);
    Offload { checksum_start, segment: None }.complete(packet, &headers).ok()
}

/// What a packet that stands for many is made of. That CWR is in the first only is said beside it.
const fn kind_of(headers: &Headers, stream: Stream) -> u8 {
    let v4 = headers.key.source.is_v4();
    let kind = match stream {
        Stream::Tcp if v4 => TCP_V4,
        Stream::Tcp => TCP_V6,
        Stream::Udp => UDP,
    };
    let has_cwr =
        matches!(headers.transport, Transport::Tcp { flags } if flags.0 & TcpFlags::CWR != 0);
    if has_cwr { kind | WITH_CWR } else { kind }
}
