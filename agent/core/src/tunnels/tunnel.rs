//! One peer's WireGuard tunnel. Only this module and its parts see boringtun.
//!
//! boringtun seals, opens, shakes hands and rekeys. Around it, this module
//!
//! - holds packets back until there is a session, so that the queue is bounded, counted and given up
//!   by our clock;
//! - retries handshakes by our clock, sooner than WireGuard's 5 s at first, and starts them anew after
//!   boringtun has given up for good (it doesn't heal by itself);
//! - gives every `Tunn` an unlimited limiter: handshakes are admitted once, in `admission.rs`;
//! - gives a tunnel a second `Tunn` while a key changes, so that nothing is lost: see [`Tunnel`].
//!
//! **What can't be simulated.** boringtun reads the clock itself (CLOCK_BOOTTIME) for its rekeying
//! (120 s), keepalives (10 s), session expiry (180 s) and handshake timestamps, and the operating
//! system's random numbers for its keys. Under a virtual clock these run by real time: simulated
//! hours pass without a rekey. Handshake retries, endpoints, path MTU and flows are virtual.

mod keys;
mod line;

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use boringtun::noise::{Packet, Tunn, TunnResult};
use isthmus_model::PublicKey;

use self::keys::OwnKey;

pub use self::keys::public_key;
pub(crate) use self::keys::{Keys, Waiting};

/// Overhead of sealing a packet: type, receiver, counter, tag.
pub(crate) const OVERHEAD: usize = 32;
/// The least that a buffer for datagrams must hold: a handshake initiation.
pub(crate) const MIN_BUFFER: usize = 148;
/// Session indices have 24 bits for the peer and 8 for its sessions.
pub(crate) const INDEX_BITS: u32 = 24;

/// Packets that wait for a session.
const QUEUE: usize = 256;
/// WireGuard's Rekey-Attempt-Time.
const GIVE_UP: Duration = Duration::from_secs(90);
/// From each try to the next; at last, WireGuard's Rekey-Timeout. The second try comes after Happy
/// Eyeballs' delay (RFC 8305, section 5): a peer that has only just started may not listen yet, or not
/// at the first of its places. The next two are for paths that lose much.
const RETRIES: [Duration; 4] = [
    Duration::from_millis(250),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
];
/// Longer than WireGuard's Reject-After-Time: nothing is left to be timed then.
const DORMANT: Duration = Duration::from_secs(200);
/// Between two handshakes by the new keys, while packets go by the former ones still.
const TAKEOVER: Duration = Duration::from_secs(5);
/// Handshakes per second above which sources must prove their address by a cookie.
const COOKIES_ABOVE: u64 = 200;

/// Kind of a datagram, by its first bytes.
pub(crate) enum Message {
    Initiation,
    Response { index: u32 },
    Cookie { index: u32 },
    Data { index: u32 },
}

/// Whether a handshake message may go on.
pub(crate) enum Admission {
    Pass,
    /// Its source must prove its address: send this many bytes of the buffer.
    Cookie(usize),
    /// Not made for us.
    Refuse,
}

/// Content of an opened datagram; lengths are those of the data written to the buffer.
pub(crate) enum Opened {
    Packet(usize),
    Keepalive,
    /// Our answer to an initiation.
    Answer(usize),
    /// The peer answered ours; the first packet of the new session.
    Completed(usize),
    Cookie,
    /// An initiation by the peer's key that is older than one that was answered: a replay, or the
    /// peer's clock has been set back.
    Outdated,
    Refused,
}

/// Work that a tick asks for.
pub(crate) enum Tick {
    Idle,
    /// Send this many bytes of the buffer.
    Send(usize),
    /// Send this handshake initiation, the so-many'th of this attempt.
    Initiate {
        length: usize,
        tries: u32,
    },
    /// The handshake failed; so many packets waited for it.
    GiveUp(usize),
}

/// One peer's tunnel.
///
/// ```text
///             start              answered
///   (idle) ──────────▶ attempt ───────────▶ session ──┐ rekey: attempt beside the session
///      ▲                 │ 90 s                │ 180 s│
///      └─────────────────┴────────────◀────────┴──────┘
/// ```
///
/// It has a *line* for each pair of keys, this host's and the peer's: one, unless a key changes. Then packets
/// go by the first line that has a session, what comes by any is opened, and the first one shakes hands until
/// it has a session, too. So each side takes the new key when it hears of it, and nothing is lost.
pub(crate) struct Tunnel {
    /// Newest keys first.
    lines: Vec<Line>,
    /// By which of them the last datagram came.
    heard_by: usize,
    attempt: Option<Attempt>,
    /// When the first line may try again to get a session, if packets go by another.
    take_over: Instant,
    queue: VecDeque<Waiting>,
    last_used: Instant,
}

/// State of a tunnel under one pair of keys.
struct Line {
    index: u32,
    ours: PublicKey,
    theirs: PublicKey,
    /// In a box: it takes 10 KiB, and most peers have none.
    tunn: Box<Tunn>,
    /// Whether there is a session to send by. INVARIANT: true only if boringtun has one; it drops
    /// sessions in `update_timers` only, after which this is set anew.
    session: bool,
    /// An initiation was answered and the new session isn't confirmed yet.
    unconfirmed: bool,
}

struct Attempt {
    started: Instant,
    next_try: Instant,
    tries: u32,
}

impl Message {
    /// Of the session that it is for; an initiation is for none.
    fn index(&self) -> Option<u32> {
        match self {
            Self::Initiation => None,
            Self::Response { index } | Self::Cookie { index } | Self::Data { index } => {
                Some(*index)
            }
        }
    }

    pub(crate) fn of(datagram: &[u8]) -> Option<Self> {
        let index = |index: u32| index >> (32 - INDEX_BITS);
        Some(match Tunn::parse_incoming_packet(datagram).ok()? {
            Packet::HandshakeInit(_) => Self::Initiation,
            Packet::HandshakeResponse(p) => Self::Response { index: index(p.receiver_idx) },
            Packet::PacketCookieReply(p) => Self::Cookie { index: index(p.receiver_idx) },
            Packet::PacketData(p) => Self::Data { index: index(p.receiver_idx) },
        })
    }
}

impl Tunnel {
    /// It needs [lines](Self::line_up) for anything.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            lines: Vec::new(),
            heard_by: 0,
            attempt: None,
            take_over: now,
            queue: VecDeque::new(),
            last_used: now,
        }
    }

    /// Has a line for each of our keys and each of the peer's, those that are known best first. What others had
    /// is erased. An `index` must fit into [`INDEX_BITS`] and be this line's alone.
    pub(crate) fn line_up(
        &mut self,
        keys: &Keys,
        theirs: &[PublicKey],
        mut index: impl FnMut() -> u32,
    ) {
        let mut former = std::mem::take(&mut self.lines);
        for own in &keys.own {
            for theirs in theirs {
                let ours = PublicKey(own.public.to_bytes());
                let known = former.iter().position(|it| (it.ours, it.theirs) == (ours, *theirs));
                let line = known.map(|at| former.swap_remove(at));
                self.lines.push(line.unwrap_or_else(|| Line::new(own, *theirs, index())));
            }
        }
    }

    /// Whether packets go by the newest keys.
    #[cfg(test)]
    pub(crate) fn goes_by_newest(&self) -> bool {
        self.lines.first().is_some_and(|line| line.session)
    }

    /// By what its datagrams are found.
    pub(crate) fn indices(&self) -> impl Iterator<Item = u32> {
        self.lines.iter().map(|line| line.index)
    }

    pub(crate) fn has_session(&self) -> bool {
        self.lines.iter().any(|line| line.session)
    }

    pub(crate) fn is_shaking_hands(&self) -> bool {
        self.attempt.is_some()
    }

    /// Whether the tunnel wants to be ticked.
    pub(crate) fn is_live(&self, now: Instant) -> bool {
        self.has_session() || self.attempt.is_some() || now < self.last_used + DORMANT
    }

    /// Holds a packet back until there is a session. False if too many wait.
    pub(crate) fn enqueue(&mut self, packet: &[u8], dont_fragment: bool, now: Instant) -> bool {
        self.last_used = now;
        let has_room = self.queue.len() < QUEUE;
        if has_room {
            self.queue.push_back(Waiting { packet: packet.to_vec(), dont_fragment });
        }
        has_room
    }

    /// The next packet that waited for the session, if there is one now.
    pub(crate) fn dequeue(&mut self) -> Option<Waiting> {
        if self.has_session() { self.queue.pop_front() } else { None }
    }

    /// Seals a packet into a datagram. `out` must have [`OVERHEAD`] more room than the packet, and
    /// at least [`MIN_BUFFER`]. None without a session.
    pub(crate) fn seal(&mut self, packet: &[u8], out: &mut [u8], now: Instant) -> Option<usize> {
        let has_room = out.len() >= MIN_BUFFER.max(packet.len() + OVERHEAD);
        let line = self.lines.iter_mut().find(|line| line.session).filter(|_| has_room)?;
        self.last_used = now;
        match line.tunn.encapsulate(packet, out) {
            TunnResult::WriteToNetwork(datagram) => Some(datagram.len()),
            TunnResult::Done
            | TunnResult::Err(_)
            | TunnResult::WriteToTunnelV4(..)
            | TunnResult::WriteToTunnelV6(..) => None,
        }
    }

    /// Opens a datagram. `out` must be as large as the datagram, and at least [`MIN_BUFFER`].
    pub(crate) fn open(
        &mut self,
        source: IpAddr,
        datagram: &[u8],
        out: &mut [u8],
        now: Instant,
    ) -> Opened {
        let Some(message) = Message::of(datagram) else { return Opened::Refused };
        if out.len() < MIN_BUFFER.max(datagram.len()) {
            return Opened::Refused;
        }
        self.wake(now);
        let mut opened = Opened::Refused;
        for (at, line) in self.lines.iter_mut().enumerate() {
            if message.index().is_some_and(|index| index != line.index) {
                continue;
            }
            opened = line.open(source, &message, datagram, out);
            self.heard_by = at;
            // An initiation names no line: it is for the one that can open it.
            if !matches!(opened, Opened::Refused) {
                break;
            }
        }
        self.note(&opened, now);
        opened
    }

    fn note(&mut self, opened: &Opened, now: Instant) {
        let has_session = self.has_session();
        let Some(line) = self.lines.get_mut(self.heard_by) else { return };
        match opened {
            Opened::Answer(_) => line.unconfirmed = true,
            Opened::Completed(_) => self.attempt = None,
            Opened::Packet(_) | Opened::Keepalive if !has_session || line.unconfirmed => {
                self.attempt = None;
            }
            Opened::Packet(_) | Opened::Keepalive => {}
            Opened::Cookie | Opened::Outdated | Opened::Refused => return,
        }
        self.last_used = now;
        self.refresh();
    }

    /// Whether what was opened last is the first of a session that the peer began.
    pub(crate) fn take_confirmed(&mut self, opened: &Opened) -> bool {
        let Some(line) = self.lines.get_mut(self.heard_by) else { return false };
        match opened {
            Opened::Packet(_) | Opened::Keepalive => std::mem::take(&mut line.unconfirmed),
            Opened::Completed(_) => {
                line.unconfirmed = false;
                true
            }
            Opened::Answer(_) | Opened::Cookie | Opened::Outdated | Opened::Refused => false,
        }
    }

    /// Begins a handshake, unless one is on its way.
    pub(crate) fn initiate(&mut self, out: &mut [u8], now: Instant) -> Option<usize> {
        if self.attempt.is_some() {
            return None;
        }
        self.wake(now);
        self.last_used = now;
        self.attempt = Some(Attempt { started: now, next_try: now, tries: 0 });
        self.write_initiation(out, now).map(|(length, _)| length)
    }

    /// Lets time pass. To be called four times a second while the tunnel is live.
    pub(crate) fn tick(&mut self, out: &mut [u8], now: Instant) -> Tick {
        let mut sent = None;
        let mut is_first_up = false;
        for (at, line) in self.lines.iter_mut().enumerate() {
            let wish = line.tick(out);
            // Of a line that nothing goes by any more, nothing is wished.
            sent = wish.filter(|_| at == 0 || !is_first_up);
            is_first_up |= at == 0 && line.session;
            // Another's has to wait for the next tick: there is one buffer.
            if sent.is_some() {
                break;
            }
        }
        match sent {
            Some((length, true)) => {
                let attempt =
                    self.attempt.get_or_insert(Attempt { started: now, next_try: now, tries: 0 });
                attempt.advance(now);
                Tick::Initiate { length, tries: attempt.tries }
            }
            Some((length, false)) => Tick::Send(length),
            None if self.attempt.is_some() => self.retry(out, now),
            None => self.try_to_take_over(out, now),
        }
    }

    /// Packets go by former keys: the newest ones shake hands, too.
    fn try_to_take_over(&mut self, out: &mut [u8], now: Instant) -> Tick {
        let needs_none = self.lines.first().is_none_or(|first| first.session);
        if needs_none || !self.has_session() || now < self.take_over {
            return Tick::Idle;
        }
        self.take_over = now + TAKEOVER;
        let first = self.lines.first_mut();
        let length = first.and_then(|first| first.write_initiation(out));
        length.map_or(Tick::Idle, |length| Tick::Initiate { length, tries: 1 })
    }

    fn retry(&mut self, out: &mut [u8], now: Instant) -> Tick {
        let Some(attempt) = &self.attempt else { return Tick::Idle };
        if now >= attempt.started + GIVE_UP {
            self.attempt = None;
            let waited = self.queue.len();
            self.queue.clear();
            return Tick::GiveUp(waited);
        }
        if now < attempt.next_try {
            return Tick::Idle;
        }
        match self.write_initiation(out, now) {
            Some((length, tries)) => Tick::Initiate { length, tries },
            None => Tick::Idle,
        }
    }

    /// By one pair of keys after the other: who hasn't heard of the new ones knows the former.
    fn write_initiation(&mut self, out: &mut [u8], now: Instant) -> Option<(usize, u32)> {
        let attempt = self.attempt.as_mut()?;
        let at = attempt.tries as usize % self.lines.len().max(1);
        attempt.advance(now);
        let length = self.lines.get_mut(at)?.write_initiation(out)?;
        Some((length, attempt.tries))
    }

    /// boringtun's timers go by the last tick: after a time without any it must be told the time.
    /// What it would send is worth nothing; whoever wakes it has something better.
    fn wake(&mut self, now: Instant) {
        if !self.is_live(now) {
            let mut nothing = [0; MIN_BUFFER];
            for line in &mut self.lines {
                let _ = line.tick(&mut nothing);
            }
        }
    }

    fn refresh(&mut self) {
        self.lines.iter_mut().for_each(Line::refresh);
    }
}

impl Attempt {
    fn advance(&mut self, now: Instant) {
        let step = (self.tries as usize).min(RETRIES.len() - 1);
        self.next_try = now + RETRIES[step];
        self.tries += 1;
    }
}
