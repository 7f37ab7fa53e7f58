//! The agent's own values as the local API's messages.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use isthmus_core::{Cipher, CompiledSnapshot, FlowView, PeerName, PeerView};
use isthmus_model::{DeviceId, Layer4, Principal, ServiceId, ServicePort};
use isthmus_net::memory::{Usage, usage};
use isthmus_net::tun::Offloads;
use isthmus_proto::v1;

use crate::callers::Caller;
use crate::dataplane::Sample;
use crate::settings::Settings;
use crate::status::Status;
use crate::words::{asked_port, end, is_up, peer_name, peer_state};

pub(super) fn status(
    settings: &Settings,
    status: &Status,
    sample: Option<&Sample>,
) -> v1::AgentStatus {
    let mut shown = v1::AgentStatus {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        joined: status.member.is_some(),
        controller: status.controller.clone(),
        connected: status.connected,
        last_error: why_not(status),
        device: settings.device.clone(),
        proxy: status.proxy.clone(),
        dns: status.dns.clone(),
        gateways: status.gateways.clone(),
        snapshot_age_seconds: status.snapshot_age(SystemTime::now()).as_secs(),
        certificate_expires: status.certificate.map_or(0, |it| seconds(it.until)),
        memory: usage().ok().map(memory),
        ..v1::AgentStatus::default()
    };
    if let Some(member) = &status.member {
        shown.host = member.host.to_string();
        shown.mesh.clone_from(&member.mesh);
        shown.trust_domain = member.trust_domain.to_string();
    }
    if let Some(state) = &status.state {
        shown.revision = state.revision().0;
        shown.addresses = own_addresses(state);
        shown.services = local_services(state, &status.listening);
    }
    if let Some(sample) = sample {
        shown.mtu = sample.mtu.into();
        shown.flows = sample.flows as u64;
        shown.peers = sample.peers.len() as u64;
        shown.peers_up = sample.peers.iter().filter(|peer| is_up(peer)).count() as u64;
        shown.drops = drops(sample);
        shown.notes = notes(sample);
    }
    shown
}

fn memory(usage: Usage) -> v1::Memory {
    v1::Memory {
        resident_bytes: usage.resident,
        anonymous_bytes: usage.anonymous,
        proportional_bytes: usage.proportional.unwrap_or_default(),
    }
}

fn why_not(status: &Status) -> String {
    match (status.refusal.as_str(), status.last_error.as_str()) {
        ("", error) => error.to_owned(),
        (refusal, "") => format!("refused the newest revision: {refusal}"),
        (refusal, error) => format!("{error}; refused the newest revision: {refusal}"),
    }
}

fn own_addresses(state: &CompiledSnapshot) -> Vec<String> {
    let snapshot = &state.snapshot;
    let ipv6 = snapshot.workload_ipv6(snapshot.local, ServiceId(0));
    vec![snapshot.local_host().ipv4().to_string(), ipv6.to_string()]
}

fn local_services(
    state: &CompiledSnapshot,
    listening: &BTreeMap<(ServiceId, u16), String>,
) -> Vec<v1::LocalService> {
    let snapshot = &state.snapshot;
    let service =
        |(id, service, ipv4): (ServiceId, &isthmus_model::Service, std::net::Ipv4Addr)| {
            let ipv6 = snapshot.workload_ipv6(snapshot.local, id);
            v1::LocalService {
                name: service.name.to_string(),
                namespace: service.namespace.to_string(),
                port: service.port.into(),
                protocol: service.protocol.to_string(),
                addresses: vec![ipv4.to_string(), ipv6.to_string()],
                listens: listening.get(&(id, service.port)).cloned().unwrap_or_default(),
                more: more_ports(id, service, listening),
                leaving: service.leaving.contains(&snapshot.local),
            }
        };
    snapshot.local_services().map(service).collect()
}

fn more_ports(
    id: ServiceId,
    service: &isthmus_model::Service,
    listening: &BTreeMap<(ServiceId, u16), String>,
) -> Vec<v1::LocalPort> {
    let port = |it: &ServicePort| v1::LocalPort {
        name: it.name.to_string(),
        port: it.port.into(),
        protocol: it.protocol.to_string(),
        listens: listening.get(&(id, it.port)).cloned().unwrap_or_default(),
    };
    service.more.iter().map(port).collect()
}

fn drops(sample: &Sample) -> Vec<v1::Counter> {
    let counted = sample.counters.drops().filter(|(_, value)| *value > 0);
    counted.map(|(reason, value)| v1::Counter { name: reason.label().to_owned(), value }).collect()
}

fn notes(sample: &Sample) -> Vec<String> {
    let gso = if sample.gso { "UDP GSO on" } else { "UDP GSO off" };
    let tun = match sample.offloads {
        Some(Offloads { tcp: true, udp: true }) => "TUN offload on (TCP, UDP)",
        Some(Offloads { tcp: true, udp: false }) => {
            "TUN offload on (TCP only: UDP needs Linux 6.2)"
        }
        Some(Offloads { tcp: false, .. }) => "TUN offload off: this kernel has none",
        None => "no TUN device",
    };
    let lanes = match sample.lanes.len() {
        1 => "1 lane".to_owned(),
        lanes => format!("{lanes} lanes"),
    };
    let mut notes = vec![lanes, gso.to_owned(), tun.to_owned()];
    if sample.send_busy > 0 {
        notes.push(format!("{} datagrams found the send buffer full", sample.send_busy));
    }
    notes
}

fn seconds(at: SystemTime) -> i64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

pub(super) fn peer(state: &CompiledSnapshot, peer: &PeerView) -> v1::Peer {
    let kind = match peer.peer {
        PeerName::Host(_) => "host",
        PeerName::Device(_) => "device",
    };
    let milliseconds = |since: Duration| u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
    v1::Peer {
        name: peer_name(state, peer.peer),
        kind: kind.to_owned(),
        endpoint: peer.endpoint.map_or_else(String::new, |endpoint| endpoint.to_string()),
        state: peer_state(peer).to_owned(),
        last_handshake_ms: peer.last_handshake.map(milliseconds),
        received_bytes: peer.received_bytes,
        sent_bytes: peer.sent_bytes,
        path_mtu: peer.path_mtu.into(),
        addresses: peer_addresses(state, peer.peer),
        cipher: peer.bulk.map_or("wireguard", Cipher::name).to_owned(),
        silent_ms: peer.silent.map(milliseconds),
    }
}

fn peer_addresses(state: &CompiledSnapshot, peer: PeerName) -> Vec<String> {
    let snapshot = &state.snapshot;
    match peer {
        PeerName::Host(id) => snapshot.hosts.get(&id).map(|host| {
            vec![host.ipv4().to_string(), snapshot.workload_ipv6(id, ServiceId(0)).to_string()]
        }),
        PeerName::Device(DeviceId(number)) => {
            snapshot.devices.get(&DeviceId(number)).map(|device| {
                let ipv6 = snapshot.workload_ipv6(device.via, ServiceId(number));
                vec![device.ipv4.to_string(), ipv6.to_string()]
            })
        }
    }
    .unwrap_or_default()
}

pub(super) fn flow(state: &CompiledSnapshot, flow: &FlowView, caller: Option<&Caller>) -> v1::Flow {
    let direction = match (flow.ingress, flow.egress) {
        (None, Some(_)) => "outbound",
        (Some(_), None) => "inbound",
        (Some(_), Some(_)) => "forwarded",
        (None, None) => "local",
    };
    // What the tunnel carries: there the addresses say who speaks to whom.
    let wire = if flow.ingress.is_some() { &flow.original } else { &flow.translated };
    let peer = flow.ingress.or(flow.egress);
    let described = state.policy.describe(&flow.verdict);
    v1::Flow {
        from: name(state, flow.from),
        to: name(state, flow.to),
        protocol: protocol(flow.layer4),
        source: end(flow.layer4, wire.source.into(), wire.source_port),
        destination: end(flow.layer4, wire.destination.into(), asked_port(flow.layer4)),
        direction: direction.to_owned(),
        verdict: flow.outcome.to_string(),
        rule: flow.rule.clone(),
        origin: described.origin.map_or_else(String::new, ToString::to_string),
        audited: flow.verdict.audited(),
        packets: flow.forward.0 + flow.backward.0,
        bytes: flow.forward.1 + flow.backward.1,
        idle_ms: u64::try_from(flow.idle.as_millis()).unwrap_or(u64::MAX),
        age_ms: u64::try_from(flow.age.as_millis()).unwrap_or(u64::MAX),
        revision: state.revision().0,
        peer: peer.map_or_else(String::new, |peer| peer_name(state, peer)),
        user: caller.map_or_else(String::new, Caller::user),
        uid: caller.map(|caller| caller.uid),
        unit: caller.map_or_else(String::new, |caller| caller.unit().to_owned()),
        program: caller.map_or_else(String::new, Caller::program),
    }
}

fn name(state: &CompiledSnapshot, principal: Principal) -> String {
    state.identity(principal).map_or_else(|| "unknown".to_owned(), ToString::to_string)
}

fn protocol(layer4: Layer4) -> String {
    match layer4 {
        Layer4::Tcp(_) => "tcp".to_owned(),
        Layer4::Udp(_) => "udp".to_owned(),
        Layer4::Icmp => "icmp".to_owned(),
        Layer4::Other(number) => number.to_string(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use isthmus_model::{
        Device, Host, HostId, Mesh, MeshPrefix, Protocol, PublicKey, Revision, Rules, Selector,
        Service, Snapshot,
    };

    use super::*;

    fn service(name: &str, vip: &str, placements: &[(u32, &str)]) -> Service {
        Service {
            name: name.parse().unwrap(),
            namespace: "prod".parse().unwrap(),
            port: 8080,
            protocol: Protocol::Tcp,
            more: Vec::new(),
            virtual_ipv4: vip.parse().unwrap(),
            leaving: Default::default(),
            placements: placements
                .iter()
                .map(|(id, ipv4)| (HostId(*id), ipv4.parse().unwrap()))
                .collect(),
            selectors: vec![Selector::User("33".into())],
            balance: isthmus_model::Balance::default(),
            edge: None,
            application: isthmus_model::Application::default(),
            paths: isthmus_model::PathMode::default(),
            guard: isthmus_model::PortGuard::default(),
            aliases: Vec::new(),
        }
    }

    /// Host 1 (app-1, this one), host 2 (web-1) with the service web (5), a service without
    /// workloads (6), and the device press (9) behind host 2.
    pub(crate) fn state() -> CompiledSnapshot {
        let host = |name: &str, endpoint: &str, block: &str| Host {
            name: name.parse().unwrap(),
            site: None,
            labels: BTreeMap::new(),
            public_key: PublicKey([1; 32]),
            former_key: None,
            endpoints: vec![endpoint.parse().unwrap()],
            ipv4_block: block.parse().unwrap(),
        };
        let device = Device {
            name: "press".parse().unwrap(),
            public_key: PublicKey([2; 32]),
            via: HostId(2),
            ipv4: "100.64.0.20".parse().unwrap(),
        };
        CompiledSnapshot::new(Snapshot {
            revision: Revision(4),
            mesh: Mesh {
                name: "corp".parse().unwrap(),
                trust_domain: "corp.example".parse().unwrap(),
                prefix: MeshPrefix::new([0xfd, 1, 2, 3, 4, 5]).unwrap(),
                ipv4: "100.64.0.0/10".parse().unwrap(),
                virtual_ipv4: "100.127.0.0/16".parse().unwrap(),
            },
            local: HostId(1),
            hosts: [
                (HostId(1), host("app-1", "192.0.2.1:51820", "100.64.0.0/28")),
                (HostId(2), host("web-1", "192.0.2.2:51820", "100.64.0.16/28")),
            ]
            .into(),
            services: [
                (ServiceId(5), service("web", "100.127.0.5", &[(2, "100.64.0.17")])),
                (ServiceId(6), service("homeless", "100.127.0.6", &[])),
                (ServiceId(7), service("here", "100.127.0.7", &[(1, "100.64.0.1")])),
            ]
            .into(),
            devices: [(DeviceId(9), device)].into(),
            rules: Rules::default(),
            routes: Vec::new(),
            limits: Vec::new(),
        })
    }

    #[test]
    fn an_unjoined_agent_says_so() {
        let shown = status(&Settings::default(), &Status::default(), None);
        assert!(!shown.joined && !shown.connected);
        assert_eq!((shown.revision, shown.certificate_expires), (0, 0));
    }

    #[test]
    fn a_member_shows_its_addresses_and_services() {
        let state = state();
        let member = crate::identity::tests::member();
        let joined = Status {
            member: Some(member),
            state: Some(std::sync::Arc::new(state)),
            ..Status::default()
        };
        let shown = status(&Settings::default(), &joined, Some(&Sample::default()));
        assert_eq!(shown.addresses, ["100.64.0.0", "fd01:203:405::1:0:0"]);
        assert_eq!(shown.services.len(), 1);
        assert_eq!(shown.services[0].addresses, ["100.64.0.1", "fd01:203:405::1:0:7"]);
        assert_eq!(shown.revision, 4);
    }

    #[test]
    fn a_flow_that_the_proxy_judges_is_shown_with_the_services_port() {
        use isthmus_packet::FlowKey;
        use isthmus_policy::{DecidedBy, Outcome, Verdict};
        let key = |source: &str, destination: &str, port| FlowKey {
            source: source.parse::<std::net::IpAddr>().unwrap().into(),
            destination: destination.parse::<std::net::IpAddr>().unwrap().into(),
            source_port: 4000,
            destination_port: port,
            protocol: 6,
        };
        let outcome = Outcome::Inspect;
        let view = FlowView {
            from: Principal::Host(HostId(1)),
            to: Principal::Service(ServiceId(7)),
            layer4: Layer4::Tcp(8080),
            original: key("100.64.0.0", "100.127.0.7", 8080),
            translated: key("100.127.0.0", "100.64.0.1", 15001),
            ingress: None,
            egress: None,
            outcome,
            verdict: Verdict { outcome, decided_by: DecidedBy::Default, would_deny: None },
            rule: "default".to_owned(),
            state: isthmus_core::FlowState::Established,
            forward: (3, 300),
            backward: (2, 200),
            age: Duration::from_secs(9),
            idle: Duration::from_secs(1),
        };
        let shown = flow(&state(), &view, None);
        assert_eq!((shown.from.as_str(), shown.to.as_str()), ("host:app-1", "service:here"));
        assert_eq!((shown.direction.as_str(), shown.verdict.as_str()), ("local", "inspect"));
        assert_eq!(shown.destination, "100.64.0.1:8080");
        assert_eq!((shown.packets, shown.bytes), (5, 500));
    }

    #[test]
    fn a_tunnel_is_up_for_as_long_as_its_session() {
        let view = |handshake: Option<u64>, sent_bytes| PeerView {
            peer: PeerName::Host(HostId(2)),
            public_key: PublicKey([1; 32]),
            endpoint: None,
            last_handshake: handshake.map(Duration::from_secs),
            last_heard: None,
            received_bytes: 0,
            sent_bytes,
            path_mtu: 1500,
            silent: None,
            round_trip: None,
            bulk: None,
        };
        assert_eq!(peer_state(&view(None, 0)), "idle");
        assert_eq!(peer_state(&view(None, 148)), "connecting");
        assert_eq!(peer_state(&view(Some(20), 148)), "up");
        assert_eq!(peer_state(&view(Some(400), 148)), "idle");
        let silent = PeerView { silent: Some(Duration::from_secs(12)), ..view(Some(20), 148) };
        assert_eq!((peer_state(&silent), is_up(&silent)), ("silent", false));
        assert_eq!(peer(&state(), &silent).silent_ms, Some(12_000));
        let shown = peer(&state(), &view(Some(20), 148));
        assert_eq!((shown.name.as_str(), shown.kind.as_str()), ("web-1", "host"));
        assert_eq!(shown.last_handshake_ms, Some(20_000));
    }
}
