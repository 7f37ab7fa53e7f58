//! Audit mode: rules that only log.

use std::fmt;
use std::sync::Arc;

#[cfg(feature = "proto")]
use crate::problems::{Code, Problem};
use crate::rules::{Action, Origin, Rules, Subject};

/// Something that would be denied, and passes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Audited {
    /// All.
    Everything,
    /// What goes to somebody.
    To(Subject),
    /// What one rule denies.
    Rule(Arc<str>, Origin),
}

impl Rules {
    /// All that these rules only log, the widest first.
    #[must_use]
    pub fn audits(&self) -> Vec<Audited> {
        let everything = self.audit.then_some(Audited::Everything);
        let to = self.audited.iter().cloned().map(Audited::To);
        let of_rules = self.rules.iter().filter(|rule| rule.audit && rule.action == Action::Deny);
        let rules = of_rules.map(|it| Audited::Rule(Arc::clone(&it.name), it.origin.clone()));
        everything.into_iter().chain(to).chain(rules).collect()
    }

    /// As the topology writes it: `true`, or whom it is about.
    #[must_use]
    pub fn audit_words(&self) -> String {
        if self.audited.is_empty() {
            return self.audit.to_string();
        }
        let named: Vec<String> = self.audited.iter().map(ToString::to_string).collect();
        named.join(", ")
    }
}

#[cfg(feature = "proto")]
impl Audited {
    /// That it isn't enforced: nobody shall take it for what it isn't.
    #[must_use]
    pub fn problem(&self) -> Problem {
        let text = format!("AUDIT MODE: {self} only logged (\"would deny\"), and passes");
        let remedy = format!(
            "see what would be denied (`agentctl flows` and the logs, on hosts), then take {} away and \
             apply",
            self.place()
        );
        Problem::new(Code::Audit, text, remedy).about(self.subject())
    }

    /// Subject.
    fn subject(&self) -> String {
        match self {
            Self::Everything => String::new(),
            Self::To(subject) => subject.to_string(),
            Self::Rule(name, _) => format!("rule {name}"),
        }
    }

    /// Part of the topology that says so.
    fn place(&self) -> String {
        match self {
            Self::Everything => "`audit = true` in [policy]".to_owned(),
            Self::To(subject) => format!("\"{subject}\" from `audit` in [policy]"),
            Self::Rule(_, origin) => format!("`audit = true` at {origin}"),
        }
    }
}

/// As a sentence's subject: "what goes to service:web and would be denied is".
impl fmt::Display for Audited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Everything => f.write_str("all that policy would deny is"),
            Self::To(subject) => write!(f, "what policy would deny to {subject} is"),
            Self::Rule(name, _) => write!(f, "what the rule {name:?} would deny is"),
        }
    }
}
