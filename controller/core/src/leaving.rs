//! Workloads that a topology no longer places: they stay for a while and get nothing new, so that
//! requests under way end, and callers whose agents hear of it later lose none.

use std::collections::{BTreeMap, BTreeSet};

use isthmus_model::topology::Topology;
use isthmus_model::{HostId, Name};

use crate::inventory::{Inventory, services_on};

/// How long they stay, in seconds: as long as Kubernetes leaves to pods.
const STAY: i64 = 30;

/// The workloads that are about to go, and since when, in seconds since the epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leaving(BTreeMap<(Name, HostId), i64>);

impl FromIterator<(Name, HostId, i64)> for Leaving {
    fn from_iter<I: IntoIterator<Item = (Name, HostId, i64)>>(all: I) -> Self {
        Self(all.into_iter().map(|(service, host, since)| ((service, host), since)).collect())
    }
}

impl Leaving {
    /// All of them: the service, its host, and since when.
    pub fn iter(&self) -> impl Iterator<Item = (&Name, HostId, i64)> {
        self.0.iter().map(|((service, host), since)| (service, *host, *since))
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn on(&self, host: HostId) -> impl Iterator<Item = &Name> {
        self.iter().filter(move |(_, at, _)| *at == host).map(|(service, _, _)| service)
    }

    pub(crate) fn of(&self, service: &Name) -> impl Iterator<Item = HostId> {
        self.iter().filter(move |(name, _, _)| *name == service).map(|(_, host, _)| host)
    }

    /// What leaves with the step from one topology to the next.
    pub(crate) fn after(
        &self,
        (before, after): (&Topology, &Topology),
        inventory: &Inventory,
        now: i64,
    ) -> Self {
        let mut leaving = Self::default();
        for member in inventory.members() {
            let placed: BTreeSet<&Name> = services_on(member, after).collect();
            let were = services_on(member, before).map(|service| (service, now));
            let left = self.iter().filter(|(_, host, _)| *host == member.id);
            let left = left.map(|(service, _, since)| (service, since));
            for (service, since) in were.chain(left) {
                if !placed.contains(service) && may_stay(service, &placed, after) {
                    leaving.0.insert((service.clone(), member.id), since);
                }
            }
        }
        leaving
    }

    /// Those of hosts that are still members.
    pub(crate) fn within(&self, inventory: &Inventory) -> Self {
        let members: BTreeSet<HostId> = inventory.members().map(|member| member.id).collect();
        let mut leaving = self.clone();
        leaving.0.retain(|(_, host), _| members.contains(host));
        leaving
    }

    /// Those whose time isn't over.
    pub(crate) fn at(&self, now: i64) -> Self {
        let mut leaving = self.clone();
        leaving.0.retain(|_, since| now < *since + STAY);
        leaving
    }
}

/// Whether a service may stay on a host, beside those that are placed there. Not where another one's
/// processes look the same: they would be both. What is at the mesh's edge goes at once, with its
/// ports.
fn may_stay(service: &Name, placed: &BTreeSet<&Name>, topology: &Topology) -> bool {
    let Some(declared) = topology.services.get(service) else { return false };
    let looks_the_same = |other: &&Name| {
        let other = topology.services.get(*other);
        other.is_some_and(|other| other.selectors == declared.selectors)
    };
    let clashes = !declared.selectors.is_empty() && placed.iter().any(looks_the_same);
    declared.edge.is_none() && !clashes
}
