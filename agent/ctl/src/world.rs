//! Services, hosts and the policy between them, from files or from the running mesh.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use isthmus_model::topology::Topology;
use isthmus_model::{Identity, Layer4, Name, ServicePort, Snapshot, TrustDomain};
use isthmus_policy::Policy;
use isthmus_proto::v1;

use crate::addresses::Addresses;

const DNS_DOMAIN: &str = ".mesh.internal";

/// Query of `explain`.
#[derive(Debug)]
pub(crate) struct World {
    services: BTreeMap<Name, Service>,
    hosts: BTreeSet<Name>,
    devices: BTreeSet<Name>,
    /// Those that have joined though no topology names them.
    undeclared: BTreeSet<Name>,
    /// None where addresses aren't known: the controller gives them.
    addresses: Option<Addresses>,
    trust_domain: Option<TrustDomain>,
    /// None where all rules are known.
    vantage: Option<Vantage>,
    /// Decides.
    pub(crate) policy: Policy,
    /// Where this comes from, for people: "revision 7 of the mesh".
    pub(crate) source: String,
}

#[derive(Clone, Debug)]
struct Service {
    namespace: Name,
    /// Its own first, the others with their names; none for who only calls others.
    ports: Vec<Port>,
    aliases: Vec<Name>,
    /// Hosts with a workload of it, as far as they are known.
    hosts: Vec<Name>,
}

/// A port of a service.
#[derive(Clone, Debug)]
pub(crate) struct Port {
    /// None: its own.
    name: Option<Name>,
    /// What a client sends.
    pub(crate) layer4: Layer4,
}

impl Port {
    fn all(own: Option<Layer4>, more: &[ServicePort]) -> Vec<Self> {
        let own = own.map(|layer4| Self { name: None, layer4 });
        let more = more.iter().map(|it| Self { name: Some(it.name.clone()), layer4: it.layer4() });
        own.into_iter().chain(more).collect()
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{} (\"{name}\")", self.layer4),
            None => write!(f, "{} (its own)", self.layer4),
        }
    }
}

/// A host knows the rules of its own traffic only.
#[derive(Debug)]
struct Vantage {
    host: Name,
    /// The host, its services and the devices behind it.
    residents: BTreeSet<Identity>,
}

impl World {
    pub(crate) fn of_topology(topology: &Topology, source: String) -> Self {
        let services = topology.services.iter().map(|(name, service)| {
            let own = (service.port != 0).then(|| service.protocol.layer4(service.port));
            let ports = Port::all(own, &service.more);
            let (namespace, aliases) = (service.namespace.clone(), service.aliases.clone());
            (name.clone(), Service { namespace, ports, aliases, hosts: Vec::new() })
        });
        Self {
            services: services.collect(),
            hosts: topology.hosts.keys().cloned().collect(),
            devices: topology.devices.keys().cloned().collect(),
            undeclared: BTreeSet::new(),
            addresses: None,
            trust_domain: topology.mesh.trust_domain.clone(),
            vantage: None,
            policy: Policy::for_topology(topology),
            source,
        }
    }

    pub(crate) fn of_snapshot(snapshot: &Snapshot) -> Self {
        let host_name = |id| snapshot.hosts.get(id).map(|host| host.name.clone());
        let services = snapshot.services.values().map(|service| {
            let ports = Port::all(service.has_port().then(|| service.layer4()), &service.more);
            let hosts = service.placements.keys().filter_map(host_name).collect();
            let (namespace, aliases) = (service.namespace.clone(), service.aliases.clone());
            (service.name.clone(), Service { namespace, ports, aliases, hosts })
        });
        let host = snapshot.local_host().name.clone();
        Self {
            services: services.collect(),
            hosts: snapshot.hosts.values().map(|host| host.name.clone()).collect(),
            devices: snapshot.devices.values().map(|device| device.name.clone()).collect(),
            undeclared: BTreeSet::new(),
            addresses: Some(Addresses::of_snapshot(snapshot)),
            trust_domain: Some(snapshot.mesh.trust_domain.clone()),
            policy: Policy::for_snapshot(snapshot),
            source: format!("revision {} as host {host} knows it", snapshot.revision),
            vantage: Some(Vantage { host, residents: residents(snapshot) }),
        }
    }

    /// Adds what the controller knows beyond the topology: who has joined, and whose address is which.
    pub(crate) fn add_status(&mut self, status: &v1::MeshStatus) {
        let hosts = status.hosts.iter().filter_map(|host| host.host.as_ref()?.name.parse().ok());
        let hosts: BTreeSet<Name> = hosts.collect();
        self.undeclared = hosts.difference(&self.hosts).cloned().collect();
        self.hosts.extend(hosts);
        self.trust_domain = status.trust_domain.parse().ok().or_else(|| self.trust_domain.take());
        self.addresses = Some(Addresses::of_status(status));
    }

    /// Where a service is reached, at its own port first; nowhere are hosts, devices, and who only calls
    /// others.
    pub(crate) fn ports(&self, identity: &Identity) -> &[Port] {
        match identity {
            Identity::Service { name, .. } => self.services.get(name).map_or(&[], |it| &it.ports),
            Identity::Host(_) | Identity::Device(_) => &[],
        }
    }

    /// Whether a topology has to declare this host before a rule can name it.
    pub(crate) fn is_undeclared(&self, identity: &Identity) -> bool {
        matches!(identity, Identity::Host(name) if self.undeclared.contains(name))
    }

    /// That the rules between the two are known here.
    ///
    /// # Errors
    ///
    /// Says where else to ask.
    pub(crate) fn can_judge(&self, from: &Identity, to: &Identity) -> Result<(), String> {
        let Some(Vantage { host, residents }) = &self.vantage else { return Ok(()) };
        if residents.contains(from) || residents.contains(to) {
            return Ok(());
        }
        let hosts = |identity: &Identity| match identity {
            Identity::Service { name, .. } => {
                self.services.get(name).map_or(Vec::new(), |service| service.hosts.clone())
            }
            Identity::Host(name) => vec![name.clone()],
            Identity::Device(_) => Vec::new(),
        };
        let elsewhere = hosts(to).into_iter().chain(hosts(from)).next();
        let elsewhere = elsewhere.map(|it| format!(", or on host {it}")).unwrap_or_default();
        Err(format!(
            "Host {host} can't say: it knows the rules of its own traffic only, and neither {from} nor \
             {to} is on it. Ask the whole mesh with an operator's --credentials{elsewhere}"
        ))
    }

    /// Whom a text names, and the port if it says one: `service:web`, `web` where only one kind of
    /// thing is called so, `web.prod`, `web.prod.mesh.internal`, `spiffe://…`, or an address.
    ///
    /// # Errors
    ///
    /// Says what to write instead.
    pub(crate) fn resolve(&self, text: &str) -> Result<(Identity, Option<u16>), String> {
        if let Some(id) = text.strip_prefix("spiffe://") {
            return Ok((self.of_spiffe(text, id)?, None));
        }
        let bare = text.strip_prefix('[').and_then(|it| it.strip_suffix(']')).unwrap_or(text);
        if let Ok(address) = bare.parse::<IpAddr>() {
            return Ok((self.of_address(address)?, None));
        }
        if let Ok(end) = text.parse::<SocketAddr>() {
            return Ok((self.of_address(end.ip())?, Some(end.port())));
        }
        self.of_name(text).map(|identity| (identity, None))
    }

    fn of_address(&self, address: IpAddr) -> Result<Identity, String> {
        let Some(addresses) = &self.addresses else {
            return Err(format!(
                "{address} can't be found in {}: the controller gives addresses. Write a name such as \
                 service:web, or ask the running mesh",
                self.source
            ));
        };
        addresses.find(address).ok_or_else(|| {
            let help = match &self.vantage {
                Some(_) => "; this host knows those only that it may exchange traffic with",
                None => ": overlay addresses are, as `agentctl status` shows them",
            };
            format!("{address} is nobody's in {}{help}", self.source)
        })
    }

    fn of_spiffe(&self, text: &str, id: &str) -> Result<Identity, String> {
        let (domain, path) = id.split_once('/').unwrap_or((id, ""));
        if let Some(ours) = self.trust_domain.as_ref().filter(|ours| ours.as_str() != domain) {
            return Err(format!("{text} is of the trust domain {domain:?}; this mesh is {ours}"));
        }
        let found = match *path.split('/').collect::<Vec<_>>() {
            ["ns", namespace, "sa", name] => self.service_in(name, namespace),
            ["host", name] => self.host(name),
            ["device", name] => self.device(name),
            _ => {
                return Err(format!(
                    "{text} is no identity of a mesh: write …/ns/NAMESPACE/sa/SERVICE, …/host/NAME or \
                     …/device/NAME"
                ));
            }
        };
        found.ok_or_else(|| self.unknown(text, None))
    }

    fn of_name(&self, text: &str) -> Result<Identity, String> {
        let (kind, name) = match text.split_once(':') {
            Some((kind, name)) => (Some(kind), name),
            None => (None, text),
        };
        if let Some(unknown) = kind.filter(|kind| !["service", "host", "device"].contains(kind)) {
            let help = "write service:NAME, host:NAME or device:NAME";
            return Err(format!("There is no kind {unknown:?}; {help}"));
        }
        let dotted = name.trim_end_matches('.');
        let dotted = dotted.strip_suffix(DNS_DOMAIN).unwrap_or(dotted);
        let candidates = match dotted.split_once('.') {
            Some((name, "host")) => Vec::from_iter(self.host(name)),
            Some((name, "device")) => Vec::from_iter(self.device(name)),
            Some((name, namespace)) => Vec::from_iter(self.service_in(name, namespace)),
            None => self.named(dotted),
        };
        let candidates: Vec<Identity> = candidates
            .into_iter()
            .filter(|found| kind.is_none_or(|kind| found.to_string().starts_with(kind)))
            .collect();
        match &*candidates {
            [one] => Ok(one.clone()),
            [] => Err(self.unknown(text, kind)),
            several => {
                let several: Vec<String> = several.iter().map(ToString::to_string).collect();
                Err(format!("{text:?} is more than one thing; write {}", several.join(" or ")))
            }
        }
    }

    fn named(&self, name: &str) -> Vec<Identity> {
        [self.service(name), self.host(name), self.device(name)].into_iter().flatten().collect()
    }

    fn service(&self, name: &str) -> Option<Identity> {
        let by_alias = || {
            let mut services = self.services.iter();
            services.find(|(_, service)| service.aliases.iter().any(|alias| alias.as_str() == name))
        };
        let (name, service) = self.services.get_key_value(name).or_else(by_alias)?;
        Some(Identity::Service { namespace: service.namespace.clone(), name: name.clone() })
    }

    fn service_in(&self, name: &str, namespace: &str) -> Option<Identity> {
        let found = self.services.get(name).filter(|it| it.namespace.as_str() == namespace);
        found.and_then(|_| self.service(name))
    }

    fn host(&self, name: &str) -> Option<Identity> {
        self.hosts.get(name).cloned().map(Identity::Host)
    }

    fn device(&self, name: &str) -> Option<Identity> {
        self.devices.get(name).cloned().map(Identity::Device)
    }

    fn unknown(&self, text: &str, kind: Option<&str>) -> String {
        const SHOWN: usize = 12;
        let services = self.services.keys().map(|name| format!("service:{name}"));
        let hosts = self.hosts.iter().map(|name| format!("host:{name}"));
        let devices = self.devices.iter().map(|name| format!("device:{name}"));
        let fits = |name: &String| kind.is_none_or(|kind| name.starts_with(kind));
        let known: Vec<String> = services.chain(hosts).chain(devices).filter(fits).collect();
        let what = kind.unwrap_or("service, host or device");
        // All services are in each host's directory, others aren't.
        let partly = self.vantage.is_some() && kind != Some("service");
        let partly = match partly {
            true => " (it knows only hosts and devices that it may exchange traffic with)",
            false => "",
        };
        if known.is_empty() {
            return format!(
                "There is no {what} in {}, so {text:?} can't be found{partly}",
                self.source
            );
        }
        let more = known.len().saturating_sub(SHOWN);
        let shown = known[..known.len().min(SHOWN)].join(", ");
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        format!("{text:?} is not in {}; there is {shown}{more}{partly}", self.source)
    }
}

fn residents(snapshot: &Snapshot) -> BTreeSet<Identity> {
    let host = Identity::Host(snapshot.local_host().name.clone());
    let services = snapshot.local_services().map(|(_, service, _)| service.identity());
    let behind = snapshot.devices.values().filter(|device| device.via == snapshot.local);
    let devices = behind.map(|device| Identity::Device(device.name.clone()));
    services.chain(devices).chain([host]).collect()
}
