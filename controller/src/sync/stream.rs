//! One agent's stream, from Hello to its end.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use isthmus_controller_core::{Delta, candidates};
use isthmus_model::capability::{self, Lack};
use isthmus_model::{Capabilities, Capability, Code, HostId, Name, PublicKey, Revision, convert};
use isthmus_proto::v1::agent_message::Body as FromAgent;
use isthmus_proto::v1::controller_message::Body as ToAgent;
use isthmus_proto::v1::{self, AgentMessage, ControllerMessage};
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;
use tonic::{Status, Streaming};
use tracing::{debug, info, warn};

use super::{
    HELLO, LONGEST_INSTANCE, LONGEST_TEXT, MOST_FORGERIES, MOST_PROBLEMS, Outgoing, REPORT_EVERY,
    REPORTS, SKEW, another_machine, gone,
};
use crate::agents::{Held, Question, Resources, Run, Session};
use crate::authority::Membership;
use crate::caller::Peer;
use crate::history;
use crate::limits::Pace;
use crate::mesh::{Mesh, Published};
use crate::rollout;
use crate::shares::Assignments;
use crate::time;

/// One agent's connection.
pub(super) struct AgentStream {
    pub(super) mesh: Arc<Mesh>,
    pub(super) published: watch::Receiver<Arc<Published>>,
    pub(super) assignments: watch::Receiver<Arc<Assignments>>,
    pub(super) stopping: watch::Receiver<bool>,
    pub(super) peer: Peer,
    pub(super) name: Name,
    pub(super) membership: Membership,
    pub(super) addresses: Vec<String>,
    pub(super) outgoing: Outgoing,
}

/// State of a stream: the revision that the agent holds, and messages that it has not answered.
pub(super) struct StreamState {
    pub(super) session: Session,
    pub(super) version: String,
    pub(super) capabilities: Capabilities,
    pub(super) held: Option<Arc<Held>>,
    pub(super) unanswered: Option<Sent>,
    /// Questions that the agent hasn't answered, by number.
    pub(super) asked: HashMap<u64, oneshot::Sender<String>>,
    pub(super) questions: u64,
    /// An agent that has just come hears of the current revision even if it changes nothing.
    pub(super) greeted: bool,
    /// It was asked to make a new tunnel key.
    pub(super) asked_for_key: bool,
    /// The routes that it was asked to report the traffic of.
    pub(super) watched: Vec<String>,
    pub(super) reports: Pace,
}

/// A slice under way to the agent.
pub(super) struct Sent {
    pub(super) held: Held,
    /// What it brings with it that the controller knows of.
    pub(super) warnings: Vec<v1::Problem>,
}

/// The stream is closed.
pub(super) struct Closed;

impl AgentStream {
    pub(super) async fn serve(mut self, mut incoming: Streaming<AgentMessage>) {
        if self.ends_unknown().await {
            return;
        }
        // Also for hosts that were removed while they were away.
        if self.ends_removed().await {
            return;
        }
        let Ok(Ok(Some(AgentMessage { body: Some(FromAgent::Hello(hello)) }))) =
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
        if self.send(ToAgent::Welcome(welcome)).await.is_err() {
            return;
        }
        let mut state = self.greet(hello, instance);
        info!(host = %self.name, address = %self.peer.address, "an agent connected");
        while let Ok(()) = self.step(&mut state, &mut incoming).await {}
        info!(host = %self.name, "an agent is gone");
    }

    pub(super) fn compare_clocks(&self, clock: i64) {
        let skew = clock.saturating_sub(time::milliseconds());
        // Older agents don't say the time.
        if clock != 0 && u128::from(skew.unsigned_abs()) >= SKEW.as_millis() {
            let ahead_seconds = skew / 1_000;
            warn!(host = %self.name, ahead_seconds, "the clocks of a host and the controller differ");
        }
    }

    pub(super) async fn turn_away(&self, first: IpAddr) {
        let second = self.peer.address.ip();
        self.mesh.twins.note(&self.mesh, &self.name, first, second);
        let _ = self.outgoing.send(Err(another_machine(&self.name, first))).await;
    }

    pub(super) fn greet(&mut self, hello: v1::Hello, instance: Vec<u8>) -> StreamState {
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
        StreamState {
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
    pub(super) async fn step(
        &mut self,
        state: &mut StreamState,
        incoming: &mut Streaming<AgentMessage>,
    ) -> Result<(), Closed> {
        tokio::select! {
            // A removal also ends the session: the host must hear of it, not of a replacement.
            biased;
            changed = self.published.changed() => {
                changed.map_err(|_| Closed)?;
                self.send_news(state).await
            }
            Some(question) = state.session.questions.recv() => {
                let check = state.ask(question);
                self.send(ToAgent::Check(check)).await
            }
            changed = self.assignments.changed() => {
                changed.map_err(|_| Closed)?;
                let shares = self.assignments.borrow_and_update().get(&self.membership.id).cloned();
                match shares {
                    Some(shares) => self.send(ToAgent::Shares(shares)).await,
                    None => Ok(()),
                }
            }
            message = incoming.message() => match message {
                Ok(Some(AgentMessage { body: Some(body) })) => self.handle(state, body).await,
                // A newer agent's message, perhaps.
                Ok(Some(AgentMessage { body: None })) => Ok(()),
                Ok(None) | Err(_) => Err(Closed),
            },
            _ = state.session.replaced.changed() => {
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

    pub(super) async fn handle(
        &mut self,
        state: &mut StreamState,
        body: FromAgent,
    ) -> Result<(), Closed> {
        match body {
            FromAgent::Accepted(v1::Accepted { revision, warnings }) => {
                let Some(sent) = state.answered(revision) else { return Ok(()) };
                let Sent { held, warnings: mut all } = sent;
                all.extend(bounded(warnings));
                debug!(host = %self.name, revision, "accepted");
                let held = Arc::new(held);
                state.session.accepted(Arc::clone(&held), all);
                state.held = Some(held);
                self.send_news(state).await
            }
            FromAgent::Refused(v1::Refused { revision, reason }) => {
                let Some(Sent { held: sent, .. }) = state.answered(revision) else {
                    return Ok(());
                };
                let reason = cut(reason);
                warn!(host = %self.name, revision, reason, "an agent refused a revision");
                state.session.refused(sent.revision, reason);
                if self.published.borrow().state.revision > sent.revision {
                    return self.send_news(state).await;
                }
                Ok(())
            }
            FromAgent::Endpoints(endpoints) => {
                self.relocate(&endpoints);
                Ok(())
            }
            FromAgent::Checked(v1::Checked { number, clash }) => {
                if let Some(answer) = state.asked.remove(&number) {
                    // Whoever asked may not have waited.
                    let _ = answer.send(cut(clash));
                }
                Ok(())
            }
            FromAgent::Report(report) => {
                if state.reports.allows(Instant::now()) {
                    self.report(report);
                }
                Ok(())
            }
            FromAgent::Problems(v1::Problems { problems }) => {
                state.session.troubled_by(bounded(problems));
                Ok(())
            }
            FromAgent::TunnelKey(v1::TunnelKey { public_key }) => {
                self.take_key(&public_key).await;
                Ok(())
            }
            FromAgent::Hello(_) => Ok(()),
        }
    }

    /// Sends what differs between what the agent holds and what it should, unless it has yet to
    /// answer; then its answer leads here again.
    pub(super) async fn send_news(&mut self, state: &mut StreamState) -> Result<(), Closed> {
        if self.ends_removed().await {
            return Err(Closed);
        }
        self.send_watch(state).await?;
        self.ask_for_key(state).await?;
        if state.unanswered.is_some() {
            return Ok(());
        }
        let now = Arc::clone(&self.published.borrow_and_update());
        let Some(slice) = now.world.slice(self.membership.id) else { return Err(Closed) };
        let (slice, lacks) = capability::fit(slice, state.capabilities);
        let warnings = state.session.lacks(state.explain(&lacks));
        let revision = slice.revision;
        let new: Resources = convert::resources(&slice)
            .into_iter()
            .map(|resource| (resource.key.clone(), resource))
            .collect();
        let nothing = BTreeMap::new();
        let old = state.held.as_ref().map_or(&nothing, |held| &held.resources);
        let delta = Delta::between(old, &new);
        if delta.is_empty() && state.greeted {
            state.session.up_to(revision, warnings);
            return Ok(());
        }
        let base = state.held.as_ref().map_or(0, |held| held.revision.0);
        let delta = v1::Delta {
            epoch: self.mesh.epochs.current(),
            revision: revision.0,
            base,
            changed: delta.changed.into_values().collect(),
            gone: delta.gone,
        };
        state.greeted = true;
        state.unanswered = Some(Sent { held: Held { revision, resources: new }, warnings });
        self.send(ToAgent::Delta(delta)).await
    }

    /// Names the routes whose traffic decides about a rollout, where these are others than before.
    pub(super) async fn send_watch(&self, state: &mut StreamState) -> Result<(), Closed> {
        let routes = rollout::watched(&self.published.borrow().state);
        if routes == state.watched {
            return Ok(());
        }
        state.watched.clone_from(&routes);
        self.send(ToAgent::Watch(v1::Watch { routes })).await
    }

    /// Has the agent make a new tunnel key, once for each wish and stream.
    pub(super) async fn ask_for_key(&self, state: &mut StreamState) -> Result<(), Closed> {
        let is_wanted =
            state.capabilities.has(Capability::KeyRotation) && self.mesh.wants_key(&self.name);
        let was_asked = std::mem::replace(&mut state.asked_for_key, is_wanted);
        if !is_wanted || was_asked {
            return Ok(());
        }
        self.send(ToAgent::RotateKey(v1::RotateKey {})).await
    }

    pub(super) async fn take_key(&self, key: &[u8]) {
        let Ok(key) = key.try_into().map(PublicKey) else { return };
        let (host, membership) = (self.name.clone(), self.membership);
        let taken = self.mesh.work(move |mesh| mesh.take_key(&host, membership, key)).await;
        if let Ok(Err(error)) = taken {
            warn!(host = %self.name, %error, "a host's new tunnel key couldn't be stored");
        }
    }

    pub(super) async fn send(&self, body: ToAgent) -> Result<(), Closed> {
        let message = ControllerMessage { body: Some(body) };
        self.outgoing.send(Ok(message)).await.map_err(|_| Closed)
    }

    /// Whether this agent's revision is one of this controller's.
    pub(super) async fn compare(&self, hello: &v1::Hello) -> Result<(), Status> {
        let (host, epoch, revision) = (self.name.clone(), hello.epoch, Revision(hello.revision));
        if self.mesh.epochs.knows(epoch, revision, self.mesh.now().state.revision) {
            return Ok(());
        }
        let compared = self.mesh.work(move |mesh| mesh.compare(&host, epoch, revision)).await?;
        compared.map_err(Status::from)
    }

    /// A host that this controller never saw wasn't removed: it must not forget the mesh.
    pub(super) async fn ends_unknown(&self) -> bool {
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
    pub(super) async fn ends_removed(&self) -> bool {
        let reason = {
            let now = self.published.borrow();
            if now.has(self.name.as_str(), self.membership) {
                return false;
            }
            gone(&now, &self.name, self.membership)
        };
        info!(host = %self.name, reason, "a host that is no member any more was told so");
        let _ = self.send(ToAgent::Removed(v1::Removed { reason })).await;
        true
    }

    pub(super) fn relocate(&self, endpoints: &v1::Endpoints) {
        let now = self.published.borrow();
        let (mesh, prefix) = (&now.state.topology.mesh, now.state.identity.prefix);
        let observed = Some(self.peer.address.ip());
        let found = candidates(&endpoints.addresses, observed, prefix, mesh.ipv4);
        self.mesh.relocations.say(self.name.clone(), found);
    }

    pub(super) fn report(&self, report: v1::Report) {
        let now = self.published.borrow();
        self.mesh.trials.handle_report(self.membership.id, &now, report.traffic);
        self.mesh.global_limits.handle_demand(self.membership.id, report.demand);
        let forgeries = report.forgeries.into_iter().take(MOST_FORGERIES);
        forgeries.for_each(|forgery| self.accuse(&now, forgery));
    }

    /// It is one host's word. But who never meets it can have sent it nothing.
    pub(super) fn accuse(&self, now: &Published, forgery: v1::Forgery) {
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

impl StreamState {
    pub(super) fn explain(&self, lacks: &[Lack]) -> Vec<v1::Problem> {
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

    pub(super) fn ask(&mut self, question: Question) -> v1::Check {
        let Question { prefixes, answer } = question;
        self.asked.retain(|_, answer| !answer.is_closed());
        self.questions += 1;
        self.asked.insert(self.questions, answer);
        v1::Check { number: self.questions, prefixes }
    }

    /// Takes the sent revision, if this answers it.
    pub(super) fn answered(&mut self, revision: u64) -> Option<Sent> {
        self.unanswered.take_if(|sent| sent.held.revision.0 == revision)
    }
}

pub(super) async fn stopped(stopping: &mut watch::Receiver<bool>) {
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

/// An agent's problems: no more and no longer than a person reads.
pub(super) fn bounded(mut problems: Vec<v1::Problem>) -> Vec<v1::Problem> {
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
pub(super) fn cut(mut text: String) -> String {
    if text.len() > LONGEST_TEXT {
        let end = text.floor_char_boundary(LONGEST_TEXT);
        text.truncate(end);
    }
    text
}
