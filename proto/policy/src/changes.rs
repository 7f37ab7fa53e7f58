//! What a new topology changes for those who use the mesh.

use isthmus_model::topology::Topology;
use isthmus_model::{Identity, Layer4};

use crate::policy::Policy;
use crate::verdict::{Outcome, Query};

/// More rows than this nobody reads.
const MAX_ROWS: usize = 200;

/// What a new topology changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// The pairs whose traffic is judged differently; at most 200.
    pub reaches: Vec<Reach>,
    /// How many more there are.
    pub more: usize,
}

/// A pair whose traffic is judged differently.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reach {
    /// Who opens flows.
    pub from: Identity,
    /// To whom.
    pub to: Identity,
    /// What it may now.
    pub before: Access,
    /// What it may then.
    pub after: Access,
}

/// What one identity may send to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// In one word. `Inspect`: some requests, or some ports.
    pub outcome: Outcome,
    /// In a few words.
    pub detail: String,
}

/// Compares two topologies pair by pair, over the identities that either declares.
#[must_use]
pub fn changes(old: &Topology, new: &Topology) -> Changes {
    let (before, after) = (Policy::for_topology(old), Policy::for_topology(new));
    let mut identities = identities(old);
    identities.extend(self::identities(new));
    identities.sort();
    identities.dedup();
    let mut changes = Changes::default();
    for from in &identities {
        for to in &identities {
            let (before, after) = (access(&before, from, to), access(&after, from, to));
            if before == after {
                continue;
            }
            if changes.reaches.len() == MAX_ROWS {
                changes.more += 1;
                continue;
            }
            let (from, to) = (from.clone(), to.clone());
            changes.reaches.push(Reach { from, to, before, after });
        }
    }
    changes
}

fn access(policy: &Policy, from: &Identity, to: &Identity) -> Access {
    let layer4 = match to {
        Identity::Service { name, .. } => policy.served(name).map_or(Layer4::Icmp, |s| s.layer4),
        Identity::Host(_) | Identity::Device(_) => Layer4::Tcp(22),
    };
    let outcome = policy.evaluate(&Query { from, to, layer4, request: None }).outcome;
    Access { outcome, detail: outcome.to_string() }
}

fn identities(topology: &Topology) -> Vec<Identity> {
    let services = topology.services.iter().map(|(name, service)| Identity::Service {
        namespace: service.namespace.clone(),
        name: name.clone(),
    });
    let hosts = topology.hosts.keys().cloned().map(Identity::Host);
    let devices = topology.devices.keys().cloned().map(Identity::Device);
    services.chain(hosts).chain(devices).collect()
}
