//! The stream of each agent.
//!
//! ```text
//!  agent                        controller
//!    │ Hello { revision 6 } ──────▶ │ is another machine connected as this host?
//!    │ ◀──── Welcome { clock, … }   │ does it know what the agent has at 6?
//!    │ ◀──── Delta { 9, base 6 }    │ yes: what differs. No: base 0, everything
//!    │ Accepted { 9 } ────────────▶ │ only now the next, against 9; what came between is left out
//!    │ ◀──── Delta { 12, base 9 }   │
//!    │ Refused { 12, "…" } ───────▶ │ the agent goes on with 9, and so does the next delta's base
//! ```

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use isthmus_controller_core::{Delta, candidates};
use isthmus_model::capability::{self, Lack};
use isthmus_model::{Capabilities, Capability, Code, HostId, Name, PublicKey, Revision, convert};
use isthmus_proto::v1::agent_message::Body as Said;
use isthmus_proto::v1::controller_message::Body as Saying;
use isthmus_proto::v1::sync_server;
use isthmus_proto::v1::{self, AgentMessage, ControllerMessage};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::{debug, info, warn};

use crate::agents::{Held, Question, Resources, Run, Session};
use crate::authority::{Authority, Membership, RequestedKey};
use crate::caller::{Caller, Peer, in_time, peer};
use crate::history;
use crate::join::certificate_message;
use crate::limits::Pace;
use crate::mesh::{Mesh, Published};
use crate::operators::Deed;
use crate::rollout;
use crate::shares::Assignments;
use crate::time;

const HELLO: Duration = Duration::from_secs(10);
const LONGEST_TEXT: usize = 1_024;
const MOST_FORGERIES: usize = 16;
/// Agents report each second, later where the network holds them up.
const REPORT_EVERY: Duration = Duration::from_millis(500);
const REPORTS: u32 = 20;
const MOST_PROBLEMS: usize = 64;
const LONGEST_INSTANCE: usize = 32;
/// A clock that differs by more is said to be wrong. Agents say so as well.
const SKEW: Duration = Duration::from_secs(30);

/// The service that agents call.
pub(crate) struct Sync {
    pub(crate) mesh: Arc<Mesh>,
    pub(crate) authority: Arc<Authority>,
    pub(crate) certificate_lifetime: Duration,
    /// Where controllers are reached.
    pub(crate) addresses: Vec<String>,
    /// True once the controller stops.
    pub(crate) stopping: watch::Receiver<bool>,
}

type Outgoing = mpsc::Sender<Result<ControllerMessage, Status>>;

#[tonic::async_trait]
impl sync_server::Sync for Sync {
    type StreamStream = ReceiverStream<Result<ControllerMessage, Status>>;

    async fn stream(
        &self,
        request: Request<Streaming<AgentMessage>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let peer = peer(&request)?;
        let (name, membership) = host(&peer)?;
        let (outgoing, stream) = mpsc::channel(2);
        // Whoever was removed is told so, whatever its certificate.
        if self.mesh.now().has(name.as_str(), membership) {
            in_time(&peer.caller).inspect_err(|status| {
                info!(host = %name, address = %peer.address, "an agent must renew first: {}", status.message());
            })?;
        }
        let line = AgentStream {
            published: self.mesh.watch(),
            told: self.mesh.dealt.watch(),
            mesh: Arc::clone(&self.mesh),
            stopping: self.stopping.clone(),
            peer,
            name,
            membership,
            addresses: self.addresses.clone(),
            outgoing,
        };
        tokio::spawn(line.serve(request.into_inner()));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn renew(
        &self,
        request: Request<v1::RenewRequest>,
    ) -> Result<Response<v1::Certificate>, Status> {
        let peer = peer(&request)?;
        let (name, membership) = host(&peer)?;
        let now = self.mesh.now();
        if now.never_saw(name.as_str(), membership) {
            return Err(history::stranger(&name, membership.id));
        }
        if !now.has(name.as_str(), membership) {
            return Err(Status::permission_denied(gone(&now, &name, membership)));
        }
        if let Some(why) = peer.caller.outdated(time::now()) {
            info!(host = %name, address = %peer.address, "a host renews a certificate that {why}");
        }
        let key =
            RequestedKey::from_der(&request.into_inner().certificate_request).map_err(|error| {
                Status::invalid_argument(format!("Bad certificate request: {error}."))
            })?;
        let issued =
            self.authority.host(&name, membership, &key, self.certificate_lifetime).map_err(
                |error| Status::internal(format!("No certificate could be made: {error:#}.")),
            )?;
        let (host, expires) = (name.clone(), issued.expires);
        let stored =
            self.mesh.work(move |mesh| mesh.renewed(host.as_str(), membership, expires)).await?;
        match stored {
            Ok(true) => Ok(Response::new(certificate_message(&issued))),
            Ok(false) => Err(Status::permission_denied(gone(&self.mesh.now(), &name, membership))),
            Err(error) => {
                Err(Status::unavailable(format!("The certificate wasn't stored: {error}.")))
            }
        }
    }

    async fn leave(
        &self,
        request: Request<v1::LeaveRequest>,
    ) -> Result<Response<v1::LeaveResponse>, Status> {
        let peer = peer(&request)?;
        let revision = leave(&self.mesh, &peer, request.into_inner().instance).await?;
        Ok(Response::new(v1::LeaveResponse { revision: revision.0 }))
    }
}

/// Takes a host out of the mesh by its own word.
async fn leave(mesh: &Arc<Mesh>, peer: &Peer, mut instance: Vec<u8>) -> Result<Revision, Status> {
    let (name, membership) = host(peer)?;
    if mesh.now().never_saw(name.as_str(), membership) {
        return Err(history::stranger(&name, membership.id));
    }
    instance.truncate(LONGEST_INSTANCE);
    if let Some(first) = mesh.agents.twin(&name, membership, &instance).await {
        return Err(another_machine(&name, first));
    }
    let deed = Deed::of_leaving(&name, peer.address.ip());
    let host = name.clone();
    let left = mesh.work(move |mesh| mesh.let_leave(&host, membership, &deed)).await?;
    let left = left.map_err(|error| {
        Status::unavailable(format!("That host {name:?} leaves wasn't stored: {error}."))
    })?;
    match left {
        Some(revision) => {
            info!(host = %name, address = %peer.address, %revision, "a host left the mesh");
            Ok(revision)
        }
        // Its answer was lost, or somebody was faster.
        None => Ok(mesh.now().state.revision),
    }
}

fn another_machine(host: &Name, at: IpAddr) -> Status {
    Status::already_exists(format!(
        "Another machine, at {at}, is connected with the identity of host {host}."
    ))
}

fn host(peer: &Peer) -> Result<(Name, Membership), Status> {
    match &peer.caller {
        Caller::Host { name, membership, .. } => Ok((name.clone(), *membership)),
        Caller::Anonymous | Caller::Operator { .. } => {
            Err(Status::permission_denied("Only hosts may call this."))
        }
    }
}

/// Why a host isn't the member that it was.
fn gone(now: &Published, name: &Name, membership: Membership) -> String {
    let member = now.state.inventory.member(name.as_str());
    if member.is_some_and(|member| member.id == membership.id) {
        return format!(
            "Host {name:?} has joined anew since, with a token of its own: this identity is a former one."
        );
    }
    format!("Host {name:?} was removed from the mesh. To come back it needs a new join token.")
}

/// One agent's connection.
struct AgentStream {
    mesh: Arc<Mesh>,
    published: watch::Receiver<Arc<Published>>,
    told: watch::Receiver<Arc<Assignments>>,
    stopping: watch::Receiver<bool>,
    peer: Peer,
    name: Name,
    membership: Membership,
    addresses: Vec<String>,
    outgoing: Outgoing,
}

/// What the agent holds, and what it was sent and hasn't answered.
struct Standing {
    session: Session,
    version: String,
    capabilities: Capabilities,
    held: Option<Arc<Held>>,
    unanswered: Option<Sent>,
    /// Questions that the agent hasn't answered, by number.
    asked: HashMap<u64, oneshot::Sender<String>>,
    questions: u64,
    /// An agent that has just come hears of the current revision even if it changes nothing.
    greeted: bool,
    /// It was asked to make a new tunnel key.
    asked_for_key: bool,
    /// The routes that it was asked to report the traffic of.
    watched: Vec<String>,
    reports: Pace,
}

/// A slice under way to the agent.
struct Sent {
    held: Held,
    /// What it brings with it that the controller knows of.
    warnings: Vec<v1::Problem>,
}

/// The line is done with.
struct Closed;

impl AgentStream {
    async fn serve(mut self, mut incoming: Streaming<AgentMessage>) {
        if self.ends_unknown().await {
            return;
        }
        // Also for hosts that were removed while they were away.
        if self.ends_removed().await {
            return;
        }
        let Ok(Ok(Some(AgentMessage { body: Some(Said::Hello(hello)) }))) =
            timeout(HELLO, incoming.message()).await
        else {
            let error = Status::invalid_argument("The first message on the stream must be Hello.");
            let _ = self.outgoing.send(Err(error)).await;
            return;
        };
        if let Err(status) = self.compare(&hello).await {
            let _ = self.outgoing.send(Err(status)).await;
            return;
        }
        self.compare_clocks(hello.clock);
        let mut instance = hello.instance.clone();
        instance.truncate(LONGEST_INSTANCE);
        let twin = self.mesh.agents.twin(&self.name, self.membership, &instance).await;
        if let Some(first) = twin {
            self.turn_away(first).await;
            return;
        }
        let welcome =
            v1::Welcome { clock: time::milliseconds(), addresses: self.addresses.clone() };
        if self.send(Saying::Welcome(welcome)).await.is_err() {
            return;
        }
        let mut standing = self.greet(hello, instance);
        info!(host = %self.name, address = %self.peer.address, "an agent connected");
        while let Ok(()) = self.step(&mut standing, &mut incoming).await {}
        info!(host = %self.name, "an agent is gone");
    }

    fn compare_clocks(&self, clock: i64) {
        let skew = clock.saturating_sub(time::milliseconds());
        // Older agents don't say the time.
        if clock != 0 && u128::from(skew.unsigned_abs()) >= SKEW.as_millis() {
            let ahead_seconds = skew / 1_000;
            warn!(host = %self.name, ahead_seconds, "the clocks of a host and the controller differ");
        }
    }

    async fn turn_away(&self, first: IpAddr) {
        let second = self.peer.address.ip();
        self.mesh.twins.note(&self.mesh, &self.name, first, second);
        let _ = self.outgoing.send(Err(another_machine(&self.name, first))).await;
    }

    fn greet(&mut self, hello: v1::Hello, instance: Vec<u8>) -> Standing {
        let version = cut(hello.version);
        let capabilities = match &*hello.capabilities {
            [] => Capabilities::FIRST,
            names => Capabilities::from_names(names.iter().map(String::as_str)),
        };
        let address = self.peer.address.ip();
        let makes_keys = capabilities.has(Capability::KeyRotation);
        let run = Run { instance, address, version: version.clone(), makes_keys };
        let session = self.mesh.agents.connect(self.name.clone(), self.membership, run);
        let held = session.held(Revision(hello.revision));
        self.relocate(&hello.endpoints.unwrap_or_default());
        self.published.mark_changed();
        Standing {
            session,
            version,
            capabilities,
            held,
            unanswered: None,
            asked: HashMap::new(),
            questions: 0,
            greeted: false,
            asked_for_key: false,
            watched: Vec::new(),
            reports: Pace::new(REPORTS, REPORT_EVERY),
        }
    }

    /// Waits for whatever comes next, and deals with it.
    async fn step(
        &mut self,
        standing: &mut Standing,
        incoming: &mut Streaming<AgentMessage>,
    ) -> Result<(), Closed> {
        tokio::select! {
            // A removal also ends the session: the host must hear of it, not of a replacement.
            biased;
            changed = self.published.changed() => {
                changed.map_err(|_| Closed)?;
                self.send_news(standing).await
            }
            Some(question) = standing.session.questions.recv() => {
                let check = standing.ask(question);
                self.send(Saying::Check(check)).await
            }
            changed = self.told.changed() => {
                changed.map_err(|_| Closed)?;
                let shares = self.told.borrow_and_update().get(&self.membership.id).cloned();
                match shares {
                    Some(shares) => self.send(Saying::Shares(shares)).await,
                    None => Ok(()),
                }
            }
            message = incoming.message() => match message {
                Ok(Some(AgentMessage { body: Some(body) })) => self.handle(standing, body).await,
                // A newer agent's message, perhaps.
                Ok(Some(AgentMessage { body: None })) => Ok(()),
                Ok(None) | Err(_) => Err(Closed),
            },
            _ = standing.session.replaced.changed() => {
                let error = Status::aborted("A newer connection of the same host took this one's place.");
                let _ = self.outgoing.try_send(Err(error));
                Err(Closed)
            }
            () = stopped(&mut self.stopping) => {
                let _ = self.outgoing.try_send(Err(Status::unavailable("The controller stops.")));
                Err(Closed)
            }
            () = self.outgoing.closed() => Err(Closed),
        }
    }

    async fn handle(&mut self, standing: &mut Standing, said: Said) -> Result<(), Closed> {
        match said {
            Said::Accepted(v1::Accepted { revision, warnings }) => {
                let Some(sent) = standing.answered(revision) else { return Ok(()) };
                let Sent { held, warnings: mut all } = sent;
                all.extend(bounded(warnings));
                debug!(host = %self.name, revision, "accepted");
                let held = Arc::new(held);
                standing.session.accepted(Arc::clone(&held), all);
                standing.held = Some(held);
                self.send_news(standing).await
            }
            Said::Refused(v1::Refused { revision, reason }) => {
                let Some(Sent { held: sent, .. }) = standing.answered(revision) else {
                    return Ok(());
                };
                let reason = cut(reason);
                warn!(host = %self.name, revision, reason, "an agent refused a revision");
                standing.session.refused(sent.revision, reason);
                if self.published.borrow().state.revision > sent.revision {
                    return self.send_news(standing).await;
                }
                Ok(())
            }
            Said::Endpoints(endpoints) => {
                self.relocate(&endpoints);
                Ok(())
            }
            Said::Checked(v1::Checked { number, clash }) => {
                if let Some(answer) = standing.asked.remove(&number) {
                    // Whoever asked may not have waited.
                    let _ = answer.send(cut(clash));
                }
                Ok(())
            }
            Said::Report(report) => {
                if standing.reports.allows(Instant::now()) {
                    self.report(report);
                }
                Ok(())
            }
            Said::Problems(v1::Problems { problems }) => {
                standing.session.troubled_by(bounded(problems));
                Ok(())
            }
            Said::TunnelKey(v1::TunnelKey { public_key }) => {
                self.take_key(&public_key).await;
                Ok(())
            }
            Said::Hello(_) => Ok(()),
        }
    }

    /// Sends what differs between what the agent holds and what it should, unless it has yet to
    /// answer; then its answer leads here again.
    async fn send_news(&mut self, standing: &mut Standing) -> Result<(), Closed> {
        if self.ends_removed().await {
            return Err(Closed);
        }
        self.send_watch(standing).await?;
        self.ask_for_key(standing).await?;
        if standing.unanswered.is_some() {
            return Ok(());
        }
        let now = Arc::clone(&self.published.borrow_and_update());
        let Some(slice) = now.world.slice(self.membership.id) else { return Err(Closed) };
        let (slice, lacks) = capability::fit(slice, standing.capabilities);
        let warnings = standing.session.lacks(standing.explain(&lacks));
        let revision = slice.revision;
        let new: Resources = convert::resources(&slice)
            .into_iter()
            .map(|resource| (resource.key.clone(), resource))
            .collect();
        let nothing = BTreeMap::new();
        let old = standing.held.as_ref().map_or(&nothing, |held| &held.resources);
        let delta = Delta::between(old, &new);
        if delta.is_empty() && standing.greeted {
            standing.session.up_to(revision, warnings);
            return Ok(());
        }
        let base = standing.held.as_ref().map_or(0, |held| held.revision.0);
        let delta = v1::Delta {
            epoch: self.mesh.epochs.current(),
            revision: revision.0,
            base,
            changed: delta.changed.into_values().collect(),
            gone: delta.gone,
        };
        standing.greeted = true;
        standing.unanswered = Some(Sent { held: Held { revision, resources: new }, warnings });
        self.send(Saying::Delta(delta)).await
    }

    /// Names the routes whose traffic decides about a rollout, where these are others than before.
    async fn send_watch(&self, standing: &mut Standing) -> Result<(), Closed> {
        let routes = rollout::watched(&self.published.borrow().state);
        if routes == standing.watched {
            return Ok(());
        }
        standing.watched.clone_from(&routes);
        self.send(Saying::Watch(v1::Watch { routes })).await
    }

    /// Has the agent make a new tunnel key, once for each wish and stream.
    async fn ask_for_key(&self, standing: &mut Standing) -> Result<(), Closed> {
        let is_wanted =
            standing.capabilities.has(Capability::KeyRotation) && self.mesh.wants_key(&self.name);
        let was_asked = std::mem::replace(&mut standing.asked_for_key, is_wanted);
        if !is_wanted || was_asked {
            return Ok(());
        }
        self.send(Saying::RotateKey(v1::RotateKey {})).await
    }

    async fn take_key(&self, key: &[u8]) {
        let Ok(key) = key.try_into().map(PublicKey) else { return };
        let (host, membership) = (self.name.clone(), self.membership);
        let taken = self.mesh.work(move |mesh| mesh.take_key(&host, membership, key)).await;
        if let Ok(Err(error)) = taken {
            warn!(host = %self.name, %error, "a host's new tunnel key couldn't be stored");
        }
    }

    async fn send(&self, body: Saying) -> Result<(), Closed> {
        let message = ControllerMessage { body: Some(body) };
        self.outgoing.send(Ok(message)).await.map_err(|_| Closed)
    }

    /// Whether this agent's revision is one of this controller's.
    async fn compare(&self, hello: &v1::Hello) -> Result<(), Status> {
        let (host, epoch, revision) = (self.name.clone(), hello.epoch, Revision(hello.revision));
        if self.mesh.epochs.knows(epoch, revision, self.mesh.now().state.revision) {
            return Ok(());
        }
        let compared = self.mesh.work(move |mesh| mesh.compare(&host, epoch, revision)).await?;
        compared.map_err(Status::from)
    }

    /// A host that this controller never saw wasn't removed: it must not forget the mesh.
    async fn ends_unknown(&self) -> bool {
        if !self.published.borrow().never_saw(self.name.as_str(), self.membership) {
            return false;
        }
        let (host, id) = (self.name.clone(), self.membership.id);
        if let Ok(Err(error)) = self.mesh.work(move |mesh| mesh.never_saw(&host, id)).await {
            warn!(%error, "the number of an unknown host couldn't be stored");
        }
        let _ = self.outgoing.send(Err(history::stranger(&self.name, self.membership.id))).await;
        true
    }

    /// Tells a host that it was removed, if it was.
    async fn ends_removed(&self) -> bool {
        let reason = {
            let now = self.published.borrow();
            if now.has(self.name.as_str(), self.membership) {
                return false;
            }
            gone(&now, &self.name, self.membership)
        };
        info!(host = %self.name, reason, "a host that is no member any more was told so");
        let _ = self.send(Saying::Removed(v1::Removed { reason })).await;
        true
    }

    fn relocate(&self, endpoints: &v1::Endpoints) {
        let now = self.published.borrow();
        let (mesh, prefix) = (&now.state.topology.mesh, now.state.identity.prefix);
        let observed = Some(self.peer.address.ip());
        let found = candidates(&endpoints.addresses, observed, prefix, mesh.ipv4);
        self.mesh.relocations.say(self.name.clone(), found);
    }

    fn report(&self, report: v1::Report) {
        let now = self.published.borrow();
        self.mesh.trials.handle_report(self.membership.id, &now, report.traffic);
        self.mesh.dealt.handle_demand(self.membership.id, report.demand);
        let forgeries = report.forgeries.into_iter().take(MOST_FORGERIES);
        forgeries.for_each(|forgery| self.accuse(&now, forgery));
    }

    /// It is one host's word. But who never meets it can have sent it nothing.
    fn accuse(&self, now: &Published, forgery: v1::Forgery) {
        let from = HostId(forgery.from_host);
        let host = now.world.everything().hosts.get(&from);
        let Some(host) = host.filter(|_| now.world.may_meet(self.membership.id, from)) else {
            return;
        };
        let Ok(claimed_source) = forgery.claimed_source.parse::<IpAddr>() else { return };
        let (from_host, packets) = (host.name.to_string(), forgery.packets);
        warn!(
            reported_by = %self.name, from_host, %claimed_source, packets,
            "packets with a forged source were dropped"
        );
        self.mesh.events.push(v1::SecurityEvent {
            at: time::now(),
            reported_by: self.name.to_string(),
            from_host,
            claimed_source: claimed_source.to_string(),
            packets,
            text: String::new(),
        });
    }
}

impl Standing {
    fn explain(&self, lacks: &[Lack]) -> Vec<v1::Problem> {
        let now = time::now();
        let problem = |lack: &Lack| v1::Problem {
            code: Code::AgentTooOld.to_string(),
            subject: lack.what.clone(),
            text: lack.to_string(),
            remedy: format!("update the agent of this host (it has version {})", self.version),
            since: now,
        };
        lacks.iter().take(MOST_PROBLEMS).map(problem).collect()
    }

    fn ask(&mut self, question: Question) -> v1::Check {
        let Question { prefixes, answer } = question;
        self.asked.retain(|_, answer| !answer.is_closed());
        self.questions += 1;
        self.asked.insert(self.questions, answer);
        v1::Check { number: self.questions, prefixes }
    }

    /// What was sent, if this answers it.
    fn answered(&mut self, revision: u64) -> Option<Sent> {
        self.unanswered.take_if(|sent| sent.held.revision.0 == revision)
    }
}

async fn stopped(stopping: &mut watch::Receiver<bool>) {
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

/// An agent's problems: no more and no longer than a person reads.
fn bounded(mut problems: Vec<v1::Problem>) -> Vec<v1::Problem> {
    problems.truncate(MOST_PROBLEMS);
    for problem in &mut problems {
        let v1::Problem { code, subject, text, remedy, since: _ } = problem;
        for part in [code, subject, text, remedy] {
            *part = cut(std::mem::take(part));
        }
    }
    problems
}

/// Text from an agent, no longer than a person reads.
fn cut(mut text: String) -> String {
    if text.len() > LONGEST_TEXT {
        let end = text.floor_char_boundary(LONGEST_TEXT);
        text.truncate(end);
    }
    text
}
