//! A revision, made ready for judging: the snapshot and what is derived from it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use isthmus_model::{
    Application, Directory, HostId, Identity, Layer4, Place, Principal, Protocol, PublicKey,
    Revision, ServiceId, Snapshot,
};
use isthmus_packet::Address;
use isthmus_policy::{DecidedBy, Outcome, Policy, Query, Verdict};

use crate::types::PeerName;

/// A revision, made ready for judging.
pub struct CompiledSnapshot {
    /// The snapshot as the controller sent it.
    pub snapshot: Arc<Snapshot>,
    /// Its rules, compiled.
    pub policy: Arc<Policy>,
    /// Its addresses, indexed.
    pub directory: Directory,
    identities: HashMap<Principal, Identity>,
    local_services: Vec<ServiceId>,
}

impl CompiledSnapshot {
    /// Compiles and indexes a snapshot.
    pub fn new(snapshot: Snapshot) -> Self {
        let hosts = snapshot.hosts.keys().map(|id| Principal::Host(*id));
        let services = snapshot.services.keys().map(|id| Principal::Service(*id));
        let devices = snapshot.devices.keys().map(|id| Principal::Device(*id));
        let identities = hosts
            .chain(services)
            .chain(devices)
            .filter_map(|principal| Some((principal, snapshot.identity(principal)?)))
            .collect();
        Self {
            policy: Arc::new(Policy::for_snapshot(&snapshot)),
            directory: Directory::new(&snapshot),
            local_services: snapshot.local_services().map(|(id, ..)| id).collect(),
            identities,
            snapshot: Arc::new(snapshot),
        }
    }

    /// Revision of this snapshot.
    pub fn revision(&self) -> Revision {
        self.snapshot.revision
    }

    /// The name behind a number, if this revision knows it.
    pub fn identity(&self, principal: Principal) -> Option<&Identity> {
        self.identities.get(&principal)
    }

    /// Judges a flow by its first packet. Who isn't known has no rights, whatever the default.
    pub fn judge(&self, from: Principal, to: Principal, layer4: Layer4) -> Verdict {
        match (self.identity(from), self.identity(to)) {
            (Some(from), Some(to)) => {
                self.policy.evaluate(&Query { from, to, layer4, request: None })
            }
            (None, _) | (_, None) => {
                Verdict { outcome: Outcome::Deny, decided_by: DecidedBy::Default, would_deny: None }
            }
        }
    }

    /// Whether this is the port of a service here whose connections lead through the proxy, asked for
    /// by another address than the service's. An application that listens on all addresses would
    /// answer there, and nobody would have judged its requests.
    pub(crate) fn leads_around_proxy(&self, to: Place, layer4: Layer4) -> bool {
        let Layer4::Tcp(port) = layer4 else { return false };
        let applied =
            |id: &ServiceId| self.snapshot.services.get(id).filter(|it| it.edge.is_none());
        let is_its_own = match to {
            Place::Workload(host, service) if host == self.local() => {
                applied(&service).is_some_and(|it| it.ports().any(|(own, ..)| own == port))
            }
            Place::Host(host) if host == self.local() => false,
            Place::Workload(..)
            | Place::Host(_)
            | Place::Device(..)
            | Place::Virtual(_)
            | Place::Anycast => return false,
        };
        let leads_to_proxy = |(own, protocol, application): (u16, Protocol, Application)| {
            protocol.is_proxied(application) && (own == port || application.port(own) == port)
        };
        let mut here = self.local_services.iter().filter_map(applied);
        !is_its_own && here.any(|service| service.ports().any(leads_to_proxy))
    }

    /// The host that this state is for.
    pub(crate) fn local(&self) -> HostId {
        self.snapshot.local
    }

    /// Whether this host has a tunnel to a peer: another host, or a device whose gateway it is.
    pub(crate) fn has_peer(&self, name: PeerName) -> bool {
        match name {
            PeerName::Host(host) => host != self.local() && self.snapshot.hosts.contains_key(&host),
            PeerName::Device(device) => {
                self.snapshot.devices.get(&device).is_some_and(|it| it.via == self.local())
            }
        }
    }

    /// The tunnel key by which others know this host.
    pub(crate) fn own_key(&self) -> PublicKey {
        self.snapshot.local_host().public_key
    }

    /// The services that have a workload here.
    pub(crate) fn local_services(&self) -> &[ServiceId] {
        &self.local_services
    }

    pub(crate) fn place(&self, address: Address) -> Option<Place> {
        self.directory.place(address.ip())
    }

    /// The host's own address.
    pub(crate) fn own_address(&self, v4: bool) -> Address {
        if v4 {
            self.snapshot.local_host().ipv4().into()
        } else {
            self.snapshot.workload_ipv6(self.local(), ServiceId(0)).into()
        }
    }

    /// A host's own IPv6 address, by which agents speak to each other.
    pub(crate) fn host_ipv6(&self, host: HostId) -> Address {
        self.snapshot.workload_ipv6(host, ServiceId(0)).into()
    }

    /// The address that stands for this host on flows that stay on it, and that the node itself
    /// speaks with to local sockets: the kernel refuses packets from the host's own addresses.
    pub(crate) fn anycast_address(&self, v4: bool) -> Address {
        if v4 {
            self.snapshot.mesh.anycast_ipv4().into()
        } else {
            self.snapshot.virtual_ipv6(ServiceId(0)).into()
        }
    }

    /// A service's virtual address.
    pub(crate) fn virtual_address(&self, service: ServiceId, v4: bool) -> Option<Address> {
        if v4 {
            Some(self.snapshot.services.get(&service)?.virtual_ipv4.into())
        } else {
            Some(self.snapshot.virtual_ipv6(service).into())
        }
    }

    /// The address of a service's workload on a host, if it is placed there.
    pub(crate) fn workload_address(
        &self,
        host: HostId,
        service: ServiceId,
        v4: bool,
    ) -> Option<Address> {
        let ipv4 = self.snapshot.services.get(&service)?.placements.get(&host)?;
        Some(if v4 { (*ipv4).into() } else { self.snapshot.workload_ipv6(host, service).into() })
    }

    /// Whether an address lies in the mesh's ranges, placed or not: tunnels can't end there.
    pub(crate) fn is_overlay(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.snapshot.mesh.ipv4.contains(&address),
            IpAddr::V6(address) => address.octets()[..6] == self.snapshot.mesh.prefix.bytes(),
        }
    }
}

impl std::fmt::Debug for CompiledSnapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CompiledSnapshot")
            .field("revision", &self.snapshot.revision)
            .finish_non_exhaustive()
    }
}
