//! Mesh DNS as a part of the overlay: runs while there is one, at the host's own addresses, and
//! tells the host's resolver about it.

use std::net::IpAddr;
use std::sync::Arc;

use isthmus_model::Mesh;
use isthmus_proxy::View;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::dns::resolver::{Paths, Resolver};
use crate::dns::{self, Config, PORT, Upstream};
use crate::settings::Settings;
use crate::status::Shared;

/// Mesh DNS, running.
#[derive(Debug)]
pub struct Names {
    addresses: Vec<IpAddr>,
    resolver: Resolver,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Names {
    /// Starts to answer on `addresses`, the host's own. What fails is logged and shown in the
    /// status: an overlay without names is better than none.
    pub async fn start(
        shared: &Arc<Shared>,
        addresses: Vec<IpAddr>,
        mesh: &Mesh,
        views: watch::Receiver<Arc<View>>,
    ) -> Option<Self> {
        let settings = &shared.settings;
        if !settings.dns.listen {
            shared.update(|status| "off".clone_into(&mut status.dns));
            return None;
        }
        let mut resolver = resolver(settings);
        let listen = addresses.iter().map(|address| (*address, PORT).into()).collect();
        let upstream = Upstream::from_settings(&settings.dns.upstream, resolver.upstream_file());
        let (stop, stopped) = watch::channel(false);
        let task =
            tokio::spawn(run(Arc::clone(shared), Config { listen, upstream }, views, stopped));
        let shown: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        shared.update(|status| status.dns = format!("answering on {}", shown.join(", ")));
        if let Err(error) = resolver.configure(&settings.device, &addresses, mesh).await {
            let error = anyhow::Error::new(error);
            tracing::warn!("the host's resolver doesn't know about mesh names: {error:#}");
        }
        Some(Self { addresses, resolver, stop, task })
    }

    /// Where it answers.
    #[must_use]
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// Ends, and lets the host's resolver be as it was.
    pub async fn stop(mut self) {
        if let Err(error) = self.resolver.restore().await {
            let error = anyhow::Error::new(error);
            tracing::warn!("couldn't restore the host's resolver: {error:#}");
        }
        self.stop.send_replace(true);
        if let Err(error) = self.task.await {
            tracing::warn!(%error, "mesh DNS ended badly");
        }
    }
}

/// Puts back what an agent that was killed left of the host's resolver.
pub fn recover(settings: &Settings) {
    if let Err(error) = resolver(settings).recover() {
        let error = anyhow::Error::new(error);
        tracing::warn!("couldn't restore the host's resolver: {error:#}");
    }
}

fn resolver(settings: &Settings) -> Resolver {
    Resolver::new(settings.dns.configure, Paths::standard(&settings.state_dir))
}

async fn run(
    shared: Arc<Shared>,
    config: Config,
    views: watch::Receiver<Arc<View>>,
    mut stopped: watch::Receiver<bool>,
) {
    let stop = async move { drop(stopped.wait_for(|stop| *stop).await) };
    if let Err(error) = dns::serve(config, views, stop).await {
        tracing::error!(%error, "no mesh DNS");
        shared.update(|status| status.dns = format!("failed: {error}"));
    }
}
