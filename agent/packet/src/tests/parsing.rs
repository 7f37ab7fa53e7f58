use proptest::collection::vec;
use proptest::prelude::*;

use super::oracle::{Recipe, any_recipe, checksums_hold, parse};
use crate::{
    FlowKey, Fragment, Headers, ParseError, Reason, Rewrite, Transport, checksum, clamp_mss,
    decrement_hops, echo_reply, fragment_ipv4, icmp_error, quoted, rewrite_icmp_error, tcp_reset,
};

proptest! {
    #[test]
    fn reads_the_flow_that_etherparse_wrote(recipe in any_recipe(), trailing in 0usize..20) {
        let mut packet = recipe.build();
        let length = packet.len();
        packet.resize(length + trailing, 0xaa);
        let headers = parse(&packet);
        prop_assert_eq!(headers.key, recipe.key());
        prop_assert_eq!(headers.total_length, length);
        prop_assert_eq!(headers.payload(&packet), recipe.payload.as_slice());
        prop_assert_eq!(headers.fragment, None);
        prop_assert_eq!(headers.ttl, 64);
    }

    #[test]
    fn verifies_what_etherparse_wrote_and_no_flipped_bit(
        recipe in any_recipe(),
        bit in 0usize..8,
        at in any::<proptest::sample::Index>(),
    ) {
        let mut packet = recipe.build();
        let headers = parse(&packet);
        prop_assert!(checksum::verify(&packet, &headers));
        let covered = headers.total_length - headers.l4_offset;
        packet[headers.l4_offset + at.index(covered)] ^= 1 << bit;
        if let Ok(headers) = Headers::parse(&packet) {
            // A flip may turn UDP's checksum into the 0 that means "none", or a ping into
            // something else that is still covered.
            let none = headers.transport == Transport::Udp
                && packet[headers.l4_offset + 6..headers.l4_offset + 8] == [0, 0]
                && headers.key.source.is_v4();
            prop_assert!(none || !checksum::verify(&packet, &headers));
        }
    }

    #[test]
    fn fills_in_the_checksums_that_etherparse_computes(recipe in any_recipe()) {
        let honest = recipe.build();
        let mut packet = honest.clone();
        let headers = parse(&packet);
        packet[headers.l4_offset + checksum::checksum_offset(headers.transport).unwrap()] ^= 0x55;
        if headers.key.source.is_v4() {
            packet[10] ^= 0x55;
        }
        prop_assert!(checksum::fill(&mut packet, &headers));
        prop_assert_eq!(packet, honest);
    }

    #[test]
    fn sums_like_the_textbook(bytes in vec(any::<u8>(), 0..300)) {
        let mut slow = 0u32;
        for pair in bytes.chunks(2) {
            slow += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        }
        while slow > 0xffff {
            slow = (slow >> 16) + (slow & 0xffff);
        }
        prop_assert_eq!(u32::from(checksum::sum(&bytes)), slow);
    }

    #[test]
    fn a_cut_packet_is_refused(recipe in any_recipe(), at in any::<proptest::sample::Index>()) {
        let packet = recipe.build();
        prop_assert!(Headers::parse(&packet[..at.index(packet.len())]).is_err());
    }

    #[test]
    fn one_hop_less_keeps_the_checksums(recipe in any_recipe()) {
        let mut packet = recipe.build();
        prop_assert_eq!(decrement_hops(&mut packet), Some(63));
        prop_assert_eq!(parse(&packet).ttl, 63);
        prop_assert!(checksums_hold(&packet));
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..200), version in any::<bool>()) {
        exercise(bytes, version);
    }

    #[test]
    fn damaged_packets_never_panic(
        recipe in any_recipe(),
        damage in vec((any::<proptest::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut packet = recipe.build();
        for (at, byte) in damage {
            let at = at.index(packet.len());
            packet[at] = byte;
        }
        let version = packet[0] >> 4 == 4;
        exercise(packet, version);
    }

    #[test]
    fn headers_of_another_packet_never_panic(
        recipe in any_recipe(),
        bytes in vec(any::<u8>(), 0..120),
    ) {
        let headers = parse(&recipe.build());
        drive(bytes, &headers);
    }
}

/// Calls everything there is on the bytes, as a packet of the given version.
fn exercise(mut bytes: Vec<u8>, v4: bool) {
    if let Some(first) = bytes.first_mut() {
        *first = if v4 { 0x40 } else { 0x60 } | (*first & 0x0f);
    }
    let _ = Headers::parse_quoted(&bytes);
    decrement_hops(&mut bytes.clone());
    if let Ok(headers) = Headers::parse(&bytes) {
        assert!(headers.l4_offset <= headers.payload_offset);
        assert!(headers.payload_offset <= headers.total_length);
        assert!(headers.total_length <= bytes.len());
        drive(bytes, &headers);
    }
}

fn drive(mut bytes: Vec<u8>, headers: &Headers) {
    let mut out = [0; 1280];
    let _ = checksum::verify(&bytes, headers);
    let _ = headers.payload(&bytes);
    let own = headers.key.destination;
    let _ = icmp_error(&bytes, headers, Reason::PacketTooBig { mtu: 1280 }, own, &mut out);
    let _ = tcp_reset(&bytes, headers, &mut out);
    let _ = echo_reply(&bytes, headers, &mut out);
    let _ = fragment_ipv4(&mut bytes.clone(), headers, 68, |_| {});
    let back = Rewrite::between(&headers.key, &headers.key.reversed());
    if let Ok(rewrite) = &back {
        rewrite.apply(&mut bytes.clone(), headers);
        rewrite.apply_partial(&mut bytes.clone(), headers);
    }
    if let (Some(quoted), Ok(outer)) = (quoted(&bytes, headers), back)
        && let Ok(inner) = Rewrite::between(&quoted.key, &quoted.key.reversed())
    {
        rewrite_icmp_error(&mut bytes, headers, &quoted, &outer, &inner);
    }
    clamp_mss(&mut bytes, headers, 1000);
    let _ = checksum::fill(&mut bytes, headers);
}

#[test]
fn sums_the_example_of_rfc_1071() {
    assert_eq!(checksum::sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), 0xddf2);
}

#[test]
fn updates_the_example_of_rfc_1624() {
    // Section 4: a checksum of 0xdd2f, whose word 0x5555 becomes 0x3285, ends as 0x0000.
    assert_eq!(checksum::update(0xdd2f, checksum::delta(0x5555, 0x3285)), 0x0000);
}

#[test]
fn echo_requests_and_replies_pair_up() {
    use super::oracle::Kind;
    let request = Recipe {
        transport: Kind::Request { identifier: 7, sequence: 1 },
        ..Recipe::udp(10).over_v6()
    };
    let packet = request.build();
    let mut out = [0; 200];
    let length = echo_reply(&packet, &parse(&packet), &mut out).expect("a reply");
    assert_eq!(parse(&out[..length]).key, parse(&packet).key.reversed());
    assert_ne!(parse(&packet).key, parse(&packet).key.reversed());
}

fn refused(packet: &[u8]) -> ParseError {
    Headers::parse(packet).expect_err("a packet to refuse")
}

#[test]
fn refuses_what_is_not_ip_and_lying_lengths() {
    assert_eq!(refused(&[]), ParseError::NotIp);
    assert_eq!(refused(&[0x00; 40]), ParseError::NotIp);
    let honest = Recipe::udp(4).build();
    let with = |at: usize, byte: u8| {
        let mut packet = honest.clone();
        packet[at] = byte;
        packet
    };
    assert_eq!(refused(&with(0, 0x44)), ParseError::BadLength);
    assert_eq!(refused(&with(3, 19)), ParseError::BadLength);
    assert_eq!(refused(&with(3, 33)), ParseError::Truncated);
    assert_eq!(refused(&with(3, 27)), ParseError::TruncatedTransport);
    assert_eq!(refused(&with(25, 13)), ParseError::BadTransport);
    assert_eq!(refused(&with(25, 7)), ParseError::BadTransport);
    assert_eq!(refused(&with(9, 58)), ParseError::IcmpVersion);
    let mut tcp = Recipe::tcp(0x10, &[], &[]).build();
    tcp[32] = 4 << 4;
    assert_eq!(refused(&tcp), ParseError::BadTransport);
    tcp[32] = 6 << 4;
    assert_eq!(refused(&tcp), ParseError::TruncatedTransport);
}

#[test]
fn refuses_source_routes_and_broken_options() {
    let with_options = |options: [u8; 4]| {
        let mut packet = Recipe::udp(0).build();
        packet.splice(20..20, options);
        packet[0] = 0x46;
        packet[3] += 4;
        packet
    };
    assert!(Headers::parse(&with_options([1, 1, 1, 0])).is_ok());
    assert_eq!(refused(&with_options([131, 3, 4, 0])), ParseError::SourceRoute);
    assert_eq!(refused(&with_options([1, 137, 3, 4])), ParseError::SourceRoute);
    assert_eq!(refused(&with_options([7, 5, 0, 0])), ParseError::BadOptions);
    assert_eq!(refused(&with_options([7, 0, 0, 0])), ParseError::BadOptions);
    assert_eq!(refused(&with_options([7, 1, 1, 1])), ParseError::BadOptions);
    assert_eq!(refused(&with_options([1, 1, 1, 7])), ParseError::BadOptions);
}

/// A UDP packet over IPv6 with the given extension headers, each with its own kind.
fn with_extensions(extensions: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let mut packet = Recipe::udp(4).over_v6().build();
    let mut next = packet[6];
    for (kind, bytes) in extensions.iter().rev() {
        let mut bytes = bytes.clone();
        bytes[0] = next;
        next = *kind;
        packet.splice(40..40, bytes);
    }
    packet[6] = next;
    let length = u16::try_from(packet.len() - 40).expect("short");
    packet[4..6].copy_from_slice(&length.to_be_bytes());
    packet
}

#[test]
fn extension_headers_do_not_hide_the_ports() {
    let options = |kind: u8, units: usize| {
        let mut bytes = vec![0; 8 + units * 8];
        bytes[1] = units as u8;
        (kind, bytes)
    };
    let routing = (43, vec![0, 0, 4, 0, 0, 0, 0, 0]);
    let authentication =
        (51, vec![0, 4, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9]);
    let chain = [options(0, 1), options(60, 2), routing, authentication, options(60, 0)];
    let packet = with_extensions(&chain);
    let headers = parse(&packet);
    assert_eq!(headers.key, Recipe::udp(4).over_v6().key());
    assert_eq!(headers.l4_offset, 40 + 16 + 24 + 8 + 24 + 8);
    assert_eq!(headers.payload(&packet), [0, 1, 2, 3]);
}

#[test]
fn extension_chains_are_bounded_and_in_order() {
    let option = |kind: u8| (kind, vec![0; 8]);
    let many = |count: usize| with_extensions(&vec![option(60); count]);
    let long = with_extensions(&[(60, [vec![0, 32], vec![0; 262]].concat())]);
    assert!(Headers::parse(&many(8)).is_ok());
    assert_eq!(refused(&many(9)), ParseError::LongExtensions);
    assert_eq!(refused(&long), ParseError::LongExtensions);
    assert_eq!(refused(&with_extensions(&[option(60), option(0)])), ParseError::BadExtension);
    for unknown in [135, 139, 140, 253, 254] {
        assert_eq!(refused(&with_extensions(&[option(unknown)])), ParseError::BadExtension);
    }
    let mut beyond = with_extensions(&[option(60)]);
    beyond[41] = 20;
    assert_eq!(refused(&beyond), ParseError::Truncated);
}

#[test]
fn routing_headers_that_still_route_are_refused() {
    let routing = |kind: u8, left: u8| with_extensions(&[(43, vec![0, 0, kind, left, 0, 0, 0, 0])]);
    assert_eq!(refused(&routing(0, 0)), ParseError::SourceRoute);
    assert_eq!(refused(&routing(0, 1)), ParseError::SourceRoute);
    assert_eq!(refused(&routing(4, 1)), ParseError::SourceRoute);
    assert!(Headers::parse(&routing(4, 0)).is_ok());
}

#[test]
fn mapped_addresses_do_not_pass_for_ipv4() {
    for at in [8, 24] {
        let mut packet = Recipe::udp(0).over_v6().build();
        packet[at..at + 16].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 10, 0, 0, 1]);
        assert_eq!(refused(&packet), ParseError::MappedAddress);
    }
}

#[test]
fn an_atomic_fragment_is_a_whole_packet() {
    let packet = with_extensions(&[(44, vec![0, 0, 0, 0, 1, 2, 3, 4])]);
    let headers = parse(&packet);
    assert_eq!(headers.fragment, None);
    assert_eq!(headers.key, Recipe::udp(4).over_v6().key());
}

#[test]
fn ipv6_fragments_are_told_apart() {
    let fragment = |field: [u8; 2]| vec![0, 0, field[0], field[1], 1, 2, 3, 4];
    let mut first = with_extensions(&[(44, fragment([0, 1]))]);
    first.extend([0; 4]);
    first[5] += 4;
    let headers = parse(&first);
    let expected = Fragment { identification: 0x0102_0304, offset: 0, more: true };
    assert_eq!(headers.fragment, Some(expected));
    assert_eq!(headers.key.destination_port, 53);

    let later = with_extensions(&[(44, fragment([0x01, 0]))]);
    let headers = parse(&later);
    assert_eq!(headers.fragment.map(|fragment| fragment.offset), Some(256));
    assert_eq!(headers.transport, Transport::LaterFragment);
    assert_eq!((headers.key.source_port, headers.key.destination_port), (0, 0));
    assert!(headers.payload(&later).len() == 12);

    let nested = with_extensions(&[(44, fragment([0, 1])), (44, fragment([0, 1]))]);
    assert_eq!(refused(&nested), ParseError::BadExtension);
}

#[test]
fn a_first_fragment_must_hold_the_transport_header() {
    let mut packet = Recipe::tcp(2, &[], &[]).build();
    packet[6] = 0x20;
    packet.truncate(36);
    packet[3] = 36;
    assert_eq!(refused(&packet), ParseError::TruncatedTransport);
}

#[test]
fn impossible_fragments_are_refused() {
    let with = |flags: [u8; 2], payload: usize| {
        let mut packet = Recipe::tcp(0x10, &[], &vec![0; payload]).build();
        packet[6..8].copy_from_slice(&flags);
        packet
    };
    // RFC 3128: offsets of 8 and 16 bytes would overwrite the header that was judged.
    assert_eq!(refused(&with([0, 1], 4)), ParseError::BadFragment);
    assert_eq!(refused(&with([0, 2], 4)), ParseError::BadFragment);
    assert!(Headers::parse(&with([0, 3], 4)).is_ok());
    // More fragments follow, but this one doesn't end on eight bytes.
    assert_eq!(refused(&with([0x20, 3], 5)), ParseError::BadFragment);
    // Holds nothing.
    let mut empty = with([0, 9], 0);
    empty.truncate(20);
    empty[3] = 20;
    assert_eq!(refused(&empty), ParseError::BadFragment);
    // Ends beyond 65,535 bytes.
    assert_eq!(refused(&with([0x1f, 0xff], 4)), ParseError::BadFragment);
}

#[test]
fn a_packet_at_its_last_hop_stays_as_it_is() {
    let mut packet = Recipe::udp(4).build();
    packet[8] = 1;
    let before = packet.clone();
    assert_eq!(decrement_hops(&mut packet), None);
    assert_eq!(packet, before);
    packet[8] = 0;
    assert_eq!(decrement_hops(&mut packet), None);
}

#[test]
fn congestion_bits_are_read_from_both_versions() {
    let mut v4 = Recipe::udp(0).build();
    v4[1] = 0b1011_1010;
    let mut v6 = Recipe::udp(0).over_v6().build();
    v6[0] |= 0b1011;
    v6[1] = 0b1010_0000;
    for packet in [v4, v6] {
        assert_eq!(parse(&packet).traffic_class, 0b1011_1010);
        assert_eq!(parse(&packet).ecn(), 0b10);
    }
}

#[test]
fn sctp_and_udp_lite_have_ports() {
    for protocol in [132, 136] {
        let mut packet = Recipe::udp(4).build();
        packet[9] = protocol;
        assert_eq!(parse(&packet).key, FlowKey { protocol, ..Recipe::udp(4).key() });
    }
    let mut short_sctp = Recipe::udp(3).build();
    short_sctp[9] = 132;
    assert_eq!(refused(&short_sctp), ParseError::TruncatedTransport);
    let mut lite = Recipe::udp(4).build();
    lite[9] = 136;
    for coverage in [1, 7, 13] {
        lite[25] = coverage;
        assert_eq!(refused(&lite), ParseError::BadTransport);
    }
}

#[test]
fn other_protocols_have_no_ports() {
    let mut packet = Recipe::udp(4).build();
    packet[9] = 47;
    let headers = parse(&packet);
    assert_eq!(headers.transport, Transport::Other);
    assert_eq!((headers.key.source_port, headers.key.destination_port), (0, 0));
    assert_eq!(headers.payload(&packet).len(), 12);
}

#[test]
fn icmp_messages_are_told_apart() {
    let read = |v4: bool, kind: u8| {
        let recipe = if v4 { Recipe::udp(8) } else { Recipe::udp(8).over_v6() };
        let mut packet = recipe.build();
        packet[if v4 { 9 } else { 6 }] = if v4 { 1 } else { 58 };
        let at = if v4 { 20 } else { 40 };
        packet[at..at + 8].copy_from_slice(&[kind, 9, 0, 0, 0x12, 0x34, 0, 0]);
        let headers = parse(&packet);
        (headers.transport, headers.key.source_port, headers.key.destination_port)
    };
    for (v4, errors) in [(true, &[3, 4, 5, 11, 12][..]), (false, &[1, 2, 3, 4, 100, 127])] {
        for kind in 0..=255 {
            let both = u16::from_be_bytes([kind, 9]);
            let identifier = 0x1234;
            let expected = match (v4, kind) {
                (true, 8) | (false, 128) => (Transport::EchoRequest { identifier }, identifier, 0),
                (true, 0) | (false, 129) => (Transport::EchoReply { identifier }, 0, identifier),
                _ if errors.contains(&kind) || (!v4 && kind < 128) => {
                    (Transport::IcmpError { kind, code: 9 }, both, both)
                }
                _ => (Transport::Icmp { kind, code: 9 }, both, both),
            };
            assert_eq!(read(v4, kind), expected);
        }
    }
}
