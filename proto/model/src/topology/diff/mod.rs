//! Difference of two topologies, in an operator's words.

mod ratelimits;
mod rollouts;
mod routes;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::application::Application;
use crate::balance::Balance;
use crate::name::Name;
use crate::ratelimit::RateLimit;
use crate::route::Route;
use crate::rules::{Action, Rule};
use crate::snapshot::{Selector, ServicePort};
use crate::topology::decl::{
    DeviceDecl, HostDecl, MeshDecl, Placement, RolloutDecl, ServiceDecl, TestDecl, Topology,
};

/// One difference. Shown as `+ service web`, `~ service web: port 80 -> 8080`, `- host app-3`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What happened to it.
    pub kind: ChangeKind,
    /// What is different, such as `service web`.
    pub subject: String,
    /// How, such as `port 80 -> 8080`; empty where it is all there or all gone.
    pub detail: String,
}

/// What happened to something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// It is new.
    Added,
    /// It says something else.
    Changed,
    /// It is gone.
    Removed,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = match self.kind {
            ChangeKind::Added => '+',
            ChangeKind::Changed => '~',
            ChangeKind::Removed => '-',
        };
        write!(f, "{sign} {}", self.subject)?;
        if self.detail.is_empty() { Ok(()) } else { write!(f, ": {}", self.detail) }
    }
}

/// What `new` says and `old` doesn't, and the other way round. Where things stand in the files makes
/// no difference, but the order of the rules does. Without an old topology everything is new.
#[must_use]
pub fn diff(old: Option<&Topology>, new: &Topology) -> Vec<Change> {
    let nothing = Topology::default();
    let old = old.unwrap_or(&nothing);
    let mut changes = Changes::default();
    changes.changed("mesh", mesh(&old.mesh, &new.mesh));
    changes.tables(|_| "host", &old.hosts, &new.hosts, host);
    changes.tables(ServiceDecl::kind, &old.services, &new.services, service);
    changes.tables(|_| "device", &old.devices, &new.devices, device);
    let mut policy = Details::default();
    policy.note("default", action(old.rules.default), action(new.rules.default));
    policy.note("audit", old.rules.audit_words(), new.rules.audit_words());
    changes.changed("policy", policy);
    changes.rules(&old.rules.rules, &new.rules.rules);
    changes.routes(&old.routes, &new.routes);
    changes.tables(|_| "rollout", &old.rollouts, &new.rollouts, rollout);
    changes.tables(|_| "ratelimit", &old.ratelimits, &new.ratelimits, limit);
    changes.tests(&old.tests, &new.tests);
    changes.list
}

impl Topology {
    /// Whether two topologies say the same, wherever in the files they say it. The order of the
    /// rules counts.
    #[must_use]
    pub fn same_meaning(&self, other: &Self) -> bool {
        diff(Some(self), other).is_empty()
    }
}

#[derive(Default)]
struct Changes {
    list: Vec<Change>,
}

impl Changes {
    fn push(&mut self, kind: ChangeKind, subject: String, detail: String) {
        self.list.push(Change { kind, subject, detail });
    }

    fn changed(&mut self, subject: impl Into<String>, details: Details) {
        if !details.0.is_empty() {
            self.push(ChangeKind::Changed, subject.into(), details.0.join("; "));
        }
    }

    fn tables<D>(
        &mut self,
        kind: impl Fn(&D) -> &'static str,
        old: &BTreeMap<Name, D>,
        new: &BTreeMap<Name, D>,
        differences: impl Fn(&D, &D) -> Details,
    ) {
        for (name, decl) in new {
            match old.get(name) {
                Some(old) => self.changed(format!("{} {name}", kind(decl)), differences(old, decl)),
                None => {
                    self.push(ChangeKind::Added, format!("{} {name}", kind(decl)), String::new())
                }
            }
        }
        for (name, decl) in old.iter().filter(|(name, _)| !new.contains_key(*name)) {
            self.push(ChangeKind::Removed, format!("{} {name}", kind(decl)), String::new());
        }
    }

    fn rules(&mut self, old: &[Rule], new: &[Rule]) {
        let before: HashMap<&Arc<str>, &Rule> = old.iter().map(|rule| (&rule.name, rule)).collect();
        let after: HashMap<&Arc<str>, &Rule> = new.iter().map(|rule| (&rule.name, rule)).collect();
        for new in new {
            let subject = format!("rule {}", new.name);
            match before.get(&new.name) {
                Some(old) => self.changed(subject, rule(old, new)),
                None => self.push(ChangeKind::Added, subject, String::new()),
            }
        }
        for old in old.iter().filter(|rule| !after.contains_key(&rule.name)) {
            self.push(ChangeKind::Removed, format!("rule {}", old.name), String::new());
        }
        let kept_before = old.iter().filter(|rule| after.contains_key(&rule.name));
        let kept_after = new.iter().filter(|rule| before.contains_key(&rule.name));
        let moved = kept_before.zip(kept_after).find(|(old, new)| old.name != new.name);
        if let Some((old, new)) = moved {
            let detail = format!("order: {:?} now comes before {:?}", &*new.name, &*old.name);
            self.push(ChangeKind::Changed, "rules".to_owned(), detail);
        }
    }

    fn routes(&mut self, old: &[Route], new: &[Route]) {
        let before: HashMap<_, _> = old.iter().map(|route| (&route.name, route)).collect();
        let after: HashMap<_, _> = new.iter().map(|route| (&route.name, route)).collect();
        for new in new {
            let subject = format!("route {}", new.name);
            match before.get(&new.name) {
                Some(old) => self.changed(subject, route(old, new)),
                None => self.push(ChangeKind::Added, subject, routes::summary(new)),
            }
        }
        for old in old.iter().filter(|route| !after.contains_key(&route.name)) {
            self.push(ChangeKind::Removed, format!("route {}", old.name), String::new());
        }
        let kept_before = old.iter().filter(|route| after.contains_key(&route.name));
        let kept_after = new.iter().filter(|route| before.contains_key(&route.name));
        let moved = kept_before.zip(kept_after).find(|(old, new)| old.name != new.name);
        if let Some((old, new)) = moved {
            let detail = format!("order: {:?} now comes before {:?}", &*new.name, &*old.name);
            self.push(ChangeKind::Changed, "routes".to_owned(), detail);
        }
    }

    fn tests(&mut self, old: &[TestDecl], new: &[TestDecl]) {
        fn named(tests: &[TestDecl]) -> BTreeMap<&Arc<str>, &TestDecl> {
            tests.iter().map(|test| (&test.name, test)).collect()
        }
        let (before, after) = (named(old), named(new));
        for (name, new) in &after {
            match before.get(name) {
                Some(old) => self.changed(format!("test {name}"), test(old, new)),
                None => self.push(ChangeKind::Added, format!("test {name}"), String::new()),
            }
        }
        for name in before.keys().filter(|name| !after.contains_key(*name)) {
            self.push(ChangeKind::Removed, format!("test {name}"), String::new());
        }
    }
}

/// Differences within one table.
#[derive(Default)]
struct Details(Vec<String>);

impl Details {
    fn note(&mut self, key: &str, old: impl fmt::Display, new: impl fmt::Display) {
        let (old, new) = (old.to_string(), new.to_string());
        if old != new {
            self.0.push(format!("{key} {old} -> {new}"));
        }
    }

    fn note_optional<T: fmt::Display>(&mut self, key: &str, old: Option<&T>, new: Option<&T>) {
        let show = |value: Option<&T>| value.map_or_else(|| "none".to_owned(), T::to_string);
        self.note(key, show(old), show(new));
    }

    fn note_list<T: PartialEq>(
        &mut self,
        key: &str,
        old: &[T],
        new: &[T],
        show: impl Fn(&T) -> String,
    ) {
        if old != new {
            self.0.push(format!("{key} {} -> {}", list(old, &show), list(new, &show)));
        }
    }
}

// Each declaration is taken apart, so that a new field can't be forgotten here.

fn mesh(old: &MeshDecl, new: &MeshDecl) -> Details {
    let MeshDecl { name, trust_domain, ipv4, virtual_ipv4, host_block, exposure } = old;
    let mut details = Details::default();
    details.note_optional("name", name.as_ref(), new.name.as_ref());
    details.note_optional("trust_domain", trust_domain.as_ref(), new.trust_domain.as_ref());
    details.note("ipv4", ipv4, new.ipv4);
    details.note("virtual_ipv4", virtual_ipv4, new.virtual_ipv4);
    details.note("host_block", host_block, new.host_block);
    details.note_optional("exposure", exposure.as_ref(), new.exposure.as_ref());
    details
}

fn host(old: &HostDecl, new: &HostDecl) -> Details {
    let HostDecl { site, labels, endpoints, ipv4_block, origin: _ } = old;
    let mut details = Details::default();
    details.note_optional("site", site.as_ref(), new.site.as_ref());
    details.note("labels", show_labels(labels), show_labels(&new.labels));
    details.note_list("endpoints", endpoints, &new.endpoints, ToString::to_string);
    details.note_optional("ipv4_block", ipv4_block.as_ref(), new.ipv4_block.as_ref());
    details
}

fn service(old: &ServiceDecl, new: &ServiceDecl) -> Details {
    let ServiceDecl {
        namespace,
        port,
        protocol,
        more,
        hosts,
        selectors,
        balance,
        application,
        edge,
        paths,
        exposure,
        listener,
        aliases,
        origin: _,
    } = old;
    let Application { proxy_protocol, http, trailers, listen, source } = application;
    let Balance {
        policy,
        weights,
        locality,
        slow_start,
        panic_threshold,
        breaker,
        outlier,
        health,
    } = balance;
    let time = |time: Option<Duration>| time.map_or_else(|| "none".into(), |it| format!("{it:?}"));
    let mut details = Details::default();
    details.note("namespace", namespace, &new.namespace);
    let shown = |port: u16| if port == 0 { "none".to_owned() } else { port.to_string() };
    details.note("port", shown(*port), shown(new.port));
    details.note("protocol", protocol, new.protocol);
    details.note_list("ports", more, &new.more, show_port);
    details.note("hosts", show_placement(hosts), show_placement(&new.hosts));
    details.note_list("workload", selectors, &new.selectors, show_selector);
    details.note("balance", policy, &new.balance.policy);
    details.note("weights", show_weights(weights), show_weights(&new.balance.weights));
    details.note("locality", locality, new.balance.locality);
    details.note("slow_start", time(*slow_start), time(new.balance.slow_start));
    details.note("panic_threshold", panic_threshold, new.balance.panic_threshold);
    details.note("breaker", breaker, new.balance.breaker);
    details.note("outlier", outlier, new.balance.outlier);
    details.note_optional("health", health.as_ref(), new.balance.health.as_ref());
    details.note_optional("edge", edge.as_ref(), new.edge.as_ref());
    let proxy_protocol_now = new.application.proxy_protocol;
    details.note_optional("proxy_protocol", proxy_protocol.as_ref(), proxy_protocol_now.as_ref());
    details.note("http", http, new.application.http);
    details.note("trailers", trailers, new.application.trailers);
    details.note_optional("listen", listen.as_ref(), new.application.listen.as_ref());
    details.note("source", source, new.application.source);
    details.note("paths", paths, new.paths);
    details.note_optional("exposure", exposure.as_ref(), new.exposure.as_ref());
    details.note("listener", listener, new.listener);
    details.note_list("aliases", aliases, &new.aliases, ToString::to_string);
    details
}

fn show_port(port: &ServicePort) -> String {
    let ServicePort { name, port, protocol, application } = port;
    let Application { proxy_protocol, http, trailers, listen, source } = application;
    let mut text = format!("{name} {protocol}/{port}");
    let proxy_protocol = proxy_protocol.map(|it| format!(" proxy_protocol {it}"));
    let listen = listen.map(|it| format!(" listen {it}"));
    text.extend(proxy_protocol.into_iter().chain(listen));
    let plain = Application::default();
    if *http != plain.http {
        text += &format!(" http {http}");
    }
    if *trailers {
        text += " trailers";
    }
    if *source != plain.source {
        text += &format!(" source {source}");
    }
    text
}

fn device(old: &DeviceDecl, new: &DeviceDecl) -> Details {
    let DeviceDecl { public_key, via, ipv4, origin: _ } = old;
    let mut details = Details::default();
    details.note("public_key", public_key, new.public_key);
    details.note("via", via, &new.via);
    details.note_optional("ipv4", ipv4.as_ref(), new.ipv4.as_ref());
    details
}

fn rule(old: &Rule, new: &Rule) -> Details {
    let Rule { name: _, action: old_action, from, to, ports, http, sni, audit, origin: _ } = old;
    let mut details = Details::default();
    if *old_action != new.action {
        details.0.push(format!("{} -> {}", action(*old_action), action(new.action)));
    }
    details.note_list("from", from, &new.from, ToString::to_string);
    details.note_list("to", to, &new.to, ToString::to_string);
    details.note_list("ports", ports, &new.ports, ToString::to_string);
    details.note_list("http", http, &new.http, ToString::to_string);
    details.note_list("sni", sni, &new.sni, ToString::to_string);
    details.note("audit", audit, new.audit);
    details
}

fn route(old: &Route, new: &Route) -> Details {
    let mut details = Details::default();
    for ((key, old), (_, new)) in routes::facts(old).into_iter().zip(routes::facts(new)) {
        details.note(key, old, new);
    }
    details
}

fn limit(old: &RateLimit, new: &RateLimit) -> Details {
    let mut details = Details::default();
    let (old, new) = (ratelimits::facts(old), ratelimits::facts(new));
    for ((key, old), (_, new)) in old.into_iter().zip(new) {
        details.note(key, old, new);
    }
    details
}

fn rollout(old: &RolloutDecl, new: &RolloutDecl) -> Details {
    let mut details = Details::default();
    for ((key, old), (_, new)) in rollouts::facts(old).into_iter().zip(rollouts::facts(new)) {
        details.note(key, old, new);
    }
    details
}

fn test(old: &TestDecl, new: &TestDecl) -> Details {
    let TestDecl { name: _, from, to, layer4, request, expect, origin: _ } = old;
    let mut details = Details::default();
    details.note("from", from, &new.from);
    details.note("to", to, &new.to);
    details.note_optional("port", layer4.as_ref(), new.layer4.as_ref());
    details.note_optional("request", request.as_ref(), new.request.as_ref());
    details.note("expect", action(*expect), action(new.expect));
    details
}

fn action(action: Action) -> &'static str {
    match action {
        Action::Deny => "deny",
        Action::Allow => "allow",
    }
}

fn list<T>(values: &[T], show: impl Fn(&T) -> String) -> String {
    if values.is_empty() {
        return "none".to_owned();
    }
    values.iter().map(show).collect::<Vec<_>>().join(", ")
}

fn show_labels(labels: &BTreeMap<String, String>) -> String {
    let pairs: Vec<_> = labels.iter().collect();
    list(&pairs, |(key, value)| format!("{key}={value:?}"))
}

fn show_weights(weights: &BTreeMap<Name, u32>) -> String {
    let pairs: Vec<_> = weights.iter().collect();
    list(&pairs, |(host, weight)| format!("{host}={weight}"))
}

fn show_placement(hosts: &Placement) -> String {
    match hosts {
        Placement::Names(names) => list(names, ToString::to_string),
        Placement::Labels(labels) => format!("with {}", show_labels(labels)),
    }
}

fn show_selector(selector: &Selector) -> String {
    match selector {
        Selector::Systemd(unit) => format!("systemd {unit}"),
        Selector::User(user) => format!("user {user}"),
        Selector::Exe(path) => format!("exe {}", path.display()),
        Selector::Cgroup(path) => format!("cgroup {}", path.display()),
        Selector::Container(container) => format!("container {{{container}}}"),
    }
}
