//! Regular expressions of routes and rules.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use regex_lite::{Regex, RegexBuilder};

/// A regular expression that fits whole texts, in time linear to them.
#[derive(Clone)]
pub struct Pattern {
    pub(super) text: Arc<str>,
    compiled: Regex,
}

/// Why a text is no [`Pattern`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PatternError(String);

impl Pattern {
    /// As it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether the whole of a text fits.
    #[must_use]
    pub fn fits(&self, text: &str) -> bool {
        self.compiled.is_match(text)
    }

    /// What every text begins with that fits, as far as that is easily told.
    #[must_use]
    pub fn literal_start(&self) -> String {
        let mut start = String::new();
        if self.text.contains('|') && !is_within_brackets(&self.text) {
            return start;
        }
        let mut rest = self.text.chars();
        loop {
            let before = start.len();
            match rest.next() {
                Some('\\') => match rest.next() {
                    Some(escaped) if escaped.is_ascii_punctuation() => start.push(escaped),
                    Some(_) | None => return start,
                },
                Some('.' | '[' | '(' | '^' | '$') | None => return start,
                // Of the character before it there may be none, or it goes on in another way.
                Some('?' | '*' | '+' | '{' | '|' | ')' | ']' | '}') => return start,
                Some(plain) => start.push(plain),
            }
            if rest.clone().next().is_some_and(|next| matches!(next, '?' | '*' | '+' | '{')) {
                start.truncate(before);
                return start;
            }
        }
    }
}

/// Whether each `|` stands within round brackets. In doubt it doesn't.
pub(super) fn is_within_brackets(expression: &str) -> bool {
    let mut depth = 0_usize;
    for character in expression.chars() {
        match character {
            // A bracket may be meant as itself.
            '\\' | '[' => return false,
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            '|' if depth == 0 => return false,
            _ => {}
        }
    }
    true
}

impl FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        const LARGEST: usize = 256 << 10;
        let compile = |text: &str| {
            let built = RegexBuilder::new(text).size_limit(LARGEST).build();
            built.map_err(|error| PatternError(error.to_string()))
        };
        // By itself first: "a)|(b" would be right within the brackets.
        compile(text)?;
        Ok(Self { text: text.into(), compiled: compile(&format!("^(?:{text})$"))? })
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Pattern {}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pattern({:?})", self.text)
    }
}
