//! Mesh DNS: whatever is asked, the answer can be read, fits, and answers the question that was
//! asked; a question about the mesh never leaves it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::{Arc, LazyLock};

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::{Name as DomainName, RData, RecordType};
use isthmus_model::{
    Device, DeviceId, Host, HostId, Ipv4Net, Mesh, MeshPrefix, Name, Protocol, PublicKey, Revision,
    Rules, Service, ServiceId, Snapshot,
};
use isthmus_policy::Policy;
use isthmus_proxy::ProxySnapshot;

// The test and the fuzz target each bring it.
use crate::zone::{Reply, TTL, Transport, answer, failure};

const HEADER_BYTES: usize = 12;
/// DNS flag day 2020; and RFC 1035, section 4.2.1.
const UDP_BYTES: usize = 1232;
const PLAIN_UDP_BYTES: usize = 512;

/// `input` is how the query came, then the query. Says whether that can be read.
pub(crate) fn hold(input: &[u8]) -> bool {
    let Some((how, query)) = input.split_first() else { return false };
    let transport = if how & 1 == 0 { Transport::Udp } else { Transport::Tcp };
    let is_query = query.len() >= HEADER_BYTES && query[2] & 0x80 == 0;
    let short = how & 2 != 0;
    let reply = answer(&VIEW, short, query, transport);
    assert_eq!(reply == Reply::Ignore, !is_query, "queries are answered, and nothing else");
    if is_query {
        is_a_reply(query, &failure(query));
    }
    match reply {
        Reply::Ignore => {}
        Reply::Forward { max_bytes } => {
            let asked = Message::from_vec(query).expect("only what can be read is relayed");
            assert!(max_bytes <= most_bytes(&asked, transport));
            assert!(!is_ours(asked.queries[0].name()), "a question about the mesh leaves it");
        }
        Reply::Answer(bytes) => {
            let reply = is_a_reply(query, &bytes);
            match Message::from_vec(query) {
                Ok(asked) => {
                    answers_what_was_asked(&asked, &reply, bytes.len(), (transport, short))
                }
                Err(_) => assert_eq!(reply.metadata.response_code, ResponseCode::FormErr),
            }
        }
    }
    Message::from_vec(query).is_ok()
}

fn is_a_reply(query: &[u8], bytes: &[u8]) -> Message {
    let reply = Message::from_vec(bytes).expect("an answer can be read");
    assert_eq!(reply.metadata.message_type, MessageType::Response);
    assert_eq!(reply.metadata.id.to_be_bytes(), query[..2]);
    assert_eq!(reply.metadata.op_code, OpCode::from_u8(query[2] >> 3 & 15));
    assert_eq!(reply.metadata.recursion_desired, query[2] & 1 != 0);
    reply
}

fn most_bytes(asked: &Message, transport: Transport) -> usize {
    match (transport, &asked.edns) {
        (Transport::Tcp, _) => 65_535,
        (Transport::Udp, Some(_)) => UDP_BYTES,
        (Transport::Udp, None) => PLAIN_UDP_BYTES,
    }
}

fn answers_what_was_asked(
    asked: &Message,
    reply: &Message,
    bytes: usize,
    (transport, short): (Transport, bool),
) {
    assert!(bytes <= most_bytes(asked, transport), "{bytes} bytes");
    if let [question] = asked.queries.as_slice() {
        assert_eq!(reply.queries, std::slice::from_ref(question));
    }
    assert!(reply.answers.len() <= 1, "a name has one address of a kind");
    for record in &reply.answers {
        let [question] = reply.queries.as_slice() else { panic!("an answer to no question") };
        assert_eq!((&record.name, record.record_type()), (question.name(), question.query_type()));
        assert!(record.ttl <= TTL);
        let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'-';
        assert!(question.name().iter().flatten().all(is_plain), "{record} has a name of the mesh");
        let is_short = short && question.name().num_labels() == 2;
        assert!(is_ours(question.name()) || is_short, "{record}");
        assert!(is_of_the_mesh(&record.data), "{record}");
        assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
    }
    let denies = reply.metadata.authoritative && reply.answers.is_empty();
    if denies && !reply.metadata.truncation {
        let [start] = reply.authorities.as_slice() else { panic!("a no without its SOA") };
        assert_eq!(start.record_type(), RecordType::SOA);
        assert!(start.name.zone_of(reply.queries[0].name()), "the SOA of another zone");
    }
    assert!(reply.edns.is_none() || asked.edns.is_some(), "EDNS for those who speak it");
}

/// What nobody else may be asked.
fn is_ours(name: &DomainName) -> bool {
    let zones = ["mesh.internal.", "64.100.in-addr.arpa.", "5.0.4.0.3.0.2.0.1.0.d.f.ip6.arpa."];
    zones.iter().any(|zone| DomainName::from_ascii(zone).expect("a name").zone_of(name))
}

fn is_of_the_mesh(data: &RData) -> bool {
    let mesh = &VIEW.snapshot.mesh;
    let ipv4 = matches!(data, RData::A(address) if mesh.ipv4.contains(&address.0));
    let ipv6 = matches!(data, RData::AAAA(address) if mesh.prefix.parse(address.0).is_some());
    let name = matches!(data, RData::PTR(name) if is_ours(&name.0));
    ipv4 || ipv6 || name || matches!(data, RData::SOA(_))
}

static VIEW: LazyLock<ProxySnapshot> = LazyLock::new(|| {
    let snapshot = Arc::new(snapshot());
    let policy = Arc::new(Policy::for_snapshot(&snapshot));
    ProxySnapshot::new(snapshot, policy)
});

/// Two hosts, a service on both, a device behind the second.
fn snapshot() -> Snapshot {
    let service = Service {
        name: name("web"),
        namespace: name("prod"),
        port: 80,
        protocol: Protocol::Tcp,
        more: Vec::new(),
        virtual_ipv4: Ipv4Addr::new(100, 64, 127, 1),
        leaving: BTreeSet::new(),
        placements: BTreeMap::from([
            (HostId(1), Ipv4Addr::new(100, 64, 0, 17)),
            (HostId(2), Ipv4Addr::new(100, 64, 0, 33)),
        ]),
        selectors: Vec::new(),
        balance: isthmus_model::Balance::default(),
        edge: None,
        application: isthmus_model::Application::default(),
        paths: isthmus_model::PathMode::default(),
        guard: isthmus_model::PortGuard::default(),
        aliases: Vec::new(),
    };
    let device = Device {
        name: name("press"),
        public_key: PublicKey([9; 32]),
        via: HostId(2),
        ipv4: Ipv4Addr::new(100, 64, 0, 34),
    };
    Snapshot {
        revision: Revision(7),
        mesh: Mesh {
            name: name("corp"),
            trust_domain: "corp.example".parse().expect("a trust domain"),
            prefix: MeshPrefix::new([0xfd, 1, 2, 3, 4, 5]).expect("a prefix"),
            ipv4: net([100, 64, 0, 0], 16),
            virtual_ipv4: net([100, 64, 127, 0], 24),
        },
        local: HostId(1),
        hosts: BTreeMap::from([(HostId(1), host("app-1", 16)), (HostId(2), host("app-2", 32))]),
        services: BTreeMap::from([(ServiceId(4), service)]),
        devices: BTreeMap::from([(DeviceId(9), device)]),
        rules: Rules::default(),
        routes: Vec::new(),
        limits: Vec::new(),
    }
}

fn host(host_name: &str, block: u8) -> Host {
    Host {
        name: name(host_name),
        site: None,
        labels: BTreeMap::new(),
        public_key: PublicKey([block; 32]),
        former_key: None,
        endpoints: Vec::new(),
        ipv4_block: net([100, 64, 0, block], 28),
    }
}

fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

fn net(address: [u8; 4], length: u8) -> Ipv4Net {
    Ipv4Net::new_assert(address.into(), length)
}
