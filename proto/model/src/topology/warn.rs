//! Warnings about a topology that is valid, but hardly meant.

use std::collections::{BTreeMap, BTreeSet};

use super::decl::{Placement, ServiceDecl, Topology};
use super::read::nearest;
use crate::name::Name;
use crate::rules::Origin;
use crate::snapshot::Selector;

/// RFC 9110, section 9, RFC 5789, and what WebDAV (RFC 4918, RFC 3253) and caches add.
const METHODS: [&str; 26] = [
    "GET",
    "HEAD",
    "POST",
    "PUT",
    "DELETE",
    "CONNECT",
    "OPTIONS",
    "TRACE",
    "PATCH",
    "QUERY",
    "PROPFIND",
    "PROPPATCH",
    "MKCOL",
    "COPY",
    "MOVE",
    "LOCK",
    "UNLOCK",
    "SEARCH",
    "REPORT",
    "CHECKOUT",
    "CHECKIN",
    "MERGE",
    "MKCALENDAR",
    "ACL",
    "PURGE",
    "BAN",
];

/// Something that isn't wrong, but hardly meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// The table that it is about.
    pub origin: Origin,
    /// What it is.
    pub message: String,
    /// What to do about it.
    pub help: String,
}

/// What to warn of, in the order of the services' names.
///
/// A mesh may be working by what is warned of here: refusing it would keep its controller from
/// starting with a newer version.
#[must_use]
pub fn warnings(topology: &Topology) -> Vec<Warning> {
    let by_program = topology.services.iter().filter(|(_, it)| is_known_by_program(&it.selectors));
    let by_program = by_program.map(|(name, service)| Warning {
        origin: service.origin.clone(),
        message: format!(
            "the workload of service \"{name}\" is known by its program alone, which any user \
             of its hosts can run and make do something else (LD_PRELOAD)"
        ),
        help: "add `user`, `systemd` or `cgroup` to its `workload`".to_owned(),
    });
    by_program.chain(same_processes(topology)).chain(misspelt_methods(topology)).collect()
}

/// Any word may be a method. One that is nearly a usual one is hardly meant: no request would fit.
fn misspelt_methods(topology: &Topology) -> impl Iterator<Item = Warning> {
    let of_rules = topology.rules.rules.iter().flat_map(|rule| {
        rule.http.iter().filter_map(move |request| Some((request.method.as_deref()?, &rule.origin)))
    });
    let of_routes = topology.routes.iter().flat_map(|route| {
        let methods = route.matches.iter().filter_map(|it| it.method.as_deref());
        methods.map(move |method| (method, &route.origin))
    });
    of_rules.chain(of_routes).filter(|(method, _)| !METHODS.contains(method)).filter_map(
        |(method, origin)| {
            let near = nearest(method, METHODS)?;
            Some(Warning {
                origin: origin.clone(),
                message: format!(
                    "no request has the method \"{method}\", unless an application has made it up"
                ),
                help: format!("did you mean \"{near}\"?"),
            })
        },
    )
}

/// Services that share processes. Where the same words say so of the same hosts, that is refused before;
/// here is what shows only once it is known which hosts have which labels.
fn same_processes(topology: &Topology) -> Vec<Warning> {
    let mut alike: BTreeMap<BTreeSet<String>, Vec<(&Name, &ServiceDecl)>> = BTreeMap::new();
    for (name, service) in topology.services.iter().filter(|(_, it)| !it.selectors.is_empty()) {
        let selectors = service.selectors.iter().map(|it| format!("{it:?}")).collect();
        alike.entry(selectors).or_default().push((name, service));
    }
    let mut warnings = Vec::new();
    for services in alike.into_values().filter(|it| it.len() > 1) {
        let mut first: BTreeMap<&Name, &Name> = BTreeMap::new();
        for (name, service) in services {
            let mut clash = None;
            for host in hosts(topology, &service.hosts) {
                let other = *first.entry(host).or_insert(name);
                if other != name {
                    clash = clash.or(Some((host, other)));
                }
            }
            warnings.extend(clash.map(|(host, other)| Warning {
                origin: service.origin.clone(),
                message: format!(
                    "services \"{other}\" and \"{name}\" have the same workload on host \"{host}\", so \
                     a process there is both, and speaks as one"
                ),
                help: "tell them apart by another selector, such as `user` or `exe`".to_owned(),
            }));
        }
    }
    warnings
}

fn hosts<'t>(topology: &'t Topology, placement: &'t Placement) -> Vec<&'t Name> {
    match placement {
        Placement::Names(names) => names.iter().collect(),
        Placement::Labels(labels) => {
            let declared = topology.hosts.iter();
            let fits = declared.filter(|(_, host)| {
                labels.iter().all(|(key, value)| host.labels.get(key) == Some(value))
            });
            fits.map(|(name, _)| name).collect()
        }
    }
}

/// Whether a process is taken for the service's whoever runs it.
fn is_known_by_program(selectors: &[Selector]) -> bool {
    !selectors.is_empty() && selectors.iter().all(|it| matches!(it, Selector::Exe(_)))
}
