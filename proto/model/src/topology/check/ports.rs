//! Rules and tests that name ports: which numbers those are, and what must hold.

use std::collections::BTreeMap;

use crate::name::Name;
use crate::rules::{Layer4, PortRule, Subject};
use crate::snapshot::{Protocol, ServicePort};
use crate::topology::draft::{Declared, Draft};
use crate::topology::read::{At, Located, Report, nearest};
use crate::topology::tables::policy::RuleDraft;
use crate::topology::tables::service::ServiceDraft;
use crate::topology::tables::test::TestDraft;

type Services = BTreeMap<Name, Declared<ServiceDraft>>;

/// The port that a service calls so.
fn named(services: &Services, service: &Name, name: &Name) -> Option<Layer4> {
    let draft = services.get(service)?.draft.as_ref()?;
    draft.decl.more.iter().find(|it| it.name == *name).map(ServicePort::layer4)
}

/// The numbers of a rule's named ports. What can't be found was reported.
pub(crate) fn resolve_rule(draft: &RuleDraft, services: &Services) -> Vec<PortRule> {
    let mut rules = draft.rule.ports.clone();
    for name in &draft.port_names {
        let to = draft.rule.to.iter().filter_map(|it| {
            let Subject::Service(service) = it else { return None };
            named(services, service, &name.value)
        });
        for rule in to.filter_map(as_rule) {
            if !rules.contains(&rule) {
                rules.push(rule);
            }
        }
    }
    rules
}

/// Likewise for a test.
pub(crate) fn resolve_test(draft: &TestDraft, services: &Services) -> Option<Layer4> {
    let Some(name) = &draft.port_name else { return draft.decl.layer4 };
    let Subject::Service(service) = &draft.decl.to else { return None };
    named(services, service, &name.value)
}

const fn as_rule(layer4: Layer4) -> Option<PortRule> {
    match layer4 {
        Layer4::Tcp(port) => Some(PortRule::Tcp(port, port)),
        Layer4::Udp(port) => Some(PortRule::Udp(port, port)),
        Layer4::Icmp | Layer4::Other(_) => None,
    }
}

/// Each name must be a port of all services that the rule leads to, and the same one: numbers of one
/// service would let others in, too.
pub(super) fn check_rule(draft: &RuleDraft, all: &Draft, report: &mut Report<'_>) {
    for name in &draft.port_names {
        let mut first: Option<(Layer4, &Name)> = None;
        for subject in &draft.rule.to {
            let Some((service, layer4)) = require(subject, name, all, report) else { return };
            match first {
                Some((known, other)) if known != layer4 => {
                    let message = format!(
                        "port \"{}\" is {known} of service \"{other}\", and {layer4} of service \"{service}\"",
                        name.value
                    );
                    report.error(name.at, message, "write a rule for each service");
                    return;
                }
                Some(_) => {}
                None => first = Some((layer4, service)),
            }
        }
    }
    if let Some(at) = draft.inspected {
        for subject in &draft.rule.to {
            check_inspected(draft, subject, at, all, report);
        }
    }
}

pub(super) fn check_test(draft: &TestDraft, all: &Draft, report: &mut Report<'_>) {
    if let Some(name) = &draft.port_name {
        let _ = require(&draft.decl.to, name, all, report);
    }
}

fn require<'a>(
    subject: &'a Subject,
    name: &Located<Name>,
    all: &Draft,
    report: &mut Report<'_>,
) -> Option<(&'a Name, Layer4)> {
    let Subject::Service(service) = subject else {
        let message =
            format!("\"{subject}\" has no port \"{}\": only services name theirs", name.value);
        report.error(name.at, message, "write numbers, such as \"tcp/22\", or name services");
        return None;
    };
    // A service that isn't there, or is wrong, was reported.
    let draft = all.services.get(service)?.draft.as_ref()?;
    let found = named(&all.services, service, &name.value);
    if found.is_none() {
        let known = draft.decl.more.iter().map(|it| it.name.as_str());
        let help = match nearest(name.value.as_str(), known) {
            Some(near) => format!("did you mean \"{near}\"?"),
            None => format!(
                "add it to [service.{service}]: `ports = {{ {} = {{ port = 9100 }} }}`",
                name.value
            ),
        };
        let message = format!("service \"{service}\" has no port \"{}\"", name.value);
        report.error(name.at, message, help);
    }
    found.map(|layer4| (service, layer4))
}

/// A rule that looks into what it lets pass, at ports: each must be one where that can be seen.
fn check_inspected(
    draft: &RuleDraft,
    subject: &Subject,
    at: At,
    all: &Draft,
    report: &mut Report<'_>,
) {
    let (what, is_tls) = if draft.rule.http.is_empty() { ("sni", true) } else { ("http", false) };
    let Subject::Service(service) = subject else {
        let message = format!("`ports` beside `{what}` needs services in `to`, not \"{subject}\"");
        report.error(at, message, "name services, or leave `ports` out");
        return;
    };
    let Some(decl) = all.services.get(service).and_then(|it| it.draft.as_ref()) else { return };
    let sees = |protocol: Protocol| {
        if is_tls { protocol.carries_tls() } else { protocol.carries_requests() }
    };
    let decl = &decl.decl;
    let own = (decl.protocol, decl.protocol.layer4(decl.port));
    let more = decl.more.iter().map(|it| (it.protocol, it.layer4()));
    let seen: Vec<Layer4> = std::iter::once(own)
        .chain(more)
        .filter(|(protocol, _)| sees(*protocol))
        .map(|(_, layer4)| layer4)
        .collect();
    let seen_there = if is_tls { "server names" } else { "requests" };
    for rule in resolve_rule(draft, &all.services) {
        let is_seen = match rule {
            PortRule::Tcp(low, high) => low == high && seen.contains(&Layer4::Tcp(low)),
            PortRule::Udp(..) | PortRule::Icmp => false,
        };
        if !is_seen {
            let message = format!("{seen_there} can't be seen at {rule} of service \"{service}\"");
            let help = format!(
                "name ports of it that speak {}, or write two rules",
                if is_tls { "tls" } else { "http" }
            );
            report.error(at, message, help);
            return;
        }
    }
}
