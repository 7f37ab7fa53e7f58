//! Replay window of packet counters (RFC 6479).

const WORDS: usize = 128;
const WORD: u64 = u64::BITS as u64;
/// How far a packet may be behind the newest: one word less than there is, so that moving on clears
/// whole words only.
pub(crate) const WINDOW: u64 = (WORDS as u64 - 1) * WORD;

/// The counters of one sender's lane.
#[derive(Clone)]
pub(crate) struct Window {
    /// The first counter that is newer than all that were seen.
    next: u64,
    seen: [u64; WORDS],
}

impl Window {
    pub(crate) const fn new() -> Self {
        Self { next: 0, seen: [0; WORDS] }
    }

    /// Whether a packet may be new. To be asked before it is opened, for speed only.
    #[inline]
    pub(crate) fn may_be_new(&self, counter: u64) -> bool {
        if counter >= self.next {
            return counter < u64::MAX;
        }
        self.next - counter <= WINDOW && !self.has_seen(counter)
    }

    /// Notes an authentic packet's counter. False if it was seen before, or is too old to tell.
    #[inline]
    pub(crate) fn accept(&mut self, counter: u64) -> bool {
        if !self.may_be_new(counter) {
            return false;
        }
        if counter >= self.next {
            self.move_to(counter + 1);
        }
        self.seen[word(counter)] |= bit(counter);
        true
    }

    fn has_seen(&self, counter: u64) -> bool {
        self.seen[word(counter)] & bit(counter) != 0
    }

    fn move_to(&mut self, next: u64) {
        // The words from the one after the newest counter's to that of the new newest.
        let (old, new) = (self.next.wrapping_sub(1) / WORD, (next - 1) / WORD);
        let first = if self.next == 0 { 0 } else { old + 1 };
        let count = (new + 1).saturating_sub(first).min(WORDS as u64);
        for word in (new + 1 - count)..=new {
            self.seen[(word % WORDS as u64) as usize] = 0;
        }
        self.next = next;
    }
}

const fn word(counter: u64) -> usize {
    ((counter / WORD) % WORDS as u64) as usize
}

const fn bit(counter: u64) -> u64 {
    1 << (counter % WORD)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_counter_is_accepted_once() {
        let mut window = Window::new();
        for counter in [0, 1, 5, 3, 200, 64, WINDOW + 400, 405] {
            assert!(window.accept(counter), "{counter}");
            assert!(!window.accept(counter), "{counter} again");
        }
        assert!(!window.accept(200), "too old");
        assert!(!window.accept(u64::MAX), "a counter that has no next one");
    }

    proptest! {
        /// Against a set of all counters that were ever accepted.
        #[test]
        fn it_knows_what_a_set_knows(steps in prop::collection::vec((0..4u8, 0..20_000u64), 1..400)) {
            let (mut window, mut seen) = (Window::new(), BTreeSet::new());
            let mut newest = 0u64;
            for (kind, distance) in steps {
                let counter = match kind {
                    0 => newest + 1,
                    1 => newest + distance,
                    2 => newest.saturating_sub(distance),
                    _ => newest.saturating_sub(distance % 200),
                };
                let next = seen.last().map_or(0, |last| last + 1);
                let expected = (counter >= next || next - counter <= WINDOW) && !seen.contains(&counter);
                prop_assert_eq!(window.may_be_new(counter), expected);
                prop_assert_eq!(window.accept(counter), expected, "{} of {}", counter, newest);
                if expected {
                    seen.insert(counter);
                    newest = newest.max(counter);
                }
            }
        }
    }
}
