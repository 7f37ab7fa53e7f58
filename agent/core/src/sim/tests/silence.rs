//! Hosts that no longer answer, and those that do.

use std::time::Duration;

use isthmus_model::{HostId, Protocol};
use isthmus_packet::{FlowKey, Transport};

use crate::sim::packets::{SYN, read, tcp, tcp_key, udp, udp_key};
use crate::sim::{Builder, World};
use crate::{DropReason, Event, PeerName};

fn mesh() -> World {
    let topology = Builder::new(3)
        .service("web", 80, &[2])
        .service_of(Protocol::Udp, "log", 514, &[2])
        .allow("host:*", "service:*")
        .build();
    World::new(topology, 1)
}

fn web(world: &World, port: u16) -> FlowKey {
    let here = world.topology.host_address(1, true);
    tcp_key((here, port), (world.topology.workload("web", 2, true), 80))
}

fn log(world: &World) -> Vec<u8> {
    let here = world.topology.host_address(1, true);
    udp(&udp_key((here, 9), (world.topology.workload("log", 2, true), 514)), b"line")
}

/// Nothing reaches it any more.
fn unplug(world: &mut World) -> std::net::SocketAddr {
    std::mem::replace(&mut world.host(2).endpoint, "192.0.2.9:1".parse().unwrap())
}

/// Time for which host 1 has missed host 2.
fn silent(world: &mut World) -> Option<Duration> {
    let now = world.now;
    let peers = world.host(1).node.peers(now);
    peers.iter().find(|peer| peer.peer == PeerName::Host(HostId(2)))?.silent
}

fn told(world: &mut World) -> (usize, usize) {
    let events = &world.host(1).events;
    let silent = events.iter().filter(|it| matches!(it, Event::Silent { .. })).count();
    (silent, events.iter().filter(|it| matches!(it, Event::Answers { .. })).count())
}

#[test]
fn a_dead_host_is_known_within_three_seconds_with_a_session_and_without() {
    for had_session in [true, false] {
        let mut world = mesh();
        let packet = log(&world);
        if had_session {
            assert_eq!(world.exchange(1, &packet, 2).len(), 1);
            world.run(Duration::from_secs(3));
            assert_eq!(silent(&mut world), None);
        }
        let there = unplug(&mut world);
        world.send(1, &packet);
        world.run(Duration::from_millis(1_900));
        assert_eq!(told(&mut world), (0, 0));
        world.run(Duration::from_millis(700));
        assert_eq!(told(&mut world), (1, 0), "session: {had_session}");
        assert_eq!(silent(&mut world), Some(Duration::from_millis(2_600)));

        world.host(2).endpoint = there;
        world.run(Duration::from_secs(6));
        assert_eq!((told(&mut world), silent(&mut world)), ((1, 1), None));
    }
}

#[test]
fn a_flow_that_gets_no_answer_is_no_silence() {
    let mut world = mesh();
    let packet = log(&world);
    for _ in 0..40 {
        world.send(1, &packet);
        world.run(Duration::from_millis(250));
    }
    assert_eq!((told(&mut world), silent(&mut world)), ((0, 0), None));
    assert_eq!(world.host(2).take_inbox().len(), 40, "and nothing else reaches the kernel");
}

#[test]
fn connections_to_a_dead_host_are_refused_after_a_while_and_made_once_it_is_back() {
    let mut world = mesh();
    let there = unplug(&mut world);
    let first = tcp(&web(&world, 40_000), SYN, 1, 0, b"");
    world.send(1, &first);
    world.run(Duration::from_secs(5));
    world.send(1, &first);
    assert!(world.host(1).take_inbox().is_empty(), "a while is worth waiting");

    world.run(Duration::from_secs(6));
    let another = tcp(&web(&world, 40_001), SYN, 1, 0, b"");
    world.send(1, &another);
    let refused = world.host(1).take_inbox();
    let [refused] = &refused[..] else { panic!("{} packets", refused.len()) };
    assert!(
        matches!(read(refused).transport, Transport::IcmpError { kind: 3, code: 1 }),
        "{:?}",
        read(refused).transport
    );
    assert_eq!(world.dropped(1, DropReason::Silent), 1);

    world.host(2).endpoint = there;
    world.run(Duration::from_secs(6));
    world.host(2).take_inbox();
    assert_eq!(world.exchange(1, &another, 2).len(), 1);
}

#[test]
fn a_host_that_leaves_the_mesh_is_not_missed() {
    let mut world = mesh();
    unplug(&mut world);
    let packet = log(&world);
    world.send(1, &packet);
    world.run(Duration::from_secs(3));
    assert_eq!(told(&mut world), (1, 0));
    world.topology.change(|snapshot| {
        snapshot.hosts.remove(&HostId(2));
        snapshot.services.values_mut().for_each(|service| {
            service.placements.remove(&HostId(2));
        });
    });
    world.apply_to(1);
    assert_eq!(told(&mut world), (1, 1));
}
