//! Attacks on a node: it doesn't panic, grow, or forget its peers.

use std::net::SocketAddr;
use std::time::Duration;

use isthmus_packet::Offload;
use proptest::prelude::*;

use crate::sim::fuzz::fuzz_sequence;
use crate::sim::packets::{ACK, SYN, read, tcp, tcp_key};
use crate::sim::{Builder, World};
use crate::types::random::Random;
use crate::{DropReason, Limits};

fn mesh() -> World {
    let topology = Builder::new(2).service("web", 80, &[2]).allow("host:*", "service:web").build();
    World::new(topology, 1)
}

#[test]
fn a_flood_of_connections_costs_established_ones_nothing() {
    let mut world = mesh();
    let limits = Limits { flows: 1000, half_open: 200, ..Limits::default() };
    let (topology, now) = (world.topology.clone(), world.now);
    world.host(1).restart_with(&topology, limits, now);
    world.host(2).restart_with(&topology, limits, now);
    let own = world.topology.host_address(1, true);
    let web = world.topology.vip("web", true);
    let key = tcp_key((own, 1), (web, 80));
    let (_, seen) = world.connect(1, key, None);
    for number in 2..10_000 {
        world.send(1, &tcp(&tcp_key((own, number), (web, 80)), SYN, 1, 0, b""));
        world.host(2).kernel.inbox.clear();
        if number % 100 == 0 {
            world.run(Duration::from_millis(10));
        }
    }
    world.run(Duration::from_millis(100));
    for host in [1, 2] {
        assert!(world.host(host).node.flow_count() <= 201);
        world.host(host).take_inbox();
    }
    let got = world.exchange(1, &tcp(&key, ACK, 101, 501, b"still here"), 2);
    assert_eq!(read(&got[0]).key, seen);
    assert!(world.host(2).node.counters().flows_evicted > 9000);
}

#[test]
fn garbage_on_the_tunnel_port_is_dropped_and_counted() {
    let mut world = mesh();
    world.network.capture = Some(Vec::new());
    let own = world.topology.host_address(1, true);
    let key = tcp_key((own, 1), (world.topology.vip("web", true), 80));
    world.connect(1, key, None);
    let real = world.network.capture.take().unwrap();
    let from: SocketAddr = "203.0.113.5:1".parse().unwrap();
    let mut random = Random::new(3);
    for round in 0..3000 {
        let mut datagram = real[round % real.len()].clone();
        let flips = 1 + random.next() as usize % 4;
        for _ in 0..flips {
            let at = random.next() as usize % datagram.len();
            datagram[at] ^= random.next() as u8;
        }
        datagram.truncate(random.next() as usize % (datagram.len() + 1));
        world.inject(from, 2, &datagram);
        world.inject(from, 2, &real[round % real.len()]);
    }
    assert!(world.host(2).take_inbox().is_empty(), "not even what was real once: it is a replay");
    let counters = world.host(2).node.counters();
    for reason in [DropReason::NotWireGuard, DropReason::UnknownSession, DropReason::Unauthentic] {
        assert!(counters.dropped(reason) > 0, "{reason:?}");
    }
    assert!(counters.dropped(DropReason::HandshakeRate) > 0);
    let got = world.exchange(1, &tcp(&key, ACK, 101, 501, b"still here"), 2);
    assert_eq!(got.len(), 1, "and the tunnel lives");
}

#[test]
fn what_nobody_takes_is_bounded() {
    let mut world = mesh();
    let limits = Limits { transmit_bytes: 10_000, tun_packets: 10, ..Limits::default() };
    let (topology, now) = (world.topology.clone(), world.now);
    world.host(1).restart_with(&topology, limits, now);
    let own = world.topology.host_address(1, true);
    let key = tcp_key((own, 1), (world.topology.vip("web", true), 80));
    world.connect(1, key, None);
    let host = world.host(1);
    for _ in 0..1000 {
        host.give(Offload::NONE, &mut tcp(&key, ACK, 101, 501, &[0; 900]), now);
        let denied = tcp_key((own, 1), (key.destination.ip(), 81));
        host.sockets.open_plain(denied);
        host.give(Offload::NONE, &mut tcp(&denied, SYN, 1, 0, b""), now);
    }
    assert!(host.node.counters().dropped(DropReason::TransmitQueue) > 900);
    assert!(host.node.counters().dropped(DropReason::TunQueue) > 900);
    let mut bytes = 0;
    while let Some(transmit) = host.node.poll_transmit() {
        bytes += transmit.contents.len();
    }
    assert!(bytes <= 10_000);
}

#[test]
fn a_row_of_equal_packets_leaves_as_one_run_of_segments() {
    let mut world = mesh();
    let key =
        tcp_key((world.topology.host_address(1, true), 1), (world.topology.vip("web", true), 80));
    world.connect(1, key, None);
    let now = world.now;
    let host = world.host(1);
    for _ in 0..10 {
        host.give(Offload::NONE, &mut tcp(&key, ACK, 101, 501, &[0; 1000]), now);
    }
    let transmit = host.node.poll_transmit().unwrap();
    let segment = transmit.segment_size.unwrap();
    assert_eq!(segment, 1040 + 32);
    assert_eq!(transmit.contents.len(), segment * 10);
    assert!(host.node.poll_transmit().is_none());
}

#[test]
fn every_deadline_is_cleared_by_reaching_it() {
    let mut world = mesh();
    let own = world.topology.host_address(1, true);
    let web = world.topology.vip("web", true);
    world.connect(1, tcp_key((own, 1), (web, 80)), None);
    world.send(1, &tcp(&tcp_key((own, 2), (web, 81)), SYN, 1, 0, b""));
    world.forge(1, 2, &tcp(&tcp_key((web, 2), (web, 81)), SYN, 1, 0, b""));
    world.run(Duration::from_millis(50));
    world.topology.change(|_| {});
    world.apply();
    for host in &mut world.hosts {
        for _ in 0..40_000 {
            let Some(due) = host.node.poll_timeout() else { break };
            host.node.handle_timeout(due);
            let next = host.node.poll_timeout();
            assert!(next.is_none_or(|next| next > due), "a deadline outlives itself");
            while host.node.poll_transmit().is_some() {}
        }
        assert_eq!(host.node.flow_count(), 0, "in ten thousand seconds all flows end");
    }
}

/// A few for everyday; more where somebody asks for them.
fn cases() -> u32 {
    std::env::var("ISTHMUS_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(48)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases()))]

    #[test]
    fn no_sequence_of_events_makes_a_node_panic_or_grow(
        bytes in prop::collection::vec(any::<u8>(), 0..1500)
    ) {
        fuzz_sequence(&bytes);
    }
}
