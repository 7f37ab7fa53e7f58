//! The decision. `evaluate` and `explain` both run this code, so that they can't drift apart.

use std::borrow::Cow;
use std::cell::OnceCell;

use isthmus_model::host::{canonical, split_port};
use isthmus_model::route::HostMatch;
use isthmus_model::{Action, Identity, Layer4, PathMode, RequestMatch, Rule};

use crate::condition::Names;
use crate::fields::{Readings, claim_fits, header_fits, parameter_fits};

use crate::index::{Ids, Look};
use crate::path::{Ambiguity, canonical_in};
use crate::policy::{Policy, RequestPattern, Served};
use crate::verdict::{BuiltIn, DecidedBy, Outcome, Query, Request, RuleId, Stream, Verdict};

/// Is told of every step.
pub(crate) trait Recorder {
    /// Also of rules that the index alone tells don't fit.
    const WANTS_ALL: bool;

    fn rule(&mut self, policy: &Policy, id: RuleId, fit: Fit, case: &Case<'_>);
    fn built_in(&mut self, built_in: BuiltIn);
}

/// Costs nothing.
pub(crate) struct Silent;

impl Recorder for Silent {
    const WANTS_ALL: bool = false;

    fn rule(&mut self, _: &Policy, _: RuleId, _: Fit, _: &Case<'_>) {}
    fn built_in(&mut self, _: BuiltIn) {}
}

/// A query, with what the policy knows of its destination.
#[derive(Debug)]
pub(crate) struct Case<'a> {
    pub(crate) from: Ids,
    pub(crate) to: Ids,
    pub(crate) layer4: Layer4,
    pub(crate) target: Target,
    pub(crate) traffic: Traffic<'a>,
}

/// The destination.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    /// A service.
    Service(Served),
    /// A service that the policy hasn't heard of: it has no port of its own.
    UnknownService,
    /// A host or device: it has every port.
    Machine,
}

/// What flows.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "there is one, on the stack: a box would cost each request"
)]
pub(crate) enum Traffic<'a> {
    /// What nobody looks into, or what turned out to be no HTTP.
    Plain,
    /// TLS that asks for this server.
    Tls(Option<&'a str>),
    /// What the proxy is to look into.
    Unseen(Served),
    /// This one.
    Request(Asked<'a>),
}

/// A request that is being judged.
#[derive(Debug)]
pub(crate) struct Asked<'a> {
    pub(crate) query: Query<'a>,
    pub(crate) request: Request<'a>,
    mode: PathMode,
    pub(crate) path: Result<Cow<'a, str>, Ambiguity>,
    /// In its canonical form, for the first rule that compares it; none if it has none.
    host: OnceCell<Option<Cow<'a, str>>>,
    /// Made for the first rule with a condition.
    names: OnceCell<Names>,
}

/// The first thing in which a request isn't what a match asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Lack<'a> {
    Method,
    Path,
    Host,
    Header(&'a str),
    Parameter(&'a str),
    Token,
    Claim(&'a str),
    /// It doesn't hold, or can't be told.
    Condition(Option<String>),
}

/// How a rule suits a case whose ends it relates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fit {
    /// It matches.
    Yes,
    /// It may match, depending on the request.
    Maybe,
    /// It would have to compare a path that can't be compared.
    Ambiguous(Ambiguity),
    /// It covers other ports.
    OtherPort,
    /// It covers only requests, and this is none.
    NoRequest,
    /// None of its entries matches the request.
    OtherRequest,
    /// It covers only TLS, and this is none.
    NoTls,
    /// It covers other server names.
    OtherName,
}

impl Policy {
    pub(crate) fn judge<R: Recorder>(
        &self,
        query: &Query<'_>,
        stream: Option<Stream<'_>>,
        recorder: &mut R,
    ) -> Verdict {
        let case = self.case(query, stream);
        if let Traffic::Request(asked) = &case.traffic
            && asked.is_refused()
        {
            // Not even audit lets it pass: nobody could say what was let pass.
            let decided_by = DecidedBy::BuiltIn(BuiltIn::AmbiguousPath);
            return Verdict { outcome: Outcome::Deny, decided_by, would_deny: None };
        }
        let mut would_deny = None;
        let look = if R::WANTS_ALL { Look::All } else { case.look(Action::Deny) };
        for id in self.denies.related_by(case.from, case.to, look).map(RuleId) {
            let fit = self.fit(id, &case);
            recorder.rule(self, id, fit, &case);
            let by = match fit {
                Fit::Yes => DecidedBy::Rule(id),
                Fit::Ambiguous(_) => DecidedBy::BuiltIn(BuiltIn::AmbiguousPath),
                Fit::Maybe
                | Fit::OtherPort
                | Fit::NoRequest
                | Fit::OtherRequest
                | Fit::NoTls
                | Fit::OtherName => continue,
            };
            if !self.rule(id).audit {
                return self.refuse(&case, by);
            }
            would_deny = would_deny.or(Some(by));
        }
        let (by, action) = self.permit(query, &case, recorder);
        match action {
            Action::Allow => pass(&case, by, would_deny),
            Action::Deny => self.refuse(&case, by),
        }
    }

    /// What is left to decide where no deny rule does.
    fn permit<R: Recorder>(
        &self,
        query: &Query<'_>,
        case: &Case<'_>,
        recorder: &mut R,
    ) -> (DecidedBy, Action) {
        if let Some(built_in) = built_in(query) {
            recorder.built_in(built_in);
            return (DecidedBy::BuiltIn(built_in), Action::Allow);
        }
        let mut ambiguous = false;
        let look = if R::WANTS_ALL { Look::All } else { case.look(Action::Allow) };
        for id in self.allows.related_by(case.from, case.to, look).map(RuleId) {
            let fit = self.fit(id, case);
            recorder.rule(self, id, fit, case);
            match fit {
                Fit::Yes | Fit::Maybe => return (DecidedBy::Rule(id), Action::Allow),
                Fit::Ambiguous(_) => ambiguous = true,
                Fit::OtherPort
                | Fit::NoRequest
                | Fit::OtherRequest
                | Fit::NoTls
                | Fit::OtherName => {}
            }
        }
        if ambiguous && self.default == Action::Deny {
            return (DecidedBy::BuiltIn(BuiltIn::AmbiguousPath), Action::Deny);
        }
        (DecidedBy::Default, self.default)
    }

    fn refuse(&self, case: &Case<'_>, by: DecidedBy) -> Verdict {
        if self.audits(case.to) {
            pass(case, by, Some(by))
        } else {
            Verdict { outcome: Outcome::Deny, decided_by: by, would_deny: None }
        }
    }

    pub(crate) fn case<'a>(&self, query: &Query<'a>, stream: Option<Stream<'a>>) -> Case<'a> {
        let target = match query.to {
            Identity::Service { name, .. } => {
                self.services.at(name, query.layer4).map_or(Target::UnknownService, Target::Service)
            }
            Identity::Host(_) | Identity::Device(_) => Target::Machine,
        };
        let traffic = match target {
            Target::Service(served) if served.layer4 == query.layer4 => {
                match (query.request, stream) {
                    (Some(request), _) if served.http => Traffic::Request(Asked {
                        query: *query,
                        request,
                        mode: served.paths,
                        path: canonical_in(served.paths, request.path),
                        host: OnceCell::new(),
                        names: OnceCell::new(),
                    }),
                    (_, None) if served.proxied => Traffic::Unseen(served),
                    (_, Some(Stream::Tls(name))) => Traffic::Tls(name),
                    (_, Some(Stream::Tcp) | None) => Traffic::Plain,
                }
            }
            Target::Service(_) | Target::UnknownService | Target::Machine => Traffic::Plain,
        };
        let (from, to) = (self.subjects.of(query.from), self.subjects.of(query.to));
        Case { from, to, layer4: query.layer4, target, traffic }
    }

    /// How a rule that relates the case's ends suits it.
    pub(crate) fn fit(&self, id: RuleId, case: &Case<'_>) -> Fit {
        let rule = self.rule(id);
        if !covers(rule, case) {
            return Fit::OtherPort;
        }
        if !rule.sni.is_empty() {
            return fit_name(rule, case);
        }
        let patterns = &self.requests[id.0 as usize];
        if patterns.is_empty() {
            return Fit::Yes;
        }
        match &case.traffic {
            Traffic::Plain | Traffic::Tls(_) => Fit::NoRequest,
            Traffic::Unseen(served) if !served.http => Fit::NoRequest,
            Traffic::Unseen(served)
                if served.only_http && patterns.iter().any(RequestPattern::is_open) =>
            {
                Fit::Yes
            }
            Traffic::Unseen(_) => Fit::Maybe,
            Traffic::Request(asked) => asked.fit(patterns, rule.action),
        }
    }
}

/// Whether a rule is about what the packet carries.
pub(crate) fn covers(rule: &Rule, case: &Case<'_>) -> bool {
    if !rule.ports.is_empty() {
        return rule.ports.iter().any(|port| port.matches(case.layer4));
    }
    match case.target {
        // A port beside the service's own: who may call the one needn't be meant to call the other.
        Target::Service(served) if served.extra => rule.action == Action::Deny,
        Target::Service(served) => case.layer4 == served.layer4 || case.layer4 == Layer4::Icmp,
        Target::UnknownService => false,
        Target::Machine => true,
    }
}

/// A rule about server names.
fn fit_name(rule: &Rule, case: &Case<'_>) -> Fit {
    match case.traffic {
        Traffic::Unseen(served) if served.tls => Fit::Maybe,
        Traffic::Tls(Some(name)) if rule.sni.iter().any(|wanted| wanted.fits(name)) => Fit::Yes,
        Traffic::Tls(_) => Fit::OtherName,
        Traffic::Unseen(_) | Traffic::Plain | Traffic::Request(_) => Fit::NoTls,
    }
}

impl Case<'_> {
    /// Which rules decide nothing here, whatever else they say.
    fn look(&self, action: Action) -> Look<'_> {
        match (&self.traffic, action) {
            (Traffic::Request(asked), _) => asked.path.as_deref().map_or(Look::All, Look::Path),
            // It depends on the request, which a deny rule leaves to the proxy.
            (Traffic::Plain | Traffic::Tls(_) | Traffic::Unseen(_), Action::Deny) => Look::Pathless,
            (Traffic::Plain | Traffic::Tls(_) | Traffic::Unseen(_), Action::Allow) => Look::All,
        }
    }
}

impl Asked<'_> {
    /// Whether the service takes no such path, whatever rules say. `*` is what `OPTIONS` asks about.
    fn is_refused(&self) -> bool {
        self.mode != PathMode::AsIs && self.path.is_err() && self.request.path != "*"
    }

    fn fit(&self, patterns: &[RequestPattern], action: Action) -> Fit {
        let mut fit = Fit::OtherRequest;
        for pattern in patterns {
            match self.lack(pattern, action) {
                Ok(()) => return Fit::Yes,
                Err(Ok(_)) => {}
                Err(Err(ambiguity)) => fit = Fit::Ambiguous(ambiguity),
            }
        }
        fit
    }

    /// What a pattern asks for and the request lacks; or why its path can't be compared, if that is
    /// all there is.
    pub(crate) fn lack<'p>(
        &self,
        pattern: &'p RequestPattern,
        action: Action,
    ) -> Result<(), Result<Lack<'p>, Ambiguity>> {
        if pattern
            .method
            .as_deref()
            .is_some_and(|wanted| !method_fits(wanted, self.request.method, action))
        {
            return Err(Ok(Lack::Method));
        }
        // Before the rest: it costs least.
        match (&pattern.path, &self.path) {
            (Some(wanted), Ok(path)) if !wanted.matches(path) => return Err(Ok(Lack::Path)),
            (Some(_) | None, _) => {}
        }
        let more = pattern.more.as_deref();
        if let Some(more) = more {
            self.lack_more(more, action).map_err(Ok)?;
        }
        let compares = pattern.path.is_some() || more.is_some_and(|it| it.path_regex.is_some());
        match &self.path {
            Err(ambiguity) if compares => Err(Err(*ambiguity)),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    fn host(&self) -> Option<&str> {
        let host = || match self.request.host {
            "" => Some(Cow::Borrowed("")),
            host => canonical(split_port(host).0).ok(),
        };
        self.host.get_or_init(host).as_deref()
    }

    /// Whether the host is one of these; any if there are none. Nobody knows which one it is without a
    /// canonical form.
    fn host_fits(&self, hosts: &[HostMatch], readings: Readings) -> bool {
        hosts.is_empty()
            || match self.host() {
                Some(host) => hosts.iter().any(|wanted| wanted.fits(host)),
                None => readings == Readings::Any,
            }
    }

    fn lack_more<'p>(&self, wanted: &'p RequestMatch, action: Action) -> Result<(), Lack<'p>> {
        // Method and path have been compared.
        let RequestMatch { method: _, path: _, path_regex, hosts, headers, query, jwt, when } =
            wanted;
        let readings = match action {
            Action::Allow => Readings::All,
            Action::Deny => Readings::Any,
        };
        let request = &self.request;
        if let (Some(pattern), Ok(path)) = (path_regex, &self.path)
            && !pattern.fits(path)
        {
            return Err(Lack::Path);
        }
        if !self.host_fits(hosts, readings) {
            return Err(Lack::Host);
        }
        if let Some(field) = headers.iter().find(|it| !header_fits(it, request.headers, readings)) {
            return Err(Lack::Header(&field.name));
        }
        if let Some(field) = query.iter().find(|it| !parameter_fits(it, request.query, readings)) {
            return Err(Lack::Parameter(&field.name));
        }
        if let Some(jwt) = jwt {
            let tokens = &mut request.tokens.iter();
            let token = tokens.find(|token| token.provider == jwt.provider.name);
            let claims = &token.ok_or(Lack::Token)?.claims;
            if let Some(claim) = jwt.claims.iter().find(|claim| !claim_fits(claim, claims)) {
                return Err(Lack::Claim(&claim.name));
            }
        }
        let Some(condition) = when else { return Ok(()) };
        if !request.headers.are_known() {
            let why = || Some("nobody knows the request's fields".to_owned());
            return (action == Action::Deny).then_some(()).ok_or_else(|| Lack::Condition(why()));
        }
        let path = self.path.as_deref().ok();
        let names = || Names::new(&self.query, request, path, self.host());
        let names = self.names.get_or_init(names);
        match (names.holds(condition), action) {
            (Ok(true), _) | (Err(_), Action::Deny) => Ok(()),
            (Ok(false), _) => Err(Lack::Condition(None)),
            (Err(why), Action::Allow) => Err(Lack::Condition(Some(why))),
        }
    }
}

/// Methods are told apart by case (RFC 9110, section 9.1), but there are servers that take `delete` for
/// `DELETE`.
fn method_fits(wanted: &str, method: &str, action: Action) -> bool {
    match action {
        Action::Allow => wanted == method,
        Action::Deny => wanted.eq_ignore_ascii_case(method),
    }
}

/// Lets pass: what isn't known yet is left to the proxy.
const fn pass(case: &Case<'_>, decided_by: DecidedBy, would_deny: Option<DecidedBy>) -> Verdict {
    let outcome = match case.traffic {
        Traffic::Unseen(_) => Outcome::Inspect,
        Traffic::Plain | Traffic::Tls(_) | Traffic::Request(_) => Outcome::Allow,
    };
    Verdict { outcome, decided_by, would_deny }
}

fn built_in(query: &Query<'_>) -> Option<BuiltIn> {
    match (query.from, query.to, query.layer4) {
        (Identity::Host(_), Identity::Host(_), Layer4::Icmp) => Some(BuiltIn::HostPing),
        (Identity::Device(_), Identity::Host(_), Layer4::Udp(53) | Layer4::Tcp(53)) => {
            Some(BuiltIn::DeviceDns)
        }
        (Identity::Host(_) | Identity::Service { .. } | Identity::Device(_), _, _) => None,
    }
}
