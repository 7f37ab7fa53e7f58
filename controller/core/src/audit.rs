//! Audit log of operators' acts and attempts.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// Number of acts kept.
const KEPT: usize = 10_000;
/// What an operator says, such as a name that is no host's, is cut.
const LONGEST: usize = 512;

/// Something that an operator did, or tried to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Act {
    /// Rising.
    pub number: u64,
    /// When, in seconds since the epoch; the last time of several.
    pub at: i64,
    /// Who.
    pub who: String,
    /// The address that they called from.
    pub from: String,
    /// What, in words.
    pub what: String,
    /// Whether it was done.
    pub done: bool,
    /// Its outcome, in words.
    pub result: String,
    /// Number of failed attempts in a row.
    pub times: u32,
}

/// The latest acts.
#[derive(Clone, Debug, Default)]
pub struct Audit {
    acts: VecDeque<Act>,
    last: u64,
}

impl FromIterator<Act> for Audit {
    fn from_iter<I: IntoIterator<Item = Act>>(all: I) -> Self {
        let mut acts: Vec<Act> = all.into_iter().collect();
        acts.sort_by_key(|act| act.number);
        let last = acts.last().map_or(0, |act| act.number);
        Self { acts: acts.into(), last }
    }
}

impl Audit {
    /// What is to be kept of something that happens now, and the number of what goes for it. The same in vain
    /// once more only counts up: nobody's attempts push all others' acts out.
    #[must_use]
    pub fn next(&self, act: Act) -> (Act, Option<u64>) {
        let cut = |text: String| match text.char_indices().nth(LONGEST) {
            Some((at, _)) => text[..at].to_owned(),
            None => text,
        };
        let act = Act { what: cut(act.what), result: cut(act.result), ..act };
        let same = self.acts.iter().rev().find(|old| old.who == act.who);
        let same = same.filter(|old| {
            let alike = (&old.from, &old.what, &old.result) == (&act.from, &act.what, &act.result);
            alike && !act.done && !old.done
        });
        if let Some(same) = same {
            let times = same.times.saturating_add(1);
            return (Act { at: act.at, times, ..same.clone() }, None);
        }
        let goes = self.acts.front().filter(|_| self.acts.len() >= KEPT);
        (Act { number: self.last + 1, times: 1, ..act }, goes.map(|old| old.number))
    }

    /// Keeps what is durable now.
    pub fn insert(&mut self, act: Act) {
        if let Some(old) = self.acts.iter_mut().find(|old| old.number == act.number) {
            *old = act;
            return;
        }
        self.last = self.last.max(act.number);
        self.acts.push_back(act);
        if self.acts.len() > KEPT {
            self.acts.pop_front();
        }
    }

    /// All of them, the latest first.
    pub fn latest_first(&self) -> impl Iterator<Item = &Act> {
        self.acts.iter().rev()
    }

    /// Whether somebody of this name did anything.
    #[must_use]
    pub fn knows(&self, who: &str) -> bool {
        self.acts.iter().any(|act| act.who == who)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn act(who: &str, what: &str, done: bool) -> Act {
        Act {
            number: 0,
            at: 7,
            who: who.to_owned(),
            from: "192.0.2.1".to_owned(),
            what: what.to_owned(),
            done,
            result: String::new(),
            times: 0,
        }
    }

    fn happens(audit: &mut Audit, one: Act) -> Option<u64> {
        let (next, goes) = audit.next(one);
        audit.insert(next);
        goes
    }

    #[test]
    fn it_is_bounded_and_the_oldest_go() {
        let mut audit = Audit::default();
        let gone: Vec<u64> = (0..KEPT + 5)
            .filter_map(|n| happens(&mut audit, act("a", &n.to_string(), true)))
            .collect();
        assert_eq!(gone, [1, 2, 3, 4, 5]);
        assert_eq!(audit.latest_first().count(), KEPT);
        let again: Audit = audit.latest_first().cloned().collect();
        assert_eq!(again.latest_first().next(), audit.latest_first().next());
        assert_eq!(again.last, audit.last);
    }

    #[test]
    fn who_tries_in_vain_again_and_again_is_counted() {
        let mut audit = Audit::default();
        for _ in 0..100 {
            happens(&mut audit, act("eve", "apply", false));
            happens(&mut audit, act("bob", "apply", true));
        }
        let eves: Vec<&Act> = audit.latest_first().filter(|act| act.who == "eve").collect();
        assert_eq!((eves.len(), eves[0].times), (1, 100));
        assert_eq!(audit.latest_first().count(), 101, "each thing that was done has its line");
        for _ in 0..2 {
            happens(&mut audit, act("eve", &"x".repeat(5_000), false));
        }
        let last = audit.latest_first().next().unwrap();
        assert_eq!((last.what.len(), last.times), (LONGEST, 2));
    }
}
