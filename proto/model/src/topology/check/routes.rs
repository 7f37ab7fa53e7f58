//! Checks between routes and services: the service that is named is there, and speaks HTTP.

use std::collections::HashMap;
use std::sync::Arc;

use super::names::require;
use crate::name::Name;
use crate::route::{HeaderChanges, Rewrite, Route, RouteAction};
use crate::snapshot::Protocol;
use crate::topology::draft::Draft;
use crate::topology::read::{At, Report, quote};
use crate::topology::tables::route::RouteDraft;

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
            check_protocol(draft, route, report);
        }
        check_backends(draft, route, report);
    }
}

/// Routes are about requests or about TLS, as their service is.
fn check_protocol(draft: &Draft, route: &RouteDraft, report: &mut Report<'_>) {
    let name = &route.route.service;
    match protocol_of(draft, name) {
        Some(Protocol::Tls) => check_tls(route, report),
        Some(Protocol::Http) if asks_for_sni(route) => {
            let message = format!("`sni` is about TLS, and service \"{name}\" speaks http");
            report.error(route.matches, message, "write `host`");
        }
        Some(Protocol::Tcp | Protocol::Udp | Protocol::Http | Protocol::Auto) => {
            require_http(draft, name, route.service, report);
        }
        None => {}
    }
}

/// All that can be done with TLS that isn't ended here is to send it somewhere.
fn check_tls(route: &RouteDraft, report: &mut Report<'_>) {
    let Route {
        name: _,
        service,
        matches,
        action,
        request_headers,
        response_headers,
        timeout,
        try_timeout,
        hedge,
        retry,
        mirrors,
        delay,
        abort,
        origin: _,
    } = &route.route;
    let forwards =
        matches!(action, RouteAction::Forward { rewrite, .. } if *rewrite == Rewrite::default());
    let no_headers = *request_headers == HeaderChanges::default()
        && *response_headers == HeaderChanges::default();
    let no_times = timeout.is_none() && try_timeout.is_none();
    let no_tries = hedge.is_none() && retry.is_none();
    let no_faults = mirrors.is_empty() && delay.is_none() && abort.is_none();
    if !(forwards && no_headers && no_times && no_tries && no_faults) {
        let message = format!("service \"{service}\" speaks tls: nobody sees its requests");
        report.error(route.at, message, "keep only `name`, `match = { sni = … }` and `to`");
    } else if matches.iter().any(|entry| entry.sni.is_empty()) {
        let message = format!("service \"{service}\" speaks tls: only `sni` can be matched");
        report.error(route.matches, message, "write `match = { sni = \"shop.example.com\" }`");
    }
}

fn asks_for_sni(route: &RouteDraft) -> bool {
    route.route.matches.iter().any(|entry| !entry.sni.is_empty())
}

fn protocol_of(draft: &Draft, name: &Name) -> Option<Protocol> {
    let service = draft.services.get(name).and_then(|declared| declared.draft.as_ref());
    service.map(|service| service.decl.protocol)
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
                && require_like(draft, route, name, *at, report));
        if fits {
            require_workloads(draft, name, *at, report);
        }
    }
}

/// A backend must speak what its route is about.
fn require_like(
    draft: &Draft,
    route: &RouteDraft,
    name: &Name,
    at: At,
    report: &mut Report<'_>,
) -> bool {
    let is_tls = protocol_of(draft, &route.route.service) == Some(Protocol::Tls);
    if !is_tls && !asks_for_sni(route) {
        return require_http(draft, name, at, report);
    }
    let Some(protocol) = protocol_of(draft, name) else { return false };
    if protocol.carries_tls() {
        return true;
    }
    let message = format!("service \"{name}\" speaks {protocol}, not tls");
    report.error(at, message, format!("write `protocol = \"tls\"` in [service.{name}]"));
    false
}

pub(super) fn require_http(draft: &Draft, name: &Name, at: At, report: &mut Report<'_>) -> bool {
    let Some(protocol) = protocol_of(draft, name) else { return false };
    if protocol.carries_requests() {
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
