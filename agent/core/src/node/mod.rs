//! The node: its calling contract, and what belongs to no other file.

use std::collections::HashSet;
use std::io::IoSlice;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use isthmus_model::{DeviceId, HostId, ServiceId};
use isthmus_packet::{FlowKey, FragmentTable, Offload, protocol};

use crate::admission::Admission;
use crate::bulk::{LANES, Offering};
use crate::config::Config;
use crate::counters::{Counters, DropReason};
use crate::event::{Event, Events};
use crate::flows::{FlowTable, LegKey, Port};
use crate::forged::ForgedLog;
use crate::forward::FragmentFlow;
use crate::mtu;
use crate::outbox::{Outbox, TunQueue};
use crate::peers::{Peers, Slot};
use crate::ping::Pings;
use crate::random::Random;
use crate::receive::Inbox;
use crate::rejudge::Sweep;
use crate::state::State;
use crate::task::Task;
use crate::tunnel::{self, Keys, Tick};
use crate::view::{self, FlowView, PeerView};

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

    /// Who sends from an address that is none of the mesh's: a container whose packets this host forwards.
    /// Whoever answers must know that nobody else can send from there.
    fn behind(&mut self, source: IpAddr, state: &State) -> Owner {
        let _ = (source, state);
        Owner::Unknown
    }

    /// A number that is another one once a connectionless flow's packets come from another socket than
    /// before. Asked for each packet of such a flow: it mustn't cost more than reading memory.
    fn changes(&self, flow: &FlowKey) -> u32 {
        let _ = flow;
        0
    }

    /// A packet of this flow came from the host and was refused: whoever sends many of them needn't be
    /// listened to for a while.
    fn refused(&mut self, flow: &FlowKey) {
        let _ = flow;
    }

    /// Adds what was dropped for these reasons before it came to the node.
    fn add_drops(&self, counters: &mut Counters) {
        let _ = counters;
    }
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

/// Services with an application here that listens on one family only, and at which TCP port: each with
/// whether the other family, where it doesn't, is IPv4.
pub type Deaf = HashSet<(ServiceId, u16, bool)>;

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

/// Datagrams that were received.
#[derive(Debug)]
pub struct Received<'a> {
    /// Where from.
    pub from: SocketAddr,
    /// One datagram, or several of equal size (the last may be shorter) in a row. They are opened
    /// in place.
    pub contents: &'a mut [u8],
    /// The size of each: what UDP_GRO tells.
    pub segment_size: usize,
}

/// Takes frames for the TUN device.
pub trait TunWriter {
    /// A frame in pieces: first the vnet header (see [`Offload`]), then a packet. Whether it was
    /// taken is the writer's to count.
    fn write(&mut self, frame: &[IoSlice<'_>]);
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
/// Packets are IP packets; those from the TUN device come with what they lack ([`Offload`]).
pub struct Node {
    pub(crate) state: Arc<State>,
    /// Counts states: what was judged under an earlier one is judged again.
    pub(crate) epoch: u32,
    pub(crate) mtu: usize,
    pub(crate) proxy_port: u16,
    pub(crate) deaf: Deaf,
    /// What this host offers to its peers.
    pub(crate) offering: Offering,
    pub(crate) keys: Keys,
    pub(crate) admission: Admission,
    pub(crate) peers: Peers,
    pub(crate) flows: FlowTable,
    pub(crate) fragments: FragmentTable<FragmentFlow>,
    pub(crate) sweep: Option<Sweep>,
    pub(crate) pings: Pings,
    pub(crate) forged: ForgedLog,
    pub(crate) scratch: Vec<u8>,
    pub(crate) coalesces: bool,
    pub(crate) outbox: Outbox,
    pub(crate) tun_queue: TunQueue,
    pub(crate) counters: Counters,
    pub(crate) events: Events,
    load_reset: Option<Instant>,
    due: Vec<Slot>,
    inbox: Inbox,
}

impl Node {
    /// Makes a node that has no tunnels and knows no flows yet.
    pub fn new(config: Config, state: Arc<State>, now: Instant) -> Self {
        let Config { mtu, proxy_port, seed, limits, ciphers, lanes, coalesces, .. } = config;
        let mut seeds = Random::new(seed);
        let mut peers = Peers::new(seeds.next(), mtu::top(mtu));
        let keys = keys(&state, &config.private_key, config.second_key.as_deref());
        peers.update(&state, &keys);
        Self {
            state,
            epoch: 0,
            mtu: mtu.into(),
            proxy_port,
            deaf: Deaf::default(),
            offering: Offering { life: seeds.next(), ciphers, lanes: lanes.clamp(1, LANES) },
            keys,
            admission: Admission::new(seeds.next(), now),
            peers,
            flows: FlowTable::new(limits, seeds.next(), now),
            fragments: FragmentTable::default(),
            sweep: None,
            pings: Pings::new(),
            forged: ForgedLog::default(),
            scratch: Vec::new(),
            coalesces,
            outbox: Outbox::new(limits.transmit_bytes),
            tun_queue: TunQueue::new(limits.tun_packets),
            counters: Counters::default(),
            events: Events::default(),
            load_reset: None,
            due: Vec::new(),
            inbox: Inbox::default(),
        }
    }

    /// A new revision: peers that it doesn't have are cut at once, flows are judged again at their
    /// next packet, idle ones within a second.
    pub fn handle_state(&mut self, state: Arc<State>, now: Instant) {
        self.state = state;
        self.epoch = self.epoch.wrapping_add(1);
        let silent: Vec<PeerName> = self.peers.silent().collect();
        self.keys.known_by(self.state.own_key());
        self.peers.update(&self.state, &self.keys);
        for peer in silent {
            if !self.peers.silent().any(|still| still == peer) {
                self.tell(Event::Answers { peer });
            }
        }
        self.sweep = Some(Sweep::new(now));
        self.step_sweep(now);
    }

    /// This host has these keys from now on: one, or both while its key changes. Sessions by keys that stay go on,
    /// those by others end at once.
    pub fn handle_keys(&mut self, private: &[u8; 32], second: Option<&[u8; 32]>) {
        self.keys = keys(&self.state, private, second);
        self.peers.update(&self.state, &self.keys);
    }

    /// Which applications here listen on one family only. What is to come by the other one goes to the
    /// proxy, which dials them by theirs.
    pub fn handle_deaf(&mut self, deaf: Deaf) {
        self.deaf = deaf;
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
        let (flow, leg) = self.flows.find(&LegKey { flow: answer, port: Port::Tun })?;
        let [first, _] = &self.flows.get(flow).filter(|_| leg == 1)?.legs;
        Some(first.key.flow.destination_port)
    }

    /// This host's own addresses changed. Peers learn where it is from what it sends, and one that
    /// only receives may send nothing for long: they are told by keepalives.
    pub fn handle_moved(&mut self, now: Instant) {
        self.peers.announce();
        let slots: Vec<Slot> = self.peers.iter().map(|(slot, _)| slot).collect();
        for slot in slots {
            self.announce(slot, now);
        }
    }

    /// The revision in force.
    pub fn state(&self) -> &Arc<State> {
        &self.state
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
            Some(Task::Seal(sealing)) => self.seal_now(&sealing, packet),
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
        self.outbound(lane, offload, packet, owners, now)
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
        self.counters.flows_removed += self.flows.handle_timeout(now) as u64;
        self.fragments.handle_timeout(now);
        self.counters.events_lost += self.forged.handle_timeout(&mut self.events, now);
        self.step_sweep(now);
        self.tick_peers(now);
        if self.load_reset.is_some_and(|due| due <= now) {
            self.load_reset = None;
            self.keys.reset_load();
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) has something to do.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let timers = [
            self.flows.poll_timeout(),
            self.fragments.poll_timeout(),
            self.forged.poll_timeout(),
            self.sweep.map(|sweep| sweep.due),
            self.peers.poll_timeout(),
            self.load_reset,
        ];
        timers.into_iter().flatten().min()
    }

    /// Whether [`poll_transmit`](Self::poll_transmit) has something, or [`poll_tun`](Self::poll_tun)
    /// has packets of flows.
    pub fn has_passed(&self) -> bool {
        !self.outbox.is_empty() || self.tun_queue.holds_passed
    }

    /// Datagrams to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit<'_>> {
        self.outbox.poll()
    }

    /// Datagrams to send, as far as they fill a whole run: to be called between the packets of a
    /// batch, so that what is sealed is sent while it is in the cache.
    pub fn poll_full_transmit(&mut self) -> Option<Transmit<'_>> {
        self.outbox.poll_full()
    }

    /// A packet of the node's own to write to the TUN device, complete and without a vnet header.
    pub fn poll_tun(&mut self) -> Option<&[u8]> {
        self.tun_queue.poll()
    }

    /// Something to tell.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop()
    }

    /// What [`poll_transmit`](Self::poll_transmit) gave couldn't be sent.
    pub fn handle_send_error(&mut self, to: SocketAddr, error: SendError, now: Instant) {
        self.counters.drop(DropReason::SendError);
        let SendError::TooBig { size } = error else { return };
        let to = canonical(to);
        let outer = size + mtu::overhead(Some(to)) - tunnel::OVERHEAD;
        let here = self.peers.iter().filter(|(_, peer)| peer.endpoint() == Some(to));
        let slots: Vec<Slot> = here.map(|(slot, _)| slot).collect();
        for slot in slots {
            let Some(peer) = self.peers.get_mut(slot) else { continue };
            if let (true, PeerName::Host(host)) = (peer.path.handle_too_big(outer, now), peer.name)
            {
                let bytes = peer.path.mtu();
                self.tell(Event::PathMtu { host, bytes });
            }
        }
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
        self.send_ping(target, identifier, sequence, now)
    }

    /// Up to `limit` flows, in no order.
    pub fn flows(&self, limit: usize, now: Instant) -> Vec<FlowView> {
        self.flows
            .iter()
            .take(limit)
            .map(|flow| view::flow(&self.state, self.epoch, flow, now))
            .collect()
    }

    /// How many flows there are.
    pub fn flow_count(&self) -> usize {
        self.flows.len()
    }

    /// All peers, with or without a tunnel.
    pub fn peers(&self, now: Instant) -> Vec<PeerView> {
        self.peers.iter().map(|(_, peer)| view::peer(peer, now)).collect()
    }

    /// What was counted so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    fn tick_peers(&mut self, now: Instant) {
        let mut due = std::mem::take(&mut self.due);
        self.peers.take_due(now, &mut due);
        for slot in due.drain(..) {
            self.tick_peer(slot, now);
        }
        self.due = due;
    }

    fn tick_peer(&mut self, slot: Slot, now: Instant) {
        let Some(peer) = self.peers.get_mut(slot) else { return };
        let Some(tunnel) = &mut peer.tunnel else { return self.peers.rest(slot) };
        let mut datagram = [0; tunnel::MIN_BUFFER];
        let tick = tunnel.tick(&mut datagram, now);
        let is_live = tunnel.is_live(now);
        match tick {
            Tick::Idle => {}
            Tick::Send(length) => {
                if let Some(to) = peer.endpoint() {
                    self.push_datagram(slot, to, datagram.get(..length).unwrap_or_default());
                }
            }
            Tick::Initiate { length, tries } => {
                self.counters.handshakes_initiated += 1;
                // The first try went to the first candidate already.
                if let Some(to) = peer.endpoint_for_try(tries.saturating_sub(1)) {
                    self.push_datagram(slot, to, datagram.get(..length).unwrap_or_default());
                }
            }
            Tick::GiveUp(waited) => {
                self.counters.handshakes_failed += 1;
                self.counters.drop_many(DropReason::TunnelQueue, waited as u64);
            }
        }
        self.announce(slot, now);
        self.tick_bulk(slot, now);
        self.probe(slot, now);
        self.watch(slot, now);
        self.flush(slot, now);
        if !is_live {
            self.peers.rest(slot);
        }
    }

    /// Handshakes are counted by the second.
    pub(crate) fn note_load(&mut self, now: Instant) {
        self.load_reset.get_or_insert(now + Duration::from_secs(1));
    }

    pub(crate) fn tell(&mut self, event: Event) {
        if !self.events.push(event) {
            self.counters.events_lost += 1;
        }
    }
}

/// This host's keys, the one first that others know it by.
fn keys(state: &State, private: &[u8; 32], second: Option<&[u8; 32]>) -> Keys {
    let mut keys = second.map_or_else(|| Keys::new(*private), |it| Keys::both(*private, *it));
    keys.known_by(state.own_key());
    keys
}

/// A dual-stack socket shows IPv4 peers by mapped addresses.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node")
            .field("state", &self.state)
            .field("flows", &self.flows.len())
            .finish_non_exhaustive()
    }
}
