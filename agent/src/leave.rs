//! Leaving the mesh: a controller is told, then the host forgets it.
//!
//! Nobody else has a say in whether this host stays: one that reaches no controller, or one that knows no
//! leaving, leaves all the same. Then an operator has to remove it there.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use isthmus_proto::v1;
use isthmus_proto::v1::sync_client::SyncClient;
use tonic::Code;

use crate::dns;
use crate::guard;
use crate::identity::{Identity, Member};
use crate::network;
use crate::settings::Settings;
use crate::state_dir::StateDir;
use crate::sync::said;
use crate::tls;

/// For telling a controller. One that thinks another machine is this host waits 8 s for that one's answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Answer of a host that has left.
#[derive(Clone, Debug)]
pub struct Farewell {
    /// Its former membership.
    pub member: Member,
    /// The mesh's revision without it; or why no controller was told.
    pub told: Result<u64, String>,
    /// Why something of the mesh is still on this host, if it is.
    pub unremoved: Option<String>,
}

/// Tells the controllers, until one of them has heard it, that this host is to be no member any more.
///
/// # Errors
/// Why none has.
pub async fn tell(identity: &Identity, instance: &[u8]) -> Result<u64, String> {
    let mut refusals: Vec<String> = Vec::new();
    let telling = async {
        for address in &identity.member.controllers {
            match tell_one(address, identity, instance).await {
                Ok(revision) => return Some(revision),
                Err(error) => refusals.push(format!("{error:#}")),
            }
        }
        None
    };
    match tokio::time::timeout(PATIENCE, telling).await {
        Ok(Some(revision)) => return Ok(revision),
        Ok(None) => {}
        Err(_) => refusals.push(format!("no answer within {} s", PATIENCE.as_secs())),
    }
    Err(refusals.join("; "))
}

async fn tell_one(address: &str, identity: &Identity, instance: &[u8]) -> anyhow::Result<u64> {
    let name = tls::controller_name(&identity.member.trust_domain)?;
    let stream = tls::connect(address, tls::member_config(&identity.tls)?, name).await?;
    let mut client = SyncClient::new(tls::channel(stream).await?);
    let request = v1::LeaveRequest { instance: instance.to_vec() };
    match client.leave(request).await {
        Ok(answer) => Ok(answer.into_inner().revision),
        Err(status) if status.code() == Code::Unimplemented => {
            anyhow::bail!("the controller at {address} is older than this agent, and can't be told")
        }
        Err(status) => Err(said(status)),
    }
}

/// Leaves the mesh that `settings` keep the state of, for a host whose agent doesn't run; none if it is no
/// member of any.
///
/// # Errors
/// When an agent runs, or what is kept is damaged: then nothing has changed.
pub async fn without_agent(settings: &Settings) -> anyhow::Result<Option<Farewell>> {
    let farewell = tell_and_forget(&settings.state_dir).await?;
    if farewell.is_some() {
        dns::keeper::put_back(settings);
        network::clear(&settings.device).await;
        guard::lower_or_say(&settings.device).await;
    }
    Ok(farewell)
}

async fn tell_and_forget(state_dir: &Path) -> anyhow::Result<Option<Farewell>> {
    // Makes no folder where there is none.
    if StateDir::peek_member(state_dir)?.is_none() {
        return Ok(None);
    }
    let disk = StateDir::open(state_dir)?;
    let identity = disk.identity()?.context("This host has just left the mesh")?;
    let mut instance = [0; 16];
    getrandom::fill(&mut instance).context("Failed to get random bytes from the kernel")?;
    let told = tell(&identity, &instance).await;
    let unremoved = forget(&disk, &identity).err().map(|error| format!("{error:#}"));
    Ok(Some(Farewell { member: identity.member, told, unremoved }))
}

/// Removes all keys, those of a join without an answer among them, and what is kept of the mesh.
///
/// # Errors
/// When the disk refuses.
pub fn forget(disk: &StateDir, identity: &Identity) -> anyhow::Result<()> {
    disk.forget(identity)?;
    disk.forget_join_keys()
}

impl Farewell {
    /// Action for an operator, if the controller wasn't notified.
    #[must_use]
    pub fn remedy(host: &str) -> String {
        format!("`agentctl host remove {host}` where an operator is")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use hyper_util::rt::{TokioExecutor, TokioIo};
    use hyper_util::service::TowerToHyperService;
    use isthmus_proto::v1::sync_server::{self, SyncServer};
    use parking_lot::Mutex;
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;
    use tokio_stream::wrappers::ReceiverStream;
    use tonic::{Request, Response, Status, Streaming};

    use super::*;
    use crate::identity::tests::{identity_by, member};
    use crate::tls::tests::{Authority, HostCertificate};

    /// Answers so to who leaves, and notes as whom they came.
    #[derive(Clone)]
    struct Controller {
        answer: Result<u64, Status>,
        left: Arc<Mutex<Vec<Vec<u8>>>>,
    }

    #[tonic::async_trait]
    impl sync_server::Sync for Controller {
        type StreamStream = ReceiverStream<Result<v1::ControllerMessage, Status>>;

        async fn stream(
            &self,
            _: Request<Streaming<v1::AgentMessage>>,
        ) -> Result<Response<Self::StreamStream>, Status> {
            Err(Status::internal("nobody asks"))
        }

        async fn renew(
            &self,
            _: Request<v1::RenewRequest>,
        ) -> Result<Response<v1::Certificate>, Status> {
            Err(Status::internal("nobody asks"))
        }

        async fn leave(
            &self,
            request: Request<v1::LeaveRequest>,
        ) -> Result<Response<v1::LeaveResponse>, Status> {
            self.left.lock().push(request.into_inner().instance);
            let revision = self.answer.clone()?;
            Ok(Response::new(v1::LeaveResponse { revision }))
        }
    }

    async fn serve(authority: &Authority, controller: Controller) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let config = authority.server("controller.corp.example");
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(stream) = TlsAcceptor::from(Arc::clone(&config)).accept(stream).await else {
                    continue;
                };
                let service = TowerToHyperService::new(SyncServer::new(controller.clone()));
                let http2 = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                drop(http2.serve_connection(TokioIo::new(stream), service).await);
            }
        });
        address
    }

    async fn dead() -> String {
        TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string()
    }

    /// A host that leaves a mesh with a controller that answers so, behind one that is dead. What is kept on
    /// its disk afterwards, and what it says.
    async fn leave(answer: Option<Result<u64, Status>>) -> (Farewell, Vec<String>, usize) {
        let authority = Authority::new();
        let left = Arc::default();
        let mut controllers = vec![dead().await];
        if let Some(answer) = answer {
            let controller = Controller { answer, left: Arc::clone(&left) };
            controllers.push(serve(&authority, controller).await);
        }
        let mut identity = identity_by(&authority, &HostCertificate::of(&member()));
        identity.member.controllers = controllers;
        let parent = tempfile::tempdir().unwrap();
        let state_dir = parent.path().join("agent");
        let disk = StateDir::open(&state_dir).unwrap();
        disk.write_identity(&identity).unwrap();
        disk.join_keys("0102030405060708", "app-1").unwrap();
        drop(disk);
        let farewell = tell_and_forget(&state_dir).await.unwrap().unwrap();
        assert!(tell_and_forget(&state_dir).await.unwrap().is_none(), "it is no member any more");
        let kept = std::fs::read_dir(state_dir).unwrap();
        let kept = kept.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        let times = left.lock().len();
        (farewell, kept, times)
    }

    #[tokio::test]
    async fn who_leaves_tells_a_controller_and_keeps_nothing() {
        let (farewell, kept, times) = leave(Some(Ok(9))).await;
        assert_eq!((farewell.told, farewell.unremoved, times), (Ok(9), None, 1));
        assert_eq!((farewell.member.host.as_str(), kept), ("app-1", vec!["lock".to_owned()]));
    }

    #[tokio::test]
    async fn who_cannot_tell_leaves_all_the_same_and_says_why() {
        let (farewell, kept, _) = leave(None).await;
        assert!(farewell.told.unwrap_err().contains("can't reach the controller"));
        assert_eq!(kept, ["lock"]);
        let (farewell, kept, _) = leave(Some(Err(Status::unimplemented("")))).await;
        assert!(farewell.told.unwrap_err().contains("is older than this agent"));
        assert_eq!(kept, ["lock"]);
        let another = Status::already_exists("Another machine is connected.");
        let (farewell, ..) = leave(Some(Err(another))).await;
        assert!(farewell.told.unwrap_err().contains("Another machine"));
    }

    #[tokio::test]
    async fn while_an_agent_runs_nothing_is_taken_from_it() {
        let parent = tempfile::tempdir().unwrap();
        let state_dir = parent.path().join("agent");
        let disk = StateDir::open(&state_dir).unwrap();
        disk.write_identity(&crate::identity::tests::identity()).unwrap();
        let error = tell_and_forget(&state_dir).await.err().unwrap().to_string();
        assert!(error.contains("Another agent uses"), "{error}");
        assert!(disk.identity().unwrap().is_some());
    }
}
