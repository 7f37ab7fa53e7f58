//! Our own way: two hosts' nodes with a session between them.

use std::io::IoSlice;
use std::sync::Arc;
use std::time::{Duration, Instant};

use isthmus_core::sim::topology::host_key;
use isthmus_core::sim::{Builder, Host, World, packets::ping};
use isthmus_core::{
    Ciphers, CompiledSnapshot, Config, Node, Owner, Owners, Received, Transmit, TunWriter,
};
use isthmus_model::Action;
use isthmus_packet::{Address, FlowKey, Offload};
use zeroize::Zeroizing;

/// Bytes of the largest packet that the tunnel carries in one datagram of 1,500 bytes over IPv4.
pub(crate) const LIMIT: usize = 1500 - 20 - 8 - 32;
/// Bytes of the largest that it carries at all: the datagram is fragmented on its way.
pub(crate) const LARGEST: usize = 65_535 - 20 - 8 - 32;

/// Two hosts. What the first one's kernel gives comes out at the second.
pub(crate) struct Mesh {
    world: World,
    message: Vec<u8>,
}

/// What packets between the hosts are sealed by.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Session {
    Bulk,
    WireGuard,
}

/// All sockets are the host's own: so addresses stay as they are.
struct HostsOwn;

impl Owners for HostsOwn {
    fn owner(&mut self, _: &FlowKey, _: &CompiledSnapshot) -> Owner {
        Owner::Host
    }
}

/// All flows lead to the other host.
struct NothingReturns;

impl TunWriter for NothingReturns {
    fn write(&mut self, frame: &[IoSlice<'_>]) {
        panic!("went back to the device: {frame:?}");
    }
}

impl Mesh {
    /// `session`: of which kind. `coalesces`: whether the second host's device takes packets that
    /// stand for many.
    pub(crate) fn new(session: Session, coalesces: bool) -> Self {
        let topology = Builder::new(2).default_action(Action::Allow).build();
        let (one, two) = (topology.host_address(1, true), topology.host_address(2, true));
        let mut world = World::new(topology, 1);
        let state = Arc::new(CompiledSnapshot::new(world.topology.snapshot(2)));
        let usual = Config::new(Zeroizing::new(host_key(2)), 2);
        let ciphers = match session {
            Session::Bulk => usual.ciphers,
            Session::WireGuard => Ciphers::NONE,
        };
        let config = Config { coalesces, ciphers, ..usual };
        world.hosts[1].node = Node::new(config, state, world.now);
        world.send(1, &ping(one, two, 1, 1));
        world.run(Duration::from_secs(3));
        let now = world.now;
        let peers = world.hosts[0].node.peers(now);
        let is_bulk = peers.iter().any(|peer| peer.bulk.is_some());
        assert_eq!(is_bulk, session == Session::Bulk, "{peers:?}");
        Self { world, message: Vec::new() }
    }

    /// The addresses of both hosts.
    pub(crate) fn addresses(&self, v4: bool) -> [Address; 2] {
        [1, 2].map(|host| self.world.topology.host_address(host, v4).into())
    }

    /// Carries frames: `out` gets what the second host's node writes.
    ///
    /// With [`deliver`] the only place that knows how a node is driven.
    pub(crate) fn carry<'a>(
        &mut self,
        frames: impl Iterator<Item = &'a [u8]>,
        out: &mut dyn TunWriter,
    ) {
        let now = self.world.now;
        let [one, two] = &mut self.world.hosts[..] else { unreachable!("a mesh of two") };
        for frame in frames {
            self.message.clear();
            self.message.extend_from_slice(frame);
            let (offload, packet) = Offload::read(&mut self.message).expect("a frame");
            one.node.handle_tun(offload, packet, &mut HostsOwn, &mut NothingReturns, now);
            deliver(one, two, Node::poll_full_transmit, &mut self.message, out, now);
        }
        deliver(one, two, Node::poll_transmit, &mut self.message, out, now);
        for host in [one, two] {
            let is_quiet = host.node.poll_tun().is_none();
            assert!(is_quiet, "{:?} answers: {:?}", host.id, host.node.counters());
        }
    }

    /// What both nodes have counted, for messages.
    pub(crate) fn counters(&self) -> String {
        let counters = self.world.hosts.iter().map(|host| host.node.counters());
        counters.map(|counters| format!("{counters:?}\n")).collect()
    }
}

/// What is sent at once is one message, as a socket with UDP_GRO gives it.
fn deliver(
    one: &mut Host,
    two: &mut Host,
    poll: impl for<'a> Fn(&'a mut Node) -> Option<Transmit<'a>>,
    message: &mut Vec<u8>,
    out: &mut dyn TunWriter,
    now: Instant,
) {
    while let Some(transmit) = poll(&mut one.node) {
        let segment_size = transmit.segment_size.unwrap_or(transmit.contents.len());
        message.clear();
        message.extend_from_slice(transmit.contents);
        let received = Received { from: one.endpoint, contents: message, segment_size };
        two.node.handle_udp(received, &mut HostsOwn, out, now);
    }
}
