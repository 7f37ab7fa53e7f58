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

mod stream;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use isthmus_model::{Name, Revision};
use isthmus_proto::v1::sync_server;
use isthmus_proto::v1::{self, AgentMessage, ControllerMessage};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::info;

use self::stream::AgentStream;
use crate::authority::{Authority, Membership, RequestedKey};
use crate::caller::{Caller, Peer, in_time, peer};
use crate::history;
use crate::join::certificate_message;
use crate::mesh::{Mesh, Published};
use crate::operators::Deed;
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
    /// Addresses of controllers.
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
            assignments: self.mesh.global_limits.watch(),
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
