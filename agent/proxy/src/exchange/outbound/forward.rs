//! One request on its way to a workload: pick, try, and perhaps try again.

use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::COOKIE;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use isthmus_model::route::{Hedge, Retry, RetryOn, Share};
use isthmus_model::{HashKey, HostId, ServiceId};
use tokio::time::error::Elapsed;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::local::{self, Refused};
use super::template::Template;
use super::{Call, mirror};
use crate::caller::connection::Connection;
use crate::cluster::balance::{Attempt, hash, may_repeat, wants_retry};
use crate::cluster::breaker::Overflow;
use crate::cluster::endpoint::{Endpoint, InFlight, Turn};
use crate::cluster::{Cluster, Draw, NoPlace, Retrying};
use crate::config::routes::Compiled;
use crate::config::view::View;
use crate::exchange::body::Answer;
use crate::exchange::{failure, pass, refusal, switch, too_many};
use crate::http::body::Incoming;
use crate::http::marks::{
    DENIED_BY, LEAVING, OVERLOADED, PANIC, RATE_LIMITED, REQUEST_ID, server_time,
};
use crate::http::upgrade;
use crate::pool::progress::Progress;
use crate::pool::request_body::{Payload, Upload};
use crate::pool::{BackendError, Failure};
use crate::telemetry::access_log::{Decider, Record, RequestId};
use crate::telemetry::metrics::Ruling;
use crate::telemetry::timing::Part;

/// What all tries of a request share.
struct Exchange<'a> {
    connection: &'a Connection,
    view: &'a Arc<View>,
    service: ServiceId,
    /// As what both sides log it.
    id: RequestId,
    cluster: Arc<Cluster>,
    template: Template,
    deadline: Option<Instant>,
    try_timeout: Option<Duration>,
    policy: &'a Retry,
    /// What the request is hashed to.
    key: Option<u64>,
    hedge: Option<Hedge>,
}

/// How a try ended.
enum Tried {
    Answer(Response<Incoming>, Attempt, InFlight),
    /// With the body, if nobody has read of it.
    Failed(BackendError, Attempt, Option<Upload>),
    /// It isn't the workload's fault, and no other would do better.
    Blameless(BackendError),
    /// A workload here may not be asked this, or not so often.
    Refused(Refused),
}

/// How all of them did.
#[expect(clippy::large_enum_variant, reason = "an answer is how most end, and is taken at once")]
enum Ended {
    Answer(Response<Incoming>, InFlight),
    Failed(BackendError),
    Refused(Refused),
    NoPlace(NoPlace),
}

/// Sends a request to a backend, and gives the answer to the caller.
pub(super) async fn run(
    connection: &Connection,
    view: &Arc<View>,
    call: Box<Call>,
    service: ServiceId,
    route: Option<Arc<Compiled>>,
    mut record: Record,
) -> Response<Answer> {
    let deadline = route.as_ref().and_then(|it| it.timeout).map(|it| Instant::now() + it);
    let v4 = connection.peer.is_ipv4();
    record.take_backend(view, service);
    let Some(cluster) = connection.shared.clusters.of(view, service, v4) else {
        return no_place(NoPlace::Nobody, service, connection, record);
    };
    let Call { head, body, host, asked_host } = *call;
    let key = cluster.hash_key().and_then(|by| key_of(by, &head.headers, connection.peer));
    let mut template = Template::new(head, host, route.as_deref());
    if let Some(entry) = &connection.entry {
        entry.introduce(view, connection, &mut template.head.headers, &asked_host);
    }
    let policy = route.as_ref().and_then(|it| it.retry.as_ref()).unwrap_or(&ONLY_UNSENT);
    // Of a body that is held back nobody knows yet whether it is wanted.
    let wants_whole = !template.expects
        && route
            .as_ref()
            .is_some_and(|it| it.retry.is_some() || it.hedge.is_some() || !it.mirrors.is_empty());
    // A workload that is unwell refuses what it hasn't looked at.
    let wants_again = route.as_ref().is_some_and(|it| it.retry.is_some()) || cluster.has_checks();
    if wants_whole {
        record.wait_for(Part::Client);
    }
    let collected = match Payload::ready(body, (wants_whole, wants_again), record.progress()) {
        Ok(payload) => Ok(Ok(payload)),
        Err(body) => {
            // Boxed, like all that few requests need room for.
            let collecting = Box::pin(Payload::collect(body, record.progress()));
            let patience =
                deadline.unwrap_or_else(|| Instant::now() + connection.shared.limits.body);
            timeout_at(patience, collecting).await
        }
    };
    record.wait_for(Part::Queue);
    let mut payload = match collected {
        Ok(Ok(payload)) => payload,
        Ok(Err(_)) => return refusal(StatusCode::BAD_REQUEST, "the body broke off", record),
        Err(_) => {
            let reason = "the body didn't come in time";
            return refusal(StatusCode::REQUEST_TIMEOUT, reason, record);
        }
    };
    if let Some(route) = &route {
        mirror::send(connection, view, route, &template, &payload);
    }
    let try_timeout = route.as_ref().and_then(|it| it.try_timeout);
    let exchange = Exchange {
        connection,
        view,
        service,
        id: record.id,
        cluster,
        template,
        deadline,
        try_timeout,
        policy,
        key,
        hedge: route.as_ref().and_then(|it| it.hedge),
    };
    let ended = {
        // Pinned, so that there is room for it once, and not for each way to wait for it.
        let running = pin!(exchange.run(&mut payload, &mut record));
        match deadline {
            Some(deadline) => timeout_at(deadline, running).await,
            None => Ok(running.await),
        }
    };
    match ended {
        Ok(Ended::Answer(response, flight)) => {
            exchange.note_refusal(&response, &mut record);
            let holding = Holding { flight, deadline };
            answer(connection, exchange.template, response, route, record, holding)
        }
        Ok(Ended::Failed(BackendError::Overloaded(what))) => overloaded(what, connection, record),
        Ok(Ended::Failed(error)) => failure(&error, record),
        Ok(Ended::Refused(Refused::TooMany(refused))) => too_many(refused, record),
        Ok(Ended::Refused(Refused::Denied)) => {
            refusal(StatusCode::FORBIDDEN, "forbidden by mesh policy", record)
        }
        Ok(Ended::NoPlace(reason)) => no_place(reason, service, connection, record),
        Err(_) => {
            let reason = "the service didn't answer within the route's timeout";
            refusal(StatusCode::GATEWAY_TIMEOUT, reason, record)
        }
    }
}

/// What the answer's body keeps.
struct Holding {
    flight: InFlight,
    deadline: Option<Instant>,
}

fn answer(
    connection: &Connection,
    template: Template,
    response: Response<Incoming>,
    route: Option<Arc<Compiled>>,
    record: Record,
    holding: Holding,
) -> Response<Answer> {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return match template.upgrade {
            Some(protocol) if upgrade::agrees(&protocol, response.headers()) => {
                switch(connection, response, &protocol, record)
            }
            Some(_) | None => {
                let reason = "the service switched to a protocol that nobody asked for";
                refusal(StatusCode::BAD_GATEWAY, reason, record)
            }
        };
    }
    let mut answer = pass(response, record);
    if let Some(route) = route {
        route.response_headers.apply(answer.headers_mut());
    }
    answer.body_mut().hold(holding.flight, holding.deadline);
    answer
}

fn no_place(
    reason: NoPlace,
    service: ServiceId,
    connection: &Connection,
    record: Record,
) -> Response<Answer> {
    match reason {
        NoPlace::Nobody => {
            let known = connection.shared.outside.unusable(service);
            let reason = known.as_deref().unwrap_or("the service has no workload");
            refusal(StatusCode::SERVICE_UNAVAILABLE, reason, record)
        }
        NoPlace::Overloaded => overloaded(Overflow::Requests, connection, record),
    }
}

/// The breaker is open. A caller who sees the header knows that trying again at once is no use.
fn overloaded(what: Overflow, connection: &Connection, record: Record) -> Response<Answer> {
    connection.shared.metrics.count_overflow(what);
    let mut answer = refusal(StatusCode::SERVICE_UNAVAILABLE, what.reason(), record);
    answer.headers_mut().insert(OVERLOADED, HeaderValue::from_static(what.setting()));
    answer
}

/// What a request is hashed to; none if it lacks what is hashed.
fn key_of(by: &HashKey, fields: &HeaderMap, peer: IpAddr) -> Option<u64> {
    match by {
        HashKey::Header(name) => Some(hash(fields.get(&**name)?.as_bytes())),
        HashKey::Cookie(name) => {
            let lines = fields.get_all(COOKIE).iter().filter_map(|line| line.to_str().ok());
            let mut pairs =
                lines.flat_map(|line| line.split(';')).filter_map(|it| it.split_once('='));
            let (_, value) = pairs.find(|(key, _)| key.trim() == &**name)?;
            Some(hash(value.trim().as_bytes()))
        }
        HashKey::Source => Some(hash(peer.to_string().as_bytes())),
    }
}

/// Without a policy only what can do no harm is tried again: what nobody has seen.
static ONLY_UNSENT: LazyLock<Retry> = LazyLock::new(|| Retry {
    attempts: 2,
    on: vec![RetryOn::ConnectFailure],
    budget: Share::ALL,
    backoff: Duration::ZERO,
    non_idempotent: false,
});

impl Exchange<'_> {
    async fn run(&self, payload: &mut Payload, record: &mut Record) -> Ended {
        let clusters = &self.connection.shared.clusters;
        self.cluster.budget().deposit(self.policy.budget, clusters.now());
        let mut tried: Vec<HostId> = Vec::new();
        // Until the retry has its answer's head.
        let mut _retrying: Option<Retrying> = None;
        let mut was_unhealthy = false;
        loop {
            let (endpoint, mut flight) = match self.pick(&tried) {
                Ok(picked) => picked,
                Err(reason) => return Ended::NoPlace(reason),
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

    fn pick(&self, tried: &[HostId]) -> Result<(Arc<Endpoint>, InFlight), NoPlace> {
        let draw = Draw { key: self.key, random: self.connection.shared.chance.next() };
        self.connection.shared.clusters.pick(&self.cluster, tried, draw)
    }

    /// Says, too, whose answer it is.
    async fn try_or_hedge(
        &self,
        endpoint: Arc<Endpoint>,
        flight: InFlight,
        payload: &mut Payload,
        tried: &mut Vec<HostId>,
    ) -> (HostId, Tried) {
        let may_hedge = |_: &Hedge| {
            self.template.head.method.is_idempotent()
                && self.template.upgrade.is_none()
                && payload.copy().is_some()
        };
        match self.hedge.filter(may_hedge) {
            Some(hedge) => {
                Box::pin(self.try_hedged(hedge, (endpoint, flight), payload, tried)).await
            }
            None => {
                let host = endpoint.host;
                (host, self.try_once(endpoint, flight, payload.take()).await)
            }
        }
    }

    /// Asks others, too, whenever those before have no answer for a while. The first good answer
    /// counts, and the others' requests are dropped, which cancels them.
    async fn try_hedged(
        &self,
        hedge: Hedge,
        (endpoint, flight): (Arc<Endpoint>, InFlight),
        payload: &Payload,
        tried: &mut Vec<HostId>,
    ) -> (HostId, Tried) {
        let start = |endpoint: Arc<Endpoint>, flight| {
            let host = endpoint.host;
            (host, Box::pin(self.try_once(endpoint, flight, payload.copy())), None::<Retrying>)
        };
        let mut running = vec![start(endpoint, flight)];
        let mut left = hedge.max;
        let mut next = Instant::now() + hedge.after;
        loop {
            tokio::select! {
                (at, outcome) = poll_fn(|cx| first_of(&mut running, cx)) => {
                    let (host, _, _) = running.swap_remove(at);
                    if running.is_empty() || outcome.is_good() {
                        return (host, outcome);
                    }
                }
                () = sleep_until(next), if left > 0 => {
                    left -= 1;
                    next += hedge.after;
                    // Never the same workload again: it has the request.
                    let free = self.begin_again();
                    let another = free.and_then(|it| Some((it, self.pick(tried).ok()?)));
                    let Some((retrying, (endpoint, flight))) = another
                        .filter(|(_, (endpoint, _))| !tried.contains(&endpoint.host))
                    else {
                        left = 0;
                        continue;
                    };
                    self.connection.shared.metrics.count_hedge();
                    tried.push(endpoint.host);
                    let (host, trying, _) = start(endpoint, flight);
                    running.push((host, trying, Some(retrying)));
                }
            }
        }
    }

    /// What the application took, as the agent of another host says.
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
    fn begin_again(&self) -> Option<Retrying> {
        let shared = &self.connection.shared;
        let Some(retrying) = self.cluster.begin_retry() else {
            shared.metrics.count_overflow(Overflow::Retries);
            return None;
        };
        self.cluster.budget().withdraw(shared.clusters.now()).then_some(retrying)
    }

    /// The limit that the agent of another host has refused by.
    fn limited_by<'r>(
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
    fn note_refusal(&self, response: &Response<Incoming>, record: &mut Record) {
        let Some(mark) = response.headers().get(DENIED_BY) else { return };
        let view = self.view;
        let is_here = record.host() == view.snapshot.local_host().name.as_str();
        if !is_here && view.external(self.service).is_none() {
            record.refuse_there(Decider::marked(&view.policy, mark));
        }
    }

    async fn try_once(
        &self,
        endpoint: Arc<Endpoint>,
        mut flight: InFlight,
        body: Option<Upload>,
    ) -> Tried {
        let Some(body) = body else {
            return Tried::Failed(BackendError::TimedOut, Attempt::Reset, None);
        };
        let shared = &self.connection.shared;
        let is_here = endpoint.host == self.view.snapshot.local;
        if is_here && !flight.desperate && shared.health.is_unhealthy(self.service) {
            let turn =
                flight.tell(Attempt::Unhealthy, self.cluster.outlier(), shared.chance.next());
            self.note(turn, &endpoint);
            return Tried::Failed(BackendError::Unhealthy, Attempt::Unhealthy, Some(body));
        }
        let mut fields = self.template.copy();
        if flight.desperate && !is_here {
            fields.insert(PANIC, HeaderValue::from_static("true"));
        }
        let place = (self.service, &*self.cluster, &*endpoint);
        let progress = body.progress();
        let life = Some(&progress.life);
        let aimed = self.template.aim(self.connection, self.view, place, &mut fields, life);
        let (target, uri) = match aimed {
            Ok(aimed) => aimed,
            Err(refused) => return Tried::Refused(refused),
        };
        if target.host.is_some() {
            fields.extend(self.id.header().map(|id| (REQUEST_ID, id)));
        }
        let mut request = Request::new(body);
        *request.method_mut() = self.template.head.method.clone();
        *request.uri_mut() = uri;
        *request.headers_mut() = fields;
        let wire = self.template.wire_to(self.connection, self.view, self.service, &endpoint);
        *request.version_mut() = wire.version();
        let awaited = request.body().awaited();
        let room = Some(self.cluster.room());
        // The exchange's own deadline, too: it is the workload that let it pass.
        let patience = self.try_timeout.map(|patience| Instant::now() + patience);
        let sent = {
            let sending = pin!(shared.backends.send(target, wire, Box::new(request), room));
            match [patience, self.deadline].into_iter().flatten().min() {
                Some(until) => timeout_at(until, sending).await,
                None => Ok(sending.await),
            }
        };
        let random = self.connection.shared.chance.next();
        if let Some(error) = blameless(&sent, awaited.as_deref()) {
            flight.forget();
            if is_here && matches!(error, BackendError::Overloaded(_)) {
                local::give_back(self.connection, self.view, self.service, &self.template.head);
            }
            return Tried::Blameless(error);
        }
        let (error, attempt, unread) = match sent {
            Ok(Ok(response)) => {
                let attempt = Attempt::answered(response.status(), response.headers());
                // A limit of the mesh says nothing about how the workload is.
                if self.limited_by(endpoint.host, attempt, &response).is_some() {
                    flight.forget();
                    return Tried::Answer(response, attempt, flight);
                }
                if attempt.failure().is_none() && response.headers().contains_key(LEAVING) {
                    flight.tell_leaving(self.cluster.outlier(), random);
                    return Tried::Answer(response, attempt, flight);
                }
                self.note(flight.tell(attempt, self.cluster.outlier(), random), &endpoint);
                return Tried::Answer(response, attempt, flight);
            }
            Ok(Err(failure)) => match failure.unsent {
                Some(request) => (failure.error, Attempt::NotSent, Some(request.into_body())),
                None => (failure.error, Attempt::Reset, None),
            },
            Err(_) => (BackendError::TryTimedOut, Attempt::Reset, None),
        };
        self.note(flight.tell(attempt, self.cluster.outlier(), random), &endpoint);
        Tried::Failed(error, attempt, unread)
    }

    fn note(&self, turn: Turn, endpoint: &Endpoint) {
        let snapshot = &self.view.snapshot;
        let service = || snapshot.services.get(&self.service).map(|it| it.name.as_str());
        let host = || snapshot.hosts.get(&endpoint.host).map(|it| it.name.as_str());
        match turn {
            Turn::Ejected => {
                let (service, host) = (service(), host());
                self.connection.shared.metrics.count_ejection(service.unwrap_or_default());
                tracing::info!(service, host, "Ejected a workload that keeps failing");
            }
            Turn::Back => {
                let (service, host) = (service(), host());
                tracing::info!(service, host, "A workload that was ejected is back");
            }
            Turn::Nothing => {}
        }
    }
}

/// The tries after the first.
fn retries(tried: &[HostId]) -> u32 {
    u32::try_from(tried.len()).unwrap_or(u32::MAX).saturating_sub(1)
}

/// What is nobody's fault but the caller's, or the breaker's.
fn blameless(
    sent: &Result<Result<Response<Incoming>, Failure>, Elapsed>,
    awaited: Option<&Progress>,
) -> Option<BackendError> {
    match sent {
        Ok(Ok(_)) => None,
        Ok(Err(Failure { error: BackendError::Overloaded(what), .. })) => {
            Some(BackendError::Overloaded(*what))
        }
        Ok(Err(_)) => awaited?.is_broken().then_some(BackendError::CutShort),
        Err(_) => awaited?.is_waiting().then_some(BackendError::Late),
    }
}

/// A request under way: whose, and what it waits for.
type Running<F> = (HostId, Pin<Box<F>>, Option<Retrying>);

/// The first of some that is ready.
fn first_of<F: Future>(
    running: &mut [Running<F>],
    cx: &mut Context<'_>,
) -> Poll<(usize, F::Output)> {
    for (at, (_, trying, _)) in running.iter_mut().enumerate() {
        if let Poll::Ready(outcome) = trying.as_mut().poll(cx) {
            return Poll::Ready((at, outcome));
        }
    }
    Poll::Pending
}

impl Tried {
    /// Whether there is no sense in waiting for another answer.
    fn is_good(&self) -> bool {
        match self {
            Self::Answer(_, attempt, _) => attempt.failure().is_none(),
            Self::Refused(_) => true,
            Self::Failed(..) | Self::Blameless(_) => false,
        }
    }
}
