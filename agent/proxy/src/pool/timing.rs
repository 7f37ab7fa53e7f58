//! Where the time of a request went.
//!
//! At each moment a request waits for one thing, and its time is given to that thing, so that the parts
//! add up to the whole:
//!
//! | part | the request waits for |
//! | --- | --- |
//! | client | the caller's bytes, or the caller to take the answer's |
//! | queue | the agent itself: a place, a connection's turn, the time of a retry or of a fault |
//! | connect | a connection to be made |
//! | tunnel | the way to another host and back, and the agent there |
//! | server | the application: its answer's head, and then what is missing of the body |
//!
//! Only the other side knows what the application took until its answer's head: it says so in a header
//! field of the answer ([`SERVER_TIME`], microseconds), which the client's side removes.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::config::life::Life;

/// What the application took until its answer's head, in microseconds: from agent to agent.
pub(crate) const SERVER_TIME: HeaderName = HeaderName::from_static("x-isthmus-server-time");

/// Interim answers that wait for the caller, of one request.
const MAX_INTERIM_BYTES: usize = 64 * 1024;

/// What a request waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Client,
    Queue,
    /// Or for what only the end of a try tells apart.
    Server,
}

/// How long a request waited for what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// For the caller's bytes, or for the caller to take the answer's.
    pub client: Duration,
    /// For the agent itself.
    pub queue: Duration,
    /// For a connection to be made.
    pub connect: Duration,
    /// For the way to another host and back.
    pub tunnel: Duration,
    /// For the application.
    pub server: Duration,
}

/// Measures one request.
#[derive(Debug)]
pub(crate) struct Clock {
    started: Instant,
    since: Instant,
    part: Part,
    is_trying: bool,
    parts: Parts,
}

/// What happens to a request where its record isn't at hand.
#[derive(Debug)]
pub(crate) struct Progress {
    started: Instant,
    /// Of the request's body, so far.
    pub(crate) bytes: AtomicU64,
    /// Nanoseconds; since the last try.
    waited: AtomicU64,
    connecting: AtomicU64,
    /// Nanoseconds from the start; 0 while nobody waits for the caller.
    waiting_since: AtomicU64,
    /// The caller's bytes ended before their end.
    broken: AtomicBool,
    /// Interim answers that the caller hasn't been told.
    interim: Mutex<Vec<u8>>,
    has_interim: AtomicBool,
    pub(crate) life: Life,
}

impl Clock {
    pub(crate) fn since(started: Instant) -> Self {
        Self {
            started,
            since: started,
            part: Part::Queue,
            is_trying: false,
            parts: Parts::default(),
        }
    }

    /// From now on the request waits for this.
    pub(crate) fn enter(&mut self, part: Part) {
        if self.part != part {
            let now = Instant::now();
            *self.parts.of(self.part) += now - self.since;
            (self.since, self.part) = (now, part);
        }
    }

    /// It is sent.
    pub(crate) fn begin_try(&mut self) {
        self.enter(Part::Server);
        self.is_trying = true;
    }

    /// Its answer is here, or won't come. What the time of this try went to is known only now.
    pub(crate) fn end_try(&mut self, progress: &Progress, server: Option<Duration>) {
        if !std::mem::take(&mut self.is_trying) {
            return;
        }
        let now = Instant::now();
        let whole = now - self.since;
        let (waited, connecting) = progress.take(now);
        let client = waited.min(whole);
        let connect = connecting.min(whole - client);
        let rest = whole - client - connect;
        let server = server.map_or(rest, |server| server.min(rest));
        self.parts.client += client;
        self.parts.connect += connect;
        self.parts.server += server;
        self.parts.tunnel += rest - server;
        (self.since, self.part) = (now, Part::Queue);
    }

    /// The whole, and its parts.
    pub(crate) fn stop(&mut self, progress: &Progress) -> (Duration, Parts) {
        self.end_try(progress, None);
        let now = Instant::now();
        *self.parts.of(self.part) += now - self.since;
        self.since = now;
        (now - self.started, self.parts)
    }

    /// What the application took so far, for the other side.
    pub(crate) const fn server_time(&self) -> Duration {
        self.parts.server
    }
}

impl Parts {
    const fn of(&mut self, part: Part) -> &mut Duration {
        match part {
            Part::Client => &mut self.client,
            Part::Queue => &mut self.queue,
            Part::Server => &mut self.server,
        }
    }
}

impl Progress {
    pub(crate) fn new(started: Instant) -> Self {
        Self {
            started,
            bytes: AtomicU64::new(0),
            waited: AtomicU64::new(0),
            connecting: AtomicU64::new(0),
            waiting_since: AtomicU64::new(0),
            broken: AtomicBool::new(false),
            interim: Mutex::default(),
            has_interim: AtomicBool::new(false),
            life: Life::default(),
        }
    }

    pub(crate) const fn started(&self) -> Instant {
        self.started
    }

    /// The caller's next bytes aren't here.
    pub(crate) fn wait(&self) {
        if self.waiting_since.load(Ordering::Relaxed) == 0 {
            self.waiting_since.store(nanos(self.started.elapsed()).max(1), Ordering::Relaxed);
        }
    }

    /// They are here.
    pub(crate) fn receive(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.end_waiting(|| self.started.elapsed());
    }

    /// No more of them will come.
    pub(crate) fn break_off(&self) {
        self.broken.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }

    /// How long the caller's next bytes have been waited for.
    pub(crate) fn waits(&self) -> Duration {
        match self.waiting_since.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            since => self.started.elapsed().saturating_sub(Duration::from_nanos(since)),
        }
    }

    /// The application has something to say before its answer.
    pub(crate) fn say(&self, interim: &[u8]) {
        let mut waiting = self.interim.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() + interim.len() <= MAX_INTERIM_BYTES {
            waiting.extend_from_slice(interim);
            self.has_interim.store(true, Ordering::Relaxed);
        }
    }

    /// Takes what it had to say.
    pub(crate) fn hear(&self, told: &mut Vec<u8>) {
        if self.has_interim.swap(false, Ordering::Relaxed) {
            let mut waiting = self.interim.lock().unwrap_or_else(PoisonError::into_inner);
            told.append(&mut waiting);
        }
    }

    /// Whether the caller's next bytes are waited for.
    pub(crate) fn is_waiting(&self) -> bool {
        self.waiting_since.load(Ordering::Relaxed) != 0
    }

    pub(crate) fn connected(&self, took: Duration) {
        self.connecting.fetch_add(nanos(took), Ordering::Relaxed);
    }

    fn end_waiting(&self, now: impl FnOnce() -> Duration) {
        if self.waiting_since.load(Ordering::Relaxed) != 0 {
            let since = self.waiting_since.swap(0, Ordering::Relaxed);
            self.waited.fetch_add(nanos(now()).saturating_sub(since), Ordering::Relaxed);
        }
    }

    /// How long the caller and connections were waited for since it was asked last.
    fn take(&self, now: Instant) -> (Duration, Duration) {
        self.end_waiting(|| now - self.started);
        let take = |nanos: &AtomicU64| Duration::from_nanos(nanos.swap(0, Ordering::Relaxed));
        (take(&self.waited), take(&self.connecting))
    }
}

/// What the other side says that its application took.
pub(crate) fn server_time(headers: &HeaderMap) -> Option<Duration> {
    let micros = headers.get(SERVER_TIME)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_micros(micros))
}

/// Says it to the other side.
pub(crate) fn tell_server_time(headers: &mut HeaderMap, took: Duration) {
    let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    headers.insert(SERVER_TIME, HeaderValue::from(micros));
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_add_up_to_the_whole() {
        let mut clock = Clock::since(Instant::now());
        let progress = Progress::new(clock.started);
        clock.enter(Part::Client);
        clock.begin_try();
        progress.wait();
        progress.receive(10);
        // More than can have been.
        progress.connected(Duration::from_secs(3600));
        clock.end_try(&progress, Some(Duration::from_secs(3600)));
        clock.begin_try();
        clock.end_try(&progress, Some(Duration::ZERO));
        clock.enter(Part::Server);
        clock.enter(Part::Client);
        let (whole, parts) = clock.stop(&progress);
        let Parts { client, queue, connect, tunnel, server } = parts;
        assert_eq!(client + queue + connect + tunnel + server, whole);
        assert!(!connect.is_zero() && !tunnel.is_zero(), "{parts:?}");
    }

    #[test]
    fn a_try_that_is_given_up_is_told_too() {
        let mut clock = Clock::since(Instant::now());
        let progress = Progress::new(clock.started);
        clock.begin_try();
        progress.wait();
        let (whole, parts) = clock.stop(&progress);
        let Parts { client, queue, connect, tunnel, server } = parts;
        assert_eq!(client + queue + connect + tunnel + server, whole);
        assert!(!client.is_zero(), "the caller was waited for: {parts:?}");
    }

    #[test]
    fn what_the_other_side_says_is_read_if_it_is_a_number() {
        let mut headers = HeaderMap::new();
        tell_server_time(&mut headers, Duration::from_micros(200_123));
        assert_eq!(server_time(&headers), Some(Duration::from_micros(200_123)));
        for wrong in ["", "-1", "1e9", "99999999999999999999999", "1 "] {
            headers.insert(SERVER_TIME, wrong.parse().unwrap());
            assert_eq!(server_time(&headers), None, "{wrong}");
        }
    }
}
