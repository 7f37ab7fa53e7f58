//! Tunnels to other hosts and to devices: sessions, who may begin one, where peers are, what their paths carry, and
//! what agents say to each other. Flows aren't known here: what goes into a tunnel was decided about, and what comes
//! out of one is yet to be.

mod admission;
mod agents;
mod control;
mod mtu;
mod open;
mod outbox;
pub(crate) mod peers;
mod ping;
mod sealing;
mod send;
mod silence;
pub(crate) mod tunnel;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::bulk::{LANES, Offering};
use crate::snapshot::CompiledSnapshot;
use crate::types::random::Random;
use crate::types::{
    Config, DropReason, Event, PeerName, SendError, Telemetry, Transmit, canonical,
};
use admission::Admission;
pub(crate) use agents::Forged;
pub(crate) use control::Control;
pub(crate) use outbox::Buffers;
pub use outbox::{Outbox, segments_per_run};
use peers::Peers;
pub(crate) use peers::{Peer, Slot};
use ping::Pings;
pub(crate) use sealing::Cut;
pub use sealing::Sealing;
pub(crate) use send::EgressMeta;
pub use tunnel::public_key;
use tunnel::{Keys, MIN_BUFFER, OVERHEAD, Tick};

/// All tunnels of a host.
pub(crate) struct Tunnels {
    /// The revision whose hosts and devices are the peers.
    state: Arc<CompiledSnapshot>,
    /// Bulk sessions that this host offers to its peers.
    pub(crate) offering: Offering,
    keys: Keys,
    admission: Admission,
    pub(crate) peers: Peers,
    pings: Pings,
    outbox: Outbox,
    scratch: Vec<u8>,
    load_reset: Option<Instant>,
    due: Vec<Slot>,
}

impl Tunnels {
    pub(crate) fn new(
        config: &Config,
        state: Arc<CompiledSnapshot>,
        seeds: &mut Random,
        now: Instant,
    ) -> Self {
        let mut peers = Peers::new(seeds.next(), mtu::top(config.mtu));
        let keys = keys(&state, &config.private_key, config.second_key.as_deref());
        peers.update(&state, &keys);
        let lanes = config.lanes.clamp(1, LANES);
        Self {
            state,
            offering: Offering { life: seeds.next(), ciphers: config.ciphers, lanes },
            keys,
            admission: Admission::new(seeds.next(), now),
            peers,
            pings: Pings::new(),
            outbox: Outbox::new(config.limits.transmit_bytes),
            scratch: Vec::new(),
            load_reset: None,
            due: Vec::new(),
        }
    }

    /// A new revision: peers that it doesn't have are cut at once.
    pub(crate) fn handle_state(&mut self, state: Arc<CompiledSnapshot>, telemetry: &mut Telemetry) {
        self.state = state;
        let silent: Vec<PeerName> = self.peers.silent().collect();
        self.keys.known_by(self.state.own_key());
        self.peers.update(&self.state, &self.keys);
        for peer in silent {
            if !self.peers.silent().any(|still| still == peer) {
                telemetry.tell(Event::Answers { peer });
            }
        }
    }

    /// This host has these keys from now on: one, or both while its key changes.
    pub(crate) fn handle_keys(&mut self, private: &[u8; 32], second: Option<&[u8; 32]>) {
        self.keys = keys(&self.state, private, second);
        self.peers.update(&self.state, &self.keys);
    }

    /// This host's own addresses changed: peers with a session are told.
    pub(crate) fn handle_moved(&mut self, telemetry: &mut Telemetry, now: Instant) {
        self.peers.announce();
        let slots: Vec<Slot> = self.peers.iter().map(|(slot, _)| slot).collect();
        for slot in slots {
            self.announce(slot, telemetry, now);
        }
    }

    /// Reports that the result of [`poll_transmit`](Self::poll_transmit) couldn't be sent.
    pub(crate) fn handle_send_error(
        &mut self,
        to: SocketAddr,
        error: SendError,
        telemetry: &mut Telemetry,
        now: Instant,
    ) {
        telemetry.drop(DropReason::SendError);
        let SendError::TooBig { size } = error else { return };
        let to = canonical(to);
        let outer = size + mtu::overhead(Some(to)) - OVERHEAD;
        let here = self.peers.iter().filter(|(_, peer)| peer.endpoint() == Some(to));
        let slots: Vec<Slot> = here.map(|(slot, _)| slot).collect();
        for slot in slots {
            let Some(peer) = self.peers.get_mut(slot) else { continue };
            if let (true, PeerName::Host(host)) = (peer.path.handle_too_big(outer, now), peer.name)
            {
                let bytes = peer.path.mtu();
                telemetry.tell(Event::PathMtu { host, bytes });
            }
        }
    }

    pub(crate) fn handle_timeout(&mut self, telemetry: &mut Telemetry, now: Instant) {
        let mut due = std::mem::take(&mut self.due);
        self.peers.take_due(now, &mut due);
        for slot in due.drain(..) {
            self.tick(slot, telemetry, now);
        }
        self.due = due;
        if self.load_reset.is_some_and(|due| due <= now) {
            self.load_reset = None;
            self.keys.reset_load();
        }
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        [self.peers.poll_timeout(), self.load_reset].into_iter().flatten().min()
    }

    /// Whether datagrams wait to be sent.
    pub(crate) fn has_waiting(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// Datagrams to send.
    pub(crate) fn poll_transmit(&mut self) -> Option<Transmit<'_>> {
        self.outbox.poll()
    }

    /// Datagrams to send, as far as they fill a whole run.
    pub(crate) fn poll_full_transmit(&mut self) -> Option<Transmit<'_>> {
        self.outbox.poll_full()
    }

    fn tick(&mut self, slot: Slot, telemetry: &mut Telemetry, now: Instant) {
        let Some(peer) = self.peers.get_mut(slot) else { return };
        let Some(tunnel) = &mut peer.tunnel else { return self.peers.rest(slot) };
        let mut datagram = [0; MIN_BUFFER];
        let tick = tunnel.tick(&mut datagram, now);
        let is_live = tunnel.is_live(now);
        match tick {
            Tick::Idle => {}
            Tick::Send(length) => {
                if let Some(to) = peer.endpoint() {
                    let datagram = datagram.get(..length).unwrap_or_default();
                    self.push_datagram(slot, to, datagram, telemetry);
                }
            }
            Tick::Initiate { length, tries } => {
                telemetry.counters.handshakes_initiated += 1;
                // The first try went to the first candidate already.
                if let Some(to) = peer.endpoint_for_try(tries.saturating_sub(1)) {
                    let datagram = datagram.get(..length).unwrap_or_default();
                    self.push_datagram(slot, to, datagram, telemetry);
                }
            }
            Tick::GiveUp(waited) => {
                telemetry.counters.handshakes_failed += 1;
                telemetry.counters.drop_many(DropReason::TunnelQueue, waited as u64);
            }
        }
        self.announce(slot, telemetry, now);
        self.tick_bulk(slot, telemetry, now);
        self.probe(slot, telemetry, now);
        self.watch(slot, telemetry, now);
        self.flush(slot, telemetry, now);
        if !is_live {
            self.peers.rest(slot);
        }
    }

    /// Handshakes are counted by the second.
    fn note_load(&mut self, now: Instant) {
        self.load_reset.get_or_insert(now + Duration::from_secs(1));
    }
}

/// This host's keys, the one first that others know it by.
fn keys(state: &CompiledSnapshot, private: &[u8; 32], second: Option<&[u8; 32]>) -> Keys {
    let mut keys = second.map_or_else(|| Keys::new(*private), |it| Keys::both(*private, *it));
    keys.known_by(state.own_key());
    keys
}
