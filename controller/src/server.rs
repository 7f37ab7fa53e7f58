//! Everything put together.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use isthmus_proto::v1::admin_server::AdminServer;
use isthmus_proto::v1::credentials_server::CredentialsServer;
use isthmus_proto::v1::join_server::JoinServer;
use isthmus_proto::v1::sync_server::SyncServer;
use parking_lot::Mutex;
use sd_notify::NotifyState;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;
use tonic::transport::server::Router;
use tracing::{error, info, warn};

use crate::admin::Admin;
use crate::authority::Authority;
use crate::caller::hosts_only;
use crate::credentials::{Credentials, LateOperators};
use crate::health::notify;
use crate::join::Join;
use crate::limits::Failures;
use crate::listener;
use crate::mesh::Mesh;
use crate::mesh_file::MeshFile;
use crate::operators::OperatorsOnly;
use crate::rollout;
use crate::settings::Settings;
use crate::shares;
use crate::store::Redb;
use crate::sync::Sync;
use crate::tls::{self, ServerCertificate};
use crate::twins;

const KEEPALIVE: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
const STREAMS_PER_CONNECTION: u32 = 32;
const HEADER_BYTES: u32 = 16 << 10;

/// A join request has a few hundred bytes, what an agent says a few thousand; a topology may be large.
const JOIN_BYTES: usize = 32 << 10;
const SYNC_BYTES: usize = 1 << 20;
const ADMIN_BYTES: usize = 8 << 20;

const SERVER_CERTIFICATE_RENEWAL: Duration = Duration::from_secs(86_400);
/// Time for requests to finish once the controller stops.
const LAST_ORDERS: Duration = Duration::from_secs(3);

/// Serves a mesh on a listener until `stop` is done.
///
/// # Errors
///
/// The state directory holds no mesh, another controller serves it, or its files are damaged.
pub async fn serve(
    settings: Settings,
    listener: TcpListener,
    stop: impl Future<Output = ()>,
) -> Result<()> {
    let Settings { state_dir, certificate_lifetime, operator_lifetime, .. } = settings;
    let mesh_file = MeshFile::read(&state_dir)?;
    let identity = mesh_file.identity()?;
    let authority = Arc::new(Authority::load(&state_dir, &identity.trust_domain)?);
    let mesh = Mesh::open(identity, authority.hash(), Box::new(Redb::open(&state_dir)?))?;
    let certificate = ServerCertificate::new(&authority, &mesh_file.addresses)?;
    let tls = TlsAcceptor::from(tls::server_config(&authority, Arc::clone(&certificate))?);
    let (stopping, stops) = watch::channel(false);
    let address = listener.local_addr().context("Failed to read the listener's address")?;
    let (accepted, incoming) = mpsc::channel(16);
    let background = [
        tokio::spawn(listener::accept(
            listener,
            tls,
            authority.trust_domain().clone(),
            Arc::clone(&mesh),
            accepted,
        )),
        tokio::spawn(Arc::clone(&mesh).follow_relocations()),
        tokio::spawn(Arc::clone(&mesh).follow_store()),
        tokio::spawn(Arc::clone(&mesh).follow_leaving()),
        tokio::spawn(Arc::clone(&mesh).follow_rotations()),
        tokio::spawn(Arc::clone(&mesh).follow_trials()),
        tokio::spawn(rollout::follow(Arc::clone(&mesh))),
        tokio::spawn(shares::follow(Arc::clone(&mesh))),
        tokio::spawn(twins::follow(Arc::clone(&mesh))),
        tokio::spawn(renew(certificate, Arc::clone(&authority), mesh_file.addresses.clone())),
    ];
    let lifetimes = (certificate_lifetime, operator_lifetime);
    let router = services(&mesh, authority, mesh_file.addresses, lifetimes, &stops);
    let mut until = stops.clone();
    let mut serving = tokio::spawn(
        router.serve_with_incoming_shutdown(ReceiverStream::new(incoming), async move {
            drop(until.wait_for(|stopping| *stopping).await)
        }),
    );
    info!(%address, revision = %mesh.now().state.revision, "the controller serves");
    notify(&[NotifyState::Ready]);
    tokio::select! {
        () = stop => {}
        why = mesh.lost() => anyhow::bail!(why),
        ended = &mut serving => anyhow::bail!("The server ended by itself: {ended:?}"),
    }
    notify(&[NotifyState::Stopping]);
    info!("the controller stops");
    stopping.send_replace(true);
    finish(serving).await;
    background.iter().for_each(JoinHandle::abort);
    Ok(())
}

/// The services of agents and operators. Lifetimes are those of hosts' and operators' certificates.
fn services(
    mesh: &Arc<Mesh>,
    authority: Arc<Authority>,
    addresses: Vec<String>,
    (certificate_lifetime, operator_lifetime): (Duration, Duration),
    stops: &watch::Receiver<bool>,
) -> Router {
    router(
        Join {
            mesh: Arc::clone(mesh),
            authority: Arc::clone(&authority),
            certificate_lifetime,
            failures: Mutex::new(Failures::default()),
        },
        Sync {
            mesh: Arc::clone(mesh),
            authority: Arc::clone(&authority),
            certificate_lifetime,
            addresses: addresses.clone(),
            stopping: stops.clone(),
        },
        Admin {
            mesh: Arc::clone(mesh),
            authority: Arc::clone(&authority),
            addresses,
            operator_lifetime,
            stopping: stops.clone(),
        },
        Credentials { mesh: Arc::clone(mesh), authority, lifetime: operator_lifetime },
    )
}

fn router(join: Join, sync: Sync, admin: Admin, credentials: Credentials) -> Router {
    let mesh = Arc::clone(&admin.mesh);
    let join = JoinServer::new(join).max_decoding_message_size(JOIN_BYTES);
    let sync = SyncServer::new(sync).max_decoding_message_size(SYNC_BYTES);
    let admin = AdminServer::new(admin).max_decoding_message_size(ADMIN_BYTES);
    let credentials = CredentialsServer::new(credentials).max_decoding_message_size(JOIN_BYTES);
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .http2_max_header_list_size(HEADER_BYTES)
        .add_service(join)
        .add_service(InterceptedService::new(sync, hosts_only))
        .add_service(InterceptedService::new(admin, OperatorsOnly(Arc::clone(&mesh))))
        .add_service(InterceptedService::new(credentials, LateOperators(mesh)))
}

/// The server's certificate is good for much longer than a day, so a failure has time to be noticed.
async fn renew(
    certificate: Arc<ServerCertificate>,
    authority: Arc<Authority>,
    addresses: Vec<String>,
) {
    loop {
        tokio::time::sleep(SERVER_CERTIFICATE_RENEWAL).await;
        if let Err(error) = certificate.renew(&authority, &addresses) {
            error!(error = format!("{error:#}"), "failed to renew the server's certificate");
        }
    }
}

async fn finish(mut serving: JoinHandle<Result<(), tonic::transport::Error>>) {
    match tokio::time::timeout(LAST_ORDERS, &mut serving).await {
        Ok(Ok(Ok(()))) => {}
        Ok(Ok(Err(error))) => error!(%error, "the server failed"),
        Ok(Err(error)) => error!(%error, "the server failed"),
        Err(_) => {
            warn!("some connections didn't end in time");
            serving.abort();
        }
    }
}
