//! Policy changes that a new topology brings for users of the mesh.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;

use isthmus_model::route::HostMatch;
use isthmus_model::topology::Topology;
use isthmus_model::{Action, Identity, Layer4, PortRule, RequestMatch, Rule, Subject};

use crate::explain::names;
use crate::policy::{Policy, Served};
use crate::verdict::RuleId;

/// More rows than this nobody reads.
const MAX_ROWS: usize = 200;
/// More pairs than this take too long to look at.
const MAX_PAIRS: usize = 500_000;
/// An access with more parts than this isn't simplified.
const MAX_PARTS: usize = 64;

/// What a new topology changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changes {
    /// The pairs that may exchange other traffic than before; at most 200.
    pub reaches: Vec<Reach>,
    /// How many more there are.
    pub more: usize,
    /// Whether all pairs that could have changed were looked at. A change of the default in a large
    /// mesh concerns too many.
    pub complete: bool,
}

/// A pair that may exchange other traffic than before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reach {
    /// Who opens flows.
    pub from: Identity,
    /// To whom.
    pub to: Identity,
    /// What it may now.
    pub before: Access,
    /// What it may then.
    pub after: Access,
}

/// What one identity may send to another; what is built in aside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// What may pass: `tcp/8080`, `icmp`, `GET /accounts/*`, `everything`.
    pub allowed: Vec<String>,
    /// What may not, of that.
    pub except: Vec<String>,
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.allowed.is_empty() {
            return f.write_str("nothing");
        }
        f.write_str(&self.allowed.join(", "))?;
        if self.except.is_empty() {
            Ok(())
        } else {
            write!(f, " except {}", self.except.join(", "))
        }
    }
}

/// Compares two topologies pair by pair, over the identities that either declares.
#[must_use]
pub fn changes(old: &Topology, new: &Topology) -> Changes {
    let (old, new) = (World::new(old), World::new(new));
    let (pairs, complete) = candidates(&old, &new);
    let mut changes = Changes { reaches: Vec::new(), more: 0, complete };
    for (from, to) in pairs {
        let (before, after) = (old.access(from, to), new.access(from, to));
        if before == after {
            continue;
        }
        if changes.reaches.len() == MAX_ROWS {
            changes.more += 1;
            continue;
        }
        let latest = |key| new.members.get(key).or_else(|| old.members.get(key));
        if let (Some(from), Some(to)) = (latest(from), latest(to)) {
            let (from, to) = (from.identity.clone(), to.identity.clone());
            changes.reaches.push(Reach { from, to, before, after });
        }
    }
    changes
}

/// A topology, as far as this comparison goes.
struct World {
    policy: Policy,
    /// By what rules call them, so that a service that changes its namespace remains itself.
    members: BTreeMap<Subject, Member>,
}

#[derive(Clone, PartialEq, Eq)]
struct Member {
    identity: Identity,
    /// What it offers, if it is a service.
    served: Option<Vec<Served>>,
}

impl World {
    fn new(topology: &Topology) -> Self {
        let policy = Policy::for_topology(topology);
        let services = topology.services.iter().map(|(name, service)| {
            let (namespace, name) = (service.namespace.clone(), name.clone());
            let served = Some(policy.served(&name));
            let key = Subject::Service(name.clone());
            (key, Member { identity: Identity::Service { namespace, name }, served })
        });
        let machine = |identity| Member { identity, served: None };
        let hosts = topology.hosts.keys().cloned();
        let hosts = hosts.map(|name| (Subject::Host(name.clone()), machine(Identity::Host(name))));
        let devices = topology.devices.keys().cloned();
        let devices =
            devices.map(|name| (Subject::Device(name.clone()), machine(Identity::Device(name))));
        let members = services.chain(hosts).chain(devices).collect();
        Self { policy, members }
    }

    fn access(&self, from: &Subject, to: &Subject) -> Access {
        let (Some(from), Some(to)) = (self.members.get(from), self.members.get(to)) else {
            return Access::default();
        };
        let mut allowed = Vec::new();
        let served = to.served.as_deref();
        let subjects = &self.policy.subjects;
        let (from, to) = (subjects.of(&from.identity), subjects.of(&to.identity));
        let audits = self.policy.audits(to);
        if audits || self.policy.default == Action::Allow {
            allowed.push(Part::EVERYTHING);
        }
        for id in self.policy.allows.related(from, to).map(RuleId) {
            Part::add(&mut allowed, self.policy.rule(id), served);
        }
        let mut denied = Vec::new();
        let denies = self.policy.denies.related(from, to).map(RuleId);
        for rule in denies.map(|id| self.policy.rule(id)) {
            if !audits && !rule.audit {
                Part::add(&mut denied, rule, served);
            }
        }
        describe(allowed, denied)
    }
}

/// The pairs whose access could differ: those that a changed rule relates, and those that involve a
/// changed identity. False if there are too many of them. The order of rules doesn't matter here.
fn candidates<'a>(old: &'a World, new: &'a World) -> (BTreeSet<(&'a Subject, &'a Subject)>, bool) {
    let (a, b) = (&old.policy, &new.policy);
    let mut all: BTreeMap<&Subject, &Member> = old.members.iter().collect();
    all.extend(&new.members);
    let everyone: Vec<&Subject> = all.keys().copied().collect();
    let mut pairs = Pairs::default();
    if (a.default, a.audit, &a.audited) != (b.default, b.audit, &b.audited) {
        pairs.insert(&everyone, &everyone);
        return (pairs.pairs, !pairs.full);
    }
    let is_moved = |key: &&Subject| old.members.get(*key) != new.members.get(*key);
    let moved: Vec<&Subject> = everyone.iter().copied().filter(is_moved).collect();
    pairs.insert(&moved, &everyone);
    pairs.insert(&everyone, &moved);
    for rule in changed_rules(a.rules(), b.rules()) {
        let named = |subjects: &[Subject]| -> Vec<&Subject> {
            let is_named = |member: &Member| subjects.iter().any(|s| names(s, &member.identity));
            all.iter().filter(|(_, member)| is_named(member)).map(|(key, _)| *key).collect()
        };
        pairs.insert(&named(&rule.from), &named(&rule.to));
    }
    (pairs.pairs, !pairs.full)
}

/// A bounded set of pairs.
#[derive(Default)]
struct Pairs<'a> {
    pairs: BTreeSet<(&'a Subject, &'a Subject)>,
    full: bool,
}

impl<'a> Pairs<'a> {
    fn insert(&mut self, froms: &[&'a Subject], tos: &[&'a Subject]) {
        for from in froms {
            for to in tos {
                self.full = self.full || self.pairs.len() == MAX_PAIRS;
                if self.full {
                    return;
                }
                self.pairs.insert((from, to));
            }
        }
    }
}

/// The rules that only one of the two has, whatever their names and places.
fn changed_rules<'a>(old: &'a [Rule], new: &'a [Rule]) -> impl Iterator<Item = &'a Rule> {
    let contents = |rules: &'a [Rule]| rules.iter().map(content).collect::<HashSet<_>>();
    let (had, has) = (contents(old), contents(new));
    let gone = old.iter().filter(move |rule| !has.contains(&content(rule)));
    gone.chain(new.iter().filter(move |rule| !had.contains(&content(rule))))
}

type Content<'a> =
    ((Action, bool), &'a [Subject], &'a [Subject], &'a [PortRule], Vec<String>, &'a [HostMatch]);

fn content(rule: &Rule) -> Content<'_> {
    // Whose tokens, and by which keys, is part of it.
    let http = rule.http.iter().map(|entry| format!("{entry} {:?}", entry.jwt));
    ((rule.action, rule.audit), &rule.from, &rule.to, &rule.ports, http.collect(), &rule.sni)
}

/// A part of what may pass. None: every port, every request.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Part {
    port: Option<PortRule>,
    request: Option<String>,
}

impl Part {
    const EVERYTHING: Self = Self { port: None, request: None };

    /// Adds what a rule covers towards a destination.
    fn add(parts: &mut Vec<Self>, rule: &Rule, served: Option<&[Served]>) {
        let covered = |served: &&Served| match rule.ports.as_slice() {
            [] => !served.extra || rule.action == Action::Deny,
            ports => ports.iter().any(|port| port.matches(served.layer4)),
        };
        let offered = served.unwrap_or_default();
        if !rule.http.is_empty() {
            for served in offered.iter().filter(|it| it.http).filter(covered) {
                let request = |entry| Self { port: own(*served), request: Some(request(entry)) };
                parts.extend(rule.http.iter().map(request));
            }
            return;
        }
        if !rule.sni.is_empty() {
            for served in offered.iter().filter(|it| it.tls).filter(covered) {
                let named =
                    |name| Self { port: own(*served), request: Some(format!("TLS to {name}")) };
                parts.extend(rule.sni.iter().map(named));
            }
            return;
        }
        let port = |port| Self { port: Some(port), request: None };
        match served {
            _ if !rule.ports.is_empty() => parts.extend(rule.ports.iter().copied().map(port)),
            // Nothing, of a service without any port.
            Some(offered) => {
                let own = |served: &Served| Self { port: own(*served), request: None };
                parts.extend(offered.iter().filter(covered).map(own));
                parts.extend((!offered.is_empty()).then(|| port(PortRule::Icmp)));
            }
            None => parts.push(Self::EVERYTHING),
        }
    }

    fn includes(&self, other: &Self) -> bool {
        let port = match (self.port, other.port) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(PortRule::Tcp(a, b)), Some(PortRule::Tcp(c, d)))
            | (Some(PortRule::Udp(a, b)), Some(PortRule::Udp(c, d))) => a <= c && d <= b,
            (Some(one), Some(other)) => one == other,
        };
        port && (self.request.is_none() || self.request == other.request)
    }

    fn meets(&self, other: &Self) -> bool {
        match (self.port, other.port) {
            (None, _) | (_, None) => true,
            (Some(PortRule::Tcp(a, b)), Some(PortRule::Tcp(c, d)))
            | (Some(PortRule::Udp(a, b)), Some(PortRule::Udp(c, d))) => a <= d && c <= b,
            (Some(one), Some(other)) => one == other,
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.request, self.port) {
            (Some(request), _) => f.write_str(request),
            (None, Some(port)) => port.fmt(f),
            (None, None) => f.write_str("everything"),
        }
    }
}

fn own(served: Served) -> Option<PortRule> {
    match served.layer4 {
        Layer4::Tcp(port) => Some(PortRule::Tcp(port, port)),
        Layer4::Udp(port) => Some(PortRule::Udp(port, port)),
        Layer4::Icmp => Some(PortRule::Icmp),
        Layer4::Other(_) => None,
    }
}

fn request(entry: &RequestMatch) -> String {
    if !entry.is_plain() {
        return entry.to_string();
    }
    match (entry.method.as_deref(), entry.path.as_deref()) {
        (Some(method), Some(path)) => format!("{method} {path}"),
        (Some(method), None) => format!("{method} requests"),
        (None, Some(path)) => format!("requests to {path}"),
        (None, None) => "requests".to_owned(),
    }
}

fn describe(allowed: Vec<Part>, denied: Vec<Part>) -> Access {
    let (mut allowed, mut denied) = (simplify(allowed), simplify(denied));
    if allowed.len().saturating_mul(denied.len()) <= MAX_PARTS * MAX_PARTS {
        allowed.retain(|part| !denied.iter().any(|other| other.includes(part)));
        denied.retain(|part| allowed.iter().any(|other| other.meets(part)));
    }
    let words = |parts: Vec<Part>| parts.iter().map(ToString::to_string).collect();
    Access { allowed: words(allowed), except: words(denied) }
}

/// Sorts, and drops what another part includes.
fn simplify(mut parts: Vec<Part>) -> Vec<Part> {
    parts.sort();
    parts.dedup();
    if parts.len() > MAX_PARTS {
        return parts;
    }
    let needed = |part: &&Part| !parts.iter().any(|other| other != *part && other.includes(part));
    parts.iter().filter(needed).cloned().collect()
}
