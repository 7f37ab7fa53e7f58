//! Configuration view: the policy that the proxy applies, and the two ends of a connection.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use foldhash::fast::RandomState;
use isthmus_model::{
    Application, Directory, External, HostId, JwtProvider, KeySource, Layer4, Name, Place,
    Principal, Protocol, Service, ServiceId, Snapshot,
};
use isthmus_policy::{Policy, Query, Request, Stream, Verdict};

use super::listens::{Listens, Shown};
use super::parties::{Parties, Side};
use super::ratelimit::{Limits, RateLimits};
use super::routes::Routes;

/// A map for look-ups by each request. Its keys are few and not for callers to choose, so its hash may be a fast one.
pub(crate) type Map<K, V> = HashMap<K, V, RandomState>;

/// One revision of the mesh, ready for look-ups. Shared as `Arc<ProxySnapshot>`.
#[derive(Clone)]
pub struct ProxySnapshot {
    /// Names and numbers.
    pub snapshot: Arc<Snapshot>,
    /// The rules of the same revision, compiled.
    pub policy: Arc<Policy>,
    /// The addresses of the same revision.
    pub directory: Directory,
    /// Token issuers that rules name in requests to each service; only where there are any.
    pub(crate) providers: Arc<Map<ServiceId, Vec<Arc<JwtProvider>>>>,
    /// Services to which rules look at header fields.
    comparing: Arc<BTreeSet<ServiceId>>,
    /// Its routes, compiled.
    pub(crate) routes: Arc<Routes>,
    /// Rate limits of its services here; nothing is limited before [`ProxySnapshot::limited_by`].
    pub(crate) limits: Limits,
}

impl ProxySnapshot {
    /// Indexes a snapshot and its rules.
    #[must_use]
    pub fn new(snapshot: Arc<Snapshot>, policy: Arc<Policy>) -> Self {
        let directory = Directory::new(&snapshot);
        Self::assemble(snapshot, policy, directory)
    }

    /// Puts together what others have indexed already.
    #[must_use]
    pub fn assemble(snapshot: Arc<Snapshot>, policy: Arc<Policy>, directory: Directory) -> Self {
        let routes = Arc::new(Routes::new(&snapshot));
        let http = || snapshot.services.iter().filter(|(_, it)| it.protocol.carries_requests());
        let compares = |(id, service): (&ServiceId, &Service)| {
            policy.compares_fields(&service.identity()).then_some(*id)
        };
        let comparing = Arc::new(http().filter_map(compares).collect());
        let asked_for = http().map(|(id, service)| (*id, policy.providers(&service.identity())));
        let providers = asked_for.filter(|(_, providers)| !providers.is_empty()).collect();
        let providers = Arc::new(providers);
        let limits = Limits::default();
        Self { snapshot, policy, directory, providers, comparing, routes, limits }
    }

    /// Limits requests as the snapshot says, by buckets that were filled under earlier ones.
    #[must_use]
    pub fn limited_by(mut self, limits: &RateLimits) -> Self {
        self.limits = limits.follow(&self.snapshot);
        self
    }

    /// Key sets that verify tokens.
    pub(crate) fn key_sources(&self) -> BTreeSet<KeySource> {
        self.providers.values().flatten().map(|provider| provider.keys.clone()).collect()
    }

    /// Who the addresses of an accepted connection stand for. None unless `peer` is placed and
    /// `local` is a workload on this host, or the virtual address of a service whose connections lead
    /// through the proxy.
    /// `port`: which of its ports was asked for; its own if none.
    pub(crate) fn parties(
        &self,
        local: IpAddr,
        peer: IpAddr,
        port: Option<u16>,
    ) -> Option<Parties> {
        let here = self.snapshot.local;
        let caller = self.directory.place(peer)?;
        if is_on_kernels_loopback(caller, here) {
            return None;
        }
        match self.directory.place(local)? {
            // Nobody is behind a gateway but its clients.
            Place::Workload(host, service) if host == here && !self.is_gateway(service) => {
                self.parties_of(Side::Server, caller.principal(here), service, port)
            }
            Place::Virtual(service) if self.is_of_here(caller) => {
                self.parties_of(Side::Client, caller.principal(here), service, port)
            }
            Place::Workload(..)
            | Place::Virtual(_)
            | Place::Host(_)
            | Place::Device(..)
            | Place::Anycast => None,
        }
    }

    /// A gateway here on behalf of a client from outside. None if there is no such gateway.
    pub(crate) fn visitors(&self, gateway: ServiceId) -> Option<Parties> {
        let service = self.snapshot.services.get(&gateway)?;
        service.placements.get(&self.snapshot.local)?;
        service.gateway()?;
        self.parties_of(Side::Client, Principal::Service(gateway), gateway, None)
    }

    /// The same caller, at the door of a workload here.
    pub(crate) fn parties_here(&self, parties: &Parties, service: ServiceId) -> Option<Parties> {
        let port = parties.port_of(service);
        self.parties_of(Side::Server, parties.caller, service, port)
    }

    /// Whether a service has more ports than its own, so that an address alone doesn't say which is meant.
    pub(crate) fn has_several_ports(&self, address: IpAddr) -> bool {
        let service = match self.directory.place(address) {
            Some(Place::Workload(_, service) | Place::Virtual(service)) => service,
            Some(Place::Host(_) | Place::Device(..) | Place::Anycast) | None => return false,
        };
        self.snapshot.services.get(&service).is_some_and(|it| !it.more.is_empty())
    }

    /// The address of a caller's workload here, from which the mesh knows it.
    pub(crate) fn speaks_from(&self, parties: &Parties, v4: bool) -> Option<IpAddr> {
        let here = self.snapshot.local;
        let (ipv4, service) = match parties.caller {
            Principal::Service(id) => {
                (*self.snapshot.services.get(&id)?.placements.get(&here)?, id)
            }
            Principal::Host(_) => (self.snapshot.local_host().ipv4(), ServiceId(0)),
            Principal::Device(_) => return None,
        };
        let ipv6 = self.snapshot.workload_ipv6(here, service);
        Some(if v4 { ipv4.into() } else { ipv6.into() })
    }

    fn parties_of(
        &self,
        side: Side,
        caller: Principal,
        id: ServiceId,
        port: Option<u16>,
    ) -> Option<Parties> {
        let service = self.snapshot.services.get(&id)?;
        let asked =
            |(number, ..): &(u16, Protocol, Application)| port.is_none_or(|it| it == *number);
        let tcp = |(_, protocol, _): &(u16, Protocol, Application)| *protocol != Protocol::Udp;
        let (port, protocol, application) = service.ports().filter(tcp).find(asked)?;
        // The flow table leads to the proxy whose application listens on the other family only.
        let is_here = side == Side::Server && service.edge.is_none();
        (protocol.is_proxied(application) || is_here).then_some(())?;
        Some(Parties {
            protocol,
            side,
            caller,
            from: self.snapshot.identity(caller)?,
            to: service.identity(),
            service: id,
            is_own_port: port == service.port,
            port,
        })
    }

    /// Whether rules look at the header fields of requests to a service.
    pub(crate) fn compares_fields(&self, service: ServiceId) -> bool {
        self.comparing.contains(&service)
    }

    /// Whether a service is more than a name for others.
    pub(crate) fn has_workloads(&self, service: ServiceId) -> bool {
        self.snapshot.services.get(&service).is_some_and(|it| !it.placements.is_empty())
    }

    /// Protocol of a service's applications at a port; at its own if none.
    pub(crate) fn application(&self, service: ServiceId, port: Option<u16>) -> Application {
        let Some(known) = self.snapshot.services.get(&service) else {
            return Application::default();
        };
        let mut ports = known.ports().filter(|(_, protocol, _)| *protocol != Protocol::Udp);
        let asked = ports.find(|(number, ..)| port.is_none_or(|it| it == *number));
        asked.map_or(known.application, |(.., application)| application)
    }

    /// Other addresses than `asked` (its workload's here) at which a service's application may listen.
    pub(crate) fn listens(&self, service: ServiceId, asked: SocketAddr) -> Listens {
        let (here, known) = (self.snapshot.local, self.snapshot.services.get(&service));
        let Some(known) = known else { return Listens::There };
        match (self.application(service, Some(asked.port())).listen, asked.ip()) {
            (Some(address), _) => Listens::At(address),
            (None, IpAddr::V4(_)) => {
                Listens::OrAt(self.snapshot.workload_ipv6(here, service).into())
            }
            (None, IpAddr::V6(_)) => known
                .placements
                .get(&here)
                .map_or(Listens::There, |address| Listens::OrAt((*address).into())),
        }
    }

    /// As whom an application is to see the proxy: as the caller that has an address, by both
    /// families. None: as the proxy.
    pub(crate) fn shown(&self, application: Application, caller: IpAddr) -> Option<Shown> {
        application.shows_callers().then_some(())?;
        let place = self.directory.place(caller)?;
        self.snapshot.addresses_of(place).map(|(v4, v6)| Shown { v4, v6 })
    }

    /// The server outside of the mesh that a service stands for, if it is spoken to from here.
    pub(crate) fn external(&self, service: ServiceId) -> Option<&External> {
        self.snapshot.services.get(&service)?.external_from(self.snapshot.local)
    }

    /// Whether the caller is a gateway, which may say who its clients are.
    pub(crate) fn speaks_for_others(&self, parties: &Parties) -> bool {
        match parties.caller {
            Principal::Service(caller) => self.is_gateway(caller),
            Principal::Host(_) | Principal::Device(_) => false,
        }
    }

    pub(crate) fn is_gateway(&self, service: ServiceId) -> bool {
        self.snapshot.services.get(&service).is_some_and(|it| it.gateway().is_some())
    }

    /// Who opens a flow that stays on this host shows the virtual address of its service, or the
    /// host's anycast one.
    fn is_of_here(&self, caller: Place) -> bool {
        match caller {
            Place::Virtual(service) => {
                let services = &self.snapshot.services;
                services
                    .get(&service)
                    .is_some_and(|it| it.placements.contains_key(&self.snapshot.local))
            }
            Place::Anycast => true,
            Place::Host(_) | Place::Workload(..) | Place::Device(..) => false,
        }
    }

    /// Judges a connection without requests.
    pub(crate) fn judge_stream(&self, parties: &Parties, stream: Stream<'_>) -> Verdict {
        let query = Query {
            from: &parties.from,
            to: &parties.to,
            layer4: Layer4::Tcp(parties.port),
            request: None,
        };
        self.policy.evaluate_stream(&query, stream)
    }

    /// The name of the host that an address is on, if it is placed.
    pub(crate) fn host_of(&self, peer: IpAddr) -> Option<&Name> {
        let host = match self.directory.place(peer) {
            Some(Place::Host(host) | Place::Workload(host, _)) => host,
            // Flows that stay here show virtual addresses.
            Some(Place::Virtual(_) | Place::Anycast) => self.snapshot.local,
            Some(Place::Device(..)) | None => return None,
        };
        self.snapshot.hosts.get(&host).map(|host| &host.name)
    }

    /// Judges a request, or without one the connection as a whole.
    pub(crate) fn judge(&self, parties: &Parties, request: Option<Request<'_>>) -> Verdict {
        self.policy.evaluate(&Query {
            from: &parties.from,
            to: &parties.to,
            layer4: Layer4::Tcp(parties.port),
            request,
        })
    }
}

/// A process of this host that dials a workload's address directly never passes the flow table,
/// which alone verifies sources: any user may bind any address of the host. Flows that stay on this
/// host by way of a virtual address come from one.
fn is_on_kernels_loopback(caller: Place, local: HostId) -> bool {
    match caller {
        Place::Host(host) | Place::Workload(host, _) => host == local,
        Place::Device(..) | Place::Virtual(_) | Place::Anycast => false,
    }
}

impl fmt::Debug for ProxySnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProxySnapshot")
            .field("revision", &self.snapshot.revision)
            .finish_non_exhaustive()
    }
}
