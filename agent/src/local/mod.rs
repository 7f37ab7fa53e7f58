//! The local API: what `agentctl` asks on the Unix socket.

mod flows;
mod listen;
mod ping;
mod resolve;
mod routes;
pub(crate) mod show;
mod stat;
mod tap;
mod whois;

use std::sync::Arc;
use std::time::Duration;

use isthmus_model::Name;
use isthmus_model::token::Token;
use isthmus_proto::v1;
use isthmus_proto::v1::local_server::{Local, LocalServer};
use tokio::net::unix::UCred;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status};

use crate::containers;
use crate::dataplane;
use crate::identity::Identity;
use crate::join::{self, JoinError};
use crate::leave::Farewell;
use crate::membership::Turn;
use crate::state_dir::StateDir;
use crate::status::{self, Shared};

pub(crate) use listen::{Listener, bind};
#[cfg(test)]
pub(crate) use show::tests;

/// Requests are short: the longest holds a token.
const REQUEST_BYTES_MAX: usize = 16 << 10;
const REQUESTS_PER_CONNECTION: u32 = 16;
const FLOWS_DEFAULT: usize = 1_000;
const FLOWS_MAX: usize = 100_000;
/// Time limit for a new member's first snapshot.
const FIRST_SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(15);
/// A connection that says nothing for so long is asked whether it is alive.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// Serves until `stop` completes, then lets go of the socket.
///
/// # Errors
/// When the socket can't be read any more.
pub(crate) async fn serve(
    listener: Listener,
    api: Api,
    stop: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let service = LocalServer::new(api).max_decoding_message_size(REQUEST_BYTES_MAX);
    tonic::transport::Server::builder()
        .max_concurrent_streams(REQUESTS_PER_CONNECTION)
        .concurrency_limit_per_connection(REQUESTS_PER_CONNECTION as usize)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .add_service(service)
        .serve_with_incoming_shutdown(listener.connections(), stop)
        .await?;
    Ok(())
}

/// State of the local API.
#[derive(Clone, Debug)]
pub(crate) struct Api {
    shared: Arc<Shared>,
    disk: Arc<StateDir>,
    /// Where a new identity goes, and the wish to leave: whoever receives it lives by it from then on.
    turns: mpsc::Sender<Turn>,
    /// Held by whoever is joining, or leaving.
    joining: Arc<Mutex<()>>,
}

impl Api {
    #[must_use]
    pub(crate) fn new(shared: Arc<Shared>, disk: Arc<StateDir>, turns: mpsc::Sender<Turn>) -> Self {
        Self { shared, disk, turns, joining: Arc::default() }
    }

    fn packets(&self) -> Result<dataplane::Handle, Status> {
        self.shared.packets().ok_or_else(|| {
            let status = self.shared.status();
            let why = match (status.member, status.refusal.as_str()) {
                (None, _) => {
                    "This host is not a member of a mesh; join one with `agentctl join TOKEN`"
                        .into()
                }
                (Some(_), "") => {
                    "This host waits for its first snapshot from the controller".into()
                }
                (Some(_), refusal) => format!("The overlay is not up here: {refusal}"),
            };
            Status::failed_precondition(why)
        })
    }

    /// A member joins its own mesh again only where it can't get on as the member that it is, and another
    /// mesh never: that its controller is away is no reason to leave it.
    async fn may_join(&self, token: &Token) -> Result<(), Status> {
        let status = self.shared.status();
        let Some(member) = status.member else { return Ok(()) };
        let disk = Arc::clone(&self.disk);
        let read = tokio::task::spawn_blocking(move || disk.identity()).await;
        let own = read.ok().and_then(Result::ok).flatten();
        let is_own = own.is_some_and(|own| *blake3::hash(&own.tls.ca).as_bytes() == token.ca_hash);
        if is_own && !status.connected {
            return Ok(());
        }
        Err(Status::failed_precondition(format!(
            "This host is a member of the mesh {} already, as {}; to join {}, first `agentctl leave`",
            member.mesh,
            member.host,
            if is_own { "anew" } else { "another" }
        )))
    }

    async fn join_keys(&self, token: &Token, host: &Name) -> anyhow::Result<join::Keys> {
        let (disk, token, host) = (Arc::clone(&self.disk), token.id.to_string(), host.to_string());
        tokio::task::spawn_blocking(move || disk.join_keys(&token, &host)).await?
    }

    async fn keep(&self, identity: Identity) -> anyhow::Result<()> {
        let disk = Arc::clone(&self.disk);
        let kept = identity.clone();
        let keep = move || {
            disk.write_identity(&kept)?;
            if let Err(error) = disk.forget_join_keys() {
                tracing::warn!("couldn't remove what the join is over with: {error:#}");
            }
            anyhow::Ok(())
        };
        tokio::task::spawn_blocking(keep).await??;
        let turn = Turn::Joined(Box::new(identity));
        self.turns.send(turn).await.map_err(|_| anyhow::anyhow!("The agent is stopping"))
    }

    /// The status once the data plane of this member is up.
    async fn first_snapshot(
        &self,
        member: &crate::identity::Member,
    ) -> Result<status::Status, Status> {
        let mut changes = self.shared.watch();
        let ours = |status: &status::Status| {
            status.member.as_ref().is_some_and(|it| it.is_same_as(member))
        };
        let settled = changes.wait_for(|status| {
            ours(status) && (status.state.is_some() || !status.refusal.is_empty())
        });
        let settled = tokio::time::timeout(FIRST_SNAPSHOT_TIMEOUT, settled).await;
        let status = match settled {
            Ok(Ok(status)) => status.clone(),
            Ok(Err(_)) => return Err(Status::unavailable("The agent is stopping")),
            Err(_) => {
                let error = self.shared.status().last_error;
                return Err(Status::unavailable(format!(
                    "This host has joined, but the controller has sent it no snapshot yet; the \
                     agent keeps trying. {error}"
                )));
            }
        };
        if status.state.is_none() {
            let refusal = status.refusal;
            return Err(Status::failed_precondition(format!(
                "This host has joined, but its overlay is not up: {refusal}"
            )));
        }
        Ok(status)
    }
}

#[tonic::async_trait]
impl Local for Api {
    async fn join(
        &self,
        request: Request<v1::LocalJoinRequest>,
    ) -> Result<Response<v1::LocalJoinResponse>, Status> {
        let request = request.into_inner();
        let token: Token = request.token.parse().map_err(invalid)?;
        let host = host_name(&request.host)?;
        let Ok(_alone) = self.joining.try_lock() else {
            return Err(busy());
        };
        self.may_join(&token).await?;
        tracing::info!(%host, token = %token.id, "joining a mesh");
        let failed = |error: &anyhow::Error| Status::internal(sentence(&format!("{error:#}")));
        let keys = self.join_keys(&token, &host).await.map_err(|error| failed(&error))?;
        let identity = join::join(&token, host, keys).await.map_err(|error| {
            tracing::warn!("couldn't join: {error}");
            join_status(&error)
        })?;
        let member = identity.member.clone();
        self.keep(identity).await.map_err(|error| {
            let again = error.context(
                "This host is a member now, but can't remember it; the same \
                                       join once more makes it one again",
            );
            failed(&again)
        })?;
        let status = self.first_snapshot(&member).await?;
        let Some(state) = &status.state else {
            return Err(Status::internal("The overlay went down while this host joined"));
        };
        let snapshot = &state.snapshot;
        Ok(Response::new(v1::LocalJoinResponse {
            host_id: member.host_id.0,
            host: member.host.to_string(),
            mesh: member.mesh,
            ipv6: snapshot.workload_ipv6(snapshot.local, isthmus_model::ServiceId(0)).to_string(),
            ipv4: snapshot.local_host().ipv4().to_string(),
        }))
    }

    async fn leave(
        &self,
        request: Request<v1::LocalLeaveRequest>,
    ) -> Result<Response<v1::LocalLeaveResponse>, Status> {
        may_end_membership(request.extensions().get::<Option<UCred>>())?;
        let Ok(_alone) = self.joining.try_lock() else { return Err(busy()) };
        tracing::info!("leaving the mesh");
        let (answer, answered) = oneshot::channel();
        if self.turns.send(Turn::Leave(answer)).await.is_err() {
            return Err(Status::unavailable("The agent is stopping"));
        }
        let Ok(Farewell { member, told, unremoved }) = answered.await else {
            return Err(Status::failed_precondition("This host is not a member of a mesh"));
        };
        Ok(Response::new(v1::LocalLeaveResponse {
            host: member.host.to_string(),
            mesh: member.mesh,
            revision: told.as_ref().copied().unwrap_or_default(),
            untold: told.err().unwrap_or_default(),
            unremoved: unremoved.unwrap_or_default(),
        }))
    }

    async fn read_status(
        &self,
        _: Request<v1::ReadAgentStatusRequest>,
    ) -> Result<Response<v1::AgentStatus>, Status> {
        let sample = match self.shared.packets() {
            Some(packets) => packets.sample().await.ok(),
            None => None,
        };
        let status = self.shared.status();
        let shown = show::status(&self.shared.settings, &status, sample.as_ref());
        let containers = status.state.as_ref().map_or_else(Vec::new, |state| {
            containers::shown(&self.shared.containers.table(), &state.snapshot)
        });
        let problems = self.shared.problems.all();
        Ok(Response::new(v1::AgentStatus { problems, containers, ..shown }))
    }

    async fn list_peers(
        &self,
        _: Request<v1::ListPeersRequest>,
    ) -> Result<Response<v1::Peers>, Status> {
        let sample = self.packets()?.sample().await.map_err(unavailable)?;
        let state = self.state()?;
        let peers = sample.peers.iter().map(|peer| show::peer(&state, peer)).collect();
        Ok(Response::new(v1::Peers { peers }))
    }

    async fn list_flows(
        &self,
        request: Request<v1::ListFlowsRequest>,
    ) -> Result<Response<v1::Flows>, Status> {
        let request = request.into_inner();
        let limit = match request.limit {
            0 => FLOWS_DEFAULT,
            limit => usize::try_from(limit).unwrap_or(FLOWS_MAX).min(FLOWS_MAX),
        };
        // What doesn't fit mustn't take the places of what does.
        let looked_at = if flows::is_filtered(&request) { FLOWS_MAX } else { limit };
        let listed = self.packets()?.flows(looked_at).await.map_err(unavailable)?;
        let shared = Arc::clone(&self.shared);
        let shown = move || flows::show(&shared, &listed, &request, limit);
        let flows = tokio::task::spawn_blocking(shown).await;
        flows.map(Response::new).map_err(|error| Status::internal(error.to_string()))
    }

    async fn list_routes(
        &self,
        _: Request<v1::ListRoutesRequest>,
    ) -> Result<Response<v1::Routes>, Status> {
        // Says why there is none.
        self.packets()?;
        let status = self.shared.status();
        let state = status.state.ok_or_else(|| Status::unavailable("The overlay is going down"))?;
        Ok(Response::new(routes::routes(&state, &self.shared.proxy)))
    }

    async fn read_traffic(
        &self,
        request: Request<v1::ReadTrafficRequest>,
    ) -> Result<Response<v1::Traffic>, Status> {
        let asked = match request.into_inner().window_seconds {
            0 => None,
            seconds => Some(Duration::from_secs(seconds.into())),
        };
        let shared = &self.shared;
        let window = shared.windows.within(asked, &shared.proxy.snapshot());
        Ok(Response::new(stat::traffic(&window)))
    }

    type TapStream = ReceiverStream<Result<v1::TapEvent, Status>>;

    async fn tap(
        &self,
        request: Request<v1::TapRequest>,
    ) -> Result<Response<Self::TapStream>, Status> {
        let tap = tap::listen(&self.shared.proxy, request.into_inner())?;
        let (sender, events) = mpsc::channel(4);
        tokio::spawn(tap::tell(tap, sender));
        Ok(Response::new(ReceiverStream::new(events)))
    }

    async fn read_snapshot(
        &self,
        _: Request<v1::ReadSnapshotRequest>,
    ) -> Result<Response<v1::SnapshotResources>, Status> {
        let state = self.state()?;
        Ok(Response::new(v1::SnapshotResources {
            revision: state.revision().0,
            resources: isthmus_model::convert::resources(&state.snapshot),
            ..v1::SnapshotResources::default()
        }))
    }

    async fn whois(
        &self,
        request: Request<v1::WhoisRequest>,
    ) -> Result<Response<v1::WhoisAnswer>, Status> {
        let state = self.state()?;
        let target = request.into_inner().target;
        // Users may be looked up far away.
        let containers = self.shared.containers.table();
        let look = move || whois::whois(&state, &containers, &target);
        let answer = tokio::task::spawn_blocking(look).await;
        let answer = answer.map_err(|error| Status::internal(error.to_string()))?;
        answer.map(Response::new).map_err(|error| Status::not_found(error.to_string()))
    }

    type PingStream = ReceiverStream<Result<v1::PingReply, Status>>;

    async fn ping(
        &self,
        request: Request<v1::PingRequest>,
    ) -> Result<Response<Self::PingStream>, Status> {
        let request = request.into_inner();
        let packets = self.packets()?;
        let state = self.state()?;
        let target = resolve::resolve(&state, &request.target)
            .map_err(|error| Status::not_found(error.to_string()))?;
        let (sender, replies) = mpsc::channel(4);
        let series = ping::Series::new(&request, target);
        tokio::spawn(series.run(Arc::clone(&self.shared), packets, sender));
        Ok(Response::new(ReceiverStream::new(replies)))
    }
}

impl Api {
    fn state(&self) -> Result<Arc<isthmus_core::CompiledSnapshot>, Status> {
        // Where there is no state there is no data plane, whose absence explains itself.
        self.shared.state().map_or_else(
            || Err(self.packets().err().unwrap_or_else(|| Status::unavailable("Try again"))),
            Ok,
        )
    }
}

fn busy() -> Status {
    Status::aborted("This host is joining or leaving already; wait for that to end")
}

/// Who is in the socket's group may look, and let the host join, but not throw its keys away.
fn may_end_membership(caller: Option<&Option<UCred>>) -> Result<(), Status> {
    let user = caller.and_then(Option::as_ref).map(UCred::uid);
    if user.is_some_and(|user| user == 0 || user == isthmus_net::process::own_user()) {
        return Ok(());
    }
    Err(Status::permission_denied("Only root may have this host leave its mesh"))
}

/// The name asked for, or the system's: its first label, in lower case.
fn host_name(asked: &str) -> Result<Name, Status> {
    if !asked.is_empty() {
        return asked.parse().map_err(|error| {
            Status::invalid_argument(format!("{asked:?} is no host name: {error}"))
        });
    }
    let system = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let label = system.trim().split('.').next().unwrap_or_default().to_ascii_lowercase();
    label.parse().map_err(|error| {
        Status::invalid_argument(format!(
            "This system's name {label:?} can't be a host's name ({error}); choose one with \
             `agentctl join --name NAME`"
        ))
    })
}

fn join_status(error: &JoinError) -> Status {
    let code = match error {
        JoinError::Unreachable { .. } => Code::Unavailable,
        JoinError::Foreign(_) => Code::PermissionDenied,
        JoinError::Refused { code, .. } => *code,
        JoinError::Failed(_) => Code::Internal,
    };
    Status::new(code, sentence(&error.to_string()))
}

fn invalid(error: impl std::fmt::Display) -> Status {
    Status::invalid_argument(sentence(&error.to_string()))
}

fn unavailable(error: anyhow::Error) -> Status {
    Status::unavailable(format!("{error:#}"))
}

fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn a_host_name_that_is_none_is_refused_with_the_reason() {
        assert_eq!(host_name("app-1").unwrap().as_str(), "app-1");
        let error = host_name("App_1").unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument);
        assert!(error.message().contains("App_1"), "{error}");
    }

    #[test]
    fn the_controllers_refusal_reaches_the_person_in_its_own_words() {
        let message = "The token has expired; create another with `agentctl token create`.";
        let refused =
            JoinError::Refused { code: Code::Unauthenticated, message: message.to_owned() };
        let status = join_status(&refused);
        assert_eq!((status.code(), status.message()), (Code::Unauthenticated, message));
    }
}
