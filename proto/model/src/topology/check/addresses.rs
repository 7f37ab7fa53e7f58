//! Whether the IPv4 addresses that a topology fixes fit into one another, and suffice.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use crate::address::Ipv4Net;
use crate::name::Name;
use crate::topology::decl::{MeshDecl, Placement};
use crate::topology::draft::{Declared, Draft};
use crate::topology::read::{At, Report};
use crate::topology::tables::device::DeviceDraft;
use crate::topology::tables::host::HostDraft;

/// Beyond this many comparisons of labels the controller finds out when it hands out addresses.
const MOST_COMPARISONS: usize = 10_000_000;

pub(super) fn check(draft: &Draft, mesh: &MeshDecl, report: &mut Report<'_>) {
    check_blocks(draft, mesh, report);
    check_devices(draft, report);
    check_host_room(draft, mesh, report);
    check_mesh_room(draft, mesh, report);
}

/// Blocks lie in the mesh's range, beside the virtual addresses and beside each other.
fn check_blocks(draft: &Draft, mesh: &MeshDecl, report: &mut Report<'_>) {
    let mut blocks: Vec<(Ipv4Net, At, &Name)> = Vec::new();
    for (name, host) in &draft.hosts {
        let Some(HostDraft { decl, block: Some(at) }) = &host.draft else { continue };
        let Some(block) = decl.ipv4_block else { continue };
        if !mesh.ipv4.contains(&block) {
            let message = format!("ipv4_block {block} isn't inside the mesh's range {}", mesh.ipv4);
            report.error(*at, message, "take a part of that range, or leave ipv4_block out");
        } else if overlap(block, mesh.virtual_ipv4) {
            let message =
                format!("ipv4_block {block} overlaps the virtual addresses {}", mesh.virtual_ipv4);
            report.error(
                *at,
                message,
                "take a block before or after them, or leave ipv4_block out",
            );
        }
        blocks.push((block, *at, name));
    }
    blocks.sort_unstable_by_key(|(block, at, _)| (block.network(), block.prefix_len(), *at));
    // Prefixes nest or are apart: only the widest so far can hold the next.
    let mut widest: Option<(Ipv4Net, At, &Name)> = None;
    for next in blocks {
        match widest {
            Some(wide) if overlap(wide.0, next.0) => report_overlap(wide, next, report),
            Some(_) | None => widest = Some(next),
        }
    }
}

fn report_overlap(one: (Ipv4Net, At, &Name), other: (Ipv4Net, At, &Name), report: &mut Report<'_>) {
    let (first, second) = if one.1 < other.1 { (one, other) } else { (other, one) };
    let message = format!(
        "ipv4_block {} of host \"{}\" overlaps {} of host \"{}\" at {}",
        second.0,
        second.2,
        first.0,
        first.2,
        report.origin(first.1)
    );
    report.error(second.1, message, "give each host a block of its own, or leave ipv4_block out");
}

/// A device's fixed address lies in the fixed block of its gateway, and is nobody else's there.
fn check_devices(draft: &Draft, report: &mut Report<'_>) {
    let mut taken: BTreeMap<Ipv4Addr, &Name> = BTreeMap::new();
    for (name, device) in &draft.devices {
        let Some(DeviceDraft { decl, ipv4: Some(at), .. }) = &device.draft else { continue };
        let (Some(ipv4), via) = (decl.ipv4, &decl.via) else { continue };
        let Some(Declared { draft: Some(host), .. }) = draft.hosts.get(via) else { continue };
        let Some(block) = host.decl.ipv4_block else {
            let message = format!(
                "ipv4 {ipv4} of device \"{name}\" is fixed, but the block of its gateway \"{via}\" isn't"
            );
            let help = format!(
                "write `ipv4_block` in [host.{via}], with the block that `agentctl host show {via}` tells"
            );
            report.error(*at, message, help);
            continue;
        };
        let problem = if !block.contains(&ipv4) {
            format!("isn't in the block {block} of its gateway \"{via}\"")
        } else if ipv4 == block.network() {
            format!("is host \"{via}\"'s own")
        } else if let Some(other) = taken.insert(ipv4, name) {
            format!("is device \"{other}\"'s already")
        } else {
            continue;
        };
        let message = format!("ipv4 {ipv4} of device \"{name}\" {problem}");
        let help = format!("take another address of {block} but the first, or leave ipv4 out");
        report.error(*at, message, help);
    }
}

fn overlap(one: Ipv4Net, other: Ipv4Net) -> bool {
    one.contains(&other) || other.contains(&one)
}

/// A host's block has an address for the host, for each of its workloads and for each device.
fn check_host_room(draft: &Draft, mesh: &MeshDecl, report: &mut Report<'_>) {
    let needs = addresses_needed(draft);
    for (name, host) in &draft.hosts {
        let Declared { at, draft: Some(HostDraft { decl, block }) } = host else { continue };
        let length = decl.ipv4_block.map_or(mesh.host_block, |block| block.prefix_len());
        let needed = needs.get(name).copied().unwrap_or(0) + 1;
        if needed > addresses(length) {
            let message = format!(
                "host \"{name}\" needs {needed} addresses (itself, its services and devices), its block has {}",
                addresses(length)
            );
            let longer = 32 - needed.next_power_of_two().trailing_zeros();
            let help = match decl.ipv4_block {
                Some(_) => format!("give it a /{longer} as ipv4_block"),
                None => format!("write `host_block = {longer}` in [mesh]"),
            };
            report.error(block.unwrap_or(*at), message, help);
        }
    }
}

fn addresses(length: u8) -> u64 {
    1 << (32 - u32::from(length.min(32)))
}

/// How many workloads and devices each host has, as far as the topology itself tells.
fn addresses_needed(draft: &Draft) -> BTreeMap<&Name, u64> {
    let mut needs: BTreeMap<&Name, u64> = BTreeMap::new();
    let mut by_labels: BTreeMap<&BTreeMap<String, String>, u64> = BTreeMap::new();
    for service in draft.services.values().filter_map(|service| service.draft.as_ref()) {
        match &service.decl.hosts {
            Placement::Names(names) => {
                for name in names {
                    *needs.entry(name).or_default() += 1;
                }
            }
            Placement::Labels(labels) => *by_labels.entry(labels).or_default() += 1,
        }
    }
    for device in draft.devices.values().filter_map(|device| device.draft.as_ref()) {
        *needs.entry(&device.decl.via).or_default() += 1;
    }
    if by_labels.len().saturating_mul(draft.hosts.len()) > MOST_COMPARISONS {
        return needs;
    }
    for (name, host) in &draft.hosts {
        let Some(host) = &host.draft else { continue };
        let has = |(key, value)| host.decl.labels.get(key) == Some(value);
        let services: u64 = by_labels
            .iter()
            .filter(|(labels, _)| labels.iter().all(has))
            .map(|(_, services)| services)
            .sum();
        *needs.entry(name).or_default() += services;
    }
    needs
}

/// The mesh's range has a block for each host, and a virtual address for each service.
fn check_mesh_room(draft: &Draft, mesh: &MeshDecl, report: &mut Report<'_>) {
    let last = |places: &mut dyn Iterator<Item = At>| places.max();
    let blocks = (addresses(mesh.ipv4.prefix_len()) - addresses(mesh.virtual_ipv4.prefix_len()))
        / addresses(mesh.host_block);
    if draft.hosts.len() as u64 > blocks
        && let Some(at) = last(&mut draft.hosts.values().map(|host| host.at))
    {
        let message =
            format!("{} has blocks for {blocks} hosts, there are {}", mesh.ipv4, draft.hosts.len());
        report.error(at, message, "widen `ipv4` in [mesh], or lengthen `host_block`");
    }
    let services = addresses(mesh.virtual_ipv4.prefix_len()) - 1;
    if draft.services.len() as u64 > services
        && let Some(at) = last(&mut draft.services.values().map(|service| service.at))
    {
        let message = format!(
            "{} has addresses for {services} services, there are {}",
            mesh.virtual_ipv4,
            draft.services.len()
        );
        report.error(at, message, "widen `virtual_ipv4` in [mesh]");
    }
}
