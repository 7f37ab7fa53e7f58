//! Virtual addresses, flows that stay on one host, the proxy's port.

use std::time::Duration;

use isthmus_model::Protocol;
use isthmus_packet::{Offload, checksum};

use crate::sim::packets::{
    ACK, SYN, SYN_ACK, fragments, fragments_ipv6, payload, ping, read, tcp, tcp_key, udp, udp_key,
};
use crate::sim::{Builder, World};
use crate::{DropReason, Node};

#[test]
fn flows_to_a_virtual_address_are_shared_out_and_answered_from_it() {
    for v4 in [true, false] {
        let topology = Builder::new(3)
            .service("client", 9, &[1])
            .service("web", 80, &[2, 3])
            .allow("service:client", "service:web")
            .build();
        let mut world = World::new(topology, 1);
        let client = world.topology.service("client");
        let (own, vip) = (world.topology.host_address(1, v4), world.topology.vip("web", v4));
        let mut share = [0; 4];
        for port in 40_000..40_040 {
            let (host, seen) = world.connect(1, tcp_key((own, port), (vip, 80)), Some(client));
            assert_eq!(seen.source, world.topology.workload("client", 1, v4).into());
            assert_eq!(seen.destination, world.topology.workload("web", host, v4).into());
            share[host as usize] += 1;
        }
        assert!(share[2] >= 10 && share[3] >= 10, "{share:?}");
    }
}

#[test]
fn a_service_without_workloads_is_unreachable() {
    let topology = Builder::new(2).service("web", 80, &[]).allow("host:*", "service:web").build();
    let mut world = World::new(topology, 1);
    let key =
        tcp_key((world.topology.host_address(1, true), 1), (world.topology.vip("web", true), 80));
    world.send(1, &tcp(&key, SYN, 1, 0, b""));
    assert_eq!(world.dropped(1, DropReason::NoBackend), 1);
    assert_eq!(world.host(1).take_inbox().len(), 1, "answered by ICMP");
}

#[test]
fn two_services_of_one_host_meet_under_virtual_addresses() {
    for v4 in [true, false] {
        let topology = Builder::new(1)
            .service("client", 9, &[1])
            .service("web", 80, &[1])
            .allow("service:client", "service:web")
            .build();
        let mut world = World::new(topology, 1);
        let client = world.topology.service("client");
        let own = (world.topology.host_address(1, v4), 40_000);
        let vip = (world.topology.vip("web", v4), 80);
        let (host, seen) = world.connect(1, tcp_key(own, vip), Some(client));
        assert_eq!(host, 1);
        let workload = (world.topology.workload("web", 1, v4), 80);
        assert_eq!(seen, tcp_key((world.topology.vip("client", v4), 40_000), workload));
        assert!(world.network.next_arrival().is_none(), "nothing leaves the host");
    }
}

#[test]
fn a_host_meets_its_own_service_under_the_anycast_address_if_it_may() {
    let topology = Builder::new(1)
        .service("client", 9, &[1])
        .service("web", 80, &[1])
        .allow("host:*", "service:web")
        .build();
    let mut world = World::new(topology, 1);
    let own = world.topology.host_address(1, true);
    let vip = (world.topology.vip("web", true), 80);
    let (_, seen) = world.connect(1, tcp_key((own, 40_000), vip), None);
    assert_eq!(seen.source.to_string(), "100.127.0.0");
    let denied = tcp_key((own, 40_001), vip);
    let client = world.topology.service("client");
    world.host(1).sockets.open(denied, client);
    world.send(1, &tcp(&denied, SYN, 1, 0, b""));
    assert_eq!(world.dropped(1, DropReason::Denied), 1);
}

fn http_mesh(hosts: &[u32]) -> World {
    let topology = Builder::new(2)
        .service("client", 9, &[1])
        .service_of(Protocol::Http, "api", 8080, hosts)
        .allow("service:client", "service:api")
        .build();
    World::new(topology, 1)
}

#[test]
fn connections_to_the_virtual_address_of_an_http_service_arrive_at_the_proxy_here() {
    for (hosts, v4) in [(&[2][..], true), (&[1], true), (&[], true), (&[2], false)] {
        let mut world = http_mesh(hosts);
        let client = world.topology.service("client");
        let own = (world.topology.host_address(1, v4), 40_000);
        let vip = world.topology.vip("api", v4);
        let (host, seen) = world.connect(1, tcp_key(own, (vip, 8080)), Some(client));
        assert_eq!(host, 1, "nothing leaves the host");
        let caller = (world.topology.vip("client", v4), 40_000);
        assert_eq!(seen, tcp_key(caller, (vip, 15_001)), "who asks, and for whom");
    }
}

#[test]
fn what_stands_for_many_goes_to_the_proxy_as_one_where_the_device_takes_it() {
    for (v4, takes) in [(true, true), (false, true), (true, false)] {
        let mut world = http_mesh(&[2]);
        world.host(1).node.coalesces = takes;
        let client = world.topology.service("client");
        let own = (world.topology.host_address(1, v4), 40_000);
        let asked = tcp_key(own, (world.topology.vip("api", v4), 8080));
        let (_, seen) = world.connect(1, asked, Some(client));
        let body: Vec<u8> = (0..20_500u32).map(|at| at as u8).collect();
        // Both ways.
        for (sent, becomes) in [(asked, seen), (seen.reversed(), asked.reversed())] {
            world.host(1).kernel.super_packets = 0;
            give(&mut world, &tcp(&sent, ACK, 101, 501, &body), Some(1000));
            give(&mut world, &tcp(&sent, ACK, 101 + 20_500, 501, b"the end"), None);
            let host = world.host(1);
            assert_eq!(host.kernel.super_packets, usize::from(takes));
            let got = host.take_inbox();
            assert_eq!(got.len(), 22);
            assert!(got.iter().all(|packet| read(packet).key == becomes));
            assert!(got.iter().all(|packet| checksum::verify(packet, &read(packet))));
            let bytes: Vec<u8> = got.iter().flat_map(|packet| payload(packet).to_vec()).collect();
            assert_eq!(bytes, [&body[..], b"the end"].concat(), "in order");
        }
    }
}

#[test]
fn what_the_node_passes_on_itself_is_told_apart_from_its_own_answers() {
    let mut world = http_mesh(&[2]);
    let client = world.topology.service("client");
    let own = world.topology.host_address(1, true);
    let asked = tcp_key((own, 40_000), (world.topology.vip("api", true), 8080));
    world.connect(1, asked, Some(client));
    let (topology, now) = (world.topology.clone(), world.now);
    let host = world.host(1);
    host.restart(&topology, now);
    host.give(Offload::NONE, &mut tcp(&tcp_key((own, 7), (own, 81)), SYN, 1, 0, b""), now);
    assert!(!host.node.has_passed(), "an answer to what was refused");
    let mut packet = tcp(&asked, ACK, 101, 501, &[7; 3000]);
    let start = u16::try_from(read(&packet).l4_offset).ok();
    // Of a flow that isn't known yet: decided packet by packet.
    host.give(Offload { checksum_start: start, segment: Some(1000) }, &mut packet, now);
    assert!(host.node.has_passed());
    while host.node.poll_tun().is_some() {}
    assert!(!host.node.has_passed());
}

/// The kernel gives a packet without its checksum.
fn give(world: &mut World, packet: &[u8], segment: Option<u16>) {
    let mut packet = packet.to_vec();
    let headers = read(&packet);
    let (key, l4) = (headers.key, headers.l4_offset);
    let length = headers.total_length - l4;
    let partial = checksum::pseudo_header(key.source, key.destination, key.protocol, length);
    packet[l4 + 16..l4 + 18].copy_from_slice(&partial.to_be_bytes());
    let offload = Offload { checksum_start: u16::try_from(l4).ok(), segment };
    world.send_unfinished(1, offload, &mut packet);
}

#[test]
fn who_may_not_use_an_http_service_is_refused_before_the_proxy() {
    let mut world = http_mesh(&[2]);
    let vip = (world.topology.vip("api", true), 8080);
    let own = tcp_key((world.topology.host_address(1, true), 40_000), vip);
    world.send(1, &tcp(&own, SYN, 1, 0, b""));
    assert_eq!(world.dropped(1, DropReason::Denied), 1);
}

#[test]
fn connections_to_a_workload_of_an_http_service_arrive_at_the_proxy_there() {
    let mut world = http_mesh(&[2]);
    let client = world.topology.service("client");
    let own = (world.topology.host_address(1, true), 40_000);
    let workload = (world.topology.workload("api", 2, true), 8080);
    let (host, seen) = world.connect(1, tcp_key(own, workload), Some(client));
    assert_eq!((host, seen.destination_port), (2, 15_001));
    assert_eq!(seen.source, world.topology.workload("client", 1, true).into());
}

#[test]
fn the_port_that_a_connection_to_the_proxy_asked_for_is_known() {
    let mut world = http_mesh(&[2]);
    let client = world.topology.service("client");
    let own = (world.topology.host_address(1, true), 40_000);
    let vip = world.topology.vip("api", true);
    let (host, seen) = world.connect(1, tcp_key(own, (vip, 8080)), Some(client));
    let ends = |key: &isthmus_packet::FlowKey| {
        let end = |address: isthmus_packet::Address, port| (address.ip(), port).into();
        (end(key.destination, key.destination_port), end(key.source, key.source_port))
    };
    let (proxy, caller) = ends(&seen);
    assert_eq!(world.host(host).node.asked_port(proxy, caller), Some(8080));
    let other = std::net::SocketAddr::new(caller.ip(), caller.port() + 1);
    assert_eq!(world.host(host).node.asked_port(proxy, other), None);
}

#[test]
fn what_comes_by_a_family_that_nobody_listens_on_arrives_at_the_proxy() {
    let topology = Builder::new(2)
        .service("client", 9, &[1])
        .service("web", 80, &[2])
        .allow("service:client", "service:web")
        .build();
    let mut world = World::new(topology, 1);
    let (client, web) = (world.topology.service("client"), world.topology.service("web"));
    world.host(2).node.handle_deaf([(web, 80, false)].into());
    for (v4, port) in [(true, 80), (false, 15_001)] {
        let own = (world.topology.host_address(1, v4), 40_000);
        let vip = world.topology.vip("web", v4);
        let (host, seen) = world.connect(1, tcp_key(own, (vip, 80)), Some(client));
        assert_eq!((host, seen.destination_port), (2, port), "IPv4: {v4}");
        assert_eq!(seen.source, world.topology.workload("client", 1, v4).into());
    }
}

#[test]
fn other_addresses_of_its_host_do_not_lead_around_the_proxy() {
    let topology = Builder::new(2)
        .service("client", 9, &[1])
        .service("plain", 7, &[2])
        .service_of(Protocol::Http, "api", 8080, &[2])
        .allow("service:client", "host:host-2")
        .build();
    let mut world = World::new(topology, 1);
    let client = world.topology.service("client");
    let own = (world.topology.host_address(1, true), 40_000);
    let host = world.topology.host_address(2, true);
    // All ports of the host are allowed: this one is the service's, whatever address it listens on.
    let around = tcp_key(own, (host, 8080));
    world.host(1).sockets.open(around, client);
    let got = world.exchange(1, &tcp(&around, SYN, 1, 0, b""), 1);
    assert_eq!(got.len(), 1, "the caller is told");
    assert_eq!(world.dropped(2, DropReason::AroundProxy), 1);
    // A flow from before the service was one doesn't stay either.
    let other = tcp_key((own.0, 40_001), (host, 7));
    world.connect(1, other, Some(client));
    let plain = world.topology.service("plain");
    world.topology.change(|snapshot| {
        snapshot.services.get_mut(&plain).unwrap().protocol = Protocol::Http;
    });
    world.apply();
    world.run(Duration::from_millis(100));
    assert_eq!(world.host(2).node.counters().flows_cut, 1);
}

#[test]
fn a_device_has_no_proxy_in_front_of_it() {
    let topology = Builder::new(2)
        .service_of(Protocol::Http, "api", 8080, &[2])
        .device("press", 1)
        .allow("device:press", "service:api")
        .build();
    let mut world = World::new(topology, 1);
    let press = (world.topology.device_address("press", true), 40_000);
    let vip = (world.topology.vip("api", true), 8080);
    world.device_send("press", &tcp(&tcp_key(press, vip), SYN, 100, 0, b""));
    world.run(Duration::from_millis(100));
    let arrived = world.host(2).take_inbox();
    let key = read(&arrived[0]).key;
    assert_eq!(key, tcp_key(press, (world.topology.workload("api", 2, true), 15_001)));
}

#[test]
fn a_connection_to_the_proxy_stands_while_its_service_stays_and_falls_with_its_rule() {
    let mut world = http_mesh(&[2]);
    let client = world.topology.service("client");
    let own = (world.topology.host_address(1, true), 40_000);
    let key = tcp_key(own, (world.topology.vip("api", true), 8080));
    world.connect(1, key, Some(client));
    world.topology.change(|snapshot| {
        let api = snapshot.services.values_mut().find(|it| it.name.as_str() == "api");
        api.expect("it is there").placements.clear();
    });
    world.apply();
    let got = world.exchange(1, &tcp(&key, ACK, 101, 501, b"GET"), 1);
    assert_eq!(payload(&got[0]), b"GET", "backends are the proxy's to choose");
    world.topology.change(|snapshot| snapshot.rules.rules.clear());
    world.apply();
    assert_eq!(world.host(1).node.counters().flows_cut, 1);
    assert_eq!(world.host(1).take_inbox().len(), 2, "both ends are told");
}

#[test]
fn sockets_that_look_alike_from_afar_get_their_own_answers() {
    let topology = Builder::new(2)
        .service("client", 9, &[1])
        .service("web", 80, &[2])
        .allow("service:client", "service:web")
        .build();
    let mut world = World::new(topology, 1);
    let client = world.topology.service("client");
    let web = (world.topology.workload("web", 2, true), 80);
    let plain = tcp_key((world.topology.host_address(1, true), 40_000), web);
    let bound = tcp_key((world.topology.workload("client", 1, true), 40_000), web);
    let (_, first) = world.connect(1, plain, Some(client));
    let (_, second) = world.connect(1, bound, Some(client));
    assert_eq!(first.source, second.source);
    assert_ne!(first.source_port, second.source_port);
    let got = world.exchange(2, &tcp(&first.reversed(), ACK, 501, 101, b"one"), 1);
    assert_eq!((read(&got[0]).key, payload(&got[0])), (plain.reversed(), &b"one"[..]));
    let got = world.exchange(2, &tcp(&second.reversed(), ACK, 501, 101, b"two"), 1);
    assert_eq!((read(&got[0]).key, payload(&got[0])), (bound.reversed(), &b"two"[..]));
}

#[test]
fn a_service_answers_pings_of_those_who_may_use_it() {
    let topology = Builder::new(2).service("web", 80, &[2]).allow("host:*", "service:web").build();
    let mut world = World::new(topology, 1);
    let (own, vip) = (world.topology.host_address(1, false), world.topology.vip("web", false));
    let got = world.exchange(1, &ping(own, vip, 7, 1), 2);
    let reply = crate::sim::packets::answer(&got[0], isthmus_packet::echo_reply);
    let got = world.exchange(2, &reply, 1);
    assert_eq!(read(&got[0]).key.source, vip.into());
}

#[test]
fn udp_answers_pass_and_questions_the_other_way_do_not() {
    let topology = Builder::new(2)
        .service_of(Protocol::Udp, "dns", 53, &[2])
        .allow("host:*", "service:dns")
        .build();
    let mut world = World::new(topology, 1);
    let dns = world.topology.service("dns");
    let client = (world.topology.host_address(1, true), 5000);
    let server = (world.topology.workload("dns", 2, true), 53);
    world.host(2).sockets.open(udp_key(server, client), dns);
    assert!(world.exchange(2, &udp(&udp_key(server, client), b"unasked"), 1).is_empty());
    assert_eq!(world.host(2).take_inbox().len(), 1, "told by ICMP");
    assert_eq!(world.exchange(1, &udp(&udp_key(client, server), b"question"), 2).len(), 1);
    assert_eq!(world.exchange(2, &udp(&udp_key(server, client), b"answer"), 1).len(), 1);
}

#[test]
fn a_connectionless_port_that_changes_hands_takes_no_rights_along() {
    let topology = Builder::new(2)
        .service("client", 9, &[1])
        .service_of(Protocol::Udp, "dns", 53, &[2])
        .allow("service:client", "service:dns")
        .build();
    let mut world = World::new(topology, 1);
    let client = world.topology.service("client");
    let key = udp_key(
        (world.topology.host_address(1, true), 5000),
        (world.topology.vip("dns", true), 53),
    );
    world.host(1).sockets.open(key, client);
    assert_eq!(world.exchange(1, &udp(&key, b"one"), 2).len(), 1);
    world.host(1).sockets.open_plain(key);
    assert!(world.exchange(1, &udp(&key, b"two"), 2).is_empty());
    assert_eq!(world.dropped(1, DropReason::Denied), 1);
}

#[test]
fn audit_lets_pass_and_tells() {
    let topology = Builder::new(2).service("web", 80, &[2]).audit().build();
    let mut world = World::new(topology, 1);
    let own = (world.topology.host_address(1, true), 40_000);
    let vip = (world.topology.vip("web", true), 80);
    world.connect(1, tcp_key(own, vip), None);
    let audited = |event: &crate::Event| matches!(event, crate::Event::Audited(_));
    assert_eq!(world.host(1).events.iter().filter(|event| audited(event)).count(), 1);
    assert_eq!(world.host(2).events.iter().filter(|event| audited(event)).count(), 1);
}

#[test]
fn verdicts_are_counted_by_rule() {
    let topology =
        Builder::new(2).service("web", 80, &[2]).allow("host:host-1", "service:web").build();
    let mut world = World::new(topology, 1);
    let own = world.topology.host_address(1, true);
    let vip = world.topology.vip("web", true);
    world.connect(1, tcp_key((own, 1), (vip, 80)), None);
    world.send(1, &tcp(&tcp_key((own, 2), (vip, 81)), SYN, 1, 0, b""));
    let count = |node: &Node, name: &str| {
        node.counters().verdicts().filter(|(rule, ..)| *rule == name).map(|(.., n)| n).sum::<u64>()
    };
    assert_eq!(count(&world.hosts[0].node, "host:host-1 to service:web"), 1);
    assert_eq!(count(&world.hosts[0].node, "default"), 1);
}

#[test]
fn a_connection_the_other_way_needs_a_rule_of_its_own_and_harms_none() {
    let topology = Builder::new(2)
        .service("client", 9, &[1])
        .service("web", 80, &[2])
        .allow("service:client", "service:web")
        .build();
    let mut world = World::new(topology, 1);
    let (client, web) = (world.topology.service("client"), world.topology.service("web"));
    let key = tcp_key(
        (world.topology.workload("client", 1, true), 40_000),
        (world.topology.workload("web", 2, true), 80),
    );
    let (_, seen) = world.connect(1, key, Some(client));
    world.host(2).sockets.open(seen.reversed(), web);
    assert!(world.exchange(2, &tcp(&seen.reversed(), SYN, 1, 0, b""), 1).is_empty());
    world.host(2).take_inbox();
    world.forge(2, 1, &tcp(&seen.reversed(), SYN, 1, 0, b""));
    world.run(Duration::from_millis(100));
    assert!(world.host(1).take_inbox().is_empty());
    let got = world.exchange(2, &tcp(&seen.reversed(), SYN_ACK, 500, 101, b""), 1);
    assert_eq!(got.len(), 1, "the flow lives");
}

#[test]
fn a_server_that_answers_from_its_hosts_address_is_understood() {
    for v4 in [true, false] {
        let topology = Builder::new(2)
            .service_of(Protocol::Udp, "dns", 53, &[2])
            .service_of(Protocol::Udp, "other", 53, &[2])
            .allow("host:*", "service:dns")
            .build();
        let mut world = World::new(topology, 1);
        let dns = world.topology.service("dns");
        let client = (world.topology.host_address(1, v4), 5000);
        let server = (world.topology.vip("dns", v4), 53);
        assert_eq!(world.exchange(1, &udp(&udp_key(client, server), b"question"), 2).len(), 1);
        let answer = udp_key((world.topology.host_address(2, v4), 53), client);
        world.host(2).sockets.open(answer, dns);
        let got = world.exchange(2, &udp(&answer, b"answer"), 1);
        assert_eq!(read(&got[0]).key, udp_key(server, client));
        // A large one comes in fragments, of which only the first has ports.
        let large = udp(&answer, &[7; 2000]);
        let parts = if v4 { fragments(&large, 1420) } else { fragments_ipv6(&large, 1420) };
        assert!(parts.len() > 1);
        for part in &parts {
            let got = world.exchange(2, part, 1);
            let key = isthmus_packet::Headers::parse(&got[0]).unwrap().key;
            assert_eq!((key.source, key.destination), (server.0.into(), client.0.into()));
        }
        let other = world.topology.service("other");
        world.host(2).sockets.open(answer, other);
        assert!(world.exchange(2, &udp(&answer, b"mine"), 1).is_empty());
    }
}

#[test]
fn a_denial_is_told_once_though_it_is_retried() {
    let mut world = World::new(Builder::new(2).service("web", 80, &[2]).build(), 1);
    let own = (world.topology.host_address(1, true), 40_000);
    let key = tcp_key(own, (world.topology.vip("web", true), 80));
    for _ in 0..5 {
        world.send(1, &tcp(&key, SYN, 1, 0, b""));
    }
    let told = world.host(1).events.iter();
    assert_eq!(told.filter(|event| matches!(event, crate::Event::Denied(_))).count(), 1);
    assert_eq!(world.dropped(1, DropReason::Denied), 5);
}

#[test]
fn a_socket_that_is_gone_does_not_speak_as_the_host() {
    let topology = Builder::new(2)
        .service_of(Protocol::Udp, "dns", 53, &[2])
        .allow("host:*", "service:dns")
        .build();
    let mut world = World::new(topology, 1);
    let own = world.topology.host_address(1, true);
    let asked = udp_key((own, 5000), (world.topology.vip("dns", true), 53));
    world.host(1).sockets.close(asked);
    world.send(1, &udp(&asked, b"who was that?"));
    assert_eq!(world.host(1).node.counters().dropped(DropReason::NotOwner), 1);
    assert!(world.host(2).kernel.inbox.is_empty());
}
