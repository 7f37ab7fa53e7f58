//! What a topology may say, and better didn't.

use super::Topology;
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
    by_program
        .map(|(name, service)| Warning {
            origin: service.origin.clone(),
            message: format!(
                "the workload of service \"{name}\" is known by its program alone, which any user \
                 of its hosts can run and make do something else (LD_PRELOAD)"
            ),
            help: "add `user`, `systemd` or `cgroup` to its `workload`".to_owned(),
        })
        .collect()
}

/// Whether a process is taken for the service's whoever runs it.
fn is_known_by_program(selectors: &[Selector]) -> bool {
    !selectors.is_empty() && selectors.iter().all(|it| matches!(it, Selector::Exe(_)))
}
