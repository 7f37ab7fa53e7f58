//! Store: the state that survives a restart.

mod copy;
mod redb;
mod tables;

use std::collections::BTreeMap;

use isthmus_controller_core::rollout::Rollout;
use isthmus_controller_core::{
    Act, Allocation, AppliedRevision, Epochs, Leaving, Member, Operator, Pending, State,
    TokenRecord,
};
use isthmus_model::token::TokenId;
use isthmus_model::topology::SourceFile;
use isthmus_model::{Name, Revision};
use serde::{Deserialize, Serialize};

pub use self::redb::Redb;

/// Keeps a mesh.
pub trait Store: Send + Sync {
    /// Reads everything.
    ///
    /// # Errors
    ///
    /// It can't be read, or a newer version wrote it.
    fn load(&self) -> Result<Saved, StoreError>;

    /// Makes these changes durable: all or none, and before it returns.
    ///
    /// # Errors
    ///
    /// They were not made, or nobody knows: see [`StoreError::Moved`].
    fn commit(&self, changes: &[Change]) -> Result<(), StoreError>;
}

/// Everything that is kept.
#[derive(Clone, Debug, Default)]
pub struct Saved {
    /// The newest revision.
    pub revision: Revision,
    /// The operator's files.
    pub files: Vec<SourceFile>,
    /// Numbers and addresses.
    pub allocation: Allocation,
    /// Members.
    pub members: Vec<Member>,
    /// Join tokens.
    pub tokens: Vec<TokenRecord>,
    /// Progress of rollouts.
    pub rollouts: BTreeMap<Name, Rollout>,
    /// Workloads that are about to go.
    pub leaving: Leaving,
    /// Runs of controllers on this store.
    pub epochs: Epochs,
    /// Topologies that were applied; the newest one's files are `files`.
    pub applied: Vec<AppliedRevision>,
    /// The one that waits to be confirmed.
    pub pending: Option<Pending>,
    /// Operators who are written down.
    pub operators: Vec<Operator>,
    /// Audit log.
    pub acts: Vec<Act>,
    /// The mesh that it is of; stores from before this was kept say nothing.
    pub belongs: Option<Belongs>,
}

/// Which mesh a store is of: `mesh.toml` and the CA must agree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Belongs {
    /// Its trust domain.
    pub trust_domain: String,
    /// Its IPv6 prefix.
    pub prefix: String,
    /// The CA's hash, in hexadecimal digits.
    pub ca: String,
}

/// One thing that is different now.
#[derive(Clone, Debug)]
pub enum Change {
    /// There is a newer revision.
    Revision(Revision),
    /// An operator applied other files.
    Files(Vec<SourceFile>),
    /// Numbers or addresses moved.
    Allocation(Allocation),
    /// A member is new or different.
    Member(Member),
    /// A member was removed.
    MemberGone(Name),
    /// Rollouts moved, began or ended.
    Rollouts(BTreeMap<Name, Rollout>),
    /// Workloads are about to go, or went.
    Leaving(Leaving),
    /// A token is new or different.
    Token(TokenRecord),
    /// A token is forgotten.
    TokenGone(TokenId),
    /// A topology was applied.
    Applied(AppliedRevision),
    /// One that was applied is forgotten.
    AppliedGone(Revision),
    /// A revision waits to be confirmed, or none does.
    Pending(Option<Pending>),
    /// An operator is new or different.
    Operator(Operator),
    /// An operator did something.
    Act(Act),
    /// What an operator did is forgotten.
    ActGone(u64),
    /// A controller begins to run.
    Epochs(Epochs),
    /// The store is of this mesh.
    Belongs(Belongs),
}

/// Why the store fails.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has it open.
    #[error("{0} is in use by another controller; stop that one first")]
    InUse(String),
    /// The file is of a version that this program doesn't know.
    #[error(
        "{file} has format {found}, this controller knows up to {known}; run a newer controller"
    )]
    TooNew {
        /// The file.
        file: String,
        /// Its version.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// It holds something unreadable.
    #[error("{0} is damaged: {1}; restore the state directory from a backup")]
    Damaged(String, String),
    /// The disk, mostly.
    #[error("the store {0} failed: {1}")]
    Failed(String, String),
    /// Its file holds something else than this process has left in it: it must be read anew.
    #[error("{0} holds other changes than this controller knows of; it must be started again")]
    Moved(String),
}

/// A change that can't be stored isn't made.
impl From<StoreError> for tonic::Status {
    fn from(error: StoreError) -> Self {
        Self::unavailable(format!("Nothing was changed: {error}."))
    }
}

/// What has to be written to get from one state to another.
#[must_use]
pub fn changes_between(old: Option<&State>, new: &State) -> Vec<Change> {
    let mut changes = Vec::new();
    if old.is_none_or(|old| old.revision != new.revision) {
        changes.push(Change::Revision(new.revision));
    }
    if old.is_none_or(|old| old.files != new.files) {
        changes.push(Change::Files(new.files.to_vec()));
    }
    if old.is_none_or(|old| old.allocation != new.allocation) {
        changes.push(Change::Allocation(new.allocation.clone()));
    }
    if old.is_none_or(|old| old.rollouts != new.rollouts) {
        changes.push(Change::Rollouts(new.rollouts.clone()));
    }
    if old.is_none_or(|old| old.leaving != new.leaving) {
        changes.push(Change::Leaving(new.leaving.clone()));
    }
    for member in new.inventory.members() {
        let before = old.and_then(|old| old.inventory.member(member.name.as_str()));
        if before != Some(member) {
            changes.push(Change::Member(member.clone()));
        }
    }
    for member in old.iter().flat_map(|old| old.inventory.members()) {
        if new.inventory.member(member.name.as_str()).is_none() {
            changes.push(Change::MemberGone(member.name.clone()));
        }
    }
    changes
}
