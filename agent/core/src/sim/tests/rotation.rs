//! A host's tunnel key changes under traffic, and nothing is lost.

use std::time::Duration;

use isthmus_model::HostId;
use isthmus_packet::FlowKey;

use crate::sim::packets::{ACK, SYN, read, tcp, tcp_key};
use crate::sim::topology::host_key;
use crate::sim::{Builder, World};
use crate::{DropReason, PeerName, public_key};

const MOMENT: Duration = Duration::from_millis(100);
const NEW: [u8; 32] = [42; 32];

/// Hosts 1 and 3 call a service on host 2, whose key is to change, and a device behind that asks host 3.
fn mesh() -> World {
    let topology = Builder::new(3)
        .service("client", 9, &[1, 3])
        .service("web", 80, &[2])
        .service("other", 81, &[3])
        .device("press", 2)
        .allow("service:client", "service:web")
        .allow("device:press", "service:other")
        .build();
    World::new(topology, 1)
}

fn connected(world: &mut World, from: u32) -> (FlowKey, FlowKey) {
    let client = world.topology.service("client");
    let key = tcp_key(
        (world.topology.host_address(from, true), 40_000),
        (world.topology.vip("web", true), 80),
    );
    let (_, seen) = world.connect(from, key, Some(client));
    (key, seen)
}

/// Host 2's key in the topology.
fn publish(world: &mut World, key: &[u8; 32], former: Option<&[u8; 32]>) {
    let (key, former) = (public_key(key), former.map(public_key));
    world.topology.change(|snapshot| {
        let host = snapshot.hosts.get_mut(&HostId(2)).unwrap();
        (host.public_key, host.former_key) = (key, former);
    });
}

/// One packet each way; whether both arrived.
fn speaks(world: &mut World, from: u32, (key, seen): (FlowKey, FlowKey)) -> bool {
    let there = world.exchange(from, &tcp(&key, ACK, 101, 501, b"more"), 2).len();
    let back = world.exchange(2, &tcp(&seen.reversed(), ACK, 501, 105, b"good"), from).len();
    (there, back) == (1, 1)
}

fn handshakes(world: &mut World, host: u32) -> u64 {
    let counters = world.host(host).node.counters();
    counters.handshakes_completed + counters.handshakes_answered
}

/// Whether packets between the two go by the first of their pairs of keys.
fn goes_by_newest(world: &mut World, at: u32, peer: u32) -> bool {
    let peers = &world.host(at).node.forward.tunnels.peers;
    let slot = peers.by_name(PeerName::Host(HostId(peer))).unwrap();
    peers.get(slot).unwrap().tunnel.as_ref().unwrap().goes_by_newest()
}

#[test]
fn a_key_changes_under_traffic_and_no_packet_is_lost() {
    let mut world = mesh();
    let (one, three) = (connected(&mut world, 1), connected(&mut world, 3));
    let old = host_key(2);
    // The host has it before anybody knows; then its peers hear of it, one after the other.
    world.host(2).node.handle_keys(&old, Some(&NEW));
    assert!(speaks(&mut world, 1, one) && speaks(&mut world, 3, three));
    publish(&mut world, &NEW, Some(&old));
    for host in [1, 2, 3] {
        world.apply_to(host);
        for _ in 0..5 {
            assert!(speaks(&mut world, 1, one) && speaks(&mut world, 3, three), "host {host}");
        }
    }
    assert!(goes_by_newest(&mut world, 1, 2) && goes_by_newest(&mut world, 2, 1));
    assert!(goes_by_newest(&mut world, 3, 2) && goes_by_newest(&mut world, 2, 3));
    let before = handshakes(&mut world, 2);

    publish(&mut world, &NEW, None);
    for host in [1, 2, 3] {
        world.apply_to(host);
        if host == 2 {
            world.host(2).node.handle_keys(&NEW, None);
        }
        assert!(speaks(&mut world, 1, one) && speaks(&mut world, 3, three), "host {host}");
    }
    assert_eq!(handshakes(&mut world, 2), before, "all had a session by the new key");
    for host in [1, 2, 3] {
        for reason in [DropReason::UnknownSession, DropReason::Unauthentic] {
            assert_eq!(world.dropped(host, reason), 0, "host {host}: {reason:?}");
        }
    }
}

#[test]
fn the_former_key_is_worth_nothing_at_the_end() {
    let mut world = mesh();
    let old = host_key(2);
    world.host(2).node.handle_keys(&old, Some(&NEW));
    publish(&mut world, &NEW, Some(&old));
    world.apply_to(2);
    // Host 1 was away, and knows the former key only.
    let one = connected(&mut world, 1);
    assert!(speaks(&mut world, 1, one));
    publish(&mut world, &NEW, None);
    world.apply_to(2);
    world.host(2).node.handle_keys(&NEW, None);
    assert!(!speaks(&mut world, 1, one));
    world.restart(2);
    // As it starts by what it has kept, which is the new key alone.
    world.host(2).node.handle_keys(&NEW, None);
    world.run(Duration::from_secs(3));
    world.host(2).take_inbox();
    assert!(!speaks(&mut world, 1, one));
    assert!(world.dropped(2, DropReason::Unauthentic) > 0);
    world.apply_to(1);
    world.run(Duration::from_secs(1));
    world.host(2).take_inbox();
    world.host(1).take_inbox();
    assert!(speaks(&mut world, 1, one), "once it hears of the new one");
}

#[test]
fn whoever_restarts_and_whatever_is_lost_the_peers_find_each_other() {
    for seed in 0..20 {
        let mut world = mesh();
        world.network = crate::sim::Network::new(seed);
        let one = connected(&mut world, 1);
        let old = host_key(2);
        world.network.link.loss_percent = 30;
        world.host(2).node.handle_keys(&old, Some(&NEW));
        publish(&mut world, &NEW, Some(&old));
        // Who has heard of it, and who starts anew: every order is a seed's.
        let (first, second) = if seed % 2 == 0 { (1, 2) } else { (2, 1) };
        world.apply_to(first);
        world.run(MOMENT * (seed as u32 % 7));
        let restarts = if seed % 4 < 2 { 1 } else { 2 };
        world.restart(restarts);
        if restarts == 2 {
            world.host(2).node.handle_keys(&old, Some(&NEW));
        }
        let client = world.topology.service("client");
        world.host(1).sockets.open(one.0, client);
        converse(&mut world, one, "after a restart");
        world.apply_to(second);
        converse(&mut world, one, "once both know");
        // The newest keys take over, though they lose every third of their handshakes.
        world.run(Duration::from_secs(60));
        assert!(
            goes_by_newest(&mut world, 1, 2) && goes_by_newest(&mut world, 2, 1),
            "seed {seed}"
        );
        world.network.link.loss_percent = 0;
        publish(&mut world, &NEW, None);
        world.apply();
        world.host(2).node.handle_keys(&NEW, None);
        world.run(MOMENT);
        world.host(1).take_inbox();
        world.host(2).take_inbox();
        assert!(speaks(&mut world, 1, one), "seed {seed}");
    }
}

/// Packets go both ways until one of each has arrived.
fn converse(world: &mut World, (key, seen): (FlowKey, FlowKey), when: &str) {
    let (mut there, mut back) = (false, false);
    for _ in 0..200 {
        world.send(1, &tcp(&key, ACK, 101, 501, b"more"));
        world.send(2, &tcp(&seen.reversed(), ACK, 501, 105, b"good"));
        world.run(MOMENT);
        there |= world.host(2).take_inbox().iter().any(|packet| read(packet).key == seen);
        back |= world.host(1).take_inbox().iter().any(|packet| read(packet).key == key.reversed());
        if there && back {
            return;
        }
    }
    panic!("{when}: there {there}, back {back}");
}

#[test]
fn a_device_whose_file_names_the_former_key_is_served_while_it_is_good() {
    let mut world = mesh();
    let press = (world.topology.device_address("press", true), 4000);
    let key = tcp_key(press, (world.topology.vip("other", true), 81));
    let asks = |world: &mut World| {
        world.device_send("press", &tcp(&key, SYN, 1, 0, b""));
        world.run(MOMENT);
        world.host(3).take_inbox().len()
    };
    let old = host_key(2);
    world.host(2).node.handle_keys(&old, Some(&NEW));
    publish(&mut world, &NEW, Some(&old));
    world.apply();
    assert_eq!(asks(&mut world), 1);
    publish(&mut world, &NEW, None);
    world.apply();
    world.host(2).node.handle_keys(&NEW, None);
    assert_eq!(asks(&mut world), 0);
}
