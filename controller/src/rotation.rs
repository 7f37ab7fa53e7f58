//! Hosts' tunnel keys, which change without a lost packet: see the core's `rotation`.
//!
//! A former key is good for as long as it was asked for, at least as long as WireGuard's sessions live, and until each
//! host that meets this one works by a revision with the new key. A host that is away holds that up, but
//! not for more than a day.

use std::sync::Arc;
use std::time::Duration;

use isthmus_controller_core::{Member, Rotation, RotationError, pinned_by};
use isthmus_model::{Name, PublicKey, Revision};
use isthmus_proto::v1;
use tokio::time::timeout;
use tonic::Status;
use tracing::{error, info};

use crate::authority::Membership;
use crate::mesh::Mesh;
use crate::operators::Deed;
use crate::store::StoreError;
use crate::time;

/// WireGuard's Reject-After-Time, in seconds: no session by the former key outlives it.
const SHORTEST: u64 = 180;
const USUAL: u64 = 300;
const LONGEST: u64 = 90 * 86_400;
/// How long those who are away hold the end up, in seconds.
const AWAITED: i64 = 86_400;
/// For an agent to make a key.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks for keys whose time is over.
const TICK: Duration = Duration::from_secs(1);

/// Why a host's key isn't changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RotateError {
    #[error(transparent)]
    Rotation(#[from] RotationError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What an operator wants, in words.
pub(crate) fn what(host: &str) -> String {
    format!("rotate the tunnel key of host {host}")
}

/// Has a host's agent make a new key, and returns when the mesh knows it.
pub(crate) async fn rotate(
    mesh: &Arc<Mesh>,
    request: v1::RotateHostKeyRequest,
    deed: Deed,
) -> Result<v1::RotateHostKeyResponse, Status> {
    let v1::RotateHostKeyRequest { name, reissue, overlap_seconds } = request;
    let overlap = match overlap_seconds {
        0 => USUAL,
        SHORTEST..=LONGEST => overlap_seconds,
        _ => {
            return Err(Status::invalid_argument(format!(
                "Both keys must be good for {SHORTEST} s at least, as long as WireGuard's sessions live, and for 90 days at most."
            )));
        }
    };
    can_make_keys(mesh, &name)?;
    let mut published = mesh.watch();
    let (host, overlap) = (name.clone(), i64::try_from(overlap).unwrap_or(i64::MAX));
    let wanted = mesh.work(move |mesh| mesh.want_key(&host, overlap, reissue, &deed)).await?;
    wanted.map_err(|error| match error {
        RotateError::Rotation(error @ RotationError::Unknown(_)) => {
            Status::not_found(sentence(&error.to_string()))
        }
        RotateError::Rotation(error) => Status::failed_precondition(sentence(&error.to_string())),
        RotateError::Store(error) => {
            Status::unavailable(format!("The key of host {name:?} wasn't changed: {error}."))
        }
    })?;
    let changed = published.wait_for(|now| {
        let member = now.state.inventory.member(&name);
        member.is_none_or(|member| member.former_key().is_some())
    });
    let Ok(Ok(now)) = timeout(PATIENCE, changed).await.map(|it| it.map(|now| Arc::clone(&now)))
    else {
        return Err(Status::deadline_exceeded(format!(
            "The agent of host {name:?} has made no key yet (`agentctl host show {name}`); it is asked until it has."
        )));
    };
    match now.state.inventory.member(&name) {
        Some(member @ Member { rotation: Some(Rotation::Overlap { until, revision, .. }), .. }) => {
            Ok(v1::RotateHostKeyResponse {
                revision: *revision,
                public_key: member.public_key.0.to_vec(),
                former_until: *until,
                devices: pinned_by(member, &now.state.topology),
            })
        }
        Some(_) | None => Err(Status::aborted(format!("Host {name:?} was removed meanwhile."))),
    }
}

/// An older agent wouldn't understand the question, and one that is away doesn't hear it.
fn can_make_keys(mesh: &Mesh, name: &str) -> Result<(), Status> {
    let Ok(host) = name.parse::<Name>() else { return Ok(()) };
    if mesh.now().state.inventory.member(name).is_none() {
        // Said later.
        return Ok(());
    }
    let agent = mesh.agents.view(&host);
    if !agent.connected {
        return Err(Status::failed_precondition(format!(
            "The agent of host {host} isn't connected, and the new key is made there."
        )));
    }
    if !agent.makes_keys {
        return Err(Status::failed_precondition(format!(
            "The agent of host {host} (version {}) is too old to change its key; update it, or let the host join anew: `agentctl token create --host {host}`.",
            agent.version
        )));
    }
    Ok(())
}

fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().map(|first| first.to_uppercase().chain(letters).collect::<String>());
    format!("{}.", first.unwrap_or_default())
}

/// What `status` says of a key that is changing: until when the former one is good, and who hasn't the new one.
pub(crate) fn shown(mesh: &Mesh, member: &Member) -> (i64, Vec<String>) {
    match member.rotation {
        Some(Rotation::Overlap { until, revision, .. }) => {
            let awaited = mesh.awaited(member, Revision(revision));
            (until, awaited.into_iter().map(|name| name.to_string()).collect())
        }
        Some(Rotation::Wanted { .. }) | None => (0, Vec::new()),
    }
}

impl Mesh {
    fn want_key(
        &self,
        host: &str,
        overlap: i64,
        is_known: bool,
        deed: &Deed,
    ) -> Result<(), RotateError> {
        let tokens = self.tokens();
        let next = self.now().state.rotate(host, overlap, is_known)?;
        let also = self.done(&tokens, deed, &format!("revision {}", next.revision));
        Ok(self.move_to(&tokens, next, &also)?)
    }

    /// Whether an agent is to make a new key.
    pub(crate) fn wants_key(&self, host: &Name) -> bool {
        let now = self.now();
        let member = now.state.inventory.member(host.as_str());
        matches!(member, Some(Member { rotation: Some(Rotation::Wanted { .. }), .. }))
    }

    /// The agent of a host has made a new key.
    pub(crate) fn take_key(
        &self,
        host: &Name,
        membership: Membership,
        key: PublicKey,
    ) -> Result<(), StoreError> {
        let tokens = self.tokens();
        let now = self.now();
        if !now.has(host.as_str(), membership) {
            return Ok(());
        }
        let Some(next) = now.state.take_key(host, key, time::now()) else { return Ok(()) };
        let revision = next.revision;
        self.move_to(&tokens, next, &[])?;
        info!(%host, %revision, "a host has a new tunnel key");
        Ok(())
    }

    /// Lets former keys end, for ever.
    pub(crate) async fn follow_rotations(self: Arc<Self>) {
        let mut tick = tokio::time::interval(TICK);
        loop {
            tick.tick().await;
            let is_busy = self.now().state.inventory.members().any(|it| it.former_key().is_some());
            if is_busy && let Ok(Err(error)) = self.work(Self::end_former_keys).await {
                error!(%error, "failed to store that a former tunnel key is over");
            }
        }
    }

    fn end_former_keys(&self) -> Result<(), StoreError> {
        let tokens = self.tokens();
        let now = time::now();
        let is_over = |member: &Member, until: i64, revision| {
            let is_late = now >= until.saturating_add(AWAITED);
            now >= until && (is_late || self.awaited(member, revision).is_empty())
        };
        match self.now().state.end_former_keys(is_over) {
            Some(next) => {
                info!(revision = %next.revision, "a former tunnel key is worth nothing any more");
                self.move_to(&tokens, next, &[])
            }
            None => Ok(()),
        }
    }

    /// Hosts that may meet this one, and don't work by that revision yet.
    fn awaited(&self, member: &Member, revision: Revision) -> Vec<Name> {
        let now = self.now();
        let meets = |other: &&Member| now.world.may_meet(other.id, member.id);
        let lags = |other: &&Member| self.agents.view(&other.name).accepted < revision;
        let all = now.state.inventory.members();
        all.filter(meets).filter(lags).map(|other| other.name.clone()).collect()
    }
}
