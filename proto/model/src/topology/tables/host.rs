//! `[host.NAME]`, each by itself.

use std::collections::BTreeMap;

use super::mesh::{HOST_BLOCKS, bad_block_length};
use crate::address::Ipv4Net;
use crate::topology::decl::HostDecl;
use crate::topology::read::{At, Entry, Pair, Read, Report, Schema, Table, all};
use crate::topology::values;

pub(crate) const HOST: Schema = &[
    ("site", "site = \"dc1\""),
    ("labels", "labels = { role = \"app\" }"),
    ("endpoints", "endpoints = [\"192.0.2.1:51820\"]"),
    ("ipv4_block", "ipv4_block = \"100.64.0.16/28\""),
];

/// A host, and the places that checks between tables point at.
#[derive(Debug)]
pub(crate) struct HostDraft {
    pub(crate) decl: HostDecl,
    pub(crate) block: Option<At>,
}

pub(crate) fn host(table: &Table<'_>, report: &mut Report<'_>) -> Read<HostDraft> {
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

pub(crate) fn labels(
    pairs: &[Pair<'_>],
    report: &mut Report<'_>,
) -> Read<BTreeMap<String, String>> {
    let checked = all(pairs.iter().copied(), |(key, value)| values::label(key, value, report));
    checked?;
    Ok(pairs.iter().map(|(key, value)| (key.value.to_owned(), value.value.to_owned())).collect())
}
