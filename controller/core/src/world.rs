//! The whole mesh at one revision, and what each host needs to know of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use isthmus_model::topology::{ServiceDecl, Topology};
use isthmus_model::{
    Device, DeviceId, Edge, Exposure, Gateway, Host, HostId, Identity, Mesh, Name, PortGuard,
    Principal, RateLimit, Route, Rule, Rules, Service, ServiceId, Snapshot, Subject,
};
use isthmus_policy::Policy;

use crate::inventory::{Inventory, Member, declared, labels, services_on};
use crate::state::State;

/// The whole mesh at one revision.
#[derive(Clone, Debug)]
pub struct MeshSnapshot {
    everything: Snapshot,
    inventory: Inventory,
    residents: Residents,
    relations: Relations,
}

impl MeshSnapshot {
    /// Puts a state together.
    #[must_use]
    pub fn new(state: &State) -> Self {
        let everything = everything(state);
        let residents = Residents::of(&everything);
        let policy = Policy::for_snapshot(&everything);
        let relations = Relations::new(&policy, &residents.identities);
        Self { everything, inventory: state.inventory.clone(), residents, relations }
    }

    /// All of it as one snapshot, which is nobody's: its `local` is host 0.
    #[must_use]
    pub fn everything(&self) -> &Snapshot {
        &self.everything
    }

    /// Members.
    #[must_use]
    pub fn inventory(&self) -> &Inventory {
        &self.inventory
    }

    /// The slice of a host; none if there is no such host.
    ///
    /// INVARIANT: holds every address that a packet which policy may allow could carry to or from
    /// this host, and every rule that can decide about one.
    #[must_use]
    pub fn slice(&self, local: HostId) -> Option<Snapshot> {
        let all = &self.everything;
        let here = self.residents.at.get(&local)?;
        let related = self.relations.of_any(here);
        let knows =
            |who: Principal| self.residents.index.get(&who).is_some_and(|index| related[*index]);
        let services: BTreeMap<ServiceId, Service> = all
            .services
            .iter()
            .map(|(id, service)| (*id, seen_from(local, service, knows(Principal::Service(*id)))))
            .collect();
        let devices: BTreeMap<DeviceId, Device> = all
            .devices
            .iter()
            .filter(|(id, device)| device.via == local || knows(Principal::Device(**id)))
            .map(|(id, device)| (*id, device.clone()))
            .collect();
        let placed: BTreeSet<HostId> =
            services.values().flat_map(|service| service.placements.keys().copied()).collect();
        let gateways: BTreeSet<HostId> = devices.values().map(|device| device.via).collect();
        let hosts = all.hosts.iter().filter(|(id, _)| {
            **id == local
                || placed.contains(id)
                || gateways.contains(id)
                || knows(Principal::Host(**id))
        });
        Some(Snapshot {
            revision: all.revision,
            mesh: all.mesh.clone(),
            local,
            hosts: hosts.map(|(id, host)| (*id, host.clone())).collect(),
            rules: self.rules_for(here),
            routes: self.routes_for(here),
            limits: limits_on(local, &services, &all.limits),
            services,
            devices,
        })
    }

    /// Whether two hosts may meet: somebody on one may exchange traffic with somebody on the other.
    #[must_use]
    pub fn may_meet(&self, one: HostId, other: HostId) -> bool {
        let at = |host| self.residents.at.get(&host).map(Vec::as_slice).unwrap_or_default();
        let related = self.relations.of_any(at(one));
        at(other).iter().any(|index| related[*index])
    }

    /// Whether a host has to do with requests of a route: somebody there may send such.
    #[must_use]
    pub fn has_route(&self, local: HostId, name: &str) -> bool {
        let here = self.residents.at.get(&local);
        here.is_some_and(|here| self.routes_for(here).iter().any(|route| *route.name == *name))
    }

    /// Whether workloads of a service are on a host, or go from there just now.
    #[must_use]
    pub fn serves(&self, local: HostId, service: &str) -> bool {
        let mut services = self.everything.services.values();
        services.any(|it| it.name.as_str() == service && it.placements.contains_key(&local))
    }

    /// Whether agents stand before a service's workloads, and see what they are asked.
    #[must_use]
    pub fn has_servers(&self, service: &str) -> bool {
        let mut services = self.everything.services.values();
        services
            .any(|it| it.name.as_str() == service && it.edge.is_none() && !it.placements.is_empty())
    }

    /// The hosts whose slices differ between two worlds; those of the later one only.
    #[must_use]
    pub fn affected(&self, later: &Self) -> BTreeSet<Name> {
        let differs = |member: &&Member| {
            let old = self.slice(member.id);
            let new = later.slice(member.id);
            match (old, new) {
                (Some(old), Some(new)) => old != Snapshot { revision: old.revision, ..new },
                (None, _) | (_, None) => true,
            }
        };
        later.inventory.members().filter(differs).map(|member| member.name.clone()).collect()
    }

    /// Whoever may call a service needs its routes, and so does a gateway: for its clients.
    fn routes_for(&self, here: &[usize]) -> Vec<Route> {
        let called = self.relations.called_by_any(here);
        let concerns = |(id, service): &(&ServiceId, &Service)| {
            let index = self.residents.index.get(&Principal::Service(**id));
            index.is_some_and(|index| {
                called[*index] || (service.gateway().is_some() && here.contains(index))
            })
        };
        let services = self.everything.services.iter().filter(concerns);
        let called: BTreeSet<&Name> = services.map(|(_, service)| &service.name).collect();
        let routes = self.everything.routes.iter();
        routes.filter(|route| called.contains(&route.service)).cloned().collect()
    }

    /// A rule can only decide about traffic of those whom it names.
    fn rules_for(&self, here: &[usize]) -> Rules {
        let all = &self.everything.rules;
        let names_one = |subjects: &[Subject]| {
            subjects.iter().any(|subject| {
                here.iter().any(|index| names(subject, &self.residents.identities[*index]))
            })
        };
        let concerns = |rule: &&Rule| names_one(&rule.from) || names_one(&rule.to);
        Rules {
            default: all.default,
            audit: all.audit,
            audited: all.audited.clone(),
            rules: all.rules.iter().filter(concerns).cloned().collect(),
        }
    }
}

/// A service is in every directory; where its workloads are, only those know who may meet them; how
/// its processes are told, or what a gateway listens for, only those who run them.
fn seen_from(local: HostId, service: &Service, related: bool) -> Service {
    let here = service.placements.contains_key(&local);
    let placements = service.placements.iter().filter(|(host, _)| related || **host == local);
    let leaving = service.leaving.iter().filter(|host| related || **host == local);
    Service {
        leaving: leaving.copied().collect(),
        placements: placements.map(|(host, ipv4)| (*host, *ipv4)).collect(),
        selectors: if here { service.selectors.clone() } else { Vec::new() },
        guard: if here { service.guard } else { PortGuard::default() },
        edge: service.edge.as_ref().and_then(|edge| edge_seen(edge, here, related)),
        ..service.clone()
    }
}

/// Who meets a gateway knows that it is one: it may say who its clients are.
fn edge_seen(edge: &Edge, here: bool, related: bool) -> Option<Edge> {
    match edge {
        Edge::Gateway(_) if here => Some(edge.clone()),
        Edge::Gateway(_) => related.then(|| Edge::Gateway(Gateway::default())),
        Edge::External(_) => (here || related).then(|| edge.clone()),
    }
}

/// Whether a rule's subject is this identity.
fn names(subject: &Subject, identity: &Identity) -> bool {
    match (subject, identity) {
        (Subject::Any, _)
        | (Subject::AnyHost, Identity::Host(_))
        | (Subject::AnyService, Identity::Service { .. })
        | (Subject::AnyDevice, Identity::Device(_)) => true,
        (Subject::Host(wanted), Identity::Host(name))
        | (Subject::Device(wanted), Identity::Device(name))
        | (Subject::Service(wanted), Identity::Service { name, .. }) => wanted == name,
        (Subject::Namespace(wanted), Identity::Service { namespace, .. }) => wanted == namespace,
        (
            Subject::AnyHost
            | Subject::AnyService
            | Subject::AnyDevice
            | Subject::Host(_)
            | Subject::Device(_)
            | Subject::Service(_)
            | Subject::Namespace(_),
            _,
        ) => false,
    }
}

/// Who is on which host: the host itself, its services, and the devices behind it.
#[derive(Clone, Debug)]
struct Residents {
    identities: Vec<Identity>,
    index: BTreeMap<Principal, usize>,
    /// Indices into `identities`.
    at: BTreeMap<HostId, Vec<usize>>,
}

impl Residents {
    fn of(all: &Snapshot) -> Self {
        let mut residents =
            Self { identities: Vec::new(), index: BTreeMap::new(), at: BTreeMap::new() };
        for id in all.hosts.keys() {
            residents.insert(all, Principal::Host(*id), [*id]);
        }
        for (id, service) in &all.services {
            residents.insert(all, Principal::Service(*id), service.placements.keys().copied());
        }
        for (id, device) in &all.devices {
            residents.insert(all, Principal::Device(*id), [device.via]);
        }
        residents
    }

    fn insert(&mut self, all: &Snapshot, who: Principal, places: impl IntoIterator<Item = HostId>) {
        let Some(identity) = all.identity(who) else { return };
        let index = self.identities.len();
        self.identities.push(identity);
        self.index.insert(who, index);
        for host in places {
            self.at.entry(host).or_default().push(index);
        }
    }
}

/// Pairs of identities that may exchange traffic.
#[derive(Clone, Debug)]
struct Relations {
    count: usize,
    /// In either direction.
    related: Vec<bool>,
    /// The one of the row may open flows to the one of the column.
    calls: Vec<bool>,
}

impl Relations {
    fn new(policy: &Policy, identities: &[Identity]) -> Self {
        let count = identities.len();
        let mut related = vec![false; count * count];
        let mut calls = vec![false; count * count];
        for (i, one) in identities.iter().enumerate() {
            for (j, other) in identities.iter().enumerate().skip(i) {
                calls[i * count + j] = policy.relates(one, other);
                calls[j * count + i] = policy.relates(other, one);
                let yes = calls[i * count + j] || calls[j * count + i];
                related[i * count + j] = yes;
                related[j * count + i] = yes;
            }
        }
        Self { count, related, calls }
    }

    /// By index: who may exchange traffic with any of these.
    fn of_any(&self, these: &[usize]) -> Vec<bool> {
        self.union(&self.related, these)
    }

    /// By index: whom any of these may call.
    fn called_by_any(&self, these: &[usize]) -> Vec<bool> {
        self.union(&self.calls, these)
    }

    fn union(&self, matrix: &[bool], these: &[usize]) -> Vec<bool> {
        let mut found = vec![false; self.count];
        for index in these {
            let row = &matrix[index * self.count..(index + 1) * self.count];
            for (found, related) in found.iter_mut().zip(row) {
                *found |= related;
            }
        }
        found
    }
}

fn everything(state: &State) -> Snapshot {
    let State { identity, topology, inventory, .. } = state;
    Snapshot {
        revision: state.revision,
        mesh: Mesh {
            name: identity.name.clone(),
            trust_domain: identity.trust_domain.clone(),
            prefix: identity.prefix,
            ipv4: topology.mesh.ipv4,
            virtual_ipv4: topology.mesh.virtual_ipv4,
        },
        local: HostId(0),
        hosts: inventory.members().filter_map(|member| host(state, member)).collect(),
        services: services(state),
        devices: devices(state),
        rules: topology.rules.clone(),
        routes: routes(state),
        limits: limits(state),
    }
}

/// Those of services that are placed on a host.
fn limits_on(
    local: HostId,
    services: &BTreeMap<ServiceId, Service>,
    limits: &[RateLimit],
) -> Vec<RateLimit> {
    let here: BTreeSet<&Name> = services
        .values()
        .filter(|service| service.placements.contains_key(&local))
        .map(|service| &service.name)
        .collect();
    limits.iter().filter(|limit| here.contains(&limit.service)).cloned().collect()
}

/// As the topology says them, with the number of hosts that share them.
fn limits(state: &State) -> Vec<RateLimit> {
    let placements = placements(state);
    let limit = |limit: &RateLimit| {
        let hosts = placements.get(&limit.service).map_or(0, Vec::len);
        RateLimit { hosts: u32::try_from(hosts).unwrap_or(u32::MAX).max(1), ..limit.clone() }
    };
    state.topology.ratelimits.values().map(limit).collect()
}

/// As the topology says them, with the weights that rollouts have reached.
pub(crate) fn routes(state: &State) -> Vec<Route> {
    let mut routes = state.topology.routes.clone();
    for rollout in state.rollouts.values() {
        routes.iter_mut().for_each(|route| rollout.weigh(route));
    }
    routes
}

fn host(state: &State, member: &Member) -> Option<(HostId, Host)> {
    let declared = declared(member, &state.topology);
    let fixed = declared.map(|host| &host.endpoints).filter(|endpoints| !endpoints.is_empty());
    let host = Host {
        name: member.name.clone(),
        site: declared.and_then(|host| host.site.clone()),
        labels: labels(member, &state.topology),
        public_key: member.public_key,
        former_key: member.former_key(),
        endpoints: fixed.unwrap_or(&member.endpoints).clone(),
        ipv4_block: state.allocation.block(member.id)?,
    };
    Some((member.id, host))
}

fn services(state: &State) -> BTreeMap<ServiceId, Service> {
    let placements = placements(state);
    let service = |(name, declared): (&Name, &ServiceDecl)| {
        let id = state.allocation.service(name)?;
        let hosts = placements.get(name).into_iter().flatten().copied();
        let placements: BTreeMap<HostId, Ipv4Addr> = hosts
            .chain(state.leaving.of(name))
            .filter_map(|host| Some((host, state.allocation.workload(host, id)?)))
            .collect();
        // Agents refuse a revision in which somebody leaves who isn't there.
        let leaving = state.leaving.of(name).filter(|host| placements.contains_key(host)).collect();
        let service = Service {
            name: name.clone(),
            namespace: declared.namespace.clone(),
            port: declared.port,
            protocol: declared.protocol,
            more: declared.more.clone(),
            virtual_ipv4: state.allocation.virtual_ipv4(name)?,
            placements,
            leaving,
            selectors: declared.selectors.clone(),
            balance: declared.balance.clone(),
            edge: declared.edge.clone(),
            application: declared.application,
            paths: declared.paths,
            guard: PortGuard { exposure: exposure(state, declared), listener: declared.listener },
            aliases: declared.aliases.clone(),
        };
        Some((id, service))
    };
    state.topology.services.iter().filter_map(service).collect()
}

/// The service's own word, or the topology's, or what the mesh began with.
fn exposure(state: &State, declared: &ServiceDecl) -> Exposure {
    let said = declared.exposure.or(state.topology.mesh.exposure);
    said.unwrap_or(state.identity.exposure)
}

pub(crate) fn placements(state: &State) -> BTreeMap<&Name, Vec<HostId>> {
    let topology: &Topology = &state.topology;
    let mut placements: BTreeMap<&Name, Vec<HostId>> = BTreeMap::new();
    for member in state.inventory.members() {
        for service in services_on(member, topology) {
            placements.entry(service).or_default().push(member.id);
        }
    }
    placements
}

/// A device exists once the host that ends its tunnel does.
fn devices(state: &State) -> BTreeMap<DeviceId, Device> {
    let device = |(name, declared): (&Name, &isthmus_model::topology::DeviceDecl)| {
        let id = state.allocation.device(name)?;
        let via = state.inventory.member(declared.via.as_str())?.id;
        let device = Device {
            name: name.clone(),
            public_key: declared.public_key,
            via,
            ipv4: state.allocation.device_address(via, id)?,
        };
        Some((id, device))
    };
    state.topology.devices.iter().filter_map(device).collect()
}
