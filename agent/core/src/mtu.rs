//! How large a datagram the path to a host carries.
//!
//! ```text
//!              session                  1 s, or the largest is acked
//!   (assumed) ────────▶ probing ──────────────────────────────▶ measured
//!                         ▲                                        │
//!                         └──── 60 s and used, or roamed, or ──────┘
//!                               a datagram was too big to send
//! ```
//!
//! Probes go inside the tunnel, padded so that the outer IP packet has a size of the ladder, and may
//! not be fragmented. Three rounds, so that a lossy path isn't taken for a narrow one.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::tunnel::OVERHEAD;

/// Sizes of the outer IP packet: IPv6's minimum, common tunnels, PPPoE, Ethernet.
pub(crate) const LADDER: [u16; 6] = [1280, 1380, 1420, 1472, 1492, 1500];
const LARGEST: u16 = 1500;
const SMALLEST: u16 = 1280;

const ROUNDS: u32 = 3;
const ROUND: Duration = Duration::from_millis(300);
const PROBING: Duration = Duration::from_secs(1);
/// Paths change.
const AGAIN: Duration = Duration::from_secs(60);
/// After probes that nobody acked.
const AGAIN_AFTER_SILENCE: Duration = Duration::from_secs(10);

/// What IP, UDP and WireGuard headers add to an inner packet.
pub(crate) fn overhead(endpoint: Option<SocketAddr>) -> usize {
    let ip = if endpoint.is_some_and(|endpoint| endpoint.is_ipv4()) { 20 } else { 40 };
    ip + 8 + OVERHEAD
}

/// What is known of a path.
#[derive(Debug)]
pub(crate) struct Path {
    mtu: u16,
    probing: Option<Probing>,
    next_probing: Option<Instant>,
    used: bool,
    last_identifier: u16,
}

#[derive(Debug)]
struct Probing {
    started: Instant,
    rounds: u32,
    acked: u16,
    /// A larger datagram couldn't be sent at all.
    ceiling: u16,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Nothing,
    /// Send a probe of each size that is larger than `above`.
    Probe {
        identifier: u16,
        above: u16,
        ceiling: u16,
    },
    /// The path's MTU is another now.
    Changed,
}

impl Path {
    /// Assumes the best: probes take a second at most, and most paths carry it.
    pub(crate) fn new() -> Self {
        Self { mtu: LARGEST, probing: None, next_probing: None, used: false, last_identifier: 0 }
    }

    /// Bytes of the outer IP packet that the path carries, as far as is known.
    pub(crate) fn mtu(&self) -> u16 {
        self.mtu
    }

    /// Traffic goes by this path.
    pub(crate) fn note_use(&mut self) {
        self.used = true;
    }

    /// Whether nothing was ever tried.
    pub(crate) fn is_unmeasured(&self) -> bool {
        self.probing.is_none() && self.next_probing.is_none()
    }

    /// A path that may be another than before: measure it.
    pub(crate) fn begin(&mut self, now: Instant) {
        self.start(LARGEST, now);
    }

    fn start(&mut self, ceiling: u16, now: Instant) {
        self.last_identifier = self.last_identifier.wrapping_add(1);
        self.next_probing = None;
        self.probing = Some(Probing { started: now, rounds: 0, acked: 0, ceiling });
    }

    /// A datagram of this size, as outer IP packet, couldn't be sent.
    pub(crate) fn handle_too_big(&mut self, outer: usize, now: Instant) -> bool {
        let ceiling = below(outer);
        match &mut self.probing {
            Some(probing) => probing.ceiling = probing.ceiling.min(ceiling),
            None if self.mtu > ceiling => self.start(ceiling, now),
            None => {}
        }
        let shrinks = self.mtu > ceiling;
        self.mtu = self.mtu.min(ceiling);
        shrinks
    }

    /// A probe of this size arrived. Returns whether the path is measured with that.
    pub(crate) fn handle_ack(&mut self, identifier: u16, size: u16, now: Instant) -> bool {
        if identifier != self.last_identifier || !LADDER.contains(&size) {
            return false;
        }
        let Some(probing) = &mut self.probing else { return false };
        probing.acked = probing.acked.max(size);
        probing.acked >= probing.ceiling && self.conclude(now)
    }

    /// To be called four times a second while the tunnel is live.
    pub(crate) fn tick(&mut self, now: Instant) -> Action {
        if self.next_probing.is_some_and(|due| now >= due) && std::mem::take(&mut self.used) {
            self.begin(now);
        }
        let Some(probing) = &mut self.probing else { return Action::Nothing };
        if now >= probing.started + PROBING {
            return if self.conclude(now) { Action::Changed } else { Action::Nothing };
        }
        if probing.rounds >= ROUNDS || now < probing.started + ROUND * probing.rounds {
            return Action::Nothing;
        }
        probing.rounds += 1;
        let (above, ceiling) = (probing.acked, probing.ceiling);
        Action::Probe { identifier: self.last_identifier, above, ceiling }
    }

    fn conclude(&mut self, now: Instant) -> bool {
        let Some(probing) = self.probing.take() else { return false };
        let is_answered = probing.acked > 0;
        let again = if is_answered { AGAIN } else { AGAIN_AFTER_SILENCE };
        self.next_probing = Some(now + again);
        // Silence says nothing about size: the peer may be away.
        let mtu = if is_answered { probing.acked } else { self.mtu };
        std::mem::replace(&mut self.mtu, mtu) != mtu
    }
}

/// The largest step of the ladder below a size.
fn below(outer: usize) -> u16 {
    LADDER.into_iter().rev().find(|step| usize::from(*step) < outer).unwrap_or(SMALLEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(path: &mut Path, from: Instant, carries: u16, loses_round: u32) -> Instant {
        let mut now = from;
        let mut round = 0;
        while path.probing.is_some() {
            if let Action::Probe { identifier, above, ceiling } = path.tick(now) {
                round += 1;
                for size in LADDER {
                    let arrives = size <= carries && round > loses_round;
                    if size > above && size <= ceiling && arrives {
                        path.handle_ack(identifier, size, now);
                    }
                }
            }
            now += Duration::from_millis(50);
        }
        now
    }

    #[test]
    fn a_wide_path_is_measured_at_once() {
        let (mut path, now) = (Path::new(), Instant::now());
        path.begin(now);
        let end = run(&mut path, now, 1500, 0);
        assert_eq!(path.mtu(), 1500);
        assert!(end < now + Duration::from_millis(100));
    }

    #[test]
    fn a_narrow_path_is_measured_in_a_second_though_rounds_are_lost() {
        for lost in 0..ROUNDS {
            let (mut path, now) = (Path::new(), Instant::now());
            path.begin(now);
            let end = run(&mut path, now, 1400, lost);
            assert_eq!(path.mtu(), 1380);
            assert!(end <= now + PROBING + Duration::from_millis(50));
        }
    }

    #[test]
    fn silence_changes_nothing_and_is_probed_again() {
        let (mut path, now) = (Path::new(), Instant::now());
        path.begin(now);
        let end = run(&mut path, now, 0, 0);
        assert_eq!(path.mtu(), 1500);
        path.note_use();
        assert!(matches!(path.tick(end + AGAIN_AFTER_SILENCE), Action::Probe { .. }));
    }

    #[test]
    fn a_datagram_too_big_to_send_narrows_the_path_at_once() {
        let (mut path, now) = (Path::new(), Instant::now());
        assert!(path.handle_too_big(1500, now));
        assert_eq!(path.mtu(), 1492);
        let end = run(&mut path, now, 1280, 0);
        assert_eq!(path.mtu(), 1280);
        path.note_use();
        run(&mut path, end + AGAIN, 1280, 0);
        assert_eq!(
            path.tick(end + AGAIN),
            Action::Probe { identifier: 2, above: 0, ceiling: 1500 }
        );
    }

    #[test]
    fn idle_paths_are_left_alone() {
        let (mut path, now) = (Path::new(), Instant::now());
        path.begin(now);
        let end = run(&mut path, now, 1500, 0);
        assert_eq!(path.tick(end + AGAIN * 3), Action::Nothing);
    }

    #[test]
    fn acks_of_other_probes_count_for_nothing() {
        let (mut path, now) = (Path::new(), Instant::now());
        path.begin(now);
        path.handle_too_big(1400, now);
        assert!(!path.handle_ack(99, 1500, now));
        assert!(!path.handle_ack(1, 1499, now));
        assert_eq!(path.mtu(), 1380);
    }
}
