//! Names that tables have for each other: each must be declared, and mean what it is used for.

use std::collections::{BTreeMap, BTreeSet};

use crate::name::Name;
use crate::rules::{Action, Subject};
use crate::topology::draft::{Declared, Draft};
use crate::topology::read::{At, Report, nearest, quote};
use crate::topology::tables::policy::RuleDraft;
use crate::topology::tables::service::ServiceDraft;
use crate::topology::tables::test::TestDraft;

/// Everything that a rule or test may name.
pub(super) struct Names<'a> {
    pub(super) draft: &'a Draft,
    /// None where a broken service may have had any namespace.
    namespaces: Option<BTreeSet<&'a str>>,
}

impl<'a> Names<'a> {
    pub(super) fn of(draft: &'a Draft) -> Self {
        let namespace = |service: &'a Declared<ServiceDraft>| {
            service.draft.as_ref().map(|service| service.decl.namespace.as_str())
        };
        Self { draft, namespaces: draft.services.values().map(namespace).collect() }
    }

    /// Whether the subject is declared; if not, this has been reported.
    pub(super) fn require(&self, subject: &Subject, at: At, report: &mut Report<'_>) -> bool {
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
    pub(super) fn require_ports(&self, draft: &RuleDraft, report: &mut Report<'_>) {
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
    pub(super) fn require_http(&self, draft: &RuleDraft, report: &mut Report<'_>) {
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
    pub(super) fn require_tls(&self, draft: &RuleDraft, report: &mut Report<'_>) {
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

    pub(super) fn check_question(&self, draft: &TestDraft, report: &mut Report<'_>) {
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
