//! Request timing: where the time of a request went.
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
//! field of the answer ([`isthmus_http::marks::SERVER_TIME`], microseconds), which the client's side removes.

use std::time::{Duration, Instant};

use crate::pool::progress::Progress;

/// Phases in which a request waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Client,
    Queue,
    /// Or for what only the end of a try tells apart.
    Server,
}

/// Waiting times of a request, by phase.
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

    /// Time that the application has taken so far, for the other side.
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
}
