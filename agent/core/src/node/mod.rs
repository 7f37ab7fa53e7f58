//! The node: its calling contract; how packets come in from the TUN device and the tunnels, and what people see of it.

mod inbox;
mod ingest;
mod task;
mod view;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use isthmus_model::HostId;
use isthmus_packet::{FlowKey, Offload, protocol};

use crate::flows::LegKey;
use crate::forward::Forwarder;
use crate::snapshot::{CompiledSnapshot, Deaf, Owners};
use crate::types::{Config, Counters, Event, Interface, Received, SendError, Transmit, TunWriter};
pub use inbox::Inbox;
pub use task::{Hairpin, Task};
pub use view::{FlowView, PeerView};

/// One host's end of the mesh.
///
/// # Calling contract
///
/// 1. Call a `handle_*` with the time. Times never go backwards.
/// 2. Call every `poll_*` until it has nothing more: [`poll_transmit`](Self::poll_transmit),
///    [`poll_tun`](Self::poll_tun), [`poll_event`](Self::poll_event). A batch of `handle_*` calls
///    may go before: it makes for larger segments. What isn't taken is bounded by
///    [`Limits`](crate::Limits), not lost at once.
/// 3. Call [`handle_timeout`](Self::handle_timeout) when the time that
///    [`poll_timeout`](Self::poll_timeout) gives has come.
///
/// Packets are IP packets; those from the TUN device come with what they lack ([`Offload`]).
pub struct Node {
    pub(crate) forward: Forwarder,
    /// Whether the TUN device takes packets that stand for many.
    pub(crate) coalesces: bool,
    inbox: Inbox,
}

impl Node {
    /// Makes a node that has no tunnels and knows no flows yet.
    pub fn new(config: Config, state: Arc<CompiledSnapshot>, now: Instant) -> Self {
        let forward = Forwarder::new(&config, state, now);
        Self { forward, coalesces: config.coalesces, inbox: Inbox::default() }
    }

    /// A new revision: peers that it doesn't have are cut at once, flows are judged again at their
    /// next packet, idle ones within a second.
    pub fn handle_state(&mut self, state: Arc<CompiledSnapshot>, now: Instant) {
        self.forward.handle_state(state, now);
    }

    /// This host has these keys from now on: one, or both while its key changes. Sessions by keys that stay go on,
    /// those by others end at once.
    pub fn handle_keys(&mut self, private: &[u8; 32], second: Option<&[u8; 32]>) {
        self.forward.tunnels.handle_keys(private, second);
    }

    /// Which applications here listen on one family only. What is to come by the other one goes to the
    /// proxy, which dials them by theirs.
    pub fn handle_deaf(&mut self, deaf: Deaf) {
        self.forward.judge.deaf = deaf;
    }

    /// Which port was asked for by a connection that leads to the proxy, as that sees it: its own end,
    /// and the caller's.
    pub fn asked_port(&self, own: SocketAddr, caller: SocketAddr) -> Option<u16> {
        let answer = FlowKey {
            source: own.ip().to_canonical().into(),
            destination: caller.ip().to_canonical().into(),
            protocol: protocol::TCP,
            source_port: own.port(),
            destination_port: caller.port(),
        };
        let flows = &self.forward.flows;
        let (flow, leg) = flows.find(&LegKey { flow: answer, port: Interface::Tun })?;
        let [first, _] = &flows.get(flow).filter(|_| leg == 1)?.legs;
        Some(first.key.flow.destination_port)
    }

    /// This host's own addresses changed. Peers learn where it is from what it sends, and one that
    /// only receives may send nothing for long: they are told by keepalives.
    pub fn handle_moved(&mut self, now: Instant) {
        self.forward.tunnels.handle_moved(&mut self.forward.telemetry, now);
    }

    /// The revision in force.
    pub fn state(&self) -> &Arc<CompiledSnapshot> {
        &self.forward.judge.state
    }

    /// A packet that the kernel wrote to the TUN device, possibly one that stands for many. It may
    /// be changed in place. In one go what [`decide_tun`](Self::decide_tun) does in two.
    pub fn handle_tun(
        &mut self,
        offload: Offload,
        packet: &mut [u8],
        owners: &mut dyn Owners,
        tun: &mut dyn TunWriter,
        now: Instant,
    ) {
        match self.decide_tun(0, offload, packet, owners, now) {
            Some(Task::Seal(sealing)) => {
                let Forwarder { tunnels, telemetry, .. } = &mut self.forward;
                tunnels.seal_now(&sealing, packet, telemetry);
            }
            Some(Task::Write(hairpin)) => hairpin.write(packet, tun),
            None => {}
        }
    }

    /// Decides about a packet that the kernel wrote to the TUN device, and changes it in place.
    ///
    /// If there is work left it is the caller's, who may do it without the node, with the packet as it
    /// is now. What the node has passed on itself meanwhile (see [`has_passed`](Self::has_passed)) may
    /// be of the same flow, and came after all that was given out before, and before all that is given
    /// out later.
    #[must_use]
    pub fn decide_tun(
        &mut self,
        lane: u8,
        offload: Offload,
        packet: &mut [u8],
        owners: &mut dyn Owners,
        now: Instant,
    ) -> Option<Task> {
        self.ingest(lane, offload, packet, owners, now)
    }

    /// What came to the tunnel port from one place: a datagram, or several in a row. In one go what
    /// [`Inbox`] does in four.
    pub fn handle_udp(
        &mut self,
        received: Received<'_>,
        owners: &mut dyn Owners,
        tun: &mut dyn TunWriter,
        now: Instant,
    ) {
        let mut received = [received];
        let mut inbox = std::mem::take(&mut self.inbox);
        self.find_keys(&mut inbox, &received);
        inbox.open(&mut received);
        self.decide_udp(&mut inbox, &mut received, owners, now);
        inbox.write(&received, tun);
        self.inbox = inbox;
    }

    /// The time that [`poll_timeout`](Self::poll_timeout) gave has come.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.forward.handle_timeout(now);
    }

    /// When [`handle_timeout`](Self::handle_timeout) has something to do.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.forward.poll_timeout()
    }

    /// Whether [`poll_transmit`](Self::poll_transmit) has something, or [`poll_tun`](Self::poll_tun)
    /// has packets of flows.
    pub fn has_passed(&self) -> bool {
        self.forward.tunnels.has_waiting() || self.forward.tun_queue.holds_passed
    }

    /// Datagrams to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit<'_>> {
        self.forward.tunnels.poll_transmit()
    }

    /// Datagrams to send, as far as they fill a whole run: to be called between the packets of a
    /// batch, so that what is sealed is sent while it is in the cache.
    pub fn poll_full_transmit(&mut self) -> Option<Transmit<'_>> {
        self.forward.tunnels.poll_full_transmit()
    }

    /// A packet of the node's own to write to the TUN device, complete and without a vnet header.
    pub fn poll_tun(&mut self) -> Option<&[u8]> {
        self.forward.tun_queue.poll()
    }

    /// Something to tell.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.forward.telemetry.poll()
    }

    /// Reports that the result of [`poll_transmit`](Self::poll_transmit) couldn't be sent.
    pub fn handle_send_error(&mut self, to: SocketAddr, error: SendError, now: Instant) {
        let Forwarder { tunnels, telemetry, .. } = &mut self.forward;
        tunnels.handle_send_error(to, error, telemetry, now);
    }

    /// Asks the agent that has `target` for an answer through the tunnel; it comes as
    /// [`Event::Pong`]. Returns the host that is asked; none if the address is nobody's.
    pub fn ping(
        &mut self,
        target: IpAddr,
        identifier: u16,
        sequence: u16,
        now: Instant,
    ) -> Option<HostId> {
        let Forwarder { tunnels, telemetry, .. } = &mut self.forward;
        tunnels.ping(target, (identifier, sequence), telemetry, now)
    }

    /// Up to `limit` flows, in no order.
    pub fn flows(&self, limit: usize, now: Instant) -> Vec<FlowView> {
        let Forwarder { judge, flows, .. } = &self.forward;
        let flows = flows.iter().take(limit);
        flows.map(|flow| view::flow(&judge.state, judge.epoch, flow, now)).collect()
    }

    /// Number of flows.
    pub fn flow_count(&self) -> usize {
        self.forward.flows.len()
    }

    /// All peers, with or without a tunnel.
    pub fn peers(&self, now: Instant) -> Vec<PeerView> {
        self.forward.tunnels.peers.iter().map(|(_, peer)| view::peer(peer, now)).collect()
    }

    /// Counters so far.
    pub fn counters(&self) -> &Counters {
        &self.forward.telemetry.counters
    }
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node")
            .field("state", &self.forward.judge.state)
            .field("flows", &self.forward.flows.len())
            .finish_non_exhaustive()
    }
}
