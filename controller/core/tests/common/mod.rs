//! Random meshes.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its share")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use isthmus_controller_core::{Admission, JoinError, MeshIdentity, Newcomer, State};
use isthmus_model::topology::{SourceFile, parse};
use isthmus_model::{Exposure, HostId, MeshPrefix, PublicKey};
use proptest::prelude::*;

pub const HOSTS: usize = 5;
pub const SERVICES: usize = 5;
pub const DEVICES: usize = 2;

/// A mesh in which nothing has happened.
pub fn empty() -> State {
    State::new(MeshIdentity {
        name: "corp".parse().unwrap(),
        trust_domain: "corp.example".parse().unwrap(),
        prefix: MeshPrefix::new([0xfd, 1, 2, 3, 4, 5]).unwrap(),
        exposure: Exposure::Mesh,
    })
}

/// Applies a topology that must be good.
#[track_caller]
pub fn apply(state: &State, text: &str) -> State {
    try_apply(state, text).unwrap_or_else(|errors| panic!("{errors:?}\n{text}"))
}

/// Applies a topology; says in words why not.
pub fn try_apply(state: &State, text: &str) -> Result<State, Vec<String>> {
    let files = vec![SourceFile { name: "mesh.toml".into(), text: text.to_owned() }];
    let topology = parse(&files)
        .map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>())?;
    state
        .apply(Arc::from(files), topology, 0)
        .map_err(|errors| errors.iter().map(ToString::to_string).collect())
}

/// A host joins with labels, by a token of its own; a member doesn't join anew.
pub fn join(
    state: &State,
    name: &str,
    labels: &[(&str, &str)],
) -> Result<(State, HostId), JoinError> {
    let is_expected = state.inventory.member(name).is_none();
    let newcomer = Newcomer { is_expected, ..newcomer(state, name, labels) };
    let Admission { next, id, generation: _ } = state.join(newcomer)?;
    Ok((next, id))
}

/// A host that wants to join, with a key of its own.
pub fn newcomer(state: &State, name: &str, labels: &[(&str, &str)]) -> Newcomer {
    let mut key = [7; 32];
    key[..8].copy_from_slice(&state.revision.0.to_be_bytes());
    Newcomer {
        name: name.parse().unwrap(),
        public_key: PublicKey(key),
        labels: labels.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect(),
        now: 0,
        certificate_expires: 0,
        request: key,
        is_expected: false,
    }
}

/// A topology of up to five hosts and services and two devices, with whatever rules.
#[derive(Clone, Debug)]
pub struct Drawn {
    /// By service: on which hosts, or everywhere with a label.
    pub services: BTreeMap<usize, Where>,
    /// By device: the gateway.
    pub devices: BTreeMap<usize, usize>,
    pub rules: Vec<(bool, String, String, bool)>,
    pub default_allow: bool,
}

#[derive(Clone, Debug)]
pub enum Where {
    Hosts(Vec<usize>),
    Labelled,
}

pub fn drawn() -> impl Strategy<Value = Drawn> {
    let place = prop_oneof![
        4 => proptest::sample::subsequence((0..HOSTS).collect::<Vec<_>>(), 1..=3).prop_map(Where::Hosts),
        1 => Just(Where::Labelled),
    ];
    let services = proptest::collection::btree_map(0..SERVICES, place, 0..=SERVICES);
    let devices = proptest::collection::btree_map(0..DEVICES, 0..HOSTS, 0..=DEVICES);
    let rule = (any::<bool>(), 0..100_usize, 0..100_usize, any::<bool>());
    let rules = proptest::collection::vec(rule, 0..6);
    (services, devices, rules, proptest::bool::weighted(0.05)).prop_map(
        |(services, devices, rules, default_allow)| {
            let subjects = subjects(&services, &devices);
            let pick = |n: usize| subjects[n % subjects.len()].clone();
            let rules = rules
                .into_iter()
                .map(|(deny, from, to, ports)| (deny, pick(from), pick(to), ports));
            let rules = rules.collect();
            Drawn { services, devices, rules, default_allow }
        },
    )
}

fn subjects(services: &BTreeMap<usize, Where>, devices: &BTreeMap<usize, usize>) -> Vec<String> {
    let mut subjects = vec!["any".to_owned(), "host:*".to_owned(), "service:*".to_owned()];
    subjects.extend((0..HOSTS).map(|n| format!("host:h{n}")));
    subjects.extend(services.keys().map(|n| format!("service:s{n}")));
    subjects.extend(devices.keys().map(|n| format!("device:d{n}")));
    subjects
}

impl Drawn {
    pub fn text(&self) -> String {
        let mut text = String::new();
        if self.default_allow {
            text.push_str("[policy]\ndefault = \"allow\"\n");
        }
        for host in 0..HOSTS {
            let _ = writeln!(text, "[host.h{host}]");
        }
        for (service, place) in &self.services {
            let hosts = match place {
                Where::Hosts(hosts) => {
                    format!("{:?}", hosts.iter().map(|n| format!("h{n}")).collect::<Vec<_>>())
                }
                Where::Labelled => "{ role = \"app\" }".to_owned(),
            };
            let protocol = if service % 2 == 0 { "tcp" } else { "http" };
            let _ = writeln!(
                text,
                "[service.s{service}]\nport = {}\nprotocol = \"{protocol}\"\nhosts = {hosts}\nworkload = {{ user = \"u{service}\" }}",
                8_000 + service
            );
        }
        for (device, via) in &self.devices {
            let key = PublicKey([200 + u8::try_from(*device).unwrap(); 32]);
            let _ = writeln!(
                text,
                "[device.d{device}]\nvia = \"h{via}\"\nwireguard = {{ public_key = \"{key}\" }}"
            );
        }
        for (number, (deny, from, to, ports)) in self.rules.iter().enumerate() {
            let action = if *deny { "deny" } else { "allow" };
            let ports = if *ports { "ports = [\"tcp/22\"]\n" } else { "" };
            let _ = writeln!(
                text,
                "[[{action}]]\nname = \"r{number}\"\nfrom = \"{from}\"\nto = \"{to}\"\n{ports}"
            );
        }
        text
    }
}
