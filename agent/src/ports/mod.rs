//! The ports of services, guarded on their own host: who reaches them around the mesh, and who
//! listens there.
//!
//! An application that listens on all addresses is reached by every interface, past tunnel and
//! policy, and by every user of its host; where the proxy tells it who calls, it would believe
//! whoever says the same. So a packet filter closes such ports, or counts who comes (`exposure`).
//! And since any user can take the port of a service that is down, it is looked who holds the socket
//! that listens there (`listener`).
//!
//! ```text
//!  other interfaces ──▶ ✕ closed, or counted ──▶ application ◀── mesh (isth0)
//!  loopback ──────────▶ ✕ if it is told who calls ──▶  │  ◀── the proxy, known by its mark
//!                                             whose is the socket?
//! ```

mod applications;
mod behind;
mod counts;
mod keeper;
mod listeners;
mod script;
mod selectors;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use isthmus_model::{Exposure, Layer4, ListenerCheck, Service, ServiceId, Snapshot};

pub(crate) use behind::Behind;
pub(crate) use keeper::{Kept, keep};
pub(crate) use script::{lower, raise};

/// A port of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Port {
    /// UDP, or TCP.
    pub udp: bool,
    pub number: u16,
}

/// As people write it.
impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", if self.udp { "udp" } else { "tcp" }, self.number)
    }
}

impl Port {
    /// Listening addresses of a service's applications.
    #[must_use]
    pub(crate) const fn of(service: &Service) -> Self {
        match service.layer4() {
            Layer4::Udp(number) => Self { udp: true, number },
            Layer4::Tcp(_) | Layer4::Icmp | Layer4::Other(_) => {
                Self { udp: false, number: service.application_port() }
            }
        }
    }
}

/// What the filter does about which ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ports {
    /// Closed around the mesh.
    pub closed: BTreeSet<Port>,
    /// Who comes around it is counted.
    pub counted: BTreeSet<Port>,
    /// Those of both whose applications are told who calls: loopback counts as around.
    pub told: BTreeSet<Port>,
    /// Closed to the mesh, too: somebody else may listen.
    pub refused: BTreeSet<Port>,
    /// Where only the users in `own` may answer: whoever takes the port of a service that is down
    /// gets nothing, before anybody has looked.
    pub strict: BTreeSet<Place>,
    /// The users that were seen to listen for the service.
    pub own: BTreeSet<(Place, u32)>,
    /// As whom services speak first from their own ports, and are answered there.
    pub speakers: BTreeSet<(Port, u32)>,
    /// Containers with networks of their own.
    pub behind: Behind,
}

/// A workload's address and port.
pub(crate) type Place = (IpAddr, Port);

impl Ports {
    /// Those of the services with workloads on this host. Where services share a port, the one that
    /// leaves it most open counts; what a gateway listens on stays open. `refused`: strict services
    /// whose listener isn't known to be theirs; `users`: as whom the others' listeners are open.
    #[must_use]
    pub(crate) fn of(
        snapshot: &Snapshot,
        refused: &BTreeSet<Key>,
        users: &BTreeMap<Key, BTreeSet<u32>>,
    ) -> Self {
        let mut exposures: BTreeMap<Port, (Exposure, bool)> = BTreeMap::new();
        let mut ports = Self::default();
        for (id, service) in guarded(snapshot) {
            let port = Port::of(&service);
            let (exposure, told) = (service.guard.exposure, service.is_told_callers());
            let known = exposures.entry(port).or_insert((exposure, told));
            *known = (known.0.max(exposure), known.1 && told);
            if refused.contains(&id) {
                ports.refused.insert(port);
            }
            let users = users.get(&id).into_iter().flatten();
            ports.speakers.extend(users.clone().map(|user| (port, *user)));
            if service.guard.listener == ListenerCheck::Strict {
                for address in addresses(snapshot, id.0, &service) {
                    ports.strict.insert((address, port));
                    ports.own.extend(users.clone().map(|user| ((address, port), *user)));
                }
            }
        }
        for port in doors(snapshot) {
            exposures.remove(&port);
        }
        for (port, (exposure, told)) in exposures {
            match exposure {
                Exposure::Mesh => ports.closed.insert(port),
                Exposure::Count => ports.counted.insert(port),
                Exposure::Open => continue,
            };
            if told {
                ports.told.insert(port);
            }
        }
        let Self { closed, counted, speakers, .. } = &mut ports;
        speakers.retain(|(port, _)| closed.contains(port) || counted.contains(port));
        ports
    }
}

/// A service's application here, at one of its ports.
type Key = (ServiceId, u16);

/// The services with applications of their own on this host, at each port by which they are called: as if
/// they had no other.
fn guarded(snapshot: &Snapshot) -> impl Iterator<Item = (Key, Cow<'_, Service>)> {
    residents(snapshot)
        .flat_map(|(id, service)| service.at_each_port().map(move |it| ((id, it.port), it)))
}

/// The services with processes of their own on this host.
fn residents(snapshot: &Snapshot) -> impl Iterator<Item = (ServiceId, &Service)> {
    let here = snapshot.local_services().filter(|(_, service, _)| service.edge.is_none());
    here.map(|(id, service, _)| (id, service))
}

/// At which the application of a service here is to listen: its workload's, unless the topology says
/// another one.
fn addresses(
    snapshot: &Snapshot,
    id: ServiceId,
    service: &Service,
) -> impl Iterator<Item = IpAddr> + use<> {
    let ipv4 = service.placements.get(&snapshot.local).copied().map(IpAddr::from);
    let of_workload = [ipv4, Some(snapshot.workload_ipv6(snapshot.local, id).into())];
    let said = service.application.listen.map(|it| [Some(it.ip()), None]);
    said.unwrap_or(of_workload).into_iter().flatten()
}

/// Where gateways let the world in.
fn doors(snapshot: &Snapshot) -> impl Iterator<Item = Port> {
    let gateways = snapshot.local_services().filter_map(|(_, service, _)| service.gateway());
    let listeners = gateways.flat_map(|gateway| &gateway.listeners);
    listeners.map(|listener| Port { udp: false, number: listener.port })
}

#[cfg(test)]
mod tests {
    use isthmus_model::edge::Listener;
    use isthmus_model::{Edge, Gateway, HostId, PortGuard, Protocol};

    use super::*;

    /// Services on this host, by number from 20 on.
    pub(super) fn snapshot(services: &[(u16, Protocol, Exposure)]) -> Snapshot {
        let mut snapshot = (*crate::local::show::tests::state().snapshot).clone();
        let model = snapshot.services[&ServiceId(7)].clone();
        snapshot.services.remove(&ServiceId(7));
        for (number, (port, protocol, exposure)) in (20..).zip(services) {
            let service = Service {
                name: format!("s{number}").parse().unwrap(),
                port: *port,
                protocol: *protocol,
                guard: PortGuard { exposure: *exposure, ..PortGuard::default() },
                aliases: Vec::new(),
                ..model.clone()
            };
            snapshot.services.insert(ServiceId(number), service);
        }
        snapshot
    }

    fn ports(numbers: &[u16]) -> BTreeSet<Port> {
        numbers.iter().map(|number| Port { udp: false, number: *number }).collect()
    }

    #[test]
    fn only_declared_services_of_this_host_have_guarded_ports() {
        let snapshot = snapshot(&[
            (80, Protocol::Http, Exposure::Mesh),
            (81, Protocol::Tcp, Exposure::Mesh),
            (82, Protocol::Auto, Exposure::Count),
            (83, Protocol::Http, Exposure::Open),
        ]);
        let guarded = Ports::of(&snapshot, &BTreeSet::new(), &BTreeMap::new());
        assert_eq!(guarded.closed, ports(&[80, 81]));
        assert_eq!(guarded.counted, ports(&[82]));
        assert_eq!(guarded.told, ports(&[80, 82]), "loopback closes only where it is told");
        // web, on the other host, has 8080.
        assert!(!guarded.counted.iter().any(|port| port.number == 8080));

        let moved = Snapshot { local: HostId(2), ..snapshot };
        let elsewhere = Ports::of(&moved, &BTreeSet::new(), &BTreeMap::new());
        assert_eq!((elsewhere.closed, elsewhere.counted), (ports(&[]), ports(&[8080])));
    }

    #[test]
    fn a_shared_port_stays_as_open_as_any_of_its_services_wants() {
        let snapshot = snapshot(&[
            (80, Protocol::Http, Exposure::Mesh),
            (80, Protocol::Tcp, Exposure::Mesh),
            (81, Protocol::Http, Exposure::Mesh),
            (81, Protocol::Http, Exposure::Count),
        ]);
        let guarded = Ports::of(&snapshot, &[(ServiceId(22), 81)].into(), &BTreeMap::new());
        assert_eq!((guarded.closed, guarded.told), (ports(&[80]), ports(&[81])));
        assert_eq!((guarded.counted, guarded.refused), (ports(&[81]), ports(&[81])));
    }

    #[test]
    fn only_its_own_users_answer_for_a_strict_service() {
        let mut snapshot = snapshot(&[
            (80, Protocol::Tcp, Exposure::Mesh),
            (81, Protocol::Tcp, Exposure::Mesh),
            (82, Protocol::Tcp, Exposure::Mesh),
        ]);
        for id in [ServiceId(20), ServiceId(21)] {
            snapshot.services.get_mut(&id).unwrap().guard.listener = ListenerCheck::Strict;
        }
        let users =
            [(20, 80), (22, 82)].map(|(id, port)| ((ServiceId(id), port), [33].into())).into();
        let guarded = Ports::of(&snapshot, &[(ServiceId(21), 81)].into(), &users);
        let strict: BTreeSet<Port> = guarded.strict.iter().map(|(_, port)| *port).collect();
        let own: BTreeSet<Port> = guarded.own.iter().map(|((_, port), _)| *port).collect();
        let speakers: BTreeSet<Port> = guarded.speakers.iter().map(|(port, _)| *port).collect();
        assert_eq!((strict, own, speakers), (ports(&[80, 81]), ports(&[80]), ports(&[80, 82])));
        assert!(guarded.own.iter().any(|((address, _), user)| address.is_ipv6() && *user == 33));
    }

    #[test]
    fn a_gateways_door_stays_open() {
        let mut snapshot =
            snapshot(&[(443, Protocol::Tcp, Exposure::Mesh), (9, Protocol::Http, Exposure::Mesh)]);
        let listener = Listener { port: 443, hosts: Vec::new(), tls: None, https_redirect: false };
        let gateway = Gateway { listeners: vec![listener], trusted_proxies: Vec::new() };
        let service = snapshot.services.get_mut(&ServiceId(21)).unwrap();
        service.edge = Some(Edge::Gateway(gateway));
        assert_eq!(Ports::of(&snapshot, &BTreeSet::new(), &BTreeMap::new()), Ports::default());
    }
}
