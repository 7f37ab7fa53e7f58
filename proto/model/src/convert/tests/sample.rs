//! A snapshot with everything in it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use isthmus_proto::v1;
use v1::resource::Body;

use super::{edge_of, name, sample_limits, sample_routes};
use crate::address::{Ipv4Net, MeshPrefix};
use crate::application::{Application, HttpVersion, ProxyProtocol, SeenSource};
use crate::balance::{Balance, BalancePolicy, HashKey};
use crate::guard::{Exposure, ListenerCheck, PortGuard};
use crate::identity::{DeviceId, HostId, ServiceId};
use crate::key::PublicKey;
use crate::resilience::{Breaker, HealthCheck, HealthProbe, Outlier};
use crate::rules::Rules;
use crate::snapshot::ServicePort;
use crate::snapshot::{
    ContainerMatch, Device, Host, Mesh, PathMode, Protocol, Revision, Selector, Service, Snapshot,
};

pub(super) fn inflict(resource: &mut v1::Resource, (what, number, text): (u8, u32, String)) {
    match resource.body.as_mut().unwrap() {
        Body::Mesh(body) if what % 2 == 0 => body.virtual_ipv4 = text,
        Body::Mesh(body) => body.local = number,
        Body::Policy(body) if what % 3 == 0 => body.audited.push(text),
        Body::Policy(body) => body.audit = what % 2 == 0,
        Body::Host(body) if what % 2 == 0 => body.ipv4_block = text,
        Body::Host(body) => body.endpoints = vec![text],
        Body::Service(body) if what % 2 == 0 => drop(body.placements.insert(number, text)),
        Body::Service(body) => body.port = number,
        Body::Device(body) if what % 2 == 0 => body.via = number,
        Body::Device(body) => body.ipv4 = text,
        Body::Rule(body) if what % 2 == 0 => body.from.push(text),
        Body::Rule(body) => body.order = number,
        Body::Route(body) if what % 3 == 0 => body.timeout_ms = number.into(),
        Body::Route(body) if what % 2 == 0 => body.service = text,
        Body::Route(body) => body.order = number,
        Body::Limit(body) if what % 2 == 0 => body.service = text,
        Body::Limit(body) => body.rate = number.into(),
    }
}

fn balance(n: u32) -> Balance {
    Balance {
        weights: [(name("h1"), n), (name("h2"), 1000)].into(),
        locality: n.is_multiple_of(2),
        slow_start: n.is_multiple_of(3).then(|| Duration::from_secs(30)),
        panic_threshold: (n % 101) as u8,
        breaker: Breaker {
            max_requests: n + 1,
            max_retries: n.is_multiple_of(2).then_some(n),
            ..Breaker::default()
        },
        outlier: Outlier { consecutive_5xx: n, ..Outlier::default() },
        health: match n % 4 {
            0 => None,
            1 => Some(HealthCheck::new(HealthProbe::Tcp)),
            2 => Some(HealthCheck::new(HealthProbe::Http { path: "/healthz".into() })),
            _ => Some(HealthCheck::new(HealthProbe::Grpc { service: "".into() })),
        },
        policy: match n % 5 {
            0 => BalancePolicy::PeakEwma,
            1 => BalancePolicy::LeastRequest,
            2 => BalancePolicy::RoundRobin,
            3 => BalancePolicy::RingHash(HashKey::Cookie("c".into())),
            _ => BalancePolicy::Maglev(HashKey::Source),
        },
    }
}

fn application(n: u32) -> Application {
    Application {
        proxy_protocol: [None, Some(ProxyProtocol::V1), Some(ProxyProtocol::V2)][n as usize % 3],
        http: [HttpVersion::Auto, HttpVersion::Http1, HttpVersion::Http2][n as usize % 3],
        trailers: n.is_multiple_of(2),
        source: [SeenSource::Proxy, SeenSource::Caller][n as usize % 2],
        listen: n.is_multiple_of(3).then(|| "[::1]:8080".parse().unwrap()),
    }
}

fn more_ports(n: u32, protocol: Protocol) -> Vec<ServicePort> {
    (0..n % 3)
        .map(|extra| ServicePort {
            name: name(&format!("extra-{extra}")),
            port: 9000 + extra as u16,
            protocol,
            application: Application {
                http: HttpVersion::Http2,
                trailers: true,
                ..Application::default()
            },
        })
        .collect()
}

fn device(n: u32, via: u32, ipv4: Ipv4Addr) -> Device {
    Device {
        name: name(&format!("d{n}")),
        public_key: PublicKey([200 + u8::try_from(n).unwrap(); 32]),
        via: HostId(via),
        ipv4,
    }
}

fn selectors(n: u32) -> Vec<Selector> {
    vec![
        Selector::User("www".into()),
        Selector::Systemd("web.service".into()),
        Selector::Exe("/usr/sbin/nginx".into()),
        Selector::Cgroup("/system.slice".into()),
        Selector::Container(ContainerMatch {
            name: n.is_multiple_of(2).then(|| "web".into()),
            image: n.is_multiple_of(3).then(|| "r.example/web:1".into()),
            labels: [("app".to_owned(), format!("s{n}"))].into(),
        }),
    ]
}

fn host_of(id: u32, ipv4_block: Ipv4Net) -> Host {
    Host {
        name: name(&format!("h{id}")),
        site: id.is_multiple_of(2).then(|| name("dc1")),
        labels: BTreeMap::from([("role".to_owned(), format!("r{id}"))]),
        public_key: PublicKey([u8::try_from(id).unwrap(); 32]),
        former_key: id.is_multiple_of(3).then(|| {
            let mut key = [u8::try_from(id).unwrap(); 32];
            key[0] ^= 255;
            PublicKey(key)
        }),
        endpoints: vec!["192.0.2.1:51820".parse().unwrap(), "[::1]:9".parse().unwrap()],
        ipv4_block,
    }
}

/// Hosts by number; services with the bits of the hosts (by position) that they are on; devices
/// behind the first host. Services count on from 4.
pub(super) fn build(
    hosts: &[u32],
    services: &[(Protocol, u8)],
    devices: u32,
    rules: Rules,
) -> Snapshot {
    let block = |host: u32| Ipv4Net::new(Ipv4Addr::from(0x6440_0000 + host * 16), 28).unwrap();
    let inside = |host: u32, n: u32| Ipv4Addr::from(u32::from(block(host).network()) + n);
    let first = hosts[0];
    let on = |mask: u8, n: u32| -> BTreeMap<HostId, Ipv4Addr> {
        let chosen = hosts.iter().enumerate().filter(|(at, _)| mask >> at & 1 == 1);
        chosen.map(|(_, host)| (HostId(*host), inside(*host, n))).collect()
    };
    let service = |n: u32, protocol, mask| Service {
        name: name(&format!("s{n}")),
        namespace: name("prod"),
        port: 80 + u16::try_from(n).unwrap(),
        protocol,
        more: more_ports(n, protocol),
        virtual_ipv4: Ipv4Addr::from(0x647f_0001 + n),
        placements: on(mask, n + 1),
        leaving: on(mask & (mask >> 1), n + 1).into_keys().collect(),
        selectors: selectors(n),
        edge: edge_of(n),
        application: application(n),
        paths: PathMode::ALL[n as usize % 4],
        guard: PortGuard {
            exposure: Exposure::ALL[n as usize % 3],
            listener: ListenerCheck::ALL[n as usize % 2],
        },
        aliases: (0..n % 3).map(|i| format!("old-{i}").parse().unwrap()).collect(),
        balance: balance(n),
    };
    let count = u32::try_from(services.len()).unwrap();
    Snapshot {
        revision: Revision(1),
        mesh: Mesh {
            name: name("corp"),
            trust_domain: "corp.example".parse().unwrap(),
            prefix: MeshPrefix::new([0xfd, 1, 2, 3, 4, 5]).unwrap(),
            ipv4: "100.64.0.0/10".parse().unwrap(),
            virtual_ipv4: "100.127.0.0/16".parse().unwrap(),
        },
        local: HostId(first),
        hosts: hosts
            .iter()
            .map(|id| {
                let host = host_of(*id, block(*id));
                (HostId(*id), host)
            })
            .collect(),
        services: (0..)
            .zip(services)
            .map(|(n, (protocol, mask))| (ServiceId(n + 4), service(n, *protocol, *mask)))
            .collect(),
        devices: (0..devices)
            .map(|n| {
                let device = device(n, first, inside(first, 1 + count + n));
                (DeviceId(4 + count + n), device)
            })
            .collect(),
        rules,
        routes: if services.is_empty() { Vec::new() } else { sample_routes() },
        limits: if services.is_empty() { Vec::new() } else { sample_limits() },
    }
}
