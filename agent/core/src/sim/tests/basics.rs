use std::time::Duration;

use isthmus_packet::{Reason, icmp_error, protocol};
use isthmus_policy::Outcome;

use crate::flows::FlowState;
use crate::sim::packets::{
    ACK, RST, SYN, SYN_ACK, flags, payload, ping, read, tcp, tcp_key, udp, udp_key,
};
use crate::sim::{Builder, World};
use crate::{DropReason, Event};

fn mesh() -> World {
    let topology = Builder::new(3)
        .service("client", 9, &[1])
        .service("other", 9, &[1])
        .service("web", 80, &[2])
        .allow("service:client", "service:web")
        .build();
    World::new(topology, 1)
}

/// A connection through the mesh; what is sent one way comes out the other, under the right names.
fn handshake(v4: bool) {
    let mut world = mesh();
    let client = (world.topology.host_address(1, v4), 40_000);
    let web = (world.topology.workload("web", 2, v4), 80);
    let seen = (world.topology.workload("client", 1, v4), 40_000);
    let service = world.topology.service("client");
    world.host(1).sockets.open(tcp_key(client, web), service);

    let got = world.exchange(1, &tcp(&tcp_key(client, web), SYN, 1, 0, b""), 2);
    assert_eq!(got.len(), 1);
    assert_eq!(read(&got[0]).key, tcp_key(seen, web));
    let got = world.exchange(2, &tcp(&tcp_key(web, seen), SYN_ACK, 9, 2, b""), 1);
    assert_eq!(got.len(), 1);
    assert_eq!(read(&got[0]).key, tcp_key(web, client));
    assert_eq!(flags(&got[0]), SYN_ACK);
    let got = world.exchange(1, &tcp(&tcp_key(client, web), ACK, 2, 10, b"hello"), 2);
    assert_eq!(payload(&got[0]), b"hello");
    assert_eq!(world.host(1).sockets.asked, 1, "the owner is asked once per flow");

    let now = world.now;
    let flows = world.host(1).node.flows(10, now);
    assert_eq!(flows.len(), 1);
    assert_eq!(flows[0].rule, "service:client to service:web");
    assert_eq!((flows[0].outcome, flows[0].state), (Outcome::Allow, FlowState::Established));
    assert_eq!((flows[0].forward.0, flows[0].backward.0), (2, 1));
}

#[test]
fn an_allowed_connection_passes_over_ipv4_under_its_services_names() {
    handshake(true);
}

#[test]
fn an_allowed_connection_passes_over_ipv6_under_its_services_names() {
    handshake(false);
}

#[test]
fn tunnels_also_run_over_ipv6() {
    let topology =
        Builder::new(2).service("web", 80, &[2]).allow("host:*", "service:web").over_ipv6().build();
    let mut world = World::new(topology, 1);
    let key =
        tcp_key((world.topology.host_address(1, true), 1), (world.topology.vip("web", true), 80));
    assert_eq!(world.exchange(1, &tcp(&key, SYN, 1, 0, b""), 2).len(), 1);
    assert!(world.network.largest <= 1500);
}

#[test]
fn a_denied_connection_is_reset_at_the_sender() {
    for v4 in [true, false] {
        let mut world = mesh();
        let other = (world.topology.host_address(1, v4), 40_000);
        let web = (world.topology.workload("web", 2, v4), 80);
        let service = world.topology.service("other");
        world.host(1).sockets.open(tcp_key(other, web), service);
        world.send(1, &tcp(&tcp_key(other, web), SYN, 7, 0, b""));
        let got = world.host(1).take_inbox();
        assert_eq!(read(&got[0]).key, tcp_key(web, other));
        assert_eq!(flags(&got[0]), RST | ACK);
        assert_eq!(world.host(1).node.counters().dropped(DropReason::Denied), 1);
        assert!(matches!(world.host(1).events[..], [Event::Denied(denial)] if denial.outbound));
        assert!(world.network.next_arrival().is_none(), "nothing goes out");
    }
}

#[test]
fn other_denied_traffic_is_answered_by_icmp() {
    for v4 in [true, false] {
        let mut world = mesh();
        let from = (world.topology.host_address(1, v4), 40_000);
        let web = (world.topology.workload("web", 2, v4), 53);
        let packet = udp(&udp_key(from, web), b"question");
        world.send(1, &packet);
        let got = world.host(1).take_inbox();
        let headers = read(&got[0]);
        assert_eq!(headers.key.destination, from.0.into());
        let quoted = isthmus_packet::quoted(&got[0], &headers).unwrap();
        assert_eq!(quoted.key, udp_key(from, web));
    }
}

#[test]
fn the_receiver_judges_for_itself() {
    let mut world = mesh();
    let client = (world.topology.workload("client", 1, true), 40_000);
    let web = (world.topology.workload("web", 2, true), 80);
    let key = tcp_key(client, web);
    let service = world.topology.service("client");
    world.host(1).sockets.open(key, service);
    world.topology.change(|snapshot| snapshot.rules.rules.clear());
    world.apply_to(2);
    assert!(world.exchange(1, &tcp(&key, SYN, 1, 0, b""), 2).is_empty());
    assert_eq!(world.host(2).node.counters().dropped(DropReason::Denied), 1);
    assert!(world.host(1).take_inbox().is_empty(), "in silence");
}

#[test]
fn a_workloads_address_is_its_own() {
    let mut world = mesh();
    let bound = (world.topology.workload("client", 1, true), 40_000);
    let web = (world.topology.workload("web", 2, true), 80);
    let thief = world.topology.service("other");
    world.host(1).sockets.open(tcp_key(bound, web), thief);
    assert!(world.exchange(1, &tcp(&tcp_key(bound, web), SYN, 1, 0, b""), 2).is_empty());
    assert_eq!(world.host(1).node.counters().dropped(DropReason::NotOwner), 1);
    let owner = world.topology.service("client");
    world.host(1).sockets.open(tcp_key(bound, web), owner);
    assert_eq!(world.exchange(1, &tcp(&tcp_key(bound, web), SYN, 1, 0, b""), 2).len(), 1);
}

#[test]
fn a_port_that_changes_hands_takes_no_rights_along() {
    let mut world = mesh();
    let from = (world.topology.host_address(1, true), 40_000);
    let web = (world.topology.workload("web", 2, true), 80);
    let key = tcp_key(from, web);
    let (client, other) = (world.topology.service("client"), world.topology.service("other"));
    world.host(1).sockets.open(key, client);
    assert_eq!(world.exchange(1, &tcp(&key, SYN, 1, 0, b""), 2).len(), 1);
    world.host(1).sockets.open(key, other);
    assert!(world.exchange(1, &tcp(&key, SYN, 1, 0, b""), 2).is_empty());
}

#[test]
fn hosts_ping_each_other_and_nobody_else() {
    let mut world = mesh();
    let (one, two) = (world.topology.host_address(1, true), world.topology.host_address(2, true));
    let got = world.exchange(1, &ping(one, two, 77, 1), 2);
    assert_eq!(got.len(), 1);
    let reply = crate::sim::packets::answer(&got[0], isthmus_packet::echo_reply);
    assert_eq!(world.exchange(2, &reply, 1).len(), 1);
    let web = world.topology.workload("web", 2, true);
    assert!(world.exchange(1, &ping(one, web, 78, 1), 2).is_empty());
}

#[test]
fn an_icmp_error_reaches_the_socket_it_is_about() {
    for v4 in [true, false] {
        let topology = Builder::new(2)
            .service("client", 9, &[1])
            .service_of(isthmus_model::Protocol::Udp, "log", 514, &[2])
            .allow("service:client", "service:log")
            .build();
        let mut world = World::new(topology, 1);
        let from = (world.topology.host_address(1, v4), 40_000);
        let vip = (world.topology.vip("log", v4), 514);
        let service = world.topology.service("client");
        world.host(1).sockets.open(udp_key(from, vip), service);
        let got = world.exchange(1, &udp(&udp_key(from, vip), b"lost"), 2);
        let source = read(&got[0]).key.destination;
        let error = crate::sim::packets::answer(&got[0], |packet, headers, out| {
            icmp_error(packet, headers, Reason::PortUnreachable, source, out)
        });
        let got = world.exchange(2, &error, 1);
        let headers = read(&got[0]);
        assert_eq!((headers.key.source, headers.key.destination), (vip.0.into(), from.0.into()));
        let quoted = isthmus_packet::quoted(&got[0], &headers).unwrap();
        assert_eq!(quoted.key, udp_key(from, vip));
        assert_eq!(quoted.key.protocol, protocol::UDP);
    }
}

#[test]
fn an_icmp_error_about_nothing_is_dropped() {
    let mut world = mesh();
    let web = (world.topology.workload("web", 2, true), 80);
    let from = (world.topology.host_address(1, true), 40_000);
    let invented = udp(&udp_key(from, web), b"never sent");
    let error = crate::sim::packets::answer(&invented, |packet, headers, out| {
        icmp_error(packet, headers, Reason::PortUnreachable, web.0.into(), out)
    });
    assert!(world.exchange(2, &error, 1).is_empty());
    assert_eq!(world.host(2).node.counters().dropped(DropReason::Icmp), 1);
}

#[test]
fn what_isnt_for_one_host_of_the_mesh_stays_here() {
    let mut world = mesh();
    let from = (world.topology.host_address(1, true), 40_000);
    for to in ["224.0.0.1", "255.255.255.255", "0.0.0.0"] {
        world.send(1, &udp(&udp_key(from, (to.parse().unwrap(), 5353)), b"hello"));
    }
    assert_eq!(world.host(1).node.counters().dropped(DropReason::NotUnicast), 3);
    assert!(world.host(1).take_inbox().is_empty());
    world.send(1, &udp(&udp_key(from, ("100.64.9.9".parse().unwrap(), 1)), b"hello"));
    assert_eq!(world.host(1).node.counters().dropped(DropReason::NoRoute), 1);
    assert_eq!(world.host(1).take_inbox().len(), 1, "answered by ICMP");
    world.send(1, &udp(&udp_key(("192.0.2.1".parse().unwrap(), 1), from), b"hello"));
    assert_eq!(world.host(1).node.counters().dropped(DropReason::ForeignSource), 1);
}

#[test]
fn agents_ping_each_other() {
    let mut world = mesh();
    let target = world.topology.vip("web", false);
    assert!(world.ping(1, target, 5, 6));
    world.run(Duration::from_secs(1));
    let pong = world.host(1).events.iter().find_map(|event| {
        let Event::Pong { target, identifier: 5, sequence: 6, round_trip, .. } = event else {
            return None;
        };
        Some((*target, *round_trip))
    });
    let (asked, round_trip) = pong.expect("an answer");
    assert_eq!(asked, target);
    // Handshake and echo, at 5 ms a way.
    assert_eq!(round_trip, Duration::from_millis(20));
    assert!(world.host(2).take_inbox().is_empty(), "no kernel sees it");
}

#[test]
fn programs_cannot_speak_as_agents() {
    let mut world = mesh();
    let one = (world.topology.host_address(1, false), 51820);
    let two = (world.topology.host_address(2, false), 51820);
    world.send(1, &udp(&udp_key(one, two), &[1, 3, 0, 0, 0, 0, 0, 0]));
    assert_eq!(world.host(1).node.counters().dropped(DropReason::Control), 1);
    assert!(world.network.next_arrival().is_none());
}
