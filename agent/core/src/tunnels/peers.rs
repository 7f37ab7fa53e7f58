//! Peer table: the peers that have a tunnel to this host, and their endpoints.
//!
//! A peer exists as long as the snapshot has it; its tunnel is made at the first packet in either
//! direction, and freed when there is nothing left to time. When the snapshot drops a peer, or gives it another
//! key and no former one beside it, its tunnel and keys are gone at once, and with them everything that it could
//! still send or receive.

mod wanted;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use isthmus_model::PublicKey;

use self::wanted::{Wanted, free_index, wanted};
use super::mtu::{self, Path};
use super::silence::Silence;
use super::tunnel::{Keys, Tunnel};
use crate::bulk::{Bulk, Offering, Receiving};
use crate::snapshot::CompiledSnapshot;
use crate::types::PeerName;
use crate::types::random::Random;

/// boringtun wants to be ticked at least this often.
const TICK: Duration = Duration::from_millis(250);
/// Ticks are spread over this many moments.
const PHASES: usize = 8;
/// Keepalives that tell a peer of our new address: enough for a path that loses many.
const ANNOUNCEMENTS: u8 = 8;
/// Minimum interval between handshakes begun because of an unknown session or an outdated handshake.
const PROVOKED: Duration = Duration::from_secs(5);
/// The time for which a peer that has just moved is followed to better places only.
const SETTLING: Duration = Duration::from_secs(1);

/// Index of a peer in the table, valid while it is there.
pub(crate) type Slot = usize;

/// One peer.
pub(crate) struct Peer {
    pub(crate) name: PeerName,
    /// Its key; behind it the former one, for as long as that is good.
    keys: Vec<PublicKey>,
    /// As the controller gave them.
    configured: Vec<SocketAddr>,
    /// Endpoint from which it was heard last.
    heard_at: Option<SocketAddr>,
    /// When it was first heard there.
    moved: Option<Instant>,
    pub(crate) tunnel: Option<Tunnel>,
    /// By which packets find the tunnel.
    indices: Vec<u32>,
    pub(crate) bulk: Bulk,
    /// The sessions of `bulk` that packets are found by.
    bulk_sessions: Vec<u32>,
    pub(crate) path: Path,
    pub(crate) silence: Silence,
    pub(crate) received_bytes: u64,
    pub(crate) sent_bytes: u64,
    pub(crate) last_heard: Option<Instant>,
    pub(crate) last_sent: Option<Instant>,
    pub(crate) last_handshake: Option<Instant>,
    pub(crate) round_trip: Option<Duration>,
    last_provoked: Option<Instant>,
    /// Ticks at which the peer is still told of our new address, unless it speaks before.
    announcements: u8,
    is_ticking: bool,
}

/// All peers.
pub(crate) struct Peers {
    top: u16,
    slots: Vec<Option<Peer>>,
    free: Vec<Slot>,
    by_name: HashMap<PeerName, Slot>,
    by_key: HashMap<[u8; 32], Slot>,
    by_index: HashMap<u32, Slot>,
    by_bulk_session: HashMap<u32, Slot>,
    by_endpoint: HashMap<SocketAddr, Slot>,
    phases: [Phase; PHASES],
    random: Random,
}

#[derive(Clone, Copy, Default)]
struct Phase {
    ticking: usize,
    due: Option<Instant>,
}

impl Peer {
    fn new(name: PeerName, wanted: Wanted, path: Path) -> Self {
        let Wanted { keys, endpoints: configured } = wanted;
        Self {
            name,
            keys,
            configured,
            heard_at: None,
            moved: None,
            tunnel: None,
            indices: Vec::new(),
            bulk: Bulk::default(),
            bulk_sessions: Vec::new(),
            path,
            silence: Silence::default(),
            received_bytes: 0,
            sent_bytes: 0,
            last_heard: None,
            last_sent: None,
            last_handshake: None,
            round_trip: None,
            last_provoked: None,
            announcements: 0,
            is_ticking: false,
        }
    }

    /// Its name.
    pub(crate) fn key(&self) -> PublicKey {
        self.keys.first().copied().unwrap_or(PublicKey([0; 32]))
    }

    /// Endpoint for data: the one from which the peer was heard last, else its first candidate.
    pub(crate) fn endpoint(&self) -> Option<SocketAddr> {
        self.heard_at.or_else(|| self.configured.first().copied())
    }

    /// Endpoint for a handshake: the candidates in turn.
    pub(crate) fn endpoint_for_try(&self, tries: u32) -> Option<SocketAddr> {
        let others = self.configured.iter().filter(|other| Some(**other) != self.heard_at);
        let candidates = self.heard_at.iter().chain(others);
        let count = candidates.clone().count().max(1);
        candidates.copied().nth(tries as usize % count)
    }

    /// Whether what comes from another place than the last doesn't mean that the peer has moved.
    ///
    /// A peer with two ways, such as IPv4 and IPv6, may be heard by both at once, and answers to where
    /// it has heard us: if both sides always followed the last packet, what is under way would keep
    /// them changing for ever, and measuring paths. So for a while they follow only to places that the
    /// controller names before, and find the same one. A device has one way, and is followed as
    /// WireGuard does.
    fn stays(&self, from: SocketAddr, now: Instant) -> bool {
        let rank = |place| self.configured.iter().position(|it| *it == place).unwrap_or(usize::MAX);
        let is_settling = self.moved.is_some_and(|moved| now < moved + SETTLING);
        is_settling
            && self.is_host()
            && self.heard_at.is_some_and(|current| rank(from) >= rank(current))
    }

    /// The largest inner packet that the path carries whole.
    pub(crate) fn inner_limit(&self) -> usize {
        usize::from(self.path.mtu()) - mtu::overhead(self.endpoint())
    }

    /// Whether there is a session to send by.
    pub(crate) fn has_session(&self) -> bool {
        self.tunnel.as_ref().is_some_and(Tunnel::has_session)
    }

    /// Whether a handshake is on its way.
    pub(crate) fn is_shaking_hands(&self) -> bool {
        self.tunnel.as_ref().is_some_and(Tunnel::is_shaking_hands)
    }

    /// Whether traffic to the peer goes by a bulk session, rather than by WireGuard's.
    pub(crate) fn seals_in_bulk(&self) -> bool {
        self.bulk.cipher().is_some() && self.has_session()
    }

    /// Whether to tell the peer now that this host is elsewhere.
    pub(crate) fn take_announcement(&mut self) -> bool {
        let is_due = self.announcements > 0;
        self.announcements = self.announcements.saturating_sub(1);
        is_due
    }

    /// A flow's packet goes to the peer.
    #[inline]
    pub(crate) fn note_use(&mut self, now: Instant) {
        self.path.note_use();
        self.silence.note_use(now);
    }

    /// Stock WireGuard lets its datagrams be fragmented, and doesn't answer probes.
    pub(crate) fn is_host(&self) -> bool {
        matches!(self.name, PeerName::Host(_))
    }
}

impl Peers {
    /// `top` is the largest datagram that a path must carry, as IP packet.
    pub(crate) fn new(seed: u64, top: u16) -> Self {
        Self {
            top,
            slots: Vec::new(),
            free: Vec::new(),
            by_name: HashMap::new(),
            by_key: HashMap::new(),
            by_index: HashMap::new(),
            by_bulk_session: HashMap::new(),
            by_endpoint: HashMap::new(),
            phases: [Phase::default(); PHASES],
            random: Random::new(seed),
        }
    }

    /// Makes the table what the state says, and what this host's keys are. Peers that stay keep their tunnels.
    pub(crate) fn update(&mut self, state: &CompiledSnapshot, ours: &Keys) {
        let wanted = wanted(state);
        let stays = |peer: &Peer| {
            let wanted = wanted.get(&peer.name);
            wanted.is_some_and(|it| it.keys.iter().any(|key| peer.keys.contains(key)))
        };
        let gone = self.iter().filter(|(_, peer)| !stays(peer)).map(|(slot, _)| slot);
        for slot in gone.collect::<Vec<Slot>>() {
            self.remove(slot);
        }
        self.by_endpoint.clear();
        for (name, wanted) in wanted {
            match self.by_name(name) {
                Some(slot) => self.renew(slot, wanted, ours),
                None => self.insert(Peer::new(name, wanted, Path::new(self.top))),
            }
        }
        let endpoints = self.slots.iter().enumerate().flat_map(|(slot, peer)| {
            let known = peer.iter().filter(|peer| peer.is_host());
            known.flat_map(move |p| p.configured.iter().chain(&p.heard_at).map(move |e| (*e, slot)))
        });
        self.by_endpoint.extend(endpoints);
    }

    fn renew(&mut self, slot: Slot, wanted: Wanted, ours: &Keys) {
        let Some(peer) = self.slots.get_mut(slot).and_then(Option::as_mut) else { return };
        peer.configured = wanted.endpoints;
        if peer.keys != wanted.keys {
            let former = std::mem::replace(&mut peer.keys, wanted.keys);
            for key in former {
                self.by_key.remove(&key.0);
            }
            self.by_key.extend(peer.keys.iter().map(|key| (key.0, slot)));
        }
        if peer.tunnel.is_some() {
            self.line_up(slot, ours);
        }
        // What was agreed in sessions that went with their keys goes, too.
        if !self.get(slot).is_some_and(Peer::has_session) {
            self.end_bulk(slot);
        }
    }

    /// Gives the peer's tunnel the lines that there should be.
    fn line_up(&mut self, slot: Slot, ours: &Keys) {
        let Some(peer) = self.slots.get_mut(slot).and_then(Option::as_mut) else { return };
        let Some(tunnel) = &mut peer.tunnel else { return };
        let by_index = &mut self.by_index;
        tunnel.line_up(ours, &peer.keys, || free_index(&mut self.random, by_index, slot));
        let indices: Vec<u32> = tunnel.indices().collect();
        for former in std::mem::replace(&mut peer.indices, indices) {
            if !peer.indices.contains(&former) {
                by_index.remove(&former);
            }
        }
    }

    fn insert(&mut self, peer: Peer) {
        let slot = self.free.pop().unwrap_or(self.slots.len());
        self.by_name.insert(peer.name, slot);
        self.by_key.extend(peer.keys.iter().map(|key| (key.0, slot)));
        match self.slots.get_mut(slot) {
            Some(free) => *free = Some(peer),
            None => self.slots.push(Some(peer)),
        }
    }

    fn remove(&mut self, slot: Slot) {
        self.rest(slot);
        let Some(peer) = self.slots.get_mut(slot).and_then(Option::take) else { return };
        self.free.push(slot);
        self.by_name.remove(&peer.name);
        for key in peer.keys {
            self.by_key.remove(&key.0);
        }
    }

    pub(crate) fn get(&self, slot: Slot) -> Option<&Peer> {
        self.slots.get(slot)?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, slot: Slot) -> Option<&mut Peer> {
        self.slots.get_mut(slot)?.as_mut()
    }

    pub(crate) fn by_name(&self, name: PeerName) -> Option<Slot> {
        self.by_name.get(&name).copied()
    }

    pub(crate) fn by_key(&self, key: PublicKey) -> Option<Slot> {
        self.by_key.get(&key.0).copied()
    }

    pub(crate) fn by_index(&self, index: u32) -> Option<Slot> {
        self.by_index.get(&index).copied()
    }

    pub(crate) fn by_bulk_session(&self, session: u32) -> Option<Slot> {
        self.by_bulk_session.get(&session).copied()
    }

    /// Opening key of a bulk session's datagrams.
    pub(crate) fn receiving(&self, session: u32) -> Option<&Receiving> {
        self.get(self.by_bulk_session(session)?)?.bulk.receiving(session)
    }

    /// Offers the peer a bulk session to send by.
    pub(crate) fn offer_bulk(&mut self, slot: Slot, by: Offering, now: Instant) {
        let session = loop {
            let session = (self.random.next() >> 32) as u32;
            if !self.by_bulk_session.contains_key(&session) {
                break session;
            }
        };
        let Some(peer) = self.slots.get_mut(slot).and_then(Option::as_mut) else { return };
        peer.bulk.offer(session, by, now);
        peer.bulk_sessions.push(session);
        self.by_bulk_session.insert(session, slot);
        self.forget_bulk_sessions(slot);
    }

    /// Erases all keys of bulk sessions with the peer.
    pub(crate) fn end_bulk(&mut self, slot: Slot) {
        let Some(peer) = self.get_mut(slot) else { return };
        peer.bulk = Bulk::default();
        self.forget_bulk_sessions(slot);
    }

    fn forget_bulk_sessions(&mut self, slot: Slot) {
        let Some(peer) = self.slots.get_mut(slot).and_then(Option::as_mut) else { return };
        let by_session = &mut self.by_bulk_session;
        peer.bulk_sessions.retain(|session| {
            let is_alive = peer.bulk.sessions().any(|alive| alive == *session);
            if !is_alive {
                by_session.remove(session);
            }
            is_alive
        });
    }

    pub(crate) fn by_endpoint(&self, endpoint: SocketAddr) -> Option<Slot> {
        self.by_endpoint.get(&endpoint).copied()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Slot, &Peer)> {
        self.slots.iter().enumerate().filter_map(|(slot, peer)| Some((slot, peer.as_ref()?)))
    }

    /// Makes sure that the peer has a tunnel, and that it is ticked.
    pub(crate) fn wake(&mut self, slot: Slot, keys: &Keys, now: Instant) -> Option<&mut Peer> {
        if self.get(slot)?.tunnel.is_none() {
            self.get_mut(slot)?.tunnel = Some(Tunnel::new(now));
            self.line_up(slot, keys);
        }
        if !self.get(slot)?.is_ticking {
            let phase = &mut self.phases[slot % PHASES];
            phase.ticking += 1;
            let spread = TICK / PHASES as u32 * (slot % PHASES) as u32;
            phase.due.get_or_insert(now + spread);
            self.get_mut(slot)?.is_ticking = true;
        }
        self.get_mut(slot)
    }

    /// The peer spoke from here. Returns where it was before, if that was elsewhere.
    pub(crate) fn heard(
        &mut self,
        slot: Slot,
        from: SocketAddr,
        now: Instant,
    ) -> Option<Option<SocketAddr>> {
        let peer = self.get_mut(slot)?;
        peer.last_heard = Some(now);
        peer.announcements = 0;
        if peer.heard_at == Some(from) || peer.stays(from, now) {
            return None;
        }
        peer.moved = Some(now);
        let before = peer.heard_at.replace(from);
        let left = before.filter(|before| !peer.configured.contains(before));
        if peer.is_host() {
            if let Some(left) = left {
                self.by_endpoint.remove(&left);
            }
            self.by_endpoint.insert(from, slot);
        }
        Some(before)
    }

    /// A datagram for an unknown session came from where this peer should be: it seems to speak to
    /// an earlier life of ours. Returns whether to begin a handshake, which heals the tunnel at once.
    pub(crate) fn may_be_provoked(&mut self, slot: Slot, now: Instant) -> bool {
        let Some(peer) = self.get_mut(slot) else { return false };
        let is_busy = peer.has_session() || peer.is_shaking_hands();
        let is_early = peer.last_provoked.is_some_and(|last| now < last + PROVOKED);
        if is_busy || is_early {
            return false;
        }
        peer.last_provoked = Some(now);
        true
    }

    /// A peer's handshake was older than one before: returns whether to begin one ourselves. Not while
    /// the last one is fresh: networks double datagrams.
    pub(crate) fn may_be_asked_back(&mut self, slot: Slot, now: Instant) -> bool {
        let Some(peer) = self.get_mut(slot) else { return false };
        let is_recent = |last: Option<Instant>| last.is_some_and(|last| now < last + PROVOKED);
        if is_recent(peer.last_provoked) || is_recent(peer.last_handshake) {
            return false;
        }
        peer.last_provoked = Some(now);
        true
    }

    /// Those that don't answer.
    pub(crate) fn silent(&self) -> impl Iterator<Item = PeerName> {
        let silent = self.iter().filter(|(_, peer)| peer.silence.since().is_some());
        silent.map(|(_, peer)| peer.name)
    }

    /// This host is elsewhere now: peers with a session are told at the next ticks.
    pub(crate) fn announce(&mut self) {
        for peer in self.slots.iter_mut().flatten() {
            peer.announcements = if peer.has_session() { ANNOUNCEMENTS } else { 0 };
        }
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.phases.iter().filter_map(|phase| phase.due).min()
    }

    /// Collects the peers whose tick is due.
    pub(crate) fn take_due(&mut self, now: Instant, due: &mut Vec<Slot>) {
        for (number, phase) in self.phases.iter_mut().enumerate() {
            if phase.due.is_none_or(|at| now < at) {
                continue;
            }
            phase.due = Some(now + TICK);
            let slots = (number..self.slots.len()).step_by(PHASES);
            due.extend(
                slots.filter(|slot| self.slots[*slot].as_ref().is_some_and(|p| p.is_ticking)),
            );
        }
    }

    /// Frees a tunnel that has nothing left to time, with all keys of its sessions, and stops ticking
    /// the peer.
    ///
    /// boringtun forgets with it how new the peer's last initiation was, as it does when the agent
    /// restarts: an old one that is replayed will be answered. That gains nothing: there is no session
    /// to disturb, none comes of it (only the initiator can confirm it), the peer isn't moved by
    /// it, and any genuine initiation is newer.
    pub(crate) fn rest(&mut self, slot: Slot) {
        self.end_bulk(slot);
        let Some(peer) = self.slots.get_mut(slot).and_then(Option::as_mut) else { return };
        peer.tunnel = None;
        for index in peer.indices.drain(..) {
            self.by_index.remove(&index);
        }
        if std::mem::take(&mut peer.is_ticking) {
            let phase = &mut self.phases[slot % PHASES];
            phase.ticking -= 1;
            if phase.ticking == 0 {
                phase.due = None;
            }
        }
    }
}
