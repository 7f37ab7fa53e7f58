//! The mesh as the controller tells it: rows for people, JSON for programs.

use std::net::Ipv6Addr;

use comfy_table::Cell;
use isthmus_model::{HostId, Ipv4Net, MeshPrefix, PublicKey, ServiceId};
use isthmus_proto::v1;
use serde_json::{Value, json};

use crate::output::{Tone, cell, clean, facts, number, paint, table, toned};
use crate::problems;
use crate::words::{count, relative, timestamp};

/// More events than this scroll the rest away.
const EVENTS_SHOWN: usize = 10;

/// The whole status.
pub(crate) fn text(status: &v1::MeshStatus, now: i64) -> String {
    let connected = status.hosts.iter().filter(|host| host.connected).count();
    let hosts = count(status.hosts.len(), "host");
    let name = paint(&clean(&status.name), Tone::Strong);
    let domain = clean(&status.trust_domain);
    let revision = status.revision;
    let mut text =
        format!("mesh {name} ({domain}), revision {revision}, {connected} of {hosts} connected\n");
    let mut section = |part: String| {
        text.push('\n');
        text.push_str(&part);
        text.push('\n');
    };
    if status.hosts.is_empty() {
        section(
            "No hosts yet. Next: `agentctl token create`, then `agentctl join -` on a host."
                .to_owned(),
        );
    } else {
        section(host_table(status, now));
    }
    let problems = problems::of_mesh(status);
    if !problems.is_empty() {
        let title = paint(&count(problems.len(), "problem"), Tone::Strong);
        section(format!("{title}\n{}", problems::list(problems, now)));
    }
    if !status.services.is_empty() {
        section(service_table(&status.services));
    }
    if !status.devices.is_empty() {
        section(device_table(&status.devices));
    }
    let (forgeries, others): (Vec<_>, Vec<_>) =
        status.events.iter().partition(|event| event.text.is_empty());
    if !forgeries.is_empty() {
        section(event_table(forgeries, now));
    }
    if !others.is_empty() {
        section(event_list(others, now));
    }
    text
}

pub(crate) fn json(status: &v1::MeshStatus) -> Value {
    json!({
        "name": status.name,
        "trust_domain": status.trust_domain,
        "revision": status.revision,
        "hosts": hosts_json(&status.hosts),
        "services": services_json(status),
        "devices": devices_json(&status.devices),
        "problems": problems::json(&status.problems),
        "events": status.events.iter().map(event_json).collect::<Value>(),
    })
}

/// One row per host.
pub(crate) fn host_table(status: &v1::MeshStatus, now: i64) -> String {
    let header =
        ["HOST", "SITE", "STATE", "REVISION", "ADDRESS", "ENDPOINT", "SERVICES", "CERTIFICATE"];
    let row = |host: &v1::HostStatus| host_row(host, status.revision, now);
    table(&header, status.hosts.iter().map(row).collect())
}

fn host_row(status: &v1::HostStatus, revision: u64, now: i64) -> Vec<Cell> {
    let host = inner(status);
    let (state, tone) = state(status);
    let behind = if status.revision == revision { Tone::Plain } else { Tone::Warn };
    let endpoint = match &*host.endpoints {
        [] => String::new(),
        [only] => only.clone(),
        [first, rest @ ..] => format!("{first} (+{})", rest.len()),
    };
    let (expiry, expiry_tone) = expiry(status.certificate_expires, now);
    vec![
        toned(&host.name, Tone::Strong),
        cell(&host.site),
        toned(state, tone),
        toned(status.revision, behind),
        cell(ipv4(&host).unwrap_or_default()),
        cell(endpoint),
        cell(status.services.join(", ")),
        toned(expiry, expiry_tone),
    ]
}

fn state(status: &v1::HostStatus) -> (&'static str, Tone) {
    match (status.connected, status.refusal.is_empty()) {
        (_, false) => ("refuses", Tone::Bad),
        (true, true) => ("connected", Tone::Good),
        (false, true) => ("away", Tone::Warn),
    }
}

/// "expires in 23 h", and whether that should worry anybody.
pub(crate) fn expiry(at: i64, now: i64) -> (String, Tone) {
    match at {
        0 => ("-".to_owned(), Tone::Plain),
        _ if at <= now => (format!("expired {}", relative(at, now)), Tone::Bad),
        _ => (format!("expires {}", relative(at, now)), Tone::Plain),
    }
}

/// All that is known of one host.
pub(crate) fn host_facts(status: &v1::HostStatus, now: i64) -> String {
    let host = inner(status);
    let (state, tone) = state(status);
    let labels: Vec<String> = host.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    let known = [
        ("host", paint(&clean(&host.name), Tone::Strong)),
        ("number", host.id.to_string()),
        ("site", clean(&host.site)),
        ("labels", clean(&labels.join(" "))),
        ("state", paint(state, tone)),
        ("refusal", clean(&status.refusal)),
        ("revision", status.revision.to_string()),
        ("agent", clean(&status.version)),
        ("ipv4", ipv4(&host).unwrap_or_default()),
        ("ipv6", clean(&status.ipv6)),
        ("block", clean(&host.ipv4_block)),
        ("endpoints", clean(&host.endpoints.join("\n"))),
        ("public key", key(&host.public_key).unwrap_or_default()),
        ("former key", former_key(status, now)),
        ("services", clean(&status.services.join(", "))),
        ("problems", problems::list(status.problems.iter().map(|it| ("", it)), now)),
        ("joined", relative(status.joined, now)),
        ("certificate", expiry(status.certificate_expires, now).0),
    ];
    facts(&known)
}

/// How long the tunnel key before the present one is good, and for whose sake.
fn former_key(status: &v1::HostStatus, now: i64) -> String {
    match status.former_key_until {
        0 => String::new(),
        until if until > now => format!("good still, ends {}", relative(until, now)),
        _ => {
            let awaited = clean(&status.former_key_awaits.join(", "));
            format!("good still, until {awaited} has taken the new one, or for a day")
        }
    }
}

pub(crate) fn hosts_json(hosts: &[v1::HostStatus]) -> Value {
    hosts.iter().map(host_json).collect()
}

pub(crate) fn host_json(status: &v1::HostStatus) -> Value {
    let host = inner(status);
    json!({
        "name": host.name,
        "id": host.id,
        "site": known(&host.site),
        "labels": host.labels,
        "connected": status.connected,
        "revision": status.revision,
        "version": known(&status.version),
        "ipv4": ipv4(&host),
        "ipv6": known(&status.ipv6),
        "endpoints": host.endpoints,
        "public_key": key(&host.public_key),
        "former_key_until": timestamp(status.former_key_until),
        "former_key_awaits": status.former_key_awaits,
        "services": status.services,
        "joined": timestamp(status.joined),
        "certificate_expires": timestamp(status.certificate_expires),
        "refusal": known(&status.refusal),
        "problems": problems::json(&status.problems),
    })
}

/// One row per service.
pub(crate) fn service_table(services: &[v1::ServiceStatus]) -> String {
    let header = ["SERVICE", "NAMESPACE", "PORT", "VIRTUAL IPV4", "NAME", "HOSTS"];
    let row = |status: &v1::ServiceStatus| {
        let service = status.service.clone().unwrap_or_default();
        vec![
            toned(&service.name, Tone::Strong),
            cell(&service.namespace),
            cell(port(&service)),
            cell(&service.virtual_ipv4),
            cell(&status.dns_name),
            cell(status.hosts.join(", ")),
        ]
    };
    table(&header, services.iter().map(row).collect())
}

/// All that is known of one service.
pub(crate) fn service_facts(status: &v1::ServiceStatus, hosts: &[v1::HostStatus]) -> String {
    let service = status.service.clone().unwrap_or_default();
    let workloads: Vec<String> = workloads(status, hosts)
        .into_iter()
        .map(|Workload { host, ipv4, ipv6, leaving }| {
            format!("{host} at {ipv4}, {ipv6}{}", if leaving { ", leaving" } else { "" })
        })
        .collect();
    let selectors: Vec<String> = service.selectors.iter().filter_map(selector).collect();
    let known = [
        ("service", paint(&clean(&service.name), Tone::Strong)),
        ("number", service.id.to_string()),
        ("namespace", clean(&service.namespace)),
        ("port", port(&service)),
        ("name", clean(&status.dns_name)),
        ("virtual", clean(&format!("{}\n{}", service.virtual_ipv4, status.virtual_ipv6))),
        ("processes", clean(&selectors.join(" and "))),
        ("workloads", clean(&workloads.join("\n"))),
    ];
    facts(&known)
}

/// As people write it; a service without one only calls others.
fn port(service: &v1::Service) -> String {
    if service.port == 0 {
        return "none".to_owned();
    }
    let more = service.more.iter();
    let more = more.map(|it| format!(", {} {}/{}", it.name, word(it.protocol()), it.port));
    format!("{}/{}{}", protocol(service), service.port, more.collect::<String>())
}

fn selector(selector: &v1::Selector) -> Option<String> {
    use v1::selector::By;
    Some(match selector.by.as_ref()? {
        By::Systemd(unit) => format!("systemd unit {unit}"),
        By::User(user) => format!("user {user}"),
        By::Exe(path) => format!("program {path}"),
        By::Cgroup(path) => format!("cgroup {path}"),
        By::Container(container) => {
            let v1::ContainerMatch { name, image, labels } = container;
            let name = (!name.is_empty()).then(|| format!("name {name}"));
            let image = (!image.is_empty()).then(|| format!("image {image}"));
            let labels = labels.iter().map(|(key, value)| format!("label {key}={value}"));
            let parts: Vec<String> = name.into_iter().chain(image).chain(labels).collect();
            format!("container with {}", parts.join(", "))
        }
    })
}

pub(crate) fn services_json(status: &v1::MeshStatus) -> Value {
    status.services.iter().map(|service| service_json(service, &status.hosts)).collect()
}

pub(crate) fn service_json(status: &v1::ServiceStatus, hosts: &[v1::HostStatus]) -> Value {
    let service = status.service.clone().unwrap_or_default();
    let workloads: Value = workloads(status, hosts)
        .into_iter()
        .map(|one| {
            json!({
                "host": one.host,
                "ipv4": known(&one.ipv4),
                "ipv6": known(&one.ipv6),
                "leaving": one.leaving,
            })
        })
        .collect();
    json!({
        "name": service.name,
        "namespace": service.namespace,
        "id": service.id,
        "port": (service.port != 0).then_some(service.port),
        "protocol": (service.port != 0).then(|| protocol(&service)),
        "ports": service.more.iter().map(|it| json!({ "name": it.name, "port": it.port, "protocol": word(it.protocol()) })).collect::<Value>(),
        "virtual_ipv4": known(&service.virtual_ipv4),
        "virtual_ipv6": known(&status.virtual_ipv6),
        "dns_name": status.dns_name,
        "hosts": status.hosts,
        "workloads": workloads,
    })
}

pub(crate) struct Workload {
    pub(crate) host: String,
    pub(crate) ipv4: String,
    pub(crate) ipv6: String,
    leaving: bool,
}

/// The service's workloads; their IPv6 addresses follow from the numbers of host and service.
pub(crate) fn workloads(status: &v1::ServiceStatus, hosts: &[v1::HostStatus]) -> Vec<Workload> {
    let Some(service) = &status.service else { return Vec::new() };
    let prefix = prefix(&status.virtual_ipv6);
    let workload = |(id, ipv4): (&u32, &String)| {
        let host = hosts.iter().filter_map(|host| host.host.as_ref()).find(|host| host.id == *id);
        let ipv6 = prefix.map(|prefix| prefix.address(HostId(*id), ServiceId(service.id)));
        Workload {
            host: host.map_or_else(|| format!("#{id}"), |host| host.name.clone()),
            ipv4: ipv4.clone(),
            ipv6: ipv6.map(|address| address.to_string()).unwrap_or_default(),
            leaving: service.leaving.contains(id),
        }
    };
    service.placements.iter().map(workload).collect()
}

fn prefix(address: &str) -> Option<MeshPrefix> {
    let [a, b, c, d, e, f, ..] = address.parse::<Ipv6Addr>().ok()?.octets();
    MeshPrefix::new([a, b, c, d, e, f]).ok()
}

/// One row per device.
pub(crate) fn device_table(devices: &[v1::DeviceStatus]) -> String {
    let row = |status: &v1::DeviceStatus| {
        let device = status.device.clone().unwrap_or_default();
        vec![
            toned(&device.name, Tone::Strong),
            cell(&status.via),
            cell(&device.ipv4),
            cell(&status.ipv6),
            cell(key(&device.public_key).unwrap_or_default()),
        ]
    };
    table(&["DEVICE", "VIA", "IPV4", "IPV6", "PUBLIC KEY"], devices.iter().map(row).collect())
}

pub(crate) fn devices_json(devices: &[v1::DeviceStatus]) -> Value {
    let one = |status: &v1::DeviceStatus| {
        let device = status.device.clone().unwrap_or_default();
        json!({
            "name": device.name,
            "id": device.id,
            "ipv4": known(&device.ipv4),
            "ipv6": known(&status.ipv6),
            "via": status.via,
            "public_key": key(&device.public_key),
        })
    };
    devices.iter().map(one).collect()
}

/// The latest forgeries, the latest first.
fn event_table(mut latest: Vec<&v1::SecurityEvent>, now: i64) -> String {
    latest.sort_by_key(|event| std::cmp::Reverse(event.at));
    let rows = latest.iter().take(EVENTS_SHOWN).map(|event| {
        vec![
            cell(relative(event.at, now)),
            toned(&event.from_host, Tone::Bad),
            cell(&event.claimed_source),
            cell(&event.reported_by),
            number(event.packets),
        ]
    });
    let header = ["FORGED SOURCES", "SENT BY", "CLAIMED TO BE", "DROPPED BY", "PACKETS"];
    table(&header, rows.collect())
}

/// What else happened, the latest first.
fn event_list(mut latest: Vec<&v1::SecurityEvent>, now: i64) -> String {
    latest.sort_by_key(|event| std::cmp::Reverse(event.at));
    let rows = latest
        .iter()
        .take(EVENTS_SHOWN)
        .map(|event| vec![cell(relative(event.at, now)), cell(&event.text), number(event.packets)]);
    table(&["EVENTS", "WHAT", "TIMES"], rows.collect())
}

fn event_json(event: &v1::SecurityEvent) -> Value {
    json!({
        "at": timestamp(event.at),
        "reported_by": event.reported_by,
        "from_host": event.from_host,
        "claimed_source": event.claimed_source,
        "packets": event.packets,
        "text": known(&event.text),
    })
}

fn inner(status: &v1::HostStatus) -> v1::Host {
    status.host.clone().unwrap_or_default()
}

/// The host's own address: the first of its block.
pub(crate) fn ipv4(host: &v1::Host) -> Option<String> {
    host.ipv4_block.parse::<Ipv4Net>().ok().map(|block| block.network().to_string())
}

pub(crate) fn key(bytes: &[u8]) -> Option<String> {
    Some(PublicKey(bytes.try_into().ok()?).to_string())
}

/// Empty means "not known" in messages.
pub(crate) fn known(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

fn protocol(service: &v1::Service) -> &'static str {
    word(service.protocol())
}

fn word(protocol: v1::Protocol) -> &'static str {
    match protocol {
        v1::Protocol::Tcp => "tcp",
        v1::Protocol::Udp => "udp",
        v1::Protocol::Http => "http",
        v1::Protocol::Tls => "tls",
        v1::Protocol::Auto => "auto",
        v1::Protocol::Unspecified => "unknown",
    }
}
