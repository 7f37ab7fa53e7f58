//! Admin API: the requests of operators.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, Stream};
use isthmus_controller_core::{AppliedRevision, Operators, Role};
use isthmus_model::token::TokenId;
use isthmus_model::topology::SourceFile;
use isthmus_model::{Name, Revision};
use isthmus_proto::v1;
use isthmus_proto::v1::admin_server;
use tokio::sync::watch;
use tonic::{Request, Response, Status};
use tracing::info;

use crate::agents::Clash;
use crate::apply::{self, Proposal, Read};
use crate::authority::{Authority, RequestedKey};
use crate::join::certificate_message;
use crate::mesh::Mesh;
use crate::operators::{Acting, Deed, OperatorError, permit};
use crate::revisions::TrialError;
use crate::tokens::{self, NewToken};
use crate::{convergence, export, rollout, rotation, status};

const ACTS_SHOWN: usize = 100;

/// The service that operators call.
pub(crate) struct Admin {
    pub(crate) mesh: Arc<Mesh>,
    pub(crate) authority: Arc<Authority>,
    /// Where the controller is reached; for join tokens.
    pub(crate) addresses: Vec<String>,
    /// How long operators' certificates are good for.
    pub(crate) operator_lifetime: Duration,
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
        let terms = apply::terms(request.get_ref())?;
        let needed = if terms.dry_run { Role::View } else { Role::Apply };
        let deed = self.permit(&request, needed, apply::what(&terms)).await?;
        let v1::ApplyRequest { files, despite_clashes, .. } = request.into_inner();
        let work = async {
            let files = apply::source_files(files)?;
            let proposal = match self.mesh.work(move |mesh| apply::read(mesh, files)).await? {
                Read::Refused(response) => return Ok(*response),
                Read::Good(proposal) => proposal,
            };
            let clashes = if despite_clashes { Vec::new() } else { self.clashes(&proposal).await };
            let (terms, deed) = (terms.clone(), deed.clone());
            let work = move |mesh: &Mesh| apply::apply(mesh, *proposal, &clashes, &terms, &deed);
            self.mesh.work(work).await?
        };
        let done = work.await;
        if terms.dry_run {
            return done.map(Response::new);
        }
        let response = self.told(&deed, done).await?;
        match apply::in_vain(&response, &terms) {
            Some(why) => self.in_vain(deed, why).await,
            None if response.unchanged => {}
            None => {
                info!(operator = deed.who, revision = response.revision, "a topology was applied")
            }
        }
        Ok(Response::new(response))
    }

    async fn read_topology(
        &self,
        request: Request<v1::ReadTopologyRequest>,
    ) -> Result<Response<v1::Topology>, Status> {
        permit(&request, Role::View)?;
        let file =
            |file: &SourceFile| v1::File { name: file.name.to_string(), text: file.text.clone() };
        let asked = Revision(request.into_inner().revision);
        let now = self.mesh.now();
        if asked > now.state.revision {
            return Err(Status::not_found(format!(
                "There is no revision {asked} yet; the newest is {}.",
                now.state.revision
            )));
        }
        let (revision, applied) = match asked {
            Revision(0) => (now.state.revision, self.mesh.revisions().newest().cloned()),
            asked => {
                let found = self.mesh.revisions().in_force_at(asked).cloned();
                let found = found.ok_or_else(|| {
                    Status::not_found(format!(
                        "Revision {asked} isn't kept; `agentctl topology history` shows those that are."
                    ))
                })?;
                (asked, Some(found))
            }
        };
        let files = match (&applied, asked) {
            (Some(applied), Revision(1..)) => applied.files.iter().map(file).collect(),
            (_, _) => now.state.files.iter().map(file).collect(),
        };
        let applied = applied.map(|applied| self.applied(&applied));
        Ok(Response::new(v1::Topology { revision: revision.0, files, applied }))
    }

    async fn list_revisions(
        &self,
        request: Request<v1::ListRevisionsRequest>,
    ) -> Result<Response<v1::AppliedRevisions>, Status> {
        permit(&request, Role::View)?;
        let kept: Vec<AppliedRevision> = self.mesh.revisions().newest_first().cloned().collect();
        let revisions = kept.iter().map(|one| self.applied(one)).collect();
        Ok(Response::new(v1::AppliedRevisions { revisions }))
    }

    async fn confirm(
        &self,
        request: Request<v1::ConfirmRequest>,
    ) -> Result<Response<v1::ConfirmResponse>, Status> {
        let undo = request.get_ref().undo;
        let what = if undo { "undo" } else { "confirm" };
        let deed = self.permit(&request, Role::Apply, what.to_owned()).await?;
        let acting = permit(&request, Role::Apply)?;
        let work = move |mesh: &Mesh| {
            let deed = |what: &str| acting.wants(what.to_owned());
            if undo { mesh.undo(deed) } else { mesh.confirm(deed) }
        };
        let done = self.mesh.work(work).await?.map_err(|error| {
            let text = error.to_string();
            match error {
                TrialError::None(_) => Status::not_found(text),
                TrialError::Contradicts { .. } => Status::failed_precondition(text),
                TrialError::Store(_) => Status::unavailable(text),
            }
        });
        let revision = self.told(&deed, done).await?;
        Ok(Response::new(v1::ConfirmResponse { revision: revision.0 }))
    }

    async fn list_operators(
        &self,
        request: Request<v1::ListOperatorsRequest>,
    ) -> Result<Response<v1::Operators>, Status> {
        permit(&request, Role::View)?;
        Ok(Response::new(v1::Operators { operators: self.mesh.list_operators() }))
    }

    async fn add_operator(
        &self,
        request: Request<v1::AddOperatorRequest>,
    ) -> Result<Response<v1::AddedOperator>, Status> {
        let v1::AddOperatorRequest { name, role, certificate_request } = request.get_ref().clone();
        let what = match &*certificate_request {
            [] => format!("give operator {name} the role {role}"),
            _ => format!("add operator {name} ({role})"),
        };
        let deed = self.permit(&request, Role::Admin, what).await?;
        let done = self.add(name, &role, certificate_request, deed.clone()).await;
        Ok(Response::new(self.told(&deed, done).await?))
    }

    async fn revoke_operator(
        &self,
        request: Request<v1::RevokeOperatorRequest>,
    ) -> Result<Response<v1::RevokeOperatorResponse>, Status> {
        let v1::RevokeOperatorRequest { name, yes } = request.get_ref().clone();
        let deed = self.permit(&request, Role::Admin, format!("revoke operator {name}")).await?;
        let done = self.revoke(name, yes, deed.clone()).await;
        self.told(&deed, done).await?;
        Ok(Response::new(v1::RevokeOperatorResponse {}))
    }

    async fn read_audit(
        &self,
        request: Request<v1::ReadAuditRequest>,
    ) -> Result<Response<v1::Audit>, Status> {
        permit(&request, Role::View)?;
        let v1::ReadAuditRequest { who, most } = request.into_inner();
        let most = if most == 0 { ACTS_SHOWN } else { most as usize };
        Ok(Response::new(v1::Audit { acts: self.mesh.acts(&who, most) }))
    }

    async fn watch_rollout(
        &self,
        request: Request<v1::WatchRolloutRequest>,
    ) -> Result<Response<Self::WatchRolloutStream>, Status> {
        let acting = permit(&request, Role::View)?;
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
            operators: self.mesh.staff.watch(),
            acting,
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
        request: Request<v1::ReadStatusRequest>,
    ) -> Result<Response<v1::MeshStatus>, Status> {
        permit(&request, Role::View)?;
        Ok(Response::new(status::status(&self.mesh)))
    }

    async fn create_token(
        &self,
        request: Request<v1::CreateTokenRequest>,
    ) -> Result<Response<v1::CreatedToken>, Status> {
        let deed = self.permit(&request, Role::Admin, tokens::what(request.get_ref())).await?;
        let made = NewToken::make(request.into_inner(), self.authority.hash(), &self.addresses);
        let NewToken { token, record } = self.told(&deed, made).await?;
        let info = tokens::info(&record);
        let by = deed.clone();
        let done = self.mesh.work(move |mesh| mesh.add_token(record, &by)).await?;
        self.told(&deed, done.map_err(Status::from)).await?;
        info!(operator = deed.who, token = info.id, "a join token was made");
        Ok(Response::new(v1::CreatedToken { token: token.encode().to_string(), info: Some(info) }))
    }

    async fn list_tokens(
        &self,
        request: Request<v1::ListTokensRequest>,
    ) -> Result<Response<v1::Tokens>, Status> {
        permit(&request, Role::View)?;
        let all = self.mesh.work(Mesh::all_tokens).await?;
        Ok(Response::new(v1::Tokens { tokens: all.iter().map(tokens::info).collect() }))
    }

    async fn revoke_token(
        &self,
        request: Request<v1::RevokeTokenRequest>,
    ) -> Result<Response<v1::RevokeTokenResponse>, Status> {
        let text = request.get_ref().id.clone();
        let deed = self.permit(&request, Role::Admin, format!("revoke token {text}")).await?;
        let by = deed.clone();
        let work = async {
            let id: TokenId = text.parse().map_err(|_| {
                Status::invalid_argument(format!(
                    "{text:?} is no token id: give the 16 hexadecimal digits that `agentctl token list` shows."
                ))
            })?;
            match self
                .mesh
                .work(move |mesh| mesh.revoke_token(id, &by))
                .await?
                .map_err(Status::from)?
            {
                true => Ok(()),
                false => Err(Status::not_found(format!(
                    "There is no token {id}; `agentctl token list` shows all."
                ))),
            }
        };
        self.told(&deed, work.await).await?;
        info!(operator = deed.who, token = text, "a join token was revoked");
        Ok(Response::new(v1::RevokeTokenResponse {}))
    }

    async fn remove_host(
        &self,
        request: Request<v1::RemoveHostRequest>,
    ) -> Result<Response<v1::RemoveHostResponse>, Status> {
        let name = request.get_ref().name.clone();
        let deed = self.permit(&request, Role::Admin, Deed::removal(&name)).await?;
        let (host, by) = (name.clone(), deed.clone());
        let removed = self.mesh.work(move |mesh| mesh.remove_host(&host, &by)).await?;
        let removed = match removed {
            Ok(Some(revision)) => Ok(revision),
            Ok(None) => Err(Status::not_found(format!(
                "There is no host {name:?} in the mesh; `agentctl host list` shows all."
            ))),
            Err(error) => {
                Err(Status::unavailable(format!("Host {name:?} wasn't removed: {error}.")))
            }
        };
        let revision = self.told(&deed, removed).await?;
        info!(operator = deed.who, host = name, "a host was removed");
        Ok(Response::new(v1::RemoveHostResponse { revision: revision.0 }))
    }

    async fn rotate_host_key(
        &self,
        request: Request<v1::RotateHostKeyRequest>,
    ) -> Result<Response<v1::RotateHostKeyResponse>, Status> {
        let what = rotation::what(&request.get_ref().name);
        let deed = self.permit(&request, Role::Admin, what).await?;
        let done = rotation::rotate(&self.mesh, request.into_inner(), deed.clone()).await;
        Ok(Response::new(self.told(&deed, done).await?))
    }

    async fn export_device(
        &self,
        request: Request<v1::ExportDeviceRequest>,
    ) -> Result<Response<v1::ExportedDevice>, Status> {
        permit(&request, Role::View)?;
        let now = self.mesh.now();
        let name = request.into_inner().name;
        let config = export::device(&now.state, now.world.everything(), &name)?;
        Ok(Response::new(v1::ExportedDevice { config }))
    }

    async fn list_deliveries(
        &self,
        request: Request<v1::ListDeliveriesRequest>,
    ) -> Result<Response<v1::Deliveries>, Status> {
        permit(&request, Role::View)?;
        Ok(Response::new(v1::Deliveries { deliveries: rollout::all(&self.mesh) }))
    }

    async fn steer_delivery(
        &self,
        request: Request<v1::SteerDeliveryRequest>,
    ) -> Result<Response<v1::Delivery>, Status> {
        let deed = self.permit(&request, Role::Apply, rollout::what(request.get_ref())).await?;
        let (request, by) = (request.into_inner(), deed.clone());
        let done = self.mesh.work(move |mesh| rollout::steer(mesh, &request, &by)).await?;
        Ok(Response::new(self.told(&deed, done).await?))
    }
}

impl Admin {
    /// What an operator wants, if their role is enough for it. That it isn't is written down.
    async fn permit<T: Sync>(
        &self,
        request: &Request<T>,
        needed: Role,
        what: String,
    ) -> Result<Deed, Status> {
        let acting = permit(request, Role::View)?;
        let deed = acting.wants(what);
        let permitted = permit(request, needed).map(drop);
        self.told(&deed, permitted).await.map(|()| deed)
    }

    /// Writes down what was in vain; what was done is written down already.
    async fn told<T: Send>(&self, deed: &Deed, done: Result<T, Status>) -> Result<T, Status> {
        if let Err(status) = &done {
            self.in_vain(deed.clone(), status.message().to_owned()).await;
        }
        done
    }

    async fn in_vain(&self, deed: Deed, why: String) {
        // A panic in there is logged by `work`.
        let _ = self.mesh.work(move |mesh| mesh.in_vain(&deed, &why)).await;
    }

    fn applied(&self, one: &AppliedRevision) -> v1::AppliedRevision {
        v1::AppliedRevision {
            revision: one.revision.0,
            at: one.at,
            by: one.by.clone(),
            note: one.note.clone(),
            undone_at: self.mesh.undone_at(one.revision),
        }
    }

    async fn add(
        &self,
        name: String,
        role: &str,
        certificate_request: Vec<u8>,
        deed: Deed,
    ) -> Result<v1::AddedOperator, Status> {
        let name = operator_name(&name)?;
        let role: Role =
            role.parse().map_err(|error| Status::invalid_argument(format!("{error}.")))?;
        let key = match &*certificate_request {
            [] => None,
            der => Some(RequestedKey::from_der(der).map_err(|error| {
                Status::invalid_argument(format!("Bad certificate request: {error}."))
            })?),
        };
        let added = name.clone();
        let is_new = key.is_some();
        let work = move |mesh: &Mesh| mesh.add_operator(&added, role, is_new, &deed);
        let issued = self.mesh.work(work).await?.map_err(|error| not_written(&name, &error))?;
        let Some(key) = key else { return Ok(v1::AddedOperator::default()) };
        let issued =
            self.authority.operator_by_request(&name, &key, issued, self.operator_lifetime);
        let issued = issued.map_err(|error| {
            Status::internal(format!("No certificate could be made: {error:#}."))
        })?;
        Ok(v1::AddedOperator { certificate: Some(certificate_message(&issued)) })
    }

    async fn revoke(&self, name: String, is_meant: bool, deed: Deed) -> Result<(), Status> {
        let name = operator_name(&name)?;
        let revoked = name.clone();
        let work = move |mesh: &Mesh| mesh.revoke_operator(&revoked, is_meant, &deed);
        self.mesh.work(work).await?.map_err(|error| not_written(&name, &error))
    }

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

/// The convergence of a watched revision, each time it differs from the last one shown.
struct Watch {
    mesh: Arc<Mesh>,
    revision: Revision,
    affected: BTreeSet<Name>,
    progress: watch::Receiver<()>,
    members: watch::Receiver<Arc<crate::mesh::Published>>,
    stopping: watch::Receiver<bool>,
    operators: watch::Receiver<Arc<Operators>>,
    acting: Acting,
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
            let convergence = convergence::of(&self.mesh, self.revision, &self.affected);
            if self.last.as_ref() != Some(&convergence) {
                self.last = Some(convergence.clone());
                return Some(convergence);
            }
            tokio::select! {
                changed = self.progress.changed() => changed.ok()?,
                changed = self.members.changed() => changed.ok()?,
                _ = self.stopping.wait_for(|stopping| *stopping) => return None,
                _ = self.operators.wait_for(|all| !self.acting.is_good(all)) => return None,
            }
        }
    }
}

fn operator_name(text: &str) -> Result<Name, Status> {
    text.parse().map_err(|error| {
        Status::invalid_argument(format!("{text:?} can't be an operator's name: {error}."))
    })
}

fn not_written(name: &Name, error: &OperatorError) -> Status {
    match error {
        OperatorError::TooMany(error) => {
            Status::resource_exhausted(format!("No operator was added: {error}."))
        }
        OperatorError::Store(error) => {
            Status::unavailable(format!("Nothing was changed: {error}."))
        }
        OperatorError::LastAdmin => Status::failed_precondition(format!(
            "Nobody but {name} is an administrator here, so nothing was changed. First make another: `agentctl operator add NAME --role admin --out DIR`. Revoked all the same by `agentctl operator revoke {name} --yes`, only root of the controller's machine can make one (`isthmus-controller operator NAME --out DIR`)."
        )),
        OperatorError::Unknown => Status::not_found(format!(
            "No operator {name} is known here; `agentctl operator list` shows all. If there may be credentials of that name from before, `agentctl operator revoke {name} --yes` makes them worthless."
        )),
    }
}
