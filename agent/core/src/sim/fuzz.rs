//! A whole node's life from bytes: what no input may make panic or grow.

use std::net::SocketAddr;
use std::time::Duration;

use isthmus_model::{Place, Principal, Protocol};
use isthmus_packet::{FragmentLimits, Headers, Transport, checksum};

use super::topology::{Builder, endpoint};
use super::world::World;
use crate::{Limits, Node};

/// Bounds that a short input can reach.
const LIMITS: Limits =
    Limits { flows: 64, half_open: 16, transmit_bytes: 1 << 20, tun_packets: 256 };

/// Plays a sequence of events that the bytes describe, on a mesh of three hosts and a device.
///
/// # Panics
///
/// If a node panics, or outgrows its limits.
pub fn fuzz_sequence(bytes: &[u8]) {
    let mut world = world();
    let mut input = Input(bytes);
    while let Some(action) = input.byte() {
        step(&mut world, action, &mut input);
        for host in &mut world.hosts {
            stays_within_limits(&host.node);
            let node = &host.node;
            host.kernel.inbox.drain(..).for_each(|packet| is_the_kernels_business(node, &packet));
            host.events.clear();
        }
        world.devices.iter_mut().for_each(|device| device.inbox.clear());
    }
}

fn stays_within_limits(node: &Node) {
    assert!(node.flow_count() <= LIMITS.flows, "flows outgrew their limit");
    let fragments = FragmentLimits::default().datagrams as usize;
    assert!(node.forward.fragments.len() <= fragments, "fragments outgrew their limit");
}

/// Whatever a kernel is given can be read, is for an address of this host or for its proxy, and comes from one that
/// the mesh knows: nothing forged, and nothing from or for the world outside.
fn is_the_kernels_business(node: &Node, packet: &[u8]) {
    let headers = Headers::parse(packet).expect("a kernel is given what can be read");
    assert_eq!(headers.total_length, packet.len());
    let (source, destination) = (headers.key.source.ip(), headers.key.destination.ip());
    let snapshot = &node.forward.judge.state.snapshot;
    let is_local = snapshot.local_addresses().any(|address| address == destination);
    let is_proxys =
        matches!(node.forward.judge.state.directory.place(destination), Some(Place::Virtual(_)))
            && (headers.key.destination_port == node.forward.judge.proxy_port
                || matches!(headers.transport, Transport::IcmpError { .. }));
    assert!(is_local || is_proxys, "host {:?} was given {:?}", snapshot.local, headers.key);
    assert!(
        node.forward.judge.state.directory.place(source).is_some(),
        "{source} is nobody of the mesh"
    );
}

fn world() -> World {
    let topology = Builder::new(3)
        .service("client", 9, &[1, 3])
        .service("web", 80, &[2, 3])
        .service_of(Protocol::Http, "api", 8080, &[1, 2])
        .service_of(Protocol::Udp, "dns", 53, &[2])
        .device("press", 1)
        .allow("service:client", "service:*")
        .allow("device:press", "service:web")
        .allow("host:*", "service:dns")
        .build();
    let mut world = World::new(topology, 1);
    let (topology, now) = (world.topology.clone(), world.now);
    for host in &mut world.hosts {
        host.restart_with(&topology, LIMITS, now);
    }
    world
}

fn step(world: &mut World, action: u8, input: &mut Input<'_>) {
    let host = u32::from(input.byte().unwrap_or_default()) % 3 + 1;
    match action % 11 {
        0 => {
            let datagram = input.chunk();
            let from = endpoint(u32::from(input.byte().unwrap_or_default()), false);
            world.inject(from, host, datagram);
        }
        1 => {
            let packet = input.chunk();
            world.send(host, packet);
        }
        2 => {
            let packet = packet(world, input);
            open_socket(world, host, &packet);
            world.send(host, &packet);
        }
        3 => {
            let packet = packet(world, input);
            world.send(host, &packet);
        }
        4 => {
            let packet = packet(world, input);
            world.device_send("press", &packet);
        }
        5 => world.run(Duration::from_millis(u64::from(input.word()))),
        6 => {
            let flip = input.byte().unwrap_or_default();
            world.topology.change(|snapshot| {
                let rules = &mut snapshot.rules;
                rules.audit = flip & 1 != 0;
                let count = rules.rules.len().max(1);
                rules.rules.rotate_left(usize::from(flip) % count);
            });
            world.apply_to(host);
        }
        7 => {
            let (topology, now) = (world.topology.clone(), world.now);
            world.host(host).restart_with(&topology, LIMITS, now);
        }
        8 => {
            let moved = SocketAddr::new(endpoint(host, false).ip(), input.word().max(1));
            world.host(host).endpoint = moved;
        }
        9 => {
            let packet = packet(world, input);
            world.forge(host, host % 3 + 1, &packet);
        }
        _ => {
            let target = addresses(world, input).1;
            world.ping(host, target, input.word(), 1);
            world.run(Duration::from_millis(20));
        }
    }
}

/// The socket that a packet comes from: whose it is follows from the address.
fn open_socket(world: &mut World, host: u32, packet: &[u8]) {
    let Ok(headers) = Headers::parse(packet) else { return };
    let host = world.host(host);
    let source = host.node.forward.judge.state.directory.place(headers.key.source.ip());
    match source.map(|place| place.principal(host.id)) {
        Some(Principal::Service(service)) => host.sockets.open(headers.key, service),
        Some(Principal::Host(_) | Principal::Device(_)) | None => {
            host.sockets.open_plain(headers.key);
        }
    }
}

/// A packet between addresses that mean something, the rest of it from the input, often with right
/// checksums and lengths: else nothing would get past the parser.
fn packet(world: &World, input: &mut Input<'_>) -> Vec<u8> {
    let (source, destination) = addresses(world, input);
    let protocol = [6, 6, 17, 1, 58, 132][usize::from(input.byte().unwrap_or_default()) % 6];
    let body = input.chunk();
    let mut packet = match (source, destination) {
        (std::net::IpAddr::V4(source), std::net::IpAddr::V4(destination)) => {
            let mut packet = vec![0x45, 0];
            packet.extend((body.len() as u16 + 20).to_be_bytes());
            packet.extend(input.word().to_be_bytes());
            packet.extend((input.word() & 0x7fff).to_be_bytes());
            packet.extend([64, protocol, 0, 0]);
            packet.extend(source.octets());
            packet.extend(destination.octets());
            packet
        }
        (std::net::IpAddr::V6(source), std::net::IpAddr::V6(destination)) => {
            let mut packet = vec![0x60, 0, 0, 0];
            packet.extend((body.len() as u16).to_be_bytes());
            packet.extend([protocol, 64]);
            packet.extend(source.octets());
            packet.extend(destination.octets());
            packet
        }
        _ => Vec::new(),
    };
    packet.extend(body);
    if let Ok(headers) = Headers::parse(&packet) {
        checksum::fill(&mut packet, &headers);
    }
    packet
}

fn addresses(world: &World, input: &mut Input<'_>) -> (std::net::IpAddr, std::net::IpAddr) {
    let v4 = input.byte().unwrap_or_default() & 1 == 0;
    let topology = &world.topology;
    let all = [
        topology.host_address(1, v4),
        topology.host_address(2, v4),
        topology.host_address(3, v4),
        topology.workload("client", 1, v4),
        topology.workload("web", 2, v4),
        topology.workload("web", 3, v4),
        topology.workload("api", 1, v4),
        topology.vip("web", v4),
        topology.vip("api", v4),
        topology.vip("dns", v4),
        topology.device_address("press", v4),
    ];
    let mut pick = || all[usize::from(input.byte().unwrap_or_default()) % all.len()];
    (pick(), pick())
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn word(&mut self) -> u16 {
        u16::from_be_bytes([self.byte().unwrap_or_default(), self.byte().unwrap_or_default()])
    }

    fn chunk(&mut self) -> &'a [u8] {
        let length = usize::from(self.byte().unwrap_or_default()).min(self.0.len());
        let (chunk, rest) = self.0.split_at(length);
        self.0 = rest;
        chunk
    }
}
