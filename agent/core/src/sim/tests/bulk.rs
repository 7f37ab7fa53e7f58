//! Bulk sessions between agents, and packets that stand for many.

use std::time::Duration;

use isthmus_model::Protocol;
use isthmus_packet::{Offload, checksum};

use crate::sim::packets::{ACK, flags, ping, read, tcp, tcp_key, udp, udp_key};
use crate::sim::{Builder, World};
use crate::{Cipher, Ciphers, DropReason, PeerName};

fn mesh() -> World {
    let topology = Builder::new(2)
        .service("web", 80, &[2])
        .service_of(Protocol::Udp, "log", 514, &[2])
        .allow("host:*", "service:*")
        .build();
    World::new(topology, 1)
}

/// Makes the tunnel, and lets both sides agree.
fn settle(world: &mut World) {
    let (one, two) = (world.topology.host_address(1, true), world.topology.host_address(2, true));
    world.send(1, &ping(one, two, 1, 1));
    world.run(Duration::from_secs(3));
    world.host(2).take_inbox();
}

fn cipher(world: &mut World, from: u32) -> Option<Cipher> {
    let now = world.now;
    let to = isthmus_model::HostId(3 - from);
    let peers = world.host(from).node.peers(now);
    peers.iter().find(|peer| peer.peer == PeerName::Host(to)).and_then(|peer| peer.bulk)
}

/// A super-packet of a TCP connection, as the kernel gives it.
fn data(world: &mut World, key: &isthmus_packet::FlowKey, sequence: u32, payload: &[u8]) {
    let mut packet = tcp(key, ACK, sequence, 501, payload);
    let headers = read(&packet);
    let offload =
        Offload { checksum_start: u16::try_from(headers.l4_offset).ok(), segment: Some(1000) };
    world.send_unfinished(1, offload, &mut packet);
    world.run(Duration::from_millis(100));
}

#[test]
fn agents_agree_on_bulk_sessions_and_packets_pass_by_them() {
    let mut world = mesh();
    settle(&mut world);
    for host in [1, 2] {
        assert_eq!(cipher(&mut world, host), Some(Cipher::ChaCha20Poly1305), "host {host}");
    }
    let client = tcp_key(
        (world.topology.host_address(1, true), 4000),
        (world.topology.vip("web", true), 80),
    );
    world.connect(1, client, None);
}

#[test]
fn a_super_packet_arrives_as_the_packets_it_stands_for() {
    for v4 in [true, false] {
        let mut world = mesh();
        settle(&mut world);
        let client = tcp_key(
            (world.topology.host_address(1, v4), 4000),
            (world.topology.vip("web", v4), 80),
        );
        let (_, seen) = world.connect(1, client, None);
        let payload: Vec<u8> = (0..20_500u32).map(|at| at as u8).collect();
        data(&mut world, &client, 101, &payload);
        let got = world.host(2).take_inbox();
        assert_eq!(got.len(), 21);
        let mut arrived = Vec::new();
        for packet in &got {
            let headers = read(packet);
            assert_eq!(headers.key, seen);
            assert!(checksum::verify(packet, &headers));
            arrived.extend_from_slice(headers.payload(packet));
        }
        assert_eq!(arrived, payload);
        let now = world.now;
        let flows = world.host(1).node.flows(10, now);
        let flow = flows.iter().find(|flow| flow.layer4 == isthmus_model::Layer4::Tcp(80));
        assert_eq!(flow.map(|flow| flow.forward.0), Some(2 + 21), "each is counted");
    }
}

#[test]
fn a_super_packet_of_a_denied_flow_is_refused() {
    let mut world = mesh();
    settle(&mut world);
    let client = tcp_key(
        (world.topology.host_address(1, true), 4000),
        (world.topology.host_address(2, true), 22),
    );
    data(&mut world, &client, 101, &[7; 5000]);
    assert_eq!(world.host(2).take_inbox().len(), 0);
    let refused = world.host(1).take_inbox();
    assert!(refused.iter().all(|packet| flags(packet) & 4 != 0), "RST");
    assert!(!refused.is_empty());
}

#[test]
fn segments_beyond_the_path_are_answered_not_sent() {
    let mut world = mesh();
    world.network.link.mtu = 1280;
    settle(&mut world);
    let client = tcp_key(
        (world.topology.host_address(1, true), 4000),
        (world.topology.vip("web", true), 80),
    );
    world.connect(1, client, None);
    let mut packet = tcp(&client, ACK, 101, 501, &[7; 5000]);
    packet[6] |= 0x40;
    let headers = read(&packet);
    checksum::fill(&mut packet, &headers);
    let offload =
        Offload { checksum_start: u16::try_from(headers.l4_offset).ok(), segment: Some(1380) };
    world.send_unfinished(1, offload, &mut packet);
    world.run(Duration::from_millis(100));
    assert_eq!(world.dropped(1, DropReason::TooBig), 4);
    assert_eq!(world.host(1).take_inbox().len(), 1, "the sender is told once");
}

#[test]
fn a_restarted_host_is_heard_again_at_once() {
    let mut world = mesh();
    settle(&mut world);
    world.restart(2);
    let key =
        udp_key((world.topology.host_address(1, true), 9), (world.topology.vip("log", true), 514));
    world.send(1, &udp(&key, b"lost: sealed for its former life"));
    world.run(Duration::from_secs(2));
    world.host(2).take_inbox();
    let got = world.exchange(1, &udp(&key, b"arrives"), 2);
    assert_eq!(got.len(), 1);
    assert_eq!(cipher(&mut world, 1), Some(Cipher::ChaCha20Poly1305));
}

#[test]
fn replayed_and_changed_bulk_packets_go_nowhere() {
    let mut world = mesh();
    settle(&mut world);
    let key =
        udp_key((world.topology.host_address(1, true), 9), (world.topology.vip("log", true), 514));
    assert_eq!(world.exchange(1, &udp(&key, b"first"), 2).len(), 1);
    let now = world.now;
    let host = world.host(1);
    host.give(Offload::NONE, &mut udp(&key, b"second"), now);
    let datagram = host.node.poll_transmit().map(|transmit| transmit.contents.to_vec()).unwrap();
    assert_eq!(datagram[0], 0x40, "a bulk packet");
    let from = host.endpoint;
    let mut changed = datagram.clone();
    *changed.last_mut().unwrap() ^= 1;
    for (bytes, arrives) in [(&changed, 0), (&datagram, 1), (&datagram, 0)] {
        world.inject(from, 2, bytes);
        assert_eq!(world.host(2).take_inbox().len(), arrives);
    }
    assert_eq!(world.dropped(2, DropReason::Unauthentic), 2);
}

#[test]
fn a_rekey_by_time_loses_nothing() {
    let mut world = mesh();
    settle(&mut world);
    let key =
        udp_key((world.topology.host_address(1, true), 9), (world.topology.vip("log", true), 514));
    let before = world.host(1).node.counters().handshakes_initiated
        + world.host(2).node.counters().handshakes_initiated;
    for second in 0..150u32 {
        let got = world.exchange(1, &udp(&key, &second.to_be_bytes()), 2);
        assert_eq!(got.len(), 1, "second {second}");
        world.run(Duration::from_millis(900));
    }
    let after = world.host(1).node.counters().handshakes_initiated
        + world.host(2).node.counters().handshakes_initiated;
    assert!(after > before, "boringtun doesn't see this traffic: we rekey");
    assert_eq!(cipher(&mut world, 1), Some(Cipher::ChaCha20Poly1305));
}

/// Result of a UDP socket with GRO: everything sent at once is one message.
fn deliver_as_sent(world: &mut World, host: u32) {
    let from = world.host(host).endpoint;
    let now = world.now;
    let mut sent = Vec::new();
    while let Some(transmit) = world.host(host).node.poll_transmit() {
        let size = transmit.segment_size.unwrap_or(transmit.contents.len());
        sent.push((transmit.contents.to_vec(), size));
    }
    for (mut message, size) in sent {
        world.host(3 - host).receive(from, &mut message, size, now);
    }
}

#[test]
fn what_comes_as_one_message_is_written_as_one_frame() {
    for (v4, bulk) in [(true, true), (false, true), (true, false)] {
        let mut world = mesh();
        for host in [1, 2] {
            let ciphers = world.host(host).node.forward.tunnels.offering.ciphers;
            world.host(host).node.forward.tunnels.offering.ciphers =
                if bulk { ciphers } else { Ciphers::NONE };
        }
        settle(&mut world);
        assert_eq!(cipher(&mut world, 1).is_some(), bulk);
        let (own, vip) = (world.topology.host_address(1, v4), world.topology.vip("web", v4));
        let client = tcp_key((own, 4000), (vip, 80));
        let (_, seen) = world.connect(1, client, None);
        assert_eq!(world.host(2).kernel.super_packets, 0);
        let payload: Vec<u8> = (0..20_500u32).map(|at| at as u8).collect();
        let mut packet = tcp(&client, ACK, 101, 501, &payload);
        let start = u16::try_from(read(&packet).l4_offset).ok();
        let offload = Offload { checksum_start: start, segment: Some(1000) };
        let now = world.now;
        let host = world.host(1);
        host.give(offload, &mut packet, now);
        deliver_as_sent(&mut world, 1);
        let kernel = &world.host(2).kernel;
        assert_eq!((kernel.super_packets, kernel.inbox.len()), (1, 21), "{v4} {bulk}");
        let mut arrived = Vec::new();
        for packet in world.host(2).take_inbox() {
            let headers = read(&packet);
            assert_eq!(headers.key, seen);
            assert!(checksum::verify(&packet, &headers));
            arrived.extend_from_slice(headers.payload(&packet));
        }
        assert_eq!(arrived, payload);
        let flows = world.host(2).node.flows(10, now);
        let flow = flows.iter().find(|flow| flow.layer4 == isthmus_model::Layer4::Tcp(80));
        assert_eq!(flow.map(|flow| flow.forward.0), Some(2 + 21), "each is counted");
    }
}
