//! Paths that are narrow, lossy, or change.

use std::time::Duration;

use isthmus_packet::{FlowKey, Headers, Transport};

use crate::sim::packets::{
    SYN, flags, fragments, fragments_ipv6, payload, ping, read, tcp, tcp_key, udp, udp_key,
};
use crate::sim::topology::endpoint;
use crate::sim::{Builder, World};
use crate::{DropReason, Event};
use isthmus_model::Protocol;

fn mesh() -> World {
    let topology = Builder::new(2)
        .service("client", 9, &[1])
        .service_of(Protocol::Udp, "log", 514, &[2])
        .service("web", 80, &[2])
        .allow("service:client", "service:*")
        .allow("host:*", "service:web")
        .build();
    World::new(topology, 1)
}

/// A UDP flow of the client to the log.
fn log(world: &mut World, port: u16, v4: bool) -> FlowKey {
    let key =
        udp_key((world.topology.host_address(1, v4), port), (world.topology.vip("log", v4), 514));
    let client = world.topology.service("client");
    world.host(1).sockets.open(key, client);
    key
}

fn mss(packet: &[u8]) -> u16 {
    assert_eq!(flags(packet) & SYN, SYN);
    let at = read(packet).l4_offset + 22;
    u16::from_be_bytes(packet[at..at + 2].try_into().unwrap())
}

/// The MTU that an ICMP error tells.
fn told_mtu(packet: &[u8]) -> u32 {
    let headers = read(packet);
    let Transport::IcmpError { kind, code } = headers.transport else {
        panic!("not an error: {:?}", headers.transport)
    };
    assert!(matches!((headers.key.source.is_v4(), kind, code), (true, 3, 4) | (false, 2, 0)));
    let at = headers.l4_offset + 4;
    u32::from_be_bytes(packet[at..at + 4].try_into().unwrap())
}

/// Makes the tunnel and waits until its path is measured.
fn settle(world: &mut World) {
    let (one, two) = (world.topology.host_address(1, true), world.topology.host_address(2, true));
    world.send(1, &ping(one, two, 1, 1));
    world.run(Duration::from_secs(2));
    world.host(2).take_inbox();
}

#[test]
fn a_path_of_full_size_carries_full_packets_unfragmented() {
    for v4 in [true, false] {
        let mut world = mesh();
        settle(&mut world);
        let key = log(&mut world, 1, v4);
        let headers = if v4 { 28 } else { 48 };
        let got = world.exchange(1, &udp(&key, &vec![7; 1420 - headers]), 2);
        assert_eq!(got.len(), 1);
        assert!(world.network.largest <= 1500);
        assert_eq!(world.host(1).node.counters().oversized, 0);
    }
}

/// Effect of a path of 1280 bytes on large packets, however it was discovered.
fn narrow(mut world: World) {
    settle(&mut world);
    for host in [1, 2] {
        let measured = world
            .host(host)
            .events
            .iter()
            .any(|event| matches!(event, Event::PathMtu { bytes: 1280, .. }));
        assert!(measured, "host {host} knows");
    }
    // IPv4 that may not be fragmented.
    let key = log(&mut world, 1, true);
    assert!(world.exchange(1, &udp(&key, &[7; 1300]), 2).is_empty());
    let limit = told_mtu(&world.host(1).take_inbox()[0]);
    assert_eq!(limit, 1220);
    assert_eq!(world.exchange(1, &udp(&key, &[7; 1220 - 28]), 2).len(), 1);
    assert_eq!(world.dropped(1, DropReason::TooBig), 1);
    // IPv4 that may: the outer packets are fragmented on the way.
    let mut packet = udp(&key, &[7; 1300]);
    packet[6] = 0;
    crate::sim::packets::fix(&mut packet);
    assert_eq!(world.exchange(1, &packet, 2).len(), 1);
    // IPv6, whose senders needn't make packets smaller than 1280.
    let key = log(&mut world, 2, false);
    assert!(world.exchange(1, &udp(&key, &[7; 1300]), 2).is_empty());
    assert_eq!(told_mtu(&world.host(1).take_inbox()[0]), 1280);
    assert_eq!(world.exchange(1, &udp(&key, &[7; 1280 - 48]), 2).len(), 1);
    assert_eq!(world.host(1).node.counters().oversized, 2);
    // TCP never comes to that.
    let own = (world.topology.host_address(1, true), 5);
    let web = tcp_key(own, (world.topology.vip("web", true), 80));
    let got = world.exchange(1, &tcp(&web, SYN, 1, 0, b""), 2);
    assert_eq!(mss(&got[0]), 1220 - 40);
}

#[test]
fn a_narrow_path_is_found_though_it_swallows_what_is_too_large() {
    let mut world = mesh();
    world.network.link.mtu = 1280;
    narrow(world);
}

#[test]
fn a_narrow_interface_is_found_by_its_errors() {
    let mut world = mesh();
    world.network.link.mtu = 1280;
    world.interface_mtu = 1280;
    narrow(world);
}

#[test]
fn a_path_that_narrows_is_measured_again() {
    let mut world = mesh();
    settle(&mut world);
    world.network.link.mtu = 1380;
    let key = log(&mut world, 1, true);
    for _ in 0..130 {
        world.send(1, &udp(&key, b"tick"));
        world.run(Duration::from_secs(1));
    }
    let now = world.now;
    assert_eq!(world.host(1).node.peers(now)[0].path_mtu, 1380);
}

#[test]
fn connections_are_told_a_segment_size_that_fits() {
    let mut world = mesh();
    settle(&mut world);
    for (v4, expected) in [(true, 1420 - 40), (false, 1420 - 60)] {
        let own = (world.topology.host_address(1, v4), 5);
        let web = tcp_key(own, (world.topology.vip("web", v4), 80));
        let got = world.exchange(1, &tcp(&web, SYN, 1, 0, b""), 2);
        assert_eq!(mss(&got[0]), expected);
    }
}

#[test]
fn fragments_follow_their_first() {
    let mut world = mesh();
    settle(&mut world);
    let key = log(&mut world, 1, true);
    let parts = fragments(&udp(&key, &[9; 4000]), 1420);
    assert_eq!(parts.len(), 3);
    // Before the first, they belong to nothing.
    world.send(1, &parts[1]);
    assert_eq!(world.dropped(1, DropReason::UnknownFragment), 1);
    parts.iter().for_each(|part| world.send(1, part));
    world.run(Duration::from_millis(100));
    let got = world.host(2).take_inbox();
    assert_eq!(got.len(), 3);
    let client = world.topology.workload("client", 1, true);
    let log = world.topology.workload("log", 2, true);
    for part in &got {
        let key = Headers::parse(part).unwrap().key;
        assert_eq!((key.source, key.destination), (client.into(), log.into()));
    }
}

#[test]
fn each_part_of_a_refused_datagram_is_charged_to_its_sender() {
    for v4 in [true, false] {
        let topology = Builder::new(2).service("client", 9, &[1]).service("web", 80, &[2]).build();
        let mut world = World::new(topology, 1);
        let from = (world.topology.host_address(1, v4), 4000);
        let key = udp_key(from, (world.topology.vip("web", v4), 80));
        world.host(1).sockets.open_plain(key);
        let whole = udp(&key, &[9; 4000]);
        let parts = if v4 { fragments(&whole, 1420) } else { fragments_ipv6(&whole, 1420) };
        parts.iter().for_each(|part| world.send(1, part));
        assert_eq!(world.host(1).sockets.refused, parts.len());
    }
}

#[test]
fn a_lossy_path_that_reorders_and_doubles_delivers_each_packet_once() {
    let mut world = mesh();
    world.network.link.duplicate_percent = 30;
    world.network.link.jitter = Duration::from_millis(30);
    settle(&mut world);
    let key = log(&mut world, 1, true);
    for number in 0..500_u16 {
        world.send(1, &udp(&key, &number.to_be_bytes()));
        world.run(Duration::from_micros(300));
    }
    world.run(Duration::from_millis(100));
    let got = world.host(2).take_inbox();
    let mut numbers: Vec<&[u8]> = got.iter().map(|packet| payload(packet)).collect();
    assert_eq!(numbers.len(), 500);
    assert!(!numbers.is_sorted(), "the path reorders");
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), 500);
}

#[test]
fn a_tunnel_comes_about_over_a_path_that_loses_much() {
    let mut slowest = Duration::ZERO;
    for seed in 0..20 {
        let mut world = mesh();
        world.network = crate::sim::Network::new(seed);
        world.network.link.loss_percent = 30;
        let key = log(&mut world, 1, true);
        let begun = world.now;
        while world.host(2).kernel.inbox.is_empty() {
            world.send(1, &udp(&key, b"anybody there?"));
            world.run(Duration::from_millis(250));
            assert!(world.now < begun + Duration::from_secs(30), "seed {seed}");
        }
        slowest = slowest.max(world.now - begun);
    }
    assert!(slowest < Duration::from_secs(20), "{slowest:?}");
}

#[test]
fn a_host_that_moves_is_followed_by_its_next_packet() {
    let mut world = mesh();
    settle(&mut world);
    let before = world.host(1).endpoint;
    let after = "198.51.100.7:40404".parse().unwrap();
    world.host(1).endpoint = after;
    let key = log(&mut world, 1, true);
    let got = world.exchange(1, &udp(&key, b"moved"), 2);
    let seen = read(&got[0]).key;
    let got = world.exchange(2, &udp(&seen.reversed(), b"found"), 1);
    assert_eq!(payload(&got[0]), b"found");
    let roamed = |event: &Event| matches!(event, Event::Roamed { from: Some(from), to, .. } if *from == before && *to == after);
    assert!(world.host(2).events.iter().any(roamed));
}

#[test]
fn nothing_of_a_packet_can_be_read_on_the_way() {
    let mut world = mesh();
    world.network.capture = Some(Vec::new());
    let key = log(&mut world, 1, true);
    let canary = b"a canary that nobody may hear";
    assert_eq!(world.exchange(1, &udp(&key, canary), 2).len(), 1);
    for datagram in world.network.capture.take().unwrap() {
        assert!(!datagram.windows(8).any(|window| canary.windows(8).any(|w| w == window)));
    }
}

#[test]
fn a_host_that_moves_and_has_nothing_to_say_is_found_all_the_same() {
    let mut world = mesh();
    settle(&mut world);
    let moved: std::net::SocketAddr = "198.51.100.77:51820".parse().unwrap();
    world.host(1).endpoint = moved;
    world.moved(1);
    world.run(Duration::from_millis(500));
    let roamed = |event: &Event| matches!(event, Event::Roamed { to, .. } if *to == moved);
    assert!(world.host(2).events.iter().any(roamed), "{:?}", world.host(2).events);
    // The other end has nothing to say either: it's told a few times, not for ever.
    let sent = |world: &mut World| world.host(1).node.counters().sent.packets;
    world.run(Duration::from_secs(3));
    let before = sent(&mut world);
    world.run(Duration::from_secs(3));
    assert_eq!(sent(&mut world), before);
}

/// Two hosts that have IPv4 and IPv6, so far apart that handshakes are tried by both before the
/// first is answered, and are answered both.
fn dual_stack() -> World {
    let mut world = mesh();
    let others = [1, 2].map(|id| endpoint(id, !world.host(id).endpoint.is_ipv6()));
    for (host, other) in world.hosts.iter_mut().zip(others) {
        host.other_endpoint = Some(other);
    }
    world.topology.change(|snapshot| {
        for (host, other) in snapshot.hosts.values_mut().zip(others) {
            host.endpoints.push(other);
        }
    });
    world.apply();
    world.network.link.latency = Duration::from_millis(150);
    world
}

#[test]
fn a_peer_that_is_heard_at_two_places_is_not_probed_without_end() {
    let mut world = dual_stack();
    let (one, two) = (world.topology.host_address(1, true), world.topology.host_address(2, true));
    world.send(1, &ping(one, two, 1, 1));
    world.run(Duration::from_secs(2));
    assert_eq!(world.host(2).take_inbox().len(), 1);
    for host in [1, 2] {
        assert_eq!(world.host(host).node.counters().handshakes_completed, 2 * u64::from(host == 1));
    }
    let sent = |world: &mut World| {
        [1, 2].map(|host| world.host(host).node.counters().sent.packets).iter().sum::<u64>()
    };
    // Handshakes, and each place measured once or twice.
    assert!(sent(&mut world) < 150, "{} datagrams", sent(&mut world));
    let before = sent(&mut world);
    world.run(Duration::from_secs(5));
    assert!(sent(&mut world) < before + 5, "{} datagrams more", sent(&mut world) - before);
}

#[test]
fn hosts_with_two_places_settle_on_one_while_they_talk() {
    let mut world = dual_stack();
    let key = log(&mut world, 1, true);
    world.send(1, &udp(&key, b"hello"));
    world.run(Duration::from_millis(700));
    let seen = read(&world.host(2).take_inbox()[0]).key;
    let places = |world: &World| -> Vec<_> {
        world.hosts.iter().map(|host| host.node.peers(world.now)[0].endpoint).collect()
    };
    // More under way than a round trip takes, both ways.
    for moment in 0..1000 {
        world.send(1, &udp(&key, b"there"));
        world.send(2, &udp(&seen.reversed(), b"back"));
        world.run(Duration::from_millis(10));
        if moment > 200 {
            assert_eq!(
                places(&world),
                [Some(world.hosts[1].endpoint), Some(world.hosts[0].endpoint)]
            );
        }
    }
}

#[test]
fn a_host_that_is_elsewhere_with_each_packet_is_followed_and_probed_now_and_then() {
    let mut world = mesh();
    settle(&mut world);
    let key = log(&mut world, 1, true);
    let before = world.host(2).node.counters().sent.packets;
    for port in 0..100 {
        world.host(1).endpoint.set_port(10_000 + port);
        world.send(1, &udp(&key, b"from anywhere"));
        world.run(Duration::from_millis(20));
    }
    world.run(Duration::from_secs(2));
    let moves = world.host(2).events.iter().filter(|it| matches!(it, Event::Roamed { .. })).count();
    assert!((2..=3).contains(&moves), "{moves} moves in two seconds");
    let sent = world.host(2).node.counters().sent.packets - before;
    assert!(sent < 100, "{sent} datagrams to wherever it said");
}
