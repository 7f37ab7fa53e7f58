//! Parsed packet headers, or the reason why a packet can't be classified.

use super::FlowKey;

/// Parsed headers of a packet, with their offsets.
///
/// The offsets are within the slice that was parsed; functions that take both check them again,
/// so that a mistake gives a refused packet instead of a panic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// The flow that the packet belongs to. Later fragments have no ports: see
    /// [`FragmentTable`](super::FragmentTable).
    pub key: FlowKey,
    /// The transport header's kind and what else the data plane wants from it.
    pub transport: Transport,
    /// Set if the packet is a fragment; an IPv6 packet with an "atomic" fragment header
    /// (RFC 6946) isn't one.
    pub fragment: Option<Fragment>,
    /// Offset of the transport header; for IPv4, the length of the IP header.
    pub l4_offset: usize,
    /// Offset of the transport's payload.
    pub payload_offset: usize,
    /// The packet's length as its header gives it; what follows in the slice isn't part of it.
    pub total_length: usize,
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// Type of service, or traffic class: DSCP and ECN (RFC 2474, RFC 3168).
    pub traffic_class: u8,
    /// Whether routers must not fragment the packet; always true for IPv6.
    pub dont_fragment: bool,
}

impl Headers {
    /// The transport's payload. Empty for later fragments.
    pub fn payload<'a>(&self, packet: &'a [u8]) -> &'a [u8] {
        packet.get(self.payload_offset..self.total_length).unwrap_or_default()
    }

    /// Whether this is a fragment without a transport header.
    pub const fn is_later_fragment(&self) -> bool {
        matches!(self.transport, Transport::LaterFragment)
    }

    /// The congestion bits (RFC 3168 section 5).
    pub const fn ecn(&self) -> u8 {
        self.traffic_class & 0x03
    }
}

/// The transport header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP, whole header present.
    Tcp {
        /// The control bits.
        flags: TcpFlags,
    },
    /// UDP.
    Udp,
    /// UDP-Lite.
    UdpLite,
    /// SCTP.
    Sctp,
    /// ICMP or ICMPv6 echo request.
    EchoRequest {
        /// Tells one ping from another, as a port does.
        identifier: u16,
    },
    /// ICMP or ICMPv6 echo reply.
    EchoReply {
        /// The identifier of the request.
        identifier: u16,
    },
    /// An ICMP message that reports an error (RFC 1122 section 3.2.2; RFC 4443: types below 128).
    IcmpError {
        /// The ICMP type.
        kind: u8,
        /// The ICMP code.
        code: u8,
    },
    /// Any other ICMP message.
    Icmp {
        /// The ICMP type.
        kind: u8,
        /// The ICMP code.
        code: u8,
    },
    /// A protocol without ports that we know of.
    Other,
    /// The transport header was in the first fragment.
    LaterFragment,
}

/// A transport that the kernel splits and coalesces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Tcp,
    Udp,
}

impl Stream {
    /// Offset of the checksum from the start of the transport's header.
    pub(crate) const fn checksum_offset(self) -> usize {
        match self {
            Self::Tcp => 16,
            Self::Udp => 6,
        }
    }
}

impl Transport {
    /// Whether the kernel splits it and puts it together.
    #[inline]
    pub const fn is_offloaded(self) -> bool {
        self.stream().is_some()
    }

    /// None for what is never split.
    #[inline]
    pub(crate) const fn stream(self) -> Option<Stream> {
        match self {
            Self::Tcp { .. } => Some(Stream::Tcp),
            Self::Udp => Some(Stream::Udp),
            Self::UdpLite
            | Self::Sctp
            | Self::EchoRequest { .. }
            | Self::EchoReply { .. }
            | Self::IcmpError { .. }
            | Self::Icmp { .. }
            | Self::Other
            | Self::LaterFragment => None,
        }
    }
}

/// TCP's control bits (RFC 9293 section 3.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset the connection.
    pub const RST: u8 = 0x04;
    /// The acknowledgement number is significant.
    pub const ACK: u8 = 0x10;
    /// Congestion window reduced (RFC 3168 section 6.1).
    pub const CWR: u8 = 0x80;

    /// Whether FIN is set.
    pub const fn fin(self) -> bool {
        self.0 & Self::FIN != 0
    }

    /// Whether SYN is set.
    pub const fn syn(self) -> bool {
        self.0 & Self::SYN != 0
    }

    /// Whether RST is set.
    pub const fn rst(self) -> bool {
        self.0 & Self::RST != 0
    }

    /// Whether ACK is set.
    pub const fn ack(self) -> bool {
        self.0 & Self::ACK != 0
    }

    /// Whether the segment opens a connection: SYN without ACK.
    pub const fn opens(self) -> bool {
        self.syn() && !self.ack()
    }
}

/// Position of a fragment in its datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Identification shared by all fragments of the datagram; 16 bits in IPv4, 32 in IPv6.
    pub identification: u32,
    /// Offset of the fragment in the datagram's payload, in bytes.
    pub offset: u16,
    /// Whether more fragments follow.
    pub more: bool,
}

impl Fragment {
    /// Whether this fragment holds the transport header.
    pub const fn is_first(self) -> bool {
        self.offset == 0
    }
}

/// Why a packet can't be classified. Such a packet is dropped and counted by this reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, thiserror::Error)]
pub enum ParseError {
    /// The first nibble is neither 4 nor 6, or there is none.
    #[error("not an IP packet")]
    NotIp,
    /// A length field promises more bytes than there are.
    #[error("packet is shorter than its headers say")]
    Truncated,
    /// IHL or total length contradict themselves (RFC 791 section 3.1).
    #[error("IP header lengths contradict each other")]
    BadLength,
    /// IPv4 options run over each other or the header's end.
    #[error("IPv4 options are malformed")]
    BadOptions,
    /// The packet asks for a route of its own (RFC 5095, RFC 7126 section 4.3): its destination
    /// field isn't where it would end.
    #[error("source-routed packet")]
    SourceRoute,
    /// An IPv6 packet holds IPv4-mapped addresses, which don't belong on the wire.
    #[error("IPv4-mapped address in an IPv6 packet")]
    MappedAddress,
    /// More or longer extension headers than any honest packet has.
    #[error("too many IPv6 extension headers")]
    LongExtensions,
    /// An extension header out of place (RFC 8200 section 4.1) or of a kind we can't walk past.
    #[error("unsupported IPv6 extension header")]
    BadExtension,
    /// Fragment fields that no sender makes: beyond 65,535 bytes, ragged, nested, or overlapping
    /// the TCP header (RFC 1858, RFC 3128).
    #[error("impossible fragment")]
    BadFragment,
    /// The transport header is missing or cut off, possibly by fragmentation (RFC 7112).
    #[error("transport header is cut off")]
    TruncatedTransport,
    /// The transport header's lengths contradict the packet's.
    #[error("transport header is malformed")]
    BadTransport,
    /// ICMP over IPv6 or ICMPv6 over IPv4.
    #[error("ICMP of the other IP version")]
    IcmpVersion,
}

impl ParseError {
    /// A short name for metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::NotIp => "not_ip",
            Self::Truncated => "truncated",
            Self::BadLength => "bad_length",
            Self::BadOptions => "bad_options",
            Self::SourceRoute => "source_route",
            Self::MappedAddress => "mapped_address",
            Self::LongExtensions => "long_extensions",
            Self::BadExtension => "bad_extension",
            Self::BadFragment => "bad_fragment",
            Self::TruncatedTransport => "truncated_transport",
            Self::BadTransport => "bad_transport",
            Self::IcmpVersion => "icmp_version",
        }
    }
}
