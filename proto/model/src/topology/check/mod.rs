//! What must hold between tables: every name is declared, nothing overlaps, nothing is said twice.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::MeshDecl;
use super::declare::ServiceDraft;
use super::parse::{Declared, Draft};
use super::policy::{RuleDraft, TestDraft};
use super::reader::{At, Located, Report, quote};
use super::suggest::nearest;
use super::{Placement, addresses, edges, ports, ratelimit, rollout, routes};
use crate::name::Name;
use crate::rules::{Action, Subject};
use crate::snapshot::Selector;

pub(super) fn check(draft: &Draft, report: &mut Report<'_>) {
    match &draft.mesh {
        Some(mesh) => {
            if let Some(decl) = &mesh.draft {
                addresses::check(draft, decl, report);
            }
        }
        None => addresses::check(draft, &MeshDecl::default(), report),
    }
    check_placements(draft, report);
    check_workloads(draft, report);
    edges::check(draft, report);
    check_devices(draft, report);
    check_aliases(draft, report);
    check_rules(draft, report);
    routes::check(draft, report);
    rollout::check(draft, report);
    ratelimit::check(draft, report);
    check_tests(draft, report);
}

fn check_placements(draft: &Draft, report: &mut Report<'_>) {
    for (name, service) in named(&draft.services) {
        if service.decl.edge.is_none()
            && !service.is_placed()
            && !draft.routes.iter().any(|it| it.route.service == *name)
        {
            let message = format!("[service.{name}] has no `hosts`");
            report.error(service.at, message, "add `hosts = [\"app-1\"]`");
        }
        for host in &service.weighed {
            require("host", &host.value, host.at, &draft.hosts, report);
        }
        let Placement::Names(names) = &service.decl.hosts else { continue };
        for (name, at) in names.iter().zip(&service.hosts) {
            require("host", name, *at, &draft.hosts, report);
        }
    }
}

/// Two services whose processes look the same must not meet on a host: whose would a process be?
fn check_workloads(draft: &Draft, report: &mut Report<'_>) {
    let mut by_host: HashMap<(&[Selector], &Name), &Name> = HashMap::new();
    let mut by_labels: HashMap<(&[Selector], &BTreeMap<String, String>), &Name> = HashMap::new();
    let mut services: Vec<(&Name, At, &ServiceDraft)> = draft
        .services
        .iter()
        .filter_map(|(name, service)| Some((name, service.at, service.draft.as_ref()?)))
        .filter(|(_, _, service)| !service.decl.selectors.is_empty())
        .collect();
    services.sort_by_key(|(_, at, _)| *at);
    for (name, _, service) in services {
        let selectors = service.decl.selectors.as_slice();
        let clash = match &service.decl.hosts {
            Placement::Names(hosts) => {
                let clashes = hosts.iter().filter_map(|host| {
                    let other = *by_host.entry((selectors, host)).or_insert(name);
                    (other != name).then(|| (other, format!("on host {:?}", host.as_str())))
                });
                // To the end: every host must be entered.
                clashes.fold(None, |first, clash| first.or(Some(clash)))
            }
            Placement::Labels(labels) => {
                let other = *by_labels.entry((selectors, labels)).or_insert(name);
                (other != name).then(|| (other, "on the same hosts".to_owned()))
            }
        };
        if let Some((other, place)) = clash {
            let message = format!(
                "services \"{other}\" and \"{name}\" have the same workload {place}, so a process there would be both"
            );
            let help = "tell them apart by another selector, such as `user` or `exe`";
            report.error(service.workload, message, help);
        }
    }
}

/// A former name is nobody else's, former or not.
fn check_aliases(draft: &Draft, report: &mut Report<'_>) {
    let mut seen: HashMap<&Name, &Name> = HashMap::new();
    let mut aliases: Vec<_> = draft
        .services
        .iter()
        .filter_map(|(name, service)| Some((name, &service.draft.as_ref()?.aliases)))
        .flat_map(|(name, aliases)| aliases.iter().map(move |alias| (name, alias)))
        .collect();
    aliases.sort_by_key(|(_, alias)| alias.at);
    for (name, Located { value: alias, at }) in aliases {
        let whose = if let Some(other) = draft.services.get_key_value(alias) {
            format!("the name of service \"{}\"", other.0)
        } else if let Some(other) = seen.insert(alias, name) {
            format!("an alias of service \"{other}\" already")
        } else {
            continue;
        };
        let message = format!("alias \"{alias}\" of service \"{name}\" is {whose}");
        report.error(*at, message, "an alias is a name that nothing else has: leave it out");
    }
}

fn check_devices(draft: &Draft, report: &mut Report<'_>) {
    let mut keys = HashMap::new();
    let mut devices: Vec<_> = draft.devices.iter().collect();
    devices.sort_by_key(|(_, device)| device.at);
    for (name, device) in devices {
        let Some(device) = &device.draft else { continue };
        require("host", &device.decl.via, device.via, &draft.hosts, report);
        if let Some(other) = keys.insert(device.decl.public_key, name) {
            let message = format!("devices \"{other}\" and \"{name}\" have the same key");
            report.error(device.key, message, "make a key pair for each device with `wg genkey`");
        }
    }
}

fn check_rules(draft: &Draft, report: &mut Report<'_>) {
    let names = Names::of(draft);
    let policy = draft.policy.as_ref().and_then(|policy| policy.draft.as_ref());
    for audited in policy.iter().flat_map(|policy| &policy.audited) {
        names.require(&audited.value, audited.at, report);
    }
    let mut seen: HashMap<&Arc<str>, At> = HashMap::new();
    for draft in &draft.rules {
        if report.is_full() {
            return;
        }
        let rule = &draft.rule;
        if let Some(first) = seen.insert(&rule.name, draft.name) {
            let message = format!(
                "another rule has the name {}: the one at {}",
                quote(&rule.name),
                report.origin(first)
            );
            report.error(
                draft.name,
                message,
                "give each rule a name of its own, decisions show it",
            );
        }
        for (subject, at) in rule.from.iter().zip(&draft.from).chain(rule.to.iter().zip(&draft.to))
        {
            names.require(subject, *at, report);
        }
        let has_ports = !rule.ports.is_empty() || !draft.port_names.is_empty();
        if !has_ports {
            names.require_ports(draft, report);
        }
        if !rule.http.is_empty() && !has_ports {
            names.require_http(draft, report);
        }
        if !rule.sni.is_empty() && !has_ports {
            names.require_tls(draft, report);
        }
        ports::check_rule(draft, names.draft, report);
        for (name, at) in &draft.providers {
            require("jwt", name, *at, &names.draft.jwt, report);
        }
    }
}

fn check_tests(draft: &Draft, report: &mut Report<'_>) {
    let names = Names::of(draft);
    let mut seen: HashMap<&Arc<str>, At> = HashMap::new();
    for draft in &draft.tests {
        if report.is_full() {
            return;
        }
        let test = &draft.decl;
        if let Some(first) = seen.insert(&test.name, draft.name) {
            let message = format!(
                "another test has the name {}: the one at {}",
                quote(&test.name),
                report.origin(first)
            );
            report.error(draft.name, message, "give each test a name of its own");
        }
        names.require(&test.from, draft.from, report);
        if names.require(&test.to, draft.to, report) {
            names.check_question(draft, report);
            ports::check_test(draft, names.draft, report);
        }
    }
}

/// Everything that a rule or test may name.
struct Names<'a> {
    draft: &'a Draft,
    /// None where a broken service may have had any namespace.
    namespaces: Option<BTreeSet<&'a str>>,
}

impl<'a> Names<'a> {
    fn of(draft: &'a Draft) -> Self {
        let namespace = |service: &'a Declared<ServiceDraft>| {
            service.draft.as_ref().map(|service| service.decl.namespace.as_str())
        };
        Self { draft, namespaces: draft.services.values().map(namespace).collect() }
    }

    /// Whether the subject is declared; if not, this has been reported.
    fn require(&self, subject: &Subject, at: At, report: &mut Report<'_>) -> bool {
        let draft = self.draft;
        match subject {
            Subject::Any | Subject::AnyService | Subject::AnyHost | Subject::AnyDevice => true,
            Subject::Service(name) => self.declared("service", name, at, &draft.services, report),
            Subject::Host(name) => self.declared("host", name, at, &draft.hosts, report),
            Subject::Device(name) => self.declared("device", name, at, &draft.devices, report),
            Subject::Namespace(name) => self.require_namespace(name, at, report),
        }
    }

    fn declared<D>(
        &self,
        kind: &str,
        name: &Name,
        at: At,
        declared: &BTreeMap<Name, Declared<D>>,
        report: &mut Report<'_>,
    ) -> bool {
        let kinds = [
            ("service", self.draft.services.contains_key(name)),
            ("host", self.draft.hosts.contains_key(name)),
            ("device", self.draft.devices.contains_key(name)),
        ];
        let other = kinds.iter().find(|(other, contains)| *contains && *other != kind);
        match other {
            Some((other, _)) if !declared.contains_key(name) => {
                let message = format!("there is no {kind} \"{name}\"");
                report.error(at, message, format!("did you mean \"{other}:{name}\"?"));
                false
            }
            Some(_) | None => require(kind, name, at, declared, report),
        }
    }

    fn require_namespace(&self, name: &Name, at: At, report: &mut Report<'_>) -> bool {
        let Some(namespaces) = &self.namespaces else { return true };
        if namespaces.contains(name.as_str()) {
            return true;
        }
        let help = match nearest(name.as_str(), namespaces.iter().copied()) {
            Some(near) => format!("did you mean \"namespace:{near}\"?"),
            None => format!("write `namespace = \"{name}\"` in the services that belong to it"),
        };
        report.error(at, format!("no service is in a namespace \"{name}\""), help);
        false
    }

    /// A rule that lets somebody call a service is about a service that can be called.
    fn require_ports(&self, draft: &RuleDraft, report: &mut Report<'_>) {
        if draft.rule.action == Action::Deny {
            return;
        }
        for (subject, at) in draft.rule.to.iter().zip(&draft.to) {
            if let Some(name) = self.without_port(subject) {
                let message = format!("service \"{name}\" has no `port`: nobody can call it");
                let help = format!(
                    "add `port = 8080` to [service.{name}], or say which ports: `ports = [\"icmp\"]`"
                );
                report.error(*at, message, help);
            }
        }
    }

    fn without_port<'s>(&self, subject: &'s Subject) -> Option<&'s Name> {
        let Subject::Service(name) = subject else { return None };
        let service = self.draft.services.get(name)?.draft.as_ref()?;
        (service.decl.port == 0).then_some(name)
    }

    /// A rule about requests can only be about services that speak HTTP.
    fn require_http(&self, draft: &RuleDraft, report: &mut Report<'_>) {
        for subject in &draft.rule.to {
            if let Some((cause, help)) = self.speaks_no_http(subject) {
                report.error(
                    draft.http,
                    format!("`http` of rule {}: {cause}", quote(&draft.rule.name)),
                    format!("{help}, or leave `http` out"),
                );
            }
        }
    }

    /// A rule about server names can only be about services that may speak TLS.
    fn require_tls(&self, draft: &RuleDraft, report: &mut Report<'_>) {
        for subject in &draft.rule.to {
            let (cause, help) = match subject {
                Subject::Any | Subject::AnyService | Subject::Namespace(_) => continue,
                Subject::Service(name) => {
                    let service = self.draft.services.get(name).and_then(|it| it.draft.as_ref());
                    let Some(service) = service else { continue };
                    let protocol = service.decl.protocol;
                    if protocol.carries_tls() {
                        continue;
                    }
                    let help = format!("write `protocol = \"tls\"` in [service.{name}]");
                    (format!("service \"{name}\" speaks {protocol}, not tls"), help)
                }
                Subject::Host(_) | Subject::AnyHost | Subject::Device(_) | Subject::AnyDevice => (
                    format!("\"{subject}\" is no service, nobody reads its server names"),
                    "name services".to_owned(),
                ),
            };
            report.error(
                draft.sni,
                format!("`sni` of rule {}: {cause}", quote(&draft.rule.name)),
                format!("{help}, or leave `sni` out"),
            );
        }
    }

    fn check_question(&self, draft: &TestDraft, report: &mut Report<'_>) {
        let test = &draft.decl;
        if let (Some(at), Some(token)) =
            (draft.provider, test.request.as_ref().and_then(|request| request.jwt.as_ref()))
        {
            require("jwt", &token.provider, at, &self.draft.jwt, report);
        }
        if test.request.is_some() {
            if let Some((cause, help)) = self.speaks_no_http(&test.to) {
                let message = format!("test {} asks about a request: {cause}", quote(&test.name));
                report.error(
                    draft.request,
                    message,
                    format!("{help}, or leave `method` and `path` out"),
                );
            }
        } else if test.layer4.is_none()
            && draft.port_name.is_none()
            && (!matches!(test.to, Subject::Service(_)) || self.without_port(&test.to).is_some())
        {
            let message = format!(
                "test {} doesn't say which port of \"{}\" it asks about",
                quote(&test.name),
                test.to
            );
            report.error(draft.to, message, "add `port = \"tcp/22\"`");
        }
    }

    /// Why no rule or test about requests can have this destination, and what to do.
    fn speaks_no_http(&self, subject: &Subject) -> Option<(String, String)> {
        match subject {
            Subject::Any | Subject::AnyService | Subject::Namespace(_) => None,
            Subject::Host(_) | Subject::AnyHost | Subject::Device(_) | Subject::AnyDevice => {
                Some((
                    format!("\"{subject}\" is no service, nobody reads its requests"),
                    "name services".to_owned(),
                ))
            }
            Subject::Service(name) => {
                let service = self.draft.services.get(name)?.draft.as_ref()?;
                let protocol = service.decl.protocol;
                let help = format!("write `protocol = \"http\"` in [service.{name}]");
                (!protocol.carries_requests())
                    .then(|| (format!("service \"{name}\" speaks {protocol}, not http"), help))
            }
        }
    }
}

/// Whether a name is declared; if not, this has been reported.
pub(super) fn require<D>(
    kind: &str,
    name: &Name,
    at: At,
    declared: &BTreeMap<Name, Declared<D>>,
    report: &mut Report<'_>,
) -> bool {
    if declared.contains_key(name) {
        return true;
    }
    let help = match nearest(name.as_str(), declared.keys().map(Name::as_str)) {
        Some(near) => format!("did you mean \"{near}\"?"),
        None => format!("declare it with `[{kind}.{name}]`, or remove this"),
    };
    report.error(at, format!("there is no {kind} \"{name}\""), help);
    false
}

pub(super) fn named<D>(
    declared: &BTreeMap<Name, Declared<D>>,
) -> impl Iterator<Item = (&Name, &D)> {
    declared.iter().filter_map(|(name, declared)| Some((name, declared.draft.as_ref()?)))
}
