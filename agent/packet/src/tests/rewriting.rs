use proptest::prelude::*;

use super::oracle::{
    Recipe, any_recipe, any_tcp, any_udp, any_v4, any_v6, between, checksums_hold, other_key,
    parse, recipe,
};
use crate::{
    Address, FlowKey, Rewrite, RewriteError, TcpFlags, Transport, checksum, clamp_mss,
    clamp_mss_partial,
};

proptest! {
    #[test]
    fn checksums_hold_after_any_rewrite_and_its_inverse_restores_every_byte(
        recipe in any_recipe(),
        to in any::<[u8; 32]>(),
        ports in any::<(u16, u16)>(),
    ) {
        let original = recipe.build();
        let mut packet = original.clone();
        let headers = parse(&packet);
        let to = other_key(headers.key, to, ports);

        let rewrite = between(&headers.key, &to);
        rewrite.apply(&mut packet, &headers);
        let after = parse(&packet);
        prop_assert_eq!(after.key, to);
        prop_assert_eq!(rewrite.key_after(&headers), to);
        prop_assert!(checksum::verify(&packet, &after));
        prop_assert!(checksums_hold(&packet));

        between(&to, &headers.key).apply(&mut packet, &after);
        prop_assert_eq!(packet, original);
    }

    #[test]
    fn a_corrupt_packet_stays_corrupt(
        recipe in any_recipe(),
        to in any::<[u8; 32]>(),
        ports in any::<(u16, u16)>(),
    ) {
        let mut packet = recipe.build();
        let headers = parse(&packet);
        let field = headers.l4_offset + checksum::checksum_offset(headers.transport).unwrap();
        packet[field + 1] ^= 0x01;
        prop_assume!(packet[field..field + 2] != [0, 0]);
        between(&headers.key, &other_key(headers.key, to, ports)).apply(&mut packet, &headers);
        prop_assert!(!checksum::verify(&packet, &parse(&packet)));
    }

    #[test]
    fn a_partial_checksum_completes_after_the_rewrite(
        recipe in recipe(prop_oneof![any_v4(), any_v6()], prop_oneof![any_tcp(), any_udp()], 0..100),
        to in any::<[u8; 32]>(),
        ports in any::<(u16, u16)>(),
        mss in 500u16..1400,
    ) {
        let mut packet = recipe.build();
        let headers = parse(&packet);
        let field = headers.l4_offset + checksum::checksum_offset(headers.transport).unwrap();
        let key = headers.key;
        let length = headers.total_length - headers.l4_offset;
        let pseudo = checksum::pseudo_header(key.source, key.destination, key.protocol, length);
        packet[field..field + 2].copy_from_slice(&pseudo.to_be_bytes());

        between(&key, &other_key(key, to, ports)).apply_partial(&mut packet, &headers);
        clamp_mss_partial(&mut packet, &headers, mss);

        // What the kernel does with VIRTIO_NET_HDR_F_NEEDS_CSUM.
        let complete = match checksum::checksum(&packet[headers.l4_offset..headers.total_length]) {
            0 if headers.transport == Transport::Udp => 0xffff,
            value => value,
        };
        packet[field..field + 2].copy_from_slice(&complete.to_be_bytes());
        prop_assert!(checksums_hold(&packet));
    }

    #[test]
    fn a_clamped_syn_has_the_lower_mss_and_right_checksums(
        mut recipe in recipe(prop_oneof![any_v4(), any_v6()], any_tcp(), 0..50),
        mss in any::<u16>(),
    ) {
        use super::oracle::Kind;
        let Kind::Tcp { flags, options, .. } = &mut recipe.transport else { unreachable!() };
        *flags |= TcpFlags::SYN;
        let has_option = !options.is_empty();
        let mut packet = recipe.build();
        let headers = parse(&packet);
        prop_assert_eq!(clamp_mss(&mut packet, &headers, mss), has_option && mss < 1460);
        prop_assert!(checksums_hold(&packet));
        if has_option {
            let start = headers.l4_offset + 20;
            let options = &packet[start..headers.payload_offset];
            // The first: the value itself may look like an option, too.
            let at = options.windows(2).position(|w| w == [2, 4]).expect("the option") + start + 2;
            prop_assert_eq!(u16::from_be_bytes([packet[at], packet[at + 1]]), mss.min(1460));
        }
    }
}

#[test]
fn udp_without_a_checksum_stays_without() {
    let mut packet = Recipe::udp(10).build();
    packet[26..28].fill(0);
    let headers = parse(&packet);
    between(&headers.key, &other_key(headers.key, [9; 32], (1, 2))).apply(&mut packet, &headers);
    assert_eq!(packet[26..28], [0, 0]);
    assert!(checksum::verify(&packet, &parse(&packet)));
}

#[test]
fn a_udp_checksum_that_becomes_zero_is_sent_as_ones() {
    // With a payload word chosen freely, some destination port makes the sum come out as zero.
    let original = Recipe::udp(2).build();
    let from = parse(&original).key;
    let stored = u16::from_be_bytes([original[26], original[27]]);
    let port = checksum::add(from.destination_port, stored);
    let mut packet = original.clone();
    let to = FlowKey { destination_port: port, ..from };
    between(&from, &to).apply(&mut packet, &parse(&original));
    assert_eq!(packet[26..28], [0xff, 0xff]);
    assert!(checksums_hold(&packet));
    let headers = parse(&packet);
    between(&to, &from).apply(&mut packet, &headers);
    assert_eq!(packet, original);
}

#[test]
fn later_fragments_keep_their_payload() {
    let mut packet = Recipe::udp(100).build();
    packet[6..8].copy_from_slice(&[0x00, 0xb9]);
    packet[10..12].fill(0);
    let sum = checksum::checksum(&packet[..20]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    let before = packet.clone();
    let headers = parse(&packet);
    assert!(headers.is_later_fragment());
    // The decision was made for the whole flow, which has ports.
    let flow = FlowKey { source_port: 40_000, destination_port: 53, ..headers.key };
    let to = FlowKey { source: Address::v4([100, 64, 9, 9]), destination_port: 5353, ..flow };
    between(&flow, &to).apply(&mut packet, &headers);
    assert_eq!(packet[20..], before[20..]);
    let after = parse(&packet);
    assert_eq!(after.key.source, to.source);
    assert_eq!(after.key, between(&flow, &to).key_after(&headers));
    assert!(checksum::verify(&packet, &after));
}

#[test]
fn a_rewrite_to_itself_changes_nothing() {
    let original = Recipe::tcp(0x10, &[], b"data").build();
    let headers = parse(&original);
    let rewrite = between(&headers.key, &headers.key);
    assert!(rewrite.is_identity());
    let mut packet = original.clone();
    rewrite.apply(&mut packet, &headers);
    assert_eq!(packet, original);
}

#[test]
fn impossible_rewrites_are_refused() {
    let v4 = Recipe::udp(0).key();
    let v6 = Recipe::udp(0).over_v6().key();
    assert_eq!(Rewrite::between(&v4, &v6), Err(RewriteError::Family));
    let tcp = FlowKey { protocol: 6, ..v4 };
    assert_eq!(Rewrite::between(&v4, &tcp), Err(RewriteError::Protocol));
    for protocol in [1, 132] {
        let from = FlowKey { protocol, ..v4 };
        let to = FlowKey { source_port: 1, ..from };
        assert_eq!(Rewrite::between(&from, &to), Err(RewriteError::Ports));
        let moved = FlowKey { source: Address::v4([1, 2, 3, 4]), ..from };
        assert!(Rewrite::between(&from, &moved).is_ok());
    }
}

#[test]
fn a_segment_that_is_no_syn_keeps_its_mss_bytes() {
    let original = Recipe::tcp(TcpFlags::ACK, &[2, 4, 5, 0xb4], &[]).build();
    let mut packet = original.clone();
    assert!(!clamp_mss(&mut packet, &parse(&original), 500));
    assert_eq!(packet, original);
}

#[test]
fn malformed_tcp_options_leave_the_segment_alone() {
    let hopeless: [&[u8]; 8] = [
        &[3, 0, 2, 4],
        &[8, 1, 2, 4, 5, 0xb4, 0, 0],
        &[2, 0, 5, 0xb4],
        &[2, 3, 5, 0xb4],
        &[3, 1, 2, 4],
        &[8, 200, 2, 4],
        &[1, 1, 1, 2],
        &[0, 2, 4, 5],
    ];
    for options in hopeless {
        let original = Recipe::tcp(TcpFlags::SYN, options, &[0xff; 8]).build();
        let mut packet = original.clone();
        assert!(!clamp_mss(&mut packet, &parse(&original), 500), "{options:?}");
        assert_eq!(packet, original);
    }
}

#[test]
fn an_mss_at_the_limit_is_left_alone() {
    let mut packet = Recipe::tcp(TcpFlags::SYN, &[2, 4, 5, 0xb4], &[]).build();
    let headers = parse(&packet);
    assert!(!clamp_mss(&mut packet, &headers, 1460));
    assert!(clamp_mss(&mut packet, &headers, 1459));
}

#[test]
fn udp_lite_is_rewritten_whatever_it_covers() {
    for coverage in [0, 8, 12] {
        let mut packet = Recipe::udp(20).build();
        packet[9] = 136;
        packet[25] = coverage;
        let headers = parse(&packet);
        assert_eq!(headers.transport, Transport::UdpLite);
        assert!(checksum::fill(&mut packet, &headers));
        // What RFC 3828 section 3.1 covers, under a pseudo-header with the whole length.
        let covered = if coverage == 0 { 28 } else { usize::from(coverage) };
        let key = headers.key;
        let pseudo = checksum::pseudo_header(key.source, key.destination, 136, 28);
        assert_eq!(checksum::add(pseudo, checksum::sum(&packet[20..20 + covered])), 0xffff);

        let to = other_key(key, [9; 32], (1, 2));
        between(&key, &to).apply(&mut packet, &headers);
        let after = parse(&packet);
        assert_eq!(after.key, to);
        assert!(checksum::verify(&packet, &after));
        packet[26..28].fill(0);
        assert!(!checksum::verify(&packet, &after), "UDP-Lite must have a checksum");
    }
}

#[test]
fn udp_over_ipv6_must_have_a_checksum() {
    let mut packet = Recipe::udp(4).over_v6().build();
    packet[46..48].fill(0);
    assert!(!checksum::verify(&packet, &parse(&packet)));
}
