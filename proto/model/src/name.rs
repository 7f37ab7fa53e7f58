//! Names of hosts, services, namespaces, devices and meshes.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// A DNS label (RFC 1123, section 2.1): 1 to 63 of `a-z`, `0-9` and `-`, neither first nor last a
/// hyphen. Lower case only, so that equal names are equal bytes. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<str>);

/// Why a text is not a [`Name`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// There is no text.
    #[error("a name can't be empty")]
    Empty,
    /// The text has more than 63 characters.
    #[error("a name has at most 63 characters, this one has {0}")]
    TooLong(usize),
    /// A character that no name may have.
    #[error("a name consists of a-z, 0-9 and '-', not {0:?}")]
    BadCharacter(char),
    /// A hyphen at one of the ends.
    #[error("a name can't begin or end with '-'")]
    HyphenAtEnd,
}

impl Name {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        let allowed = |c: &char| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == '-';
        if let Some(bad) = text.chars().find(|c| !allowed(c)) {
            return Err(NameError::BadCharacter(bad));
        }
        if text.len() > 63 {
            return Err(NameError::TooLong(text.len()));
        }
        if text.starts_with('-') || text.ends_with('-') {
            return Err(NameError::HyphenAtEnd);
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_dns_labels_only() {
        assert_eq!("app-1".parse::<Name>().unwrap().as_str(), "app-1");
        assert_eq!("".parse::<Name>(), Err(NameError::Empty));
        assert_eq!("App".parse::<Name>(), Err(NameError::BadCharacter('A')));
        assert_eq!("a.b".parse::<Name>(), Err(NameError::BadCharacter('.')));
        assert_eq!("-a".parse::<Name>(), Err(NameError::HyphenAtEnd));
        assert_eq!("a".repeat(64).parse::<Name>(), Err(NameError::TooLong(64)));
    }
}
