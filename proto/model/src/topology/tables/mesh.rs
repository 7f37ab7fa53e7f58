//! `[mesh]`: names, and the addresses of IPv4.

use std::net::Ipv4Addr;

use super::guard;
use crate::address::Ipv4Net;
use crate::topology::decl::MeshDecl;
use crate::topology::read::{At, Entry, Read, Report, Reported, Schema, Table, quote};
use crate::topology::values;

pub(crate) const SCHEMA: Schema = &[
    ("name", "name = \"corp\""),
    ("trust_domain", "trust_domain = \"corp.example\""),
    ("ipv4", "ipv4 = \"100.64.0.0/10\""),
    ("virtual_ipv4", "virtual_ipv4 = \"100.127.0.0/16\""),
    ("host_block", "host_block = 28"),
    ("exposure", "exposure = \"mesh\""),
];

/// The lengths that the block of a host may have: from 4,096 addresses to 4.
pub(crate) const HOST_BLOCKS: std::ops::RangeInclusive<u8> = 20..=30;

const LONGEST_MESH: u8 = 24;
const LONGEST_VIRTUAL: u8 = 28;

pub(crate) fn read(table: &Table<'_>, report: &mut Report<'_>) -> Read<MeshDecl> {
    let name = table.optional("name", |entry| values::name(entry.string(report)?, report));
    let trust_domain = table.optional("trust_domain", |entry| {
        let text = entry.string(report)?;
        text.value.parse().map_err(|_| {
            let message = format!("{} is not a trust domain", quote(text.value));
            report.error(text.at, message, "write a lower-case DNS name such as \"corp.example\"")
        })
    });
    let ipv4 = table.optional("ipv4", |entry| mesh_range(entry, report));
    let host_block = table.optional("host_block", |entry| host_block(entry, report));
    let exposure = guard::exposure(table, report);
    let ipv4 = ipv4?.unwrap_or_else(|| MeshDecl::default().ipv4);
    let virtual_ipv4 = table.optional("virtual_ipv4", |entry| virtual_range(entry, ipv4, report));
    let host_block = host_block?.unwrap_or(MeshDecl::HOST_BLOCK);
    Ok(MeshDecl {
        name: name?,
        trust_domain: trust_domain?,
        ipv4,
        virtual_ipv4: virtual_ipv4?.unwrap_or_else(|| MeshDecl::last_of(ipv4)),
        host_block,
        exposure: exposure?,
    })
}

fn mesh_range(entry: Entry<'_>, report: &mut Report<'_>) -> Read<Ipv4Net> {
    let net = values::ipv4_net(entry.string(report)?, report)?;
    let free: [(Ipv4Addr, u8); 4] = [
        (Ipv4Addr::new(10, 0, 0, 0), 8),
        (Ipv4Addr::new(100, 64, 0, 0), 10),
        (Ipv4Addr::new(172, 16, 0, 0), 12),
        (Ipv4Addr::new(192, 168, 0, 0), 16),
    ];
    if !free.iter().any(|(start, length)| Ipv4Net::new_assert(*start, *length).contains(&net)) {
        let message = format!("{net} isn't free for private use, and would hide real machines");
        let help = "take a part of 100.64.0.0/10, 10.0.0.0/8, 172.16.0.0/12 or 192.168.0.0/16";
        return Err(report.error(entry.at, message, help));
    }
    if net.prefix_len() > LONGEST_MESH {
        let message = format!("{net} has too few addresses for a mesh");
        let help = format!(
            "write a range of at least 256 addresses, such as {}/{LONGEST_MESH}",
            net.network()
        );
        return Err(report.error(entry.at, message, help));
    }
    Ok(net)
}

fn virtual_range(entry: Entry<'_>, ipv4: Ipv4Net, report: &mut Report<'_>) -> Read<Ipv4Net> {
    let net = values::ipv4_net(entry.string(report)?, report)?;
    let leave_out = format!("leave virtual_ipv4 out for {}", MeshDecl::last_of(ipv4));
    if !ipv4.contains(&net) {
        let message = format!("virtual_ipv4 {net} isn't inside the mesh's range {ipv4}");
        return Err(report.error(entry.at, message, leave_out));
    }
    if net == ipv4 {
        let message = format!("virtual_ipv4 {net} leaves no addresses for hosts");
        return Err(report.error(entry.at, message, leave_out));
    }
    if net.prefix_len() > LONGEST_VIRTUAL {
        let message = format!("virtual_ipv4 {net} has room for fewer than 15 services");
        return Err(report.error(entry.at, message, leave_out));
    }
    Ok(net)
}

fn host_block(entry: Entry<'_>, report: &mut Report<'_>) -> Read<u8> {
    let number = entry.integer(report)?;
    match u8::try_from(number) {
        Ok(length) if HOST_BLOCKS.contains(&length) => Ok(length),
        Ok(_) | Err(_) => Err(bad_block_length(number, entry.at, "host_block = 28", report)),
    }
}

pub(crate) fn bad_block_length(
    length: impl std::fmt::Display,
    at: At,
    example: &str,
    report: &mut Report<'_>,
) -> Reported {
    let (shortest, longest) = (HOST_BLOCKS.start(), HOST_BLOCKS.end());
    let message = format!("the block of a host can't have the length {length}");
    let help = format!(
        "write a length from {shortest} (4096 addresses) to {longest} (4), such as `{example}`"
    );
    report.error(at, message, help)
}
