//! The running mesh: the current state, the one way to the next, and who watches.

mod published;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use isthmus_controller_core::rollout::Phase;
use isthmus_controller_core::{
    Admission, AllocationError, Epochs, JoinError, MeshIdentity, MeshSnapshot, Newcomer,
    RevisionHosts, Revisions, State, TokenRecord, TokenRefusal,
};
use isthmus_model::token::TokenId;
use isthmus_model::{Audited, Code, Name, Problem, Problems, Revision};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;
use tonic::Status;
use tracing::{debug, error, info, warn};

use self::published::restore;
use crate::absence;
use crate::agents::Agents;
use crate::authority::Membership;
use crate::crowd::Crowd;
use crate::events::Events;
use crate::health::Health;
use crate::history;
use crate::operators::{Deed, Staff};
use crate::relocations::{Due, Relocations};
use crate::revisions::{self, Trial};
use crate::rollout::Trials;
use crate::shares::GlobalLimits;
use crate::store::{Change, Store, StoreError, changes_between};
use crate::time;
use crate::twins::Twins;

/// Time for which changes of endpoints wait for others, so that one revision takes them all.
const GATHERING: Duration = Duration::from_millis(50);

/// The code of the problem that a host moves more often than others are told.
const RESTLESS: Code = Code::EndpointsRestless;

/// Between two looks for workloads whose time to leave is over.
const LEAVING_TICK: Duration = Duration::from_secs(1);

/// The running mesh.
///
/// INVARIANT: what `published` shows is durable. [`Mesh::move_to`] alone changes it, with the lock on
/// `tokens` held.
pub struct Mesh {
    pub(crate) store: Box<dyn Store>,
    /// Of the store.
    pub(crate) health: watch::Sender<Health>,
    published: watch::Sender<Arc<Published>>,
    tokens: Mutex<BTreeMap<TokenId, TokenRecord>>,
    revision_hosts: Mutex<RevisionHosts>,
    pub(crate) relocations: Relocations,
    pub(crate) epochs: Epochs,
    /// Hosts that reported a revision of another history.
    diverged: Mutex<BTreeSet<Name>>,
    pub(crate) agents: Arc<Agents>,
    pub(crate) events: Events,
    /// Problems of the controller.
    pub(crate) problems: Problems,
    pub(crate) trials: Trials,
    pub(crate) global_limits: GlobalLimits,
    pub(crate) twins: Twins,
    pub(crate) crowd: Crowd,
    /// When this life of the controller began, in seconds since the epoch.
    pub(crate) began: i64,
    pub(crate) staff: Staff,
    /// Revisions applied by operators.
    pub(crate) revisions: Mutex<Revisions>,
    /// The apply that waits for confirmation.
    pub(crate) trial: watch::Sender<Option<Trial>>,
}

/// A state, and the same as a whole.
#[derive(Clone, Debug)]
pub struct Published {
    /// The state.
    pub state: State,
    /// All of it put together.
    pub world: Arc<MeshSnapshot>,
}

pub(crate) type Tokens<'a> = MutexGuard<'a, BTreeMap<TokenId, TokenRecord>>;

impl Mesh {
    /// Picks up where the store left off.
    ///
    /// # Errors
    ///
    /// The store can't be read, is another mesh's, or holds a topology that this version doesn't understand.
    pub fn open(
        identity: MeshIdentity,
        ca: [u8; 32],
        store: Box<dyn Store>,
    ) -> anyhow::Result<Arc<Self>> {
        let saved = store.load()?;
        let belongs = history::belongs(&identity, ca);
        history::check(&saved, &belongs)?;
        let (epochs, mut begun) = history::begin(&saved, belongs)?;
        let (revisions, found) = revisions::recall(&saved);
        begun.extend(found);
        let staff = Staff::new(&saved);
        let trial = watch::Sender::new(saved.pending.clone().map(Trial::of));
        let before = saved.epochs.clone();
        let tokens = saved.tokens.iter().map(|token| (token.id, token.clone())).collect();
        let published = Arc::new(Published::new(restore(identity, saved)?));
        let mut mesh = Self {
            store,
            epochs,
            diverged: Mutex::default(),
            health: watch::Sender::default(),
            published: watch::Sender::new(published),
            tokens: Mutex::new(tokens),
            revision_hosts: Mutex::default(),
            relocations: Relocations::default(),
            agents: Arc::default(),
            events: Events::default(),
            problems: Problems::default(),
            trials: Trials::default(),
            global_limits: GlobalLimits::default(),
            twins: Twins::default(),
            crowd: Crowd::default(),
            began: time::now(),
            staff,
            revisions: Mutex::new(revisions),
            trial,
        };
        mesh.take_stock();
        mesh.remember_trial();
        // Where nothing can be written, nothing new happens: it is the epoch before, still.
        if mesh.commit(&begun).is_err() {
            mesh.epochs = before;
        }
        Ok(Arc::new(mesh))
    }

    /// Current state of the mesh.
    #[must_use]
    pub fn now(&self) -> Arc<Published> {
        Arc::clone(&self.published.borrow())
    }

    /// Watches what the mesh becomes.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Arc<Published>> {
        self.published.subscribe()
    }

    /// Runs blocking work (it waits for the disk) where it holds nobody up.
    pub(crate) async fn work<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> Result<T, Status> {
        let mesh = Arc::clone(self);
        tokio::task::spawn_blocking(move || work(&mesh)).await.map_err(|error| {
            error!(%error, "a request failed");
            Status::internal("The controller failed to do this; its log says more.")
        })
    }

    /// A host joins, and uses up its token with it, which `known` finds. Where this very request has
    /// made it a member already, it gets the same answer again.
    pub(crate) fn join<E: From<JoinError> + From<StoreError> + From<TokenRefusal>>(
        &self,
        newcomer: Newcomer,
        known: impl FnOnce(&BTreeMap<TokenId, TokenRecord>) -> Result<TokenRecord, E>,
    ) -> Result<Membership, E> {
        let mut tokens = self.tokens();
        let mut token = known(&tokens)?;
        let name = newcomer.name.clone();
        let now = self.now();
        if let Some(member) = now.state.repeats(&name, &newcomer.request) {
            info!(host = %name, number = member.id.0, token = %token.id, "a host joined once more");
            return Ok(Membership { id: member.id, generation: member.generation });
        }
        token.check(&name, newcomer.now)?;
        let newcomer = Newcomer {
            labels: token.labels.clone(),
            is_expected: token.host.is_some(),
            ..newcomer
        };
        let Admission { next, id, generation } = now.state.join(newcomer)?;
        token.used += 1;
        self.move_to(&tokens, next, &[Change::Token(token.clone())])?;
        let anew = generation > 0;
        info!(host = %name, number = id.0, token = %token.id, anew, "a host joined");
        self.is_known(&name);
        tokens.insert(token.id, token);
        Ok(Membership { id, generation })
    }

    /// A host is removed; none if there is no such host.
    pub(crate) fn remove_host(
        &self,
        host: &str,
        deed: &Deed,
    ) -> Result<Option<Revision>, RemoveError> {
        self.take_out(&self.tokens(), host, deed)
    }

    /// A host leaves; none if it is no member any more by this membership.
    pub(crate) fn let_leave(
        &self,
        host: &Name,
        membership: Membership,
        deed: &Deed,
    ) -> Result<Option<Revision>, RemoveError> {
        let tokens = self.tokens();
        if !self.now().has(host.as_str(), membership) {
            return Ok(None);
        }
        self.take_out(&tokens, host.as_str(), deed)
    }

    fn take_out(
        &self,
        tokens: &Tokens<'_>,
        host: &str,
        deed: &Deed,
    ) -> Result<Option<Revision>, RemoveError> {
        let Some(next) = self.now().state.remove(host)? else { return Ok(None) };
        let revision = next.revision;
        let also = self.done(tokens, deed, &format!("revision {revision}"));
        self.move_to(tokens, next, &also)?;
        self.agents.forget(host);
        debug!(host, %revision, "a host was removed");
        Ok(Some(revision))
    }

    /// A certificate of a host was renewed.
    pub(crate) fn renewed(
        &self,
        host: &str,
        membership: Membership,
        expires: i64,
    ) -> Result<bool, StoreError> {
        let tokens = self.tokens();
        let now = self.now();
        if !now.has(host, membership) {
            return Ok(false);
        }
        let Some(next) = now.state.renew(host, expires) else { return Ok(false) };
        // Only `status` shows it, and hosts must outlive a full disk.
        if let Err(error) = self.move_to(&tokens, next, &[]) {
            warn!(host, %error, "when a certificate expires wasn't stored");
        }
        Ok(true)
    }

    /// A rollout reaches another phase; false if it isn't in the one that this was decided in.
    pub(crate) fn advance_rollout(
        &self,
        name: &Name,
        decided_in: &Phase,
        then: Phase,
        by: Option<&Deed>,
    ) -> Result<bool, StoreError> {
        let tokens = self.tokens();
        let phase = then.name();
        let next = self.now().state.advance_rollout(name, decided_in, then, time::now());
        let Some(next) = next else { return Ok(false) };
        let result = format!("{phase}, revision {}", next.revision);
        let also = by.map_or_else(Vec::new, |deed| self.done(&tokens, deed, &result));
        self.move_to(&tokens, next, &also)?;
        Ok(true)
    }

    /// Whom a revision concerns: all, where that isn't remembered.
    pub(crate) fn affected(&self, revision: Revision) -> BTreeSet<Name> {
        let remembered = self.revision_hosts().affected(revision).cloned();
        remembered.unwrap_or_else(|| {
            let now = self.now();
            now.state.inventory.members().map(|member| member.name.clone()).collect()
        })
    }

    pub(crate) fn add_token(&self, token: TokenRecord, deed: &Deed) -> Result<(), StoreError> {
        let mut tokens = self.tokens();
        let now = time::now();
        let old: Vec<TokenId> =
            tokens.values().filter(|old| old.is_forgettable(now)).map(|old| old.id).collect();
        let mut changes: Vec<Change> = old.iter().copied().map(Change::TokenGone).collect();
        changes.push(Change::Token(token.clone()));
        changes.extend(self.done(&tokens, deed, &format!("token {}", token.id)));
        self.commit(&changes)?;
        tokens.retain(|id, _| !old.contains(id));
        tokens.insert(token.id, token);
        Ok(())
    }

    /// Withdraws a token; false if there is none of this id.
    pub(crate) fn revoke_token(&self, id: TokenId, deed: &Deed) -> Result<bool, StoreError> {
        let mut tokens = self.tokens();
        let Some(token) = tokens.get(&id) else { return Ok(false) };
        let revoked = TokenRecord { revoked: true, ..token.clone() };
        let mut changes = vec![Change::Token(revoked.clone())];
        changes.extend(self.done(&tokens, deed, "done"));
        self.commit(&changes)?;
        tokens.insert(id, revoked);
        Ok(true)
    }

    pub(crate) fn all_tokens(&self) -> Vec<TokenRecord> {
        self.tokens().values().cloned().collect()
    }

    /// Makes revisions of what agents say of where they are, for ever.
    pub(crate) async fn follow_relocations(self: Arc<Self>) {
        let mut again = None;
        loop {
            tokio::select! {
                () = self.relocations.news.notified() => {}
                () = until(again) => {}
            }
            tokio::time::sleep(GATHERING).await;
            again = match self.work(Self::take_relocations).await {
                Ok(Ok(again)) => again,
                Ok(Err(error)) => {
                    error!(%error, "failed to store where agents are");
                    None
                }
                Err(_) => None,
            };
        }
    }

    /// Makes revisions without the workloads whose time to leave is over, for ever.
    pub(crate) async fn follow_leaving(self: Arc<Self>) {
        let mut tick = tokio::time::interval(LEAVING_TICK);
        loop {
            tick.tick().await;
            if self.now().state.leaving.is_empty() {
                continue;
            }
            if let Ok(Err(error)) = self.work(Self::let_go).await {
                error!(%error, "failed to store which workloads went");
            }
        }
    }

    fn let_go(&self) -> Result<(), RemoveError> {
        let tokens = self.tokens();
        match self.now().state.let_go(time::now())? {
            Some(next) => Ok(self.move_to(&tokens, next, &[])?),
            None => Ok(()),
        }
    }

    /// Returns when there will be more to take.
    fn take_relocations(&self) -> Result<Option<Instant>, StoreError> {
        let tokens = self.tokens();
        let now = self.now();
        let state = &now.state;
        let is_news = |host: &Name, endpoints: &[SocketAddr]| {
            let member = state.inventory.member(host.as_str());
            member.is_some_and(|member| member.endpoints != endpoints)
        };
        let Due { moves, held_back, again } = self.relocations.take(Instant::now(), is_news);
        self.problems.replace(RESTLESS, held_back.iter().map(restless));
        if let Some(next) = state.relocate(&moves)
            && let Err(error) = self.move_to(&tokens, next, &[])
        {
            self.relocations.put_back(moves);
            return Err(error);
        }
        Ok(again)
    }

    pub(crate) fn move_to(
        &self,
        tokens: &Tokens<'_>,
        next: State,
        also: &[Change],
    ) -> Result<(), StoreError> {
        self.publish(tokens, Published::after(&self.now(), next), also)
    }

    /// Makes a state durable, then shows it. The lock is the proof that nobody else does so.
    pub(crate) fn publish(
        &self,
        _: &Tokens<'_>,
        next: Published,
        also: &[Change],
    ) -> Result<(), StoreError> {
        let mut changes = changes_between(Some(&self.now().state), &next.state);
        changes.extend_from_slice(also);
        self.commit(&changes)?;
        self.published.send_if_modified(|published| {
            let moved = published.state.revision != next.state.revision;
            *published = Arc::new(next);
            moved
        });
        self.take_stock();
        Ok(())
    }

    /// What is wrong with the mesh by what it is to be.
    fn take_stock(&self) {
        let now = self.now();
        let gone = self.departures();
        self.problems.replace(Code::HostNotJoined, absence::not_joined(&now.state, &gone));
        self.problems.replace(Code::HostLeft, absence::left(&now.state, &gone));
        let audits = now.state.topology.rules.audits();
        self.problems.replace(Code::Audit, audits.iter().map(Audited::problem));
    }

    pub(crate) fn tokens(&self) -> Tokens<'_> {
        self.tokens.lock()
    }

    pub(crate) fn diverged(&self) -> MutexGuard<'_, BTreeSet<Name>> {
        self.diverged.lock()
    }

    pub(crate) fn revision_hosts(&self) -> MutexGuard<'_, RevisionHosts> {
        self.revision_hosts.lock()
    }
}

pub(crate) async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}

/// All who meet such a host are told of each move.
fn restless(host: &Name) -> Problem {
    let text =
        format!("the addresses of {host} change all the time; others are told of few changes");
    let remedy = format!("look why at {host}, or fix them: `endpoints` in its agent's settings");
    Problem::new(RESTLESS, text, remedy).about(host.to_string())
}

impl std::fmt::Debug for Mesh {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mesh").field("published", &self.published).finish_non_exhaustive()
    }
}

/// Why a host or a workload isn't removed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RemoveError {
    #[error(transparent)]
    Allocation(#[from] AllocationError),
    #[error(transparent)]
    Store(#[from] StoreError),
}
