//! A snapshot: what one host knows of the mesh at one revision. The controller slices it, the agent
//! keeps it on disk and works by it.

mod selector;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::address::{Ipv4Net, MeshPrefix};
use crate::application::Application;
use crate::balance::Balance;
use crate::directory::Place;
use crate::edge::{Edge, External, Gateway};
use crate::guard::PortGuard;
use crate::identity::{DeviceId, HostId, Identity, Principal, ServiceId, TrustDomain};
use crate::key::PublicKey;
use crate::name::Name;
use crate::ratelimit::RateLimit;
use crate::route::Route;
use crate::rules::{Layer4, Rules};

pub use self::selector::{ContainerMatch, Selector};

/// The number of an immutable snapshot of the mesh's configuration. 0 is "none yet".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Configuration of the mesh as one host needs it.
///
/// INVARIANT (kept by whoever builds it): every id that a part names is a key of the table it names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Which one this is.
    pub revision: Revision,
    /// Settings of the whole mesh.
    pub mesh: Mesh,
    /// The host that this snapshot is for; a key of `hosts`.
    pub local: HostId,
    /// This host, and those it may exchange traffic with.
    pub hosts: BTreeMap<HostId, Host>,
    /// All services of the mesh (so that denials can be named); placements only where they matter.
    pub services: BTreeMap<ServiceId, Service>,
    /// The devices that this host may exchange traffic with.
    pub devices: BTreeMap<DeviceId, Device>,
    /// The rules that can decide about this host's traffic.
    pub rules: Rules,
    /// The routes of services that this host's residents may call, in order.
    pub routes: Vec<Route>,
    /// The limits of services that are placed here.
    pub limits: Vec<RateLimit>,
}

/// Settings of the whole mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mesh {
    /// The mesh's name.
    pub name: Name,
    /// The root of its identities.
    pub trust_domain: TrustDomain,
    /// Its IPv6 prefix.
    pub prefix: MeshPrefix,
    /// All its IPv4 addresses.
    pub ipv4: Ipv4Net,
    /// The part of `ipv4` that holds virtual addresses. Its first address is the IPv4 twin of the
    /// mesh's anycast address.
    pub virtual_ipv4: Ipv4Net,
}

/// A host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Its name.
    pub name: Name,
    /// Where it stands.
    pub site: Option<Name>,
    /// Labels set by its operators.
    pub labels: BTreeMap<String, String>,
    /// Its tunnel key.
    pub public_key: PublicKey,
    /// The one before, while that is good as well.
    pub former_key: Option<PublicKey>,
    /// Endpoints of its tunnels; may be empty (then it must speak first).
    pub endpoints: Vec<SocketAddr>,
    /// Its IPv4 addresses; the first is the host's own.
    pub ipv4_block: Ipv4Net,
}

/// A service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub name: Name,
    /// Its namespace.
    pub namespace: Name,
    /// The port that it listens on, on every workload and on the virtual addresses. 0: none, since it only
    /// calls others.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
    /// Its further ports, on the same addresses.
    pub more: Vec<ServicePort>,
    /// Its virtual IPv4 address; the IPv6 one follows from its number.
    pub virtual_ipv4: Ipv4Addr,
    /// The hosts with a workload of it, and the workload's IPv4 address there.
    pub placements: BTreeMap<HostId, Ipv4Addr>,
    /// Those of these hosts whose workloads are about to go: they get nothing new.
    pub leaving: BTreeSet<HostId>,
    /// Selectors of its processes on a host.
    pub selectors: Vec<Selector>,
    /// Load balancing of its requests, if it speaks HTTP.
    pub balance: Balance,
    /// Its role at the mesh's edge, if any. Its placements are gateways' hosts then.
    pub edge: Option<Edge>,
    /// Protocol from the proxy to its applications.
    pub application: Application,
    /// Handling of paths with several spellings, if it speaks HTTP.
    pub paths: PathMode,
    /// Guard of its port.
    pub guard: PortGuard,
    /// Names that it had before: DNS finds it by them, too.
    pub aliases: Vec<Name>,
}

/// A further port of a service. Rules that allow are about it only if they name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name in rules.
    pub name: Name,
    /// Its number.
    pub port: u16,
    /// Protocol there.
    pub protocol: Protocol,
    /// Protocol from the proxy to the listener there.
    pub application: Application,
}

impl ServicePort {
    /// Transport protocol and port that a client uses.
    #[must_use]
    pub const fn layer4(&self) -> Layer4 {
        self.protocol.layer4(self.port)
    }
}

/// Protocol of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP, judged by connection.
    Tcp,
    /// UDP.
    Udp,
    /// HTTP/1.1 or HTTP/2, judged by request.
    Http,
    /// TLS that isn't ended here, routed and judged by the server name that callers ask for.
    Tls,
    /// Whatever a connection turns out to carry: judged by request if it is HTTP, else as a whole.
    Auto,
}

impl Protocol {
    /// Whether requests may be seen in it.
    #[must_use]
    pub const fn carries_requests(self) -> bool {
        matches!(self, Self::Http | Self::Auto)
    }

    /// Whether connections of it lead through the proxy, to such an application.
    #[must_use]
    pub const fn is_proxied(self, application: Application) -> bool {
        application.needs_proxy() || matches!(self, Self::Http | Self::Tls | Self::Auto)
    }

    /// Transport that carries it.
    #[must_use]
    pub const fn layer4(self, port: u16) -> Layer4 {
        match self {
            Self::Tcp | Self::Http | Self::Tls | Self::Auto => Layer4::Tcp(port),
            Self::Udp => Layer4::Udp(port),
        }
    }

    /// Whether TLS may be seen in it.
    #[must_use]
    pub const fn carries_tls(self) -> bool {
        matches!(self, Self::Tls | Self::Auto)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Http => "http",
            Self::Tls => "tls",
            Self::Auto => "auto",
        })
    }
}

/// Handling of a path with several spellings or readings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PathMode {
    /// `strict`: what can be read in two ways is refused.
    #[default]
    Strict,
    /// `merge-slashes`: a backslash becomes a slash, `.` and `..` are resolved, slashes that follow
    /// each other become one. What can still be read in two ways is refused.
    MergeSlashes,
    /// `decode-and-merge-slashes`: the same, once `%2F` and `%5C` are decoded.
    DecodeAndMergeSlashes,
    /// `as-is`: it passes as it came, and is refused only where a rule about paths has to decide.
    AsIs,
}

impl PathMode {
    /// All of them.
    pub const ALL: [Self; 4] =
        [Self::Strict, Self::MergeSlashes, Self::DecodeAndMergeSlashes, Self::AsIs];
}

/// As topologies write it.
impl fmt::Display for PathMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Strict => "strict",
            Self::MergeSlashes => "merge-slashes",
            Self::DecodeAndMergeSlashes => "decode-and-merge-slashes",
            Self::AsIs => "as-is",
        })
    }
}

/// A machine without an agent that runs plain WireGuard, reached through its gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its name.
    pub name: Name,
    /// Its tunnel key.
    pub public_key: PublicKey,
    /// The host that ends its tunnel.
    pub via: HostId,
    /// Its address, from the block of `via`; the IPv6 one is (`via`, its number).
    pub ipv4: Ipv4Addr,
}

impl Mesh {
    /// The address that stands for the host itself on flows that stay on one host.
    #[must_use]
    pub fn anycast_ipv4(&self) -> Ipv4Addr {
        self.virtual_ipv4.network()
    }
}

impl Host {
    /// The host's own IPv4 address.
    #[must_use]
    pub fn ipv4(&self) -> Ipv4Addr {
        self.ipv4_block.network()
    }
}

impl Service {
    /// The service as an identity.
    #[must_use]
    pub fn identity(&self) -> Identity {
        Identity::Service { namespace: self.namespace.clone(), name: self.name.clone() }
    }

    /// The gateway, if it is one.
    #[must_use]
    pub fn gateway(&self) -> Option<&Gateway> {
        self.edge.as_ref().and_then(Edge::gateway)
    }

    /// The server outside of the mesh, if it stands for one.
    #[must_use]
    pub fn external(&self) -> Option<&External> {
        self.edge.as_ref().and_then(Edge::external)
    }

    /// Whether its connections lead through the proxy.
    #[must_use]
    pub const fn is_proxied(&self) -> bool {
        self.protocol.is_proxied(self.application)
    }

    /// Whether anybody can call it.
    #[must_use]
    pub const fn has_port(&self) -> bool {
        self.port != 0
    }

    /// Its ports, its own first: what is spoken there, and how the proxy speaks to who listens.
    pub fn ports(&self) -> impl Iterator<Item = (u16, Protocol, Application)> {
        let own = self.has_port().then_some((self.port, self.protocol, self.application));
        own.into_iter().chain(self.more.iter().map(|it| (it.port, it.protocol, it.application)))
    }

    /// The service at each of its ports, as if it had no other.
    pub fn at_each_port(&self) -> impl Iterator<Item = Cow<'_, Self>> {
        let own = self.has_port().then_some(Cow::Borrowed(self));
        own.into_iter().chain(self.more.iter().map(|it| Cow::Owned(self.at_port(it))))
    }

    fn at_port(&self, port: &ServicePort) -> Self {
        Self {
            port: port.port,
            protocol: port.protocol,
            application: port.application,
            more: Vec::new(),
            ..self.clone()
        }
    }

    /// The port that its applications listen on.
    #[must_use]
    pub const fn application_port(&self) -> u16 {
        self.application.port(self.port)
    }

    /// Whether its application sees its callers' addresses, though the proxy speaks to it.
    #[must_use]
    pub const fn shows_callers(&self) -> bool {
        self.application.shows_callers() && self.is_proxied()
    }

    /// Whether its application is told by the proxy who calls, and believes whoever says the same.
    #[must_use]
    pub const fn is_told_callers(&self) -> bool {
        self.edge.is_none()
            && (self.protocol.carries_requests()
                || self.application.proxy_protocol.is_some()
                || self.shows_callers())
    }

    /// The server outside of the mesh that it stands for, if a host speaks to it itself.
    #[must_use]
    pub fn external_from(&self, host: HostId) -> Option<&External> {
        let direct = self.placements.is_empty() || self.placements.contains_key(&host);
        self.external().filter(|_| direct)
    }

    /// Port and transport that a client of this service uses.
    #[must_use]
    pub const fn layer4(&self) -> Layer4 {
        self.protocol.layer4(self.port)
    }
}

impl Snapshot {
    /// This host.
    ///
    /// # Panics
    ///
    /// If the invariant is broken: `local` is a key of `hosts`.
    #[must_use]
    pub fn local_host(&self) -> &Host {
        self.hosts.get(&self.local).expect("INVARIANT: `local` is a key of `hosts`")
    }

    /// The IPv6 address of a workload.
    #[must_use]
    pub fn workload_ipv6(&self, host: HostId, service: ServiceId) -> Ipv6Addr {
        self.mesh.prefix.address(host, service)
    }

    /// Both addresses of who has one of them.
    #[must_use]
    pub fn addresses_of(&self, place: Place) -> Option<(Ipv4Addr, Ipv6Addr)> {
        Some(match place {
            Place::Host(host) => {
                (self.hosts.get(&host)?.ipv4(), self.workload_ipv6(host, ServiceId(0)))
            }
            Place::Workload(host, service) => {
                let ipv4 = self.services.get(&service)?.placements.get(&host)?;
                (*ipv4, self.workload_ipv6(host, service))
            }
            Place::Device(host, device) => {
                (self.devices.get(&device)?.ipv4, self.workload_ipv6(host, ServiceId(device.0)))
            }
            Place::Virtual(service) => {
                (self.services.get(&service)?.virtual_ipv4, self.virtual_ipv6(service))
            }
            Place::Anycast => (self.mesh.anycast_ipv4(), self.virtual_ipv6(ServiceId(0))),
        })
    }

    /// The virtual IPv6 address of a service.
    #[must_use]
    pub fn virtual_ipv6(&self, service: ServiceId) -> Ipv6Addr {
        self.mesh.prefix.address(HostId(0), service)
    }

    /// The name behind a number, if this snapshot knows it.
    #[must_use]
    pub fn identity(&self, principal: Principal) -> Option<Identity> {
        match principal {
            Principal::Host(id) => {
                self.hosts.get(&id).map(|host| Identity::Host(host.name.clone()))
            }
            Principal::Service(id) => self.services.get(&id).map(Service::identity),
            Principal::Device(id) => {
                self.devices.get(&id).map(|device| Identity::Device(device.name.clone()))
            }
        }
    }

    /// The services that have a workload on this host.
    pub fn local_services(&self) -> impl Iterator<Item = (ServiceId, &Service, Ipv4Addr)> {
        self.services.iter().filter_map(|(id, service)| {
            service.placements.get(&self.local).map(|ipv4| (*id, service, *ipv4))
        })
    }

    /// The addresses that belong on this host's TUN device: its own, then those of its workloads.
    pub fn local_addresses(&self) -> impl Iterator<Item = IpAddr> {
        let own = [
            IpAddr::V4(self.local_host().ipv4()),
            IpAddr::V6(self.workload_ipv6(self.local, ServiceId(0))),
        ];
        own.into_iter().chain(self.local_services().flat_map(|(id, _, ipv4)| {
            [IpAddr::V4(ipv4), IpAddr::V6(self.workload_ipv6(self.local, id))]
        }))
    }
}

#[cfg(test)]
mod tests;
