//! What must hold between routes and services: who is named is there, and speaks HTTP.

use std::collections::HashMap;
use std::sync::Arc;

use super::check::require;
use super::parse::Draft;
use super::reader::{At, Report, quote};
use super::route::RouteDraft;
use crate::name::Name;
use crate::route::RouteAction;
use crate::snapshot::Protocol;

pub(super) fn check(draft: &Draft, report: &mut Report<'_>) {
    let mut seen: HashMap<&Arc<str>, At> = HashMap::new();
    for route in &draft.routes {
        if report.is_full() {
            return;
        }
        let name = &route.route.name;
        if let Some(first) = seen.insert(name, route.name) {
            let message = format!(
                "another route has the name {}: the one at {}",
                quote(name),
                report.origin(first)
            );
            report.error(route.name, message, "give each route a name of its own, metrics show it");
        }
        if require("service", &route.route.service, route.service, &draft.services, report) {
            require_http(draft, &route.route.service, route.service, report);
        }
        check_backends(draft, route, report);
    }
}

fn check_backends(draft: &Draft, route: &RouteDraft, report: &mut Report<'_>) {
    let backends = match &route.route.action {
        RouteAction::Forward { to, .. } => to.as_slice(),
        RouteAction::Redirect(_) | RouteAction::Respond { .. } => &[],
    };
    let backends = backends.iter().map(|backend| &backend.service).zip(&route.to);
    let mirrors = route.route.mirrors.iter().map(|mirror| &mirror.service).zip(&route.mirrors);
    for (name, at) in backends.chain(mirrors) {
        // The route's own service is checked where the header names it.
        let is_own = *at == route.at;
        let fits = is_own
            || (require("service", name, *at, &draft.services, report)
                && require_http(draft, name, *at, report));
        if fits {
            require_workloads(draft, name, *at, report);
        }
    }
}

pub(super) fn require_http(draft: &Draft, name: &Name, at: At, report: &mut Report<'_>) -> bool {
    let service = draft.services.get(name).and_then(|declared| declared.draft.as_ref());
    let Some(service) = service else { return false };
    let protocol = service.decl.protocol;
    if protocol == Protocol::Http {
        return true;
    }
    let message = format!("service \"{name}\" speaks {protocol}, not http");
    report.error(at, message, format!("write `protocol = \"http\"` in [service.{name}]"));
    false
}

pub(super) fn require_workloads(draft: &Draft, name: &Name, at: At, report: &mut Report<'_>) {
    let service = draft.services.get(name).and_then(|declared| declared.draft.as_ref());
    let Some(service) = service.filter(|service| !service.takes_requests()) else { return };
    if service.kind() == "gateway" {
        let message = format!("gateway \"{name}\" has no workloads to send requests to");
        report.error(at, message, "name the services that take the requests with `to`");
    } else {
        let message = format!("service \"{name}\" has no workloads to send requests to");
        let help = format!("name other services with `to`, or add `hosts` to [service.{name}]");
        report.error(at, message, help);
    }
}
