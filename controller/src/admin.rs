//! What operators may ask.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::stream::{self, Stream};
use isthmus_controller_core::{Consequences, State};
use isthmus_model::Revision;
use isthmus_model::token::TokenId;
use isthmus_model::topology::{self, ChangeKind, Diagnostic, SourceFile, Topology};
use isthmus_proto::v1;
use isthmus_proto::v1::admin_server;
use tokio::sync::watch;
use tonic::{Request, Response, Status};
use tracing::info;

use crate::agents::Clash;
use crate::authority::Authority;
use crate::caller::{Caller, peer};
use crate::mesh::{Applied, ApplyError, Mesh, Terms};
use crate::store::StoreError;
use crate::tokens::{self, NewToken};
use crate::{delivery, export, rollout, status};

const MOST_FILES: usize = 1_000;

/// The service that operators call.
pub(crate) struct Admin {
    pub(crate) mesh: Arc<Mesh>,
    pub(crate) authority: Arc<Authority>,
    /// Where the controller is reached; for join tokens.
    pub(crate) addresses: Vec<String>,
    /// True once the controller stops.
    pub(crate) stopping: watch::Receiver<bool>,
}

#[tonic::async_trait]
impl admin_server::Admin for Admin {
    type WatchRolloutStream = Pin<Box<dyn Stream<Item = Result<v1::Rollout, Status>> + Send>>;

    async fn apply(
        &self,
        request: Request<v1::ApplyRequest>,
    ) -> Result<Response<v1::ApplyResponse>, Status> {
        let operator = operator(&request);
        let v1::ApplyRequest { files, dry_run, despite_clashes, yes } = request.into_inner();
        let files = source_files(files)?;
        let terms = Terms { dry_run, yes };
        let response = match self.mesh.work(move |mesh| read(mesh, files)).await? {
            Read::Refused(response) => response,
            Read::Good(proposal) => {
                let clashes =
                    if despite_clashes { Vec::new() } else { self.clashes(&proposal).await };
                let work = move |mesh: &Mesh| apply(mesh, *proposal, &clashes, &terms);
                self.mesh.work(work).await??
            }
        };
        if !dry_run && response.diagnostics.is_empty() && !response.unchanged {
            info!(operator, revision = response.revision, "a topology was applied");
        }
        Ok(Response::new(response))
    }

    async fn read_topology(
        &self,
        _: Request<v1::ReadTopologyRequest>,
    ) -> Result<Response<v1::Topology>, Status> {
        let now = self.mesh.now();
        let file =
            |file: &SourceFile| v1::File { name: file.name.to_string(), text: file.text.clone() };
        Ok(Response::new(v1::Topology {
            revision: now.state.revision.0,
            files: now.state.files.iter().map(file).collect(),
        }))
    }

    async fn watch_rollout(
        &self,
        request: Request<v1::WatchRolloutRequest>,
    ) -> Result<Response<Self::WatchRolloutStream>, Status> {
        let revision = Revision(request.into_inner().revision);
        let newest = self.mesh.now().state.revision;
        if revision > newest {
            return Err(Status::not_found(format!(
                "There is no revision {revision} yet; the newest is {newest}."
            )));
        }
        let watch = Watch {
            affected: self.mesh.affected(revision),
            progress: self.mesh.agents.watch(),
            members: self.mesh.watch(),
            stopping: self.stopping.clone(),
            mesh: Arc::clone(&self.mesh),
            revision,
            last: None,
        };
        let rollouts = stream::unfold(watch, |mut watch| async move {
            let next = watch.next().await?;
            Some((Ok(next), watch))
        });
        Ok(Response::new(Box::pin(rollouts)))
    }

    async fn read_status(
        &self,
        _: Request<v1::ReadStatusRequest>,
    ) -> Result<Response<v1::MeshStatus>, Status> {
        Ok(Response::new(status::status(&self.mesh)))
    }

    async fn create_token(
        &self,
        request: Request<v1::CreateTokenRequest>,
    ) -> Result<Response<v1::CreatedToken>, Status> {
        let operator = operator(&request);
        let request = request.into_inner();
        let NewToken { token, record } =
            NewToken::make(request, self.authority.hash(), &self.addresses)?;
        let info = tokens::info(&record);
        self.mesh.work(move |mesh| mesh.add_token(record)).await?.map_err(not_stored)?;
        info!(operator, token = info.id, "a join token was made");
        Ok(Response::new(v1::CreatedToken { token: token.encode().to_string(), info: Some(info) }))
    }

    async fn list_tokens(
        &self,
        _: Request<v1::ListTokensRequest>,
    ) -> Result<Response<v1::Tokens>, Status> {
        let all = self.mesh.work(Mesh::all_tokens).await?;
        Ok(Response::new(v1::Tokens { tokens: all.iter().map(tokens::info).collect() }))
    }

    async fn revoke_token(
        &self,
        request: Request<v1::RevokeTokenRequest>,
    ) -> Result<Response<v1::RevokeTokenResponse>, Status> {
        let operator = operator(&request);
        let text = request.into_inner().id;
        let id: TokenId = text.parse().map_err(|_| {
            Status::invalid_argument(format!(
                "{text:?} is no token id: give the 16 hexadecimal digits that `agentctl token list` shows."
            ))
        })?;
        match self.mesh.work(move |mesh| mesh.revoke_token(id)).await?.map_err(not_stored)? {
            true => {
                info!(operator, token = %id, "a join token was revoked");
                Ok(Response::new(v1::RevokeTokenResponse {}))
            }
            false => Err(Status::not_found(format!(
                "There is no token {id}; `agentctl token list` shows all."
            ))),
        }
    }

    async fn remove_host(
        &self,
        request: Request<v1::RemoveHostRequest>,
    ) -> Result<Response<v1::RemoveHostResponse>, Status> {
        let operator = operator(&request);
        let name = request.into_inner().name;
        let host = name.clone();
        let removed = self.mesh.work(move |mesh| mesh.remove_host(&host)).await?;
        let removed = removed.map_err(|error| {
            Status::unavailable(format!("Host {name:?} wasn't removed: {error}."))
        })?;
        let Some(revision) = removed else {
            return Err(Status::not_found(format!(
                "There is no host {name:?} in the mesh; `agentctl host list` shows all."
            )));
        };
        info!(operator, host = name, "a host was removed");
        Ok(Response::new(v1::RemoveHostResponse { revision: revision.0 }))
    }

    async fn export_device(
        &self,
        request: Request<v1::ExportDeviceRequest>,
    ) -> Result<Response<v1::ExportedDevice>, Status> {
        let now = self.mesh.now();
        let name = request.into_inner().name;
        let config = export::device(&now.state, now.world.everything(), &name)?;
        Ok(Response::new(v1::ExportedDevice { config }))
    }

    async fn list_deliveries(
        &self,
        _: Request<v1::ListDeliveriesRequest>,
    ) -> Result<Response<v1::Deliveries>, Status> {
        Ok(Response::new(v1::Deliveries { deliveries: delivery::all(&self.mesh) }))
    }

    async fn steer_delivery(
        &self,
        request: Request<v1::SteerDeliveryRequest>,
    ) -> Result<Response<v1::Delivery>, Status> {
        let operator = operator(&request);
        let request = request.into_inner();
        let work = move |mesh: &Mesh| delivery::steer(mesh, &request, &operator);
        Ok(Response::new(self.mesh.work(work).await??))
    }
}

impl Admin {
    /// Routes of hosts that are in the way of the mesh's addresses. The topology that runs already
    /// needs no asking.
    async fn clashes(&self, proposal: &Proposal) -> Vec<Clash> {
        let now = self.mesh.now();
        if *now.state.topology == proposal.topology {
            return Vec::new();
        }
        let ipv6 = format!("{}/48", now.state.identity.prefix.network());
        let ipv4 = proposal.topology.mesh.ipv4.to_string();
        self.mesh.agents.clashes_with(&[ipv6, ipv4]).await
    }
}

/// The state of a watched rollout, each time it differs from the last one shown.
struct Watch {
    mesh: Arc<Mesh>,
    revision: Revision,
    affected: std::collections::BTreeSet<isthmus_model::Name>,
    progress: watch::Receiver<()>,
    members: watch::Receiver<Arc<crate::mesh::Published>>,
    stopping: watch::Receiver<bool>,
    last: Option<v1::Rollout>,
}

impl Watch {
    async fn next(&mut self) -> Option<v1::Rollout> {
        if self.last.as_ref().is_some_and(|last| last.complete) {
            return None;
        }
        loop {
            self.progress.mark_unchanged();
            self.members.mark_unchanged();
            let rollout = rollout::rollout(&self.mesh, self.revision, &self.affected);
            if self.last.as_ref() != Some(&rollout) {
                self.last = Some(rollout.clone());
                return Some(rollout);
            }
            tokio::select! {
                changed = self.progress.changed() => changed.ok()?,
                changed = self.members.changed() => changed.ok()?,
                _ = self.stopping.wait_for(|stopping| *stopping) => return None,
            }
        }
    }
}

fn operator<T>(request: &Request<T>) -> String {
    match peer(request).map(|peer| peer.caller) {
        Ok(Caller::Operator { name, .. }) => name.to_string(),
        Ok(Caller::Host { .. } | Caller::Anonymous) | Err(_) => String::new(),
    }
}

fn source_files(files: Vec<v1::File>) -> Result<Vec<SourceFile>, Status> {
    if files.len() > MOST_FILES {
        return Err(Status::invalid_argument(format!(
            "A topology has at most {MOST_FILES} files, not {}.",
            files.len()
        )));
    }
    let mut names = std::collections::BTreeSet::new();
    if let Some(twice) = files.iter().find(|file| !names.insert(file.name.as_str())) {
        return Err(Status::invalid_argument(format!("The file {:?} is given twice.", twice.name)));
    }
    let source = |file: v1::File| SourceFile { name: file.name.into(), text: file.text };
    Ok(files.into_iter().map(source).collect())
}

/// A topology that is well-formed and passes its own tests.
struct Proposal {
    files: Vec<SourceFile>,
    topology: Topology,
    tests: Vec<v1::TestOutcome>,
}

enum Read {
    Good(Box<Proposal>),
    Refused(v1::ApplyResponse),
}

fn read(mesh: &Mesh, files: Vec<SourceFile>) -> Read {
    let topology = match topology::parse(&files) {
        Ok(topology) => topology,
        Err(diagnostics) => return Read::Refused(refused(mesh, &diagnostics, Vec::new())),
    };
    let results = isthmus_policy::run_tests(&topology);
    let tests: Vec<v1::TestOutcome> = results
        .iter()
        .map(|test| v1::TestOutcome {
            name: test.name.to_string(),
            passed: test.passed,
            detail: test.detail.clone(),
        })
        .collect();
    if results.iter().any(|test| !test.passed) {
        return Read::Refused(refused(mesh, &[], tests));
    }
    Read::Good(Box::new(Proposal { files, topology, tests }))
}

fn refused(
    mesh: &Mesh,
    diagnostics: &[Diagnostic],
    tests: Vec<v1::TestOutcome>,
) -> v1::ApplyResponse {
    v1::ApplyResponse {
        revision: mesh.now().state.revision.0,
        diagnostics: diagnostics.iter().map(diagnostic).collect(),
        tests,
        ..v1::ApplyResponse::default()
    }
}

fn apply(
    mesh: &Mesh,
    proposal: Proposal,
    clashes: &[Clash],
    terms: &Terms,
) -> Result<v1::ApplyResponse, Status> {
    let Proposal { files, topology, tests } = proposal;
    if !clashes.is_empty() {
        let diagnostics: Vec<Diagnostic> =
            clashes.iter().map(|clash| State::clash(&files, &clash.host, &clash.route)).collect();
        return Ok(refused(mesh, &diagnostics, tests));
    }
    let after = topology.clone();
    let applied = match mesh.apply(files, topology, terms) {
        Ok(applied) => applied,
        Err(ApplyError::Contradicts(diagnostics)) => {
            return Ok(refused(mesh, &diagnostics, tests));
        }
        Err(ApplyError::Store(error)) => return Err(not_stored(error)),
    };
    let Applied { revision, before, affected, unchanged, consequences } = applied;
    let Consequences { asks, notes } = consequences;
    let held = if terms.dry_run || terms.yes { &[][..] } else { &asks };
    let changes = topology::diff(Some(&before.topology), &after);
    Ok(v1::ApplyResponse {
        revision: revision.0,
        unchanged,
        changes: changes.into_iter().map(change).collect(),
        diagnostics: held.iter().map(|ask| unasked(ask)).collect(),
        tests,
        notes,
        asks,
        affected: affected.iter().map(ToString::to_string).collect(),
    })
}

fn change(change: topology::Change) -> v1::Change {
    let kind = match change.kind {
        ChangeKind::Added => v1::change::Kind::Added,
        ChangeKind::Changed => v1::change::Kind::Changed,
        ChangeKind::Removed => v1::change::Kind::Removed,
    };
    v1::Change { kind: kind.into(), subject: change.subject, detail: change.detail }
}

fn diagnostic(diagnostic: &Diagnostic) -> v1::Diagnostic {
    let offset = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
    v1::Diagnostic {
        file: diagnostic.file.to_string(),
        line: diagnostic.line,
        column: diagnostic.column,
        start: offset(diagnostic.span.start),
        end: offset(diagnostic.span.end),
        message: diagnostic.message.clone(),
        help: diagnostic.help.clone(),
    }
}

/// For an `agentctl` that doesn't know of questions.
fn unasked(ask: &str) -> v1::Diagnostic {
    v1::Diagnostic {
        message: ask.to_owned(),
        help: "if it is meant, apply it with an agentctl that has `apply --yes`".to_owned(),
        ..v1::Diagnostic::default()
    }
}

pub(crate) fn not_stored(error: StoreError) -> Status {
    Status::unavailable(format!("Nothing was changed: {error}."))
}
