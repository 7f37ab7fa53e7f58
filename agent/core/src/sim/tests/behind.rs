//! Containers whose packets a host forwards: they have addresses of their own, none of the mesh's.

use std::net::IpAddr;
use std::time::Duration;

use crate::sim::packets::{ACK, SYN, read, tcp, tcp_key, udp, udp_key};
use crate::sim::{Builder, World};
use crate::{DropReason, Owner};

fn world() -> World {
    let topology = Builder::new(2)
        .service("good", 9, &[1])
        .service("web", 80, &[2])
        .allow("service:good", "service:web")
        .build();
    World::new(topology, 1)
}

fn inside(last: u8) -> IpAddr {
    [10, 88, 0, last].into()
}

#[test]
fn a_container_speaks_from_its_services_address_and_gets_the_answers() {
    let mut world = world();
    let good = world.topology.service("good");
    world.host(1).sockets.behind.insert(inside(2), Owner::Service(good));
    let own = world.topology.workload("good", 1, true);
    let (host, seen) =
        world.connect(1, tcp_key((inside(2), 40_000), (world.topology.vip("web", true), 80)), None);
    assert_eq!((host, seen.source), (2, own.into()));

    // Two containers of one service use one port: their answers are told apart.
    world.host(1).sockets.behind.insert(inside(3), Owner::Service(good));
    let (_, other) =
        world.connect(1, tcp_key((inside(3), 40_000), (world.topology.vip("web", true), 80)), None);
    assert_eq!(other.source, own.into());
    assert!(other.source_port != seen.source_port || other.destination != seen.destination);
}

#[test]
fn a_containers_flow_outlives_a_restart_of_the_agent() {
    let mut world = world();
    let good = world.topology.service("good");
    world.host(1).sockets.behind.insert(inside(2), Owner::Service(good));
    let client = tcp_key((inside(2), 40_000), (world.topology.vip("web", true), 80));
    let (_, seen) = world.connect(1, client, None);
    world.restart(1);
    let got = world.exchange(1, &tcp(&client, ACK, 101, 501, b"more"), 2);
    assert_eq!(read(&got[0]).key, seen);
}

#[test]
fn a_container_of_no_service_speaks_as_its_host_and_nobody_not_at_all() {
    let mut world = world();
    let vip = (world.topology.vip("web", true), 80);
    world.host(1).sockets.behind.insert(inside(4), Owner::Host);
    world.send(1, &tcp(&tcp_key((inside(4), 40_000), vip), SYN, 1, 0, b""));
    assert_eq!(world.dropped(1, DropReason::Denied), 1, "its host may not");
    world.send(1, &tcp(&tcp_key((inside(5), 40_000), vip), SYN, 1, 0, b""));
    assert_eq!(world.dropped(1, DropReason::ForeignSource), 1);
}

#[test]
fn an_address_that_changes_hands_takes_no_flow_along() {
    let mut world = world();
    let good = world.topology.service("good");
    let client = tcp_key((inside(2), 40_000), (world.topology.vip("web", true), 80));
    world.host(1).sockets.behind.insert(inside(2), Owner::Service(good));
    let (_, _) = world.connect(1, client, None);
    // The agent looks at all flows again when that happens.
    world.host(1).sockets.behind.insert(inside(2), Owner::Host);
    world.apply();
    let got = world.exchange(1, &tcp(&client, ACK, 101, 501, b"more"), 2);
    assert!(got.is_empty(), "{got:?}");

    let from_tunnel = udp_key((inside(2), 1), (world.topology.workload("web", 2, true), 80));
    world.forge(1, 2, &udp(&from_tunnel, b"hello"));
    world.run(Duration::from_millis(100));
    assert_eq!(world.dropped(2, DropReason::Forged), 1);
    assert!(world.host(2).take_inbox().is_empty(), "nobody is behind another's tunnel");
}
