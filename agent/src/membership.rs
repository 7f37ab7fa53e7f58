//! Membership of a mesh from start to end: the agent starts from its last snapshot, then keeps in step
//! with a controller for as long as it may.

mod faults;
mod session;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use isthmus_model::{Code, Host, Problem, Snapshot, capability};
use isthmus_proto::v1;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use self::faults::{not_forgotten, not_kept, too_new};
use crate::addresses;
use crate::guard::{self, Guard, Standing};
use crate::identity::{Identity, Member, TunnelKey};
use crate::keeper::Keeper;
use crate::kept_device;
use crate::leave::{self, Farewell};
use crate::overlay::{Ending, Overlay};
use crate::state_dir::{Ailments, StateDir};
use crate::status::Shared;
use crate::sync::backoff::{Backoff, random};
use crate::sync::resources::Resources;
use crate::sync::{self, Ended};
use crate::systemd;
use crate::tls::ConnectError;

pub(crate) use self::faults::state_not_writable;

/// A session that lasted this long was a good one.
const GOOD_SESSION: Duration = Duration::from_secs(5);

/// Codes of problems: a restart would forget the newest revision; the kept one can't be worked by; some
/// of it is unknown.
const NOT_KEPT: Code = Code::SnapshotNotKept;
/// That nothing can be written at all.
const UNWRITABLE: Code = Code::StateNotWritable;
/// That the tunnel's key isn't the one by which others know this host.
const FOREIGN_KEY: Code = Code::TunnelKeyForeign;
/// That a mesh couldn't be forgotten.
const NOT_FORGOTTEN: Code = Code::MeshNotForgotten;
/// Between two looks at the state directory.
const TEND_EVERY: Duration = Duration::from_secs(3);
const TOO_NEW: Code = Code::SnapshotTooNew;
const FOREIGN: Code = Code::UnknownResources;
/// The code of the problem that another machine has this host's identity.
const TWIN: Code = Code::IdentityTwice;
/// A second machine asks so seldom that the first one gets its place back whenever both lost it.
const TWIN_AGAIN: Duration = Duration::from_secs(30);

/// Membership as changed by a user of this host.
pub(crate) enum Turn {
    /// It has joined (anew).
    Joined(Box<Identity>),
    /// It is to leave. Who hears nothing: it was no member.
    Leave(oneshot::Sender<Farewell>),
}

/// End of a membership.
pub(crate) enum Outcome {
    /// The agent is to stop.
    Stopped,
    /// The host is no member any more, and has forgotten the mesh.
    Over,
    /// The host has joined anew.
    Rejoined(Box<Identity>),
}

/// Why it ends.
enum Reason {
    Stop,
    Removed(String),
    Turn(Turn),
}

/// Lives as the member that `identity` is.
///
/// # Errors
/// When the disk refuses.
pub(crate) async fn live(
    shared: &Arc<Shared>,
    disk: &Arc<StateDir>,
    identity: Identity,
    stop: &mut watch::Receiver<bool>,
    turns: &mut mpsc::Receiver<Turn>,
) -> anyhow::Result<Outcome> {
    let mut membership = Membership::new(shared, disk, identity)?;
    membership.start_from_disk().await?;
    membership.guard_without_snapshot().await;
    let keeper = Arc::clone(&membership.keeper);
    systemd::ready();
    let reason = tokio::select! {
        _ = stop.wait_for(|stop| *stop) => Reason::Stop,
        Some(turn) = turns.recv() => Reason::Turn(turn),
        reason = membership.keep_in_step() => Reason::Removed(reason),
        never = keeper.follow() => match never {},
    };
    Ok(membership.end(reason).await)
}

struct Membership {
    shared: Arc<Shared>,
    disk: Arc<StateDir>,
    keeper: Arc<Keeper>,
    identity: Identity,
    resources: Resources,
    overlay: Overlay,
}

impl Membership {
    fn new(shared: &Arc<Shared>, disk: &Arc<StateDir>, identity: Identity) -> anyhow::Result<Self> {
        let validity = identity.tls.validity()?;
        shared.update(|status| {
            status.member = Some(identity.member.clone());
            status.certificate = Some(validity);
            status.last_error.clear();
            status.refusal.clear();
        });
        Ok(Self {
            shared: Arc::clone(shared),
            disk: Arc::clone(disk),
            keeper: Keeper::new(Arc::clone(disk), Arc::clone(shared)),
            overlay: Overlay::new(Arc::clone(shared), tunnel_keys(&identity)),
            identity,
            resources: Resources::default(),
        })
    }

    /// Needs no controller. A snapshot that can't be used is no reason to give up: the controller
    /// has others.
    async fn start_from_disk(&mut self) -> anyhow::Result<()> {
        let kept = self.disk.snapshot().unwrap_or_else(|error| {
            tracing::error!("no snapshot, waiting for the controller: {error:#}");
            None
        });
        let Some(kept) = kept else { return Ok(()) };
        if let Some(problem) = too_new(&kept.resources) {
            self.shared.problems.raise(problem);
            return Ok(());
        }
        let resources = Resources::from(kept.resources);
        if let Err(error) = resources.snapshot() {
            self.disk.set_aside_snapshot(&error.into());
            return Ok(());
        }
        let revision = resources.revision();
        match self.work_by(&resources).await {
            Ok(()) => {
                tracing::info!(revision, "working by the last snapshot");
                self.resources = resources;
                self.shared.update(|status| {
                    status.confirmed = Some(kept.confirmed);
                    // Of an attempt before this one.
                    status.refusal.clear();
                });
            }
            Err(error) => {
                let reason = format!("{error:#}");
                tracing::error!(revision, reason, "can't work by the last snapshot");
                self.shared.update(|status| status.refusal = reason);
            }
        }
        Ok(())
    }

    async fn work_by(&mut self, resources: &Resources) -> anyhow::Result<()> {
        let snapshot = resources.snapshot()?;
        let member = &self.identity.member;
        anyhow::ensure!(
            snapshot.local == member.host_id && snapshot.mesh.trust_domain == member.trust_domain,
            "the snapshot is for another host"
        );
        self.shared.problems.set(FOREIGN_KEY, self.foreign_key(&snapshot));
        let prefixes = addresses::prefixes(&snapshot).to_vec();
        let own = snapshot.local_host().clone();
        self.overlay.switch(snapshot).await?;
        self.settle_keys(&own).await;
        let member = Member { prefixes, ..self.identity.member.clone() };
        self.know(member).await;
        Ok(())
    }

    /// Once the mesh knows this host by the next key alone, the one before goes.
    async fn settle_keys(&mut self, own: &Host) {
        let next = self.identity.next.take_if(|next| {
            own.former_key.is_none() && next.public().is_ok_and(|next| next == own.public_key)
        });
        let Some(next) = next else { return };
        self.identity.tunnel = next;
        let disk = Arc::clone(&self.disk);
        let changed = tokio::task::spawn_blocking(move || disk.change_key()).await;
        if let Err(error) = changed.context("Interrupted").flatten() {
            // With both the next start works as well, and tries again.
            tracing::warn!("the former tunnel key is still on disk: {error:#}");
        }
        if let Err(error) = self.overlay.use_keys(tunnel_keys(&self.identity)).await {
            tracing::warn!("the former tunnel key is good until the next restart: {error:#}");
        }
        tracing::info!("this host's former tunnel key is gone");
    }

    /// Keeps what has become known of this membership.
    async fn know(&mut self, member: Member) {
        if member == self.identity.member {
            return;
        }
        self.identity.member = member.clone();
        self.shared.update(|status| status.member = Some(member.clone()));
        self.keeper.member(member).await;
    }

    /// Nothing leaves for the mesh by another way while it is waited for a controller's snapshot.
    async fn guard_without_snapshot(&self) {
        let Shared { settings, ports, problems, .. } = &*self.shared;
        let prefixes = &self.identity.member.prefixes;
        if self.overlay.device().is_none() && !prefixes.is_empty() {
            let (_, raised) = Standing::raise(Guard::of(settings, ports, prefixes)).await;
            problems.set(guard::MISSING, raised.err().map(|error| guard::missing(&error)));
        }
    }

    /// Peers know this host's tunnel by the key that the mesh has of it.
    fn foreign_key(&self, snapshot: &Snapshot) -> Option<Problem> {
        let known = snapshot.hosts.get(&snapshot.local)?.public_key;
        let ours = [Some(&self.identity.tunnel), self.identity.next.as_ref()];
        let is_ours = |key: &TunnelKey| key.public().is_ok_and(|ours| ours == known);
        (!ours.into_iter().flatten().any(is_ours)).then(|| {
            Problem::new(
                FOREIGN_KEY,
                "the tunnel key in the state directory isn't the one by which others know this host, so no tunnel works",
                "restore wireguard.key from the same backup as the other files, or join again",
            )
        })
    }

    /// What was in the way of the last snapshot may be gone, while no controller is there to send
    /// another: somebody else had our port, say.
    async fn try_again_from_disk(&mut self) {
        if self.overlay.device().is_none()
            && let Err(error) = self.start_from_disk().await
        {
            tracing::debug!("can't work by the last snapshot: {error:#}");
        }
    }

    /// Holds one session after the other; returns why the host was removed.
    async fn keep_in_step(&mut self) -> String {
        let mut backoff = Backoff::new();
        let mut from_scratch = false;
        let mut attempt = 0_usize;
        let mut has_just_renewed = false;
        loop {
            let controllers = &self.identity.member.controllers;
            let address = controllers[attempt % controllers.len()].clone();
            let ours = self.identity.credentials();
            let began = Instant::now();
            let ended = sync::session(&address, &ours, self, from_scratch).await;
            let was_connected = self.shared.status().connected;
            self.disconnected(&address, &ended);
            let is_error = ended.is_err();
            if began.elapsed() >= GOOD_SESSION {
                backoff.reset();
            }
            has_just_renewed &= !was_connected;
            from_scratch = false;
            match ended {
                Ok(Ended::Removed(reason)) => return reason,
                Ok(Ended::Twin(reason)) => {
                    self.give_way(reason).await;
                    tokio::time::sleep(TWIN_AGAIN).await;
                }
                // A new certificate is used at once: it may be a brief one. But whatever is wrong with
                // clocks or controllers, no host does nothing but renew.
                Ok(Ended::Renewed) if !has_just_renewed => {
                    has_just_renewed = !was_connected;
                    backoff.reset();
                    continue;
                }
                Ok(Ended::Renewed | Ended::Refused) => {}
                Ok(Ended::OutOfStep) => from_scratch = true,
                Err(_) => attempt += 1,
            }
            // One address after the other, then a wait.
            let count = self.identity.member.controllers.len();
            if is_error && !attempt.is_multiple_of(count) {
                continue;
            }
            tokio::time::sleep(backoff.wait(random())).await;
            self.try_again_from_disk().await;
        }
    }

    /// Leaves the mesh to the machine that has this host's place: peers must not see both.
    async fn give_way(&mut self, reason: String) {
        let remedy = "if this machine is the copy, stop the agent, remove its state directory, and \
                      join with a token of its own; if it is the original, stop the other's agent";
        let text = reason.trim_end_matches('.');
        self.shared.problems.raise(Problem::new(TWIN, text, remedy));
        self.overlay.stop(Ending::ForGood).await;
        self.resources = Resources::default();
        self.shared.update(|status| {
            status.confirmed = None;
            status.last_error = reason;
        });
        systemd::tell_status(&self.shared);
    }

    fn disconnected(&self, address: &str, ended: &anyhow::Result<Ended>) {
        let now = SystemTime::now();
        let was_connected = self.shared.status().connected;
        self.shared.update(|status| {
            status.connected = false;
            if was_connected && status.state.is_some() {
                status.confirmed = Some(now);
            }
            if let Err(error) = ended {
                address.clone_into(&mut status.controller);
                status.last_error = format!("{error:#}");
                status.is_foreign =
                    matches!(error.downcast_ref(), Some(ConnectError::AnotherMesh { .. }));
            }
        });
        if was_connected {
            self.confirm(now);
        }
        if let Err(error) = ended {
            if was_connected {
                tracing::warn!(controller = address, "lost the controller: {error:#}");
            } else {
                tracing::debug!(controller = address, "no controller: {error:#}");
            }
        }
        systemd::tell_status(&self.shared);
    }

    fn confirm(&self, at: SystemTime) {
        if let Err(error) = self.disk.confirm_snapshot(at) {
            tracing::debug!(%error, "couldn't note when the snapshot was confirmed");
        }
    }

    async fn end(&mut self, reason: Reason) -> Outcome {
        if self.shared.status().connected {
            self.confirm(SystemTime::now());
        }
        let ending = match reason {
            Reason::Stop if kept_device::is_restart().await => Ending::Restart,
            Reason::Stop | Reason::Removed(_) | Reason::Turn(_) => Ending::ForGood,
        };
        // Who leaves ends what is under way before others drop it.
        self.overlay.stop(ending).await;
        match reason {
            Reason::Stop => {
                self.is_over(String::new());
                Outcome::Stopped
            }
            Reason::Turn(Turn::Joined(identity)) => {
                self.shared.update(|status| status.connected = false);
                Outcome::Rejoined(identity)
            }
            Reason::Removed(reason) => {
                drop(self.forgotten(self.disk.forget(&self.identity)).await);
                let mesh = &self.identity.member.mesh;
                tracing::warn!(reason, "this host was removed from the mesh {mesh}");
                self.is_over(format!("this host was removed from the mesh {mesh}: {reason}"));
                Outcome::Over
            }
            Reason::Turn(Turn::Leave(answer)) => {
                let told = leave::tell(&self.identity, &self.shared.instance).await;
                let unremoved = self.forgotten(leave::forget(&self.disk, &self.identity)).await;
                let member = self.identity.member.clone();
                let mesh = &member.mesh;
                match &told {
                    Ok(revision) => tracing::info!(revision, "this host left the mesh {mesh}"),
                    Err(why) => {
                        tracing::warn!(why, "this host left the mesh {mesh}, which wasn't told");
                    }
                }
                self.is_over(format!("this host left the mesh {mesh}"));
                // Whoever asked may not have waited.
                drop(answer.send(Farewell { member, told, unremoved }));
                Outcome::Over
            }
        }
    }

    /// The mesh is forgotten, as far as that was possible: nothing guards it any more. Returns why some of it is
    /// still there.
    async fn forgotten(&self, forgotten: anyhow::Result<()>) -> Option<String> {
        let failed = forgotten.err();
        self.shared.problems.set(NOT_FORGOTTEN, failed.as_ref().map(not_forgotten));
        guard::lower_or_say(&self.shared.settings.device).await;
        failed.map(|error| format!("{error:#}"))
    }

    fn is_over(&self, last_error: String) {
        self.shared.update(|status| {
            status.member = None;
            status.certificate = None;
            status.connected = false;
            status.confirmed = None;
            status.refusal.clear();
            status.last_error = last_error;
            status.is_foreign = false;
        });
        for code in [Code::ControllerForeign, Code::ControllerUnreachable] {
            self.shared.problems.set(code, None);
        }
        systemd::tell_status(&self.shared);
    }

    async fn keep(&self, resources: &Resources) -> anyhow::Result<()> {
        let mut kept = v1::SnapshotResources::from(resources);
        if let Some(state) = self.shared.state() {
            let needed = capability::needed(&state.snapshot);
            kept.capabilities = needed.iter().map(|it| it.name().to_owned()).collect();
        }
        let disk = Arc::clone(&self.disk);
        tokio::task::spawn_blocking(move || disk.write_snapshot(&kept))
            .await
            .context("Interrupted")?
    }
}

fn tunnel_keys(identity: &Identity) -> (TunnelKey, Option<TunnelKey>) {
    (identity.tunnel.clone(), identity.next.clone())
}

/// Keeps what couldn't be kept once it can be, and says what is wrong with the disk, for ever.
pub(crate) async fn tend(shared: Arc<Shared>, disk: Arc<StateDir>) {
    let mut tick = tokio::time::interval(TEND_EVERY);
    loop {
        tick.tick().await;
        let disk = Arc::clone(&disk);
        let Ok(ailments) = tokio::task::spawn_blocking(move || disk.tend()).await else { continue };
        let Ailments { unwritable, unkept } = ailments;
        let folder = &shared.settings.state_dir;
        let unwritable = unwritable.map(|error| state_not_writable(folder, &error));
        shared.problems.set(UNWRITABLE, unwritable);
        let unkept = unkept.map(|(revision, error)| not_kept(folder, revision, &error));
        shared.problems.set(NOT_KEPT, unkept);
    }
}

#[cfg(test)]
mod tests;
