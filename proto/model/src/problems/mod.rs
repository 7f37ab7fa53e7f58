//! Problems of a host or a controller: each thing that works less than it should, in words, with
//! what to do.
//!
//! Whoever finds a problem raises it, and clears it once it is over; nobody else keeps track. Operators
//! see the list by `agentctl status`: an agent's on its host and, since it is sent to the controller,
//! with the whole mesh.
//! A problem is logged when it begins and when it ends, however often it is raised meanwhile.

mod code;

use std::collections::BTreeMap;
use std::time::SystemTime;

use isthmus_proto::v1;
use parking_lot::Mutex;

pub use code::{Code, UnknownCode};

/// Problems of one code that are kept: what they are about can be somebody else's choice.
const PER_CODE: usize = 16;
/// A text that is longer is cut.
const LONGEST_TEXT: usize = 1_024;

/// The problems of `now` that a revision brought: not there `before`, or of something else then.
#[must_use]
pub fn brought(before: &[v1::Problem], now: Vec<v1::Problem>) -> Vec<v1::Problem> {
    let is_new = |it: &v1::Problem| {
        let comes = it.code.parse().is_ok_and(Code::comes_with_revisions);
        let same = |old: &v1::Problem| {
            (&old.code, &old.subject, &old.text) == (&it.code, &it.subject, &it.text)
        };
        comes && !before.iter().any(same)
    };
    now.into_iter().filter(is_new).collect()
}

/// All that is wrong now.
#[derive(Debug, Default)]
pub struct Problems {
    known: Mutex<BTreeMap<Key, Known>>,
}

/// Code and subject.
type Key = (Code, String);

#[derive(Clone, Debug)]
struct Known {
    text: String,
    remedy: String,
    since: SystemTime,
}

/// A problem as whoever found it says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// For programs.
    pub code: Code,
    /// What of several it is about; empty where there is one only.
    pub subject: String,
    /// One sentence, without a full stop.
    pub text: String,
    /// What to do about it, likewise. Commands stand in backquotes; the first one mends it as it is.
    pub remedy: String,
}

impl Problem {
    /// A problem that there can be only one of.
    #[must_use]
    pub fn new(code: Code, text: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { code, subject: String::new(), text: text.into(), remedy: remedy.into() }
    }

    /// The same, about one of several.
    #[must_use]
    pub fn about(self, subject: impl Into<String>) -> Self {
        Self { subject: subject.into(), ..self }
    }

    /// As the controller is told it.
    #[must_use]
    pub fn to_message(&self, since: SystemTime) -> v1::Problem {
        let since = since.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        v1::Problem {
            code: self.code.name().to_owned(),
            subject: self.subject.clone(),
            text: self.text.clone(),
            remedy: self.remedy.clone(),
            since: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        }
    }
}

impl Problems {
    /// There is this problem, still or since now.
    pub fn raise(&self, problem: Problem) {
        let mut known = self.known.lock();
        raise(&mut known, problem);
    }

    /// It is over, if there was one.
    pub fn clear(&self, code: Code, subject: &str) {
        let mut known = self.known.lock();
        if known.remove(&(code, subject.to_owned())).is_some() {
            tracing::info!(%code, subject, "a problem is over");
        }
    }

    /// These are all problems of this code: others of it are over.
    pub fn replace(&self, code: Code, problems: impl IntoIterator<Item = Problem>) {
        let problems: Vec<Problem> = problems.into_iter().collect();
        let mut known = self.known.lock();
        known.retain(|(of, subject), _| {
            let stays = *of != code || problems.iter().any(|it| it.subject == *subject);
            if !stays {
                tracing::info!(%code, subject, "a problem is over");
            }
            stays
        });
        for problem in problems {
            raise(&mut known, problem);
        }
    }

    /// Raises a problem where `found` has one, and clears it otherwise.
    pub fn set(&self, code: Code, found: Option<Problem>) {
        self.replace(code, found);
    }

    /// Whether there is any of this code.
    #[must_use]
    pub fn has(&self, code: Code) -> bool {
        self.known.lock().keys().any(|(of, _)| *of == code)
    }

    /// All of them, in order of code and subject.
    #[must_use]
    pub fn all(&self) -> Vec<v1::Problem> {
        let message = |((code, subject), it): (&Key, &Known)| {
            Problem::new(*code, it.text.clone(), it.remedy.clone())
                .about(subject.clone())
                .to_message(it.since)
        };
        self.known.lock().iter().map(message).collect()
    }
}

fn raise(known: &mut BTreeMap<Key, Known>, problem: Problem) {
    let Problem { code, subject, mut text, remedy } = problem;
    text.truncate(text.floor_char_boundary(LONGEST_TEXT));
    let key = (code, subject);
    if let Some(it) = known.get_mut(&key) {
        (it.text, it.remedy) = (text, remedy);
        return;
    }
    if known.keys().filter(|(of, _)| *of == code).count() >= PER_CODE {
        return;
    }
    tracing::warn!(%code, subject = key.1, remedy, "{text}");
    known.insert(key, Known { text, remedy, since: SystemTime::now() });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about(subject: &str) -> Problem {
        Problem::new(Code::Selector, format!("{subject} is broken"), "mend it").about(subject)
    }

    #[test]
    fn a_problem_lasts_from_its_first_raising_to_its_clearing() {
        let problems = Problems::default();
        problems.raise(about("a"));
        let since = problems.all()[0].since;
        problems.raise(Problem { text: "a is still broken".into(), ..about("a") });
        let all = problems.all();
        assert_eq!((all.len(), all[0].since, &*all[0].text), (1, since, "a is still broken"));
        problems.clear(Code::Selector, "a");
        assert_eq!(problems.all(), []);
    }

    #[test]
    fn replacing_ends_what_is_not_named_again() {
        let problems = Problems::default();
        problems.raise(Problem::new(Code::Audit, "x", "y"));
        problems.replace(Code::Selector, [about("a"), about("b")]);
        problems.replace(Code::Selector, [about("b")]);
        let left: Vec<_> = problems.all().into_iter().map(|it| (it.code, it.subject)).collect();
        assert_eq!(left, [("audit".into(), String::new()), ("selector".into(), "b".into())]);
        problems.set(Code::Selector, None);
        assert_eq!(problems.all().len(), 1);
    }

    #[test]
    fn their_number_is_bounded() {
        let problems = Problems::default();
        for number in 0..1_000 {
            problems.raise(about(&number.to_string()));
        }
        problems.raise(Problem::new(Code::Audit, "é".repeat(LONGEST_TEXT), "y"));
        let all = problems.all();
        assert_eq!(all.len(), PER_CODE + 1);
        assert!(all.iter().all(|it| it.text.len() <= LONGEST_TEXT));
    }
}
