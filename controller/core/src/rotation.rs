//! Tunnel keys that change.
//!
//! ```text
//!  (none) ─ an operator wants it ─▶ Wanted ─ the agent's new key ─▶ Overlap ─ its time is over ─▶ (none)
//! ```
//!
//! The wish is kept until the agent has made a key, however often either of them restarts meanwhile. From
//! then on the new key is the host's, and the former one is good beside it.

use isthmus_model::topology::Topology;
use isthmus_model::{Name, PublicKey, Revision};
use serde::{Deserialize, Serialize};

use crate::inventory::{Member, devices_on};
use crate::state::State;
use crate::text;

/// Progress of the change of a host's tunnel key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rotation {
    /// An operator wants it; the agent has yet to make a key.
    Wanted {
        /// For how long both keys shall be good, in seconds.
        overlap: i64,
    },
    /// Both keys are good.
    Overlap {
        /// The one that goes.
        #[serde(with = "text")]
        former: PublicKey,
        /// Until when, in seconds since the epoch.
        until: i64,
        /// The revision that brought the new one.
        revision: u64,
    },
}

/// Why a host's key isn't changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RotationError {
    /// There is no such member.
    #[error("there is no host {0:?} in the mesh; `agentctl host list` shows all")]
    Unknown(String),
    /// It is being changed.
    #[error(
        "the key of host {0} was changed a moment ago: the one before is good still (`agentctl host show {0}`)"
    )]
    Overlaps(Name),
    /// Files of devices name it.
    #[error(
        "the WireGuard files of {} name the key of host {host}: export them again (`agentctl device export NAME`) while both keys are good; with --reissue you say that you will",
        .devices.join(", ")
    )]
    Pinned {
        /// The host.
        host: Name,
        /// The devices behind it.
        devices: Vec<String>,
    },
}

impl Member {
    /// The tunnel key before its present one, while that is good.
    #[must_use]
    pub fn former_key(&self) -> Option<PublicKey> {
        match self.rotation {
            Some(Rotation::Overlap { former, .. }) => Some(former),
            Some(Rotation::Wanted { .. }) | None => None,
        }
    }

    pub(crate) fn has_key(&self, key: PublicKey) -> bool {
        self.public_key == key || self.former_key() == Some(key)
    }
}

/// The devices whose files name a host's key.
#[must_use]
pub fn pinned_by(member: &Member, topology: &Topology) -> Vec<String> {
    devices_on(member, topology).map(ToString::to_string).collect()
}

impl State {
    /// An operator wants a host's key to change.
    ///
    /// # Errors
    ///
    /// There is no such host, its key has just changed, or devices name it and that isn't `known`.
    pub fn rotate(&self, host: &str, overlap: i64, is_known: bool) -> Result<Self, RotationError> {
        let mut next = self.next();
        let member = next.inventory.member_mut(host);
        let member = member.ok_or_else(|| RotationError::Unknown(host.to_owned()))?;
        if member.former_key().is_some() {
            return Err(RotationError::Overlaps(member.name.clone()));
        }
        let devices = pinned_by(member, &self.topology);
        if !devices.is_empty() && !is_known {
            return Err(RotationError::Pinned { host: member.name.clone(), devices });
        }
        member.rotation = Some(Rotation::Wanted { overlap });
        Ok(next)
    }

    /// The agent of a host has made its new key; none if nobody wants it (any more), or it can't be the host's.
    #[must_use]
    pub fn take_key(&self, host: &Name, key: PublicKey, now: i64) -> Option<Self> {
        let mut next = self.next();
        let revision = next.revision.0;
        let is_taken = self.owner_of(key, host).is_some();
        let member = next.inventory.member_mut(host.as_str())?;
        let Some(Rotation::Wanted { overlap }) = member.rotation else { return None };
        if is_taken || key == member.public_key || key == PublicKey([0; 32]) {
            return None;
        }
        let former = std::mem::replace(&mut member.public_key, key);
        let until = now.saturating_add(overlap);
        member.rotation = Some(Rotation::Overlap { former, until, revision });
        Some(next)
    }

    /// Former keys end that are good no longer, as `is_over` says of each by its end and the revision that
    /// brought the new one; none if all stay.
    #[must_use]
    pub fn end_former_keys(
        &self,
        is_over: impl Fn(&Member, i64, Revision) -> bool,
    ) -> Option<Self> {
        let over = |member: &&Member| match member.rotation {
            Some(Rotation::Overlap { until, revision, .. }) => {
                is_over(member, until, Revision(revision))
            }
            Some(Rotation::Wanted { .. }) | None => false,
        };
        let over: Vec<Name> =
            self.inventory.members().filter(over).map(|it| it.name.clone()).collect();
        let mut next = self.next();
        for name in &over {
            next.inventory.member_mut(name.as_str())?.rotation = None;
        }
        (!over.is_empty()).then_some(next)
    }
}
