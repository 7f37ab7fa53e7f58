//! `[host.NAME]`, `[service.NAME]` and `[device.NAME]`, each by itself.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use super::mesh::{HOST_BLOCKS, bad_block_length};
use super::reader::{
    At, Context, Entry, Located, Pair, Read, Report, Schema, Table, instead, quote,
};
use super::{
    DeviceDecl, HostDecl, Placement, ServiceDecl, application, balance, guard, ports, values,
};
use crate::address::Ipv4Net;
use crate::edge::Edge;
use crate::key::PublicKey;
use crate::name::Name;
use crate::snapshot::{ContainerMatch, PathMode, Protocol, Selector};

pub(super) const HOST: Schema = &[
    ("site", "site = \"dc1\""),
    ("labels", "labels = { role = \"app\" }"),
    ("endpoints", "endpoints = [\"192.0.2.1:51820\"]"),
    ("ipv4_block", "ipv4_block = \"100.64.0.16/28\""),
];

pub(super) const SERVICE: Schema = &[
    ("namespace", "namespace = \"prod\""),
    ("port", "port = 8080"),
    ("protocol", "protocol = \"tcp\""),
    ("ports", "ports = { metrics = { port = 9100 } }"),
    ("hosts", "hosts = [\"app-1\"]"),
    ("workload", "workload = { systemd = \"web.service\" }"),
    ("balance", "balance = \"least-request\""),
    ("health", "health = { http = \"/healthz\" }"),
    ("outlier", "outlier = { consecutive_5xx = 5 }"),
    ("breaker", "breaker = { max_requests = 1024 }"),
    ("proxy_protocol", "proxy_protocol = \"v2\""),
    ("http", "http = \"2\""),
    ("trailers", "trailers = true"),
    ("listen", "listen = \"127.0.0.1:8080\""),
    ("source", "source = \"caller\""),
    ("paths", "paths = \"merge-slashes\""),
    ("exposure", "exposure = \"mesh\""),
    ("listener", "listener = \"strict\""),
    ("aliases", "aliases = [\"old-name\"]"),
];

const MOST_ALIASES: usize = 8;

pub(super) const DEVICE: Schema = &[
    ("wireguard", "wireguard = { public_key = \"…\" }"),
    ("via", "via = \"gw-1\""),
    ("ipv4", "ipv4 = \"100.64.0.30\""),
];

pub(super) const WORKLOAD: Schema = &[
    ("systemd", "systemd = \"web.service\""),
    ("user", "user = \"www-data\""),
    ("exe", "exe = \"/usr/sbin/nginx\""),
    ("cgroup", "cgroup = \"/system.slice/web.service\""),
    ("container", "container = { name = \"web\" }"),
];

pub(super) const CONTAINER: Schema = &[
    ("name", "name = \"web\""),
    ("image", "image = \"registry.example/web\""),
    ("label", "label = { app = \"web\" }"),
];

pub(super) const WIREGUARD: Schema = &[("public_key", "public_key = \"…\"")];

/// A host, and the places that checks between tables point at.
#[derive(Debug)]
pub(super) struct HostDraft {
    pub(super) decl: HostDecl,
    pub(super) block: Option<At>,
}

#[derive(Debug)]
pub(super) struct ServiceDraft {
    pub(super) decl: ServiceDecl,
    pub(super) aliases: Vec<Located<Name>>,
    /// One place for each name in `hosts`; none for labels.
    pub(super) hosts: Vec<At>,
    pub(super) workload: At,
    /// The hosts that `balance` names.
    pub(super) weighed: Vec<Located<Name>>,
    pub(super) at: At,
}

impl ServiceDraft {
    /// Whether it has workloads of its own.
    pub(super) fn is_placed(&self) -> bool {
        !matches!(&self.decl.hosts, Placement::Names(names) if names.is_empty())
    }

    /// Whether requests can be sent to it.
    pub(super) fn takes_requests(&self) -> bool {
        match &self.decl.edge {
            Some(Edge::External(_)) => true,
            Some(Edge::Gateway(_)) => false,
            None => self.is_placed(),
        }
    }

    /// The kind of table that declares it.
    pub(super) const fn kind(&self) -> &'static str {
        kind_of(&self.decl)
    }
}

/// The kind of table that declares a service.
pub(super) const fn kind_of(decl: &ServiceDecl) -> &'static str {
    match &decl.edge {
        Some(Edge::Gateway(_)) => "gateway",
        Some(Edge::External(_)) => "external",
        None => "service",
    }
}

#[derive(Debug)]
pub(super) struct DeviceDraft {
    pub(super) decl: DeviceDecl,
    pub(super) key: At,
    pub(super) via: At,
    pub(super) ipv4: Option<At>,
}

pub(super) fn host(table: &Table<'_>, report: &mut Report<'_>) -> Read<HostDraft> {
    let site = table.optional("site", |entry| values::name(entry.string(report)?, report));
    let labels = table.optional("labels", |entry| {
        entry
            .pairs(report)
            .unwrap_or_else(|| Err(entry.wrong_type("a table", report)))
            .and_then(|pairs| labels(&pairs, report))
    });
    let endpoints = table.optional("endpoints", |entry| {
        all(entry.strings(report)?, |text| values::endpoint(text, report))
    });
    let block = table.optional("ipv4_block", |entry| block(entry, report));
    let decl = HostDecl {
        site: site?,
        labels: labels?.unwrap_or_default(),
        endpoints: endpoints?.unwrap_or_default(),
        ipv4_block: block?,
        origin: report.origin(table.at),
    };
    Ok(HostDraft { decl, block: table.get("ipv4_block").map(|entry| entry.at) })
}

fn block(entry: Entry<'_>, report: &mut Report<'_>) -> Read<Ipv4Net> {
    let net = values::ipv4_net(entry.string(report)?, report)?;
    if !HOST_BLOCKS.contains(&net.prefix_len()) {
        let example = format!("ipv4_block = \"{}/28\"", net.network());
        return Err(bad_block_length(net.prefix_len(), entry.at, &example, report));
    }
    Ok(net)
}

pub(super) fn service<'a>(
    name: &'a str,
    table: &Table<'a>,
    report: &mut Report<'_>,
) -> Read<ServiceDraft> {
    let namespace =
        table.optional("namespace", |entry| values::name(entry.string(report)?, report));
    let port = table.optional("port", |entry| values::port(entry, report));
    let asks_for_callers = without_port(table, report);
    let protocol =
        table.optional("protocol", |entry| application::protocol(entry.string(report)?, report));
    let hosts = table.optional("hosts", |entry| placement(entry, report));
    let selectors = table.optional("workload", |entry| {
        selectors(
            &entry.table(Context::Within("workload", "service", name), WORKLOAD, report)?,
            entry,
            report,
        )
    });
    let protocol = protocol?.unwrap_or(Protocol::Tcp);
    let balance = balance::balance(table, protocol, report);
    let application = application::application(table, protocol, report);
    let own = port.as_ref().ok().and_then(|port| *port).map(|port| protocol.layer4(port));
    let more = ports::more(name, table, own, report);
    let paths = paths(table, protocol, report);
    let exposure = guard::exposure(table, report);
    let listener = guard::listener(table, report);
    let aliases = table.optional("aliases", |entry| aliases(entry, report));
    let balance = balance?;
    asks_for_callers?;
    let (placement, hosts) = hosts?.unwrap_or((Placement::Names(Vec::new()), Vec::new()));
    let aliases = aliases?.unwrap_or_default();
    let decl = ServiceDecl {
        namespace: match namespace? {
            Some(namespace) => namespace,
            None => default_namespace(),
        },
        port: port?.unwrap_or_default(),
        protocol,
        hosts: placement,
        selectors: selectors?.unwrap_or_default(),
        balance: balance.balance,
        edge: None,
        application: application?,
        more: more?,
        paths: paths?,
        exposure: exposure?,
        listener: listener?,
        aliases: aliases.iter().map(|alias| alias.value.clone()).collect(),
        origin: report.origin(table.at),
    };
    Ok(ServiceDraft {
        decl,
        aliases,
        hosts,
        workload: table.get("workload").map_or(table.at, |entry| entry.at),
        weighed: balance.weighed,
        at: table.at,
    })
}

/// Whoever can't be called has nothing to say about being called.
fn without_port(table: &Table<'_>, report: &mut Report<'_>) -> Read<()> {
    const ABOUT_CALLERS: [&str; 14] = [
        "protocol",
        "ports",
        "balance",
        "health",
        "outlier",
        "breaker",
        "proxy_protocol",
        "http",
        "trailers",
        "listen",
        "source",
        "paths",
        "exposure",
        "listener",
    ];
    if table.get("port").is_some() {
        return Ok(());
    }
    match ABOUT_CALLERS.iter().find_map(|key| table.get(key)) {
        None => Ok(()),
        Some(entry) => {
            let key = entry.key;
            let message = format!("`{key}` without `port`: nobody can call this service");
            let help = format!("add `port = 8080`; leave `{key}` out if it only calls others");
            Err(report.error(entry.key_at, message, help))
        }
    }
}

fn aliases(entry: Entry<'_>, report: &mut Report<'_>) -> Read<Vec<Located<Name>>> {
    let names = all(entry.strings(report)?, |text| {
        Ok(Located { value: values::name(text, report)?, at: text.at })
    })?;
    match names.get(MOST_ALIASES) {
        None => Ok(names),
        Some(beyond) => {
            let message = format!("there are more than {MOST_ALIASES} aliases");
            Err(report.error(beyond.at, message, "leave out those that nobody uses any more"))
        }
    }
}

pub(super) fn paths(
    table: &Table<'_>,
    protocol: Protocol,
    report: &mut Report<'_>,
) -> Read<PathMode> {
    let Some(entry) = table.get("paths") else { return Ok(PathMode::default()) };
    if protocol != Protocol::Http {
        let message = format!("`paths` is about requests, and this service speaks {protocol}");
        let help = "write `protocol = \"http\"`, or leave it out";
        return Err(report.error(entry.key_at, message, help));
    }
    let text = entry.string(report)?;
    let known = PathMode::ALL.map(|mode| mode.to_string());
    let found = PathMode::ALL.into_iter().find(|mode| mode.to_string() == text.value);
    found.ok_or_else(|| {
        let message = format!("`paths` can't be {}", quote(text.value));
        let known = known.iter().map(String::as_str);
        report.error(text.at, message, instead(text.value, known, "write one of"))
    })
}

pub(super) fn default_namespace() -> Name {
    "default".parse().expect("INVARIANT: \"default\" is a name")
}

pub(super) fn placement(entry: Entry<'_>, report: &mut Report<'_>) -> Read<(Placement, Vec<At>)> {
    if let Some(pairs) = entry.pairs(report) {
        let pairs = pairs?;
        if pairs.is_empty() {
            return Err(entry.empty(report));
        }
        return Ok((Placement::Labels(labels(&pairs, report)?), Vec::new()));
    }
    let names = all(entry.strings(report)?, |text| {
        Ok(Located { value: values::name(text, report)?, at: text.at })
    })?;
    let mut seen = BTreeMap::new();
    for name in &names {
        if seen.insert(&name.value, name.at).is_some() {
            let message = format!("host {:?} stands twice in `hosts`", name.value);
            return Err(report.error(name.at, message, "name each host once"));
        }
    }
    let places = names.iter().map(|name| name.at).collect();
    Ok((Placement::Names(names.into_iter().map(|name| name.value).collect()), places))
}

fn labels(pairs: &[Pair<'_>], report: &mut Report<'_>) -> Read<BTreeMap<String, String>> {
    let checked = all(pairs.iter().copied(), |(key, value)| values::label(key, value, report));
    checked?;
    Ok(pairs.iter().map(|(key, value)| (key.value.to_owned(), value.value.to_owned())).collect())
}

fn selectors(table: &Table<'_>, entry: Entry<'_>, report: &mut Report<'_>) -> Read<Vec<Selector>> {
    let systemd = table.optional("systemd", |entry| {
        let text = entry.string(report)?;
        values::systemd_unit(text, report)?;
        Ok(Selector::Systemd(text.value.into()))
    });
    let user = table.optional("user", |entry| {
        let text = entry.string(report)?;
        values::user(text, report)?;
        Ok(Selector::User(text.value.into()))
    });
    let exe = table.optional("exe", |entry| {
        let text = entry.string(report)?;
        values::file_path("exe", "/usr/sbin/nginx", text, report)?;
        Ok(Selector::Exe(text.value.into()))
    });
    let cgroup = table.optional("cgroup", |entry| {
        let text = entry.string(report)?;
        values::file_path("cgroup", "/system.slice/web.service", text, report)?;
        Ok(Selector::Cgroup(text.value.into()))
    });
    let container = table.optional("container", |entry| container(entry, report));
    let found: Vec<Selector> =
        [systemd?, user?, exe?, cgroup?, container?].into_iter().flatten().collect();
    if found.is_empty() && table.is_empty() { Err(entry.empty(report)) } else { Ok(found) }
}

fn container(entry: Entry<'_>, report: &mut Report<'_>) -> Read<Selector> {
    let table = entry.table(Context::Key("container", "workload"), CONTAINER, report)?;
    let name = table.optional("name", |entry| {
        let text = entry.string(report)?;
        values::container_name(text, report)?;
        Ok(text.value.into())
    });
    let image = table.optional("image", |entry| {
        let text = entry.string(report)?;
        values::image(text, report)?;
        Ok(text.value.into())
    });
    let labels = table.optional("label", |entry| {
        let pairs =
            entry.pairs(report).unwrap_or_else(|| Err(entry.wrong_type("a table", report)))?;
        all(pairs, |(key, value)| {
            values::container_label(key, value, report)?;
            Ok((key.value.to_owned(), value.value.to_owned()))
        })
    });
    let labels = labels?.unwrap_or_default().into_iter().collect();
    let found = ContainerMatch { name: name?, image: image?, labels };
    if found.is_empty() && table.is_empty() {
        return Err(entry.empty(report));
    }
    Ok(Selector::Container(found))
}

pub(super) fn device<'a>(
    name: &'a str,
    table: &Table<'a>,
    report: &mut Report<'_>,
) -> Read<DeviceDraft> {
    let key = table.required("wireguard", report).and_then(|entry| {
        let table = entry.table(Context::Within("wireguard", "device", name), WIREGUARD, report)?;
        let text = table.required("public_key", report)?.string(report)?;
        Ok(Located { value: public_key(text, report)?, at: text.at })
    });
    let via = table.required("via", report).and_then(|entry| {
        let text = entry.string(report)?;
        Ok(Located { value: values::name(text, report)?, at: text.at })
    });
    let ipv4 = table.optional("ipv4", |entry| {
        let text = entry.string(report)?;
        let value = text.value.parse::<Ipv4Addr>().map_err(|_| {
            let message = format!("{} is not an IPv4 address", quote(text.value));
            report.error(text.at, message, "write an address such as \"100.64.0.30\"")
        })?;
        Ok(Located { value, at: text.at })
    });
    let (key, via, ipv4) = (key?, via?, ipv4?);
    let origin = report.origin(table.at);
    let decl = DeviceDecl {
        public_key: key.value,
        via: via.value,
        ipv4: ipv4.as_ref().map(|ipv4| ipv4.value),
        origin,
    };
    Ok(DeviceDraft { decl, key: key.at, via: via.at, ipv4: ipv4.map(|ipv4| ipv4.at) })
}

fn public_key(text: Located<&str>, report: &mut Report<'_>) -> Read<PublicKey> {
    let help = "write the 44 characters that `wg pubkey` prints on the device";
    match text.value.parse::<PublicKey>() {
        Ok(key) if key.0 == [0; 32] => {
            Err(report.error(text.at, "a key of zeros belongs to nobody", help))
        }
        Ok(key) => Ok(key),
        Err(_) => {
            let message = format!("{} is not a WireGuard public key", quote(text.value));
            Err(report.error(text.at, message, help))
        }
    }
}

/// Reads every element, so that each bad one is reported.
pub(super) fn all<T, U>(
    elements: impl IntoIterator<Item = T>,
    read: impl FnMut(T) -> Read<U>,
) -> Read<Vec<U>> {
    let read: Vec<Read<U>> = elements.into_iter().map(read).collect();
    read.into_iter().collect()
}
