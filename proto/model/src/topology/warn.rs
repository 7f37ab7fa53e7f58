//! What a topology may say, and better didn't.

use std::collections::{BTreeMap, BTreeSet};

use super::decl::{Placement, ServiceDecl, Topology};
use crate::name::Name;
use crate::rules::Origin;
use crate::snapshot::Selector;

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
    by_program.chain(same_processes(topology)).collect()
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
