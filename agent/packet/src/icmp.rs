//! ICMP errors about packets that can't be forwarded (RFC 792, RFC 1812 section 4.3, RFC 4443).

use super::build::Envelope;
use super::{Address, Headers, Transport};

/// A buffer of this size holds every reply: IPv6's minimum MTU, which ICMPv6 errors fill.
pub const REPLY_BUFFER: usize = 1280;

/// RFC 1812 section 4.3.2.3: as much of the packet as fits into 576 bytes.
const V4_LENGTH: usize = 576;
/// RFC 4443 section 2.4 (c): as much of the packet as fits into the minimum IPv6 MTU.
const V6_LENGTH: usize = 1280;
const ICMP_HEADER: usize = 8;

/// Why a packet isn't forwarded, as its sender is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It is larger than the path (RFC 1191; RFC 4443 section 3.2).
    PacketTooBig {
        /// The largest packet that would pass.
        mtu: u32,
    },
    /// The policy forbids it (RFC 1812 section 5.2.7.1; RFC 4443 section 3.1).
    Prohibited,
    /// There is no way to the destination host.
    HostUnreachable,
    /// Nothing listens at the destination port.
    PortUnreachable,
    /// It has been forwarded too often.
    HopsExceeded,
}

impl Reason {
    const fn v4(self) -> (u8, u8) {
        match self {
            Self::HostUnreachable => (3, 1),
            Self::PortUnreachable => (3, 3),
            Self::PacketTooBig { .. } => (3, 4),
            Self::Prohibited => (3, 13),
            Self::HopsExceeded => (11, 0),
        }
    }

    const fn v6(self) -> (u8, u8) {
        match self {
            Self::Prohibited => (1, 1),
            Self::HostUnreachable => (1, 3),
            Self::PortUnreachable => (1, 4),
            Self::PacketTooBig { .. } => (2, 0),
            Self::HopsExceeded => (3, 0),
        }
    }
}

/// Builds the ICMP error that tells the sender of `offender` why it isn't forwarded, and returns
/// its length. `from` is the address that the node speaks with.
///
/// `None` if the packet must not be answered (RFC 1122 section 3.2.2, RFC 4443 section 2.4 (e)):
/// ICMP errors, later fragments, anything to or from more than one host. Also if `out` is smaller
/// than [`REPLY_BUFFER`] or `from` is of the other IP version.
pub fn icmp_error(
    offender: &[u8],
    headers: &Headers,
    reason: Reason,
    from: Address,
    out: &mut [u8],
) -> Option<usize> {
    if out.len() < REPLY_BUFFER || !may_be_answered(headers, reason) {
        return None;
    }
    let envelope = Envelope::icmp(from, headers.key.source)?.with_network_control();
    let limit = if from.is_v4() { V4_LENGTH } else { V6_LENGTH };
    let room = limit - envelope.header_length() - ICMP_HEADER;
    let quote = offender.get(..headers.total_length.min(room))?;
    envelope.seal(&icmp_header(reason, from.is_v4()), quote, out)
}

fn icmp_header(reason: Reason, is_v4: bool) -> [u8; ICMP_HEADER] {
    let (kind, code) = if is_v4 { reason.v4() } else { reason.v6() };
    let mut header = [kind, code, 0, 0, 0, 0, 0, 0];
    if let Reason::PacketTooBig { mtu } = reason {
        // RFC 1191 section 4 has room for 16 bits only, after two unused bytes.
        let mtu = if is_v4 { mtu.min(0xffff) } else { mtu };
        header[4..].copy_from_slice(&mtu.to_be_bytes());
    }
    header
}

fn may_be_answered(headers: &Headers, reason: Reason) -> bool {
    // RFC 4443 section 2.4 (e.3) excepts "packet too big", which multicast senders need.
    let needs_one_receiver =
        headers.key.source.is_v4() || !matches!(reason, Reason::PacketTooBig { .. });
    let destination = headers.key.destination;
    let one_receiver = destination.is_single_host() || !needs_one_receiver;
    headers.key.source.is_single_host()
        && one_receiver
        && !headers.is_later_fragment()
        && !is_error_or_redirect(headers.transport)
}

fn is_error_or_redirect(transport: Transport) -> bool {
    /// RFC 4443 section 2.4 (e.2).
    const V6_REDIRECT: u8 = 137;
    match transport {
        Transport::IcmpError { .. } | Transport::Icmp { kind: V6_REDIRECT, .. } => true,
        Transport::Icmp { .. }
        | Transport::Tcp { .. }
        | Transport::Udp
        | Transport::UdpLite
        | Transport::Sctp
        | Transport::EchoRequest { .. }
        | Transport::EchoReply { .. }
        | Transport::Other
        | Transport::LaterFragment => false,
    }
}
