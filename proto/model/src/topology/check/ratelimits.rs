//! Checks between rate limits and services.

use super::names::require;
use super::routes::require_http;
use crate::edge::Edge;
use crate::name::Name;
use crate::topology::decl::{Placement, ServiceDecl};
use crate::topology::draft::Draft;
use crate::topology::read::{At, Report};
use crate::topology::tables::ratelimit::RateLimitDraft;

/// A limit is about a service that speaks HTTP, and that some host has.
pub(super) fn check(draft: &Draft, report: &mut Report<'_>) {
    for declared in draft.ratelimits.values() {
        let Some(RateLimitDraft { limit, service, sni }) = &declared.draft else { continue };
        let name: &Name = &limit.service;
        if require("service", name, *service, &draft.services, report)
            && require_http(draft, name, *service, report)
        {
            require_host(draft, name, *service, report);
        }
        if let Some(at) = sni {
            let message = "a limit counts requests, `sni` is about TLS that nobody reads";
            report.error(*at, message, "leave `match` out, or write another one");
        }
    }
}

/// Where a limit counts.
fn require_host(draft: &Draft, name: &Name, at: At, report: &mut Report<'_>) {
    let service = draft.services.get(name).and_then(|declared| declared.draft.as_ref());
    let Some(ServiceDecl { edge: Some(Edge::External(_)), hosts, .. }) =
        service.map(|service| &service.decl)
    else {
        return;
    };
    if matches!(hosts, Placement::Names(hosts) if hosts.is_empty()) {
        let message = format!("each caller's host speaks to external \"{name}\" by itself");
        let help = format!("add `via` to [external.{name}]: its hosts are where requests count");
        report.error(at, message, help);
    }
}
