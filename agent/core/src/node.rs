//! The node: its calling contract, and what belongs to no other file.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use isthmus_model::{DeviceId, HostId, ServiceId};

use crate::config::Config;
use crate::counters::Counters;
use crate::event::{Event, Events};
use crate::packet::FlowKey;
use crate::state::State;
use crate::view::{FlowView, PeerView};

/// Who has a tunnel to this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PeerName {
    /// Another host's agent.
    Host(HostId),
    /// A device whose gateway this host is.
    Device(DeviceId),
}

/// Knows which process a flow belongs to.
///
/// Asked when a flow is new, and again where a port could have changed hands, while the packet
/// waits: an answer should take microseconds.
pub trait Owners {
    /// Whose socket has this flow. `flow` is as the socket sees it, source first: its own address
    /// and port, then its peer's. A TCP flow has an owner only if a socket is *connected* just so
    /// (or connecting): a listener isn't meant.
    fn owner(&mut self, flow: &FlowKey, state: &State) -> Owner;
}

/// The answer of [`Owners`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// A process of this service, which is placed on this host.
    Service(ServiceId),
    /// A process that matches no service.
    Host,
    /// There is no such socket, or it can't be told whose it is.
    Unknown,
}

/// Datagrams to send.
#[derive(Clone, Copy, Debug)]
pub struct Transmit<'a> {
    /// Where to.
    pub to: SocketAddr,
    /// One datagram, or several of equal size (the last may be shorter) in a row.
    pub contents: &'a [u8],
    /// The size of each, if there are several: what UDP_SEGMENT wants.
    pub segment_size: Option<usize>,
    /// Whether routers may not fragment it.
    pub dont_fragment: bool,
}

/// Why a datagram couldn't be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendError {
    /// Larger than the interface or the known path allows (EMSGSIZE).
    TooBig {
        /// The datagram's bytes, without IP and UDP headers.
        size: usize,
    },
    /// No route, or the last datagram met with an ICMP error.
    Unreachable,
}

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
/// Packets are complete IP packets with complete checksums; datagrams are one datagram each.
pub struct Node {
    state: Arc<State>,
    counters: Counters,
    events: Events,
}

impl Node {
    /// Makes a node that has no tunnels and knows no flows yet.
    pub fn new(config: Config, state: Arc<State>, now: Instant) -> Self {
        let (_, _) = (config, now);
        Self { state, counters: Counters::default(), events: Events::default() }
    }

    /// A new revision: peers that it doesn't have are cut at once, flows are judged again.
    pub fn handle_state(&mut self, state: Arc<State>, now: Instant) {
        let _ = now;
        self.state = state;
    }

    /// The revision in force.
    pub fn state(&self) -> &Arc<State> {
        &self.state
    }

    /// A packet that the kernel wrote to the TUN device. It may be changed in place.
    pub fn handle_tun(&mut self, packet: &mut [u8], owners: &mut dyn Owners, now: Instant) {
        let (_, _, _) = (packet, owners, now);
    }

    /// A datagram that came to the tunnel port. It may be changed in place.
    pub fn handle_udp(
        &mut self,
        from: SocketAddr,
        datagram: &mut [u8],
        owners: &mut dyn Owners,
        now: Instant,
    ) {
        let (_, _, _, _) = (from, datagram, owners, now);
    }

    /// The time that [`poll_timeout`](Self::poll_timeout) gave has come.
    pub fn handle_timeout(&mut self, now: Instant) {
        let _ = now;
    }

    /// When [`handle_timeout`](Self::handle_timeout) has something to do.
    pub fn poll_timeout(&self) -> Option<Instant> {
        None
    }

    /// Datagrams to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit<'_>> {
        None
    }

    /// A packet to write to the TUN device.
    pub fn poll_tun(&mut self) -> Option<&[u8]> {
        None
    }

    /// Something to tell.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop()
    }

    /// What [`poll_transmit`](Self::poll_transmit) gave couldn't be sent.
    pub fn handle_send_error(&mut self, to: SocketAddr, error: SendError, now: Instant) {
        let (_, _, _) = (to, error, now);
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
        let (_, _, _, _) = (target, identifier, sequence, now);
        None
    }

    /// Up to `limit` flows, in no order.
    pub fn flows(&self, limit: usize, now: Instant) -> Vec<FlowView> {
        let (_, _) = (limit, now);
        Vec::new()
    }

    /// How many flows there are.
    pub fn flow_count(&self) -> usize {
        0
    }

    /// All peers, with or without a tunnel.
    pub fn peers(&self, now: Instant) -> Vec<PeerView> {
        let _ = now;
        Vec::new()
    }

    /// What was counted so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("state", &self.state).finish_non_exhaustive()
    }
}
