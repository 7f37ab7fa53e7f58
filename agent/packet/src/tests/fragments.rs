use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::oracle::{Recipe, any_udp, any_v4, parse, recipe};
use crate::{FragmentKey, FragmentLimits, FragmentTable, SplitError, fragment_ipv4};

/// The key of fragment `identification` from host `source`.
fn key(source: u8, identification: u16) -> FragmentKey {
    let mut packet = Recipe::udp(32).build();
    packet[6] = 0x20;
    packet[15] = source;
    packet[4..6].copy_from_slice(&identification.to_be_bytes());
    parse(&packet).fragment_key().expect("a fragment")
}

fn table(datagrams: u32, datagrams_per_source: u32) -> FragmentTable<u32> {
    let lifetime = Duration::from_secs(30);
    FragmentTable::new(FragmentLimits { datagrams, datagrams_per_source, lifetime })
}

#[test]
fn later_fragments_get_the_decision_of_the_first() {
    let now = Instant::now();
    let mut packet = Recipe::udp(64).build();
    packet[6] = 0x20;
    let first = parse(&packet).fragment_key().expect("a fragment");
    packet[6..8].copy_from_slice(&[0x00, 0x09]);
    let later = parse(&packet).fragment_key().expect("a fragment");

    let mut table = table(8, 8);
    assert_eq!(table.decision(&later, now), None);
    table.remember(first, 7, now);
    assert_eq!(table.decision(&later, now), Some(7));
    assert_eq!(table.decision(&key(1, 1), now), None);
    assert_eq!(parse(&Recipe::udp(64).build()).fragment_key(), None);
}

#[test]
fn decisions_expire_and_reaching_the_deadline_clears_it() {
    let now = Instant::now();
    let mut table = table(8, 8);
    assert_eq!(table.poll_timeout(), None);
    table.remember(key(1, 1), 1, now);
    table.remember(key(1, 2), 2, now + Duration::from_secs(10));

    let deadline = table.poll_timeout().expect("a deadline");
    assert_eq!(deadline, now + Duration::from_secs(30));
    assert_eq!(table.decision(&key(1, 1), deadline), None);
    table.handle_timeout(deadline);
    assert_eq!(table.len(), 1);
    assert_eq!(table.decision(&key(1, 2), deadline), Some(2));

    let deadline = table.poll_timeout().expect("a deadline");
    table.handle_timeout(deadline);
    assert!(table.is_empty());
    assert_eq!(table.poll_timeout(), None);
}

#[test]
fn a_recycled_identification_replaces_the_old_decision() {
    let now = Instant::now();
    let mut table = table(8, 8);
    table.remember(key(1, 1), 1, now);
    let later = now + Duration::from_secs(20);
    table.remember(key(1, 1), 2, later);
    assert_eq!(table.len(), 1);
    assert_eq!(table.decision(&key(1, 1), now + Duration::from_secs(40)), Some(2));
    assert_eq!(table.decision(&key(1, 1), later + Duration::from_secs(30)), None);
}

#[test]
fn a_greedy_source_only_loses_its_own_entries() {
    let now = Instant::now();
    let mut table = table(100, 4);
    table.remember(key(1, 1), 1, now);
    for identification in 0..50 {
        table.remember(key(2, identification), identification.into(), now);
    }
    assert_eq!(table.len(), 5);
    assert_eq!(table.decision(&key(1, 1), now), Some(1));
    assert_eq!(table.decision(&key(2, 45), now), None);
    assert_eq!(table.decision(&key(2, 46), now), Some(46));
}

#[test]
fn a_full_table_forgets_the_oldest() {
    let now = Instant::now();
    let mut table = table(10, 4);
    for source in 0..30 {
        table.remember(key(source, 1), source.into(), now);
    }
    assert_eq!(table.len(), 10);
    assert_eq!(table.decision(&key(19, 1), now), None);
    assert_eq!(table.decision(&key(20, 1), now), Some(20));
    table.clear();
    assert!(table.is_empty());
    assert_eq!(table.decision(&key(20, 1), now), None);
}

/// The plainest thing that behaves like the table: a list of entries by age.
#[derive(Default)]
struct Model {
    entries: Vec<(FragmentKey, u8, u32, Instant)>,
}

impl Model {
    fn remember(&mut self, key: FragmentKey, source: u8, value: u32, now: Instant) {
        let expires = now + Duration::from_secs(30);
        while self.entries.first().is_some_and(|entry| entry.3 <= now) {
            self.entries.remove(0);
        }
        if let Some(entry) = self.entries.iter_mut().find(|entry| entry.0 == key) {
            (entry.2, entry.3) = (value, expires);
            return;
        }
        if self.entries.iter().filter(|entry| entry.1 == source).count() >= 3 {
            let own = self.entries.iter().position(|entry| entry.1 == source);
            self.entries.remove(own.expect("three of them"));
        } else if self.entries.len() >= 8 {
            self.entries.remove(0);
        }
        self.entries.push((key, source, value, expires));
    }
}

proptest! {
    #[test]
    fn the_table_behaves_like_a_plain_list(
        steps in proptest::collection::vec((0u8..5, 0u16..4, 0u64..12), 1..200),
    ) {
        let (mut table, mut model) = (table(8, 3), Model::default());
        let mut now = Instant::now();
        for (value, (source, identification, seconds)) in steps.into_iter().enumerate() {
            now += Duration::from_secs(seconds);
            let key = key(source, identification);
            table.remember(key, value as u32, now);
            model.remember(key, source, value as u32, now);
            prop_assert_eq!(table.len(), model.entries.len());
            for (key, _, value, expires) in &model.entries {
                prop_assert_eq!(table.decision(key, now), (*expires > now).then_some(*value));
            }
        }
    }

    #[test]
    fn fragments_come_together_again(
        mut recipe in recipe(any_v4(), any_udp(), 0..3000),
        mtu in 68usize..1600,
        inner_mtu in 68usize..600,
    ) {
        let super::oracle::Ip::V4 { dont_fragment, .. } = &mut recipe.ip else { unreachable!() };
        *dont_fragment = false;
        let original = recipe.build();
        let fragments = split(&original, mtu);
        prop_assert!(fragments.iter().all(|fragment| fragment.len() <= mtu));
        prop_assert_eq!(reassemble(&fragments), payload_of(&original));

        // Fragments of fragments, too.
        let twice: Vec<_> = fragments.iter().flat_map(|one| split(one, inner_mtu)).collect();
        prop_assert!(twice.iter().all(|fragment| fragment.len() <= inner_mtu));
        prop_assert_eq!(reassemble(&twice), payload_of(&original));
    }
}

fn split(packet: &[u8], mtu: usize) -> Vec<Vec<u8>> {
    let mut fragments = Vec::new();
    let headers = parse(packet);
    let count = fragment_ipv4(&mut packet.to_vec(), &headers, mtu, |bytes| {
        fragments.push(bytes.to_vec());
    });
    assert_eq!(count, Ok(fragments.len()));
    for fragment in &fragments {
        assert!(header_checksum_holds(fragment));
        assert_eq!(parse(fragment).key.source, headers.key.source);
    }
    fragments
}

fn header_checksum_holds(packet: &[u8]) -> bool {
    let (header, _) = etherparse::Ipv4Header::from_slice(packet).expect("an IPv4 header");
    header.calc_header_checksum() == header.header_checksum
}

fn payload_of(packet: &[u8]) -> Vec<u8> {
    packet[parse(packet).l4_offset..].to_vec()
}

/// Puts the payload together, insisting that no byte is missing or sent twice.
fn reassemble(fragments: &[Vec<u8>]) -> Vec<u8> {
    let mut parts = BTreeMap::new();
    let mut last = 0;
    for bytes in fragments {
        let headers = parse(bytes);
        let payload = bytes[headers.l4_offset..headers.total_length].to_vec();
        let Some(fragment) = headers.fragment else { return payload };
        assert_eq!(fragment.identification, 0x4242);
        last += usize::from(!fragment.more);
        assert!(parts.insert(fragment.offset, payload).is_none());
    }
    assert_eq!(last, 1);
    let mut whole = Vec::new();
    for (offset, payload) in parts {
        assert_eq!(usize::from(offset), whole.len());
        whole.extend(payload);
    }
    whole
}

#[test]
fn only_copied_options_go_into_later_fragments() {
    let mut recipe = Recipe::udp(300);
    let super::oracle::Ip::V4 { options, .. } = &mut recipe.ip else { unreachable!() };
    // A timestamp (not copied), then router alert (copied), then padding.
    *options = vec![68, 8, 5, 0, 0, 0, 0, 0, 148, 4, 0, 0];
    let fragments = split(&recipe.build(), 128);
    assert_eq!(fragments[0][20..32], [68, 8, 5, 0, 0, 0, 0, 0, 148, 4, 0, 0]);
    for later in &fragments[1..] {
        assert_eq!(later[0], 0x46);
        assert_eq!(later[20..24], [148, 4, 0, 0]);
    }
}

#[test]
fn a_packet_that_fits_goes_out_whole_and_trailing_bytes_do_not() {
    let packet = Recipe::udp(100).build();
    let mut padded = packet.clone();
    padded.extend([0xee; 10]);
    let mut out = Vec::new();
    let headers = parse(&padded);
    let count = fragment_ipv4(&mut padded, &headers, 128, |bytes| out.push(bytes.to_vec()));
    assert_eq!(count, Ok(1));
    assert_eq!(out, [packet]);
}

#[test]
fn what_must_not_be_fragmented_is_not() {
    let refuse = |mut packet: Vec<u8>, mtu: usize| {
        let headers = parse(&packet);
        let before = packet.clone();
        let result = fragment_ipv4(&mut packet, &headers, mtu, |_| panic!("nothing may go out"));
        assert_eq!(packet, before);
        result.expect_err("a refusal")
    };
    let mut dont = Recipe::udp(100).build();
    dont[6] = 0x40;
    assert_eq!(refuse(dont, 100), SplitError::DontFragment);
    assert_eq!(refuse(Recipe::udp(100).over_v6().build(), 100), SplitError::DontFragment);
    assert_eq!(refuse(Recipe::udp(100).build(), 27), SplitError::MtuTooSmall);
}

#[test]
fn keys_of_ipv6_leave_the_next_header_out() {
    let mut packet = Recipe::udp(4).over_v6().build();
    packet.splice(40..40, [17, 0, 0x00, 0x80, 0, 0, 0, 9]);
    packet[6] = 44;
    packet[5] += 8;
    let udp = parse(&packet).fragment_key();
    packet[40] = 60;
    assert_eq!(parse(&packet).fragment_key(), udp);
    assert!(udp.is_some());
}
