//! The 5-tuple reader: one pass over the headers, strict about everything that could make the
//! policy see another packet than the receiver does.
//!
//! The common path is inlined by force: left to itself the compiler passes the half-read headers
//! from function to function through memory, which takes three times as long (37 ns a packet
//! instead of 11).

use super::{Address, FlowKey, Fragment, Headers, ParseError, TcpFlags, Transport, protocol};

/// IPv6 extension headers that a packet may have; more is an attack or a mistake.
const MAX_EXTENSIONS: usize = 8;
/// Bytes of IPv6 extension headers that a packet may have.
const MAX_EXTENSION_BYTES: usize = 256;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;

/// Completeness of the slice.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Extent {
    /// All of it.
    Whole,
    /// The beginning, as ICMP errors quote it: at least eight bytes after the IP headers.
    Quoted,
}

impl Headers {
    /// Reads the headers of the IP packet at the start of `packet`.
    ///
    /// # Errors
    ///
    /// Whenever the policy could not be sure of what the receiver will make of the packet.
    #[inline]
    pub fn parse(packet: &[u8]) -> Result<Self, ParseError> {
        parse(packet, Extent::Whole)
    }

    /// Reads the headers of a packet that an ICMP error quotes, of which the end may be missing.
    pub(crate) fn parse_quoted(packet: &[u8]) -> Result<Self, ParseError> {
        parse(packet, Extent::Quoted)
    }
}

#[inline(always)]
fn parse(packet: &[u8], extent: Extent) -> Result<Headers, ParseError> {
    match packet.first().map(|byte| byte >> 4) {
        Some(4) => parse_v4(packet, extent),
        Some(6) => parse_v6(packet, extent),
        Some(_) | None => Err(ParseError::NotIp),
    }
}

/// The IP layer of either version, ready for the transport.
struct Network {
    source: Address,
    destination: Address,
    protocol: u8,
    fragment: Option<Fragment>,
    l4_offset: usize,
    total_length: usize,
    ttl: u8,
    traffic_class: u8,
    dont_fragment: bool,
}

#[inline(always)]
fn parse_v4(packet: &[u8], extent: Extent) -> Result<Headers, ParseError> {
    let ip = packet.first_chunk::<20>().ok_or(ParseError::Truncated)?;
    let header_length = usize::from(ip[0] & 0x0f) * 4;
    let claimed = usize::from(u16::from_be_bytes([ip[2], ip[3]]));
    if header_length < 20 || claimed < header_length {
        return Err(ParseError::BadLength);
    }
    let total_length = available(packet, claimed, extent)?;
    let options = packet.get(20..header_length).ok_or(ParseError::Truncated)?;
    if !options.is_empty() {
        check_v4_options(options)?;
    }
    let flags = u16::from_be_bytes([ip[6], ip[7]]);
    let identification = u16::from_be_bytes([ip[4], ip[5]]).into();
    let fragment = Fragment { identification, offset: flags << 3, more: flags & 0x2000 != 0 };
    let network = Network {
        source: Address::v4([ip[12], ip[13], ip[14], ip[15]]),
        destination: Address::v4([ip[16], ip[17], ip[18], ip[19]]),
        protocol: ip[9],
        fragment: (fragment.more || fragment.offset != 0).then_some(fragment),
        l4_offset: header_length,
        total_length,
        ttl: ip[8],
        traffic_class: ip[1],
        dont_fragment: flags & 0x4000 != 0,
    };
    finish(packet, extent, &network)
}

/// Walks IPv4's options (RFC 791 section 3.1) and refuses source routes.
#[cold]
fn check_v4_options(mut options: &[u8]) -> Result<(), ParseError> {
    const END: u8 = 0;
    const NOP: u8 = 1;
    const LOOSE_SOURCE_ROUTE: u8 = 131;
    const STRICT_SOURCE_ROUTE: u8 = 137;
    while let Some((&kind, rest)) = options.split_first() {
        options = match kind {
            END => return Ok(()),
            NOP => rest,
            LOOSE_SOURCE_ROUTE | STRICT_SOURCE_ROUTE => return Err(ParseError::SourceRoute),
            _ => {
                let length = usize::from(*rest.first().ok_or(ParseError::BadOptions)?);
                if length < 2 {
                    return Err(ParseError::BadOptions);
                }
                options.get(length..).ok_or(ParseError::BadOptions)?
            }
        };
    }
    Ok(())
}

#[inline(always)]
fn parse_v6(packet: &[u8], extent: Extent) -> Result<Headers, ParseError> {
    let (ip, _) = packet.split_first_chunk::<40>().ok_or(ParseError::Truncated)?;
    let claimed = 40 + usize::from(u16::from_be_bytes([ip[4], ip[5]]));
    let total_length = available(packet, claimed, extent)?;
    let (source, destination) = v6_addresses(ip)?;
    let mut network = Network {
        source,
        destination,
        protocol: ip[6],
        fragment: None,
        l4_offset: 40,
        total_length,
        ttl: ip[7],
        traffic_class: (ip[0] << 4) | (ip[1] >> 4),
        dont_fragment: true,
    };
    if is_extension(network.protocol) {
        walk_extensions(packet, &mut network)?;
    }
    finish(packet, extent, &network)
}

#[inline]
fn v6_addresses(ip: &[u8; 40]) -> Result<(Address, Address), ParseError> {
    let mut source = [0; 16];
    let mut destination = [0; 16];
    source.copy_from_slice(&ip[8..24]);
    destination.copy_from_slice(&ip[24..40]);
    let (source, destination) = (Address::v6(source), Address::v6(destination));
    if source.is_v4() || destination.is_v4() {
        return Err(ParseError::MappedAddress);
    }
    Ok((source, destination))
}

/// Whether the number names an extension header (IANA "IPv6 Extension Header Types").
///
/// ESP is left out: nothing behind it can be read, so it is what the policy judges.
#[inline]
const fn is_extension(next: u8) -> bool {
    const MOBILITY: u8 = 135;
    const HIP: u8 = 139;
    const SHIM6: u8 = 140;
    matches!(next, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION_OPTIONS)
        || matches!(next, MOBILITY | HIP | SHIM6 | 253 | 254)
}

/// Walks the extension headers (RFC 8200 section 4), bounded, up to the transport header or to a
/// fragment header that says that the transport header is elsewhere.
#[cold]
fn walk_extensions(packet: &[u8], network: &mut Network) -> Result<(), ParseError> {
    let mut seen_fragment = false;
    for index in 0..=MAX_EXTENSIONS {
        if !is_extension(network.protocol) {
            return Ok(());
        }
        if index == MAX_EXTENSIONS {
            break;
        }
        let header = packet
            .get(network.l4_offset..network.total_length)
            .and_then(<[u8]>::first_chunk::<8>)
            .ok_or(ParseError::Truncated)?;
        let length = match network.protocol {
            HOP_BY_HOP if index == 0 => 8 + usize::from(header[1]) * 8,
            DESTINATION_OPTIONS => 8 + usize::from(header[1]) * 8,
            ROUTING => routing_length(header)?,
            AUTHENTICATION => 8 + usize::from(header[1]) * 4,
            FRAGMENT if !seen_fragment => {
                seen_fragment = true;
                network.fragment = read_fragment(header);
                8
            }
            _ => return Err(ParseError::BadExtension),
        };
        network.protocol = header[0];
        network.l4_offset += length;
        if network.l4_offset > 40 + MAX_EXTENSION_BYTES {
            return Err(ParseError::LongExtensions);
        }
        if network.l4_offset > network.total_length {
            return Err(ParseError::Truncated);
        }
        if network.fragment.is_some_and(|fragment| !fragment.is_first()) {
            return Ok(());
        }
    }
    Err(ParseError::LongExtensions)
}

/// A routing header is harmless once it has no segments left; type 0 never is (RFC 5095).
fn routing_length(header: &[u8; 8]) -> Result<usize, ParseError> {
    let [_, length, kind, segments_left, ..] = *header;
    if kind == 0 || segments_left != 0 {
        return Err(ParseError::SourceRoute);
    }
    Ok(8 + usize::from(length) * 8)
}

fn read_fragment(header: &[u8; 8]) -> Option<Fragment> {
    let [_, _, high, low, a, b, c, d] = *header;
    let field = u16::from_be_bytes([high, low]);
    let fragment = Fragment {
        identification: u32::from_be_bytes([a, b, c, d]),
        offset: field & 0xfff8,
        more: field & 1 != 0,
    };
    (fragment.more || fragment.offset != 0).then_some(fragment)
}

/// The packet's length within the slice.
#[inline]
fn available(packet: &[u8], claimed: usize, extent: Extent) -> Result<usize, ParseError> {
    match extent {
        Extent::Whole if claimed > packet.len() => Err(ParseError::Truncated),
        Extent::Whole => Ok(claimed),
        Extent::Quoted => Ok(claimed.min(packet.len())),
    }
}

#[inline(always)]
fn finish(packet: &[u8], extent: Extent, network: &Network) -> Result<Headers, ParseError> {
    let segment =
        packet.get(network.l4_offset..network.total_length).ok_or(ParseError::Truncated)?;
    if let (Some(fragment), Extent::Whole) = (network.fragment, extent) {
        check_fragment(fragment, network.protocol, segment.len())?;
    }
    let layer = match network.fragment {
        Some(fragment) if !fragment.is_first() => Layer::without_ports(Transport::LaterFragment, 0),
        Some(_) => read_transport(segment, network, Part::First, extent)?,
        None => read_transport(segment, network, Part::All, extent)?,
    };
    Ok(Headers {
        key: FlowKey {
            source: network.source,
            destination: network.destination,
            source_port: layer.source_port,
            destination_port: layer.destination_port,
            protocol: network.protocol,
        },
        transport: layer.transport,
        fragment: network.fragment,
        l4_offset: network.l4_offset,
        payload_offset: network.l4_offset + layer.header_length,
        total_length: network.total_length,
        ttl: network.ttl,
        traffic_class: network.traffic_class,
        dont_fragment: network.dont_fragment,
    })
}

/// Refuses fragments that no sender makes, among them those that would overwrite the TCP header
/// that the policy has judged (RFC 1858 section 4, RFC 3128).
#[inline(always)]
fn check_fragment(fragment: Fragment, protocol: u8, length: usize) -> Result<(), ParseError> {
    let ragged = fragment.more && !length.is_multiple_of(8);
    let too_long = usize::from(fragment.offset) + length > 0xffff;
    let over_header = protocol == protocol::TCP && matches!(fragment.offset, 8 | 16);
    if length == 0 || ragged || too_long || over_header {
        return Err(ParseError::BadFragment);
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    All,
    First,
}

struct Layer {
    transport: Transport,
    source_port: u16,
    destination_port: u16,
    header_length: usize,
}

impl Layer {
    const fn without_ports(transport: Transport, header_length: usize) -> Self {
        Self { transport, source_port: 0, destination_port: 0, header_length }
    }

    const fn with_ports(transport: Transport, bytes: &[u8; 8], header_length: usize) -> Self {
        Self {
            transport,
            source_port: u16::from_be_bytes([bytes[0], bytes[1]]),
            destination_port: u16::from_be_bytes([bytes[2], bytes[3]]),
            header_length,
        }
    }
}

#[inline(always)]
fn read_transport(
    segment: &[u8],
    network: &Network,
    part: Part,
    extent: Extent,
) -> Result<Layer, ParseError> {
    let start = || segment.first_chunk::<8>().ok_or(ParseError::TruncatedTransport);
    let is_v4 = network.source.is_v4();
    match network.protocol {
        protocol::TCP => read_tcp(segment, start()?, extent),
        protocol::UDP => read_udp(segment, start()?, part, extent),
        protocol::UDP_LITE => read_udp_lite(segment, start()?, part, extent),
        protocol::SCTP if extent == Extent::Whole && segment.len() < 12 => {
            Err(ParseError::TruncatedTransport)
        }
        protocol::SCTP => Ok(Layer::with_ports(Transport::Sctp, start()?, 12.min(segment.len()))),
        protocol::ICMP if is_v4 => Ok(read_icmp(start()?, &ICMP_V4)),
        protocol::ICMPV6 if !is_v4 => Ok(read_icmp(start()?, &ICMP_V6)),
        protocol::ICMP | protocol::ICMPV6 => Err(ParseError::IcmpVersion),
        _ => Ok(Layer::without_ports(Transport::Other, 0)),
    }
}

#[inline(always)]
fn read_tcp(segment: &[u8], start: &[u8; 8], extent: Extent) -> Result<Layer, ParseError> {
    let Some(tcp) = segment.first_chunk::<20>() else {
        return match extent {
            Extent::Whole => Err(ParseError::TruncatedTransport),
            Extent::Quoted => {
                let flags = TcpFlags::default();
                Ok(Layer::with_ports(Transport::Tcp { flags }, start, segment.len()))
            }
        };
    };
    let length = usize::from(tcp[12] >> 4) * 4;
    if length < 20 {
        return Err(ParseError::BadTransport);
    }
    if length > segment.len() && extent == Extent::Whole {
        return Err(ParseError::TruncatedTransport);
    }
    let flags = TcpFlags(tcp[13]);
    Ok(Layer::with_ports(Transport::Tcp { flags }, start, length.min(segment.len())))
}

#[inline(always)]
fn read_udp(
    segment: &[u8],
    start: &[u8; 8],
    part: Part,
    extent: Extent,
) -> Result<Layer, ParseError> {
    let length = usize::from(u16::from_be_bytes([start[4], start[5]]));
    let fits = part == Part::First || extent == Extent::Quoted || length <= segment.len();
    if length < 8 || !fits {
        return Err(ParseError::BadTransport);
    }
    Ok(Layer::with_ports(Transport::Udp, start, 8))
}

fn read_udp_lite(
    segment: &[u8],
    start: &[u8; 8],
    part: Part,
    extent: Extent,
) -> Result<Layer, ParseError> {
    let coverage = usize::from(u16::from_be_bytes([start[4], start[5]]));
    let fits = part == Part::First || extent == Extent::Quoted || coverage <= segment.len();
    if matches!(coverage, 1..8) || !fits {
        return Err(ParseError::BadTransport);
    }
    Ok(Layer::with_ports(Transport::UdpLite, start, 8))
}

struct IcmpKinds {
    request: u8,
    reply: u8,
    is_error: fn(u8) -> bool,
}

/// RFC 792; errors as RFC 1122 section 3.2.2 lists them.
const ICMP_V4: IcmpKinds =
    IcmpKinds { request: 8, reply: 0, is_error: |kind| matches!(kind, 3 | 4 | 5 | 11 | 12) };

/// RFC 4443 section 2.1.
const ICMP_V6: IcmpKinds = IcmpKinds { request: 128, reply: 129, is_error: |kind| kind < 128 };

#[inline(always)]
fn read_icmp(start: &[u8; 8], kinds: &IcmpKinds) -> Layer {
    let [kind, code, _, _, high, low, _, _] = *start;
    let identifier = u16::from_be_bytes([high, low]);
    let (transport, source_port, destination_port) = if kind == kinds.request {
        (Transport::EchoRequest { identifier }, identifier, 0)
    } else if kind == kinds.reply {
        (Transport::EchoReply { identifier }, 0, identifier)
    } else {
        let both = u16::from_be_bytes([kind, code]);
        let transport = if (kinds.is_error)(kind) {
            Transport::IcmpError { kind, code }
        } else {
            Transport::Icmp { kind, code }
        };
        (transport, both, both)
    };
    Layer { transport, source_port, destination_port, header_length: 8 }
}
