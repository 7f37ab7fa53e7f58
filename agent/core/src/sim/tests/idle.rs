//! Peers with nothing to say cost nothing.

use std::time::Duration;

use isthmus_model::{HostId, Protocol};

use crate::sim::packets::{udp, udp_key};
use crate::sim::topology::host_key;
use crate::sim::{Builder, Topology, World};
use crate::snapshot::CompiledSnapshot;
use crate::tunnels::peers::{Peers, Slot};
use crate::tunnels::tunnel::Keys;
use crate::{DropReason, PeerName};

/// Longer than a handshake is tried for, and than a tunnel is kept after that.
const LONG: Duration = Duration::from_secs(300);
const INITIATION: u8 = 1;

fn mesh() -> World {
    let topology = Builder::new(2)
        .service_of(Protocol::Udp, "log", 514, &[1, 2])
        .allow("host:*", "service:log")
        .build();
    World::new(topology, 1)
}

fn slot(world: &mut World, at: u32, peer: u32) -> Slot {
    world.host(at).node.forward.tunnels.peers.by_name(PeerName::Host(HostId(peer))).unwrap()
}

fn has_tunnel(world: &mut World, at: u32, peer: u32) -> bool {
    let slot = slot(world, at, peer);
    world.host(at).node.forward.tunnels.peers.get(slot).unwrap().tunnel.is_some()
}

fn log(world: &World, from: u32, to: u32) -> Vec<u8> {
    let workload = world.topology.workload("log", to, true);
    udp(&udp_key((world.topology.host_address(from, true), 9), (workload, 514)), b"line")
}

#[test]
fn a_tunnel_is_made_on_first_use_and_freed_when_it_has_nothing_to_time() {
    let mut world = mesh();
    assert!(!has_tunnel(&mut world, 1, 2));
    let packet = log(&world, 1, 2);
    let there = world.host(2).endpoint;
    world.host(2).endpoint = "192.0.2.9:1".parse().unwrap();
    world.send(1, &packet);
    assert!(has_tunnel(&mut world, 1, 2));

    world.run(LONG);
    assert!(!has_tunnel(&mut world, 1, 2));
    assert_eq!(world.host(1).node.forward.tunnels.peers.poll_timeout(), None, "nobody is ticked");
    assert_eq!(world.dropped(1, DropReason::TunnelQueue), 1);

    world.host(2).endpoint = there;
    assert_eq!(world.exchange(1, &packet, 2).len(), 1, "and made again");
}

#[test]
fn traffic_goes_on_in_either_direction_after_a_tunnel_was_freed() {
    for (from, to) in [(1, 2), (2, 1)] {
        let mut world = mesh();
        assert_eq!(world.exchange(1, &log(&world, 1, 2), 2).len(), 1);
        free(&mut world, 1, 2);
        let packet = log(&world, from, to);
        // The first packet by a session that only one side has left is lost.
        let arrived = (0..2).any(|_| !world.exchange(from, &packet, to).is_empty());
        assert!(arrived, "from {from} to {to}");
    }
}

#[test]
fn a_session_that_is_no_longer_used_isnt_renewed() {
    let mut world = mesh();
    assert_eq!(world.exchange(1, &log(&world, 1, 2), 2).len(), 1);
    world.run(LONG);
    assert_eq!(handshakes(&mut world), [1, 0]);
}

#[test]
fn a_session_in_use_is_renewed_by_one_handshake() {
    let mut world = mesh();
    world.network.link.latency = Duration::from_millis(40);
    world.send(1, &log(&world, 1, 2));
    world.run(Duration::from_secs(1));
    for _ in 1..250 {
        world.send(1, &log(&world, 1, 2));
        world.send(2, &log(&world, 2, 1));
        world.run(Duration::from_secs(1));
    }
    assert_eq!(handshakes(&mut world).iter().sum::<u64>(), 3, "at 0, 120 and 240 s");
    assert_eq!([1, 2].map(|host| world.host(host).take_inbox().len()), [249, 250]);
}

#[test]
fn an_old_initiation_that_is_replayed_after_a_tunnel_was_freed_gains_nothing() {
    let mut world = mesh();
    world.network.capture = Some(Vec::new());
    assert_eq!(world.exchange(2, &log(&world, 2, 1), 1).len(), 1);
    let captured = world.network.capture.take().unwrap();
    let initiation = captured.iter().find(|datagram| datagram[0] == INITIATION).unwrap();
    free(&mut world, 1, 2);

    let attacker = "192.0.2.66:6".parse().unwrap();
    world.inject(attacker, 1, initiation);
    let slot = slot(&mut world, 1, 2);
    let there = world.host(2).endpoint;
    let peer = world.host(1).node.forward.tunnels.peers.get(slot).unwrap();
    assert!(!peer.tunnel.as_ref().unwrap().has_session());
    assert_eq!(peer.endpoint(), Some(there), "nor is the peer moved");

    assert_eq!(world.exchange(1, &log(&world, 1, 2), 2).len(), 1);
    assert_eq!(world.exchange(2, &log(&world, 2, 1), 1).len(), 1);
}

#[test]
fn places_in_the_table_are_used_again() {
    let mut topology: Topology = Builder::new(20).build();
    let (mut peers, keys) = (Peers::new(1, 1500), Keys::new(host_key(1)));
    peers.update(&CompiledSnapshot::new(topology.snapshot(1)), &keys);
    for gone in 2..=20 {
        let removed = topology.snapshot(1).hosts[&HostId(gone)].clone();
        topology.change(|snapshot| {
            snapshot.hosts.remove(&HostId(gone));
        });
        peers.update(&CompiledSnapshot::new(topology.snapshot(1)), &keys);
        assert_eq!(peers.by_name(PeerName::Host(HostId(gone))), None);
        topology.change(|snapshot| {
            snapshot.hosts.insert(HostId(gone), removed);
        });
        peers.update(&CompiledSnapshot::new(topology.snapshot(1)), &keys);
    }
    let mut slots: Vec<Slot> = peers.iter().map(|(slot, _)| slot).collect();
    slots.dedup();
    assert_eq!(slots, (0..19).collect::<Vec<_>>());
}

/// Begun by each host.
fn handshakes(world: &mut World) -> [u64; 2] {
    [1, 2].map(|host| world.host(host).node.counters().handshakes_initiated)
}

/// As if the last session had ended long ago: by boringtun's clock no time has passed.
fn free(world: &mut World, at: u32, peer: u32) {
    world.run(LONG);
    let slot = slot(world, at, peer);
    world.host(at).node.forward.tunnels.peers.rest(slot);
    assert!(!has_tunnel(world, at, peer));
}
