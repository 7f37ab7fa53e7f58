//! A policy, compiled.

use std::sync::Arc;

use isthmus_model::topology::Topology;
use isthmus_model::{
    Action, Application, Identity, JwtProvider, Layer4, Name, PathMode, Protocol, RequestMatch,
    Rule, Rules, ServicePort, Snapshot, Subject,
};

use crate::engine::Silent;
use crate::explain::{Explanation, Log, names};
use crate::index::{Id, Ids, Index, Map, Subjects};
use crate::path::Pattern;
use crate::verdict::{DecidedBy, Decision, Query, RuleId, Stream, Verdict};

/// A policy, ready to be asked. Immutable; shared between threads.
#[derive(Clone, Debug)]
pub struct Policy {
    pub(crate) default: Action,
    pub(crate) audit: bool,
    /// Traffic to these is audited.
    pub(crate) audited: Vec<Subject>,
    audited_ids: Vec<Id>,
    pub(crate) rules: Vec<Rule>,
    /// Of each rule, its `http` in comparable form.
    pub(crate) requests: Vec<Vec<RequestPattern>>,
    pub(crate) subjects: Subjects,
    pub(crate) denies: Index,
    pub(crate) allows: Index,
    pub(crate) services: Services,
}

/// Ports of services. Services without a port are absent; few have several.
#[derive(Clone, Debug, Default)]
pub(crate) struct Services {
    own: Map<Name, Served>,
    more: Map<Name, Vec<Served>>,
}

/// Port of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Served {
    pub(crate) layer4: Layer4,
    /// Whether requests may be seen there.
    pub(crate) http: bool,
    /// Whether everything there is HTTP.
    pub(crate) only_http: bool,
    /// Whether TLS may be seen there.
    pub(crate) tls: bool,
    /// Whether the proxy takes its connections.
    pub(crate) proxied: bool,
    pub(crate) paths: PathMode,
    /// Whether it isn't the service's own port: an allow is about it only if it names it.
    pub(crate) extra: bool,
}

/// An entry of a rule's `http`.
#[derive(Clone, Debug)]
pub(crate) struct RequestPattern {
    pub(crate) method: Option<Arc<str>>,
    pub(crate) path: Option<Pattern>,
    /// Further conditions, if any.
    pub(crate) more: Option<Box<RequestMatch>>,
}

impl RequestPattern {
    fn new(entry: &RequestMatch) -> Self {
        Self {
            method: entry.method.clone(),
            path: entry.path.as_deref().map(Pattern::new),
            more: (!entry.is_plain()).then(|| Box::new(entry.clone())),
        }
    }

    /// Whether every request matches.
    pub(crate) const fn is_open(&self) -> bool {
        self.method.is_none() && self.path.is_none() && self.more.is_none()
    }
}

impl Policy {
    /// Compiles what a host was sent.
    #[must_use]
    pub fn for_snapshot(snapshot: &Snapshot) -> Self {
        let mut services = Services::with_room_for(snapshot.services.len());
        for s in snapshot.services.values().filter(|it| it.has_port()) {
            let own = Served::new(s.port, s.protocol, s.application, s.paths);
            services.add(&s.name, own, &s.more);
        }
        Self::new(&snapshot.rules, services)
    }

    /// Compiles what operators wrote.
    #[must_use]
    pub fn for_topology(topology: &Topology) -> Self {
        let mut services = Services::with_room_for(topology.services.len());
        for (name, s) in topology.services.iter().filter(|(_, it)| it.port != 0) {
            let own = Served::new(s.port, s.protocol, s.application, s.paths);
            services.add(name, own, &s.more);
        }
        Self::new(&topology.rules, services)
    }

    pub(crate) fn new(rules: &Rules, services: Services) -> Self {
        let mut policy = Self {
            default: rules.default,
            audit: rules.audit,
            audited: rules.audited.clone(),
            audited_ids: Vec::new(),
            rules: rules.rules.clone(),
            requests: Vec::with_capacity(rules.rules.len()),
            subjects: Subjects::default(),
            denies: Index::default(),
            allows: Index::default(),
            services,
        };
        policy.audited_ids = policy.subjects.numbers(&rules.audited);
        for (position, rule) in (0..).zip(&rules.rules) {
            policy.requests.push(rule.http.iter().map(RequestPattern::new).collect());
            let index = match rule.action {
                Action::Deny => &mut policy.denies,
                Action::Allow => &mut policy.allows,
            };
            index.insert(&mut policy.subjects, position, rule);
        }
        policy.denies.finish(&policy.requests);
        policy.allows.finish(&policy.requests);
        policy
    }

    /// Decides.
    #[must_use]
    pub fn evaluate(&self, query: &Query<'_>) -> Verdict {
        self.judge(query, None, &mut Silent)
    }

    /// Decides about a connection that the proxy has looked into and found to carry no requests.
    #[must_use]
    pub fn evaluate_stream(&self, query: &Query<'_>, stream: Stream<'_>) -> Verdict {
        self.judge(query, Some(stream), &mut Silent)
    }

    /// Decides, and tells how.
    #[must_use]
    pub fn explain(&self, query: &Query<'_>) -> Explanation {
        let mut log = Log::default();
        let verdict = self.judge(query, None, &mut log);
        log.finish(self, query, verdict)
    }

    /// Whose tokens rules ask for in requests to a service. In order, each once.
    #[must_use]
    pub fn providers(&self, to: &Identity) -> Vec<Arc<JwtProvider>> {
        let asks = |rule: &&Rule| rule.http.iter().any(|entry| entry.jwt.is_some());
        let about = |rule: &&Rule| rule.to.iter().any(|subject: &Subject| names(subject, to));
        let entries = self.rules.iter().filter(asks).filter(about).flat_map(|rule| &rule.http);
        let mut found: Vec<_> = entries
            .filter_map(|entry| entry.jwt.as_ref())
            .map(|jwt| Arc::clone(&jwt.provider))
            .collect();
        found.sort();
        found.dedup();
        found
    }

    /// Whether rules look at the header fields of requests to a service, tokens aside.
    #[must_use]
    pub fn compares_fields(&self, to: &Identity) -> bool {
        let compares = |entry: &RequestMatch| !entry.headers.is_empty() || entry.when.is_some();
        let about = |rule: &Rule| rule.to.iter().any(|subject| names(subject, to));
        self.rules.iter().any(|rule| rule.http.iter().any(compares) && about(rule))
    }

    /// A rule of this policy.
    ///
    /// # Panics
    ///
    /// If the id comes from another policy that has more rules.
    #[must_use]
    pub fn rule(&self, id: RuleId) -> &Rule {
        &self.rules[position(id)]
    }

    /// All rules, in order; the position is the [`RuleId`].
    #[must_use]
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// What decided, in words. Doesn't panic on a verdict of another policy, but names the wrong
    /// rule, or none.
    #[must_use]
    pub fn describe(&self, verdict: &Verdict) -> Decision<'_> {
        self.describe_decider(verdict.decided_by)
    }

    /// A decider in words: also for [`Verdict::would_deny`].
    #[must_use]
    pub fn describe_decider(&self, by: DecidedBy) -> Decision<'_> {
        match by {
            DecidedBy::Rule(id) => self
                .rules
                .get(position(id))
                .map_or(Decision { name: "a rule of another revision", origin: None }, |rule| {
                    Decision { name: &rule.name, origin: Some(&rule.origin) }
                }),
            DecidedBy::BuiltIn(built_in) => Decision { name: built_in.name(), origin: None },
            DecidedBy::Default => Decision { name: "default", origin: None },
        }
    }

    /// Whether any traffic between the two could ever be allowed, host ping aside. Errs on the side
    /// of yes: a rule that another one overrules still relates.
    #[must_use]
    pub fn relates(&self, from: &Identity, to: &Identity) -> bool {
        let device_dns = matches!((from, to), (Identity::Device(_), Identity::Host(_)));
        let (from, to) = (self.subjects.of(from), self.subjects.of(to));
        if self.default == Action::Allow || self.audits(to) || device_dns {
            return true;
        }
        self.allows.related(from, to).next().is_some()
    }

    /// Whether what would be denied to somebody is logged only.
    pub(crate) fn audits(&self, to: Ids) -> bool {
        self.audit || to.has_any(&self.audited_ids)
    }

    /// The same policy, enforced wholly, but for rules that audit by themselves.
    pub(crate) fn enforce(&mut self) {
        self.audit = false;
        self.audited_ids.clear();
    }

    /// Ports of a service, its own first.
    pub(crate) fn served(&self, service: &Name) -> Vec<Served> {
        self.services.of(service)
    }
}

impl Services {
    fn with_room_for(services: usize) -> Self {
        let mut own = Map::default();
        own.reserve(services);
        Self { own, more: Map::default() }
    }

    /// One with its own port, and those beside it.
    pub(crate) fn add(&mut self, name: &Name, own: Served, more: &[ServicePort]) {
        self.own.insert(name.clone(), own);
        if !more.is_empty() {
            let extra = |it: &ServicePort| Served {
                extra: true,
                ..Served::new(it.port, it.protocol, it.application, own.paths)
            };
            self.more.insert(name.clone(), more.iter().map(extra).collect());
        }
    }

    /// Port of a service; its own if it doesn't offer the requested one.
    pub(crate) fn at(&self, name: &Name, layer4: Layer4) -> Option<Served> {
        let own = *self.own.get(name)?;
        if own.layer4 == layer4 || self.more.is_empty() {
            return Some(own);
        }
        let mut more = self.more.get(name).into_iter().flatten();
        Some(more.find(|it| it.layer4 == layer4).copied().unwrap_or(own))
    }

    fn of(&self, name: &Name) -> Vec<Served> {
        let more = self.more.get(name).into_iter().flatten();
        self.own.get(name).into_iter().chain(more).copied().collect()
    }
}

impl Served {
    pub(crate) const fn new(
        port: u16,
        protocol: Protocol,
        application: Application,
        paths: PathMode,
    ) -> Self {
        let layer4 = match protocol {
            Protocol::Udp => Layer4::Udp(port),
            Protocol::Tcp | Protocol::Http | Protocol::Tls | Protocol::Auto => Layer4::Tcp(port),
        };
        Self {
            layer4,
            paths,
            extra: false,
            http: protocol.carries_requests(),
            tls: protocol.carries_tls(),
            only_http: matches!(protocol, Protocol::Http),
            proxied: protocol.is_proxied(application),
        }
    }
}

const fn position(id: RuleId) -> usize {
    id.0 as usize
}
