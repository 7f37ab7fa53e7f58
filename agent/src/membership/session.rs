//! A member as its session with the controller sees it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use isthmus_model::{Code, PublicKey, problems};
use isthmus_proto::v1;
use isthmus_proxy::{Demand, Traffic};

use super::faults::{foreign, not_kept};
use super::{FOREIGN, Membership, NOT_KEPT, TOO_NEW, TWIN, tunnel_keys};
use crate::clock::{self, Clock};
use crate::identity::TlsIdentity;
use crate::network;
use crate::sync::resources::Resources;
use crate::sync::{self};
use crate::systemd;

impl sync::Member for Membership {
    async fn switch(&mut self, resources: Resources) -> Result<Vec<v1::Problem>, String> {
        let revision = resources.revision();
        let before = self.shared.problems.all();
        if let Err(error) = self.work_by(&resources).await {
            let reason = format!("{error:#}");
            self.shared.update(|status| status.refusal.clone_from(&reason));
            return Err(reason);
        }
        tracing::info!(revision, "working by a new revision");
        let folder = &self.shared.settings.state_dir;
        let not_kept =
            self.keep(&resources).await.err().map(|error| not_kept(folder, revision, &error));
        self.shared.problems.set(NOT_KEPT, not_kept.clone());
        self.shared.problems.set(TOO_NEW, None);
        self.shared.problems.set(FOREIGN, foreign(&resources));
        self.resources = resources;
        self.shared.update(|status| {
            status.confirmed = Some(SystemTime::now());
            status.refusal.clear();
        });
        systemd::tell_status(&self.shared);
        let not_kept = not_kept.map(|problem| problem.to_message(SystemTime::now()));
        let caused = problems::brought(&before, self.shared.problems.all());
        Ok(not_kept.into_iter().chain(caused).collect())
    }

    fn resources(&self) -> &Resources {
        &self.resources
    }

    async fn endpoints(&self) -> Vec<SocketAddr> {
        let settings = &self.shared.settings;
        if settings.endpoints.is_empty() {
            network::endpoints(&settings.device, self.shared.ports.tunnels()).await
        } else {
            settings.endpoints.clone()
        }
    }

    async fn clash(&self, prefixes: &[IpNet]) -> String {
        match network::clashes(prefixes, self.overlay.device()).await {
            Ok(clashes) => clashes.iter().map(|it| &*it.route).collect::<Vec<_>>().join("; "),
            Err(error) => {
                tracing::warn!("couldn't look at this host's routes: {error:#}");
                String::new()
            }
        }
    }

    fn report(&mut self) -> v1::Report {
        let traffic = self.shared.proxy.measured().take();
        v1::Report {
            forgeries: self.shared.take_forgeries(),
            traffic: traffic.into_iter().map(traffic_message).collect(),
            demand: self.shared.proxy.limits().take_demand().into_iter().map(demand).collect(),
        }
    }

    /// That policy audits the controller says itself, once for all.
    fn problems(&self) -> Vec<v1::Problem> {
        let mut problems = self.shared.problems.all();
        problems.retain(|problem| problem.code != Code::Audit.name());
        problems
    }

    fn shares(&mut self, told: v1::Shares) {
        let shares = told.shares.iter().map(|it| (&*it.limit, it.share));
        self.shared.proxy.limits().handle_shares(told.round, shares);
    }

    fn watch(&mut self, routes: Vec<String>) {
        self.shared.proxy.measured().watch(routes);
    }

    fn instance(&self) -> Vec<u8> {
        self.shared.instance.to_vec()
    }

    fn clock(&mut self, clock: &Clock) {
        self.shared.problems.set(clock::SKEWED, clock.problem());
    }

    async fn controllers(&mut self, addresses: Vec<String>) {
        let member = self.identity.member.with_controllers(&addresses);
        if member != self.identity.member {
            tracing::info!(controllers = ?member.controllers, "controllers are reached elsewhere");
        }
        self.know(member).await;
    }

    fn connected(&mut self, controller: &str) {
        tracing::info!(controller, "connected to the controller");
        self.shared.problems.clear(TWIN, "");
        // A controller says anew what it wants to know.
        self.shared.proxy.measured().watch([]);
        self.shared.proxy.limits().handle_connected();
        self.shared.update(|status| {
            controller.clone_into(&mut status.controller);
            status.connected = true;
            status.last_error.clear();
        });
        systemd::tell_status(&self.shared);
    }

    async fn new_key(&mut self) -> anyhow::Result<PublicKey> {
        let disk = Arc::clone(&self.disk);
        let next = tokio::task::spawn_blocking(move || disk.next_key()).await??;
        let public = next.public()?;
        self.identity.next = Some(next);
        // INVARIANT: it is good here before anybody knows it.
        self.overlay.use_keys(tunnel_keys(&self.identity)).await?;
        Ok(public)
    }

    async fn renewed(&mut self, tls: TlsIdentity) {
        let validity = tls.validity().ok();
        self.shared.update(|status| status.certificate = validity);
        self.identity.tls = tls.clone();
        self.keeper.tls(tls).await;
    }

    fn device(&self) -> Option<u32> {
        self.overlay.device()
    }
}

pub(super) fn traffic_message(
    (route, backend, traffic): (String, String, Traffic),
) -> v1::BackendTraffic {
    let latency = |(took, requests): (Duration, u64)| v1::LatencyCount {
        microseconds: u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
        requests,
    };
    v1::BackendTraffic {
        route,
        backend,
        requests: traffic.latencies.count(),
        failures: traffic.failures,
        latencies: traffic.latencies.counts().map(latency).collect(),
    }
}

pub(super) fn demand(Demand { limit, demand, share, round }: Demand) -> v1::LimitDemand {
    v1::LimitDemand { limit, demand, share, round }
}
