//! Small meshes, written in a line or two.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use isthmus_model::{
    Action, Device, DeviceId, Host, HostId, Ipv4Net, Mesh, MeshPrefix, Name, Origin, Protocol,
    Revision, Rule, Rules, Service, ServiceId, Snapshot, Subject,
};

use crate::public_key;

/// Builds a [`Topology`].
#[derive(Clone, Debug)]
pub struct Builder {
    hosts: u32,
    services: Vec<(String, u16, Protocol, Vec<u32>)>,
    devices: Vec<(String, u32)>,
    rules: Rules,
    endpoints_v6: bool,
}

/// A mesh with hosts 1 to n, each with a tunnel key and an endpoint of its own.
#[derive(Clone, Debug)]
pub struct Topology {
    snapshot: Snapshot,
}

impl Builder {
    /// A mesh of so many hosts, numbered from 1.
    pub fn new(hosts: u32) -> Self {
        Self {
            hosts,
            services: Vec::new(),
            devices: Vec::new(),
            rules: Rules::default(),
            endpoints_v6: false,
        }
    }

    /// A TCP service.
    pub fn service(self, name: &str, port: u16, hosts: &[u32]) -> Self {
        self.service_of(Protocol::Tcp, name, port, hosts)
    }

    /// A service of any protocol.
    pub fn service_of(mut self, protocol: Protocol, name: &str, port: u16, hosts: &[u32]) -> Self {
        self.services.push((name.to_owned(), port, protocol, hosts.to_vec()));
        self
    }

    /// A stock WireGuard peer of a host.
    pub fn device(mut self, name: &str, via: u32) -> Self {
        self.devices.push((name.to_owned(), via));
        self
    }

    /// An allow rule between two subjects, as the topology writes them.
    pub fn allow(self, from: &str, to: &str) -> Self {
        self.rule(Action::Allow, from, to)
    }

    /// A deny rule.
    pub fn deny(self, from: &str, to: &str) -> Self {
        self.rule(Action::Deny, from, to)
    }

    fn rule(mut self, action: Action, from: &str, to: &str) -> Self {
        let number = self.rules.rules.len() + 1;
        self.rules.rules.push(Rule {
            name: format!("{from} to {to}").into(),
            action,
            from: vec![subject(from)],
            to: vec![subject(to)],
            ports: Vec::new(),
            http: Vec::new(),
            sni: Vec::new(),
            audit: false,
            origin: Origin { file: Arc::from("mesh.toml"), line: number as u32 },
        });
        self
    }

    /// Default action, where no rule decides.
    pub fn default_action(mut self, action: Action) -> Self {
        self.rules.default = action;
        self
    }

    /// Lets pass what would be denied.
    pub fn audit(mut self) -> Self {
        self.rules.audit = true;
        self
    }

    /// Gives the hosts IPv6 endpoints.
    pub fn over_ipv6(mut self) -> Self {
        self.endpoints_v6 = true;
        self
    }

    fn host(&self, id: u32) -> Host {
        Host {
            name: name(&format!("host-{id}")),
            site: None,
            labels: BTreeMap::new(),
            public_key: public_key(&host_key(id)),
            former_key: None,
            endpoints: vec![endpoint(id, self.endpoints_v6)],
            ipv4_block: net(block(id), 28),
        }
    }

    /// The finished mesh.
    pub fn build(self) -> Topology {
        let prefix = MeshPrefix::new([0xfd, 0x15, 0x75, 0x4d, 0x05, 0x00]).expect("a ULA");
        let mesh = Mesh {
            name: name("sim"),
            trust_domain: "sim.example".parse().expect("a literal"),
            prefix,
            ipv4: net(Ipv4Addr::new(100, 64, 0, 0), 10),
            virtual_ipv4: net(Ipv4Addr::new(100, 127, 0, 0), 16),
        };
        let hosts = (1..=self.hosts).map(|id| (HostId(id), self.host(id)));
        let services = (1..).zip(&self.services).map(|(id, (label, port, protocol, hosts))| {
            let placements =
                hosts.iter().map(|host| (HostId(*host), workload(*host, id))).collect();
            let service = Service {
                name: name(label),
                namespace: name("prod"),
                port: *port,
                protocol: *protocol,
                more: Vec::new(),
                virtual_ipv4: Ipv4Addr::new(100, 127, 1, id as u8),
                placements,
                leaving: Default::default(),
                selectors: Vec::new(),
                balance: isthmus_model::Balance::default(),
                edge: None,
                application: isthmus_model::Application::default(),
                paths: isthmus_model::PathMode::default(),
                guard: isthmus_model::PortGuard::default(),
                aliases: Vec::new(),
            };
            (ServiceId(id), service)
        });
        let first = self.services.len() as u32 + 1;
        let devices = (first..).zip(&self.devices).map(|(id, (label, via))| {
            let device = Device {
                name: name(label),
                public_key: public_key(&device_key(id)),
                via: HostId(*via),
                ipv4: workload(*via, id),
            };
            (DeviceId(id), device)
        });
        let snapshot = Snapshot {
            revision: Revision(1),
            mesh,
            local: HostId(1),
            hosts: hosts.collect(),
            services: services.collect(),
            devices: devices.collect(),
            rules: self.rules.clone(),
            routes: Vec::new(),
            limits: Vec::new(),
        };
        Topology { snapshot }
    }
}

impl Topology {
    /// The snapshot of a host: here, everything.
    pub fn snapshot(&self, local: u32) -> Snapshot {
        Snapshot { local: HostId(local), ..self.snapshot.clone() }
    }

    /// Changes the mesh, as a new revision.
    pub fn change(&mut self, change: impl FnOnce(&mut Snapshot)) {
        change(&mut self.snapshot);
        self.snapshot.revision.0 += 1;
    }

    /// The number of a service.
    pub fn service(&self, label: &str) -> ServiceId {
        let mut services = self.snapshot.services.iter();
        let found = services.find(|(_, service)| service.name == name(label));
        *found.expect("a service of the scenario").0
    }

    /// The number of a device.
    pub fn device(&self, label: &str) -> DeviceId {
        let mut devices = self.snapshot.devices.iter();
        let found = devices.find(|(_, device)| device.name == name(label));
        *found.expect("a device of the scenario").0
    }

    /// A host's own address.
    pub fn host_address(&self, host: u32, v4: bool) -> IpAddr {
        let host = HostId(host);
        if v4 {
            self.snapshot.hosts[&host].ipv4().into()
        } else {
            self.snapshot.workload_ipv6(host, ServiceId(0)).into()
        }
    }

    /// A workload's address.
    pub fn workload(&self, label: &str, host: u32, v4: bool) -> IpAddr {
        let id = self.service(label);
        if v4 {
            self.snapshot.services[&id].placements[&HostId(host)].into()
        } else {
            self.snapshot.workload_ipv6(HostId(host), id).into()
        }
    }

    /// A service's virtual address.
    pub fn vip(&self, label: &str, v4: bool) -> IpAddr {
        let id = self.service(label);
        if v4 {
            self.snapshot.services[&id].virtual_ipv4.into()
        } else {
            self.snapshot.virtual_ipv6(id).into()
        }
    }

    /// A device's address.
    pub fn device_address(&self, label: &str, v4: bool) -> IpAddr {
        let id = self.device(label);
        let device = &self.snapshot.devices[&id];
        if v4 {
            device.ipv4.into()
        } else {
            self.snapshot.workload_ipv6(device.via, ServiceId(id.0)).into()
        }
    }
}

/// A host's private key.
pub fn host_key(id: u32) -> [u8; 32] {
    let mut key = [7; 32];
    key[..4].copy_from_slice(&id.to_be_bytes());
    key
}

/// A device's private key.
pub fn device_key(id: u32) -> [u8; 32] {
    let mut key = [9; 32];
    key[..4].copy_from_slice(&id.to_be_bytes());
    key
}

/// Endpoint of a host's tunnels.
pub fn endpoint(host: u32, v6: bool) -> SocketAddr {
    let ip = if v6 {
        format!("2001:db8::{host:x}").parse().expect("a literal")
    } else {
        IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + host))
    };
    SocketAddr::new(ip, 51820)
}

fn block(host: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(100, 64, 0, 0)) + host * 16)
}

fn workload(host: u32, number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(block(host)) + number)
}

fn net(address: Ipv4Addr, prefix: u8) -> Ipv4Net {
    Ipv4Net::new(address, prefix).expect("a literal")
}

fn name(text: &str) -> Name {
    text.parse().expect("a name of the scenario")
}

fn subject(text: &str) -> Subject {
    let named = |rest: &str| name(rest);
    match text.split_once(':') {
        None => Subject::Any,
        Some(("service", "*")) => Subject::AnyService,
        Some(("host", "*")) => Subject::AnyHost,
        Some(("device", "*")) => Subject::AnyDevice,
        Some(("service", rest)) => Subject::Service(named(rest)),
        Some(("host", rest)) => Subject::Host(named(rest)),
        Some(("device", rest)) => Subject::Device(named(rest)),
        Some((_, rest)) => Subject::Namespace(named(rest)),
    }
}
