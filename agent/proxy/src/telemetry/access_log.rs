//! The access log: a line for a request, written when it ends: for each that went wrong or was refused, and for a
//! share of the others.

mod facts;

use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version};
use isthmus_http::activity::UnderWay;
use isthmus_http::grpc;
use isthmus_http::marks::REQUEST_ID;
use isthmus_http::trace::Trace;
use isthmus_model::{Action, HostId, Name, Origin, ServiceId};
use isthmus_policy::{BuiltIn, DecidedBy, Decision, Policy, RuleId};

use self::facts::mark_of;
use super::metrics::Ruling;
use super::processes::Process;
use super::series::{Ending, RequestLabels, SeriesCache, StatusClass};
use super::timing::{Clock, Part};
use crate::cluster::permits::RequestPermit;
use crate::config::life::{Cut, Life};
use crate::config::parties::Side;
use crate::config::routes::Compiled;
use crate::config::view::ProxySnapshot;
use crate::pool::progress::Progress;

/// Of a path in the log.
const MAX_PATH_BYTES: usize = 1024;

/// What is to be said of one request. Dropping it says it: so no end is forgotten, be it an answer's
/// last byte, a caller that went away or a connection that was cut.
#[derive(Debug)]
pub(crate) struct Record(Box<Facts>);

/// Boxed, since they are handed on from one function to the next.
#[derive(Debug)]
pub(crate) struct Facts {
    pub(crate) id: RequestId,
    /// The caller understands gRPC's words.
    pub(crate) is_grpc: bool,
    ledger: Arc<SeriesCache>,
    /// From where the connection came, and whom it asked.
    ends: [SocketAddr; 2],
    /// The process on this host that opened it; looked up for refused requests.
    process: Option<Process>,
    clock: Clock,
    method: Method,
    path: Option<PathAndQuery>,
    version: Version,
    ruling: Ruling,
    decider: Decider,
    /// The agent of the asked host refused it; by what, if that is known here.
    refused_there: Option<Decider>,
    way: RequestLabels,
    host: Option<Name>,
    /// Whether that is this host.
    is_here: bool,
    tries: u32,
    status: Option<StatusCode>,
    /// By its end: the service failed, whatever the status.
    failed: bool,
    /// The error of the request or of its answer.
    problem: Option<String>,
    answer_bytes: u64,
    progress: Arc<Progress>,
    trace: Option<Trace>,
    completed: bool,
    under_way: UnderWay,
    permit: Option<RequestPermit>,
}

/// Decider of a request. Formatted only when it is shown.
#[derive(Debug)]
pub(crate) enum Decider {
    Nobody,
    Rule(Arc<Policy>, DecidedBy),
    /// A rate limit, by its name.
    Limit(String, Origin),
    Words(String),
}

/// Names a request in the log and in refusals.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RequestId(u64);

impl Record {
    pub(crate) fn new(
        ledger: Arc<SeriesCache>,
        ends: [SocketAddr; 2],
        head: &http::request::Parts,
        trace: Option<Trace>,
        under_way: UnderWay,
        progress: Arc<Progress>,
    ) -> Self {
        let clock = Clock::since(progress.started());
        ledger.live.add(&progress);
        Self(Box::new(Facts {
            id: RequestId::told(&ledger, head).unwrap_or_else(RequestId::next),
            is_grpc: grpc::is_call(head),
            ledger,
            ends,
            process: None,
            clock,
            method: head.method.clone(),
            path: head.uri.path_and_query().cloned(),
            version: head.version,
            ruling: Ruling::Invalid,
            decider: Decider::Nobody,
            refused_there: None,
            way: RequestLabels::default(),
            host: None,
            is_here: false,
            tries: 0,
            status: None,
            failed: false,
            problem: None,
            answer_bytes: 0,
            progress,
            trace,
            completed: false,
            under_way,
            permit: None,
        }))
    }

    /// Ruling of the policy, and its decider.
    pub(crate) fn decide(&mut self, ruling: Ruling, decider: Decider) {
        self.ruling = ruling;
        self.decider = decider;
        if ruling == Ruling::Deny {
            self.look_who();
        }
    }

    /// Decider that would have refused it without audit mode.
    pub(crate) fn audit(&mut self, denier: Option<Decider>) {
        if let Some(denier) = denier.filter(|_| self.ruling == Ruling::Allow) {
            self.decide(Ruling::Audit, denier);
        }
    }

    /// Finds out who asked, while the connection is open.
    fn look_who(&mut self) {
        let Facts { ledger, process, ends: [caller, called], .. } = &mut **self;
        if process.is_none() && ledger.parties.side == Side::Client {
            *process = ledger.metrics().process_of(*caller, *called);
        }
    }

    /// The other side's agent refused the request.
    pub(crate) fn refuse_there(&mut self, decider: Decider) {
        self.refused_there = Some(decider);
        self.look_who();
    }

    /// What tells the other side's agent by which rule the request was refused; none if by none. Not its
    /// name: whoever dials the workload itself would read it.
    pub(crate) fn mark(&self) -> Option<HeaderValue> {
        match &self.decider {
            Decider::Rule(policy, by) if self.ruling == Ruling::Deny => {
                Some(HeaderValue::from(mark_of(policy.describe_decider(*by).name)))
            }
            Decider::Rule(..) | Decider::Nobody | Decider::Limit(..) | Decider::Words(_) => None,
        }
    }

    /// The host that was asked last.
    pub(crate) fn host(&self) -> &str {
        self.host.as_ref().map_or("of the service", Name::as_str)
    }

    pub(crate) fn take_route(&mut self, route: &Arc<Compiled>) {
        self.way.route = Some(Arc::clone(route));
    }

    pub(crate) fn take_backend(&mut self, view: &ProxySnapshot, service: ServiceId) {
        self.way.lead_to(view, service);
    }

    /// Counts a try, too.
    pub(crate) fn take_endpoint(&mut self, view: &ProxySnapshot, host: HostId) {
        self.host = view.snapshot.hosts.get(&host).map(|it| it.name.clone());
        self.is_here = host == view.snapshot.local;
        self.tries += 1;
    }

    pub(crate) fn answer(&mut self, status: StatusCode) {
        self.end_try(None);
        self.progress.life.on_answer();
        self.status = Some(status);
    }

    /// The request waits for something else from now on.
    pub(crate) fn wait_for(&mut self, part: Part) {
        self.clock.enter(part);
    }

    /// The request is sent.
    pub(crate) fn begin_try(&mut self) {
        self.clock.begin_try();
    }

    /// Its answer is here, or won't come. The other side, if it knows, says what the application took.
    pub(crate) fn end_try(&mut self, server: Option<Duration>) {
        let Facts { clock, progress, .. } = &mut **self;
        clock.end_try(progress, server);
    }

    /// Time that the application has taken so far.
    pub(crate) fn server_time(&self) -> Duration {
        self.clock.server_time()
    }

    /// Holds the request's place among all requests until it ends.
    pub(crate) fn occupy(&mut self, permit: RequestPermit) {
        self.permit = Some(permit);
    }

    pub(crate) fn add_answer_bytes(&mut self, bytes: u64) {
        self.answer_bytes += bytes;
    }

    /// Whether the caller's body ended before its end.
    pub(crate) fn is_cut_short(&self) -> bool {
        self.progress.is_broken()
    }

    pub(crate) fn progress(&self) -> Arc<Progress> {
        Arc::clone(&self.progress)
    }

    /// The caller is given a part of the answer.
    pub(crate) fn give(&mut self) {
        self.wait_for(Part::Client);
        self.under_way.give();
    }

    /// The caller has taken all that it was given, and the application's next bytes are waited for.
    pub(crate) fn want_more(&mut self) {
        self.under_way.on_taken();
        self.wait_for(Part::Server);
    }

    /// The error, in words for the log.
    pub(crate) fn explain(&mut self, problem: String) {
        self.problem = Some(problem);
    }

    /// Holds the request so that it can be judged again.
    pub(crate) fn life(&self) -> &Life {
        &self.progress.life
    }

    /// The answer broke off, or says at its end that the service failed.
    pub(crate) fn fail(&mut self) {
        self.failed = true;
    }

    /// gRPC's status is in the last fields, or in the only ones.
    pub(crate) fn note_grpc(&mut self, fields: &HeaderMap) {
        let code = fields.get(grpc::STATUS).and_then(|code| code.to_str().ok()?.parse::<u8>().ok());
        // UNKNOWN, DEADLINE_EXCEEDED, INTERNAL, UNAVAILABLE, DATA_LOSS: what is 5xx elsewhere.
        self.failed |= matches!(code, Some(2 | 4 | 13 | 14 | 15));
    }

    /// The answer went out whole.
    pub(crate) fn complete(&mut self) {
        self.completed = true;
    }
}

/// Says and counts that bytes of a caller made no request.
pub(crate) fn tell_invalid(ledger: &SeriesCache, status: Option<StatusCode>, problem: &str) {
    ledger.series(&RequestLabels::default(), Ruling::Invalid).count(&Ending {
        status: status.map_or(StatusClass::None, StatusClass::from),
        success: true,
        retries: 0,
        request_bytes: 0,
        response_bytes: 0,
        took: Duration::ZERO,
    });
    tracing::info!(
        target: "isthmus::access",
        from = %ledger.parties.from,
        to = %ledger.parties.to,
        verdict = %Ruling::Invalid,
        status = status.map(|status| status.as_u16()),
        problem,
        "request"
    );
}

impl Deref for Record {
    type Target = Facts;

    fn deref(&self) -> &Facts {
        &self.0
    }
}

impl DerefMut for Record {
    fn deref_mut(&mut self) -> &mut Facts {
        &mut self.0
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if let Some(cut) = self.life().why_cut() {
            self.explain(cut.words().to_owned());
            if matches!(cut, Cut::Denied | Cut::Expired) {
                self.decide(Ruling::Deny, Decider::Words(cut.words().to_owned()));
            }
        }
        let Facts { clock, progress, .. } = &mut **self;
        let (took, parts) = clock.stop(progress);
        let (status, success) = self.count(took);
        let has_span = self.trace.is_some_and(|trace| trace.span.is_some());
        if self.said().0 == Ruling::Deny {
            self.ledger.metrics().note_refused(self.as_refused());
        }
        let watchers = self.ledger.metrics().watchers();
        watchers.tell(has_span, || self.finished(took, parts, success));
        if success && self.is_ordinary() && watchers.skips(self.id.0) {
            return;
        }
        // To the microsecond: more digits would say nothing.
        let millis = |time: Duration| (time.as_secs_f64() * 1e6).round() / 1e3;
        let (ruling, decider) = self.said();
        let (rule, origin) = decider.words();
        let known = |part: fn(&Process) -> &String| {
            self.process.as_ref().map(|it| part(it).as_str()).filter(|text| !text.is_empty())
        };
        let judged_at = self.refused_there.as_ref().and(self.host.as_ref());
        tracing::info!(
            target: "isthmus::access",
            request_id = %self.id,
            trace_id = self.trace.map(|trace| tracing::field::display(trace.id)),
            from = %self.ledger.parties.from,
            to = %self.ledger.parties.to,
            verdict = %ruling,
            rule,
            origin = origin.map(tracing::field::display),
            judged_at = judged_at.map(Name::as_str),
            source = (ruling == Ruling::Deny).then(|| tracing::field::display(self.ends[0])),
            user = known(|process| &process.user),
            unit = known(|process| &process.unit),
            program = known(|process| &process.program),
            route = self.way.route(),
            backend = self.way.backend(),
            host = self.host.as_ref().map(Name::as_str),
            tries = (self.tries > 0).then_some(self.tries),
            method = self.method.as_str(),
            path = self.path(),
            version = ?self.version,
            status,
            duration_ms = millis(took),
            client_ms = millis(parts.client),
            queue_ms = millis(parts.queue),
            connect_ms = millis(parts.connect),
            tunnel_ms = millis(parts.tunnel),
            server_ms = millis(parts.server),
            bytes = self.answer_bytes,
            request_bytes = self.progress.bytes.load(Ordering::Relaxed),
            completed = self.completed,
            problem = self.problem,
            "request"
        );
    }
}

impl Decider {
    /// Record with this mark.
    pub(crate) fn marked(policy: &Arc<Policy>, mark: &HeaderValue) -> Self {
        let mark = mark.to_str().ok().and_then(|mark| mark.parse().ok());
        let deciders = [DecidedBy::Default, DecidedBy::BuiltIn(BuiltIn::AmbiguousPath)].into_iter();
        let rules = (0..).map(RuleId).zip(policy.rules());
        let denies = rules.filter(|(_, rule)| rule.action == Action::Deny);
        let mut all = deciders.chain(denies.map(|(id, _)| DecidedBy::Rule(id)));
        match all.find(|by| Some(mark_of(policy.describe_decider(*by).name)) == mark) {
            Some(by) => Self::Rule(Arc::clone(policy), by),
            None => Self::Words("a rule that this host doesn't know".to_owned()),
        }
    }

    /// Its name, and where it was written down.
    fn words(&self) -> (&str, Option<&Origin>) {
        match self {
            Self::Nobody => ("", None),
            Self::Rule(policy, by) => {
                let Decision { name, origin } = policy.describe_decider(*by);
                (name, origin)
            }
            Self::Limit(name, origin) => (name, Some(origin)),
            Self::Words(words) => (words, None),
        }
    }
}

impl RequestId {
    /// What the caller's side calls it. Whoever dials a workload itself may say anything: an id proves nothing.
    fn told(ledger: &SeriesCache, head: &http::request::Parts) -> Option<Self> {
        if ledger.parties.side != Side::Server {
            return None;
        }
        let id = head.headers.get(REQUEST_ID)?.to_str().ok()?;
        let is_one = id.len() == 16 && id.bytes().all(|it| matches!(it, b'0'..=b'9' | b'a'..=b'f'));
        u64::from_str_radix(id, 16).ok().filter(|_| is_one).map(Self)
    }

    /// For the other side.
    pub(crate) fn header(self) -> Option<HeaderValue> {
        HeaderValue::try_from(self.to_string()).ok()
    }

    /// Unlike any before it in this process, and most likely in any other. Not a secret.
    fn next() -> Self {
        static SEED: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        static COUNT: AtomicU64 = AtomicU64::new(0);
        Self(SEED.hash_one(COUNT.fetch_add(1, Ordering::Relaxed)))
    }
}

impl std::fmt::Display for RequestId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}
