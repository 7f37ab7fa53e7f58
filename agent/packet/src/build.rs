//! Packets that the node sends itself: pings and control messages.

use super::{Address, FlowKey, Headers, Transport, checksum, protocol};

/// Hops that a packet of ours may take; every stack's default.
const HOPS: u8 = 64;

/// An ICMP or ICMPv6 echo message (RFC 792, RFC 4443 section 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Echo<'a> {
    /// Sender.
    pub source: Address,
    /// Whom it is for.
    pub destination: Address,
    /// Whether it answers a request.
    pub is_reply: bool,
    /// Tells one pinging program from another.
    pub identifier: u16,
    /// Tells one ping from another.
    pub sequence: u16,
    /// Comes back as it was sent.
    pub payload: &'a [u8],
}

impl<'a> Echo<'a> {
    /// Reads an echo request or reply that isn't a fragment.
    pub fn read(packet: &'a [u8], headers: &Headers) -> Option<Self> {
        let (is_reply, identifier) = match headers.transport {
            Transport::EchoRequest { identifier } => (false, identifier),
            Transport::EchoReply { identifier } => (true, identifier),
            Transport::Tcp { .. }
            | Transport::Udp
            | Transport::UdpLite
            | Transport::Sctp
            | Transport::IcmpError { .. }
            | Transport::Icmp { .. }
            | Transport::Other
            | Transport::LaterFragment => return None,
        };
        if headers.fragment.is_some() {
            return None;
        }
        let sequence = packet.get(headers.l4_offset + 6..)?.first_chunk::<2>()?;
        Some(Self {
            source: headers.key.source,
            destination: headers.key.destination,
            is_reply,
            identifier,
            sequence: u16::from_be_bytes(*sequence),
            payload: headers.payload(packet),
        })
    }

    const fn kind(&self) -> u8 {
        match (self.source.is_v4(), self.is_reply) {
            (true, false) => 8,
            (true, true) => 0,
            (false, false) => 128,
            (false, true) => 129,
        }
    }
}

/// Builds an echo message into `out` and returns its length; `None` if it doesn't fit or the
/// addresses are of different families.
pub fn echo(echo: &Echo<'_>, out: &mut [u8]) -> Option<usize> {
    let envelope = Envelope::icmp(echo.source, echo.destination)?;
    let mut header = [echo.kind(), 0, 0, 0, 0, 0, 0, 0];
    header[4..6].copy_from_slice(&echo.identifier.to_be_bytes());
    header[6..8].copy_from_slice(&echo.sequence.to_be_bytes());
    envelope.seal(&header, echo.payload, out)
}

/// Builds the reply to an echo request. `None` if the packet isn't one, is a fragment, doesn't
/// fit, or isn't between two single hosts (RFC 1122 section 3.2.2.6).
pub fn echo_reply(request: &[u8], headers: &Headers, out: &mut [u8]) -> Option<usize> {
    let asked = Echo::read(request, headers)?;
    let answerable = asked.source.is_single_host() && asked.destination.is_single_host();
    if asked.is_reply || !answerable {
        return None;
    }
    let reply =
        Echo { source: asked.destination, destination: asked.source, is_reply: true, ..asked };
    echo(&reply, out)
}

/// Builds a UDP datagram for the addresses and ports of `key` (its protocol isn't looked at) and
/// returns its length; `None` if it doesn't fit or the addresses are of different families.
pub fn udp_datagram(key: &FlowKey, payload: &[u8], out: &mut [u8]) -> Option<usize> {
    let envelope = Envelope::new(key.source, key.destination, protocol::UDP)?;
    let length = u16::try_from(payload.len().checked_add(8)?).ok()?;
    let mut header = [0; 8];
    header[..2].copy_from_slice(&key.source_port.to_be_bytes());
    header[2..4].copy_from_slice(&key.destination_port.to_be_bytes());
    header[4..6].copy_from_slice(&length.to_be_bytes());
    envelope.seal(&header, payload, out)
}

/// The IP header of a packet of ours.
pub(super) struct Envelope {
    source: Address,
    destination: Address,
    protocol: u8,
    traffic_class: u8,
}

impl Envelope {
    /// `None` if the addresses are of different families.
    pub(super) fn new(source: Address, destination: Address, protocol: u8) -> Option<Self> {
        source.same_family(destination).then_some(Self {
            source,
            destination,
            protocol,
            traffic_class: 0,
        })
    }

    /// For the ICMP that belongs to the addresses' family.
    pub(super) fn icmp(source: Address, destination: Address) -> Option<Self> {
        let protocol = if source.is_v4() { protocol::ICMP } else { protocol::ICMPV6 };
        Self::new(source, destination, protocol)
    }

    /// RFC 1812 section 4.3.2.5: ICMP errors go with precedence "internetwork control".
    pub(super) fn with_network_control(self) -> Self {
        Self { traffic_class: if self.source.is_v4() { 0xc0 } else { 0 }, ..self }
    }

    /// Length of the IP header.
    pub(super) const fn header_length(&self) -> usize {
        if self.source.is_v4() { 20 } else { 40 }
    }

    /// Puts IP header, transport header and payload together and fills in the checksums.
    pub(super) fn seal(&self, header: &[u8], payload: &[u8], out: &mut [u8]) -> Option<usize> {
        let start = self.header_length();
        let middle = start.checked_add(header.len())?;
        let end = middle.checked_add(payload.len())?;
        let packet = out.get_mut(..end)?;
        packet.get_mut(start..middle)?.copy_from_slice(header);
        packet.get_mut(middle..)?.copy_from_slice(payload);
        self.write_ip(packet)?;
        let headers = Headers::parse(packet).ok()?;
        checksum::fill(packet, &headers).then_some(end)
    }

    fn write_ip(&self, packet: &mut [u8]) -> Option<()> {
        let length = packet.len();
        match (self.source.v4_octets(), self.destination.v4_octets()) {
            (Some(source), Some(destination)) => {
                let ip = packet.first_chunk_mut::<20>()?;
                // Identification 0 with "don't fragment": an atomic datagram (RFC 6864).
                *ip = [0; 20];
                ip[..2].copy_from_slice(&[0x45, self.traffic_class]);
                ip[6..10].copy_from_slice(&[0x40, 0, HOPS, self.protocol]);
                ip[2..4].copy_from_slice(&u16::try_from(length).ok()?.to_be_bytes());
                ip[12..16].copy_from_slice(&source);
                ip[16..20].copy_from_slice(&destination);
            }
            (None, None) => {
                let ip = packet.first_chunk_mut::<40>()?;
                ip[..4].copy_from_slice(&[
                    0x60 | self.traffic_class >> 4,
                    self.traffic_class << 4,
                    0,
                    0,
                ]);
                ip[4..6].copy_from_slice(&u16::try_from(length - 40).ok()?.to_be_bytes());
                ip[6..8].copy_from_slice(&[self.protocol, HOPS]);
                ip[8..24].copy_from_slice(&self.source.v6_octets());
                ip[24..40].copy_from_slice(&self.destination.v6_octets());
            }
            (Some(_), None) | (None, Some(_)) => return None,
        }
        Some(())
    }
}
