//! The topologies that operators apply: the one way to the next, what was before, and the way back.
//!
//! ```text
//!  apply ───────────────────────▶ runs
//!  apply --confirm-within 5m ──▶ on trial ── confirm ──────────────▶ runs
//!                                   └── time is over, or --undo ──▶ the one before runs
//! ```
//!
//! A trial is stored with the revision that begins it, in one transaction: whenever the controller dies, the
//! next one knows of both or of neither.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use isthmus_controller_core::{
    AppliedRevision, Consequences, MeshSnapshot, Pending, Revisions, State,
};
use isthmus_model::topology::{self, Diagnostic, SourceFile, Topology};
use isthmus_model::{Code, Name, Problem, Revision};
use parking_lot::MutexGuard;
use tracing::{debug, error, info};

use crate::mesh::{Mesh, Published, Tokens, until};
use crate::operators::{CONTROLLER, Deed};
use crate::store::{Change, Saved, StoreError};
use crate::time;

/// Between two attempts to undo what doesn't go back.
const RETRY: Duration = Duration::from_secs(3);

/// Options of an apply.
#[derive(Clone, Debug, Default)]
pub(crate) struct Terms {
    /// Nothing is to change.
    pub(crate) dry_run: bool,
    /// The operator knows what comes of it.
    pub(crate) yes: bool,
    /// Only if no operator has applied anything since.
    pub(crate) if_revision: Option<Revision>,
    /// The operator's comment.
    pub(crate) note: String,
    /// After so many seconds it is undone, unless somebody confirms it.
    pub(crate) confirm_within: Option<u64>,
}

/// Result of an apply, or of a dry run.
pub(crate) struct Applied {
    pub(crate) revision: Revision,
    pub(crate) before: State,
    /// Who applied what ran before, and when; none where nobody did, or nothing changes.
    pub(crate) replaces: Option<AppliedRevision>,
    pub(crate) affected: BTreeSet<Name>,
    pub(crate) unchanged: bool,
    pub(crate) consequences: Consequences,
    /// When it is undone unless somebody confirms it; 0: never.
    pub(crate) undone_at: i64,
}

/// Why a topology isn't applied.
pub(crate) enum ApplyError {
    Contradicts(Vec<Diagnostic>),
    /// Another operator was there; whole sentences.
    Conflict(String),
    Store(StoreError),
}

impl From<StoreError> for ApplyError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// A revision on trial.
#[derive(Clone, Debug)]
pub(crate) struct Trial {
    pending: Pending,
    /// By a clock that nobody sets.
    until: Instant,
}

/// Why a trial isn't ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TrialError {
    #[error("Nothing waits to be confirmed{0}.")]
    None(String),
    #[error(
        "Revision {revision} wasn't undone, since the topology before doesn't fit the mesh any more: {why}; apply one that does, after `agentctl confirm`."
    )]
    Contradicts { revision: Revision, why: String },
    #[error("Nothing was changed: {0}.")]
    Store(#[from] StoreError),
}

impl Trial {
    pub(crate) fn of(pending: Pending) -> Self {
        let until = Instant::now() + Duration::from_secs(pending.left(time::now()));
        Self { pending, until }
    }

    fn sentence(&self) -> String {
        let Pending { revision, by, deadline, .. } = &self.pending;
        format!(
            "revision {revision} of {by} is undone at {} unless it is confirmed",
            time::show(*deadline)
        )
    }

    fn problem(&self) -> Problem {
        let remedy = "`agentctl confirm` keeps it, `agentctl confirm --undo` takes it back";
        Problem::new(Code::Unconfirmed, self.sentence(), remedy)
    }
}

/// The topologies of a store. What runs is among them, also where an older version applied it.
pub(crate) fn recall(saved: &Saved) -> (Revisions, Option<Change>) {
    let mut revisions: Revisions = saved.applied.iter().cloned().collect();
    let known = revisions.newest().map_or(&[][..], |newest| &*newest.files);
    if known == &*saved.files {
        return (revisions, None);
    }
    let found = AppliedRevision {
        revision: saved.revision,
        at: 0,
        by: String::new(),
        note: "applied by a version that kept no history".to_owned(),
        files: saved.files.clone().into(),
    };
    revisions.insert(found.clone());
    (revisions, Some(Change::Applied(found)))
}

impl Mesh {
    /// Applies a topology, or only says what that would do.
    pub(crate) fn apply(
        &self,
        files: Vec<SourceFile>,
        topology: Topology,
        terms: &Terms,
        deed: &Deed,
    ) -> Result<Applied, ApplyError> {
        let tokens = self.tokens();
        self.check_others(terms)?;
        let now = self.now();
        let before = now.state.clone();
        let files: Arc<[SourceFile]> = files.into();
        let applied = Applied {
            revision: before.revision,
            affected: BTreeSet::new(),
            unchanged: *before.topology == topology,
            consequences: Consequences::default(),
            undone_at: 0,
            replaces: None,
            before,
        };
        if applied.unchanged {
            if !terms.dry_run {
                self.rewrite(&tokens, files, deed)?;
                self.is_told_anew();
            }
            return Ok(applied);
        }
        let replaces = self.revisions().newest().cloned();
        let before = &applied.before;
        let next = before
            .apply(Arc::clone(&files), topology, time::now())
            .map_err(ApplyError::Contradicts)?;
        let world = MeshSnapshot::new(&next);
        let affected = now.world.affected(&world);
        let consequences = Consequences::of(before, &next);
        let held = !consequences.asks.is_empty() && !terms.yes;
        if terms.dry_run || held {
            return Ok(Applied { affected, consequences, replaces, ..applied });
        }
        let trial = terms.confirm_within.map(|within| Pending {
            revision: next.revision,
            by: deed.who.clone(),
            deadline: time::now().saturating_add_unsigned(within),
            within,
            files: Arc::clone(&before.files),
            rollouts: before.rollouts.clone(),
        });
        let revision = next.revision;
        let next = Published { state: next, world: Arc::new(world) };
        self.begin(&tokens, next, terms.note.clone(), trial.clone(), deed)?;
        self.is_told_anew();
        self.revision_hosts().insert(revision, affected.clone());
        debug!(%revision, affected = affected.len(), "a topology was applied");
        let undone_at = trial.map_or(0, |trial| trial.deadline);
        Ok(Applied { revision, affected, consequences, undone_at, replaces, ..applied })
    }

    /// Whether another operator is in the way.
    fn check_others(&self, terms: &Terms) -> Result<(), ApplyError> {
        if let Some(trial) = self.trial.borrow().as_ref().filter(|_| !terms.dry_run) {
            return Err(ApplyError::Conflict(format!(
                "Nothing was changed: {}. `agentctl confirm` keeps it, `agentctl confirm --undo` takes it back; then apply again.",
                trial.sentence()
            )));
        }
        let Some(seen) = terms.if_revision else { return Ok(()) };
        let now = self.now().state.revision;
        if seen > now {
            return Err(ApplyError::Conflict(format!(
                "Nothing was changed: there is no revision {seen} yet; the newest is {now}."
            )));
        }
        match self.revisions().newer_than(seen) {
            None => Ok(()),
            Some(newer) => Err(ApplyError::Conflict(format!(
                "Nothing was changed: {} after revision {seen}. Look at it by `agentctl topology get`, then apply with --if-revision {}.",
                happened(newer),
                newer.revision
            ))),
        }
    }

    /// The same topology in other words keeps its place in the history.
    fn rewrite(
        &self,
        tokens: &Tokens<'_>,
        files: Arc<[SourceFile]>,
        deed: &Deed,
    ) -> Result<(), StoreError> {
        let now = self.now();
        let before = &now.state;
        if before.files == files {
            return Ok(());
        }
        let newest = self.revisions().newest().cloned();
        let written = newest.map(|it| AppliedRevision { files: Arc::clone(&files), ..it });
        let mut also = self.done(tokens, deed, "written differently, nothing else changed");
        also.extend(written.clone().map(Change::Applied));
        self.move_to(tokens, before.rewrite(files), &also)?;
        written.into_iter().for_each(|it| drop(self.revisions().insert(it)));
        Ok(())
    }

    /// A topology begins to run: for good, or on trial.
    fn begin(
        &self,
        tokens: &Tokens<'_>,
        next: Published,
        note: String,
        trial: Option<Pending>,
        deed: &Deed,
    ) -> Result<(), StoreError> {
        let revision = next.state.revision;
        let applied = AppliedRevision {
            revision,
            at: time::now(),
            by: deed.who.clone(),
            note,
            files: Arc::clone(&next.state.files),
        };
        let mut revisions = self.revisions().clone();
        let gone = revisions.insert(applied.clone());
        let mut also = self.done(tokens, deed, &format!("revision {revision}"));
        also.push(Change::Applied(applied));
        also.extend(gone.into_iter().map(Change::AppliedGone));
        also.push(Change::Pending(trial.clone()));
        self.publish(tokens, next, &also)?;
        *self.revisions() = revisions;
        self.on_trial(trial);
        Ok(())
    }

    fn on_trial(&self, pending: Option<Pending>) {
        let trial = pending.map(Trial::of);
        self.problems.set(Code::Unconfirmed, trial.as_ref().map(Trial::problem));
        self.trial.send_replace(trial);
    }

    /// Says again what a trial waits for, once this controller runs.
    pub(crate) fn remember_trial(&self) {
        self.problems.set(Code::Unconfirmed, self.trial.borrow().as_ref().map(Trial::problem));
    }

    /// The revision on trial stays.
    pub(crate) fn confirm(&self, deed: impl FnOnce(&str) -> Deed) -> Result<Revision, TrialError> {
        let tokens = self.tokens();
        let trial = self.running_trial()?;
        let revision = trial.pending.revision;
        let mut changes = vec![Change::Pending(None)];
        let deed = deed(&format!("confirm revision {revision}"));
        changes.extend(self.done(&tokens, &deed, "done"));
        self.commit(&changes)?;
        self.on_trial(None);
        self.problems.set(Code::NotUndone, None);
        info!(%revision, operator = deed.who, "a revision was confirmed");
        Ok(revision)
    }

    /// The topology before the one on trial comes back.
    pub(crate) fn undo(&self, deed: impl FnOnce(&str) -> Deed) -> Result<Revision, TrialError> {
        let tokens = self.tokens();
        let trial = self.running_trial()?;
        let Pending { revision, by, within, files, .. } = &trial.pending;
        let contradicts = |found: &[Diagnostic]| TrialError::Contradicts {
            revision: *revision,
            why: found.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
        };
        let topology = match &**files {
            [] => Topology::default(),
            files => topology::parse(files).map_err(|found| contradicts(&found))?,
        };
        let now = self.now();
        let next = now.state.undo(&trial.pending, topology, time::now());
        let next = next.map_err(|found| contradicts(&found))?;
        let deed = deed(&format!("undo revision {revision}"));
        let note = match &*deed.who {
            CONTROLLER => format!(
                "revision {revision} of {by} was undone: nobody confirmed it within {within} s"
            ),
            who => format!("revision {revision} of {by} was undone by {who}"),
        };
        let world = MeshSnapshot::new(&next);
        let affected = now.world.affected(&world);
        let (undone, next) = (next.revision, Published { state: next, world: Arc::new(world) });
        info!(%revision, operator = deed.who, "{note}");
        self.begin(&tokens, next, note, None, &deed)?;
        self.problems.set(Code::NotUndone, None);
        self.revision_hosts().insert(undone, affected);
        Ok(undone)
    }

    fn running_trial(&self) -> Result<Trial, TrialError> {
        let trial = self.trial.borrow().clone();
        trial.ok_or_else(|| {
            let newest = self.revisions().newest().cloned();
            TrialError::None(newest.map_or_else(String::new, |it| format!(": {}", happened(&it))))
        })
    }

    /// Undoes what nobody confirms, for ever.
    pub(crate) async fn follow_trials(self: Arc<Self>) {
        let mut trial = self.trial.subscribe();
        loop {
            let over = trial.borrow_and_update().as_ref().map(|trial| trial.until);
            tokio::select! {
                changed = trial.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return,
                },
                () = until(over) => {}
            }
            let undo = |mesh: &Self| mesh.undo(|what| Deed::of_controller(what.to_owned()));
            match self.work(undo).await {
                // Somebody confirmed it at the last moment.
                Ok(Ok(_) | Err(TrialError::None(_))) => {}
                Ok(Err(why)) => {
                    error!(%why, "failed to undo a revision that nobody confirmed");
                    let remedy =
                        "make room for the former topology, or `agentctl confirm` this one";
                    self.problems.raise(Problem::new(Code::NotUndone, why.to_string(), remedy));
                    tokio::time::sleep(RETRY).await;
                }
                Err(_) => tokio::time::sleep(RETRY).await,
            }
        }
    }

    /// When the revision on trial is undone.
    pub(crate) fn undone_at(&self, revision: Revision) -> i64 {
        let trial = self.trial.borrow();
        let trial = trial.as_ref().filter(|trial| trial.pending.revision == revision);
        trial.map_or(0, |trial| trial.pending.deadline)
    }

    pub(crate) fn revisions(&self) -> MutexGuard<'_, Revisions> {
        self.revisions.lock()
    }
}

/// "alice applied revision 12 at 2026-01-31T12:00:00Z (the note)"
fn happened(AppliedRevision { revision, at, by, note, .. }: &AppliedRevision) -> String {
    let who = if by.is_empty() { "somebody" } else { by };
    let when = if *at == 0 { String::new() } else { format!(" at {}", time::show(*at)) };
    let note = if note.is_empty() { String::new() } else { format!(" ({note})") };
    format!("{who} applied revision {revision}{when}{note}")
}
