//! The network between the hosts: it delays, loses, doubles, reorders and drops what is too large.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::types::random::Random;

/// Conditions of a link.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    /// The least time that a datagram takes.
    pub latency: Duration,
    /// Jitter; more than the gap between datagrams reorders them.
    pub jitter: Duration,
    /// Loss in percent.
    pub loss_percent: u8,
    /// Duplication in percent.
    pub duplicate_percent: u8,
    /// Bytes of the largest IP packet. A larger one that may be fragmented passes; else it is lost
    /// without a word.
    pub mtu: usize,
}

impl Default for Link {
    fn default() -> Self {
        Self {
            latency: Duration::from_millis(5),
            jitter: Duration::ZERO,
            loss_percent: 0,
            duplicate_percent: 0,
            mtu: 1500,
        }
    }
}

/// A datagram that arrives.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Arrival {
    at: Instant,
    number: u64,
    /// Destination.
    pub to: SocketAddr,
    /// Source.
    pub from: SocketAddr,
    /// What.
    pub datagram: Vec<u8>,
}

/// The network.
#[derive(Debug)]
pub struct Network {
    /// Sets the conditions from now on.
    pub link: Link,
    /// The datagrams that were sent, if they are kept.
    pub capture: Option<Vec<Vec<u8>>>,
    random: Random,
    under_way: BinaryHeap<Reverse<Arrival>>,
    count: u64,
    /// The largest IP packet that was carried.
    pub largest: usize,
}

impl Network {
    /// A network that does what its seed says.
    pub fn new(seed: u64) -> Self {
        Self {
            link: Link::default(),
            capture: None,
            random: Random::new(seed),
            under_way: BinaryHeap::new(),
            count: 0,
            largest: 0,
        }
    }

    /// Sends a datagram.
    pub fn send(
        &mut self,
        from: SocketAddr,
        to: SocketAddr,
        datagram: &[u8],
        dont_fragment: bool,
        now: Instant,
    ) {
        let size = datagram.len() + if to.is_ipv4() { 28 } else { 48 };
        let too_big = size > self.link.mtu && dont_fragment;
        if too_big || self.chance(self.link.loss_percent) {
            return;
        }
        if let Some(capture) = &mut self.capture {
            capture.push(datagram.to_vec());
        }
        self.largest = self.largest.max(size);
        let copies = if self.chance(self.link.duplicate_percent) { 2 } else { 1 };
        for _ in 0..copies {
            let at = now + self.link.latency + self.jitter();
            self.count += 1;
            let arrival = Arrival { at, number: self.count, to, from, datagram: datagram.to_vec() };
            self.under_way.push(Reverse(arrival));
        }
    }

    /// When the next datagram arrives.
    pub fn next_arrival(&self) -> Option<Instant> {
        self.under_way.peek().map(|Reverse(arrival)| arrival.at)
    }

    /// The next datagram that has arrived by now.
    pub fn receive(&mut self, now: Instant) -> Option<Arrival> {
        self.next_arrival().filter(|at| *at <= now)?;
        self.under_way.pop().map(|Reverse(arrival)| arrival)
    }

    fn chance(&mut self, percent: u8) -> bool {
        self.random.next() % 100 < percent.into()
    }

    fn jitter(&mut self) -> Duration {
        let range = self.link.jitter.as_micros() as u64;
        Duration::from_micros(if range == 0 { 0 } else { self.random.next() % range })
    }
}
