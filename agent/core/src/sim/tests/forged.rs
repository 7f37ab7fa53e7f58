//! A compromised host or device can only speak for what the topology put there.

use std::net::IpAddr;
use std::time::Duration;

use isthmus_packet::{Reason, icmp_error};

use crate::sim::packets::{ACK, SYN, answer, fragments, tcp, tcp_key, udp, udp_key};
use crate::sim::{Builder, World};
use crate::{DropReason, Event, PeerName};
use isthmus_model::{Action, HostId};

/// Everything is allowed: only the source matters.
fn mesh() -> World {
    let topology = Builder::new(3)
        .service("client", 9, &[1])
        .service("web", 80, &[2])
        .service("mail", 25, &[3])
        .device("press", 1)
        .default_action(Action::Allow)
        .build();
    World::new(topology, 1)
}

fn forge(world: &mut World, source: IpAddr, number: u16) -> u64 {
    let web = (world.topology.workload("web", 2, source.is_ipv4()), 80);
    let before = world.dropped(2, DropReason::Forged);
    world.forge(3, 2, &tcp(&tcp_key((source, number), web), SYN, 1, 0, b""));
    world.run(Duration::from_millis(100));
    assert!(world.host(2).take_inbox().is_empty(), "{source} got through");
    world.dropped(2, DropReason::Forged) - before
}

#[test]
fn a_host_cannot_speak_for_others() {
    let mut world = mesh();
    for v4 in [true, false] {
        let theirs = [
            world.topology.host_address(1, v4),
            world.topology.workload("client", 1, v4),
            world.topology.host_address(2, v4),
            world.topology.workload("web", 2, v4),
            world.topology.device_address("press", v4),
            world.topology.vip("client", v4),
        ];
        for (number, source) in (1..).zip(theirs) {
            assert_eq!(forge(&mut world, source, number), 1, "{source}");
        }
    }
    assert_eq!(forge(&mut world, "100.127.0.0".parse().unwrap(), 1), 1);
    assert_eq!(forge(&mut world, "192.0.2.1".parse().unwrap(), 1), 1);
    let own = world.topology.workload("mail", 3, true);
    let web = (world.topology.workload("web", 2, true), 80);
    world.forge(3, 2, &tcp(&tcp_key((own, 1), web), SYN, 1, 0, b""));
    world.run(Duration::from_millis(100));
    assert_eq!(world.host(2).take_inbox().len(), 1, "for itself it can");
}

#[test]
fn a_host_cannot_speak_for_a_service_that_isnt_placed_there() {
    let mut world = mesh();
    let client = world.topology.service("client");
    let claimed = world.topology.snapshot(1).workload_ipv6(HostId(3), client);
    assert_eq!(forge(&mut world, claimed.into(), 1), 1);
    let event =
        Event::Forged { from: PeerName::Host(HostId(3)), source: claimed.into(), packets: 1 };
    assert!(world.host(2).events.contains(&event));
}

#[test]
fn a_forger_doesnt_get_through_on_somebody_elses_flow() {
    let mut world = mesh();
    let client = world.topology.service("client");
    let web = (world.topology.workload("web", 2, true), 80);
    let key = tcp_key((world.topology.workload("client", 1, true), 40_000), web);
    let (_, seen) = world.connect(1, key, Some(client));
    world.forge(3, 2, &tcp(&seen, ACK, 101, 501, b"injected"));
    let large = udp(&udp_key((key.source.ip(), 1), (web.0, 80)), &[0; 2000]);
    for fragment in fragments(&large, 1000) {
        world.forge(3, 2, &fragment);
    }
    world.run(Duration::from_millis(100));
    assert!(world.host(2).take_inbox().is_empty());
    assert!(world.dropped(2, DropReason::Forged) >= 2);
}

#[test]
fn a_forged_icmp_error_reaches_nobody() {
    let mut world = mesh();
    let client = world.topology.service("client");
    let key = tcp_key(
        (world.topology.workload("client", 1, true), 40_000),
        (world.topology.workload("web", 2, true), 80),
    );
    world.connect(1, key, Some(client));
    let sent = tcp(&key, ACK, 101, 501, b"data");
    let claimed = key.destination;
    let own = world.topology.host_address(3, true);
    for source in [claimed, own.into()] {
        let error = answer(&sent, |packet, headers, out| {
            icmp_error(packet, headers, Reason::PacketTooBig { mtu: 600 }, source, out)
        });
        world.forge(3, 1, &error);
    }
    world.run(Duration::from_millis(100));
    assert!(world.host(1).take_inbox().is_empty());
    assert_eq!(world.dropped(1, DropReason::Forged), 1);
    assert_eq!(world.dropped(1, DropReason::Icmp), 1);
}

#[test]
fn hosts_do_not_forward_for_hosts() {
    let mut world = mesh();
    let mail = (world.topology.workload("mail", 3, true), 1);
    let elsewhere = (world.topology.workload("client", 1, true), 9);
    world.forge(3, 2, &tcp(&tcp_key(mail, elsewhere), SYN, 1, 0, b""));
    let virtual_one = (world.topology.vip("web", true), 80);
    world.forge(3, 2, &tcp(&tcp_key(mail, virtual_one), SYN, 1, 0, b""));
    world.run(Duration::from_millis(100));
    assert_eq!(world.dropped(2, DropReason::Transit), 2);
    assert!(world.host(2).take_inbox().is_empty() && world.host(1).take_inbox().is_empty());
}

#[test]
fn a_flood_of_forged_packets_makes_few_events() {
    let mut world = mesh();
    let source = world.topology.host_address(1, true);
    for number in 1..=500 {
        let web = (world.topology.workload("web", 2, true), 80);
        world.forge(3, 2, &tcp(&tcp_key((source, number), web), SYN, 1, 0, b""));
        world.run(Duration::from_millis(10));
    }
    world.run(Duration::from_secs(30));
    let events = world.host(2).events.iter();
    let told: Vec<u64> = events
        .filter_map(|event| {
            let Event::Forged { packets, .. } = event else { return None };
            Some(*packets)
        })
        .collect();
    assert_eq!(told, [1, 499]);
}
