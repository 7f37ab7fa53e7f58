//! Active health checks: each host's proxy checks the workloads of its own host, straight at the application.
//!
//! ```text
//!  another host's proxy ──request──▶ proxy here ──▶ workload
//!                       ◀── 503 ────   (fails its check: nothing is passed on)
//! ```
//!
//! So a check needs no allow rule, costs one request per workload and interval rather than one per workload, interval
//! and calling host, and works without the controller. Whether a workload can be reached from afar is for outlier
//! ejection to find out.
//!
//! The proxy here answers for a workload that fails its check: `503` with [`UNHEALTHY`]. Nothing was passed on, so the
//! caller's proxy ejects the workload and tries another one, whatever the method. Where too few workloads are healthy,
//! and for the last one that a request may try, it sends the request with [`PANIC`], and the proxy here lets it pass.
//! These headers never leave the mesh.

mod check;
mod state;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use isthmus_http::random::Random;
use isthmus_model::{HealthCheck, ServiceId};
use parking_lot::RwLock;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::sleep;

use crate::cluster::dial::Bind;
use crate::config::view::ProxySnapshot;
use state::State;

/// Health of the workloads here.
#[derive(Debug, Default)]
pub(crate) struct Health {
    workloads: RwLock<BTreeMap<ServiceId, Arc<Checked>>>,
}

/// A workload as `isthmus_health_*` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthView {
    /// Its service.
    pub service: String,
    /// Whether it passes its check.
    pub healthy: bool,
    /// Checks that it passed, and that it failed.
    pub passed: u64,
    /// Likewise.
    pub failed: u64,
}

/// One workload here.
#[derive(Debug, Default)]
struct Checked {
    name: String,
    unhealthy: AtomicBool,
    passed: AtomicU64,
    failed: AtomicU64,
}

/// All that a check depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Task {
    name: String,
    /// Its possible listening addresses.
    places: Vec<SocketAddr>,
    check: HealthCheck,
}

impl Health {
    /// Whether the workload of a service here fails its check.
    pub(crate) fn is_unhealthy(&self, service: ServiceId) -> bool {
        let workloads = self.workloads.read();
        workloads.get(&service).is_some_and(|it| it.unhealthy.load(Ordering::Relaxed))
    }

    pub(crate) fn views(&self) -> Vec<HealthView> {
        let workloads = self.workloads.read();
        let view = |it: &Arc<Checked>| HealthView {
            service: it.name.clone(),
            healthy: !it.unhealthy.load(Ordering::Relaxed),
            passed: it.passed.load(Ordering::Relaxed),
            failed: it.failed.load(Ordering::Relaxed),
        };
        workloads.values().map(view).collect()
    }

    /// Checks the workloads here, as the newest view has them, for ever.
    pub(crate) async fn run(&self, mut views: watch::Receiver<Arc<ProxySnapshot>>, bind: Bind) {
        let mut checks = JoinSet::new();
        let mut running: BTreeMap<ServiceId, (Task, AbortHandle)> = BTreeMap::new();
        loop {
            let wanted = tasks(&views.borrow_and_update());
            running.retain(|service, (task, handle)| {
                let stays = wanted.get(service) == Some(task);
                if !stays {
                    handle.abort();
                    self.write().remove(service);
                }
                stays
            });
            for (service, task) in wanted {
                running.entry(service).or_insert_with(|| {
                    let name = task.name.clone();
                    let checked = Arc::new(Checked { name, ..Checked::default() });
                    self.write().insert(service, Arc::clone(&checked));
                    let handle = checks.spawn(check_forever(task.clone(), checked, bind));
                    (task, handle)
                });
            }
            tokio::select! {
                changed = views.changed() => if changed.is_err() { return },
                Some(_) = checks.join_next() => {}
            }
        }
    }

    fn write(&self) -> parking_lot::RwLockWriteGuard<'_, BTreeMap<ServiceId, Arc<Checked>>> {
        self.workloads.write()
    }
}

fn tasks(view: &ProxySnapshot) -> BTreeMap<ServiceId, Task> {
    let snapshot = &view.snapshot;
    let task = |(id, service, ipv4): (ServiceId, &isthmus_model::Service, std::net::Ipv4Addr)| {
        let check = service.balance.health.clone()?;
        let ipv6 = snapshot.workload_ipv6(snapshot.local, id);
        let name = service.name.to_string();
        let places = match service.application.listen {
            Some(address) => vec![address],
            None => vec![(ipv4, service.port).into(), (ipv6, service.port).into()],
        };
        Some((id, Task { name, places, check }))
    };
    snapshot.local_services().filter_map(task).collect()
}

async fn check_forever(task: Task, checked: Arc<Checked>, bind: Bind) {
    let chance = Random::new();
    let mut state = State::default();
    loop {
        let passes = passes(&task, bind).await;
        let counter = if passes { &checked.passed } else { &checked.failed };
        counter.fetch_add(1, Ordering::Relaxed);
        if state.on_check(passes, &task.check) {
            checked.unhealthy.store(!state.is_healthy(), Ordering::Relaxed);
            let service = &*task.name;
            if state.is_healthy() {
                tracing::info!(service, "The workload here passes its health check");
            } else {
                tracing::warn!(service, "The workload here fails its health check");
            }
        }
        sleep(jittered(task.check.interval, chance.next())).await;
    }
}

/// Services may listen on either family.
async fn passes(task: &Task, bind: Bind) -> bool {
    for place in &task.places {
        if check::passes(&task.name, *place, &task.check, bind).await {
            return true;
        }
    }
    false
}

/// By a tenth, so that hosts that began together don't stay together.
fn jittered(interval: Duration, random: u64) -> Duration {
    interval.mul_f64(0.9 + (random % 1024) as f64 / 1024.0 * 0.2)
}
