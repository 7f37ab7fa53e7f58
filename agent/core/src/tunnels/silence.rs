//! Whether a peer still answers.
//!
//! What goes to another host for a flow is owed a sign of life: the flow's own answer, or else that of the
//! other agent to an echo. TCP would find a host dead after minutes, WireGuard after 15 s.
//!
//! ```text
//!   quiet ── a flow's packet ──▶ awaited ── 2 s, asked each half ──▶ silent, asked each 5 s
//!     ▲──────────────────────── anything authentic ────────────────────┘
//! ```

use std::time::{Duration, Instant};

/// A flow's own answer takes less, or is none.
const ASK_AFTER: Duration = Duration::from_millis(500);
const SILENT_AFTER: Duration = Duration::from_secs(2);
/// Once everybody knows.
const ASK_LATER: Duration = Duration::from_secs(5);
/// Before new connections are refused: until then TCP tries again, and each try may get through.
const REFUSE_AFTER: Duration = Duration::from_secs(10);

/// The sign of life that a peer owes.
#[derive(Debug, Default)]
pub(crate) struct Silence {
    /// When the first packet left that has got no sign of life yet.
    since: Option<Instant>,
    next_ask: Option<Instant>,
    is_told: bool,
}

/// The action against silence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Due {
    /// Ask the other agent for an echo.
    pub(crate) ask: bool,
    /// Say that the peer is silent, since then.
    pub(crate) tell: Option<Instant>,
}

impl Silence {
    /// A flow's packet goes to the peer.
    #[inline]
    pub(crate) fn note_use(&mut self, now: Instant) {
        self.since.get_or_insert(now);
    }

    /// Something authentic came. Returns whether that is news.
    #[inline]
    pub(crate) fn end(&mut self) -> bool {
        let was_told = self.is_told;
        *self = Self::default();
        was_told
    }

    pub(crate) fn tick(&mut self, now: Instant) -> Due {
        let Some(since) = self.since else { return Due::default() };
        let lasts = now.saturating_duration_since(since);
        let ask = lasts >= ASK_AFTER && self.next_ask.is_none_or(|due| now >= due);
        if ask {
            self.next_ask = Some(now + if self.is_told { ASK_LATER } else { ASK_AFTER });
        }
        let tells = lasts >= SILENT_AFTER && !std::mem::replace(&mut self.is_told, true);
        Due { ask, tell: tells.then_some(since) }
    }

    /// Since when the peer is silent, if it is.
    pub(crate) fn since(&self) -> Option<Instant> {
        self.since.filter(|_| self.is_told)
    }

    /// Whether it has been silent for so long that nobody need wait for it.
    pub(crate) fn refuses(&self, now: Instant) -> bool {
        self.is_told && self.since.is_some_and(|since| now >= since + REFUSE_AFTER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: Duration = Duration::from_millis(250);

    /// Ticks until a time has passed; when it was asked, and when told.
    fn watch(silence: &mut Silence, start: Instant, time: Duration) -> (Vec<u128>, Vec<u128>) {
        let (mut asked, mut told) = (Vec::new(), Vec::new());
        let mut now = start;
        while now <= start + time {
            let due = silence.tick(now);
            let at = (now - start).as_millis();
            asked.extend(due.ask.then_some(at));
            told.extend(due.tell.map(|_| at));
            now += TICK;
        }
        (asked, told)
    }

    #[test]
    fn a_peer_that_owes_an_answer_is_asked_then_silent() {
        let (mut silence, start) = (Silence::default(), Instant::now());
        assert_eq!(watch(&mut silence, start, Duration::from_secs(5)), (vec![], vec![]));
        silence.note_use(start);
        let (asked, told) = watch(&mut silence, start, Duration::from_secs(13));
        assert_eq!(asked, [500, 1000, 1500, 2000, 2500, 7500, 12500]);
        assert_eq!(told, [2000]);
        assert_eq!(silence.since(), Some(start));
        assert!(!silence.refuses(start + Duration::from_secs(9)));
        assert!(silence.refuses(start + Duration::from_secs(10)));
        assert!(silence.end() && !silence.end());
        assert_eq!(silence.since(), None);
    }

    #[test]
    fn a_peer_that_is_heard_in_time_was_never_silent() {
        let (mut silence, start) = (Silence::default(), Instant::now());
        silence.note_use(start);
        watch(&mut silence, start, Duration::from_millis(1750));
        assert!(!silence.end());
        assert_eq!(watch(&mut silence, start, Duration::from_secs(5)), (vec![], vec![]));
    }
}
