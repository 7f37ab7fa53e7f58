use proptest::prelude::*;

use super::oracle::{
    Recipe, any_kind, any_v4, any_v6, between, checksums_hold, other_key, parse, recipe,
};
use crate::{
    FlowKey, Headers, REPLY_BUFFER, Reason, checksum, icmp_error, quoted, rewrite_icmp_error,
};

/// An error about `packet`, sent by `packet`'s own destination.
fn error_about(packet: &[u8], reason: Reason) -> Option<Vec<u8>> {
    let headers = parse(packet);
    let mut out = [0; REPLY_BUFFER];
    let length = icmp_error(packet, &headers, reason, headers.key.destination, &mut out)?;
    Some(out[..length].to_vec())
}

fn any_reason() -> impl Strategy<Value = Reason> {
    prop_oneof![
        Just(Reason::PacketTooBig { mtu: 1400 }),
        Just(Reason::Prohibited),
        Just(Reason::HopsExceeded),
    ]
}

proptest! {
    /// The sender's packet is rewritten on its way; the error about it must come back exactly as
    /// if the packet had never been rewritten.
    #[test]
    fn an_error_comes_back_as_if_nothing_had_been_rewritten(
        recipe in recipe(prop_oneof![any_v4(), any_v6()], any_kind(), 0..1500),
        to in any::<[u8; 32]>(),
        ports in any::<(u16, u16)>(),
        reason in any_reason(),
    ) {
        let recipe = recipe.between_single_hosts();
        let sent = recipe.build();
        let from = recipe.key();
        let to = other_key(from, to, ports);
        let mut seen = sent.clone();
        between(&from, &to).apply(&mut seen, &parse(&sent));

        let mut error = error_about(&seen, reason).expect("an error");
        let headers = parse(&error);
        let quoted = quoted(&error, &headers).expect("a quote");
        prop_assert_eq!(quoted.key, to);
        let home = FlowKey { source: from.destination, destination: from.source, ..headers.key };
        rewrite_icmp_error(
            &mut error,
            &headers,
            &quoted,
            &between(&headers.key, &home),
            &between(&quoted.key, &from),
        );

        prop_assert!(checksums_hold(&error));
        prop_assert_eq!(error, error_about(&sent, reason).expect("an error"));
    }

    #[test]
    fn cut_quotes_are_translated_as_far_as_they_reach(
        recipe in recipe(prop_oneof![any_v4(), any_v6()], any_kind(), 0..60),
        to in any::<[u8; 32]>(),
        ports in any::<(u16, u16)>(),
        keep in 8usize..40,
    ) {
        let recipe = recipe.between_single_hosts();
        let packet = recipe.build();
        let from = recipe.key();
        let to = other_key(from, to, ports);
        // Half of a TCP checksum can't be updated, and nobody reads it.
        prop_assume!(keep != 17);
        let whole = error_about(&packet, Reason::HopsExceeded).expect("an error");
        let quote_at = parse(&whole).l4_offset + 8;
        let mut error = shorten(&whole, quote_at + parse(&packet).l4_offset + keep);
        let headers = parse(&error);
        let before = quoted(&error, &headers).expect("a quote");
        prop_assert_eq!(before.key, from);

        let outer = between(&headers.key, &headers.key);
        rewrite_icmp_error(&mut error, &headers, &before, &outer, &between(&from, &to));
        prop_assert!(checksum::verify(&error, &headers));
        prop_assert_eq!(quoted(&error, &headers).expect("a quote").key, to);
        // The whole packet, rewritten, starts like the translated quote.
        let mut rewritten = packet.clone();
        between(&from, &to).apply(&mut rewritten, &parse(&packet));
        let quote = &error[quote_at..];
        prop_assert_eq!(quote, &rewritten[..quote.len()]);
    }
}

/// Cuts an ICMP packet to `length` bytes and mends its lengths and checksums.
fn shorten(packet: &[u8], length: usize) -> Vec<u8> {
    let mut packet = packet[..packet.len().min(length)].to_vec();
    let (at, header) = if packet[0] >> 4 == 4 { (2, 0) } else { (4, 40) };
    let claimed = u16::try_from(packet.len() - header).expect("short");
    packet[at..at + 2].copy_from_slice(&claimed.to_be_bytes());
    let headers = parse(&packet);
    assert!(checksum::fill(&mut packet, &headers));
    packet
}

#[test]
fn the_quoted_flow_runs_against_the_error() {
    let packet = Recipe::udp(10).build();
    let error = error_about(&packet, Reason::PortUnreachable).expect("an error");
    let headers = parse(&error);
    let quoted = quoted(&error, &headers).expect("a quote");
    assert_eq!(quoted.key, Recipe::udp(10).key());
    assert_eq!(quoted.key.source, headers.key.destination);
    assert_eq!(quoted.headers().total_length, packet.len());
}

#[test]
fn extensions_after_the_quote_are_not_part_of_it() {
    let packet = Recipe::udp(200).build();
    let mut error = error_about(&packet, Reason::HopsExceeded).expect("an error");
    // RFC 4884: 128 bytes are the quote, the rest are extensions.
    error[25] = 32;
    let headers = parse(&error);
    assert!(checksum::fill(&mut error, &headers));
    let found = quoted(&error, &headers).expect("a quote");
    assert_eq!(found.headers().total_length, 128);
}

#[test]
fn padding_after_a_short_quoted_packet_is_not_part_of_it() {
    let mut packet = Recipe::udp(10).build();
    packet.extend([0; 90]);
    assert_eq!(Headers::parse_quoted(&packet).expect("a quote").total_length, 38);
}

#[test]
fn only_errors_with_a_readable_quote_are_translated() {
    let none = |packet: &[u8]| quoted(packet, &parse(packet)).is_none();
    assert!(none(&Recipe::udp(40).build()));
    let error = error_about(&Recipe::udp(40).build(), Reason::HopsExceeded).expect("an error");
    let with = |at: usize, byte: u8| {
        let mut packet = error.clone();
        packet[at] = byte;
        packet
    };
    assert!(!none(&error));
    // Redirect, source quench; a quote that isn't IPv4; a fragment of an error.
    assert!(none(&with(20, 5)));
    assert!(none(&with(20, 4)));
    assert!(none(&with(28, 0x65)));
    assert!(none(&with(28, 0x05)));
    let mut fragment = shorten(&error, 60);
    fragment[6] = 0x20;
    assert!(none(&fragment));
    // Less than eight bytes of the quoted transport.
    assert!(none(&shorten(&error, 28 + 20 + 7)));
}

#[test]
fn an_error_about_a_later_fragment_has_its_addresses_translated() {
    let mut packet = Recipe::udp(64).build();
    let error = error_about(&packet, Reason::HopsExceeded).expect("an error");
    // Nobody should send such an error, but somebody does.
    packet = error;
    packet[28 + 6..28 + 8].copy_from_slice(&[0, 9]);
    let headers = parse(&packet);
    checksum::fill(&mut packet, &headers);
    let found = quoted(&packet, &headers).expect("a quote");
    assert_eq!((found.key.source_port, found.key.destination_port), (0, 0));
    let to = other_key(found.key, [9; 32], (0, 0));
    let transport = packet[28 + 20..].to_vec();
    let outer = between(&headers.key, &headers.key);
    rewrite_icmp_error(&mut packet, &headers, &found, &outer, &between(&found.key, &to));
    assert!(checksum::verify(&packet, &headers));
    assert_eq!(packet[28 + 20..], transport);
    assert_eq!(Headers::parse_quoted(&packet[28..]).expect("a quote").key, to);
}

#[test]
fn a_quote_of_the_other_ip_version_is_not_translated() {
    let ping = Recipe {
        transport: super::oracle::Kind::Request { identifier: 1, sequence: 1 },
        payload: Recipe::udp(20).over_v6().build(),
        ..Recipe::udp(0)
    };
    let mut packet = ping.build();
    packet[20] = 11;
    packet[24..28].fill(0);
    let headers = parse(&packet);
    assert!(Headers::parse_quoted(&packet[28..]).is_ok());
    assert_eq!(quoted(&packet, &headers), None);
}
