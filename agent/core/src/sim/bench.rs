//! One step of a packet's way at a time, for benchmarks: a node's inner calls that they measure are
//! called here and nowhere else.
//!
//! What is measured isn't inlined into a benchmark: its instructions would change with the benchmark's.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use isthmus_model::{HostId, ServiceId};
use isthmus_packet::{FlowKey, Headers, Offload, Rewrite, Run, SuperPacket};

use super::packets::{ACK, SYN, SYN_ACK, ping, tcp, tcp_key};
use super::{Builder, Kernel, Topology, World};
use crate::flows::Load;
use crate::forward::Passage;
use crate::types::Interface;
use crate::types::random::mix;
use crate::{CompiledSnapshot, Limits, Node, Owner, Owners, PeerName};

/// The host that the flows lead to.
const THERE: PeerName = PeerName::Host(HostId(2));
/// A service's port.
const PORT: u16 = 80;
/// Ports below aren't a client's.
const FIRST_PORT: usize = 1024;
/// Connections go to so many services: one alone has no more than a client has ports.
const TARGETS: usize = 16;
/// So many services have clients' rules, and as many have none.
const SERVERS: usize = 100;
const CLIENTS: usize = 1000;

/// A host with established TCP connections to services of another.
#[derive(Debug)]
pub struct Established {
    node: Node,
    now: Instant,
    client: IpAddr,
    targets: Vec<IpAddr>,
}

impl Established {
    /// A host with so many of them.
    ///
    /// # Panics
    ///
    /// If one isn't let through, or there are more than there are ports.
    pub fn new(connections: usize) -> Self {
        let names: Vec<String> = (0..TARGETS).map(|n| format!("s{n}")).collect();
        let builder = names.iter().fold(Builder::new(2), |it, name| it.service(name, PORT, &[2]));
        let topology = builder.allow("host:*", "service:*").build();
        let client = topology.host_address(1, true);
        let targets = names.iter().map(|name| topology.vip(name, true)).collect();
        let (node, now) = settled(topology, connections);
        let mut this = Self { node, now, client, targets };
        (0..connections).for_each(|index| this.connect(index));
        this
    }

    /// A packet of a connection, as the client sends it.
    pub fn packet(&self, connection: usize) -> Vec<u8> {
        tcp(&self.key(connection), ACK, 101, 501, &[7; 100])
    }

    fn key(&self, connection: usize) -> FlowKey {
        let (target, port) = (connection % TARGETS, FIRST_PORT + connection / TARGETS);
        let port = u16::try_from(port).expect("no more connections than ports");
        tcp_key((self.client, port), (self.targets[target], PORT))
    }

    fn connect(&mut self, connection: usize) {
        let key = self.key(connection);
        handle(&mut self.node, &mut Told(Owner::Host), &mut tcp(&key, SYN, 100, 0, b""), self.now);
        let seen = self.look_up(&headers(&self.packet(connection))).expect("a flow");
        let answer = seen.key_after(&headers(&self.packet(connection))).reversed();
        for (port, packet) in [
            (Interface::Peer(THERE), tcp(&answer, SYN_ACK, 500, 101, b"")),
            (Interface::Tun, self.packet(connection)),
        ] {
            self.note_by(port, &packet, &headers(&packet)).expect("a flow");
        }
    }

    /// Finds a packet's flow and its verdict.
    #[inline(never)]
    pub fn look_up(&mut self, headers: &Headers) -> Option<Rewrite> {
        self.passage(Interface::Tun, headers).map(|passage| passage.rewrite)
    }

    /// Finds a packet's flow and its verdict, and counts the packet.
    #[inline(never)]
    pub fn note(&mut self, packet: &[u8], headers: &Headers) -> Option<Rewrite> {
        self.note_by(Interface::Tun, packet, headers)
    }

    #[inline]
    fn note_by(&mut self, port: Interface, packet: &[u8], headers: &Headers) -> Option<Rewrite> {
        let passage = self.passage(port, headers)?;
        let load = Load { packets: 1, bytes: headers.total_length };
        self.node.forward.note(passage.flow, passage.leg, packet, headers, load, self.now);
        Some(passage.rewrite)
    }

    #[inline]
    fn passage(&mut self, port: Interface, headers: &Headers) -> Option<Passage> {
        self.node.forward.passage(port, headers, &mut Told(Owner::Host), self.now)
    }
}

/// A host in a mesh with many rules between services.
#[derive(Debug)]
pub struct Ruled {
    node: Node,
    now: Instant,
    rules: usize,
    client: IpAddr,
    clients: Vec<ServiceId>,
    servers: Vec<IpAddr>,
}

/// First packet of a flow, and its owner.
#[derive(Clone, Debug)]
pub struct First {
    owner: Owner,
    packet: Vec<u8>,
}

impl Ruled {
    /// A host in a mesh with so many rules, of two services each.
    ///
    /// # Panics
    ///
    /// If there are more than 100,000.
    pub fn new(rules: usize) -> Self {
        assert!(rules <= CLIENTS * SERVERS, "there are no services for {rules} rules");
        let clients: Vec<String> = (0..CLIENTS.min(rules)).map(|n| format!("c{n}")).collect();
        let servers: Vec<String> = (0..2 * SERVERS).map(|n| format!("s{n}")).collect();
        let builder = Builder::new(2);
        let builder = clients.iter().fold(builder, |it, name| it.service(name, 9, &[1]));
        let builder = servers.iter().fold(builder, |it, name| it.service(name, PORT, &[2]));
        let topology = (0..rules)
            .map(|rule| (&clients[rule % CLIENTS], &servers[rule / CLIENTS]))
            .fold(builder, |it, (from, to)| {
                it.allow(&format!("service:{from}"), &format!("service:{to}"))
            })
            .build();
        let client = topology.host_address(1, false);
        let clients = clients.iter().map(|name| topology.service(name)).collect();
        let servers = servers.iter().map(|name| topology.vip(name, false)).collect();
        let (node, now) = settled(topology, Limits::default().flows);
        Self { node, now, rules, client, clients, servers }
    }

    /// The first packet of a flow: one that some rule allows, or one that none is about.
    pub fn first(&self, flow: usize, is_allowed: bool) -> First {
        let rule = mix([flow as u64]) as usize % self.rules;
        let server = rule / CLIENTS + if is_allowed { 0 } else { SERVERS };
        let port = (FIRST_PORT + flow % (usize::from(u16::MAX) - FIRST_PORT)) as u16;
        let key = tcp_key((self.client, port), (self.servers[server], PORT));
        let owner = Owner::Service(self.clients[rule % CLIENTS]);
        First { owner, packet: tcp(&key, SYN, 100, 0, b"") }
    }

    /// Takes it, all the way to the tunnel, or refuses it.
    pub fn handle(&mut self, first: &mut First) {
        handle(&mut self.node, &mut Told(first.owner), &mut first.packet, self.now);
    }
}

/// Rewrites a packet.
#[inline(never)]
pub fn rewrite(rewrite: &Rewrite, packet: &mut [u8], headers: &Headers) {
    rewrite.apply(packet, headers);
}

/// Splits a super-packet, each segment over the one before. Returns how many there were.
#[inline(never)]
pub fn split(packet: &[u8], headers: &Headers, segment: u16, out: &mut [u8]) -> usize {
    let Ok(whole) = SuperPacket::new(packet, headers, segment) else { return 0 };
    (0..whole.count()).filter(|index| whole.write(*index, out).is_some()).count()
}

/// Puts packets together that follow each other. Returns of how many the run is.
#[inline(never)]
pub fn coalesce(packets: &[Vec<u8>]) -> Option<usize> {
    let (first, rest) = packets.split_first()?;
    let headers = Headers::parse(first).ok()?;
    let mut run = Run::begin(first, &headers, false)?;
    for next in rest {
        let headers = Headers::parse(next).ok()?;
        if !run.join(first, next, &headers, false) {
            break;
        }
    }
    run.header(first, &headers).map(|_| run.count())
}

/// The owner of every socket, told at once.
struct Told(Owner);

impl Owners for Told {
    fn owner(&mut self, _: &FlowKey, _: &CompiledSnapshot) -> Owner {
        self.0
    }
}

/// The first host of two, with a tunnel to the other.
fn settled(topology: Topology, flows: usize) -> (Node, Instant) {
    let mut world = World::new(topology, 1);
    let (topology, now) = (world.topology.clone(), world.now);
    let room = flows.max(Limits::default().flows);
    let limits = Limits { flows: room, half_open: room, ..Limits::default() };
    world.host(1).restart_with(&topology, limits, now);
    let (here, there) = (topology.host_address(1, false), topology.host_address(2, false));
    world.send(1, &ping(here, there, 1, 1));
    world.run(Duration::from_secs(3));
    (world.hosts.swap_remove(0).node, world.now)
}

/// Gives the node a packet, and takes what it makes of it.
fn handle(node: &mut Node, owners: &mut dyn Owners, packet: &mut [u8], now: Instant) {
    node.handle_tun(Offload::NONE, packet, owners, &mut Kernel::default(), now);
    while node.poll_transmit().is_some() {}
    while node.poll_tun().is_some() {}
    while node.poll_event().is_some() {}
}

fn headers(packet: &[u8]) -> Headers {
    Headers::parse(packet).expect("a packet")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FlowState;
    use isthmus_policy::Outcome;

    #[test]
    fn connections_are_established_and_found() {
        let mut bench = Established::new(100);
        let flows = bench.node.flows(1000, bench.now);
        let tcp = flows.iter().filter(|flow| flow.original.protocol == 6);
        assert_eq!(tcp.filter(|flow| flow.state == FlowState::Established).count(), 100);
        let packet = bench.packet(99);
        assert!(bench.note(&packet, &headers(&packet)).is_some_and(|it| !it.is_identity()));
    }

    #[test]
    fn first_packets_are_allowed_or_fall_to_the_default() {
        for rules in [10, 2000] {
            for (is_allowed, outcome) in [(true, Outcome::Allow), (false, Outcome::Deny)] {
                let mut bench = Ruled::new(rules);
                let before = bench.node.counters().sent.packets;
                (0..100).for_each(|flow| bench.handle(&mut bench.first(flow, is_allowed)));
                let flows = bench.node.flows(1000, bench.now);
                let tcp = flows.iter().filter(|flow| flow.original.protocol == 6);
                assert_eq!(tcp.filter(|flow| flow.outcome == outcome).count(), 100);
                let sent = bench.node.counters().sent.packets - before;
                assert_eq!(sent, if is_allowed { 100 } else { 0 });
            }
        }
    }
}
