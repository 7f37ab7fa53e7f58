//! Operators and their roles.
//!
//! The CA's word makes somebody an operator; what is written here limits it. Who isn't written down has a
//! certificate that was made on the controller's machine, by whoever holds the CA's key, or that is from before
//! there were roles: that is an administrator.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use isthmus_model::Name;
use serde::{Deserialize, Serialize};

use crate::text;

/// How many are written down at most. Nobody is forgotten: their certificates would be good again.
const MOST: usize = 10_000;

/// What an operator may do. Each may do what those before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Look at everything.
    View,
    /// Change the topology, and steer rollouts.
    Apply,
    /// Let hosts and operators in, and remove them.
    Admin,
}

/// An operator who is written down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operator {
    /// Their name.
    #[serde(with = "text")]
    pub name: Name,
    /// Their role.
    pub role: Role,
    /// When they were added, in seconds since the epoch; 0 if they never were.
    pub added: i64,
    /// By whom.
    pub added_by: String,
    /// Certificates that were issued up to then are worth nothing, in seconds since the epoch.
    pub void_until: i64,
    /// Operator who revoked them; empty while they are valid.
    pub revoked_by: String,
}

/// All operators who are written down.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Operators {
    known: BTreeMap<Name, Operator>,
}

/// There are too many operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there have been {MOST} operators, which is as many as a mesh can have")]
pub struct TooMany;

impl FromIterator<Operator> for Operators {
    fn from_iter<I: IntoIterator<Item = Operator>>(all: I) -> Self {
        Self { known: all.into_iter().map(|one| (one.name.clone(), one)).collect() }
    }
}

impl Operators {
    /// All of them, by name.
    pub fn all(&self) -> impl Iterator<Item = &Operator> {
        self.known.values()
    }

    /// One of them.
    #[must_use]
    pub fn find(&self, name: &Name) -> Option<&Operator> {
        self.known.get(name)
    }

    /// What a certificate of a name lets its bearer do that was issued at a time; none if it is worth nothing.
    #[must_use]
    pub fn role(&self, name: &Name, issued: i64) -> Option<Role> {
        match self.known.get(name) {
            None => Some(Role::Admin),
            Some(operator) => (issued > operator.void_until).then_some(operator.role),
        }
    }

    /// Adds an operator, or gives one another role. Certificates of a former time stay worth nothing.
    ///
    /// # Errors
    ///
    /// There are too many.
    pub fn add(&self, name: &Name, role: Role, by: &str, now: i64) -> Result<Operator, TooMany> {
        let before = self.known.get(name);
        if before.is_none() && self.known.len() >= MOST {
            return Err(TooMany);
        }
        Ok(Operator {
            name: name.clone(),
            role,
            added: now,
            added_by: by.to_owned(),
            void_until: before.map_or(i64::MIN, |before| before.void_until),
            revoked_by: String::new(),
        })
    }

    /// Makes worthless what was issued to a name up to now.
    ///
    /// # Errors
    ///
    /// There are too many.
    pub fn revoke(&self, name: &Name, by: &str, now: i64) -> Result<Operator, TooMany> {
        let added = match self.known.get(name) {
            Some(before) => before.clone(),
            None => Operator { added: 0, ..self.add(name, Role::Admin, "", now)? },
        };
        // What was issued since the last time is void, too, also where the clock was set back.
        let void_until = added.void_until.saturating_add(1).max(now);
        Ok(Operator { void_until, revoked_by: by.to_owned(), ..added })
    }

    /// When a certificate that is issued now must say that it was, to be good.
    #[must_use]
    pub fn issue_time(&self, name: &Name, now: i64) -> i64 {
        let void = self.known.get(name).map_or(i64::MIN, |operator| operator.void_until);
        now.max(void.saturating_add(1))
    }

    /// Whether somebody is an administrator, of those written down and of those `seen`.
    #[must_use]
    pub fn has_admin<'a>(&self, mut seen: impl Iterator<Item = &'a Name>) -> bool {
        let written = |one: &Operator| one.role == Role::Admin && !one.is_revoked();
        self.all().any(written) || seen.any(|name| self.find(name).is_none())
    }

    /// Writes one down, as it is now.
    #[must_use]
    pub fn with(&self, operator: Operator) -> Self {
        let mut next = self.clone();
        next.known.insert(operator.name.clone(), operator);
        next
    }
}

impl Operator {
    /// Whether no certificate of theirs is good any more.
    #[must_use]
    pub const fn is_revoked(&self) -> bool {
        !self.revoked_by.is_empty()
    }
}

impl Role {
    /// All of them, from the least to the most.
    pub const ALL: [Self; 3] = [Self::View, Self::Apply, Self::Admin];

    /// In one word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::View => "view",
            Self::Apply => "apply",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// There is no such role.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no role: the roles are view, apply and admin")]
pub struct UnknownRole(String);

impl FromStr for Role {
    type Err = UnknownRole;

    fn from_str(text: &str) -> Result<Self, UnknownRole> {
        let found = Self::ALL.into_iter().find(|role| role.name() == text);
        found.ok_or_else(|| UnknownRole(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    #[test]
    fn who_is_not_written_down_has_the_cas_word() {
        assert_eq!(Operators::default().role(&name("admin"), 5), Some(Role::Admin));
    }

    #[test]
    fn what_was_issued_before_a_revocation_is_never_good_again() {
        let bob = name("bob");
        let mut all = Operators::default();
        all = all.with(all.add(&bob, Role::Apply, "alice", 100).unwrap());
        assert_eq!(all.role(&bob, 100), Some(Role::Apply));
        all = all.with(all.revoke(&bob, "alice", 200).unwrap());
        assert_eq!([100, 200].map(|issued| all.role(&bob, issued)), [None, None]);
        assert!(all.find(&bob).unwrap().is_revoked());
        // In the same second, and with a clock that was set back.
        for now in [200, 150] {
            let again = all.with(all.add(&bob, Role::View, "alice", now).unwrap());
            assert!(!again.find(&bob).unwrap().is_revoked());
            assert_eq!(again.role(&bob, 200), None);
            assert_eq!(again.role(&bob, again.issue_time(&bob, now)), Some(Role::View));
            let issued = again.issue_time(&bob, now);
            let revoked = again.with(again.revoke(&bob, "alice", now).unwrap());
            assert_eq!([200, issued].map(|issued| revoked.role(&bob, issued)), [None, None]);
        }
    }

    #[test]
    fn who_was_never_written_down_can_be_revoked() {
        let all = Operators::default();
        let all = all.with(all.revoke(&name("old"), "alice", 50).unwrap());
        assert_eq!(
            (all.role(&name("old"), 50), all.role(&name("other"), 50)),
            (None, Some(Role::Admin))
        );
    }

    #[test]
    fn the_last_administrator_is_known() {
        let (alice, bob) = (name("alice"), name("bob"));
        let mut all = Operators::default();
        all = all.with(all.add(&alice, Role::Admin, "", 1).unwrap());
        all = all.with(all.add(&bob, Role::Apply, "alice", 1).unwrap());
        let revoked = all.with(all.revoke(&alice, "alice", 2).unwrap());
        let lesser = all.with(all.add(&alice, Role::View, "alice", 2).unwrap());
        for next in [&revoked, &lesser] {
            assert!(all.has_admin([].iter()) && !next.has_admin([&alice, &bob].into_iter()));
            assert!(next.has_admin(std::iter::once(&name("root"))), "never written down");
        }
    }

    #[test]
    fn roles_grow() {
        assert!(Role::View < Role::Apply && Role::Apply < Role::Admin);
        for role in Role::ALL {
            assert_eq!(role.name().parse(), Ok(role));
        }
        assert!("root".parse::<Role>().unwrap_err().to_string().contains("view, apply and admin"));
    }
}
