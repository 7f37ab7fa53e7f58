//! The workloads of a service, and who of them takes a request.

pub(crate) mod balance;
pub(crate) mod breaker;
pub(crate) mod dial;
pub(crate) mod endpoint;
pub(crate) mod health;
mod kept;
pub(crate) mod permits;
pub(crate) mod silence;
pub(crate) mod windows;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use isthmus_model::{
    Balance, BalancePolicy, Breaker, External, HashKey, HostId, Name, Outlier, Revision, Service,
    ServiceId, Snapshot,
};
use parking_lot::{Mutex, MutexGuard, RwLock};

use self::balance::{Admission, Budget, Candidate, HashTable, Level, Ready, Sharpness, outliers};
use self::breaker::{Allowance, ConnectionCounts, Overflow};
use self::endpoint::{BreakerView, Choice, Endpoint, EndpointView, InFlight, Turn};
use self::silence::Silence;
use crate::config::host_services::HostServices;
use crate::config::view::{Map, ProxySnapshot};

/// A server outside of the mesh, and its addresses.
type Far<'a> = (&'a External, Arc<[IpAddr]>);

/// The workloads of all services that were asked for.
#[derive(Debug)]
pub(crate) struct Clusters {
    origin: Instant,
    host_services: Arc<dyn HostServices>,
    silence: Arc<Silence>,
    clusters: Mutex<Map<(ServiceId, bool), Arc<Cluster>>>,
}

/// The workloads of one service, by addresses of one family.
#[derive(Debug)]
pub(crate) struct Cluster {
    name: Name,
    revision: Revision,
    /// Of a server outside of the mesh.
    addresses: Option<Arc<[IpAddr]>>,
    pub(crate) port: u16,
    places: Vec<Place>,
    method: Method,
    balance: Balance,
    ready: RwLock<Found>,
    /// State that survives a change of the workloads.
    kept: Arc<Kept>,
}

/// A workload, and what the topology says of it.
#[derive(Debug)]
struct Place {
    endpoint: Arc<Endpoint>,
    near: bool,
    weight: u32,
    leaving: bool,
}

/// Endpoints that were ready, with the time of that finding.
#[derive(Debug, Default)]
struct Found {
    ready: Ready,
    /// `Kept::changes` of then; none before the first time.
    at: Option<u64>,
    /// When it has to be found anew.
    until: Duration,
}

/// The state that a cluster leaves behind.
#[derive(Debug)]
pub(crate) struct Kept {
    silence: Arc<Silence>,
    budget: Mutex<Budget>,
    counts: Arc<ConnectionCounts>,
    pub(crate) under_way: AtomicUsize,
    retries: AtomicUsize,
    turn: AtomicUsize,
    /// Workloads, and those of them that are ejected.
    count: AtomicUsize,
    ejected: AtomicUsize,
    /// Moves whenever a workload is ejected, tried or back.
    changes: AtomicU64,
    /// When success rates are compared next, in milliseconds.
    next_look: AtomicU64,
}

/// Key of a workload.
#[derive(Debug)]
enum Method {
    PeakEwma,
    LeastRequest,
    RoundRobin,
    Hash(HashKey, HashTable),
}

/// Why a request has no workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoEndpoint {
    /// There is none.
    Nobody,
    /// The breaker is open: too many requests are under way.
    Overloaded,
}

/// A retry under way, as the breaker counts it.
#[derive(Debug)]
pub(crate) struct Retrying(Arc<Kept>);

/// By what one of many is chosen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Draw {
    /// Hash of the request, if any.
    pub(crate) key: Option<u64>,
    pub(crate) random: u64,
}

impl Clusters {
    pub(crate) fn new(
        origin: Instant,
        host_services: Arc<dyn HostServices>,
        silence: Arc<Silence>,
    ) -> Self {
        Self { origin, host_services, silence, clusters: Mutex::default() }
    }

    pub(crate) fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    /// The workloads of a service as a view has them. What is known of those that stay is kept.
    pub(crate) fn of(
        &self,
        view: &ProxySnapshot,
        service: ServiceId,
        v4: bool,
    ) -> Option<Arc<Cluster>> {
        let mut clusters = self.clusters.lock();
        let known = clusters.get(&(service, v4));
        let external = view.external(service);
        let addresses = external.map(|_| self.host_services.addresses(service));
        // A request that began under an older view takes what is newer.
        let is_fresh =
            |it: &&Arc<Cluster>| it.revision >= view.snapshot.revision && it.addresses == addresses;
        if let Some(known) = known.filter(is_fresh) {
            return Some(Arc::clone(known));
        }
        let far = external.zip(addresses);
        let at = (self.now(), &self.silence);
        let made = Arc::new(Cluster::new(&view.snapshot, (service, far), v4, known, at)?);
        clusters.insert((service, v4), Arc::clone(&made));
        Some(made)
    }

    /// Sends a request to one of the workloads, those aside that were tried before.
    pub(crate) fn pick(
        &self,
        cluster: &Cluster,
        tried: &[HostId],
        draw: Draw,
    ) -> Result<(Arc<Endpoint>, InFlight), NoEndpoint> {
        let now = self.now();
        let most = usize::try_from(cluster.balance.breaker.max_requests).unwrap_or(usize::MAX);
        if cluster.kept.under_way.load(Ordering::Relaxed) >= most {
            return Err(NoEndpoint::Overloaded);
        }
        let (endpoint, choice) = cluster.pick(tried, draw, now).ok_or(NoEndpoint::Nobody)?;
        let began = (now, choice);
        let flight = InFlight::begin(&endpoint, &cluster.kept, self.origin, began);
        Ok((endpoint, flight))
    }

    pub(crate) fn views(&self) -> Vec<EndpointView> {
        let now = self.now();
        let clusters = self.clusters.lock();
        let mut views: Vec<EndpointView> = clusters
            .iter()
            .flat_map(|((service, _), cluster)| {
                cluster.places.iter().map(|place| place.view(*service, now))
            })
            .collect();
        views.sort_by_key(|view| (view.service, view.host, view.address));
        views
    }

    /// How much of their breakers the services have taken. Those of one service, by the two
    /// families, are told as one: the fuller of the two.
    pub(crate) fn breakers(&self) -> Vec<BreakerView> {
        let clusters = self.clusters.lock();
        let mut views: Vec<BreakerView> =
            clusters.iter().flat_map(|((service, _), cluster)| cluster.breaker(*service)).collect();
        let key = |view: &BreakerView| (view.service, view.limit);
        views.sort_by_key(|view| (key(view), std::cmp::Reverse(view.taken)));
        views.dedup_by_key(|view| key(view));
        views
    }
}

impl Cluster {
    fn new(
        snapshot: &Snapshot,
        (service, far): (ServiceId, Option<Far<'_>>),
        v4: bool,
        known: Option<&Arc<Self>>,
        (now, silence): (Duration, &Arc<Silence>),
    ) -> Option<Self> {
        let declared = snapshot.services.get(&service)?;
        let workload = |(host, ipv4): (&HostId, &std::net::Ipv4Addr)| {
            let ipv6 = || snapshot.workload_ipv6(*host, service).into();
            (*host, if v4 { (*ipv4).into() } else { ipv6() })
        };
        let spots: Vec<(HostId, IpAddr)> = match &far {
            // They are on no host of the mesh; these numbers tell them apart, and are no host's.
            Some((_, found)) => (0..).zip(&**found).map(|(n, it)| (HostId(!n), *it)).collect(),
            None => declared.placements.iter().map(workload).collect(),
        };
        let endpoint = |(host, address): (HostId, IpAddr)| {
            let stays = |it: &&Place| it.endpoint.host == host && it.endpoint.address == address;
            let kept = known.and_then(|known| known.places.iter().find(stays));
            let endpoint = kept.map_or_else(
                || Arc::new(Endpoint::new(host, address, now)),
                |place| Arc::clone(&place.endpoint),
            );
            Place {
                endpoint,
                near: far.is_some() || is_near(snapshot, declared, host),
                weight: weight(snapshot, declared, host),
                leaving: declared.leaving.contains(&host),
            }
        };
        let places: Vec<Place> = spots.into_iter().map(endpoint).collect();
        let weighed: Vec<(u64, u32)> =
            places.iter().map(|it| (it.endpoint.host.0.into(), it.weight)).collect();
        let kept = known.map_or_else(
            || Arc::new(Kept::new(now, Arc::clone(silence))),
            |it| Arc::clone(&it.kept),
        );
        kept.recount(&places);
        let (port, addresses) = match far {
            Some((external, addresses)) => (external.port, Some(addresses)),
            None => (declared.port, None),
        };
        Some(Self {
            name: declared.name.clone(),
            revision: snapshot.revision,
            addresses,
            port,
            places,
            method: Method::new(&declared.balance.policy, &weighed),
            balance: declared.balance.clone(),
            ready: RwLock::default(),
            kept,
        })
    }

    pub(crate) fn budget(&self) -> MutexGuard<'_, Budget> {
        self.kept.budget.lock()
    }

    /// Limits of connections to it.
    pub(crate) fn allowance(&self) -> Allowance<'_> {
        let Breaker { max_connections, max_pending_requests, .. } = self.balance.breaker;
        let most = |number| usize::try_from(number).unwrap_or(usize::MAX);
        Allowance {
            counts: &self.kept.counts,
            connections: most(max_connections),
            waiting: most(max_pending_requests),
        }
    }

    fn breaker(&self, service: ServiceId) -> [BreakerView; 4] {
        let limits = &self.balance.breaker;
        let (open, waiting) = self.kept.counts.count();
        let under_way = self.kept.under_way.load(Ordering::Relaxed);
        let retries = self.kept.retries.load(Ordering::Relaxed);
        [
            (Overflow::Connections, open, Some(limits.max_connections)),
            (Overflow::Pending, waiting, Some(limits.max_pending_requests)),
            (Overflow::Requests, under_way, Some(limits.max_requests)),
            (Overflow::Retries, retries, limits.max_retries),
        ]
        .map(|(limit, taken, most)| BreakerView {
            service,
            limit: limit.setting(),
            taken: taken as u64,
            most: most.map(u64::from),
        })
    }

    /// Whether a host that answers wasn't tried yet.
    pub(crate) fn has_others(&self, tried: &[HostId]) -> bool {
        let answers = |host: HostId| self.kept.silence.since(host).is_none();
        self.places.iter().map(|it| it.endpoint.host).any(|it| !tried.contains(&it) && answers(it))
    }

    /// Whether its workloads' health is checked.
    pub(crate) const fn has_checks(&self) -> bool {
        self.balance.health.is_some()
    }

    pub(crate) const fn outlier(&self) -> &Outlier {
        &self.balance.outlier
    }

    /// Lets a retry pass, if the breaker does.
    pub(crate) fn begin_retry(&self) -> Option<Retrying> {
        let most = self.balance.breaker.max_retries.map_or(usize::MAX, |most| most as usize);
        let before = self.kept.retries.fetch_add(1, Ordering::Relaxed);
        // Dropped at once if it is one too many.
        let retrying = Retrying(Arc::clone(&self.kept));
        (before < most).then_some(retrying)
    }

    /// Hash policy for requests, if any.
    pub(crate) const fn hash_key(&self) -> Option<&HashKey> {
        match &self.method {
            Method::Hash(key, _) => Some(key),
            Method::PeakEwma | Method::LeastRequest | Method::RoundRobin => None,
        }
    }

    /// Whoever is due to prove itself first; else one who is ready and wasn't tried; else anybody
    /// who wasn't; else anybody. Says why, too.
    fn pick(&self, tried: &[HostId], draw: Draw, now: Duration) -> Option<(Arc<Endpoint>, Choice)> {
        self.find_ready(now);
        let found = self.ready.read();
        let ready = &found.ready;
        let fresh = |at: usize| !tried.contains(&self.places[at].endpoint.host);
        let probes = |at: &&usize| fresh(**at) && self.places[**at].endpoint.begin_probe(now);
        if let Some(at) = ready.due.iter().find(probes) {
            self.kept.changed();
            let choice = Choice { probes: true, desperate: false };
            return Some((Arc::clone(&self.places[*at].endpoint), choice));
        }
        let everybody = || 0..self.places.len();
        let chosen = if tried.is_empty() {
            self.choose(ready, draw, now)
        } else {
            let open =
                Level::new(everybody().filter(|at| fresh(*at) && ready.is_open(*at)).map(even));
            self.among(&open, draw, now)
        };
        let desperate = ready.panic || chosen.is_none();
        let others = || Level::new(everybody().filter(|at| fresh(*at)).map(even));
        let at = chosen
            .or_else(|| self.among(&others(), draw, now))
            .or_else(|| self.among(&Level::new(everybody().map(even)), draw, now))?;
        let choice = Choice { desperate, probes: false };
        Some((Arc::clone(&self.places.get(at)?.endpoint), choice))
    }

    /// One of those who are ready. Hashes go by keys alone, or hosts wouldn't agree.
    fn choose(&self, ready: &Ready, draw: Draw, now: Duration) -> Option<usize> {
        if let Method::Hash(_, table) = &self.method {
            return table.pick(draw.key.unwrap_or(draw.random), |at| ready.is_open(at));
        }
        let point = (draw.random.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 11) as f64;
        let levels = ready.levels(point / (1_u64 << 53) as f64);
        levels.into_iter().find_map(|level| self.among(level, draw, now))
    }

    fn among(&self, level: &Level, draw: Draw, now: Duration) -> Option<usize> {
        let endpoint = |at: usize| &self.places[at].endpoint;
        match &self.method {
            Method::PeakEwma => {
                let cost = |at| endpoint(at).cost(now);
                level.cheaper_of_two(draw.random, Sharpness::Measured, cost)
            }
            Method::LeastRequest => {
                let cost = |at| (endpoint(at).under_way() + 1) as f64;
                level.cheaper_of_two(draw.random, Sharpness::Counted, cost)
            }
            Method::RoundRobin => level.in_turn(self.kept.turn.fetch_add(1, Ordering::Relaxed)),
            Method::Hash(_, table) => {
                let key = draw.key.unwrap_or(draw.random);
                // Who has no weight isn't in the table.
                let otherwise = || level.in_turn(key as usize);
                table.pick(key, |at| level.places().contains(&at)).or_else(otherwise)
            }
        }
    }

    /// Finds out who is ready, if something has changed.
    fn find_ready(&self, now: Duration) {
        let changes = self.kept.changes();
        let holds = |found: &Found| found.at == Some(changes) && now < found.until;
        if holds(&self.ready.read()) {
            return;
        }
        let mut found = self.ready.write();
        if holds(&found) {
            return;
        }
        let next_look = self.compare_success(now);
        // What changes from here on makes it be found again.
        let changes = self.kept.changes();
        let candidates: Vec<Candidate> =
            self.places.iter().map(|it| it.candidate(&self.kept.silence)).collect();
        let Balance { slow_start, panic_threshold, .. } = &self.balance;
        let ready = Ready::new(&candidates, *slow_start, *panic_threshold, now);
        if ready.panic && !found.ready.panic {
            let service = self.name.as_str();
            tracing::warn!(service, "So few workloads are healthy that all are used");
        }
        let until = ready.until.map_or(next_look, |until| until.min(next_look));
        *found = Found { ready, at: Some(changes), until };
    }

    /// Ejects who succeeds less often than the others, once in an interval; says when that is next.
    fn compare_success(&self, now: Duration) -> Duration {
        let settings = &self.balance.outlier;
        let due = Duration::from_millis(self.kept.next_look.load(Ordering::Relaxed));
        if now < due {
            return due;
        }
        let next = now + settings.interval;
        self.kept.next_look.store(next.as_millis() as u64, Ordering::Relaxed);
        let tallies: Vec<(u32, u32)> =
            self.places.iter().map(|place| place.endpoint.take_tally()).collect();
        for at in outliers(&tallies, settings) {
            let may = self.kept.may_eject(settings.max_ejection_percent);
            if may
                && self.places[at].endpoint.on_low_success(settings, (now, now.as_nanos() as u64))
            {
                self.kept.note(Turn::Ejected);
                tracing::info!(
                    address = %self.places[at].endpoint.address,
                    "Ejected a workload that fails more often than the others"
                );
            }
        }
        next
    }
}

const fn even(at: usize) -> (usize, f64) {
    (at, 1.0)
}

/// Whether a host is of this host's site, if that counts.
fn is_near(snapshot: &Snapshot, service: &Service, host: HostId) -> bool {
    let site = |host: &HostId| snapshot.hosts.get(host).and_then(|host| host.site.as_ref());
    !service.balance.locality
        || host == snapshot.local
        || site(&snapshot.local).is_none_or(|own| site(&host) == Some(own))
}

/// A draining workload has none: it gets only requests that no other could take.
fn weight(snapshot: &Snapshot, service: &Service, host: HostId) -> u32 {
    if service.leaving.contains(&host) {
        return 0;
    }
    let name = snapshot.hosts.get(&host).map(|host| &host.name);
    name.and_then(|name| service.balance.weights.get(name)).copied().unwrap_or(1)
}

impl Place {
    fn candidate(&self, silence: &Silence) -> Candidate {
        if silence.since(self.endpoint.host).is_some() {
            // As if it weren't there: it takes what nobody else could.
            let admission = Admission::Closed { until: Duration::MAX };
            return Candidate { near: self.near, weight: 0, admission };
        }
        Candidate { near: self.near, weight: self.weight, admission: self.endpoint.admission() }
    }

    fn view(&self, service: ServiceId, now: Duration) -> EndpointView {
        let Self { endpoint, near, weight, leaving } = self;
        let (near, weight, leaving) = (*near, *weight, *leaving);
        EndpointView { weight, near, leaving, ..endpoint.view(service, now) }
    }
}

impl Method {
    /// Of workloads on hosts with these numbers and weights.
    fn new(policy: &BalancePolicy, hosts: &[(u64, u32)]) -> Self {
        match policy {
            BalancePolicy::PeakEwma => Self::PeakEwma,
            BalancePolicy::LeastRequest => Self::LeastRequest,
            BalancePolicy::RoundRobin => Self::RoundRobin,
            BalancePolicy::RingHash(key) => Self::Hash(key.clone(), HashTable::ring(hosts)),
            BalancePolicy::Maglev(key) => Self::Hash(key.clone(), HashTable::maglev(hosts)),
        }
    }
}

impl Drop for Retrying {
    fn drop(&mut self) {
        self.0.retries.fetch_sub(1, Ordering::Relaxed);
    }
}
