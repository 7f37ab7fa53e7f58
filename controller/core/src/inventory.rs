//! The hosts that have joined.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use isthmus_model::topology::{HostDecl, Placement, Topology};
use isthmus_model::{HostId, Name, PublicKey};
use serde::{Deserialize, Serialize};

use crate::rotation::Rotation;
use crate::text::{self, HostNumber};

/// A host that has joined.
///
/// INVARIANT: `id` is of this membership alone. A host that was removed and joins again under its
/// old name gets a new number, so that certificates of its former membership (they carry the number)
/// are known for what they are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its name.
    #[serde(with = "text")]
    pub name: Name,
    /// Its number.
    #[serde(with = "HostNumber")]
    pub id: HostId,
    /// Its tunnel key.
    #[serde(with = "text")]
    pub public_key: PublicKey,
    /// Labels that its join token granted.
    pub labels: BTreeMap<String, String>,
    /// Where its agent was last seen or said to be reachable.
    pub endpoints: Vec<SocketAddr>,
    /// When it joined, in seconds since the epoch.
    pub joined: i64,
    /// When its newest certificate expires, in seconds since the epoch.
    pub certificate_expires: i64,
    /// How often it has joined anew under its number: certificates from before say another one.
    #[serde(default)]
    pub generation: u32,
    /// The request that made it a member. Who repeats it hasn't heard the answer.
    #[serde(default)]
    pub request: Option<RequestHash>,
    /// How far the change of its tunnel key has got, if it is to change.
    #[serde(default)]
    pub rotation: Option<Rotation>,
}

/// What identifies a join request: its token and both of its keys. Whoever repeats it has proved to
/// hold the same private key.
pub type RequestHash = [u8; 32];

/// All hosts that have joined, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    members: BTreeMap<Name, Member>,
}

impl FromIterator<Member> for Inventory {
    fn from_iter<I: IntoIterator<Item = Member>>(members: I) -> Self {
        Self { members: members.into_iter().map(|member| (member.name.clone(), member)).collect() }
    }
}

impl Inventory {
    /// The member of this name.
    #[must_use]
    pub fn member(&self, name: &str) -> Option<&Member> {
        self.members.get(name)
    }

    /// All members, by name.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    /// Number of hosts that have joined.
    #[must_use]
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether no host has joined.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    pub(crate) fn insert(&mut self, member: Member) {
        self.members.insert(member.name.clone(), member);
    }

    pub(crate) fn remove(&mut self, name: &str) -> Option<Member> {
        self.members.remove(name)
    }

    pub(crate) fn member_mut(&mut self, name: &str) -> Option<&mut Member> {
        self.members.get_mut(name)
    }
}

/// A member as the topology sees it: the labels granted, overlaid by those declared.
pub(crate) fn labels(member: &Member, topology: &Topology) -> BTreeMap<String, String> {
    let mut labels = member.labels.clone();
    if let Some(declared) = topology.hosts.get(&member.name) {
        labels.extend(declared.labels.clone());
    }
    labels
}

/// Services of a topology that are placed on a member.
pub(crate) fn services_on<'a>(
    member: &Member,
    topology: &'a Topology,
) -> impl Iterator<Item = &'a Name> {
    let labels = labels(member, topology);
    topology
        .services
        .iter()
        .filter(move |(_, declared)| declared.hosts.covers(&member.name, &labels))
        .map(|(service, _)| service)
}

/// What a host gets by its name, beyond what labels that were granted to it bring.
pub(crate) fn brought_by(
    name: &Name,
    granted: &BTreeMap<String, String>,
    topology: &Topology,
) -> Option<String> {
    let mut labels = granted.clone();
    if let Some(declared) = topology.hosts.get(name) {
        labels.extend(declared.labels.clone());
    }
    let service = topology.services.iter().find(|(_, declared)| {
        let by_grant = match &declared.hosts {
            Placement::Names(_) => false,
            Placement::Labels(_) => declared.hosts.covers(name, granted),
        };
        declared.hosts.covers(name, &labels) && !by_grant
    });
    let device = || topology.devices.iter().find(|(_, declared)| declared.via == *name);
    let service = service.map(|(service, _)| format!("service {:?}", service.as_str()));
    service.or_else(|| device().map(|(device, _)| format!("device {:?}", device.as_str())))
}

/// Devices of a topology whose tunnel ends at a member.
pub(crate) fn devices_on<'a>(
    member: &Member,
    topology: &'a Topology,
) -> impl Iterator<Item = &'a Name> {
    topology
        .devices
        .iter()
        .filter(|(_, declared)| declared.via == member.name)
        .map(|(device, _)| device)
}

pub(crate) fn declared<'a>(member: &Member, topology: &'a Topology) -> Option<&'a HostDecl> {
    topology.hosts.get(&member.name)
}
