use etherparse::{Icmpv4Type, Icmpv6Type, SlicedPacket, TransportSlice};
use proptest::prelude::*;

use super::oracle::{Ip, Kind, Recipe, any_recipe, checksums_hold, parse};
use crate::{
    Address, Echo, FlowKey, REPLY_BUFFER, Reason, TcpFlags, Transport, echo, echo_reply,
    icmp_error, tcp_reset, udp_datagram,
};

const FROM_V4: Address = Address::v4([100, 64, 0, 254]);
const FROM_V6: Address = Address::v6([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 254]);

fn complain(packet: &[u8], reason: Reason) -> Option<Vec<u8>> {
    let headers = parse(packet);
    let from = if headers.key.source.is_v4() { FROM_V4 } else { FROM_V6 };
    let mut out = [0; REPLY_BUFFER];
    let length = icmp_error(packet, &headers, reason, from, &mut out)?;
    Some(out[..length].to_vec())
}

/// Type, code and the four bytes after the checksum.
fn message(reply: &[u8]) -> (u8, u8, [u8; 4]) {
    let at = parse(reply).l4_offset;
    let rest = reply[at + 4..].first_chunk().expect("an ICMP header");
    (reply[at], reply[at + 1], *rest)
}

#[test]
fn errors_have_the_types_and_codes_of_the_rfcs() {
    let mtu = Reason::PacketTooBig { mtu: 1400 };
    let table = [
        (mtu, (3, 4, [0, 0, 5, 0x78]), (2, 0, [0, 0, 5, 0x78])),
        (Reason::Prohibited, (3, 13, [0; 4]), (1, 1, [0; 4])),
        (Reason::HostUnreachable, (3, 1, [0; 4]), (1, 3, [0; 4])),
        (Reason::PortUnreachable, (3, 3, [0; 4]), (1, 4, [0; 4])),
        (Reason::HopsExceeded, (11, 0, [0; 4]), (3, 0, [0; 4])),
    ];
    for (reason, v4, v6) in table {
        let reply = complain(&Recipe::udp(40).build(), reason).expect("a reply");
        assert_eq!(message(&reply), v4, "{reason:?}");
        let reply = complain(&Recipe::udp(40).over_v6().build(), reason).expect("a reply");
        assert_eq!(message(&reply), v6, "{reason:?}");
    }
}

#[test]
fn etherparse_reads_the_mtu_we_wrote() {
    let reply = complain(&Recipe::udp(40).build(), Reason::PacketTooBig { mtu: 70_000 });
    let reply = reply.expect("a reply");
    let Some(TransportSlice::Icmpv4(icmp)) = SlicedPacket::from_ip(&reply).unwrap().transport
    else {
        panic!("not ICMP");
    };
    let Icmpv4Type::DestinationUnreachable(header) = icmp.header().icmp_type else { panic!() };
    let expected =
        etherparse::icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 0xffff };
    assert_eq!(header, expected);

    let reply = complain(&Recipe::udp(40).over_v6().build(), Reason::PacketTooBig { mtu: 70_000 });
    let reply = reply.expect("a reply");
    let Some(TransportSlice::Icmpv6(icmp)) = SlicedPacket::from_ip(&reply).unwrap().transport
    else {
        panic!("not ICMP");
    };
    assert_eq!(icmp.header().icmp_type, Icmpv6Type::PacketTooBig { mtu: 70_000 });
}

#[test]
fn errors_quote_as_much_as_allowed_and_no_trailing_bytes() {
    for (payload, expected) in [(100, 128), (547, 548), (2000, 548)] {
        let mut packet = Recipe::udp(payload).build();
        packet.extend([0xee; 30]);
        let reply = complain(&packet, Reason::Prohibited).expect("a reply");
        assert_eq!(reply[28..], packet[..expected]);
        assert!(reply.len() <= 576);
    }
    for (payload, expected) in [(100, 148), (4000, 1232)] {
        let packet = Recipe::udp(payload).over_v6().build();
        let reply = complain(&packet, Reason::Prohibited).expect("a reply");
        assert_eq!(reply[48..], packet[..expected]);
        assert!(reply.len() <= 1280);
    }
}

#[test]
fn no_error_answers_an_error() {
    for recipe in [Recipe::udp(40), Recipe::udp(40).over_v6()] {
        let error = complain(&recipe.build(), Reason::HopsExceeded).expect("a reply");
        assert_eq!(complain(&error, Reason::Prohibited), None);
    }
    // Pings are no errors.
    let ping = Recipe { transport: Kind::Request { identifier: 1, sequence: 1 }, ..Recipe::udp(9) };
    assert!(complain(&ping.build(), Reason::Prohibited).is_some());
    // Redirects aren't answered either.
    let mut redirect = ping.clone().over_v6().build();
    redirect[40] = 137;
    assert_eq!(complain(&redirect, Reason::Prohibited), None);
}

#[test]
fn no_error_answers_a_later_fragment_but_one_answers_the_first() {
    let mut packet = Recipe::udp(32).build();
    packet[6] = 0x20;
    assert!(complain(&packet, Reason::Prohibited).is_some());
    packet[6..8].copy_from_slice(&[0, 4]);
    assert_eq!(complain(&packet, Reason::Prohibited), None);
}

#[test]
fn no_error_goes_to_or_about_more_than_one_host() {
    let v4 = |source: [u8; 4], destination: [u8; 4]| {
        let ip = Ip::V4 { source, destination, options: vec![], dont_fragment: false };
        Recipe { ip, ..Recipe::udp(8) }.build()
    };
    let host = [100, 64, 0, 1];
    assert!(complain(&v4(host, [10, 1, 1, 1]), Reason::Prohibited).is_some());
    for bad in [[0, 0, 0, 0], [127, 0, 0, 1], [224, 0, 0, 251], [255; 4], [240, 0, 0, 1]] {
        assert_eq!(complain(&v4(bad, host), Reason::Prohibited), None, "{bad:?}");
        assert_eq!(complain(&v4(host, bad), Reason::Prohibited), None, "{bad:?}");
    }
    let v6 = |source: &str, destination: &str| {
        let octets = |text: &str| text.parse::<std::net::Ipv6Addr>().expect("one").octets();
        let mut packet = Recipe::udp(8).over_v6().build();
        packet[8..24].copy_from_slice(&octets(source));
        packet[24..40].copy_from_slice(&octets(destination));
        packet
    };
    for bad in ["::", "::1", "ff02::1"] {
        assert_eq!(complain(&v6(bad, "fd00::1"), Reason::Prohibited), None, "{bad}");
    }
    assert_eq!(complain(&v6("fd00::1", "ff0e::1"), Reason::Prohibited), None);
    // RFC 4443 section 2.4 (e.3): path MTU discovery works for multicast.
    assert!(complain(&v6("fd00::1", "ff0e::1"), Reason::PacketTooBig { mtu: 1280 }).is_some());
}

#[test]
fn a_small_buffer_or_the_wrong_family_gets_no_error() {
    let packet = Recipe::udp(40).build();
    let headers = parse(&packet);
    let short = &mut [0; REPLY_BUFFER - 1];
    assert_eq!(icmp_error(&packet, &headers, Reason::Prohibited, FROM_V4, short), None);
    let out = &mut [0; REPLY_BUFFER];
    assert_eq!(icmp_error(&packet, &headers, Reason::Prohibited, FROM_V6, out), None);
}

proptest! {
    #[test]
    fn every_error_has_right_checksums_and_goes_to_the_sender(recipe in any_recipe()) {
        let packet = recipe.build();
        let key = recipe.key();
        let sendable = key.source.is_single_host() && key.destination.is_single_host();
        let reply = complain(&packet, Reason::Prohibited);
        prop_assert_eq!(reply.is_some(), sendable);
        if let Some(reply) = reply {
            prop_assert!(checksums_hold(&reply));
            prop_assert_eq!(parse(&reply).key.destination, key.source);
        }
    }

    #[test]
    fn every_reset_has_right_checksums(recipe in any_recipe()) {
        let packet = recipe.build();
        let headers = parse(&packet);
        let mut out = [0; 60];
        if let Some(length) = tcp_reset(&packet, &headers, &mut out) {
            prop_assert!(checksums_hold(&out[..length]));
            prop_assert_eq!(parse(&out[..length]).key, headers.key.reversed());
        }
    }

    #[test]
    fn datagrams_and_pings_have_right_checksums(
        recipe in any_recipe(),
        ports in any::<(u16, u16)>(),
    ) {
        let key = FlowKey { source_port: ports.0, destination_port: ports.1, protocol: 17, ..recipe.key() };
        let mut out = [0; 300];
        let length = udp_datagram(&key, &recipe.payload, &mut out).expect("it fits");
        prop_assert!(checksums_hold(&out[..length]));
        let headers = parse(&out[..length]);
        prop_assert_eq!(headers.key, key);
        prop_assert_eq!(headers.payload(&out), recipe.payload.as_slice());

        let ping = Echo {
            source: key.source,
            destination: key.destination,
            is_reply: false,
            identifier: ports.0,
            sequence: ports.1,
            payload: &recipe.payload,
        };
        let length = echo(&ping, &mut out).expect("it fits");
        prop_assert!(checksums_hold(&out[..length]));
        let headers = parse(&out[..length]);
        prop_assert_eq!(Echo::read(&out, &headers), Some(ping));
    }
}

/// Sequence number, acknowledgement number and flags of the reset for a segment.
fn reset(flags: u8, payload: &[u8]) -> Option<(u32, u32, u8)> {
    let packet = Recipe::tcp(flags, &[2, 4, 5, 0xb4], payload).build();
    let mut out = [0; 60];
    let length = tcp_reset(&packet, &parse(&packet), &mut out)?;
    let Some(TransportSlice::Tcp(tcp)) = SlicedPacket::from_ip(&out[..length]).unwrap().transport
    else {
        panic!("not TCP");
    };
    assert_eq!((tcp.source_port(), tcp.destination_port()), (443, 40_000));
    let Transport::Tcp { flags } = parse(&out[..length]).transport else { panic!("not TCP") };
    Some((tcp.sequence_number(), tcp.acknowledgment_number(), flags.0))
}

#[test]
fn resets_are_those_of_rfc_9293() {
    const RST_ACK: u8 = TcpFlags::RST | TcpFlags::ACK;
    // The offender's sequence number is 0xfffffff0, its acknowledgement number 0x12345678.
    assert_eq!(reset(TcpFlags::SYN, &[]), Some((0, 0xffff_fff1, RST_ACK)));
    assert_eq!(reset(TcpFlags::SYN, &[0; 20]), Some((0, 5, RST_ACK)));
    assert_eq!(reset(TcpFlags::FIN, &[0; 3]), Some((0, 0xffff_fff4, RST_ACK)));
    assert_eq!(reset(TcpFlags::ACK, &[0; 3]), Some((0x1234_5678, 0, TcpFlags::RST)));
    assert_eq!(reset(TcpFlags::SYN | TcpFlags::ACK, &[]), Some((0x1234_5678, 0, TcpFlags::RST)));
    assert_eq!(reset(TcpFlags::RST, &[]), None);
    assert_eq!(reset(RST_ACK, &[]), None);
}

#[test]
fn only_whole_segments_between_two_hosts_are_reset() {
    let mut out = [0; 60];
    let udp = Recipe::udp(8).build();
    assert_eq!(tcp_reset(&udp, &parse(&udp), &mut out), None);
    let mut fragment = Recipe::tcp(TcpFlags::ACK, &[], &[0; 4]).build();
    fragment[6] = 0x20;
    assert_eq!(tcp_reset(&fragment, &parse(&fragment), &mut out), None);
    let mut broadcast = Recipe::tcp(TcpFlags::SYN, &[], &[]).build();
    broadcast[16..20].fill(255);
    assert_eq!(tcp_reset(&broadcast, &parse(&broadcast), &mut out), None);
    let segment = Recipe::tcp(TcpFlags::SYN, &[], &[]).build();
    assert_eq!(tcp_reset(&segment, &parse(&segment), &mut [0; 39]), None);
}

#[test]
fn a_reply_gives_back_what_the_request_held() {
    let request =
        Recipe { transport: Kind::Request { identifier: 77, sequence: 3 }, ..Recipe::udp(56) };
    for request in [request.clone(), request.over_v6()] {
        let packet = request.build();
        let mut out = [0; 200];
        let length = echo_reply(&packet, &parse(&packet), &mut out).expect("a reply");
        assert!(checksums_hold(&out[..length]));
        let headers = parse(&out[..length]);
        let reply = Echo::read(&out, &headers).expect("an echo message");
        assert!(reply.is_reply);
        assert_eq!((reply.identifier, reply.sequence), (77, 3));
        assert_eq!(reply.payload, request.payload);
        let mut again = [0; 200];
        assert_eq!(echo_reply(&out[..length], &headers, &mut again), None);
    }
}

#[test]
fn a_datagram_that_does_not_fit_is_not_built() {
    let key = Recipe::udp(0).key();
    assert_eq!(udp_datagram(&key, &[0; 10], &mut [0; 37]), None);
    assert_eq!(udp_datagram(&key, &[0; 10], &mut [0; 38]), Some(38));
    let mut large = vec![0; 70_000];
    assert_eq!(udp_datagram(&key, &[0; 65_508], &mut large), None);
    assert_eq!(udp_datagram(&key, &[0; 65_507], &mut large), Some(65_535));
    let mixed = FlowKey { source: FROM_V6, ..key };
    assert_eq!(udp_datagram(&mixed, &[], &mut large), None);
}

#[test]
fn a_ping_to_a_group_is_not_answered() {
    let ping = Recipe { transport: Kind::Request { identifier: 1, sequence: 1 }, ..Recipe::udp(8) };
    let mut packet = ping.build();
    packet[16..20].copy_from_slice(&[224, 0, 0, 1]);
    assert_eq!(echo_reply(&packet, &parse(&packet), &mut [0; 200]), None);
}
