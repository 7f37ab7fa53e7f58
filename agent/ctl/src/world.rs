//! Who exists, and the policy between them: from files, or from what runs.

use std::collections::{BTreeMap, BTreeSet};

use isthmus_model::topology::Topology;
use isthmus_model::{Identity, Layer4, Name, Protocol, Snapshot};
use isthmus_policy::Policy;

/// What `explain` asks.
#[derive(Debug)]
pub(crate) struct World {
    services: BTreeMap<Name, Service>,
    hosts: BTreeSet<Name>,
    devices: BTreeSet<Name>,
    /// Decides.
    pub(crate) policy: Policy,
    /// Where this comes from, for people: "revision 7 of the mesh".
    pub(crate) source: String,
}

#[derive(Clone, Debug)]
struct Service {
    namespace: Name,
    layer4: Layer4,
}

impl World {
    pub(crate) fn of_topology(topology: &Topology, source: String) -> Self {
        let services = topology.services.iter().map(|(name, service)| {
            let layer4 = layer4(service.protocol, service.port);
            (name.clone(), Service { namespace: service.namespace.clone(), layer4 })
        });
        Self {
            services: services.collect(),
            hosts: topology.hosts.keys().cloned().collect(),
            devices: topology.devices.keys().cloned().collect(),
            policy: Policy::for_topology(topology),
            source,
        }
    }

    pub(crate) fn of_snapshot(snapshot: &Snapshot) -> Self {
        let services = snapshot.services.values().map(|service| {
            let layer4 = service.layer4();
            (service.name.clone(), Service { namespace: service.namespace.clone(), layer4 })
        });
        Self {
            services: services.collect(),
            hosts: snapshot.hosts.values().map(|host| host.name.clone()).collect(),
            devices: snapshot.devices.values().map(|device| device.name.clone()).collect(),
            policy: Policy::for_snapshot(snapshot),
            source: format!(
                "revision {} as host {} knows it",
                snapshot.revision,
                snapshot.local_host().name
            ),
        }
    }

    /// Adds hosts that have joined though no topology names them.
    pub(crate) fn add_hosts(&mut self, names: impl IntoIterator<Item = Name>) {
        self.hosts.extend(names);
    }

    /// The port that a service is reached at; none for hosts and devices.
    pub(crate) fn own_port(&self, identity: &Identity) -> Option<Layer4> {
        match identity {
            Identity::Service { name, .. } => self.services.get(name).map(|service| service.layer4),
            Identity::Host(_) | Identity::Device(_) => None,
        }
    }

    /// Whom a text names: `service:web`, or `web` where only one kind of thing is called so.
    ///
    /// # Errors
    ///
    /// Says what to write instead.
    pub(crate) fn resolve(&self, text: &str) -> Result<Identity, String> {
        let (kind, name) = match text.split_once(':') {
            Some((kind, name)) => (Some(kind), name),
            None => (None, text),
        };
        if let Some(unknown) = kind.filter(|kind| !["service", "host", "device"].contains(kind)) {
            let help = "write service:NAME, host:NAME or device:NAME";
            return Err(format!("There is no kind {unknown:?}; {help}"));
        }
        let candidates: Vec<Identity> = self
            .named(name)
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
        let service = self.services.get_key_value(name).map(|(name, service)| Identity::Service {
            namespace: service.namespace.clone(),
            name: name.clone(),
        });
        let host = self.hosts.get(name).cloned().map(Identity::Host);
        let device = self.devices.get(name).cloned().map(Identity::Device);
        [service, host, device].into_iter().flatten().collect()
    }

    fn unknown(&self, text: &str, kind: Option<&str>) -> String {
        const SHOWN: usize = 12;
        let services = self.services.keys().map(|name| format!("service:{name}"));
        let hosts = self.hosts.iter().map(|name| format!("host:{name}"));
        let devices = self.devices.iter().map(|name| format!("device:{name}"));
        let fits = |name: &String| kind.is_none_or(|kind| name.starts_with(kind));
        let known: Vec<String> = services.chain(hosts).chain(devices).filter(fits).collect();
        let what = kind.unwrap_or("service, host or device");
        if known.is_empty() {
            return format!("There is no {what} in {}, so {text:?} can't be found", self.source);
        }
        let more = known.len().saturating_sub(SHOWN);
        let shown = known[..known.len().min(SHOWN)].join(", ");
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        format!("{text:?} is not in {}; there is {shown}{more}", self.source)
    }
}

const fn layer4(protocol: Protocol, port: u16) -> Layer4 {
    match protocol {
        Protocol::Tcp | Protocol::Http | Protocol::Tls | Protocol::Auto => Layer4::Tcp(port),
        Protocol::Udp => Layer4::Udp(port),
    }
}
