//! The policy's golden vectors, asked over real connections: what the engine says of a request must
//! be what becomes of it.

use std::collections::BTreeMap;
use std::future::pending;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use isthmus_model::topology::Topology;
use isthmus_model::{
    Device, DeviceId, HostId, Identity, JwtProvider, KeySource, Mesh, MeshPrefix, Name, PortRule,
    Protocol, Revision, Rule, Rules, Service, ServiceId, Snapshot,
};
use isthmus_policy::vectors::{Case, Vector, all};
use isthmus_policy::{Outcome, Policy, Token};
use tokio::sync::watch;
use tokio::time::timeout;

use super::support::{Application, SOON, bind, exchange, host};
use crate::config::jwt::tests::Signer;
use crate::{GatewayIo, Metrics, Options, ProxySnapshot, serve};

/// Where services that are called have their workloads.
const HERE: HostId = HostId(1);
/// Where services that call have theirs.
const THERE: HostId = HostId(2);

/// A vector's topology on loopback.
struct Lab {
    snapshot: Arc<Snapshot>,
    /// Where the proxy takes requests to a service.
    proxies: BTreeMap<Name, SocketAddr>,
    _views: watch::Sender<Arc<ProxySnapshot>>,
    signer: Signer,
    _keys: tempfile::NamedTempFile,
}

#[tokio::test]
async fn requests_become_what_the_golden_vectors_say() {
    let mut asked = 0;
    for vector in all() {
        let lab = Lab::start(&vector).await;
        for case in vector.cases.iter().filter(|case| is_request(&vector.topology, case)) {
            let status = lab.ask(case).await;
            let right = match case.outcome {
                Outcome::Allow => status == "200",
                // Where no request could be allowed there isn't even an answer.
                Outcome::Deny | Outcome::Inspect => matches!(status.as_str(), "403" | "400" | ""),
            };
            assert!(right, "{}: {}: {status:?} for {:?}", vector.file, case.name, case.request);
            asked += 1;
        }
    }
    assert!(asked > 200, "{asked}");
}

/// Whether a case can be asked of a proxy: a request to an HTTP service's own port, with a target
/// that is nothing but a path.
fn is_request(topology: &Topology, case: &Case) -> bool {
    let Identity::Service { name, .. } = &case.to else { return false };
    let Some((_, path)) = &case.request else { return false };
    let service = &topology.services[name];
    let own = isthmus_model::Layer4::Tcp(service.port);
    service.protocol == Protocol::Http
        && case.layer4 == own
        && path.starts_with('/')
        && !path.contains('?')
}

impl Lab {
    async fn start(vector: &Vector) -> Self {
        let topology = &vector.topology;
        let signer = Signer::new();
        let mut keys = tempfile::NamedTempFile::new().unwrap();
        keys.write_all(signer.set().to_string().as_bytes()).unwrap();
        let mut ports = BTreeMap::new();
        let mut services = BTreeMap::new();
        for (number, (name, declared)) in (1_u8..).zip(&topology.services) {
            let here = Ipv4Addr::new(127, 64, 1, number);
            let port = match declared.protocol {
                Protocol::Http => Application::hello_at(here.into()).await.port,
                Protocol::Tcp | Protocol::Udp | Protocol::Tls | Protocol::Auto => declared.port,
            };
            ports.insert(declared.port, port);
            let service = Service {
                name: name.clone(),
                namespace: declared.namespace.clone(),
                port,
                protocol: declared.protocol,
                more: Vec::new(),
                virtual_ipv4: Ipv4Addr::new(127, 64, 0, number),
                placements: [(HERE, here), (THERE, Ipv4Addr::new(127, 64, 2, number))].into(),
                leaving: Default::default(),
                selectors: Vec::new(),
                balance: isthmus_model::Balance::default(),
                edge: None,
                application: isthmus_model::Application::default(),
                paths: declared.paths,
                guard: isthmus_model::PortGuard::default(),
                aliases: Vec::new(),
            };
            services.insert(ServiceId(number.into()), service);
        }
        let snapshot = Arc::new(Snapshot {
            revision: Revision(1),
            mesh: Mesh {
                name: "corp".parse().unwrap(),
                trust_domain: "corp.example".parse().unwrap(),
                prefix: MeshPrefix::new([0xfd, 1, 2, 3, 4, 5]).unwrap(),
                ipv4: "127.64.0.0/10".parse().unwrap(),
                virtual_ipv4: "127.64.0.0/24".parse().unwrap(),
            },
            local: HERE,
            hosts: (1_u8..)
                .zip(topology.hosts.keys())
                .map(|(number, name)| {
                    let block = format!("127.64.{number}.0/24");
                    (HostId(number.into()), host(name.as_str(), &block))
                })
                .collect(),
            services,
            devices: devices(topology),
            rules: with_keys(with_ports(&topology.rules, &ports), keys.path()),
            routes: Vec::new(),
            limits: Vec::new(),
        });
        Self::serve(snapshot, signer, keys)
    }

    fn serve(snapshot: Arc<Snapshot>, signer: Signer, keys: tempfile::NamedTempFile) -> Self {
        let policy = Arc::new(Policy::for_snapshot(&snapshot));
        let mut listeners = Vec::new();
        let mut proxies = BTreeMap::new();
        for (_, service, here) in snapshot.local_services() {
            let listener = std::net::TcpListener::bind((here, 0)).unwrap();
            proxies.insert(service.name.clone(), listener.local_addr().unwrap());
            listeners.push(listener);
        }
        let (views, view) =
            watch::channel(Arc::new(ProxySnapshot::new(Arc::clone(&snapshot), policy)));
        tokio::spawn(serve(
            Options {
                threads: 2,
                drain: std::time::Duration::ZERO,
                request: std::time::Duration::from_secs(60),
                body_idle: std::time::Duration::from_secs(60),
                leaving: Arc::default(),
            },
            listeners,
            GatewayIo::nowhere(),
            view,
            Arc::new(Metrics::default()),
            bind,
            pending(),
        ));
        Self { snapshot, proxies, _views: views, signer, _keys: keys }
    }

    /// The status of the answer; empty if there is none.
    async fn ask(&self, case: &Case) -> String {
        let (method, path) = case.request.as_ref().unwrap();
        let query = if case.query.is_empty() { String::new() } else { format!("?{}", case.query) };
        let host = if case.host.is_empty() { "x" } else { &case.host };
        let mut head = format!("{method} {path}{query} HTTP/1.1\r\nHost: {host}\r\n");
        for (name, value) in &case.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if let [token] = &*case.tokens {
            head.push_str(&format!("Authorization: Bearer {}\r\n", self.sign(token)));
        }
        head.push_str("Connection: close\r\n\r\n");
        let asked = timeout(SOON, async {
            loop {
                let proxy = self.proxies[case.to.name()];
                let got = exchange(self.address(&case.from), proxy, &head).await;
                // The keys are loaded in the background.
                if !got.starts_with("HTTP/1.1 401") {
                    return got.split(' ').nth(1).unwrap_or_default().to_owned();
                }
            }
        });
        asked.await.expect("the keys are loaded")
    }

    /// A token with these claims, and with what every token has.
    fn sign(&self, token: &Token) -> String {
        let mut claims = serde_json::Map::clone(&token.claims);
        claims.insert("iss".into(), "https://login.example".into());
        claims.insert("aud".into(), "mesh".into());
        claims.insert("exp".into(), 99_999_999_999_u64.into());
        let header = serde_json::json!({ "alg": "EdDSA" });
        self.signer.sign(&header, &claims.into())
    }

    /// Where somebody calls from.
    fn address(&self, from: &Identity) -> IpAddr {
        let snapshot = &self.snapshot;
        let is = |name: &Name| name == from.name();
        let address = match from {
            Identity::Service { .. } => {
                let mut services = snapshot.services.values();
                services.find(|s| is(&s.name)).map(|s| s.placements[&THERE])
            }
            Identity::Host(_) => {
                snapshot.hosts.values().find(|host| is(&host.name)).map(|host| host.ipv4())
            }
            Identity::Device(_) => {
                snapshot.devices.values().find(|device| is(&device.name)).map(|device| device.ipv4)
            }
        };
        address.unwrap().into()
    }
}

fn devices(topology: &Topology) -> BTreeMap<DeviceId, Device> {
    let device =
        |(number, (name, declared)): (u8, (&Name, &isthmus_model::topology::DeviceDecl))| {
            let device = Device {
                name: name.clone(),
                public_key: declared.public_key,
                via: THERE,
                ipv4: Ipv4Addr::new(127, 64, 2, number),
            };
            (DeviceId(number.into()), device)
        };
    (100_u8..).zip(&topology.devices).map(device).collect()
}

/// Rules that find the keys of tokens in a file.
fn with_keys(mut rules: Rules, path: &Path) -> Rules {
    for entry in rules.rules.iter_mut().flat_map(|rule| &mut rule.http) {
        if let Some(jwt) = &mut entry.jwt {
            let keys = KeySource::File(path.to_owned());
            jwt.provider = JwtProvider { keys, ..JwtProvider::clone(&jwt.provider) }.into();
        }
    }
    rules
}

/// Rules that say the same of services that had to take other ports.
fn with_ports(rules: &Rules, ports: &BTreeMap<u16, u16>) -> Rules {
    let moved = |rule: &PortRule| match rule {
        PortRule::Tcp(low, high) if low == high => {
            let port = ports.get(low).copied().unwrap_or(*low);
            PortRule::Tcp(port, port)
        }
        PortRule::Tcp(..) | PortRule::Udp(..) | PortRule::Icmp => *rule,
    };
    let with = |rule: &Rule| Rule { ports: rule.ports.iter().map(moved).collect(), ..rule.clone() };
    Rules { rules: rules.rules.iter().map(with).collect(), ..rules.clone() }
}
