//! Address directory: from an overlay address to its owner.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::address::MeshPrefix;
use crate::identity::{DeviceId, HostId, Principal, ServiceId};
use crate::snapshot::Snapshot;

/// Meaning of an overlay address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// A host's own address.
    Host(HostId),
    /// A service's workload on a host.
    Workload(HostId, ServiceId),
    /// A device, behind the host that ends its tunnel.
    Device(HostId, DeviceId),
    /// A service, wherever it is.
    Virtual(ServiceId),
    /// This very host, on flows that stay on it.
    Anycast,
}

impl Place {
    /// The host that packets to this address go to; none for virtual addresses.
    #[must_use]
    pub const fn host(self) -> Option<HostId> {
        match self {
            Self::Host(host) | Self::Workload(host, _) | Self::Device(host, _) => Some(host),
            Self::Virtual(_) | Self::Anycast => None,
        }
    }

    /// Identity behind this address; `local` is the querying host.
    #[must_use]
    pub const fn principal(self, local: HostId) -> Principal {
        match self {
            Self::Host(host) => Principal::Host(host),
            Self::Workload(_, service) | Self::Virtual(service) => Principal::Service(service),
            Self::Device(_, device) => Principal::Device(device),
            Self::Anycast => Principal::Host(local),
        }
    }
}

/// Finds the place of an address. It knows only what its snapshot *placed*: an address that names a
/// host, service and pair of them that the topology doesn't put together is not found.
#[derive(Clone, Debug)]
pub struct Directory {
    prefix: MeshPrefix,
    ipv4: HashMap<Ipv4Addr, Place>,
    /// By host and service number, as they stand in the address.
    ipv6: HashMap<(u32, u32), Place>,
}

impl Directory {
    /// Indexes a snapshot.
    #[must_use]
    pub fn new(snapshot: &Snapshot) -> Self {
        let mut directory =
            Self { prefix: snapshot.mesh.prefix, ipv4: HashMap::new(), ipv6: HashMap::new() };
        directory.insert(snapshot.mesh.anycast_ipv4(), (0, 0), Place::Anycast);
        for (id, host) in &snapshot.hosts {
            directory.insert(host.ipv4(), (id.0, 0), Place::Host(*id));
        }
        for (id, service) in &snapshot.services {
            directory.insert(service.virtual_ipv4, (0, id.0), Place::Virtual(*id));
            for (host, ipv4) in &service.placements {
                directory.insert(*ipv4, (host.0, id.0), Place::Workload(*host, *id));
            }
        }
        for (id, device) in &snapshot.devices {
            directory.insert(device.ipv4, (device.via.0, id.0), Place::Device(device.via, *id));
        }
        directory
    }

    fn insert(&mut self, ipv4: Ipv4Addr, ipv6: (u32, u32), place: Place) {
        self.ipv4.insert(ipv4, place);
        self.ipv6.insert(ipv6, place);
    }

    /// Meaning of an address, if any.
    #[must_use]
    pub fn place(&self, address: IpAddr) -> Option<Place> {
        match address {
            IpAddr::V4(address) => self.place_v4(address),
            IpAddr::V6(address) => self.place_v6(address),
        }
    }

    /// Meaning of an IPv4 address, if any.
    #[must_use]
    pub fn place_v4(&self, address: Ipv4Addr) -> Option<Place> {
        self.ipv4.get(&address).copied()
    }

    /// Meaning of an IPv6 address, if any.
    #[must_use]
    pub fn place_v6(&self, address: Ipv6Addr) -> Option<Place> {
        let (host, service) = self.prefix.parse(address)?;
        self.ipv6.get(&(host.0, service.0)).copied()
    }
}
