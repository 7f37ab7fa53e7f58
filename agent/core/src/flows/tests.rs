use std::time::Duration;

use isthmus_model::{HostId, Layer4, Place, ServiceId};
use isthmus_packet::{Address, FlowKey, TcpFlags, Transport, protocol};
use isthmus_policy::{DecidedBy, Outcome, Verdict};

use super::*;
use crate::types::{Interface, PeerName};

const SYN: Transport = Transport::Tcp { flags: TcpFlags(TcpFlags::SYN) };
const ACK: Transport = Transport::Tcp { flags: TcpFlags(TcpFlags::ACK) };
const FIN: Transport = Transport::Tcp { flags: TcpFlags(TcpFlags::FIN | TcpFlags::ACK) };
const RST: Transport = Transport::Tcp { flags: TcpFlags(TcpFlags::RST) };

const ONE: Load = Load { packets: 1, bytes: 40 };

fn table(flows: usize, half_open: usize) -> (FlowTable, Instant) {
    let now = Instant::now();
    let limits = Limits { flows, half_open, ..Limits::default() };
    (FlowTable::new(limits, 7, now), now)
}

fn new_flow(port: u16, protocol: u8, outcome: Outcome) -> NewFlow {
    let (from, to) = (Address::v4([100, 64, 0, 1]), Address::v4([100, 64, 1, 1]));
    let key = FlowKey {
        source: from,
        destination: to,
        source_port: port,
        destination_port: 80,
        protocol,
    };
    NewFlow {
        from: End { place: Place::Host(HostId(1)), address: from },
        to: End { place: Place::Workload(HostId(2), ServiceId(1)), address: to },
        layer4: Layer4::Tcp(80),
        verdict: Verdict { outcome, decided_by: DecidedBy::Default, would_deny: None },
        ingress: Interface::Tun,
        egress: Interface::Peer(PeerName::Host(HostId(2))),
        original: key,
        translated: key,
    }
}

fn insert(table: &mut FlowTable, port: u16, now: Instant) -> Result<FlowRef, InsertError> {
    table.insert(&new_flow(port, protocol::TCP, Outcome::Allow), 1, now).map(|(flow, _)| flow)
}

fn establish(table: &mut FlowTable, flow: FlowRef, now: Instant) {
    for (leg, transport) in [(0, SYN), (1, ACK), (0, ACK)] {
        table.update(flow, |flow| flow.note(leg, transport, Some(1), ONE, now));
    }
}

/// Remaining lifetime of a silent flow, to a second.
fn lifetime(table: &mut FlowTable, now: Instant) -> u64 {
    let mut seconds = 0;
    while table.len() > 0 {
        seconds += 1;
        table.handle_timeout(now + Duration::from_secs(seconds));
    }
    seconds
}

#[test]
fn a_flow_is_found_by_both_legs_and_only_by_its_ports() {
    let (mut table, now) = table(10, 10);
    let flow = insert(&mut table, 1, now).unwrap();
    let new = new_flow(1, protocol::TCP, Outcome::Allow);
    let forward = LegKey { flow: new.original, port: Interface::Tun };
    let backward = LegKey { flow: new.original.reversed(), port: new.egress };
    assert_eq!(table.find(&forward), Some((flow, 0)));
    assert_eq!(table.find(&backward), Some((flow, 1)));
    assert_eq!(table.find(&LegKey { port: Interface::Tun, ..backward }), None);
    let other = Interface::Peer(PeerName::Host(HostId(3)));
    assert_eq!(table.find(&LegKey { port: other, ..backward }), None);
    table.remove(flow);
    assert_eq!((table.find(&forward), table.find(&backward)), (None, None));
    assert!(table.get(flow).is_none());
}

#[test]
fn a_flow_whose_legs_look_the_same_is_found_and_forgotten_as_one() {
    let (mut table, now) = table(10, 10);
    let mut new = new_flow(80, protocol::TCP, Outcome::Allow);
    new.egress = Interface::Tun;
    new.translated = new.original.reversed();
    let key = LegKey { flow: new.original, port: Interface::Tun };
    let (flow, _) = table.insert(&new, 1, now).unwrap();
    assert_eq!(table.find(&key), Some((flow, 1)));
    table.remove(flow);
    assert_eq!((table.find(&key), table.index.len()), (None, 0));
}

#[test]
fn the_index_agrees_with_a_plain_map_whatever_happens() {
    let (mut table, now) = table(3000, 3000);
    let mut random = crate::types::random::Random::new(3);
    let mut model = std::collections::HashMap::new();
    for _ in 0..20_000 {
        let port = (random.next() % 2000) as u16;
        match model.remove(&port) {
            Some(flow) if !random.next().is_multiple_of(4) => drop(table.remove(flow)),
            Some(_) | None => drop(model.insert(port, insert(&mut table, port, now).unwrap())),
        }
    }
    assert!(model.len() > 500);
    assert_eq!(table.index.len(), 2 * model.len());
    for port in 0..2000 {
        let new = new_flow(port, protocol::TCP, Outcome::Allow);
        let known = model.get(&port).copied();
        let forward = LegKey { flow: new.original, port: new.ingress };
        let backward = LegKey { flow: new.original.reversed(), port: new.egress };
        assert_eq!(table.find(&forward), known.map(|flow| (flow, 0)));
        assert_eq!(table.find(&backward), known.map(|flow| (flow, 1)));
    }
}

#[test]
fn silence_ends_flows_by_their_state() {
    type Step = (u8, Transport);
    let cases: [(u8, &[Step], u64); 9] = [
        (protocol::TCP, &[(0, SYN)], 240),
        (protocol::TCP, &[(0, SYN), (1, ACK), (0, ACK)], 7440),
        (protocol::TCP, &[(0, SYN), (1, ACK), (0, ACK), (0, FIN)], 240),
        (protocol::TCP, &[(0, SYN), (1, ACK), (0, ACK), (0, FIN), (1, FIN)], 30),
        (protocol::TCP, &[(0, SYN), (1, ACK), (0, ACK), (1, RST)], 30),
        (protocol::UDP, &[(0, Transport::Udp)], 30),
        (protocol::UDP, &[(0, Transport::Udp), (1, Transport::Udp)], 180),
        (protocol::ICMP, &[(0, Transport::Other), (1, Transport::Other)], 30),
        (132, &[(0, Transport::Sctp), (1, Transport::Sctp)], 600),
    ];
    for (protocol, steps, expected) in cases {
        let (mut table, now) = table(10, 10);
        let (flow, _) = table.insert(&new_flow(1, protocol, Outcome::Allow), 1, now).unwrap();
        for (leg, transport) in steps {
            table.update(flow, |flow| flow.note(*leg, *transport, None, ONE, now));
        }
        assert_eq!(lifetime(&mut table, now), expected, "{protocol} {steps:?}");
    }
}

#[test]
fn denials_are_remembered_for_ten_seconds() {
    let (mut table, now) = table(10, 10);
    table.insert(&new_flow(1, protocol::TCP, Outcome::Deny), 1, now).unwrap();
    assert_eq!(lifetime(&mut table, now), 10);
}

#[test]
fn traffic_keeps_a_flow() {
    let (mut table, now) = table(10, 10);
    let flow = insert(&mut table, 1, now).unwrap();
    for minute in 1..100 {
        let now = now + Duration::from_secs(60 * minute);
        table.handle_timeout(now);
        table.update(flow, |flow| flow.note(0, SYN, None, ONE, now));
    }
    assert_eq!(table.len(), 1);
}

#[test]
fn half_open_flows_make_room_for_each_other_and_not_at_the_cost_of_others() {
    let (mut table, now) = table(20, 8);
    let lasting: Vec<_> = (0..10).map(|port| insert(&mut table, port, now).unwrap()).collect();
    // The half-open limit took the first two already.
    let lasting = &lasting[2..];
    lasting.iter().for_each(|flow| establish(&mut table, *flow, now));
    for port in 100..10_000 {
        insert(&mut table, port, now).unwrap();
        assert!(table.len() <= 16);
    }
    assert!(lasting.iter().all(|flow| table.get(*flow).is_some()));
    assert!(
        table
            .find(&LegKey {
                flow: new_flow(9_999, protocol::TCP, Outcome::Allow).original,
                port: Interface::Tun
            })
            .is_some()
    );
}

#[test]
fn a_table_full_of_established_flows_refuses() {
    let (mut table, now) = table(4, 100);
    for port in 0..4 {
        let flow = insert(&mut table, port, now).unwrap();
        establish(&mut table, flow, now);
    }
    assert_eq!(insert(&mut table, 9, now), Err(InsertError::Full));
    assert_eq!(table.len(), 4);
}

#[test]
fn answers_that_look_alike_collide() {
    let (mut table, now) = table(10, 10);
    insert(&mut table, 1, now).unwrap();
    let mut other = new_flow(2, protocol::TCP, Outcome::Allow);
    other.translated.source_port = 1;
    assert_eq!(table.insert(&other, 1, now).map(|_| ()), Err(InsertError::Collision));
}

#[test]
fn an_allowed_flow_takes_the_place_of_a_denial_of_its_answers() {
    let (mut table, now) = table(10, 10);
    let mut denial = new_flow(1, protocol::UDP, Outcome::Deny);
    std::mem::swap(&mut denial.ingress, &mut denial.egress);
    denial.original = denial.original.reversed();
    denial.translated = denial.original;
    table.insert(&denial, 1, now).unwrap();
    let (flow, _) = table.insert(&new_flow(1, protocol::UDP, Outcome::Allow), 1, now).unwrap();
    let answer = LegKey { flow: denial.original, port: denial.ingress };
    assert_eq!(table.find(&answer), Some((flow, 1)));
    assert_eq!(table.len(), 1);
}

#[test]
fn every_deadline_is_cleared_by_reaching_it() {
    let (mut table, now) = table(1000, 1000);
    for port in 0..500 {
        let flow = insert(&mut table, port, now + Duration::from_millis(port.into())).unwrap();
        if port % 3 == 0 {
            establish(&mut table, flow, now);
        }
    }
    let mut steps = 0;
    while let Some(due) = table.poll_timeout() {
        table.handle_timeout(due);
        assert!(table.poll_timeout().is_none_or(|next| next > due));
        steps += 1;
    }
    assert_eq!(table.len(), 0);
    assert!(steps < 100);
}

/// As many flows as a host may have by default, and a flood of as many SYNs.
#[test]
fn a_million_established_flows_outlive_a_flood_and_expire_in_steps() {
    let now = Instant::now();
    let limits = Limits::default();
    let mut table = FlowTable::new(limits, 7, now);
    let flow = |number: u32| {
        let mut new = new_flow(number as u16, protocol::TCP, Outcome::Allow);
        let [a, b, c, d] = number.to_be_bytes();
        new.original.source = Address::v4([a, b, c, d]);
        new.translated = new.original;
        new
    };
    let lasting = (limits.flows - limits.half_open) as u32;
    for number in 0..lasting {
        let (flow, evicted) = table.insert(&flow(number), 1, now).unwrap();
        assert_eq!(evicted, 0);
        establish(&mut table, flow, now);
    }
    for number in lasting..lasting + 1_000_000 {
        table.insert(&flow(number), 1, now).unwrap();
    }
    assert_eq!(table.len(), limits.flows);
    let is_there = |number| {
        table.find(&LegKey { flow: flow(number).original, port: Interface::Tun }).is_some()
    };
    assert!((0..lasting).step_by(1_009).all(is_there));
    let end = now + Duration::from_secs(241);
    let mut expired = 0;
    while table.poll_timeout().is_some_and(|due| due <= end) {
        let step = table.handle_timeout(end);
        assert!(step <= STEP);
        expired += step;
    }
    assert_eq!(expired, limits.half_open);
    assert_eq!(table.len(), lasting as usize);
    assert!(size_of::<Slot>() <= 448, "a full table takes more memory than is written down");
}
