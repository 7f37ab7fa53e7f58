//! A small mesh: services `web` and `host`, hosts `app-1` and `db-1`, device `press`.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};
use isthmus_model::{
    Device, DeviceId, Host, HostId, Mesh, MeshPrefix, Protocol, PublicKey, Revision, Rules,
    Service, ServiceId, Snapshot,
};
use isthmus_policy::Policy;
use isthmus_proxy::ProxySnapshot;

use crate::dns::zone::{Reply, Transport, answer};

pub(crate) const ID: u16 = 0xbeef;

pub(crate) fn view() -> Arc<ProxySnapshot> {
    let snapshot = snapshot();
    let policy = Policy::for_snapshot(&snapshot);
    Arc::new(ProxySnapshot::new(Arc::new(snapshot), Arc::new(policy)))
}

pub(crate) fn snapshot() -> Snapshot {
    Snapshot {
        revision: Revision(7),
        mesh: Mesh {
            name: "corp".parse().unwrap(),
            trust_domain: "corp.example".parse().unwrap(),
            prefix: MeshPrefix::new([0xfd, 0x12, 0x34, 0x56, 0x78, 0x9a]).unwrap(),
            ipv4: "100.64.0.0/10".parse().unwrap(),
            virtual_ipv4: "100.127.0.0/16".parse().unwrap(),
        },
        local: HostId(1),
        hosts: [
            (HostId(1), host("app-1", "100.64.1.0/24")),
            (HostId(2), host("db-1", "100.64.2.0/24")),
        ]
        .into(),
        services: [
            (ServiceId(1), service("web", "prod", 1, &[(1, 2), (2, 2)])),
            // A namespace may be called like a group of ours.
            (ServiceId(2), service("db-1", "host", 2, &[])),
        ]
        .into(),
        devices: [(
            DeviceId(3),
            Device {
                name: "press".parse().unwrap(),
                public_key: PublicKey([3; 32]),
                via: HostId(2),
                ipv4: Ipv4Addr::new(100, 64, 2, 9),
            },
        )]
        .into(),
        rules: Rules::default(),
        routes: Vec::new(),
        limits: Vec::new(),
    }
}

fn host(name: &str, block: &str) -> Host {
    Host {
        name: name.parse().unwrap(),
        site: None,
        labels: BTreeMap::new(),
        public_key: PublicKey([1; 32]),
        former_key: None,
        endpoints: Vec::new(),
        ipv4_block: block.parse().unwrap(),
    }
}

fn service(name: &str, namespace: &str, number: u8, placements: &[(u8, u8)]) -> Service {
    let placed = placements
        .iter()
        .map(|(host, last)| (HostId((*host).into()), Ipv4Addr::new(100, 64, *host, *last)));
    Service {
        name: name.parse().unwrap(),
        namespace: namespace.parse().unwrap(),
        port: 8080,
        protocol: Protocol::Http,
        more: Vec::new(),
        virtual_ipv4: Ipv4Addr::new(100, 127, 0, number),
        placements: placed.collect(),
        leaving: Default::default(),
        selectors: Vec::new(),
        balance: isthmus_model::Balance::default(),
        edge: None,
        application: isthmus_model::Application::default(),
        paths: isthmus_model::PathMode::default(),
        guard: isthmus_model::PortGuard::default(),
        aliases: vec![format!("former-{name}").parse().unwrap()],
    }
}

pub(crate) fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(ID, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

pub(crate) fn with_edns(mut message: Message, payload: u16) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(payload);
    message.set_edns(edns);
    message
}

/// What the zone says to a message over UDP.
pub(crate) fn reply(message: &Message) -> Reply {
    answer(&view(), true, &message.to_vec().unwrap(), Transport::Udp)
}

/// The same, where it must be an answer.
pub(crate) fn answered(message: &Message) -> Message {
    match reply(message) {
        Reply::Answer(bytes) => Message::from_vec(&bytes).unwrap(),
        other @ (Reply::Forward { .. } | Reply::Ignore) => panic!("{other:?}"),
    }
}

pub(crate) fn asked(name: &str, kind: RecordType) -> Message {
    answered(&query(name, kind))
}

/// The data of a message's only answer, as text.
pub(crate) fn data(message: &Message) -> String {
    let [record] = message.answers.as_slice() else { panic!("{message:?}") };
    record.data.to_string()
}
