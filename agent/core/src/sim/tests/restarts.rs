//! `kill -9` of an agent: connections go on, and the mesh heals at once.

use std::time::Duration;

use isthmus_packet::FlowKey;

use crate::sim::packets::{ACK, SYN, SYN_ACK, payload, read, tcp, tcp_key};
use crate::sim::{Builder, World};
use crate::{DropReason, Event};

/// A connection from a service on host 1, by the virtual address, to host 2.
fn connected(v4: bool) -> (World, FlowKey, FlowKey) {
    let topology = Builder::new(2)
        .service("client", 9, &[1])
        .service("web", 80, &[2])
        .allow("service:client", "service:web")
        .build();
    let mut world = World::new(topology, 1);
    let (client, web) = (world.topology.service("client"), world.topology.service("web"));
    let key =
        tcp_key((world.topology.host_address(1, v4), 40_000), (world.topology.vip("web", v4), 80));
    let (_, seen) = world.connect(1, key, Some(client));
    world.host(2).sockets.open(seen.reversed(), web);
    (world, key, seen)
}

/// Sends until it arrives, as TCP does. Returns what arrived and how many tries it took.
fn retransmit(world: &mut World, from: u32, packet: &[u8], to: u32) -> (Vec<u8>, usize) {
    for tries in 1..=5 {
        let mut got = world.exchange(from, packet, to);
        assert!(world.host(from).take_inbox().is_empty(), "the sender is refused");
        if let Some(packet) = got.pop() {
            return (packet, tries);
        }
    }
    panic!("it never arrives");
}

#[test]
fn a_download_goes_on_when_the_clients_agent_restarts() {
    for v4 in [true, false] {
        let (mut world, key, seen) = connected(v4);
        world.restart(1);
        // Only the server has something to say.
        let data = tcp(&seen.reversed(), ACK, 501, 101, b"data");
        let (got, tries) = retransmit(&mut world, 2, &data, 1);
        assert_eq!((read(&got).key, payload(&got)), (key.reversed(), &b"data"[..]));
        assert!(tries <= 2, "the first datagram begins the handshake that heals the tunnel");
        let (got, _) = retransmit(&mut world, 1, &tcp(&key, ACK, 101, 505, b""), 2);
        assert_eq!(read(&got).key, seen);
    }
}

#[test]
fn an_upload_goes_on_when_the_clients_agent_restarts() {
    let (mut world, key, seen) = connected(true);
    world.restart(1);
    let (got, tries) = retransmit(&mut world, 1, &tcp(&key, ACK, 101, 501, b"data"), 2);
    assert_eq!((read(&got).key, tries), (seen, 1));
}

#[test]
fn connections_go_on_when_the_servers_agent_restarts() {
    let (mut world, key, seen) = connected(true);
    world.restart(2);
    let (got, _) = retransmit(&mut world, 1, &tcp(&key, ACK, 101, 501, b"up"), 2);
    assert_eq!(read(&got).key, seen);
    world.restart(2);
    let (got, _) = retransmit(&mut world, 2, &tcp(&seen.reversed(), ACK, 501, 103, b"down"), 1);
    assert_eq!(read(&got).key, key.reversed());
}

#[test]
fn answers_to_nobody_are_dropped_in_silence() {
    let (mut world, key, seen) = connected(true);
    world.restart(1);
    world.host(1).sockets.close(key);
    world.send(2, &tcp(&seen.reversed(), ACK, 501, 101, b"data"));
    world.run(Duration::from_millis(100));
    world.send(2, &tcp(&seen.reversed(), ACK, 501, 101, b"data"));
    world.run(Duration::from_millis(100));
    assert!(world.host(1).take_inbox().is_empty(), "the kernel would reset it");
    assert!(world.dropped(1, DropReason::UnknownFlow) > 0);
    assert!(world.host(2).take_inbox().is_empty());
}

#[test]
fn what_was_never_allowed_isnt_adopted() {
    let (mut world, _, seen) = connected(true);
    let other = FlowKey { source_port: 2222, ..seen.reversed() };
    let web = world.topology.service("web");
    world.host(2).sockets.open(other, web);
    world.send(2, &tcp(&other, ACK, 501, 101, b"data"));
    assert_eq!(world.dropped(2, DropReason::Denied), 1);
    world.forge(2, 1, &tcp(&other, ACK, 501, 101, b"data"));
    world.run(Duration::from_millis(100));
    assert!(world.host(1).take_inbox().is_empty());
}

#[test]
fn both_agents_restart_and_the_mesh_heals() {
    let (mut world, key, seen) = connected(true);
    world.restart(1);
    world.restart(2);
    let (got, tries) = retransmit(&mut world, 1, &tcp(&key, ACK, 101, 501, b"data"), 2);
    assert_eq!((read(&got).key, tries), (seen, 1));
}

#[test]
fn a_host_whose_clock_was_set_back_is_asked_for_a_handshake_at_once() {
    let topology = Builder::new(2).service("web", 80, &[1]).allow("host:*", "service:web").build();
    let mut world = World::new(topology, 1);
    world.network.capture = Some(Vec::new());
    let key = tcp_key(
        (world.topology.host_address(2, true), 40_000),
        (world.topology.vip("web", true), 80),
    );
    world.connect(2, key, None);
    let initiation = world.network.capture.take().unwrap().remove(0);
    world.restart(2);
    world.host(2).events.clear();
    world.run(Duration::from_secs(6));
    // To the responder this is what a clock says that was set back: the time of before, or less.
    let endpoint = world.host(2).endpoint;
    let begun = world.host(1).node.counters().handshakes_initiated;
    world.inject(endpoint, 1, &initiation);
    world.run(Duration::from_millis(25));
    let is_up = |event: &Event| matches!(event, Event::Connected { .. });
    assert!(world.host(2).events.iter().any(is_up), "within two round trips");
    assert_eq!(world.dropped(1, DropReason::OutdatedHandshake), 1);
    // Who replays it gets no handshake for each.
    for _ in 0..100 {
        world.inject(endpoint, 1, &initiation);
    }
    world.run(Duration::from_secs(1));
    assert_eq!(world.host(1).node.counters().handshakes_initiated, begun + 1);
}

#[test]
fn handshakes_are_tried_at_every_place_a_host_may_be() {
    let topology = Builder::new(2).service("web", 80, &[2]).allow("host:*", "service:web").build();
    let mut world = World::new(topology, 1);
    let real = world.host(2).endpoint;
    world.topology.change(|snapshot| {
        let host = snapshot.hosts.get_mut(&isthmus_model::HostId(2)).unwrap();
        host.endpoints = vec!["192.0.2.99:51820".parse().unwrap(), real];
    });
    world.apply();
    let key = tcp_key(
        (world.topology.host_address(1, true), 40_000),
        (world.topology.vip("web", true), 80),
    );
    world.send(1, &tcp(&key, SYN, 1, 0, b""));
    world.run(Duration::from_millis(600));
    assert_eq!(world.host(2).take_inbox().len(), 1, "it has waited for the session");
    assert!(world.host(1).events.iter().any(|event| matches!(event, Event::Connected { .. })));
}

#[test]
fn a_peer_that_listens_a_moment_late_is_reached_in_half_a_second() {
    let topology = Builder::new(2).service("web", 80, &[2]).allow("host:*", "service:web").build();
    let mut world = World::new(topology, 1);
    let key = tcp_key(
        (world.topology.host_address(1, true), 40_000),
        (world.topology.vip("web", true), 80),
    );
    world.network.link.loss_percent = 100;
    world.send(1, &tcp(&key, SYN, 1, 0, b""));
    world.network.link.loss_percent = 0;
    world.run(Duration::from_millis(550));
    assert_eq!(world.host(2).take_inbox().len(), 1, "it has waited for the session");
}

#[test]
fn a_path_longer_than_the_wait_for_an_answer_has_its_tunnel_all_the_same() {
    let topology = Builder::new(2).service("web", 80, &[2]).allow("host:*", "service:web").build();
    let mut world = World::new(topology, 1);
    // By a geostationary satellite.
    world.network.link.latency = Duration::from_millis(300);
    let key = tcp_key(
        (world.topology.host_address(1, true), 40_000),
        (world.topology.vip("web", true), 80),
    );
    world.send(1, &tcp(&key, SYN, 1, 0, b""));
    world.run(Duration::from_millis(950));
    let got = world.host(2).take_inbox();
    assert_eq!(got.len(), 1, "after one and a half round trips, with the first answer");
    let seen = read(&got[0]).key;
    // Whichever of the handshakes both ends go on with.
    for _ in 0..5 {
        world.send(2, &tcp(&seen.reversed(), SYN_ACK, 1, 2, b""));
        world.run(Duration::from_millis(350));
        assert_eq!(world.host(1).take_inbox().len(), 1);
        world.send(1, &tcp(&key, ACK, 2, 2, b""));
        world.run(Duration::from_millis(350));
        assert_eq!(world.host(2).take_inbox().len(), 1);
    }
    assert_eq!(world.host(1).node.counters().handshakes_initiated, 2);
}

#[test]
fn a_handshake_that_nobody_answers_is_given_up() {
    let topology = Builder::new(2).service("web", 80, &[2]).allow("host:*", "service:web").build();
    let mut world = World::new(topology, 1);
    world.network.link.loss_percent = 100;
    let key = tcp_key(
        (world.topology.host_address(1, true), 40_000),
        (world.topology.vip("web", true), 80),
    );
    world.send(1, &tcp(&key, SYN, 1, 0, b""));
    world.run(Duration::from_secs(100));
    assert_eq!(world.host(1).node.counters().handshakes_failed, 1);
    assert_eq!(world.dropped(1, DropReason::TunnelQueue), 1);
    world.network.link.loss_percent = 0;
    assert_eq!(world.exchange(1, &tcp(&key, SYN, 1, 0, b""), 2).len(), 1, "and begun anew");
}
