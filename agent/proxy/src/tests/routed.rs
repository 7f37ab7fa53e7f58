//! A mesh on loopback, seen from the client's side: `client` here, `api` on two other hosts, `v2` on
//! one of them, `near` here.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use http::{Request, Response};
use hyper::body::Incoming;
use isthmus_model::topology::{SourceFile, parse};
use isthmus_model::{
    Balance, HostId, Mesh, MeshPrefix, PathMode, Protocol, Revision, Service, ServiceId, Snapshot,
};
use isthmus_policy::Policy;

use super::support::{Application, Body, Proxy, host};
use crate::ProxySnapshot;
use crate::config::limits::Limits;

/// What `client` shows on flows that stay on its host.
pub(crate) const CALLER: IpAddr = ip(0, 1);
/// Where the mesh knows it.
pub(crate) const CLIENT: IpAddr = ip(1, 1);
/// The virtual address of `api`.
pub(crate) const API: IpAddr = ip(0, 2);
/// The workloads of `api`, of `v2` and of `near`.
pub(crate) const API_2: IpAddr = ip(2, 2);
pub(crate) const API_3: IpAddr = ip(3, 2);
pub(crate) const V2: IpAddr = ip(2, 3);
pub(crate) const NEAR: IpAddr = ip(1, 4);

const fn ip(host: u8, service: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(127, 65, host, service))
}

const SERVICES: &str = r#"
[host.a]
[host.b]
[host.c]
[service.client]
port = 1
protocol = "http"
hosts = ["a"]
[service.api]
port = 1
protocol = "http"
hosts = ["b", "c"]
[service.v2]
port = 1
protocol = "http"
hosts = ["b"]
[service.near]
port = 1
protocol = "http"
hosts = ["a"]
"#;

const ALLOW: &str = "[[allow]]\nname = \"all\"\nfrom = \"service:client\"\nto = \"service:*\"\n";

/// Applications of several workloads, all on one port.
pub(crate) struct Backends {
    pub(crate) port: u16,
    /// Of all services.
    pub(crate) balance: Balance,
    /// Of `api`.
    pub(crate) paths: PathMode,
    /// The hosts that `api` is about to leave.
    pub(crate) leaving: BTreeSet<HostId>,
    revision: u64,
}

impl Backends {
    /// Finds a port that is free on all addresses.
    pub(crate) fn new() -> Self {
        let free = |port: &u16| {
            let bind = |address| std::net::TcpListener::bind((address, *port)).is_ok();
            [API_2, API_3, V2, NEAR].into_iter().all(bind)
        };
        let listener = std::net::TcpListener::bind((API_2, 0)).unwrap();
        let start = listener.local_addr().unwrap().port();
        drop(listener);
        let port = (start..=u16::MAX).chain(2048..start).find(free).unwrap();
        Self {
            port,
            balance: Balance::default(),
            paths: PathMode::default(),
            leaving: BTreeSet::new(),
            revision: 0,
        }
    }

    pub(crate) async fn start<A, F>(&self, address: IpAddr, answer: A) -> Application
    where
        A: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        Application::start_on(SocketAddr::new(address, self.port), answer).await
    }

    /// A proxy before `client`, with these routes; all that `client` asks is allowed.
    pub(crate) fn proxy(&mut self, routes: &str) -> Proxy {
        self.proxy_with(&format!("{routes}\n{ALLOW}"))
    }

    /// Likewise, with rules of one's own.
    pub(crate) fn proxy_with(&mut self, routes_and_rules: &str) -> Proxy {
        let view = self.view(routes_and_rules);
        Proxy::serve(Limits::default(), API, self.port, view)
    }

    /// The next revision.
    pub(crate) fn view(&mut self, routes_and_rules: &str) -> Arc<ProxySnapshot> {
        self.view_on(routes_and_rules, &[API_2, API_3])
    }

    /// The next revision, with these workloads of `api`.
    pub(crate) fn view_on(&mut self, routes_and_rules: &str, api: &[IpAddr]) -> Arc<ProxySnapshot> {
        self.revision += 1;
        let text = format!("{SERVICES}\n{routes_and_rules}");
        let file = SourceFile { name: "mesh.toml".into(), text };
        let topology = parse(&[file]).unwrap_or_else(|errors| panic!("{errors:#?}"));
        let services = [
            (1, self.service("client", 1, &[CLIENT])),
            (2, self.service("api", 2, api)),
            (3, self.service("v2", 3, &[V2])),
            (4, self.service("near", 4, &[NEAR])),
        ];
        let snapshot = Snapshot {
            revision: Revision(self.revision),
            mesh: Mesh {
                name: "corp".parse().unwrap(),
                trust_domain: "corp.example".parse().unwrap(),
                prefix: MeshPrefix::new([0xfd, 1, 2, 3, 4, 5]).unwrap(),
                ipv4: "127.64.0.0/10".parse().unwrap(),
                virtual_ipv4: "127.65.0.0/24".parse().unwrap(),
            },
            local: HostId(1),
            hosts: (1..)
                .zip(["a", "b", "c"])
                .map(|(id, name)| (HostId(id), host(name, &format!("127.65.{id}.0/24"))))
                .collect(),
            services: services.into_iter().map(|(id, it)| (ServiceId(id), it)).collect(),
            devices: BTreeMap::new(),
            rules: topology.rules,
            routes: topology.routes,
            limits: Vec::new(),
        };
        let policy = Policy::for_snapshot(&snapshot);
        Arc::new(ProxySnapshot::new(Arc::new(snapshot), Arc::new(policy)))
    }

    fn service(&self, name: &str, number: u8, workloads: &[IpAddr]) -> Service {
        let placement = |address: &IpAddr| {
            let IpAddr::V4(ipv4) = address else { panic!("{address} is no IPv4 address") };
            (HostId(ipv4.octets()[2].into()), *ipv4)
        };
        Service {
            name: name.parse().unwrap(),
            namespace: "prod".parse().unwrap(),
            port: self.port,
            protocol: Protocol::Http,
            more: Vec::new(),
            virtual_ipv4: Ipv4Addr::new(127, 65, 0, number),
            placements: workloads.iter().map(placement).collect(),
            leaving: if name == "api" { self.leaving.clone() } else { BTreeSet::new() },
            selectors: Vec::new(),
            balance: self.balance.clone(),
            edge: None,
            application: isthmus_model::Application::default(),
            guard: isthmus_model::PortGuard::default(),
            aliases: Vec::new(),
            paths: if name == "api" { self.paths } else { PathMode::default() },
        }
    }
}
