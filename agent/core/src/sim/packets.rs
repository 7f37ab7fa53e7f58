//! Packets as programs send them.

use std::net::IpAddr;

use isthmus_packet::{
    Address, Echo, FlowKey, Headers, TcpFlags, Transport, checksum, echo, protocol, udp_datagram,
};

/// SYN.
pub const SYN: u8 = TcpFlags::SYN;
/// SYN and ACK.
pub const SYN_ACK: u8 = TcpFlags::SYN | TcpFlags::ACK;
/// ACK.
pub const ACK: u8 = TcpFlags::ACK;
/// RST.
pub const RST: u8 = TcpFlags::RST;
/// FIN and ACK.
pub const FIN_ACK: u8 = TcpFlags::FIN | TcpFlags::ACK;

/// A flow's key.
pub fn key(protocol: u8, from: (IpAddr, u16), to: (IpAddr, u16)) -> FlowKey {
    FlowKey {
        source: from.0.into(),
        destination: to.0.into(),
        source_port: from.1,
        destination_port: to.1,
        protocol,
    }
}

/// A TCP flow's key.
pub fn tcp_key(from: (IpAddr, u16), to: (IpAddr, u16)) -> FlowKey {
    key(protocol::TCP, from, to)
}

/// A UDP flow's key.
pub fn udp_key(from: (IpAddr, u16), to: (IpAddr, u16)) -> FlowKey {
    key(protocol::UDP, from, to)
}

/// A TCP segment. A SYN has an MSS option.
pub fn tcp(
    key: &FlowKey,
    flags: u8,
    sequence: u32,
    acknowledgement: u32,
    payload: &[u8],
) -> Vec<u8> {
    let options: &[u8] = if flags & SYN != 0 { &[2, 4, 0x05, 0xb4] } else { &[] };
    let mut segment = Vec::new();
    segment.extend(key.source_port.to_be_bytes());
    segment.extend(key.destination_port.to_be_bytes());
    segment.extend(sequence.to_be_bytes());
    segment.extend(acknowledgement.to_be_bytes());
    segment.extend([((5 + options.len() / 4) as u8) << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
    segment.extend(options);
    segment.extend(payload);
    ip(key, &segment)
}

/// A UDP datagram; IPv4 ones may not be fragmented.
pub fn udp(key: &FlowKey, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; payload.len() + 48];
    let length = udp_datagram(key, payload, &mut packet).expect("one family");
    packet.truncate(length);
    packet
}

/// An echo request.
pub fn ping(from: IpAddr, to: IpAddr, identifier: u16, sequence: u16) -> Vec<u8> {
    let message = Echo {
        source: from.into(),
        destination: to.into(),
        is_reply: false,
        identifier,
        sequence,
        payload: b"ping",
    };
    let mut packet = vec![0; 128];
    let length = echo(&message, &mut packet).expect("one family");
    packet.truncate(length);
    packet
}

/// A kernel's reply to a packet: that of a closed port, or of another.
pub fn answer(
    packet: &[u8],
    write: impl Fn(&[u8], &Headers, &mut [u8]) -> Option<usize>,
) -> Vec<u8> {
    let headers = Headers::parse(packet).expect("a packet");
    let mut out = vec![0; 1500];
    let length = write(packet, &headers, &mut out).expect("an answer");
    out.truncate(length);
    out
}

/// Puts an IP header before a segment, and right checksums into both.
fn ip(key: &FlowKey, segment: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    match (key.source.v4_octets(), key.destination.v4_octets()) {
        (Some(source), Some(destination)) => {
            packet.extend([0x45, 0]);
            packet.extend(((segment.len() + 20) as u16).to_be_bytes());
            packet.extend([0, 0, 0x40, 0, 64, key.protocol, 0, 0]);
            packet.extend(source);
            packet.extend(destination);
        }
        _ => {
            packet.extend([0x60, 0, 0, 0]);
            packet.extend((segment.len() as u16).to_be_bytes());
            packet.extend([key.protocol, 64]);
            packet.extend(key.source.v6_octets());
            packet.extend(key.destination.v6_octets());
        }
    }
    packet.extend(segment);
    fix(&mut packet);
    packet
}

/// Computes a packet's checksums.
pub fn fix(packet: &mut [u8]) {
    let headers = Headers::parse(packet).expect("a packet");
    assert!(checksum::fill(packet, &headers));
}

/// Splits an IPv4 packet into fragments, as a kernel with a small MTU does.
pub fn fragments(packet: &[u8], mtu: usize) -> Vec<Vec<u8>> {
    let mut packet = packet.to_vec();
    // Clears "don't fragment", and gives the fragments an identity.
    packet[4..8].copy_from_slice(&[0x12, 0x34, 0, 0]);
    packet[10..12].fill(0);
    let sum = checksum::checksum(&packet[..20]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    let headers = Headers::parse(&packet).expect("a packet");
    let mut fragments = Vec::new();
    isthmus_packet::fragment_ipv4(&mut packet, &headers, mtu, |part| fragments.push(part.to_vec()))
        .expect("an IPv4 packet");
    fragments
}

/// Splits an IPv6 packet into fragments, as the kernel that sends it does.
pub fn fragments_ipv6(packet: &[u8], mtu: usize) -> Vec<Vec<u8>> {
    const FRAGMENT: u8 = 44;
    let (header, payload) = packet.split_at(40);
    let parts: Vec<&[u8]> = payload.chunks((mtu - 48) & !7).collect();
    let one = |(index, part): (usize, &&[u8])| {
        let offset = parts[..index].iter().map(|part| part.len()).sum::<usize>() as u16;
        let more = u16::from(index + 1 < parts.len());
        let mut fragment = header.to_vec();
        fragment[4..6].copy_from_slice(&(part.len() as u16 + 8).to_be_bytes());
        fragment[6] = FRAGMENT;
        fragment.extend([header[6], 0]);
        fragment.extend((offset | more).to_be_bytes());
        fragment.extend(0x1234_u32.to_be_bytes());
        fragment.extend(*part);
        fragment
    };
    parts.iter().enumerate().map(one).collect()
}

/// Reads a packet's headers, and checks its checksums on the way.
pub fn read(packet: &[u8]) -> Headers {
    let headers = Headers::parse(packet).expect("a packet");
    assert!(checksum::verify(packet, &headers), "wrong checksum: {:?}", headers.key);
    headers
}

/// The control bits of a TCP segment.
pub fn flags(packet: &[u8]) -> u8 {
    let Transport::Tcp { flags } = read(packet).transport else { panic!("not TCP") };
    flags.0
}

/// The payload of a packet.
pub fn payload(packet: &[u8]) -> &[u8] {
    read(packet).payload(packet)
}

/// An address as packets have it.
pub fn address(ip: IpAddr) -> Address {
    ip.into()
}
