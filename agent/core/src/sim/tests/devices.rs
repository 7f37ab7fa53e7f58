//! Stock WireGuard peers, behind the host that is their gateway.

use std::time::Duration;

use isthmus_packet::Headers;

use crate::sim::packets::{ACK, RST, SYN, SYN_ACK, flags, ping, read, tcp, tcp_key, udp, udp_key};
use crate::sim::{Builder, World};
use crate::{DropReason, Event, PeerName};

fn mesh() -> World {
    let topology = Builder::new(3)
        .service("client", 9, &[2])
        .service("web", 80, &[2, 3])
        .service("local", 81, &[1])
        .service("secret", 82, &[2])
        .device("press", 1)
        .device("other", 1)
        .allow("device:press", "service:web")
        .allow("device:press", "service:local")
        .allow("service:client", "device:press")
        .build();
    World::new(topology, 1)
}

const MOMENT: Duration = Duration::from_millis(100);

#[test]
fn a_device_reaches_what_it_may_by_the_virtual_address() {
    for v4 in [true, false] {
        let mut world = mesh();
        let press = (world.topology.device_address("press", v4), 4000);
        let vip = (world.topology.vip("web", v4), 80);
        let sent = tcp(&tcp_key(press, vip), SYN, 1, 0, b"");
        world.device_send("press", &sent);
        world.run(MOMENT);
        let inboxes: Vec<_> = (2..=3)
            .flat_map(|id| world.host(id).take_inbox().into_iter().map(move |p| (id, p)))
            .collect();
        let [(host, packet)] = &inboxes[..] else { panic!("one of them: {}", inboxes.len()) };
        let seen = read(packet).key;
        assert_eq!(seen, tcp_key(press, (world.topology.workload("web", *host, v4), 80)));
        assert_eq!(read(packet).ttl, read(&sent).ttl - 1);
        world.send(*host, &tcp(&seen.reversed(), SYN_ACK, 9, 2, b""));
        world.run(MOMENT);
        let got = world.device("press").take_inbox();
        assert_eq!(read(&got[0]).key, tcp_key(vip, press));
        let now = world.now;
        let flow = &world.host(1).node.flows(9, now)[0];
        assert!(matches!(flow.ingress, Some(PeerName::Device(_))));
        assert!(matches!(flow.egress, Some(PeerName::Host(_))));
    }
}

#[test]
fn a_device_reaches_services_of_its_gateway_and_is_answered() {
    let mut world = mesh();
    let press = (world.topology.device_address("press", true), 4000);
    let vip = (world.topology.vip("local", true), 81);
    world.device_send("press", &tcp(&tcp_key(press, vip), SYN, 1, 0, b""));
    world.run(MOMENT);
    let got = world.host(1).take_inbox();
    let seen = read(&got[0]).key;
    assert_eq!(seen, tcp_key(press, (world.topology.workload("local", 1, true), 81)));
    world.send(1, &tcp(&seen.reversed(), SYN_ACK, 9, 2, b""));
    world.run(MOMENT);
    assert_eq!(read(&world.device("press").take_inbox()[0]).key, tcp_key(vip, press));
}

#[test]
fn a_device_is_refused_what_it_may_not() {
    let mut world = mesh();
    let press = (world.topology.device_address("press", true), 4000);
    let secret = (world.topology.vip("secret", true), 82);
    world.device_send("press", &tcp(&tcp_key(press, secret), SYN, 1, 0, b""));
    world.run(MOMENT);
    let got = world.device("press").take_inbox();
    assert_eq!(read(&got[0]).key, tcp_key(secret, press));
    assert_eq!(flags(&got[0]), RST | ACK);
    world.device_send("press", &udp(&udp_key(press, (secret.0, 53)), b"hello"));
    world.run(MOMENT);
    let got = world.device("press").take_inbox();
    assert_eq!(read(&got[0]).key.source, world.topology.host_address(1, true).into());
    assert!((1..=3).all(|id| world.host(id).take_inbox().is_empty()));
}

#[test]
fn a_device_asks_the_mesh_dns_of_a_host() {
    let mut world = mesh();
    let press = (world.topology.device_address("other", false), 4000);
    let dns = (world.topology.host_address(1, false), 53);
    world.device_send("other", &udp(&udp_key(press, dns), b"question"));
    world.run(MOMENT);
    assert_eq!(world.host(1).take_inbox().len(), 1);
    world.send(1, &udp(&udp_key(dns, press), b"answer"));
    world.run(MOMENT);
    assert_eq!(world.device("other").take_inbox().len(), 1);
}

#[test]
fn a_device_cannot_speak_for_others() {
    let mut world = mesh();
    let vip = (world.topology.vip("web", true), 80);
    let forged = [
        world.topology.workload("client", 2, true),
        world.topology.host_address(1, true),
        world.topology.device_address("other", true),
        world.topology.vip("client", true),
        "192.0.2.7".parse().unwrap(),
    ];
    for source in forged {
        world.device_send("press", &tcp(&tcp_key((source, 1), vip), SYN, 1, 0, b""));
        world.run(MOMENT);
    }
    assert_eq!(world.dropped(1, DropReason::Forged), 5);
    assert!((1..=3).all(|id| world.host(id).take_inbox().is_empty()));
    let reported = world.host(1).events.iter().filter(|event| {
        matches!(event, Event::Forged { from: PeerName::Device(_), packets: 1, .. })
    });
    assert_eq!(reported.count(), 5);
}

#[test]
fn the_mesh_reaches_a_device_through_its_gateway() {
    let mut world = mesh();
    let press = (world.topology.device_address("press", true), 22);
    let client = world.topology.service("client");
    let key = tcp_key((world.topology.host_address(2, true), 40_000), press);
    world.host(2).sockets.open(key, client);
    // The device must have spoken before its place is known.
    world.send(2, &tcp(&key, SYN, 1, 0, b""));
    world.run(MOMENT);
    assert_eq!(world.dropped(1, DropReason::NoEndpoint), 1);
    assert_eq!(world.host(2).take_inbox().len(), 1, "told by ICMP");
    world.device_send("press", &ping(press.0, world.topology.host_address(1, true), 1, 1));
    world.run(MOMENT);
    world.device("press").take_inbox();
    world.send(2, &tcp(&key, SYN, 1, 0, b""));
    world.run(MOMENT);
    let got = world.device("press").take_inbox();
    let seen = read(&got[0]).key;
    assert_eq!(seen, tcp_key((world.topology.workload("client", 2, true), 40_000), press));
    world.device_send("press", &tcp(&seen.reversed(), SYN_ACK, 9, 2, b""));
    world.run(MOMENT);
    assert_eq!(read(&world.host(2).take_inbox()[0]).key, key.reversed());
}

#[test]
fn a_packet_without_hops_left_ends_at_the_gateway() {
    let mut world = mesh();
    let press = (world.topology.device_address("press", true), 4000);
    let vip = (world.topology.vip("web", true), 80);
    let mut packet = tcp(&tcp_key(press, vip), SYN, 1, 0, b"");
    packet[8] = 1;
    crate::sim::packets::fix(&mut packet);
    world.device_send("press", &packet);
    world.run(MOMENT);
    assert_eq!(world.dropped(1, DropReason::HopsExceeded), 1);
    let got = world.device("press").take_inbox();
    let headers = Headers::parse(&got[0]).unwrap();
    assert!(matches!(
        headers.transport,
        isthmus_packet::Transport::IcmpError { kind: 11, code: 0 }
    ));
}

#[test]
fn a_device_that_moves_is_found() {
    let mut world = mesh();
    let press = (world.topology.device_address("press", true), 4000);
    let dns = (world.topology.host_address(1, true), 53);
    world.device_send("press", &udp(&udp_key(press, dns), b"one"));
    world.run(MOMENT);
    world.device("press").endpoint.set_port(7777);
    world.device_send("press", &udp(&udp_key(press, dns), b"two"));
    world.run(MOMENT);
    world.send(1, &udp(&udp_key(dns, press), b"answer"));
    world.run(MOMENT);
    assert_eq!(world.device("press").take_inbox().len(), 1);
}
