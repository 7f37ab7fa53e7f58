//! A host: its node, its sockets as far as the node asks about them, and what its kernel was given.

use std::collections::HashMap;
use std::io::IoSlice;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use isthmus_model::{HostId, ServiceId};
use isthmus_packet::{FlowKey, Headers, Offload, SuperPacket, Transport};
use zeroize::Zeroizing;

use super::topology::{Topology, host_key};
use crate::{CompiledSnapshot, Config, Event, Limits, Node, Owner, Owners, Received, TunWriter};

/// The sockets of a host.
#[derive(Clone, Debug, Default)]
pub struct Sockets {
    connected: HashMap<FlowKey, Owner>,
    /// Containers that the host forwards for.
    pub behind: HashMap<IpAddr, Owner>,
    /// Number of look-ups by the node.
    pub asked: usize,
    /// Number of packets that it has refused.
    pub refused: usize,
    changes: u32,
}

impl Sockets {
    /// A socket with this flow belongs to a service.
    pub fn open(&mut self, flow: FlowKey, service: ServiceId) {
        self.set(flow, Owner::Service(service));
    }

    /// A socket with this flow belongs to a process that matches no service.
    pub fn open_plain(&mut self, flow: FlowKey) {
        self.set(flow, Owner::Host);
    }

    fn set(&mut self, flow: FlowKey, owner: Owner) {
        self.connected.insert(flow, owner);
        self.changes += 1;
    }

    /// Whoever opens a flow has a socket; a test that doesn't say whose means no service's.
    pub(super) fn sends(&mut self, packet: &[u8]) {
        let Ok(headers) = Headers::parse(packet) else { return };
        let opens = match headers.transport {
            Transport::Tcp { flags } => flags.opens(),
            Transport::Udp => true,
            Transport::UdpLite
            | Transport::Sctp
            | Transport::EchoRequest { .. }
            | Transport::EchoReply { .. }
            | Transport::IcmpError { .. }
            | Transport::Icmp { .. }
            | Transport::Other
            | Transport::LaterFragment => false,
        };
        if opens {
            self.connected.entry(headers.key).or_insert(Owner::Host);
        }
    }

    /// The socket is gone.
    pub fn close(&mut self, flow: FlowKey) {
        self.set(flow, Owner::Unknown);
    }
}

impl Owners for Sockets {
    fn owner(&mut self, flow: &FlowKey, _: &CompiledSnapshot) -> Owner {
        self.asked += 1;
        self.connected.get(flow).copied().unwrap_or(Owner::Unknown)
    }

    fn behind(&mut self, source: IpAddr, _: &CompiledSnapshot) -> Owner {
        self.behind.get(&source).copied().unwrap_or(Owner::Unknown)
    }

    fn changes(&self, _: &FlowKey) -> u32 {
        self.changes
    }

    fn refused(&mut self, _: &FlowKey) {
        self.refused += 1;
    }
}

/// Packets delivered to a host's kernel.
#[derive(Clone, Debug, Default)]
pub struct Kernel {
    /// Packets that nobody has looked at.
    pub inbox: Vec<Vec<u8>>,
    /// Frames that stood for many packets.
    pub super_packets: usize,
}

impl TunWriter for Kernel {
    fn write(&mut self, frame: &[IoSlice<'_>]) {
        let mut frame: Vec<u8> = frame.iter().flat_map(|piece| piece.iter().copied()).collect();
        // INVARIANT: the node's own frames.
        let (offload, packet) = Offload::read(&mut frame).expect("a vnet header");
        if offload == Offload::NONE {
            return self.inbox.push(packet.to_vec());
        }
        let headers = Headers::parse(packet).expect("a packet");
        assert_eq!(offload.checksum_start.map(usize::from), Some(headers.l4_offset));
        let Some(segment) = offload.segment else {
            offload.complete(packet, &headers).expect("a checksum to complete");
            return self.inbox.push(packet.to_vec());
        };
        let whole = SuperPacket::new(packet, &headers, segment).expect("a super-packet");
        self.super_packets += 1;
        for index in 0..whole.count() {
            let mut one = vec![0; whole.length(index)];
            whole.write(index, &mut one).expect("it has the room that it asked for");
            self.inbox.push(one);
        }
    }
}

/// A host.
#[derive(Debug)]
pub struct Host {
    /// Its number.
    pub id: HostId,
    /// Its end of the mesh.
    pub node: Node,
    /// Its sockets.
    pub sockets: Sockets,
    /// Source address of its datagrams.
    pub endpoint: SocketAddr,
    /// Source address for the other address family, if it has one.
    pub other_endpoint: Option<SocketAddr>,
    /// Packets delivered to its kernel.
    pub kernel: Kernel,
    /// Events of its node.
    pub events: Vec<Event>,
    lives: u64,
}

/// Addresses of a host.
#[derive(Clone, Copy, Debug)]
pub struct Places {
    endpoint: SocketAddr,
    other: Option<SocketAddr>,
}

impl Places {
    /// Whether what is sent there gets to the host.
    pub fn contain(self, endpoint: SocketAddr) -> bool {
        self.endpoint == endpoint || self.other == Some(endpoint)
    }

    /// Source address of a datagram to that destination.
    pub fn source(self, to: SocketAddr) -> SocketAddr {
        self.other.filter(|other| other.is_ipv4() == to.is_ipv4()).unwrap_or(self.endpoint)
    }
}

impl Host {
    /// A host that knows the whole topology.
    pub fn new(topology: &Topology, id: u32, endpoint: SocketAddr, now: Instant) -> Self {
        Self {
            id: HostId(id),
            node: node(topology, id, 0, Limits::default(), now),
            sockets: Sockets::default(),
            endpoint,
            other_endpoint: None,
            kernel: Kernel::default(),
            events: Vec::new(),
            lives: 1,
        }
    }

    /// `kill -9` and start: sockets stay, the node's memory doesn't.
    pub fn restart(&mut self, topology: &Topology, now: Instant) {
        self.restart_with(topology, Limits::default(), now);
    }

    /// As [`restart`](Self::restart), with other limits.
    pub fn restart_with(&mut self, topology: &Topology, limits: Limits, now: Instant) {
        self.node = node(topology, self.id.0, self.lives, limits, now);
        self.lives += 1;
    }

    /// A message of the tunnel port: datagrams of this size in a row.
    pub fn receive(&mut self, from: SocketAddr, message: &mut [u8], size: usize, now: Instant) {
        let received = Received { from, contents: message, segment_size: size };
        self.node.handle_udp(received, &mut self.sockets, &mut self.kernel, now);
    }

    /// A packet that its kernel gives to its TUN device.
    pub fn give(&mut self, offload: Offload, packet: &mut [u8], now: Instant) {
        self.node.handle_tun(offload, packet, &mut self.sockets, &mut self.kernel, now);
    }

    /// Current endpoint.
    pub fn places(&self) -> Places {
        Places { endpoint: self.endpoint, other: self.other_endpoint }
    }

    /// Takes what the kernel was given.
    pub fn take_inbox(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.kernel.inbox)
    }
}

fn node(topology: &Topology, id: u32, life: u64, limits: Limits, now: Instant) -> Node {
    let seed = u64::from(id) << 32 | life;
    let config = Config { limits, ..Config::new(Zeroizing::new(host_key(id)), seed) };
    Node::new(config, Arc::new(CompiledSnapshot::new(topology.snapshot(id))), now)
}
