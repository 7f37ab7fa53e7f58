//! Decisions of policy, and its compilation.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::net::Ipv4Addr;

use isthmus_model::{
    Action, Balance, HostId, Identity, Ipv4Net, Layer4, Mesh, MeshPrefix, Name, Origin, PathMode,
    Protocol, Revision, Rule, Rules, Service, ServiceId, Snapshot, Subject,
};
use isthmus_policy::{DecidedBy, Policy, Query};

use crate::{Bench, counted};

const SERVICES: usize = 1000;
const BATCH: usize = 64;

pub(crate) const BENCHES: &[Bench] = &[
    ("evaluate rule_of_10", || drop(counted(evaluate, asked(10, true)))),
    ("evaluate default_of_10", || drop(counted(evaluate, asked(10, false)))),
    ("evaluate rule_of_100000", || drop(counted(evaluate, asked(100_000, true)))),
    ("evaluate default_of_100000", || drop(counted(evaluate, asked(100_000, false)))),
    ("compile rules_10", || drop(counted(compile, snapshot(10)))),
    ("compile rules_100000", || drop(counted(compile, snapshot(100_000)))),
];

fn name(text: &str) -> Name {
    text.parse().expect("a literal")
}

fn service(number: usize) -> Name {
    name(&format!("s{}", number % SERVICES))
}

fn net(address: Ipv4Addr, prefix: u8) -> Ipv4Net {
    Ipv4Net::new(address, prefix).expect("a literal")
}

/// A mesh with so many rules, each between two services.
fn snapshot(rules: usize) -> Snapshot {
    let services = (0..SERVICES as u32).map(|number| {
        let service = Service {
            name: service(number as usize),
            namespace: name("prod"),
            port: 80,
            protocol: Protocol::Tcp,
            more: Vec::new(),
            virtual_ipv4: Ipv4Addr::from(0x647f_0000 + number),
            placements: BTreeMap::new(),
            leaving: Default::default(),
            selectors: Vec::new(),
            balance: Balance::default(),
            edge: None,
            application: isthmus_model::Application::default(),
            paths: PathMode::default(),
            guard: isthmus_model::PortGuard::default(),
            aliases: Vec::new(),
        };
        (ServiceId(number + 1), service)
    });
    let rule = |number: usize| Rule {
        name: format!("rule {number}").into(),
        action: Action::Allow,
        from: vec![Subject::Service(service(number))],
        to: vec![Subject::Service(service(number / SERVICES))],
        ports: Vec::new(),
        http: Vec::new(),
        sni: Vec::new(),
        audit: false,
        origin: Origin { file: "mesh.toml".into(), line: 1 },
    };
    Snapshot {
        revision: Revision(1),
        mesh: Mesh {
            name: name("bench"),
            trust_domain: "bench.example".parse().expect("a literal"),
            prefix: MeshPrefix::new([0xfd, 1, 2, 3, 4, 5]).expect("a literal"),
            ipv4: net(Ipv4Addr::new(100, 64, 0, 0), 10),
            virtual_ipv4: net(Ipv4Addr::new(100, 127, 0, 0), 16),
        },
        local: HostId(1),
        hosts: BTreeMap::new(),
        services: services.collect(),
        devices: BTreeMap::new(),
        rules: Rules {
            default: Action::Deny,
            audit: false,
            audited: Vec::new(),
            rules: (0..rules).map(rule).collect(),
        },
        routes: Vec::new(),
        limits: Vec::new(),
    }
}

type Pair = (Identity, Identity);

/// A policy, and pairs of services that a rule allows, or that none is about.
fn asked(rules: usize, is_allowed: bool) -> (Policy, Vec<Pair>) {
    let policy = Policy::for_snapshot(&snapshot(rules));
    let identity = |number| Identity::Service { namespace: name("prod"), name: service(number) };
    let pair = |at: usize| {
        let rule = at * 7919 % rules;
        let to = if is_allowed { rule / SERVICES } else { SERVICES - 1 - at };
        (identity(rule), identity(to))
    };
    let pairs: Vec<Pair> = (0..BATCH).map(pair).collect();
    for pair in &pairs {
        let is_default = matches!(decide(&policy, pair), DecidedBy::Default);
        assert_eq!(is_default, !is_allowed, "{pair:?}");
    }
    (policy, pairs)
}

fn decide(policy: &Policy, (from, to): &Pair) -> DecidedBy {
    policy.evaluate(&Query { from, to, layer4: Layer4::Tcp(80), request: None }).decided_by
}

fn evaluate((policy, pairs): (Policy, Vec<Pair>)) -> (Policy, Vec<Pair>) {
    for pair in &pairs {
        black_box(decide(black_box(&policy), black_box(pair)));
    }
    (policy, pairs)
}

fn compile(snapshot: Snapshot) -> (Policy, Snapshot) {
    (Policy::for_snapshot(black_box(&snapshot)), snapshot)
}
