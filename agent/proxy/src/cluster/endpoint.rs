//! One workload, and the requests that it has.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use isthmus_model::{HostId, Outlier, ServiceId};
use parking_lot::Mutex;

use super::Kept;
use super::balance::{Admission, Attempt, Ejection, Failure, PeakEwma, Tally};

/// One workload.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) host: HostId,
    pub(crate) address: IpAddr,
    latency: PeakEwma,
    under_way: AtomicUsize,
    tally: Tally,
    ejection: Mutex<Ejection>,
    /// Something may be held against it: only then need a success look at `ejection`.
    blemished: AtomicBool,
}

/// A request that a workload has. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct InFlight {
    endpoint: Arc<Endpoint>,
    cluster: Arc<Kept>,
    origin: Instant,
    began: Duration,
    /// It was chosen although it isn't healthy.
    pub(crate) desperate: bool,
    /// It tells whether an ejected workload is back.
    pub(crate) probes: bool,
    told: bool,
}

/// Why a workload was chosen.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Choice {
    /// It isn't healthy, but nobody is.
    pub(crate) desperate: bool,
    /// To find out whether it is back.
    pub(crate) probes: bool,
}

/// Change of a workload's state by an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// It gets no more requests for now.
    Ejected,
    /// It gets requests again.
    Back,
    Nothing,
}

/// One limit of a service's breaker, as `agentctl routes` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BreakerView {
    /// Of this service.
    pub service: ServiceId,
    /// The key in `breaker`.
    pub limit: &'static str,
    /// Current use by this host's callers.
    pub taken: u64,
    /// Limit. None: as much as the retry budget gives.
    pub most: Option<u64>,
}

impl BreakerView {
    /// Whether more would be refused.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.most.is_some_and(|most| self.taken >= most)
    }
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
    /// Expected latency.
    pub latency: Duration,
    /// Requests that it has now.
    pub under_way: usize,
    /// Whether it gets no requests for now, since it kept failing.
    pub ejected: bool,
    /// Whether its host says that it fails its health check.
    pub unhealthy: bool,
    /// Whether it is about to go, and gets no requests that others can take.
    pub leaving: bool,
    /// Its share among the service's workloads.
    pub weight: u32,
    /// Whether it is of this host's site, if that counts.
    pub near: bool,
}

impl Endpoint {
    pub(crate) fn new(host: HostId, address: IpAddr, now: Duration) -> Self {
        Self {
            host,
            address,
            latency: PeakEwma::new(now),
            under_way: AtomicUsize::new(0),
            tally: Tally::default(),
            ejection: Mutex::new(Ejection::new(now)),
            blemished: AtomicBool::new(false),
        }
    }

    pub(crate) fn admission(&self) -> Admission {
        self.ejection.lock().admission()
    }

    pub(crate) fn is_out(&self) -> bool {
        self.ejection.lock().is_out()
    }

    /// Expected cost of one more request.
    pub(crate) fn cost(&self, now: Duration) -> f64 {
        self.latency.cost(self.under_way(), now)
    }

    pub(crate) fn under_way(&self) -> usize {
        self.under_way.load(Ordering::Relaxed)
    }

    /// Good and all answers since this was last asked.
    pub(crate) fn take_tally(&self) -> (u32, u32) {
        self.tally.take()
    }

    pub(crate) fn begin_probe(&self, now: Duration) -> bool {
        self.ejection.lock().begin_probe(now)
    }

    pub(crate) fn on_low_success(&self, settings: &Outlier, at: (Duration, u64)) -> bool {
        self.blemished.store(true, Ordering::Relaxed);
        self.ejection.lock().on_low_success(settings, at)
    }

    pub(crate) fn view(&self, service: ServiceId, now: Duration) -> EndpointView {
        let ejection = *self.ejection.lock();
        EndpointView {
            service,
            host: self.host,
            address: self.address,
            latency: self.latency.latency(now),
            under_way: self.under_way(),
            ejected: ejection.is_out(),
            unhealthy: ejection.is_unhealthy(),
            leaving: false,
            weight: 1,
            near: false,
        }
    }

    fn on_success(&self, took: Duration, now: Duration) -> Turn {
        self.tally.count(true);
        if self.blemished.load(Ordering::Relaxed) {
            let mut ejection = self.ejection.lock();
            if ejection.on_success(now) {
                // What it was like when it failed is of the past.
                self.latency.reset(took, now);
                return Turn::Back;
            }
            self.blemished.store(!ejection.is_spotless(), Ordering::Relaxed);
        }
        self.latency.observe(took, now);
        Turn::Nothing
    }
}

impl InFlight {
    pub(crate) fn begin(
        endpoint: &Arc<Endpoint>,
        cluster: &Arc<Kept>,
        origin: Instant,
        (began, Choice { desperate, probes }): (Duration, Choice),
    ) -> Self {
        endpoint.under_way.fetch_add(1, Ordering::Relaxed);
        cluster.under_way.fetch_add(1, Ordering::Relaxed);
        let (endpoint, cluster) = (Arc::clone(endpoint), Arc::clone(cluster));
        Self { endpoint, cluster, origin, began, desperate, probes, told: false }
    }

    /// A good answer has begun, and it says that the workload's host is about to leave.
    pub(crate) fn tell_leaving(&mut self, settings: &Outlier, random: u64) {
        self.told = true;
        let now = self.origin.elapsed();
        self.endpoint.latency.observe(now.saturating_sub(self.began), now);
        let mut ejection = self.endpoint.ejection.lock();
        self.endpoint.blemished.store(true, Ordering::Relaxed);
        let was_out = ejection.is_out();
        if ejection.on_failure(Failure::Unhealthy, settings, true, (now, random)) {
            self.cluster.note(if was_out { Turn::Nothing } else { Turn::Ejected });
            self.cluster.changed();
        }
    }

    /// The answer has begun, or won't come.
    pub(crate) fn tell(&mut self, attempt: Attempt, settings: &Outlier, random: u64) -> Turn {
        self.told = true;
        let now = self.origin.elapsed();
        let took = now.saturating_sub(self.began);
        let turn = match attempt.failure() {
            Some(failure) => self.on_failure(failure, took, settings, (now, random)),
            None => self.endpoint.on_success(took, now),
        };
        self.cluster.note(turn);
        turn
    }

    /// Nothing was learnt about the workload.
    pub(crate) fn forget(&mut self) {
        self.told = true;
        let endpoint = &self.endpoint;
        if endpoint.blemished.load(Ordering::Relaxed)
            && endpoint.ejection.lock().on_cancel(self.origin.elapsed())
        {
            self.cluster.changed();
        }
    }

    /// Nobody waits for the answer any more, whose time is known to be so long at least.
    fn on_cancel(&self) {
        let (endpoint, now) = (&self.endpoint, self.origin.elapsed());
        let waited = now.saturating_sub(self.began);
        if waited > endpoint.latency.latency(now) {
            endpoint.latency.observe(waited, now);
        }
        if endpoint.blemished.load(Ordering::Relaxed) && endpoint.ejection.lock().on_cancel(now) {
            self.cluster.changed();
        }
    }

    fn on_failure(
        &self,
        failure: Failure,
        took: Duration,
        settings: &Outlier,
        at: (Duration, u64),
    ) -> Turn {
        let endpoint = &self.endpoint;
        endpoint.tally.count(false);
        endpoint.latency.observe_failure(took, at.0);
        let may_eject = self.cluster.may_eject(settings.max_ejection_percent);
        let mut ejection = endpoint.ejection.lock();
        endpoint.blemished.store(true, Ordering::Relaxed);
        let was_out = ejection.is_out();
        match ejection.on_failure(failure, settings, may_eject, at) {
            // A probe has failed: it is as far out as before, and for longer.
            true if was_out => {
                self.cluster.changed();
                Turn::Nothing
            }
            true => Turn::Ejected,
            false => Turn::Nothing,
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.endpoint.under_way.fetch_sub(1, Ordering::Relaxed);
        self.cluster.under_way.fetch_sub(1, Ordering::Relaxed);
        if !self.told {
            self.on_cancel();
        }
    }
}
