//! `[gateway.NAME]` and `[external.NAME]`, each by itself.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use ipnet::IpNet;

use super::service::{ServiceDraft, default_namespace, paths, placement};
use super::{balance, route};
use crate::application::Application;
use crate::edge::{
    Acme, Certificate, CertificateFiles, ClientCertificates, Edge, External, Gateway, Listener,
    ListenerTls, Origination,
};
use crate::guard::ListenerCheck;
use crate::name::Name;
use crate::route::HostMatch;
use crate::snapshot::Protocol;
use crate::topology::decl::{Placement, ServiceDecl};
use crate::topology::read::{
    At, Context, Entry, Located, Read, Report, Reported, Schema, Table, all, quote,
};
use crate::topology::values::{self, fields};

pub(crate) const GATEWAY: Schema = &[
    ("namespace", "namespace = \"prod\""),
    ("hosts", "hosts = [\"edge-1\"]"),
    ("listeners", "listeners = [{ port = 80 }]"),
    ("trusted_proxies", "trusted_proxies = [\"192.0.2.0/24\"]"),
    ("paths", "paths = \"merge-slashes\""),
];

pub(crate) const EXTERNAL: Schema = &[
    ("namespace", "namespace = \"prod\""),
    ("port", "port = 80"),
    ("host", "host = \"api.payments.example\""),
    ("target_port", "target_port = 443"),
    ("tls", "tls = true"),
    ("special_addresses", "special_addresses = true"),
    ("via", "via = [\"edge-1\"]"),
    ("balance", "balance = \"least-request\""),
    ("breaker", "breaker = { max_requests = 1024 }"),
    ("outlier", "outlier = { consecutive_5xx = 5 }"),
    ("paths", "paths = \"merge-slashes\""),
];

pub(crate) const LISTENER: Schema = &[
    ("port", "port = 443"),
    ("hosts", "hosts = [\"shop.example.com\"]"),
    (
        "tls",
        "tls = { certificate = \"/etc/isthmus/tls/shop.pem\", key = \"/etc/isthmus/tls/shop.key\" }",
    ),
    ("https_redirect", "https_redirect = true"),
];

pub(crate) const LISTENER_TLS: Schema = &[
    ("certificate", "certificate = \"/etc/isthmus/tls/shop.pem\""),
    ("key", "key = \"/etc/isthmus/tls/shop.key\""),
    ("acme", "acme = true"),
    ("client_ca", "client_ca = \"/etc/isthmus/tls/clients.pem\""),
    ("client_certificate", "client_certificate = \"required\""),
];

pub(crate) const ACME: Schema = &[
    ("directory", "directory = \"https://acme-v02.api.letsencrypt.org/directory\""),
    ("email", "email = \"ops@example.com\""),
    ("ca", "ca = \"/etc/isthmus/tls/acme-ca.pem\""),
];

pub(crate) const ORIGINATION: Schema = &[
    ("ca", "ca = \"/etc/isthmus/tls/payments-ca.pem\""),
    ("server_name", "server_name = \"api.payments.example\""),
    ("certificate", "certificate = \"/etc/isthmus/tls/us.pem\""),
    ("key", "key = \"/etc/isthmus/tls/us.key\""),
];

const MOST_LISTENERS: usize = 256;
const DEFAULT_PORT: u16 = 80;

pub(crate) fn gateway<'a>(
    name: &'a str,
    table: &Table<'a>,
    report: &mut Report<'_>,
) -> Read<ServiceDraft> {
    let namespace = namespace(table, report);
    let hosts = table.required("hosts", report).and_then(|entry| placement(entry, report));
    let listeners = table.required("listeners", report).and_then(|entry| listeners(entry, report));
    let proxies = table.optional("trusted_proxies", |entry| {
        all(entry.strings(report)?, |text| network(text, report))
    });
    let (namespace, hosts, listeners, proxies) = (namespace?, hosts?, listeners?, proxies?);
    check_ports(name, &listeners, report)?;
    check_acme(name, &hosts.0, &listeners, report)?;
    let listeners: Vec<Listener> = listeners.into_iter().map(|listener| listener.value).collect();
    let port = listeners.first().map_or(DEFAULT_PORT, |listener| listener.port);
    let gateway = Gateway { listeners, trusted_proxies: proxies.unwrap_or_default() };
    let decl = ServiceDecl {
        namespace,
        port,
        protocol: Protocol::Http,
        hosts: Placement::Names(Vec::new()),
        selectors: Vec::new(),
        balance: balance::balance(table, Protocol::Http, report)?.balance,
        application: Application::default(),
        more: Vec::new(),
        paths: paths(table, Protocol::Http, report)?,
        exposure: None,
        listener: ListenerCheck::default(),
        aliases: Vec::new(),
        edge: Some(Edge::Gateway(gateway)),
        origin: report.origin(table.at),
    };
    Ok(placed(decl, hosts, table))
}

pub(crate) fn external<'a>(table: &Table<'a>, report: &mut Report<'_>) -> Read<ServiceDraft> {
    let namespace = namespace(table, report);
    let port = table.optional("port", |entry| values::port(entry, report));
    let host = table.required("host", report).and_then(|entry| {
        let text = entry.string(report)?;
        if text.value.parse::<IpAddr>().is_err() {
            fields::host_name(text, report)?;
        }
        Ok(Arc::from(text.value))
    });
    let target_port = table.optional("target_port", |entry| values::port(entry, report));
    let tls = table.required("tls", report).and_then(|entry| origination(entry, report));
    let special = table.optional("special_addresses", |entry| entry.boolean(report));
    let via = table.optional("via", |entry| placement(entry, report));
    let balance = balance::balance(table, Protocol::Http, report);
    let tls = tls?;
    let usual = if tls.is_some() { 443 } else { DEFAULT_PORT };
    let external = External {
        host: host?,
        port: target_port?.unwrap_or(usual),
        tls,
        special_addresses: special?.unwrap_or(false),
    };
    let decl = ServiceDecl {
        namespace: namespace?,
        port: port?.unwrap_or(DEFAULT_PORT),
        protocol: Protocol::Http,
        hosts: Placement::Names(Vec::new()),
        selectors: Vec::new(),
        balance: balance?.balance,
        application: Application::default(),
        more: Vec::new(),
        paths: paths(table, Protocol::Http, report)?,
        exposure: None,
        listener: ListenerCheck::default(),
        aliases: Vec::new(),
        edge: Some(Edge::External(external)),
        origin: report.origin(table.at),
    };
    let nowhere = (Placement::Names(Vec::new()), Vec::new());
    Ok(placed(decl, via?.unwrap_or(nowhere), table))
}

fn placed(
    decl: ServiceDecl,
    (hosts, places): (Placement, Vec<At>),
    table: &Table<'_>,
) -> ServiceDraft {
    let decl = ServiceDecl { hosts, ..decl };
    ServiceDraft {
        decl,
        aliases: Vec::new(),
        hosts: places,
        workload: table.at,
        weighed: Vec::new(),
        at: table.at,
    }
}

fn namespace(table: &Table<'_>, report: &mut Report<'_>) -> Read<Name> {
    let read = table.optional("namespace", |entry| values::name(entry.string(report)?, report));
    Ok(read?.unwrap_or_else(default_namespace))
}

fn listeners(entry: Entry<'_>, report: &mut Report<'_>) -> Read<Vec<Located<Listener>>> {
    let tables = entry.tables(Context::Element("listeners", "gateway"), LISTENER, report)?;
    if tables.len() > MOST_LISTENERS {
        let message = format!("there are more than {MOST_LISTENERS} listeners");
        return Err(report.error(
            entry.at,
            message,
            "serve several hosts by one, or share them out",
        ));
    }
    all(&tables, |table| {
        let port = table.required("port", report).and_then(|entry| values::port(entry, report));
        let hosts = table.optional("hosts", |entry| {
            all(entry.one_or_more(report)?, |text| route::host(text, report))
        });
        let tls = table.optional("tls", |entry| listener_tls(entry, report));
        let redirect = table.optional("https_redirect", |entry| entry.boolean(report));
        let (tls, https_redirect) = (tls?, redirect?.unwrap_or(false));
        if let (Some(_), true, Some(entry)) = (&tls, https_redirect, table.get("https_redirect")) {
            let message = "`https_redirect` of a listener that speaks HTTPS already";
            return Err(report.error(entry.key_at, message, "leave it out, or leave `tls` out"));
        }
        let hosts = hosts?.unwrap_or_default();
        let listener = Listener { port: port?, hosts, tls, https_redirect };
        Ok(Located { value: listener, at: table.at })
    })
}

/// Listeners of one port are told apart by the host that a client names, and all speak TLS or none.
fn check_ports(name: &str, listeners: &[Located<Listener>], report: &mut Report<'_>) -> Read<()> {
    let mut taken: BTreeSet<(u16, String)> = BTreeSet::new();
    for (index, listener) in listeners.iter().enumerate() {
        let Listener { port, hosts, tls, .. } = &listener.value;
        let mixed = |other: &&Located<Listener>| {
            other.value.port == *port && other.value.tls.is_some() != tls.is_some()
        };
        if listeners[..index].iter().any(|other| mixed(&other)) {
            let message = format!("port {port} of gateway \"{name}\" speaks both HTTP and HTTPS");
            let help = "give `tls` to all listeners of a port, or use another port";
            return Err(report.error(listener.at, message, help));
        }
        let named = hosts.iter().map(ToString::to_string);
        let any = hosts.is_empty().then(String::new);
        for host in named.chain(any) {
            let what = if host.is_empty() { "every host".to_owned() } else { quote(&host) };
            if !taken.insert((*port, host)) {
                let message = format!("two listeners on port {port} are for {what}");
                let help = "name other hosts with `hosts`, or remove one of them";
                return Err(report.error(listener.at, message, help));
            }
        }
    }
    Ok(())
}

fn listener_tls(entry: Entry<'_>, report: &mut Report<'_>) -> Read<ListenerTls> {
    let table = entry.table(Context::Element("tls", "gateway"), LISTENER_TLS, report)?;
    let certificate = certificate(&table, report);
    let ca = table.optional("client_ca", |entry| file("client_ca", entry, report));
    let required = table.optional("client_certificate", |entry| {
        let text = entry.string(report)?;
        match text.value {
            "required" => Ok(true),
            "optional" => Ok(false),
            other => {
                let message = format!("`client_certificate` can't be {}", quote(other));
                Err(report.error(text.at, message, "write \"required\" or \"optional\""))
            }
        }
    });
    let (ca, required) = (ca?, required?);
    if let (None, Some(_), Some(entry)) = (&ca, required, table.get("client_certificate")) {
        let help = "add `client_ca = \"/etc/isthmus/tls/clients.pem\"`";
        let message = "`client_certificate` without `client_ca`: nobody's would be good";
        return Err(report.error(entry.key_at, message, help));
    }
    Ok(ListenerTls {
        certificate: certificate?,
        client: ca.map(|ca| ClientCertificates { ca, required: required.unwrap_or(true) }),
    })
}

fn certificate(table: &Table<'_>, report: &mut Report<'_>) -> Read<Certificate> {
    if let Some(acme) = table.optional("acme", |entry| acme(entry, report))?.flatten() {
        let other = ["certificate", "key"].into_iter().find_map(|key| table.get(key));
        return match other {
            None => Ok(Certificate::Acme(acme)),
            Some(entry) => {
                let message = format!("`{}` beside `acme`", entry.key);
                let help = "let `acme` get the certificate, or name files";
                Err(report.error(entry.key_at, message, help))
            }
        };
    }
    let certificate =
        table.required("certificate", report).and_then(|entry| file("certificate", entry, report));
    let key = table.required("key", report).and_then(|entry| file("key", entry, report));
    Ok(Certificate::Files(CertificateFiles { certificate: certificate?, key: key? }))
}

/// `true`, `false`, or from whom.
fn acme(entry: Entry<'_>, report: &mut Report<'_>) -> Read<Option<Acme>> {
    let usual = Acme { directory: Acme::DIRECTORY.into(), email: None, ca: None };
    if let Some(whether) = entry.flag() {
        return Ok(whether.then_some(usual));
    }
    let table = entry.table(Context::Element("acme", "gateway"), ACME, report)?;
    let directory = table.optional("directory", |entry| {
        let text = entry.string(report)?;
        let rest = text.value.strip_prefix("https://").unwrap_or_default();
        if rest.is_empty() || rest.len() > 1000 || !rest.bytes().all(|it| it.is_ascii_graphic()) {
            let message = format!("`directory` can't be {}", quote(text.value));
            return Err(report.error(text.at, message, "write a URL that begins with https://"));
        }
        Ok(Arc::from(text.value))
    });
    let email = table.optional("email", |entry| {
        let text = entry.string(report)?;
        let is_address = text.value.split_once('@').is_some_and(|(user, host)| {
            !user.is_empty() && !host.is_empty() && text.value.len() <= 254
        });
        if !is_address || !text.value.bytes().all(|it| it.is_ascii_graphic()) {
            let message = format!("{} is no e-mail address", quote(text.value));
            return Err(report.error(text.at, message, "write one, such as \"ops@example.com\""));
        }
        Ok(Arc::from(text.value))
    });
    let ca = table.optional("ca", |entry| file("ca", entry, report));
    let directory = directory?.unwrap_or(usual.directory);
    Ok(Some(Acme { directory, email: email?, ca: ca? }))
}

/// The authority asks at the listener's hosts who answers for them: so they must be names, and lead
/// to the host that has the answer.
fn check_acme(
    name: &str,
    hosts: &Placement,
    listeners: &[Located<Listener>],
    report: &mut Report<'_>,
) -> Read<()> {
    for listener in listeners {
        let tls = listener.value.tls.as_ref();
        if !tls.is_some_and(|tls| matches!(tls.certificate, Certificate::Acme(_))) {
            continue;
        }
        let names = &listener.value.hosts;
        if names.is_empty() || names.iter().any(|it| matches!(it, HostMatch::Suffix(_))) {
            let message = "`acme` needs the names that the certificate is to be for";
            let help = "list them in the listener's `hosts`, without `*`; for others name files";
            return Err(report.error(listener.at, message, help));
        }
        if !matches!(hosts, Placement::Names(hosts) if hosts.len() == 1) {
            let message = format!("gateway \"{name}\" has `acme`, and more hosts than one");
            let help = "its authority would ask any of them: name one host, or certificate files";
            return Err(report.error(listener.at, message, help));
        }
    }
    Ok(())
}

/// `true`, `false`, or how.
fn origination(entry: Entry<'_>, report: &mut Report<'_>) -> Read<Option<Origination>> {
    if let Some(whether) = entry.flag() {
        return Ok(whether.then(Origination::default));
    }
    let table = entry.table(Context::Element("tls", "external"), ORIGINATION, report)?;
    let ca = table.optional("ca", |entry| file("ca", entry, report));
    let server_name = table.optional("server_name", |entry| {
        let text = entry.string(report)?;
        fields::host_name(text, report).map(|()| Arc::from(text.value))
    });
    let certificate = table.optional("certificate", |entry| file("certificate", entry, report));
    let key = table.optional("key", |entry| file("key", entry, report));
    let certificate = match (certificate?, key?) {
        (Some(certificate), Some(key)) => Some(CertificateFiles { certificate, key }),
        (None, None) => None,
        (Some(_), None) => return Err(incomplete("certificate", "key", &table, report)),
        (None, Some(_)) => return Err(incomplete("key", "certificate", &table, report)),
    };
    Ok(Some(Origination { ca: ca?, server_name: server_name?, certificate }))
}

fn incomplete(
    has: &'static str,
    lacks: &'static str,
    table: &Table<'_>,
    report: &mut Report<'_>,
) -> Reported {
    let at = table.get(has).map_or(table.at, |entry| entry.key_at);
    report.error(at, format!("`{has}` without `{lacks}`"), format!("add `{lacks}`"))
}

fn file(key: &str, entry: Entry<'_>, report: &mut Report<'_>) -> Read<PathBuf> {
    let text = entry.string(report)?;
    values::file_path(key, "/etc/isthmus/tls/shop.pem", text, report)?;
    Ok(text.value.into())
}

fn network(text: Located<&str>, report: &mut Report<'_>) -> Read<IpNet> {
    let network = text.value.parse().or_else(|_| text.value.parse().map(|it: IpAddr| it.into()));
    match network {
        Ok(network) => Ok(IpNet::trunc(&network)),
        Err(_) => {
            let message = format!("{} is no range of addresses", quote(text.value));
            Err(report.error(text.at, message, "write \"192.0.2.0/24\" or \"2001:db8::/32\""))
        }
    }
}
