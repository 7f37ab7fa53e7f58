//! Path MTU discovery (RFC 8899): the largest datagram that the path to a host carries.
//!
//! ```text
//!              session                  1 s, or the largest is acked
//!   (assumed) ────────▶ probing ──────────────────────────────▶ measured ──┐ 10 s and used:
//!                         ▲                                        │  ▲    │ confirmed by one
//!                         └──── 60 s and used, or roamed, or ──────┘  └────┘ probe of its size
//!                               too big to send, or unconfirmed
//! ```
//!
//! Probes go inside the tunnel, padded so that the outer IP packet has a size of the ladder, and may
//! not be fragmented. Three rounds, so that a lossy path isn't taken for a narrow one. As RFC 8899
//! has it, nothing is believed of ICMP, and a path that has become narrower is noticed though
//! nobody says so. More than Ethernet's 1,500 bytes is never assumed, only found.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::tunnel::OVERHEAD;

/// Sizes of the outer IP packet: IPv6's minimum, common tunnels, PPPoE, Ethernet; then jumbo frames,
/// as clouds and switches have them, with and without a tunnel. The top is what the overlay needs.
const LADDER: [u16; 12] =
    [SMALLEST, 1380, 1420, 1472, 1492, ETHERNET, 2000, 4000, 8000, 8896, 8950, 9000];
const SMALLEST: u16 = 1280;
const ETHERNET: u16 = 1500;

const ROUNDS: u32 = 3;
const ROUND: Duration = Duration::from_millis(300);
const PROBING: Duration = Duration::from_secs(1);
/// Paths change: for the worse, and for the better.
const CONFIRM: Duration = Duration::from_secs(10);
const AGAIN: Duration = Duration::from_secs(60);
/// After probes that nobody acked.
const AGAIN_AFTER_SILENCE: Duration = Duration::from_secs(10);

/// Overhead of IP, UDP and WireGuard headers on an inner packet.
pub(crate) fn overhead(endpoint: Option<SocketAddr>) -> usize {
    let ip = if endpoint.is_some_and(|endpoint| endpoint.is_ipv4()) { 20 } else { 40 };
    ip + 8 + OVERHEAD
}

/// The largest outer IP packet that an overlay with this MTU makes.
pub(crate) fn top(mtu: u16) -> u16 {
    mtu.saturating_add(overhead(None) as u16).max(SMALLEST)
}

/// Path MTU state.
#[derive(Debug)]
pub(crate) struct Path {
    /// No more is needed.
    top: u16,
    mtu: u16,
    probing: Option<Probing>,
    next_probing: Option<Instant>,
    next_confirmation: Option<Instant>,
    used: bool,
    last_identifier: u16,
}

#[derive(Debug)]
struct Probing {
    started: Instant,
    rounds: u32,
    /// Sizes up to this one aren't tried; 0 but for a confirmation.
    floor: u16,
    acked: u16,
    /// A larger datagram couldn't be sent at all, or isn't needed.
    ceiling: u16,
}

/// Next action.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Nothing,
    /// Send a probe of each of these [`sizes`](Path::sizes).
    Probe {
        identifier: u16,
        above: u16,
        ceiling: u16,
    },
    /// The path's MTU is another now.
    Changed,
}

impl Path {
    /// Assumes an Ethernet: probes take a second at most, and most paths are one.
    pub(crate) fn new(top: u16) -> Self {
        Self {
            top,
            mtu: top.min(ETHERNET),
            probing: None,
            next_probing: None,
            next_confirmation: None,
            used: false,
            last_identifier: 0,
        }
    }

    /// Bytes of the outer IP packet that the path carries, as far as is known.
    pub(crate) fn mtu(&self) -> u16 {
        self.mtu
    }

    /// The sizes to try, above one and up to another.
    pub(crate) fn sizes(&self, above: u16, ceiling: u16) -> impl Iterator<Item = u16> + use<> {
        let top = self.top;
        let steps = LADDER.into_iter().filter(move |step| *step < top).chain([top]);
        steps.filter(move |size| *size > above && *size <= ceiling)
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
        self.start(0, self.top, now);
    }

    fn start(&mut self, floor: u16, ceiling: u16, now: Instant) {
        self.last_identifier = self.last_identifier.wrapping_add(1);
        self.probing = Some(Probing { started: now, rounds: 0, floor, acked: 0, ceiling });
    }

    /// A datagram of this size, as outer IP packet, couldn't be sent.
    pub(crate) fn handle_too_big(&mut self, outer: usize, now: Instant) -> bool {
        let ceiling = self.below(outer);
        match &mut self.probing {
            Some(probing) => probing.ceiling = probing.ceiling.min(ceiling),
            None if self.mtu > ceiling => self.start(0, ceiling, now),
            None => {}
        }
        let shrinks = self.mtu > ceiling;
        self.mtu = self.mtu.min(ceiling);
        shrinks
    }

    /// The largest step below a size.
    fn below(&self, outer: usize) -> u16 {
        let lower = self.sizes(0, self.top).filter(|step| usize::from(*step) < outer);
        lower.last().unwrap_or(SMALLEST)
    }

    /// A probe of this size arrived. Returns whether the path's MTU is another with that.
    pub(crate) fn handle_ack(&mut self, identifier: u16, size: u16, now: Instant) -> bool {
        if identifier != self.last_identifier || !self.sizes(0, self.top).any(|it| it == size) {
            return false;
        }
        let Some(probing) = &mut self.probing else { return false };
        probing.acked = probing.acked.max(size);
        probing.acked >= probing.ceiling && self.conclude(now)
    }

    /// To be called four times a second while the tunnel is live.
    pub(crate) fn tick(&mut self, now: Instant) -> Action {
        if self.probing.is_none() && self.used {
            let is_due = |due: Option<Instant>| due.is_some_and(|due| now >= due);
            if is_due(self.next_probing) {
                self.used = false;
                self.begin(now);
            } else if is_due(self.next_confirmation) {
                self.used = false;
                self.start(self.mtu - 1, self.mtu, now);
            }
        }
        let Some(probing) = &mut self.probing else { return Action::Nothing };
        if now >= probing.started + PROBING {
            return if self.conclude(now) { Action::Changed } else { Action::Nothing };
        }
        if probing.rounds >= ROUNDS || now < probing.started + ROUND * probing.rounds {
            return Action::Nothing;
        }
        probing.rounds += 1;
        let (above, ceiling) = (probing.acked.max(probing.floor), probing.ceiling);
        Action::Probe { identifier: self.last_identifier, above, ceiling }
    }

    fn conclude(&mut self, now: Instant) -> bool {
        let Some(Probing { floor, acked, .. }) = self.probing.take() else { return false };
        let is_answered = acked > 0;
        self.next_confirmation = Some(now + CONFIRM);
        if floor > 0 {
            if !is_answered && self.mtu > SMALLEST {
                self.begin(now);
            }
            return false;
        }
        let again = if is_answered { AGAIN } else { AGAIN_AFTER_SILENCE };
        self.next_probing = Some(now + again);
        // Silence says nothing about size: the peer may be away.
        let mtu = if is_answered { acked } else { self.mtu };
        std::mem::replace(&mut self.mtu, mtu) != mtu
    }
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
                for size in path.sizes(above, ceiling) {
                    if size <= carries && round > loses_round {
                        path.handle_ack(identifier, size, now);
                    }
                }
            }
            now += Duration::from_millis(50);
        }
        now
    }

    /// Uses a path for a while.
    fn live(path: &mut Path, from: Instant, time: Duration, carries: u16) -> Instant {
        let mut now = from;
        while now < from + time {
            path.note_use();
            if let Action::Probe { identifier, above, ceiling } = path.tick(now) {
                for size in path.sizes(above, ceiling).filter(|size| *size <= carries) {
                    path.handle_ack(identifier, size, now);
                }
            }
            now += Duration::from_millis(250);
        }
        now
    }

    #[test]
    fn a_wide_path_is_measured_at_once() {
        let (mut path, now) = (Path::new(ETHERNET), Instant::now());
        path.begin(now);
        let end = run(&mut path, now, 1500, 0);
        assert_eq!(path.mtu(), 1500);
        assert!(end < now + Duration::from_millis(100));
    }

    #[test]
    fn a_narrow_path_is_measured_in_a_second_though_rounds_are_lost() {
        for lost in 0..ROUNDS {
            let (mut path, now) = (Path::new(ETHERNET), Instant::now());
            path.begin(now);
            let end = run(&mut path, now, 1400, lost);
            assert_eq!(path.mtu(), 1380);
            assert!(end <= now + PROBING + Duration::from_millis(50));
        }
    }

    #[test]
    fn silence_changes_nothing_and_is_probed_again() {
        let (mut path, now) = (Path::new(ETHERNET), Instant::now());
        path.begin(now);
        let end = run(&mut path, now, 0, 0);
        assert_eq!(path.mtu(), 1500);
        path.note_use();
        assert!(matches!(path.tick(end + AGAIN_AFTER_SILENCE), Action::Probe { .. }));
    }

    #[test]
    fn a_datagram_too_big_to_send_narrows_the_path_at_once() {
        let (mut path, now) = (Path::new(ETHERNET), Instant::now());
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
    fn jumbo_frames_are_found_and_never_assumed() {
        let (mut path, now) = (Path::new(top(8920)), Instant::now());
        assert_eq!(path.mtu(), 1500);
        path.begin(now);
        let end = run(&mut path, now, 9000, 0);
        assert_eq!(path.mtu(), 9000);
        assert!(end < now + Duration::from_millis(100));
        let mut path = Path::new(top(8920));
        path.begin(now);
        run(&mut path, now, 8951, 0);
        assert_eq!(path.mtu(), 8950);
    }

    #[test]
    fn no_more_is_tried_than_the_overlay_needs() {
        let path = Path::new(top(1420));
        assert_eq!(path.sizes(1472, u16::MAX).collect::<Vec<_>>(), [1492, 1500]);
        let path = Path::new(top(1500));
        assert_eq!(path.sizes(1492, u16::MAX).collect::<Vec<_>>(), [1500, 1580]);
    }

    #[test]
    fn a_path_that_becomes_narrow_in_silence_is_noticed_within_seconds() {
        let (mut path, now) = (Path::new(top(8920)), Instant::now());
        path.begin(now);
        let end = run(&mut path, now, 9000, 0);
        let end = live(&mut path, end, 3 * CONFIRM, 9000);
        assert_eq!(path.mtu(), 9000, "confirmed");
        live(&mut path, end, CONFIRM + 3 * PROBING, 1400);
        assert_eq!(path.mtu(), 1380);
    }

    #[test]
    fn a_path_that_becomes_wide_is_noticed_within_a_minute() {
        let (mut path, now) = (Path::new(ETHERNET), Instant::now());
        path.begin(now);
        let end = run(&mut path, now, 1400, 0);
        live(&mut path, end, AGAIN + PROBING, 1500);
        assert_eq!(path.mtu(), 1500);
    }

    #[test]
    fn idle_paths_are_left_alone() {
        let (mut path, now) = (Path::new(ETHERNET), Instant::now());
        path.begin(now);
        let end = run(&mut path, now, 1500, 0);
        assert_eq!(path.tick(end + AGAIN * 3), Action::Nothing);
    }

    #[test]
    fn acks_of_other_probes_count_for_nothing() {
        let (mut path, now) = (Path::new(ETHERNET), Instant::now());
        path.begin(now);
        path.handle_too_big(1400, now);
        assert!(!path.handle_ack(99, 1500, now));
        assert!(!path.handle_ack(1, 1499, now));
        assert_eq!(path.mtu(), 1380);
    }
}
