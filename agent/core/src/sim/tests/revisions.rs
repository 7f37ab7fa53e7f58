//! The revision moves under live traffic.

use std::time::Duration;

use isthmus_model::{HostId, Protocol};
use isthmus_packet::FlowKey;

use crate::sim::packets::{ACK, RST, SYN, flags, read, tcp, tcp_key, udp, udp_key};
use crate::sim::{Builder, World};
use crate::{DropReason, Event};

fn connected() -> (World, FlowKey, FlowKey) {
    let topology = Builder::new(3)
        .service("client", 9, &[1])
        .service("web", 80, &[2])
        .allow("service:client", "service:web")
        .build();
    let mut world = World::new(topology, 1);
    let client = world.topology.service("client");
    let key = tcp_key(
        (world.topology.host_address(1, true), 40_000),
        (world.topology.vip("web", true), 80),
    );
    let (_, seen) = world.connect(1, key, Some(client));
    let got = world.exchange(2, &tcp(&seen.reversed(), ACK, 501, 101, b"data"), 1);
    assert_eq!(got.len(), 1);
    (world, key, seen)
}

fn sequence(packet: &[u8]) -> u32 {
    let at = read(packet).l4_offset + 4;
    u32::from_be_bytes(packet[at..at + 4].try_into().unwrap())
}

#[test]
fn an_idle_connection_is_cut_at_both_ends_when_its_rule_goes() {
    let (mut world, key, seen) = connected();
    world.topology.change(|snapshot| snapshot.rules.rules.clear());
    world.apply();
    // Each end gets a RST with the sequence number that it expects: its own last acknowledgement.
    let got = world.host(1).take_inbox();
    assert_eq!((read(&got[0]).key, flags(&got[0])), (key.reversed(), RST));
    assert_eq!(sequence(&got[0]), 501);
    let got = world.host(2).take_inbox();
    assert_eq!((read(&got[0]).key, flags(&got[0])), (seen, RST));
    assert_eq!(sequence(&got[0]), 101);
    assert_eq!(world.host(1).node.flow_count() + world.host(2).node.flow_count(), 0);
}

#[test]
fn what_comes_after_the_cut_is_refused_at_the_sender() {
    let (mut world, key, _) = connected();
    world.topology.change(|snapshot| snapshot.rules.rules.clear());
    world.apply();
    world.host(1).take_inbox();
    world.host(2).take_inbox();
    assert!(world.exchange(1, &tcp(&key, ACK, 101, 505, b"more"), 2).is_empty());
    let got = world.host(1).take_inbox();
    assert_eq!(flags(&got[0]), RST);
    assert_eq!(world.host(1).node.counters().dropped(DropReason::Denied), 1);
}

#[test]
fn a_receiver_that_knows_first_cuts_alone() {
    let (mut world, key, seen) = connected();
    world.topology.change(|snapshot| snapshot.rules.rules.clear());
    world.apply_to(2);
    let got = world.host(2).take_inbox();
    assert_eq!((read(&got[0]).key, flags(&got[0])), (seen, RST));
    assert!(world.exchange(1, &tcp(&key, ACK, 101, 505, b"more"), 2).is_empty());
    assert_eq!(world.dropped(2, DropReason::Denied), 1);
}

#[test]
fn a_revision_that_changes_nothing_drops_nothing() {
    let (mut world, key, seen) = connected();
    let asked = world.host(1).sockets.asked;
    for _ in 0..3 {
        world.topology.change(|_| {});
        world.apply();
        let got = world.exchange(1, &tcp(&key, ACK, 101, 505, b"more"), 2);
        assert_eq!(read(&got[0]).key, seen);
    }
    let now = world.now;
    let flow = &world.host(1).node.flows(9, now)[0];
    assert!(flow.forward.0 >= 5, "the flow is the same as before: {:?}", flow.forward);
    assert_eq!(world.host(1).node.counters().flows_cut, 0);
    assert!(world.host(1).take_inbox().is_empty() && world.host(2).take_inbox().is_empty());
    assert!(world.host(1).sockets.asked <= asked + 3, "owners are asked once per revision");
}

#[test]
fn a_rule_that_comes_lets_the_next_try_pass() {
    let (mut world, key, _) = connected();
    let rules = world.topology.snapshot(1).rules;
    world.topology.change(|snapshot| snapshot.rules.rules.clear());
    world.apply();
    world.send(1, &tcp(&key, SYN, 1, 0, b""));
    world.topology.change(|snapshot| snapshot.rules = rules);
    world.apply();
    world.host(2).take_inbox();
    assert_eq!(world.exchange(1, &tcp(&key, SYN, 1, 0, b""), 2).len(), 1);
}

#[test]
fn a_host_that_is_removed_can_neither_send_nor_receive() {
    let topology = Builder::new(3)
        .service("web", 80, &[2])
        .service("mail", 25, &[3])
        .allow("host:*", "service:*")
        .build();
    let mut world = World::new(topology, 1);
    let from = |world: &World, host| (world.topology.host_address(host, true), 40_000);
    let inbound = tcp_key(from(&world, 3), (world.topology.vip("web", true), 80));
    let outbound = tcp_key(from(&world, 1), (world.topology.vip("mail", true), 25));
    let (_, seen) = world.connect(3, inbound, None);
    world.connect(1, outbound, None);
    world.topology.change(|snapshot| {
        snapshot.hosts.remove(&HostId(3));
        snapshot.services.values_mut().for_each(|service| {
            service.placements.remove(&HostId(3));
        });
    });
    world.apply_to(1);
    world.apply_to(2);
    assert_eq!(flags(&world.host(1).take_inbox()[0]), RST, "its peers' sockets are told");
    assert_eq!(flags(&world.host(2).take_inbox()[0]), RST);
    assert!(world.exchange(3, &tcp(&inbound, ACK, 101, 501, b"more"), 2).is_empty());
    assert_eq!(world.dropped(2, DropReason::UnknownSession), 1);
    world.run(Duration::from_secs(30));
    world.host(3).take_inbox();
    assert!(world.exchange(2, &tcp(&seen.reversed(), ACK, 501, 101, b"more"), 3).is_empty());
    assert!(world.exchange(1, &tcp(&outbound, ACK, 101, 501, b"more"), 3).is_empty());
    world.host(2).take_inbox();
    let hello = tcp_key((inbound.source.ip(), 5), (inbound.destination.ip(), 80));
    assert!(world.exchange(3, &tcp(&hello, SYN, 1, 0, b""), 2).is_empty());
}

#[test]
fn a_new_key_ends_the_old_tunnel() {
    let (mut world, key, _) = connected();
    world.topology.change(|snapshot| {
        let host = snapshot.hosts.get_mut(&HostId(1)).unwrap();
        host.public_key = crate::public_key(&[42; 32]);
    });
    world.apply_to(2);
    assert!(world.exchange(1, &tcp(&key, ACK, 101, 501, b"more"), 2).is_empty());
    assert_eq!(world.dropped(2, DropReason::UnknownSession), 1);
}

#[test]
fn a_workload_that_moves_takes_no_connection_along() {
    let (mut world, key, _) = connected();
    let web = world.topology.service("web");
    world.topology.change(|snapshot| {
        let placements = &mut snapshot.services.get_mut(&web).unwrap().placements;
        let address = placements.remove(&HostId(2)).unwrap();
        placements.insert(HostId(3), address);
    });
    world.apply();
    assert_eq!(flags(&world.host(1).take_inbox()[0]), RST);
    world.host(2).take_inbox();
    assert_eq!(world.exchange(1, &tcp(&key, SYN, 1, 0, b""), 3).len(), 1);
}

#[test]
fn a_service_that_becomes_http_is_inspected_from_then_on() {
    let (mut world, key, _) = connected();
    let web = world.topology.service("web");
    world.topology.change(|snapshot| {
        snapshot.services.get_mut(&web).unwrap().protocol = Protocol::Http;
    });
    world.apply();
    assert_eq!(flags(&world.host(2).take_inbox()[0]), RST, "nobody has looked at it so far");
    world.host(1).take_inbox();
    let got = world.exchange(1, &tcp(&key, SYN, 1, 0, b""), 1);
    assert_eq!(read(&got[0]).key.destination_port, 15001);
}

#[test]
fn a_process_that_leaves_its_service_loses_its_rights_with_the_next_revision() {
    let (mut world, key, _) = connected();
    world.host(1).sockets.open_plain(key);
    assert_eq!(world.exchange(1, &tcp(&key, ACK, 101, 505, b"still"), 2).len(), 1);
    world.topology.change(|_| {});
    world.apply();
    assert!(world.exchange(1, &tcp(&key, ACK, 106, 505, b"more"), 2).is_empty());
    assert_eq!(world.dropped(1, DropReason::Denied), 1);
}

#[test]
fn connectionless_flows_are_cut_too() {
    let topology = Builder::new(2)
        .service_of(Protocol::Udp, "dns", 53, &[2])
        .allow("host:*", "service:dns")
        .build();
    let mut world = World::new(topology, 1);
    let key = udp_key(
        (world.topology.host_address(1, true), 5000),
        (world.topology.vip("dns", true), 53),
    );
    let got = world.exchange(1, &udp(&key, b"question"), 2);
    let seen = read(&got[0]).key;
    world.topology.change(|snapshot| snapshot.rules.rules.clear());
    world.apply_to(2);
    world.forge(1, 2, &udp(&seen, b"more"));
    world.run(Duration::from_millis(100));
    assert!(world.host(2).take_inbox().is_empty());
    assert!(world.exchange(2, &udp(&seen.reversed(), b"late answer"), 1).is_empty());
}

#[test]
fn a_revision_that_audits_tells_of_live_flows() {
    let (mut world, key, seen) = connected();
    world.topology.change(|snapshot| {
        snapshot.rules.rules.clear();
        snapshot.rules.audit = true;
    });
    world.apply();
    assert_eq!(read(&world.exchange(1, &tcp(&key, ACK, 101, 505, b"more"), 2)[0]).key, seen);
    assert!(world.host(1).events.iter().any(|event| matches!(event, Event::Audited(_))));
}
