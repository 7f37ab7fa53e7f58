//! Deals out the shares of rate limits that the whole mesh has in common: agents say each second what is
//! asked of them, and are told what they may let pass.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use isthmus_controller_core::MeshSnapshot;
use isthmus_controller_core::shares::{Report, Shares};
use isthmus_model::ratelimit::WHOLE;
use isthmus_model::{HostId, LimitScope, Name, Revision, Service};
use isthmus_proto::v1;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;

use crate::mesh::Mesh;

/// Agents report each second.
const PERIOD: Duration = Duration::from_millis(500);
const MOST_DEMANDS: usize = 4_096;

/// Shares assigned to each host.
pub(crate) type Assignments = BTreeMap<HostId, v1::Shares>;

/// The shares of all limits, by the limit's name.
#[derive(Debug, Default)]
pub(crate) struct GlobalLimits {
    limits: Mutex<Limits>,
    assignments: watch::Sender<Arc<Assignments>>,
}

#[derive(Debug, Default)]
struct Limits {
    /// As this revision has them.
    by_name: BTreeMap<Name, Limit>,
    revision: Option<Revision>,
    round: u64,
}

#[derive(Debug)]
struct Limit {
    rate: u64,
    shares: Shares,
}

impl GlobalLimits {
    /// An agent says what is asked of it.
    pub(crate) fn handle_demand(&self, host: HostId, demands: Vec<v1::LimitDemand>) {
        if demands.is_empty() {
            return;
        }
        let now = Instant::now();
        let mut limits = self.limits();
        for demand in demands.into_iter().take(MOST_DEMANDS) {
            if let Some(limit) = limits.by_name.get_mut(&*demand.limit) {
                let report = Report {
                    demand: of_rate(demand.demand, limit.rate),
                    share: demand.share,
                    round: demand.round,
                };
                limit.shares.handle_report(host, report, now);
            }
        }
    }

    /// To wait for new shares.
    pub(crate) fn watch(&self) -> watch::Receiver<Arc<Assignments>> {
        self.assignments.subscribe()
    }

    fn deal(&self, world: &MeshSnapshot) {
        let now = Instant::now();
        let mut limits = self.limits();
        limits.follow_topology(world, now);
        let assignments = limits.deal(now);
        drop(limits);
        if !assignments.is_empty() {
            self.assignments.send_replace(Arc::new(assignments));
        }
    }

    fn limits(&self) -> MutexGuard<'_, Limits> {
        self.limits.lock()
    }
}

impl Limits {
    fn follow_topology(&mut self, world: &MeshSnapshot, now: Instant) {
        let all = world.everything();
        if self.revision.replace(all.revision) == Some(all.revision) {
            return;
        }
        let services: HashMap<&Name, &Service> =
            all.services.values().map(|service| (&service.name, service)).collect();
        let mut before = std::mem::take(&mut self.by_name);
        for limit in all.limits.iter().filter(|limit| limit.scope == LimitScope::Mesh) {
            let placements = services.get(&limit.service).map(|service| &service.placements);
            let hosts: Vec<HostId> =
                placements.map(|hosts| hosts.keys().copied().collect()).unwrap_or_default();
            let shares = match before.remove(&limit.name) {
                Some(Limit { mut shares, .. }) => {
                    shares.set_hosts(&hosts, now);
                    shares
                }
                // What is there at the start was dealt out before.
                None if self.round == 0 => Shares::resumed(&hosts, now),
                None => Shares::new(&hosts, now),
            };
            self.by_name.insert(limit.name.clone(), Limit { rate: limit.rate, shares });
        }
    }

    fn deal(&mut self, now: Instant) -> Assignments {
        self.round += 1;
        let mut assignments = Assignments::new();
        for (name, limit) in &mut self.by_name {
            for (host, share) in limit.shares.handle_timeout(now, self.round) {
                let all = assignments.entry(host).or_default();
                all.round = self.round;
                all.shares.push(v1::Share { limit: name.to_string(), share });
            }
        }
        assignments
    }
}

/// A demand in thousandths of a request per second, in billionths of a rate.
fn of_rate(demand: u64, rate: u64) -> u64 {
    demand.saturating_mul(u64::from(WHOLE)) / rate.max(1)
}

/// Deals out shares, for ever.
pub(crate) async fn follow(mesh: Arc<Mesh>) {
    let mut ticks = tokio::time::interval(PERIOD);
    loop {
        ticks.tick().await;
        mesh.global_limits.deal(&mesh.now().world);
    }
}
