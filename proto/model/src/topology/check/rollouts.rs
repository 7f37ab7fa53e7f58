//! Checks between rollouts, their routes and their services.

use std::collections::HashMap;
use std::sync::Arc;

use super::names::require;
use super::routes::{require_http, require_workloads};
use crate::name::Name;
use crate::route::RouteAction;
use crate::topology::decl::RolloutDecl;
use crate::topology::draft::Draft;
use crate::topology::read::{At, Report, nearest, quote};
use crate::topology::tables::route::RouteDraft;

pub(super) fn check(draft: &Draft, report: &mut Report<'_>) {
    let routes: HashMap<&str, &RouteDraft> =
        draft.routes.iter().map(|route| (&*route.route.name, route)).collect();
    let mut moved: HashMap<&Arc<str>, &Name> = HashMap::new();
    for (name, declared) in &draft.rollouts {
        let Some(rollout) = &declared.draft else { continue };
        for (service, at) in
            [(&rollout.decl.stable, rollout.stable), (&rollout.decl.canary, rollout.canary)]
        {
            if require("service", service, at, &draft.services, report)
                && require_http(draft, service, at, report)
            {
                require_workloads(draft, service, at, report);
            }
        }
        for (route, at) in rollout.decl.routes.iter().zip(&rollout.routes) {
            check_route(&rollout.decl, route, *at, &routes, report);
            if let Some(other) = moved.insert(route, name) {
                let message =
                    format!("rollout \"{other}\" moves the weights of {} already", quote(route));
                report.error(*at, message, "give each rollout routes of its own");
            }
        }
    }
}

fn check_route(
    rollout: &RolloutDecl,
    route: &Arc<str>,
    at: At,
    routes: &HashMap<&str, &RouteDraft>,
    report: &mut Report<'_>,
) {
    let Some(found) = routes.get(&**route) else {
        let help = match nearest(route, routes.keys().copied()) {
            Some(near) => format!("did you mean \"{near}\"?"),
            None => {
                format!("write `name = {}` in the [[route]] whose weights shall move", quote(route))
            }
        };
        report.error(at, format!("there is no route {}", quote(route)), help);
        return;
    };
    let RouteAction::Forward { to, .. } = &found.route.action else {
        let message = format!("route {} forwards nothing", quote(route));
        report.error(at, message, "name a route with `to`");
        return;
    };
    let strange = to.iter().find(|it| it.service != rollout.stable && it.service != rollout.canary);
    if let Some(strange) = strange {
        let message = format!(
            "route {} also leads to \"{}\", which is neither the rollout's stable nor its canary",
            quote(route),
            strange.service
        );
        report.error(
            at,
            message,
            format!("write `to = [{{ service = \"{}\" }}]` in the route", rollout.stable),
        );
    }
}
