//! `[service.NAME]`, each by itself.

use std::collections::BTreeMap;

use super::host::labels;
use super::{application, balance, guard, ports};
use crate::edge::Edge;
use crate::name::Name;
use crate::snapshot::{ContainerMatch, PathMode, Protocol, Selector};
use crate::topology::decl::{Placement, ServiceDecl};
use crate::topology::read::{
    At, Context, Entry, Located, Read, Report, Schema, Table, all, instead, quote,
};
use crate::topology::values;

pub(crate) const SERVICE: Schema = &[
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

pub(crate) const WORKLOAD: Schema = &[
    ("systemd", "systemd = \"web.service\""),
    ("user", "user = \"www-data\""),
    ("exe", "exe = \"/usr/sbin/nginx\""),
    ("cgroup", "cgroup = \"/system.slice/web.service\""),
    ("container", "container = { name = \"web\" }"),
];

pub(crate) const CONTAINER: Schema = &[
    ("name", "name = \"web\""),
    ("image", "image = \"registry.example/web\""),
    ("label", "label = { app = \"web\" }"),
];

/// A service, and the places that checks between tables point at.
#[derive(Debug)]
pub(crate) struct ServiceDraft {
    pub(crate) decl: ServiceDecl,
    pub(crate) aliases: Vec<Located<Name>>,
    /// One place for each name in `hosts`; none for labels.
    pub(crate) hosts: Vec<At>,
    pub(crate) workload: At,
    /// The hosts that `balance` names.
    pub(crate) weighed: Vec<Located<Name>>,
    pub(crate) at: At,
}

impl ServiceDraft {
    /// Whether it has workloads of its own.
    pub(crate) fn is_placed(&self) -> bool {
        !matches!(&self.decl.hosts, Placement::Names(names) if names.is_empty())
    }

    /// Whether requests can be sent to it.
    pub(crate) fn takes_requests(&self) -> bool {
        match &self.decl.edge {
            Some(Edge::External(_)) => true,
            Some(Edge::Gateway(_)) => false,
            None => self.is_placed(),
        }
    }

    /// The kind of table that declares it.
    pub(crate) const fn kind(&self) -> &'static str {
        self.decl.kind()
    }
}

pub(crate) fn service<'a>(
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

pub(crate) fn paths(
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

pub(crate) fn default_namespace() -> Name {
    "default".parse().expect("INVARIANT: \"default\" is a name")
}

pub(crate) fn placement(entry: Entry<'_>, report: &mut Report<'_>) -> Read<(Placement, Vec<At>)> {
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
