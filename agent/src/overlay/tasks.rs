//! Tasks that run for as long as the overlay does.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use isthmus_core::CompiledSnapshot;
use isthmus_model::Revision;
use isthmus_net::listen::{bind_marked_tcp, bind_marked_tcp_as};
use isthmus_net::monitor::AddressMonitor;
use isthmus_proxy::{ProxySnapshot, Speaker};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::{VISITORS, is_set};
use crate::containers;
use crate::dataplane::{self};
use crate::gateway::{self, AgentServices};
use crate::network::{self};
use crate::owners::PROXY_MARK;
use crate::ports;
use crate::status::Shared;

/// Has files read, names resolved and doors opened for the proxy, until the agent stops.
pub(super) fn start_edge(
    shared: &Arc<Shared>,
    views: &watch::Sender<Arc<ProxySnapshot>>,
    stopped: &watch::Receiver<bool>,
    tasks: &mut JoinSet<()>,
) -> (isthmus_proxy::GatewayIo, watch::Receiver<Revision>) {
    let host_services = Arc::new(AgentServices::new(&shared.settings.state_dir).asking(shared));
    let (sender, visitors) = mpsc::channel(VISITORS);
    let (follows, followed) = watch::channel(Revision(0));
    let (outside_, shared_) = (Arc::clone(&host_services), Arc::clone(shared));
    let following = gateway::run(outside_, shared_, views.subscribe(), sender, follows);
    let resolving =
        gateway::resolve(Arc::clone(&host_services), Arc::clone(shared), views.subscribe());
    let ordering = gateway::order(Arc::clone(&host_services), views.subscribe());
    let stop = is_set(stopped.clone());
    tasks.spawn(async move {
        tokio::select! {
            ((), (), ()) = async { tokio::join!(following, resolving, ordering) } => {}
            () = stop => {}
        }
    });
    (isthmus_proxy::GatewayIo { host_services, visitors }, followed)
}

pub(super) async fn run_proxy(
    shared: Arc<Shared>,
    (listeners, edge): (Vec<TcpListener>, isthmus_proxy::GatewayIo),
    views: watch::Receiver<Arc<ProxySnapshot>>,
    (leaving, stopped): (Arc<AtomicBool>, watch::Receiver<bool>),
) {
    shared.update(|status| {
        status.proxy = format!("listening on port {}", shared.ports.proxy());
    });
    let metrics = Arc::clone(&shared.proxy);
    let bind = |speaker| match speaker {
        Speaker::Host(source) => bind_marked_tcp(source, PROXY_MARK),
        Speaker::Caller(caller) => bind_marked_tcp_as(caller, PROXY_MARK),
    };
    let stop = is_set(stopped);
    metrics.sample_access_log(shared.settings.access_log_sample);
    let options = isthmus_proxy::Options {
        threads: shared.settings.proxy_threads(),
        drain: Duration::from_secs(shared.settings.drain_seconds.into()),
        request: Duration::from_secs(shared.settings.request_seconds.into()),
        body_idle: Duration::from_secs(shared.settings.body_idle_seconds.into()),
        leaving,
    };
    if let Err(error) =
        isthmus_proxy::serve(options, listeners, edge, views, metrics, bind, stop).await
    {
        shared.fail(&anyhow::Error::new(error).context("The proxy failed"));
    }
}

/// Guards services' ports until the agent stops. What is closed stays closed.
pub(super) async fn keep_ports(
    shared: Arc<Shared>,
    states: watch::Receiver<Arc<CompiledSnapshot>>,
    keeps: watch::Sender<Revision>,
    stopped: watch::Receiver<bool>,
) {
    tokio::select! {
        () = ports::keep(shared, states, keeps) => {}
        () = is_set(stopped) => {}
    }
}

/// Follows which containers run until the agent stops.
pub(super) async fn keep_containers(
    shared: Arc<Shared>,
    states: watch::Receiver<Arc<CompiledSnapshot>>,
    stopped: watch::Receiver<bool>,
) {
    tokio::select! {
        () = containers::keep(shared, states) => {}
        () = is_set(stopped) => {}
    }
}

/// Has peers told where this host is whenever its addresses change, controller or not.
pub(super) async fn announce_moves(
    shared: Arc<Shared>,
    device: u32,
    packets: dataplane::Handle,
    stopped: watch::Receiver<bool>,
) {
    let mut changes = match AddressMonitor::start(Some(device)) {
        Ok(changes) => changes,
        Err(error) => {
            return tracing::warn!(%error, "peers will find out late when this host moves");
        }
    };
    let settings = &shared.settings;
    let here = async || network::endpoints(&settings.device, shared.ports.tunnels()).await;
    let mut told = here().await;
    let follow = async {
        while changes.changed().await {
            let now = here().await;
            if now != told {
                packets.moved();
                told = now;
            }
        }
    };
    tokio::select! {
        () = follow => tracing::warn!("lost the kernel's news of this host's addresses"),
        () = is_set(stopped) => {}
    }
}
