//! Whether this controller's history is the one that agents know.
//!
//! A store that was restored from a backup is older than the mesh: agents have revisions that it never made,
//! and hosts are members that it never saw. Nothing can bring back what was lost, but nobody shall go
//! back without a word, and no number shall be given a second time.

use anyhow::{Result, anyhow, bail};
use isthmus_controller_core::{Epochs, MeshIdentity};
use isthmus_model::{Code, HostId, Name, Problem, Revision};
use tonic::Status;
use tracing::warn;

use crate::mesh::Mesh;
use crate::store::{Belongs, Change, Saved, StoreError};

const RESTORED: Code = Code::StoreRestored;
const UNKNOWN: Code = Code::HostUnknown;
/// A member that claims more revisions than this were lost isn't believed.
const MOST_LOST: u64 = 1_000_000;

/// What is to be stored when a controller begins to run: its epoch, and whose the store is.
pub(crate) fn begin(saved: &Saved, belongs: Belongs) -> Result<(Epochs, Vec<Change>)> {
    let mut number = [0; 8];
    getrandom::fill(&mut number).map_err(|error| anyhow!("No randomness: {error}"))?;
    let epochs = saved.epochs.begin(u64::from_le_bytes(number), saved.revision);
    Ok((epochs.clone(), vec![Change::Epochs(epochs), Change::Belongs(belongs)]))
}

pub(crate) fn belongs(identity: &MeshIdentity, ca: [u8; 32]) -> Belongs {
    Belongs {
        trust_domain: identity.trust_domain.to_string(),
        prefix: identity.prefix.network().to_string(),
        ca: blake3::Hash::from_bytes(ca).to_hex().to_string(),
    }
}

/// Files of several meshes make none.
pub(crate) fn check(saved: &Saved, belongs: &Belongs) -> Result<()> {
    let Some(of) = &saved.belongs else { return Ok(()) };
    let Belongs { trust_domain, prefix, ca } = belongs;
    let parts = [
        ("mesh.toml", "trust domain", &of.trust_domain, trust_domain),
        ("mesh.toml", "prefix", &of.prefix, prefix),
        ("ca.pem", "CA", &of.ca, ca),
    ];
    for (file, what, stored, found) in parts {
        if stored != found {
            bail!(
                "{file} and store.redb are of different meshes: the {what} is {found} here and {stored} there; restore all files from the same backup"
            );
        }
    }
    Ok(())
}

impl Mesh {
    /// An agent says which revision it works by. Where this controller never made it, others follow beyond it.
    pub(crate) fn compare(
        &self,
        host: &Name,
        epoch: u64,
        revision: Revision,
    ) -> Result<(), StoreError> {
        let tokens = self.tokens();
        let now = self.now().state.revision;
        if self.epochs.knows(epoch, revision, now) {
            return Ok(());
        }
        warn!(%host, %revision, %now, "an agent works by a revision that this controller never made");
        self.problems.raise(restored(host, revision));
        // One that has it from here needs no second time: it isn't believed twice.
        let first = self.diverged().insert(host.clone());
        if revision < now || revision.0 - now.0 > MOST_LOST || !first {
            return Ok(());
        }
        let next = self.now().state.beyond(revision, HostId(0));
        self.move_to(&tokens, next, &[])
    }

    /// A host has a certificate of this mesh for a number that was never given here. Its CA vouches for it, so
    /// the number is left out from now on.
    pub(crate) fn never_saw(&self, host: &Name, id: HostId) -> Result<(), StoreError> {
        let tokens = self.tokens();
        self.problems.raise(unknown(host, id));
        if !self.now().state.allocation.may_give(id) {
            return Ok(());
        }
        warn!(%host, number = id.0, "a host is a member that this controller never saw");
        let next = self.now().state.beyond(Revision(0), id);
        self.move_to(&tokens, next, &[])
    }

    /// An operator has said what the mesh is to be.
    pub(crate) fn is_told_anew(&self) {
        self.problems.replace(RESTORED, []);
    }

    /// A host is a member now.
    pub(crate) fn is_known(&self, host: &Name) {
        self.problems.clear(UNKNOWN, host.as_str());
    }
}

fn restored(host: &Name, revision: Revision) -> Problem {
    let text = format!(
        "host {host} works by revision {revision}, which this controller never made: its state was restored from an older backup, or another controller serves this mesh"
    );
    let remedy = "apply the topology that is to be; then remove again each host, and revoke again each token, that was removed or revoked after the backup";
    Problem::new(RESTORED, text, remedy).about(host.to_string())
}

fn unknown(host: &Name, id: HostId) -> Problem {
    let text = format!(
        "host {host} has a certificate for number {id}, which this controller never gave: its state was restored from a backup that is older than that host",
        id = id.0
    );
    let remedy = format!(
        "restore a newer backup, or let it join again: `agentctl token create --host {host}`, and there `agentctl join --name {host} -`"
    );
    Problem::new(UNKNOWN, text, remedy).about(host.to_string())
}

/// What such a host is told. It goes on by what it has: it wasn't removed.
pub(crate) fn stranger(host: &Name, id: HostId) -> Status {
    Status::failed_precondition(format!(
        "This controller doesn't know host {host:?} (number {}): its state was restored from a backup that is older than this host's join. An operator must restore a newer one, or let the host join again.",
        id.0
    ))
}
