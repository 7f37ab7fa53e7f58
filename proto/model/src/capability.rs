//! Capabilities of agents, and the snapshot that an older agent gets.
//!
//! An agent drops fields that it doesn't know. Of a rule that allows, that would make a wider one: so
//! such a rule isn't sent to it, nor such an entry of its `http`. Of a rule that denies it makes one
//! that denies more, which is safe: that is what the agent is sent. A service, route or limit that it
//! couldn't work by as it is meant isn't sent either. Whatever is left out or changed is said, as a
//! [`Lack`].
//!
//! Agents say what they understand when they connect. Those from before there was such a list say
//! nothing, and understand [`Capabilities::FIRST`].

use std::collections::BTreeSet;
use std::fmt;

use crate::edge::Edge;
use crate::guard::{Exposure, ListenerCheck, PortGuard};
use crate::identity::HostId;
use crate::name::Name;
use crate::route::RouteMatch;
use crate::rules::{Action, RequestMatch, Rule};
use crate::snapshot::{Protocol, Selector, Service, Snapshot};

/// Something that topologies can say, and that there may be agents which don't understand it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Capability {
    /// Requests by an expression for the path.
    PathRegex,
    /// Requests by `host`.
    Host,
    /// Requests by `header`.
    Header,
    /// Requests by `query`.
    Query,
    /// Requests by `jwt`.
    Jwt,
    /// Requests by `when`.
    When,
    /// TLS by `sni`.
    Sni,
    /// A deny with `audit`.
    Audit,
    /// `protocol = "tls"`
    Tls,
    /// `protocol = "auto"`
    Auto,
    /// `[[route.NAME]]`
    Route,
    /// `[ratelimit.NAME]`
    RateLimit,
    /// `[gateway.NAME]`
    Gateway,
    /// `[external.NAME]`
    External,
    /// `exposure` of a service
    Exposure,
    /// `listener` of a service
    Listener,
    /// `listen` of a service
    Listen,
    /// A service without `port`
    NoPort,
    /// `source` of a service
    Source,
    /// `ports` of a service
    Ports,
    /// `audit` of some only
    AuditScope,
    /// `container` of a `workload`
    Container,
    /// A tunnel key that changes, beside the one before
    KeyRotation,
}

impl Capability {
    /// All that this version knows.
    pub const ALL: [Self; 23] = [
        Self::PathRegex,
        Self::Host,
        Self::Header,
        Self::Query,
        Self::Jwt,
        Self::When,
        Self::Sni,
        Self::Audit,
        Self::Tls,
        Self::Auto,
        Self::Route,
        Self::RateLimit,
        Self::Gateway,
        Self::External,
        Self::Exposure,
        Self::Listener,
        Self::Listen,
        Self::NoPort,
        Self::Source,
        Self::Ports,
        Self::AuditScope,
        Self::Container,
        Self::KeyRotation,
    ];

    /// As agents say it, and topologies write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::PathRegex => "path-regex",
            Self::Host => "host",
            Self::Header => "header",
            Self::Query => "query",
            Self::Jwt => "jwt",
            Self::When => "when",
            Self::Sni => "sni",
            Self::Audit => "audit",
            Self::Tls => "tls",
            Self::Auto => "auto",
            Self::Route => "route",
            Self::RateLimit => "ratelimit",
            Self::Gateway => "gateway",
            Self::External => "external",
            Self::Exposure => "exposure",
            Self::Listener => "listener",
            Self::Listen => "listen",
            Self::NoPort => "no-port",
            Self::Source => "source",
            Self::Ports => "ports",
            Self::AuditScope => "audit-scope",
            Self::Container => "container",
            Self::KeyRotation => "key-rotation",
        }
    }
}

/// Features that an agent understands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities(u64);

impl Capabilities {
    /// Features of agents that don't state any.
    pub const FIRST: Self = Self((1 << (Capability::External as u8 + 1)) - 1);

    /// Nothing beyond names, addresses, ports, methods and paths.
    pub const NONE: Self = Self(0);

    /// Those of an agent that says these names; names of newer versions say nothing to this one.
    #[must_use]
    pub fn from_names<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let known = |name| Capability::ALL.into_iter().find(|it| it.name() == name);
        Self(names.into_iter().filter_map(known).fold(0, |set, one| set | one.bit()))
    }

    /// Whether this is among them.
    #[must_use]
    pub const fn has(self, one: Capability) -> bool {
        self.0 & one.bit() != 0
    }
}

impl Capability {
    const fn bit(self) -> u64 {
        1 << (self as u8)
    }
}

/// A feature that an agent lacks, with the substitute.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lack {
    /// `rule "web reads"`, `service "web"`.
    pub what: String,
    /// The feature that the agent doesn't understand.
    pub capability: Capability,
    /// Its substitute.
    pub effect: Effect,
}

/// Substitute for something that an agent doesn't understand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effect {
    /// It isn't sent.
    Withheld,
    /// It denies more than it says.
    Wider,
    /// The host goes on without it.
    Ignored,
    /// Its application isn't found.
    NotReached,
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, capability, effect } = self;
        let effect = match effect {
            Effect::Withheld => "isn't in force, or not wholly",
            Effect::Wider => "denies more than it says",
            Effect::Ignored => "isn't guarded as it says",
            Effect::NotReached => "can't be reached",
        };
        write!(f, "{what} {effect} here: the agent doesn't understand `{}`", capability.name())
    }
}

/// The snapshot as an agent with these capabilities can work by it, and what is different in it.
#[must_use]
pub fn fit(mut snapshot: Snapshot, has: Capabilities) -> (Snapshot, Vec<Lack>) {
    if Capability::ALL.into_iter().all(|one| has.has(one)) {
        return (snapshot, Vec::new());
    }
    let rules = std::mem::take(&mut snapshot.rules.rules);
    let (rules, lacks) = fit_rules(rules, has);
    snapshot.rules.rules = rules;
    let mut fitting = Fitting { has, lacks: lacks.into_iter().collect() };
    let scoped = !snapshot.rules.audited.is_empty();
    if !fitting.understands("policy", Effect::Wider, &[(scoped, Capability::AuditScope)]) {
        snapshot.rules.audited.clear();
    }
    let local = snapshot.local;
    snapshot.services.retain(|_, service| {
        fitting.guard(local, service);
        fitting.workload(&service.name, &mut service.selectors);
        fitting.listen(local, service);
        fitting.service(local, service)
    });
    let known: BTreeSet<&Name> = snapshot.services.values().map(|it| &it.name).collect();
    snapshot.routes.retain(|route| {
        fitting.matching("route", &route.name, Capability::Route, &route.matches)
            && route.services().all(|name| known.contains(name))
    });
    snapshot.limits.retain(|limit| {
        fitting.matching("limit", limit.name.as_str(), Capability::RateLimit, &limit.matches)
            && known.contains(&limit.service)
    });
    (snapshot, fitting.lacks.into_iter().collect())
}

/// The same for rules alone.
#[must_use]
pub fn fit_rules(rules: Vec<Rule>, has: Capabilities) -> (Vec<Rule>, Vec<Lack>) {
    let mut fitting = Fitting { has, lacks: BTreeSet::new() };
    let rules = rules.into_iter().filter_map(|rule| fitting.rule(rule)).collect();
    (rules, fitting.lacks.into_iter().collect())
}

/// Features that an agent needs in order to run a snapshot as intended.
#[must_use]
pub fn needed(snapshot: &Snapshot) -> BTreeSet<Capability> {
    let (_, lacks) = fit(snapshot.clone(), Capabilities::NONE);
    lacks.into_iter().map(|lack| lack.capability).collect()
}

struct Fitting {
    has: Capabilities,
    lacks: BTreeSet<Lack>,
}

impl Fitting {
    /// Whether the agent has all that is needed; notes what it lacks.
    fn understands(&mut self, what: &str, effect: Effect, needed: &[(bool, Capability)]) -> bool {
        let has = self.has;
        let lacking = needed.iter().filter(|(needed, one)| *needed && !has.has(*one));
        let noted: Vec<Lack> = lacking
            .map(|(_, capability)| Lack { what: what.to_owned(), capability: *capability, effect })
            .collect();
        let whole = noted.is_empty();
        self.lacks.extend(noted);
        whole
    }

    /// How a port is guarded matters where the service has a workload.
    fn guard(&mut self, local: HostId, service: &mut Service) {
        let PortGuard { exposure, listener } = service.guard;
        let here = service.placements.contains_key(&local);
        let closes = here && exposure == Exposure::Mesh;
        let checks = here && listener != ListenerCheck::default();
        let needed = [(closes, Capability::Exposure), (checks, Capability::Listener)];
        let what = format!("service {:?}", service.name.as_str());
        if !self.understands(&what, Effect::Ignored, &needed) {
            service.guard = PortGuard {
                exposure: if self.has.has(Capability::Exposure) {
                    exposure
                } else {
                    Exposure::Open
                },
                listener: if self.has.has(Capability::Listener) {
                    listener
                } else {
                    ListenerCheck::default()
                },
            };
        }
    }

    /// Where an application listens matters to its own host alone.
    fn listen(&mut self, local: HostId, service: &mut Service) {
        let here = service.placements.contains_key(&local);
        let needed = [(
            here && service.at_each_port().any(|it| it.application.listen.is_some()),
            Capability::Listen,
        )];
        let what = format!("service {:?}", service.name.as_str());
        if !self.understands(&what, Effect::NotReached, &needed) {
            service.application.listen = None;
            service.more.iter_mut().for_each(|it| it.application.listen = None);
        }
    }

    /// Of a service that has no selector left, nobody asks whose the socket is that answers for it: so
    /// it keeps one.
    fn workload(&mut self, name: &Name, selectors: &mut Vec<Selector>) {
        let is_container = |it: &Selector| matches!(it, Selector::Container(_));
        let needed = [(selectors.iter().any(is_container), Capability::Container)];
        let what = format!("workload of service {:?}", name.as_str());
        if !self.understands(&what, Effect::Withheld, &needed) {
            *selectors = vec![Selector::nobody()];
        }
    }

    /// An application's own rules are about its callers: it had better have none than others'.
    fn service(&mut self, local: HostId, service: &Service) -> bool {
        let here = service.placements.contains_key(&local);
        let needed = [
            (here && service.at_each_port().any(|it| it.shows_callers()), Capability::Source),
            (!service.more.is_empty(), Capability::Ports),
            (!service.has_port(), Capability::NoPort),
            (service.protocol == Protocol::Tls, Capability::Tls),
            (service.protocol == Protocol::Auto, Capability::Auto),
            (matches!(service.edge, Some(Edge::Gateway(_))), Capability::Gateway),
            (matches!(service.edge, Some(Edge::External(_))), Capability::External),
        ];
        let what = format!("service {:?}", service.name.as_str());
        self.understands(&what, Effect::Withheld, &needed)
    }

    /// A route or a limit.
    fn matching(
        &mut self,
        kind: &str,
        name: &str,
        itself: Capability,
        matches: &[RouteMatch],
    ) -> bool {
        let by_server = matches.iter().any(|entry| !entry.sni.is_empty());
        let needed = [(true, itself), (by_server, Capability::Sni)];
        self.understands(&format!("{kind} {name:?}"), Effect::Withheld, &needed)
    }

    fn rule(&mut self, rule: Rule) -> Option<Rule> {
        // Every field is named here, so that a new one can't be forgotten.
        let Rule { name, action, from, to, ports, http, sni, audit, origin } = rule;
        let what = format!("rule {name:?}");
        let effect = effect(action);
        let entries = http.len();
        let http: Vec<RequestMatch> =
            http.into_iter().filter_map(|entry| self.entry(&what, action, entry)).collect();
        let knows_sni = self.understands(&what, effect, &[(!sni.is_empty(), Capability::Sni)]);
        // An empty list asks for nothing: that is what such a rule would become.
        if action == Action::Allow && (!knows_sni || (entries > 0 && http.is_empty())) {
            return None;
        }
        // Nor may a deny keep its `http` alone: then it would be about requests only.
        let (http, sni) = if knows_sni { (http, sni) } else { (Vec::new(), Vec::new()) };
        let audit = self.understands(&what, Effect::Wider, &[(audit, Capability::Audit)]) && audit;
        Some(Rule { name, action, from, to, ports, http, sni, audit, origin })
    }

    /// An entry of `http`: of an allow as it is or not at all, of a deny without what it lacks.
    fn entry(&mut self, what: &str, action: Action, entry: RequestMatch) -> Option<RequestMatch> {
        let RequestMatch { method, path, path_regex, hosts, headers, query, jwt, when } = &entry;
        let needed = [
            (path_regex.is_some(), Capability::PathRegex),
            (!hosts.is_empty(), Capability::Host),
            (!headers.is_empty(), Capability::Header),
            (!query.is_empty(), Capability::Query),
            (jwt.is_some(), Capability::Jwt),
            (when.is_some(), Capability::When),
        ];
        if self.understands(what, effect(action), &needed) {
            return Some(entry);
        }
        if action == Action::Allow {
            return None;
        }
        let has = self.has;
        let kept = |one, list: &Vec<_>| if has.has(one) { list.clone() } else { Vec::new() };
        Some(RequestMatch {
            method: method.clone(),
            path: path.clone(),
            path_regex: path_regex.clone().filter(|_| has.has(Capability::PathRegex)),
            hosts: if has.has(Capability::Host) { hosts.clone() } else { Vec::new() },
            headers: kept(Capability::Header, headers),
            query: kept(Capability::Query, query),
            jwt: jwt.clone().filter(|_| has.has(Capability::Jwt)),
            when: when.clone().filter(|_| has.has(Capability::When)),
        })
    }
}

const fn effect(action: Action) -> Effect {
    match action {
        Action::Allow => Effect::Withheld,
        Action::Deny => Effect::Wider,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::ContainerMatch;

    #[test]
    fn names_are_read_back_and_unknown_ones_say_nothing() {
        let names = Capability::ALL.map(Capability::name);
        let all = Capabilities::from_names(names);
        assert!(Capability::ALL.into_iter().all(|one| all.has(one)));
        let some = Capabilities::from_names(["sni", "teleport"]);
        assert!(some.has(Capability::Sni) && !some.has(Capability::Jwt));
        let distinct: BTreeSet<&str> = names.into_iter().collect();
        assert_eq!(distinct.len(), names.len());
    }

    #[test]
    fn a_container_is_nobody_to_an_agent_that_knows_none() {
        let name: Name = "web".parse().unwrap();
        let container = ContainerMatch { name: Some("web".into()), ..ContainerMatch::default() };
        let meant = vec![Selector::User("33".into()), Selector::Container(container)];
        let fitted = |has| {
            let mut fitting = Fitting { has, lacks: BTreeSet::new() };
            let mut selectors = meant.clone();
            fitting.workload(&name, &mut selectors);
            (selectors, fitting)
        };
        let (same, knows) = fitted(Capabilities::from_names(["container"]));
        assert_eq!((&same, knows.lacks.len()), (&meant, 0));

        let (nobodys, older) = fitted(Capabilities::FIRST);
        assert_eq!(nobodys, [Selector::nobody()], "never a user's alone");
        let said: Vec<String> = older.lacks.iter().map(ToString::to_string).collect();
        assert!(said[0].contains("doesn't understand `container`"), "{said:?}");
    }

    #[test]
    fn agents_that_say_nothing_understand_what_there_was_before() {
        for one in Capability::ALL {
            assert_eq!(Capabilities::FIRST.has(one), one <= Capability::External, "{one:?}");
        }
    }
}
