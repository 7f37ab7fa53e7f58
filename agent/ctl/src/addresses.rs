//! Owners of overlay addresses.

use std::collections::BTreeMap;
use std::net::IpAddr;

use isthmus_model::{Identity, MeshPrefix, ServiceId, Snapshot};
use isthmus_proto::v1;

use crate::mesh_view;

/// Owners of addresses.
#[derive(Debug, Default)]
pub(crate) struct Addresses {
    known: BTreeMap<IpAddr, Identity>,
    /// An IPv6 address names its service even where the workload isn't known.
    prefix: Option<MeshPrefix>,
    services: BTreeMap<ServiceId, Identity>,
}

impl Addresses {
    pub(crate) fn of_snapshot(snapshot: &Snapshot) -> Self {
        let mut known = BTreeMap::new();
        let mut services = BTreeMap::new();
        for (id, host) in &snapshot.hosts {
            let identity = Identity::Host(host.name.clone());
            known.insert(host.ipv4().into(), identity.clone());
            known.insert(snapshot.workload_ipv6(*id, ServiceId(0)).into(), identity);
        }
        for (id, service) in &snapshot.services {
            let identity = service.identity();
            for ipv4 in service.placements.values().chain([&service.virtual_ipv4]) {
                known.insert((*ipv4).into(), identity.clone());
            }
            services.insert(*id, identity);
        }
        for (id, device) in &snapshot.devices {
            let identity = Identity::Device(device.name.clone());
            known.insert(device.ipv4.into(), identity.clone());
            let ipv6 = snapshot.workload_ipv6(device.via, ServiceId(id.0));
            known.insert(ipv6.into(), identity);
        }
        let local = Identity::Host(snapshot.local_host().name.clone());
        known.insert(snapshot.mesh.anycast_ipv4().into(), local);
        Self { known, prefix: Some(snapshot.mesh.prefix), services }
    }

    pub(crate) fn of_status(status: &v1::MeshStatus) -> Self {
        let mut known = BTreeMap::new();
        let mut add = |address: &str, identity: &Identity| {
            if let Ok(address) = address.parse::<IpAddr>() {
                known.insert(address, identity.clone());
            }
        };
        for host in &status.hosts {
            let Some(message) = &host.host else { continue };
            let Ok(name) = message.name.parse() else { continue };
            let identity = Identity::Host(name);
            add(&host.ipv6, &identity);
            mesh_view::ipv4(message).iter().for_each(|ipv4| add(ipv4, &identity));
        }
        for service in &status.services {
            let Some(message) = &service.service else { continue };
            let (Ok(name), Ok(namespace)) = (message.name.parse(), message.namespace.parse())
            else {
                continue;
            };
            let identity = Identity::Service { namespace, name };
            add(&service.virtual_ipv6, &identity);
            add(&message.virtual_ipv4, &identity);
            for workload in mesh_view::workloads(service, &status.hosts) {
                add(&workload.ipv4, &identity);
                add(&workload.ipv6, &identity);
            }
        }
        for device in &status.devices {
            let Some(message) = &device.device else { continue };
            let Ok(name) = message.name.parse() else { continue };
            let identity = Identity::Device(name);
            add(&device.ipv6, &identity);
            add(&message.ipv4, &identity);
        }
        Self { known, ..Self::default() }
    }

    pub(crate) fn find(&self, address: IpAddr) -> Option<Identity> {
        if let Some(identity) = self.known.get(&address) {
            return Some(identity.clone());
        }
        let IpAddr::V6(address) = address else { return None };
        let (_, service) = self.prefix?.parse(address)?;
        self.services.get(&service).cloned()
    }
}
