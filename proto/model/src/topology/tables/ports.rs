//! `ports` of `[service.NAME]`: those beside its own; and what rules and tests name them by.

use std::collections::BTreeMap;

use super::application;
use crate::name::Name;
use crate::rules::{Layer4, PortRule};
use crate::snapshot::{Protocol, ServicePort};
use crate::topology::read::{Context, Entry, Located, Read, Report, Schema, Table, quote};
use crate::topology::values;

pub(crate) const PORT: Schema = &[
    ("port", "port = 9100"),
    ("protocol", "protocol = \"tcp\""),
    ("proxy_protocol", "proxy_protocol = \"v2\""),
    ("http", "http = \"2\""),
    ("trailers", "trailers = true"),
    ("listen", "listen = \"127.0.0.1:9100\""),
    ("source", "source = \"caller\""),
];

/// The most that a service has beside its own.
const MOST: usize = 64;
/// Names in rules for all ports of a protocol.
const TAKEN: [&str; 3] = ["tcp", "udp", "icmp"];

pub(crate) fn more<'a>(
    service: &'a str,
    table: &Table<'a>,
    own: Option<Layer4>,
    report: &mut Report<'_>,
) -> Read<Vec<ServicePort>> {
    let Some(entry) = table.get("ports") else { return Ok(Vec::new()) };
    let tables = entry.named_tables(Context::Within("ports", "service", service), PORT, report)?;
    if tables.len() > MOST {
        let message =
            format!("{} ports are more than the {MOST} that a service can have", tables.len());
        return Err(report.error(entry.at, message, "make several services of it"));
    }
    let mut taken: BTreeMap<Layer4, String> = BTreeMap::new();
    if let Some(own) = own {
        taken.insert(own, "the service's own".to_owned());
    }
    let mut ports = Vec::new();
    for (name, table) in &tables {
        let port = one(*name, table, report)?;
        if let Some(other) = taken.insert(port.layer4(), format!("that of \"{}\"", port.name)) {
            let message = format!("port {} of {} is {other}, too", port.port, quote(name.value));
            return Err(report.error(table.at, message, "give each port a number of its own"));
        }
        ports.push(port);
    }
    Ok(ports)
}

fn one(name: Located<&str>, table: &Table<'_>, report: &mut Report<'_>) -> Read<ServicePort> {
    if TAKEN.contains(&name.value) {
        let message = format!(
            "a port can't be called {}: rules mean something else by it",
            quote(name.value)
        );
        return Err(report.error(name.at, message, "give it another name, such as `metrics`"));
    }
    let name = values::name(name, report)?;
    let port = table.required("port", report).and_then(|entry| values::port(entry, report));
    let protocol =
        table.optional("protocol", |entry| application::protocol(entry.string(report)?, report));
    let protocol = protocol?.unwrap_or(Protocol::Tcp);
    let application = application::application(table, protocol, report)?;
    Ok(ServicePort { name, port: port?, protocol, application })
}

/// A port of a rule: by number, or by the name that the services of its `to` give it.
#[derive(Debug)]
pub(crate) enum Wanted {
    Number(PortRule),
    Name(Located<Name>),
}

/// Reads one of a rule's `ports`.
pub(crate) fn wanted(
    text: Located<&str>,
    number: impl FnOnce(Located<&str>, &mut Report<'_>) -> Read<PortRule>,
    report: &mut Report<'_>,
) -> Read<Wanted> {
    match (text.value.parse::<PortRule>(), text.value.parse::<Name>()) {
        (Err(_), Ok(name)) if name.as_str().bytes().any(|byte| byte.is_ascii_alphabetic()) => {
            Ok(Wanted::Name(Located { value: name, at: text.at }))
        }
        (_, _) => number(text, report).map(Wanted::Number),
    }
}

/// A test's `port`.
pub(crate) fn asked(
    entry: Entry<'_>,
    number: impl FnOnce(Located<&str>, &mut Report<'_>) -> Read<Layer4>,
    report: &mut Report<'_>,
) -> Read<(Option<Layer4>, Option<Located<Name>>)> {
    let text = entry.string(report)?;
    match (text.value.parse::<Layer4>(), text.value.parse::<Name>()) {
        (Err(_), Ok(name)) if name.as_str().bytes().any(|byte| byte.is_ascii_alphabetic()) => {
            Ok((None, Some(Located { value: name, at: text.at })))
        }
        (_, _) => Ok((Some(number(text, report)?), None)),
    }
}
