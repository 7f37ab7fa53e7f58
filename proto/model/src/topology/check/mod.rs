//! Checks between tables: every name is declared, nothing overlaps, nothing is said twice.

mod addresses;
mod edges;
mod names;
pub(crate) mod ports;
mod ratelimits;
mod rollouts;
mod routes;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::name::Name;
use crate::snapshot::Selector;
use crate::topology::decl::{MeshDecl, Placement};
use crate::topology::draft::Draft;
use crate::topology::read::{At, Located, Report, quote};
use crate::topology::tables::service::ServiceDraft;
use names::{Names, named, require};

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
    rollouts::check(draft, report);
    ratelimits::check(draft, report);
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
