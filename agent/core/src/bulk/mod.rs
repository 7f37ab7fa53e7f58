//! Bulk sessions: what two agents seal their traffic with, beside WireGuard's own sessions.
//!
//! boringtun makes the tunnel, and proves who is who. Inside it each side gives the other what it
//! needs to send to it: an ML-KEM-768 share (FIPS 203). The sender answers with a secret sealed for
//! that share and with random bytes of its own; the key is derived from both, so that recorded
//! traffic stays safe even if X25519 falls, and neither side chooses it alone.
//!
//! ```text
//!   receiver                                    sender
//!      │ Offer { session, ciphers, share } ──────▶ │ (pending)
//!      │ ◀───── Answer { session, cipher, secret } │
//!   (receiving)                                    │
//!      │ Ready { session, proof } ───────────────▶ │ (sending)
//! ```
//!
//! Each direction is set up by itself, anew with every WireGuard session, and erased with it. All
//! three messages may be lost, repeated and reordered: whoever waits repeats what it said last, and
//! until a direction is ready its traffic goes by the WireGuard session. A sender goes on with the
//! session before until the next is ready, and a receiver keeps the one before for a moment: a
//! rekey loses nothing. A receiver that has restarted says so by the number of its life, and what
//! was meant for its former one ends at once.

mod codec;
pub(crate) mod message;
#[cfg(test)]
mod tests;
mod window;

use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_lc_rs::kem::{Ciphertext, DecapsulationKey, EncapsulationKey, ML_KEM_768};
use isthmus_model::HostId;
use zeroize::Zeroizing;

use crate::types::{Cipher, Ciphers};
use codec::Purpose;
pub use codec::TYPE;
pub(crate) use codec::{HEADER, Header, Key, SECRET, TAG};
use message::{Answer, Message, Offer, Ready};
use window::Window;

/// Interval and number of repetitions of an unanswered message.
const REPEAT: Duration = Duration::from_millis(500);
const TRIES: u32 = 12;
/// An answer costs more than an offer: a peer that floods us gets few. An honest one repeats itself.
const ANSWER_EVERY: Duration = Duration::from_millis(250);
/// Time for which packets sealed by the previous session may still be under way.
const LINGER: Duration = Duration::from_secs(10);
/// Sessions that a receiver keeps: the present one, and what lingers.
const RECEIVING: usize = 4;
/// WireGuard's Reject-After-Time: nothing is sealed by an older key.
const REJECT_AFTER: Duration = Duration::from_secs(180);
/// WireGuard's Rekey-After-Time: boringtun doesn't see the traffic that would make it rekey.
const REKEY_AFTER: Duration = Duration::from_secs(120);
/// Time for a new WireGuard session to bring new bulk sessions, before another is begun.
const RENEWAL: Duration = Duration::from_secs(10);
/// Lanes that a host can have.
pub const LANES: u8 = 16;

/// Both directions of bulk traffic with one peer.
#[derive(Default)]
pub(crate) struct Bulk {
    offered: Option<Offered>,
    receiving: Vec<Receiving>,
    pending: Option<Pending>,
    sending: Option<Sending>,
    /// The peer's life that the sending sessions are with.
    peer_life: Option<u64>,
    last_answer: Option<Instant>,
    /// When the last WireGuard session began.
    last_offer: Option<Instant>,
    /// The last bulk packet of each direction.
    pub(crate) last_received: Option<Instant>,
    pub(crate) last_sent: Option<Instant>,
}

/// A receiver's announcement.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Offering {
    /// Another after each start.
    pub(crate) life: u64,
    pub(crate) ciphers: Ciphers,
    pub(crate) lanes: u8,
}

/// Direction of a message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ends {
    pub(crate) here: HostId,
    pub(crate) there: HostId,
}

/// A share that the peer hasn't answered.
struct Offered {
    session: u32,
    share: DecapsulationKey,
    message: Box<Offer>,
    repeats: Repeats,
}

/// A session that the peer hasn't confirmed.
struct Pending {
    sending: Sending,
    message: Box<Answer>,
    repeats: Repeats,
}

struct Sending {
    session: u32,
    key: Arc<Key>,
    /// Number of lanes of the receiver.
    lanes: u8,
    /// The next counter of each pair of lanes: by the sender's, then by the receiver's.
    counters: Vec<u64>,
    since: Instant,
}

pub(crate) struct Receiving {
    session: u32,
    key: Arc<Key>,
    /// By the pair of lanes: few of them are in use.
    windows: Vec<(Lanes, Box<Window>)>,
    superseded: Option<Instant>,
}

/// The receiver's lane and the sender's.
type Lanes = (u8, u8);

impl Receiving {
    fn new(session: u32, key: Arc<Key>) -> Self {
        Self { session, key, windows: Vec::new(), superseded: None }
    }

    pub(crate) const fn key(&self) -> &Arc<Key> {
        &self.key
    }

    /// Whether a datagram may be new: asked before it is opened, for speed only.
    #[inline]
    pub(crate) fn may_be_new(&self, header: Header) -> bool {
        let mut windows = self.windows.iter();
        let window = windows.find(|(lanes, _)| *lanes == header.lanes());
        window.is_none_or(|(_, window)| window.may_be_new(header.counter))
    }

    fn accept(&mut self, header: Header) -> bool {
        let lanes = header.lanes();
        if lanes.0.max(lanes.1) >= LANES {
            return false;
        }
        let place = self.windows.iter().position(|(known, _)| *known == lanes);
        let place = place.unwrap_or_else(|| {
            self.windows.push((lanes, Box::new(Window::new())));
            self.windows.len() - 1
        });
        self.windows.get_mut(place).is_some_and(|(_, window)| window.accept(header.counter))
    }
}

#[derive(Clone, Copy)]
struct Repeats {
    left: u32,
    due: Instant,
}

impl Repeats {
    fn new(now: Instant) -> Self {
        Self { left: TRIES, due: now }
    }

    fn take(&mut self, now: Instant) -> bool {
        let is_due = self.left > 0 && now >= self.due;
        if is_due {
            self.left -= 1;
            self.due = now + REPEAT;
        }
        is_due
    }
}

impl Bulk {
    /// Offers a session to receive by, in place of any offer that is still open. The offer itself
    /// comes by [`poll`](Self::poll).
    pub(crate) fn offer(&mut self, session: u32, by: Offering, now: Instant) {
        let Ok(share) = DecapsulationKey::generate(&ML_KEM_768) else { return };
        let Some(message) = share
            .encapsulation_key()
            .and_then(|public| public.key_bytes())
            .ok()
            .and_then(|bytes| Offer::new(session, by, bytes.as_ref()))
        else {
            return;
        };
        let repeats = Repeats::new(now);
        self.last_offer = Some(now);
        self.offered = Some(Offered { session, share, message: Box::new(message), repeats });
    }

    /// The messages to send (again) now. To be called with every tick.
    pub(crate) fn poll(&mut self, now: Instant) -> Option<Message<'_>> {
        self.receiving.retain(|it| it.superseded.is_none_or(|since| now < since + LINGER));
        self.sending.take_if(|sending| now >= sending.since + REJECT_AFTER);
        if self.offered.as_mut().is_some_and(|offered| offered.repeats.take(now)) {
            return self.offered.as_ref().map(|offered| Message::Offer(&offered.message));
        }
        if self.pending.as_mut().is_some_and(|pending| pending.repeats.take(now)) {
            return self.pending.as_ref().map(|pending| Message::Answer(&pending.message));
        }
        None
    }

    /// The peer offers a session to send by. The answer comes by [`poll`](Self::poll).
    pub(crate) fn handle_offer(
        &mut self,
        offer: &Offer,
        ciphers: Ciphers,
        ends: Ends,
        now: Instant,
    ) {
        if self.peer_life.replace(offer.life()) != Some(offer.life()) {
            (self.sending, self.pending) = (None, None);
        }
        let session = offer.session();
        if self.sending.as_ref().is_some_and(|sending| sending.session == session) {
            return;
        }
        match &mut self.pending {
            // Our answer was lost.
            Some(pending) if pending.sending.session == session => pending.repeats.due = now,
            Some(_) | None => {
                if self.last_answer.is_none_or(|last| now >= last + ANSWER_EVERY) {
                    self.last_answer = Some(now);
                    self.pending = answer(offer, ciphers, ends, now);
                }
            }
        }
    }

    /// The peer answers an offer. Returns what to say to that.
    pub(crate) fn handle_answer(&mut self, answer: &Answer, ends: Ends) -> Option<Ready> {
        let session = answer.session();
        if let Some(known) = self.receiving.iter().find(|it| it.session == session) {
            return Some(Ready::new(session, known.key.proof));
        }
        let offered = self.offered.as_ref().filter(|offered| offered.session == session)?;
        let key = open_answer(&offered.share, answer, ends)?;
        let ready = Ready::new(session, key.proof);
        self.offered = None;
        if self.receiving.len() >= RECEIVING {
            self.receiving.remove(0);
        }
        let key = Arc::new(key);
        self.receiving.push(Receiving::new(session, key));
        Some(ready)
    }

    /// The peer can open what is sealed by the session that it names. If it has another key for it,
    /// from an answer before, it can't.
    pub(crate) fn handle_ready(&mut self, ready: &Ready) {
        let is_it = |pending: &mut Pending| {
            let Sending { session, key, .. } = &pending.sending;
            *session == ready.session() && ready.proves(key.proof)
        };
        if let Some(pending) = self.pending.take_if(is_it) {
            self.sending = Some(pending.sending);
        }
    }

    /// The session that seals packets to the peer now.
    pub(crate) fn cipher(&self) -> Option<Cipher> {
        self.sending.as_ref().map(|sending| sending.key.cipher)
    }

    /// What is needed to seal so many datagrams in a row: a key, and the header of the first, whose
    /// counter goes up by one with each. None without a session. `flow` chooses the receiver's lane.
    #[inline]
    pub(crate) fn reserve(
        &mut self,
        lane: u8,
        flow: u32,
        count: u64,
    ) -> Option<(Arc<Key>, Header)> {
        let sending = self.sending.as_mut()?;
        let lanes = u32::from(sending.lanes);
        let receiver_lane = (flow % lanes) as u8;
        let pair = usize::from(lane) * lanes as usize + usize::from(receiver_lane);
        if sending.counters.len() <= pair {
            sending.counters.resize(pair + 1, 0);
        }
        let next = sending.counters.get_mut(pair)?;
        let counter = *next;
        *next += count;
        let session = sending.session;
        let header = Header { receiver_lane, sender_lane: lane, partial: false, session, counter };
        Some((Arc::clone(&sending.key), header))
    }

    /// The keys that open a session's datagrams.
    #[inline]
    pub(crate) fn receiving(&self, session: u32) -> Option<&Receiving> {
        self.receiving.iter().find(|it| it.session == session)
    }

    /// Whether a datagram that `key` has opened is new. A session that ended meanwhile takes none.
    #[inline]
    pub(crate) fn accept(&mut self, header: Header, key: &Arc<Key>, now: Instant) -> bool {
        let is_it = |it: &Receiving| it.session == header.session && Arc::ptr_eq(&it.key, key);
        let Some(place) = self.receiving.iter().position(is_it) else { return false };
        let (before, rest) = self.receiving.split_at_mut(place);
        let is_new = rest.first_mut().is_some_and(|receiving| receiving.accept(header));
        if is_new {
            // The sender has moved on: not when it may, but when it does.
            for older in before {
                older.superseded.get_or_insert(now);
            }
        }
        is_new
    }

    /// Whether the sending session has served its time, and is still made use of: what goes unused
    /// ends with its WireGuard session.
    pub(crate) fn is_old(&self, patience: Duration, now: Instant) -> bool {
        let is_renewed = self.last_offer.is_some_and(|last| now < last + RENEWAL);
        self.sending.as_ref().is_some_and(|sending| {
            let old = sending.since + REKEY_AFTER;
            !is_renewed && now >= old + patience && self.last_sent.is_some_and(|last| last >= old)
        })
    }

    /// The sessions that packets may come in by, with the one that is offered.
    pub(crate) fn sessions(&self) -> impl Iterator<Item = u32> {
        let offered = self.offered.iter().map(|offered| offered.session);
        self.receiving.iter().map(|receiving| receiving.session).chain(offered)
    }
}

#[cfg(any(test, feature = "sim"))]
impl Bulk {
    /// Seals a datagram and opens one as a node does it, in one go.
    pub(crate) fn seal(&mut self, lane: u8, flow: u32, datagram: &mut [u8]) -> bool {
        let reserved = self.reserve(lane, flow, 1);
        reserved.is_some_and(|(key, header)| key.seal(header, datagram))
    }

    /// Whether the datagram is authentic and new.
    pub(crate) fn open(&mut self, header: Header, datagram: &mut [u8], now: Instant) -> bool {
        let session = self.receiving(header.session).filter(|it| it.may_be_new(header));
        let Some(key) = session.map(|it| Arc::clone(it.key())) else { return false };
        key.open(header, datagram).is_some() && self.accept(header, &key, now)
    }
}

/// Makes a session that the peer's offer allows. None if there is no common cipher.
fn answer(offer: &Offer, ciphers: Ciphers, ends: Ends, now: Instant) -> Option<Pending> {
    let cipher = ciphers.best(offer.ciphers())?;
    let share = EncapsulationKey::new(&ML_KEM_768, offer.share()).ok()?;
    let (sealed, shared) = share.encapsulate().ok()?;
    let mut random = Zeroizing::new([0; SECRET]);
    aws_lc_rs::rand::fill(random.as_mut()).ok()?;
    let session = offer.session();
    let purpose = Purpose { cipher, session, sender: ends.here, receiver: ends.there };
    let key = Arc::new(Key::derive(shared.as_ref(), &random, purpose)?);
    let message = Answer::new(session, cipher, &random, sealed.as_ref())?;
    Some(Pending {
        sending: Sending { session, key, lanes: offer.lanes(), counters: Vec::new(), since: now },
        message: Box::new(message),
        repeats: Repeats::new(now),
    })
}

fn open_answer(share: &DecapsulationKey, answer: &Answer, ends: Ends) -> Option<Key> {
    let shared = share.decapsulate(Ciphertext::from(answer.sealed())).ok()?;
    let (cipher, session) = (answer.cipher()?, answer.session());
    let purpose = Purpose { cipher, session, sender: ends.there, receiver: ends.here };
    Key::derive(shared.as_ref(), answer.random()?, purpose)
}
