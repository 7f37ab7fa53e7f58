//! This host as its agent tells it.

use std::time::Duration;

use isthmus_proto::v1;
use serde_json::{Map, Value, json};

use crate::mesh_view::{expiry, known};
use crate::output::{Tone, cell, clean, facts, number, paint, table, toned};
use crate::problems;
use crate::words::{bytes, rough, timestamp};

/// The status of the agent.
pub(crate) fn text(status: &v1::AgentStatus, now: i64) -> String {
    if !status.joined {
        return not_joined(status);
    }
    let host = paint(&clean(&status.host), Tone::Strong);
    let mesh = clean(&format!("{} ({})", status.mesh, status.trust_domain));
    let (expiry, tone) = expiry(status.certificate_expires, now);
    let age = rough(Duration::from_secs(status.snapshot_age_seconds));
    let known = [
        ("agent", clean(&status.version)),
        ("controller", controller(status)),
        ("revision", format!("{}, confirmed {age} ago", status.revision)),
        ("certificate", paint(&expiry, tone)),
        ("device", clean(&format!("{}, MTU {}", status.device, status.mtu))),
        ("addresses", clean(&status.addresses.join(", "))),
        ("services", clean(&services(&status.services))),
        ("gateways", gateways(&status.gateways, now)),
        ("containers", containers(&status.containers)),
        ("tunnels", format!("{} of {} up", status.peers_up, status.peers)),
        ("flows", status.flows.to_string()),
        ("drops", clean(&drops(&status.drops))),
        ("proxy", clean(&status.proxy)),
        ("dns", clean(&status.dns)),
        ("memory", status.memory.as_ref().map(memory).unwrap_or_default()),
        ("notes", clean(&status.notes.join("\n"))),
        ("problems", problems(status, now)),
    ];
    format!("host {host} of mesh {mesh}\n{}", facts(&known))
}

/// Of what is resident most is the program, which nobody has to find room for.
fn memory(memory: &v1::Memory) -> String {
    let v1::Memory { resident_bytes, anonymous_bytes, proportional_bytes } = memory;
    let share = match proportional_bytes {
        0 => String::new(),
        share => format!("; its share, {}", bytes(*share)),
    };
    format!(
        "{} of its own; resident with its program, {}{share}",
        bytes(*anonymous_bytes),
        bytes(*resident_bytes)
    )
}

fn not_joined(status: &v1::AgentStatus) -> String {
    let known = [
        ("agent", clean(&status.version)),
        ("last error", clean(&status.last_error)),
        ("notes", clean(&status.notes.join("\n"))),
        ("problems", problems(status, crate::words::now())),
    ];
    let next = "this host is in no mesh yet\n  next: `agentctl join -` with a token that an operator made (`agentctl token create`)";
    format!("{next}\n{}", facts(&known))
}

fn controller(status: &v1::AgentStatus) -> String {
    let address = clean(&status.controller);
    if status.connected {
        let trouble = paint(&clean(&status.last_error), Tone::Warn);
        return format!("{} to {address}\n{trouble}", paint("connected", Tone::Good));
    }
    let why = match &*status.last_error {
        "" => String::new(),
        error => format!(": {}", clean(error)),
    };
    let away = paint("not connected", Tone::Warn);
    format!("{away} to {address}{why}\ntraffic goes on by the last revision")
}

fn problems(status: &v1::AgentStatus, now: i64) -> String {
    problems::list(status.problems.iter().map(|it| ("", it)), now)
}

fn services(services: &[v1::LocalService]) -> String {
    let line = |service: &v1::LocalService| {
        let v1::LocalService { name, namespace, port, protocol, addresses, listens, more, leaving } =
            service;
        let shown = |listens: &str| {
            if listens.is_empty() { String::new() } else { format!(", listens {listens}") }
        };
        let more = more
            .iter()
            .map(|it| format!("\n  {} {}/{}{}", it.name, it.protocol, it.port, shown(&it.listens)));
        let (listens, more) = (shown(listens), more.collect::<String>());
        let port = if *port == 0 { "calls only".to_owned() } else { format!("{protocol}/{port}") };
        let leaving = if *leaving { ", leaving: it gets nothing new" } else { "" };
        format!("{name}.{namespace} {port} at {}{listens}{leaving}{more}", addresses.join(", "))
    };
    services.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// One line for each listener; what is wrong with it below it.
fn gateways(gateways: &[v1::GatewayStatus], now: i64) -> String {
    let line = |status: &v1::GatewayStatus| {
        let v1::GatewayStatus { gateway, port, hosts, tls, certificate_expires, problem } = status;
        let scheme = if *tls { "https" } else { "http" };
        let hosts = if hosts.is_empty() { String::new() } else { format!(" {}", hosts.join(" ")) };
        let mut line = clean(&format!("{gateway} {scheme}/{port}{hosts}"));
        if let Some(until) = certificate_expires {
            let (until, tone) = expiry(*until, now);
            line = format!("{line}, certificate {}", paint(&until, tone));
        }
        if problem.is_empty() {
            return line;
        }
        format!("{line}\n{}", paint(&clean(problem), Tone::Warn))
    };
    gateways.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// One line for each; as whose host it speaks, and why.
fn containers(containers: &[v1::ContainerStatus]) -> String {
    let line = |container: &v1::ContainerStatus| {
        let v1::ContainerStatus { name, image, addresses, service, why } = container;
        let image = if image.is_empty() { String::new() } else { format!(" ({image})") };
        let at = if addresses.is_empty() {
            "in the host's network".to_owned()
        } else {
            format!("at {}", addresses.join(", "))
        };
        match &**service {
            "" => clean(&format!("{name}{image} {at} speaks as its host: {why}")),
            service => clean(&format!("{name}{image} {at} speaks as {service}")),
        }
    };
    containers.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn drops(drops: &[v1::Counter]) -> String {
    let parts: Vec<String> = drops
        .iter()
        .filter(|drop| drop.value > 0)
        .map(|drop| format!("{} {}", drop.value, drop.name))
        .collect();
    if parts.is_empty() { "none".to_owned() } else { parts.join(", ") }
}

pub(crate) fn json(status: &v1::AgentStatus) -> Value {
    let drops: Map<String, Value> =
        status.drops.iter().map(|drop| (drop.name.clone(), drop.value.into())).collect();
    json!({
        "version": status.version,
        "joined": status.joined,
        "host": known(&status.host),
        "mesh": known(&status.mesh),
        "trust_domain": known(&status.trust_domain),
        "addresses": status.addresses,
        "controller": known(&status.controller),
        "connected": status.connected,
        "last_error": known(&status.last_error),
        "revision": status.revision,
        "snapshot_age_seconds": status.snapshot_age_seconds,
        "certificate_expires": timestamp(status.certificate_expires),
        "device": known(&status.device),
        "mtu": status.mtu,
        "services": status.services.iter().map(service_json).collect::<Value>(),
        "gateways": status.gateways.iter().map(gateway_json).collect::<Value>(),
        "containers": status.containers.iter().map(container_json).collect::<Value>(),
        "flows": status.flows,
        "peers_up": status.peers_up,
        "peers": status.peers,
        "drops": drops,
        "notes": status.notes,
        "problems": problems::json(&status.problems),
        "proxy": known(&status.proxy),
        "dns": known(&status.dns),
        "memory": status.memory.as_ref().map(|memory| json!({
            "resident_bytes": memory.resident_bytes,
            "anonymous_bytes": memory.anonymous_bytes,
            "proportional_bytes": (memory.proportional_bytes > 0).then_some(memory.proportional_bytes),
        })),
    })
}

fn port_json(it: &v1::LocalPort) -> Value {
    json!({
        "name": it.name,
        "port": it.port,
        "protocol": it.protocol,
        "listens": known(&it.listens),
    })
}

fn service_json(service: &v1::LocalService) -> Value {
    json!({
        "name": service.name,
        "namespace": service.namespace,
        "port": (service.port != 0).then_some(service.port),
        "protocol": (service.port != 0).then_some(&service.protocol),
        "addresses": service.addresses,
        "listens": known(&service.listens),
        "leaving": service.leaving,
        "ports": service.more.iter().map(port_json).collect::<Value>(),
    })
}

fn gateway_json(status: &v1::GatewayStatus) -> Value {
    json!({
        "gateway": status.gateway,
        "port": status.port,
        "hosts": status.hosts,
        "tls": status.tls,
        "certificate_expires": status.certificate_expires.and_then(timestamp),
        "problem": known(&status.problem),
    })
}

fn container_json(status: &v1::ContainerStatus) -> Value {
    json!({
        "name": status.name,
        "image": known(&status.image),
        "addresses": status.addresses,
        "service": known(&status.service),
        "why": known(&status.why),
    })
}

/// One row per tunnel.
pub(crate) fn peer_table(peers: &[v1::Peer]) -> String {
    if peers.is_empty() {
        return "no peers: nothing allows traffic between this host and another".to_owned();
    }
    let header = [
        "PEER",
        "KIND",
        "STATE",
        "ENDPOINT",
        "HANDSHAKE",
        "RECEIVED",
        "SENT",
        "MTU",
        "CIPHER",
        "ADDRESSES",
    ];
    let row = |peer: &v1::Peer| {
        let tone = match &*peer.state {
            "up" => Tone::Good,
            "connecting" => Tone::Warn,
            "silent" => Tone::Bad,
            _ => Tone::Quiet,
        };
        let state = peer.silent_ms.map_or_else(
            || peer.state.clone(),
            |ms| format!("{} {}", peer.state, rough(Duration::from_millis(ms))),
        );
        let handshake = peer.last_handshake_ms.map_or_else(
            || "never".to_owned(),
            |ms| format!("{} ago", rough(Duration::from_millis(ms))),
        );
        let mtu = if peer.path_mtu == 0 { String::new() } else { peer.path_mtu.to_string() };
        vec![
            toned(&peer.name, Tone::Strong),
            cell(&peer.kind),
            toned(&state, tone),
            cell(&peer.endpoint),
            cell(handshake),
            number(bytes(peer.received_bytes)),
            number(bytes(peer.sent_bytes)),
            number(mtu),
            cell(clean(&peer.cipher)),
            cell(peer.addresses.join(", ")),
        ]
    };
    table(&header, peers.iter().map(row).collect())
}

pub(crate) fn peers_json(peers: &[v1::Peer]) -> Value {
    let one = |peer: &v1::Peer| {
        json!({
            "name": peer.name,
            "kind": peer.kind,
            "endpoint": known(&peer.endpoint),
            "state": peer.state,
            "silent_ms": peer.silent_ms,
            "last_handshake_ms": peer.last_handshake_ms,
            "received_bytes": peer.received_bytes,
            "sent_bytes": peer.sent_bytes,
            "path_mtu": peer.path_mtu,
            "cipher": peer.cipher,
            "addresses": peer.addresses,
        })
    };
    peers.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::plain;

    const NOW: i64 = 1_700_000_000;

    fn status() -> v1::AgentStatus {
        v1::AgentStatus {
            version: "0.1.0".to_owned(),
            joined: true,
            host: "app-1".to_owned(),
            mesh: "corp".to_owned(),
            trust_domain: "corp.example".to_owned(),
            addresses: vec!["100.64.0.16".to_owned(), "fd01:203:405:0:0:1::".to_owned()],
            controller: "10.9.0.1:7443".to_owned(),
            connected: false,
            last_error: "connection refused".to_owned(),
            revision: 7,
            snapshot_age_seconds: 185,
            certificate_expires: NOW + 100,
            device: "isth0".to_owned(),
            mtu: 1420,
            services: vec![v1::LocalService {
                name: "web".to_owned(),
                namespace: "prod".to_owned(),
                port: 8080,
                protocol: "http".to_owned(),
                addresses: vec!["100.64.0.17".to_owned()],
                listens: "on IPv4 only".into(),
                more: Vec::new(),
                leaving: true,
            }],
            drops: vec![
                v1::Counter { name: "forged".to_owned(), value: 3 },
                v1::Counter { name: "denied".to_owned(), value: 0 },
            ],
            gateways: vec![v1::GatewayStatus {
                gateway: "public".to_owned(),
                port: 443,
                hosts: vec!["shop.example".to_owned()],
                tls: true,
                certificate_expires: Some(NOW + 100),
                problem: "/k.pem is gone".to_owned(),
            }],
            containers: vec![
                v1::ContainerStatus {
                    name: "web-1".to_owned(),
                    image: "nginx:1".to_owned(),
                    addresses: vec!["10.88.0.2".to_owned()],
                    service: "web".to_owned(),
                    why: String::new(),
                },
                v1::ContainerStatus {
                    name: "tool".to_owned(),
                    why: "no `workload` fits it".to_owned(),
                    ..v1::ContainerStatus::default()
                },
            ],
            memory: Some(v1::Memory {
                resident_bytes: 9 << 20,
                anonymous_bytes: 2 << 20,
                proportional_bytes: 5 << 20,
            }),
            ..v1::AgentStatus::default()
        }
    }

    #[test]
    fn an_agent_says_why_it_is_not_connected() {
        let text = plain(&text(&status(), NOW));
        for part in [
            "host app-1 of mesh corp (corp.example)",
            "not connected to 10.9.0.1:7443: connection refused",
            "7, confirmed 3 min ago",
            "expires in 100 s",
            "web.prod http/8080 at 100.64.0.17, listens on IPv4 only, leaving: it gets nothing new",
            "drops        3 forged\n",
            "public https/443 shop.example, certificate expires in 100 s",
            "/k.pem is gone",
            "web-1 (nginx:1) at 10.88.0.2 speaks as web\n",
            "tool in the host's network speaks as its host: no `workload` fits it",
            "memory       2.0 MiB of its own; resident with its program, 9.0 MiB; its share, 5.0 MiB\n",
        ] {
            assert!(text.contains(part), "{part} in:\n{text}");
        }
    }

    #[test]
    fn an_agent_that_is_connected_says_what_it_refused() {
        let mut status = v1::AgentStatus { connected: true, ..status() };
        status.last_error = "refused the newest revision: a route clashes".to_owned();
        let shown = plain(&text(&status, NOW));
        assert!(shown.contains("connected to 10.9.0.1:7443\n"), "{shown}");
        assert!(shown.contains("a route clashes"), "{shown}");
        status.last_error = String::new();
        assert!(!plain(&text(&status, NOW)).contains("\n\n"));
    }

    #[test]
    fn an_agent_without_a_mesh_says_what_to_do_next() {
        let text = text(&v1::AgentStatus::default(), NOW);
        assert!(text.contains("agentctl join"), "{text}");
    }

    #[test]
    fn json_keeps_the_names_of_the_message() {
        let value = json(&status());
        assert_eq!(value["drops"], json!({ "forged": 3, "denied": 0 }));
        assert_eq!(value["memory"]["anonymous_bytes"], 2 << 20);
        assert_eq!(value["certificate_expires"], "2023-11-14T22:15:00Z");
        assert_eq!(value["addresses"][0], "100.64.0.16");
        assert_eq!((&value["joined"], &value["revision"]), (&true.into(), &7.into()));
        assert_eq!(value["dns"], Value::Null);
    }

    #[test]
    fn peers_show_how_long_ago_they_were_heard() {
        let peer = v1::Peer {
            name: "web-1".to_owned(),
            kind: "host".to_owned(),
            endpoint: "10.9.0.12:51820".to_owned(),
            state: "up".to_owned(),
            last_handshake_ms: Some(4_000),
            received_bytes: 2_048,
            path_mtu: 1_280,
            cipher: "aes-256-gcm".to_owned(),
            ..v1::Peer::default()
        };
        let silent = v1::Peer {
            name: "web-2".to_owned(),
            state: "silent".to_owned(),
            silent_ms: Some(12_000),
            ..v1::Peer::default()
        };
        let text = plain(&peer_table(&[peer.clone(), silent]));
        assert!(text.contains("silent 12 s"), "{text}");
        assert!(
            text.contains("4 s ago") && text.contains("2.0 KiB") && text.contains("1280"),
            "{text}"
        );
        assert!(text.contains("never"), "{text}");
        let value = peers_json(&[peer]);
        assert_eq!(
            (&value[0]["path_mtu"], &value[0]["last_handshake_ms"]),
            (&1_280.into(), &4_000.into())
        );
    }
}
