//! The workloads of a service, and what is known of each: how long it takes, whether it fails.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use isthmus_model::{BalancePolicy, HashKey, HostId, Revision, ServiceId};

use crate::balance::{Admission, Attempt, Budget, Ejection, HashTable, PeakEwma, p2c};
use crate::view::View;

/// What a failure is taken to have cost, so that who fails fast doesn't attract traffic.
const FAILURE_COSTS: Duration = Duration::from_secs(1);

/// The workloads of all services that were asked for.
#[derive(Debug)]
pub(crate) struct Clusters {
    origin: Instant,
    clusters: Mutex<HashMap<(ServiceId, bool), Arc<Cluster>>>,
}

/// The workloads of one service, by addresses of one family.
#[derive(Debug)]
pub(crate) struct Cluster {
    revision: Revision,
    pub(crate) port: u16,
    endpoints: Vec<Arc<Endpoint>>,
    method: Method,
    most: usize,
    /// What stays when the workloads change.
    kept: Arc<Kept>,
}

#[derive(Debug)]
struct Kept {
    budget: Mutex<Budget>,
    under_way: AtomicUsize,
    turn: AtomicUsize,
}

/// How a workload is found.
#[derive(Debug)]
enum Method {
    PeakEwma,
    LeastRequest,
    RoundRobin,
    Hash(HashKey, HashTable),
}

/// Why a request has no workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoPlace {
    /// There is none.
    Nobody,
    /// The breaker is open: too many requests are under way.
    Overloaded,
}

/// One workload.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) host: HostId,
    pub(crate) address: IpAddr,
    latency: PeakEwma,
    under_way: AtomicUsize,
    ejection: Mutex<Ejection>,
}

/// A request that a workload has. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct InFlight {
    endpoint: Arc<Endpoint>,
    cluster: Arc<Kept>,
    origin: Instant,
    began: Duration,
    told: bool,
}

/// A workload as `agentctl routes` shows it.
#[derive(Clone, Debug, PartialEq)]
pub struct EndpointView {
    /// Of this service.
    pub service: ServiceId,
    /// Where.
    pub host: HostId,
    /// Its address.
    pub address: IpAddr,
    /// What it is expected to take.
    pub latency: Duration,
    /// Requests that it has now.
    pub under_way: usize,
    /// Whether it gets no requests for now, since it kept failing.
    pub ejected: bool,
}

impl Clusters {
    pub(crate) fn new(origin: Instant) -> Self {
        Self { origin, clusters: Mutex::default() }
    }

    pub(crate) fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    /// The workloads of a service as a view has them. What is known of those that stay is kept.
    pub(crate) fn of(&self, view: &View, service: ServiceId, v4: bool) -> Option<Arc<Cluster>> {
        let mut clusters = self.lock();
        let known = clusters.get(&(service, v4));
        if let Some(known) = known.filter(|it| it.revision == view.snapshot.revision) {
            return Some(Arc::clone(known));
        }
        let made = Arc::new(Cluster::new(view, service, v4, known, self.now())?);
        clusters.insert((service, v4), Arc::clone(&made));
        Some(made)
    }

    /// Sends a request to one of the workloads, those aside that were tried before.
    pub(crate) fn pick(
        &self,
        cluster: &Cluster,
        tried: &[HostId],
        (key, random): (Option<u64>, u64),
    ) -> Result<(Arc<Endpoint>, InFlight), NoPlace> {
        let now = self.now();
        if cluster.kept.under_way.load(Ordering::Relaxed) >= cluster.most {
            return Err(NoPlace::Overloaded);
        }
        let endpoint = cluster.pick(tried, (key, random), now).ok_or(NoPlace::Nobody)?;
        lock(&endpoint.ejection).begin_probe();
        endpoint.under_way.fetch_add(1, Ordering::Relaxed);
        cluster.kept.under_way.fetch_add(1, Ordering::Relaxed);
        let flight = InFlight {
            endpoint: Arc::clone(&endpoint),
            cluster: Arc::clone(&cluster.kept),
            origin: self.origin,
            began: now,
            told: false,
        };
        Ok((endpoint, flight))
    }

    pub(crate) fn views(&self) -> Vec<EndpointView> {
        let now = self.now();
        let clusters = self.lock();
        let mut views: Vec<EndpointView> = clusters
            .iter()
            .flat_map(|((service, _), cluster)| {
                cluster.endpoints.iter().map(|endpoint| endpoint.view(*service, now))
            })
            .collect();
        views.sort_by_key(|view| (view.service, view.host, view.address));
        views
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(ServiceId, bool), Arc<Cluster>>> {
        lock(&self.clusters)
    }
}

impl Cluster {
    fn new(
        view: &View,
        service: ServiceId,
        v4: bool,
        known: Option<&Arc<Self>>,
        now: Duration,
    ) -> Option<Self> {
        let snapshot = &view.snapshot;
        let declared = snapshot.services.get(&service)?;
        let endpoint = |(host, ipv4): (&HostId, &std::net::Ipv4Addr)| {
            let address: IpAddr =
                if v4 { (*ipv4).into() } else { snapshot.workload_ipv6(*host, service).into() };
            let stays = |it: &&Arc<Endpoint>| it.host == *host && it.address == address;
            let kept = known.and_then(|known| known.endpoints.iter().find(stays));
            kept.map_or_else(|| Arc::new(Endpoint::new(*host, address, now)), Arc::clone)
        };
        let numbers: Vec<u64> = declared.placements.keys().map(|host| host.0.into()).collect();
        let kept = known.map(|known| Arc::clone(&known.kept));
        Some(Self {
            revision: snapshot.revision,
            port: declared.port,
            endpoints: declared.placements.iter().map(endpoint).collect(),
            method: Method::new(&declared.balance.policy, &numbers),
            most: usize::try_from(declared.balance.max_requests).unwrap_or(usize::MAX),
            kept: kept.unwrap_or_else(|| Arc::new(Kept::new(now))),
        })
    }

    pub(crate) fn budget(&self) -> MutexGuard<'_, Budget> {
        lock(&self.kept.budget)
    }

    /// What requests are hashed by, if they are.
    pub(crate) const fn hash_key(&self) -> Option<&HashKey> {
        match &self.method {
            Method::Hash(key, _) => Some(key),
            Method::PeakEwma | Method::LeastRequest | Method::RoundRobin => None,
        }
    }

    /// Whoever is due to prove itself first; else a healthy one; where nobody is healthy, anybody.
    fn pick(
        &self,
        tried: &[HostId],
        (key, random): (Option<u64>, u64),
        now: Duration,
    ) -> Option<Arc<Endpoint>> {
        let fresh = |at: &usize| !tried.contains(&self.endpoints[*at].host);
        let mut open = Vec::with_capacity(self.endpoints.len());
        for at in (0..self.endpoints.len()).filter(fresh) {
            match self.endpoints[at].admission(now) {
                Admission::Probe => return Some(Arc::clone(&self.endpoints[at])),
                Admission::Open => open.push(at),
                Admission::Closed => {}
            }
        }
        if open.is_empty() {
            open.extend((0..self.endpoints.len()).filter(fresh));
        }
        if open.is_empty() {
            open.extend(0..self.endpoints.len());
        }
        let at = self.choose(&open, (key, random), now)?;
        self.endpoints.get(at).map(Arc::clone)
    }

    /// One of the open ones.
    fn choose(
        &self,
        open: &[usize],
        (key, random): (Option<u64>, u64),
        now: Duration,
    ) -> Option<usize> {
        let endpoint = |at: usize| &self.endpoints[open[at]];
        let chosen = match &self.method {
            Method::PeakEwma => p2c(open.len(), random, |at| endpoint(at).cost(now)),
            Method::LeastRequest => {
                p2c(open.len(), random, |at| endpoint(at).under_way.load(Ordering::Relaxed) as f64)
            }
            Method::RoundRobin => {
                self.kept.turn.fetch_add(1, Ordering::Relaxed).checked_rem(open.len())
            }
            Method::Hash(_, table) => {
                return table.pick(key.unwrap_or(random), |at| open.contains(&at));
            }
        };
        chosen.and_then(|at| open.get(at).copied())
    }
}

impl Method {
    /// Of workloads on hosts with these numbers.
    fn new(policy: &BalancePolicy, hosts: &[u64]) -> Self {
        match policy {
            BalancePolicy::PeakEwma => Self::PeakEwma,
            BalancePolicy::LeastRequest => Self::LeastRequest,
            BalancePolicy::RoundRobin => Self::RoundRobin,
            BalancePolicy::RingHash(key) => Self::Hash(key.clone(), HashTable::ring(hosts)),
            BalancePolicy::Maglev(key) => Self::Hash(key.clone(), HashTable::maglev(hosts)),
        }
    }
}

impl Kept {
    fn new(now: Duration) -> Self {
        Self {
            budget: Mutex::new(Budget::new(now)),
            under_way: AtomicUsize::new(0),
            turn: AtomicUsize::new(0),
        }
    }
}

impl Endpoint {
    fn new(host: HostId, address: IpAddr, now: Duration) -> Self {
        Self {
            host,
            address,
            latency: PeakEwma::new(now),
            under_way: AtomicUsize::new(0),
            ejection: Mutex::default(),
        }
    }

    fn admission(&self, now: Duration) -> Admission {
        lock(&self.ejection).admission(now)
    }

    fn cost(&self, now: Duration) -> f64 {
        self.latency.cost(self.under_way.load(Ordering::Relaxed), now)
    }

    fn view(&self, service: ServiceId, now: Duration) -> EndpointView {
        EndpointView {
            service,
            host: self.host,
            address: self.address,
            latency: self.latency.latency(now),
            under_way: self.under_way.load(Ordering::Relaxed),
            ejected: !matches!(*lock(&self.ejection), Ejection::Healthy { .. }),
        }
    }
}

impl InFlight {
    /// The answer has begun, or won't come. Says whether this ejects the workload.
    pub(crate) fn tell(&mut self, attempt: Attempt, random: u64) -> bool {
        self.told = true;
        let now = self.origin.elapsed();
        let took = now.saturating_sub(self.began);
        let mut ejection = lock(&self.endpoint.ejection);
        if attempt.is_endpoints_failure() {
            self.endpoint.latency.observe(took.max(FAILURE_COSTS), now);
            return ejection.on_failure(now, random);
        }
        self.endpoint.latency.observe(took, now);
        ejection.on_success();
        false
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.endpoint.under_way.fetch_sub(1, Ordering::Relaxed);
        self.cluster.under_way.fetch_sub(1, Ordering::Relaxed);
        if !self.told {
            lock(&self.endpoint.ejection).on_cancel(self.origin.elapsed());
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
