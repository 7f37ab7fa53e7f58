//! Tries of a request, one after the other, until one is good enough or there may be no more.

use std::sync::{Arc, LazyLock, OnceLock};
use std::time::Duration;

use http::Response;
use isthmus_http::body::Incoming;
use isthmus_http::marks::{DENIED_BY, RATE_LIMITED, server_time};
use isthmus_model::route::{Hedge, Retry, RetryOn, Share};
use isthmus_model::{HostId, ServiceId};
use tokio::time::{Instant, sleep};

use super::attempt::Tried;
use super::local::Refused;
use super::template::Template;
use crate::caller::connection::Connection;
use crate::cluster::balance::{Attempt, may_repeat, wants_retry};
use crate::cluster::breaker::Overflow;
use crate::cluster::endpoint::{Endpoint, InFlight};
use crate::cluster::{Cluster, Draw, NoEndpoint, Retrying};
use crate::config::view::ProxySnapshot;
use crate::pool::BackendError;
use crate::pool::request_body::Payload;
use crate::telemetry::access_log::{Decider, Record, RequestId};
use crate::telemetry::metrics::Ruling;

/// State shared by all attempts of a request.
pub(super) struct Exchange<'a> {
    pub(super) connection: &'a Connection,
    pub(super) view: &'a Arc<ProxySnapshot>,
    pub(super) service: ServiceId,
    /// As what both sides log it.
    pub(super) id: RequestId,
    pub(super) cluster: Arc<Cluster>,
    pub(super) template: Template,
    pub(super) deadline: Option<Instant>,
    pub(super) try_timeout: Option<Duration>,
    pub(super) policy: &'a Retry,
    /// Hash of the request.
    pub(super) key: Option<u64>,
    pub(super) hedge: Option<Hedge>,
    /// Decider that would have refused it on this host without audit mode.
    pub(super) audited: OnceLock<Decider>,
}

/// Outcome of all of them.
#[expect(clippy::large_enum_variant, reason = "an answer is how most end, and is taken at once")]
pub(super) enum Ended {
    Answer(Response<Incoming>, InFlight),
    Failed(BackendError),
    Refused(Refused),
    NoEndpoint(NoEndpoint),
}

/// Without a policy only what can do no harm is tried again: what nobody has seen.
pub(super) static ONLY_UNSENT: LazyLock<Retry> = LazyLock::new(|| Retry {
    attempts: 2,
    on: vec![RetryOn::ConnectFailure],
    budget: Share::ALL,
    backoff: Duration::ZERO,
    non_idempotent: false,
});

impl Exchange<'_> {
    pub(super) async fn run(&self, payload: &mut Payload, record: &mut Record) -> Ended {
        let clusters = &self.connection.shared.clusters;
        self.cluster.budget().deposit(self.policy.budget, clusters.now());
        let mut tried: Vec<HostId> = Vec::new();
        // Until the retry has its answer's head.
        let mut _retrying: Option<Retrying> = None;
        let mut was_unhealthy = false;
        loop {
            let (endpoint, mut flight) = match self.pick(&tried) {
                Ok(picked) => picked,
                Err(reason) => return Ended::NoEndpoint(reason),
            };
            // The last one that may be asked is asked in spite of its check.
            flight.desperate |= was_unhealthy && retries(&tried) + 1 >= self.policy.attempts;
            tried.push(endpoint.host);
            record.take_endpoint(self.view, endpoint.host);
            record.begin_try();
            let (first, probes) = (endpoint.host, flight.probes);
            let (last, outcome) = self.try_or_hedge(endpoint, flight, payload, &mut tried).await;
            if last != first {
                record.take_endpoint(self.view, last);
            }
            record.end_try(self.told_time(last, &outcome));
            let (ended, attempt) = match outcome {
                Tried::Answer(response, attempt, flight) => {
                    (Ended::Answer(response, flight), attempt)
                }
                Tried::Refused(refused) => return Ended::Refused(refused),
                Tried::Blameless(error) => return Ended::Failed(error),
                Tried::Failed(error, attempt, unread) => {
                    unread.into_iter().for_each(|upload| payload.give_back(upload));
                    (Ended::Failed(error), attempt)
                }
            };
            was_unhealthy = attempt == Attempt::Unhealthy;
            if matches!(ended, Ended::Failed(BackendError::Silent(_)))
                && !self.cluster.has_others(&tried)
            {
                return ended;
            }
            _retrying = self.tries_again(attempt, probes, &tried, payload).await;
            if _retrying.is_none() {
                if let Ended::Answer(response, _) = &ended
                    && let Some(limit) = self.limited_by(last, attempt, response)
                {
                    record.decide(Ruling::Limit, Decider::Words(limit.to_owned()));
                }
                return ended;
            }
        }
    }

    pub(super) fn pick(&self, tried: &[HostId]) -> Result<(Arc<Endpoint>, InFlight), NoEndpoint> {
        let draw = Draw { key: self.key, random: self.connection.shared.chance.next() };
        self.connection.shared.clusters.pick(&self.cluster, tried, draw)
    }

    /// Application time, as reported by the agent of another host.
    fn told_time(&self, host: HostId, tried: &Tried) -> Option<Duration> {
        match tried {
            Tried::Answer(response, ..) if host != self.view.snapshot.local => {
                server_time(response.headers())
            }
            Tried::Answer(..) | Tried::Failed(..) | Tried::Blameless(_) | Tried::Refused(_) => None,
        }
    }

    /// Decides about another try, and waits for its time.
    async fn tries_again(
        &self,
        attempt: Attempt,
        probes: bool,
        tried: &[HostId],
        payload: &Payload,
    ) -> Option<Retrying> {
        let retries = retries(tried);
        let has_time = self.deadline.is_none_or(|deadline| Instant::now() < deadline);
        let wants = wants_retry(self.policy, attempt) && retries < self.policy.attempts;
        // That a request was used to find out about an ejected workload isn't its caller's fault.
        let is_owed = probes && attempt.failure().is_some();
        let may = has_time
            && (wants || is_owed)
            && may_repeat(self.policy, &self.template.head.method, attempt)
            && payload.is_ready();
        if !may {
            return None;
        }
        let retrying = if is_owed { self.cluster.begin_retry()? } else { self.begin_again()? };
        self.connection.shared.metrics.count_retry();
        let longest = self.policy.backoff * 2_u32.saturating_pow(retries);
        // Full jitter: clients that failed together don't come back together.
        let share = self.connection.shared.chance.next() % 1024;
        sleep(longest.mul_f64(share as f64 / 1024.0)).await;
        Some(retrying)
    }

    /// A place for a request beyond the first, if breaker and budget have one.
    pub(super) fn begin_again(&self) -> Option<Retrying> {
        let shared = &self.connection.shared;
        let Some(retrying) = self.cluster.begin_retry() else {
            shared.metrics.count_overflow(Overflow::Retries);
            return None;
        };
        self.cluster.budget().withdraw(shared.clusters.now()).then_some(retrying)
    }

    /// The limit that the agent of another host has refused by.
    pub(super) fn limited_by<'r>(
        &self,
        host: HostId,
        attempt: Attempt,
        response: &'r Response<Incoming>,
    ) -> Option<&'r str> {
        let from_agent = attempt.failure().is_some()
            && host != self.view.snapshot.local
            && self.view.external(self.service).is_none();
        let limit = from_agent.then(|| response.headers().get(RATE_LIMITED)).flatten();
        limit.and_then(|limit| limit.to_str().ok())
    }

    /// Says in this host's log, too, what the agent of another host has refused by.
    pub(super) fn note_refusal(&self, response: &Response<Incoming>, record: &mut Record) {
        let Some(mark) = response.headers().get(DENIED_BY) else { return };
        let view = self.view;
        let is_here = record.host() == view.snapshot.local_host().name.as_str();
        if !is_here && view.external(self.service).is_none() {
            record.refuse_there(Decider::marked(&view.policy, mark));
        }
    }
}

/// The tries after the first.
fn retries(tried: &[HostId]) -> u32 {
    u32::try_from(tried.len()).unwrap_or(u32::MAX).saturating_sub(1)
}
