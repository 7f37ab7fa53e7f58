//! Name resolution for people: a host, service or device by name, DNS name or address.

use std::net::IpAddr;

use isthmus_core::CompiledSnapshot;
use isthmus_model::{DeviceId, HostId, Place, Service, ServiceId, Snapshot};

const DOMAIN: &str = ".mesh.internal";

/// Why nobody is meant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ResolveError {
    #[error("This host knows no host, service or device {0:?}; `agentctl peers` lists its peers")]
    Unknown(String),
    #[error("{0} is no address of the mesh")]
    Foreign(IpAddr),
    #[error("The service {0} has no workload that this host may reach")]
    NoWorkload(String),
}

/// Whom a name means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Named {
    Host(HostId),
    Service(ServiceId),
    Device(DeviceId),
}

/// The address to ask.
pub(super) fn resolve(state: &CompiledSnapshot, target: &str) -> Result<IpAddr, ResolveError> {
    let snapshot = &state.snapshot;
    if let Ok(address) = target.parse() {
        return of_address(state, address);
    }
    match named(snapshot, target)? {
        Named::Host(id) => Ok(snapshot.workload_ipv6(id, ServiceId(0)).into()),
        Named::Service(id) => of_service(snapshot, id),
        Named::Device(id) => {
            device_address(snapshot, id).ok_or_else(|| ResolveError::Unknown(target.to_owned()))
        }
    }
}

/// `web`, `service:web`, `web.prod`, `web.prod.mesh.internal`, and hosts and devices likewise.
pub(super) fn named(snapshot: &Snapshot, target: &str) -> Result<Named, ResolveError> {
    let name = target.trim_end_matches('.');
    let (name, is_whole) = match name.strip_suffix(DOMAIN) {
        Some(name) => (name, true),
        None => (name, false),
    };
    let found = match (name.split_once(':'), name.split_once('.')) {
        (Some(("host", name)), _) | (None, Some((name, "host"))) => host(snapshot, name),
        (Some(("device", name)), _) | (None, Some((name, "device"))) => device(snapshot, name),
        (Some(("service", name)), _) => match name.split_once('.') {
            Some((name, namespace)) => service(snapshot, name, Some(namespace)),
            None => service(snapshot, name, None),
        },
        (Some(_), _) => None,
        (None, Some((name, namespace))) => service(snapshot, name, Some(namespace)),
        (None, None) if is_whole => None,
        (None, None) => host(snapshot, name)
            .or_else(|| service(snapshot, name, None))
            .or_else(|| device(snapshot, name)),
    };
    found.ok_or_else(|| ResolveError::Unknown(target.to_owned()))
}

fn of_address(state: &CompiledSnapshot, address: IpAddr) -> Result<IpAddr, ResolveError> {
    match state.directory.place(address) {
        Some(Place::Virtual(service)) => of_service(&state.snapshot, service),
        Some(Place::Host(_) | Place::Workload(..) | Place::Device(..) | Place::Anycast) => {
            Ok(address)
        }
        None => Err(ResolveError::Foreign(address)),
    }
}

fn host(snapshot: &Snapshot, name: &str) -> Option<Named> {
    let (id, _) = snapshot.hosts.iter().find(|(_, host)| host.name.as_str() == name)?;
    Some(Named::Host(*id))
}

/// Also by a name that it had before.
fn service(snapshot: &Snapshot, name: &str, namespace: Option<&str>) -> Option<Named> {
    let in_it = |it: &Service| namespace.is_none_or(|wanted| it.namespace.as_str() == wanted);
    let by_name = snapshot.services.iter().find(|(_, it)| it.name.as_str() == name && in_it(it));
    let is_alias = |it: &Service| it.aliases.iter().any(|alias| alias.as_str() == name);
    let by_alias = || snapshot.services.iter().find(|(_, it)| is_alias(it) && in_it(it));
    by_name.or_else(by_alias).map(|(id, _)| Named::Service(*id))
}

fn device(snapshot: &Snapshot, name: &str) -> Option<Named> {
    let (id, _) = snapshot.devices.iter().find(|(_, device)| device.name.as_str() == name)?;
    Some(Named::Device(*id))
}

fn device_address(snapshot: &Snapshot, id: DeviceId) -> Option<IpAddr> {
    let device = snapshot.devices.get(&id)?;
    Some(snapshot.workload_ipv6(device.via, ServiceId(id.0)).into())
}

/// A workload on another host rather than here: whoever pings wants to know about the way.
fn of_service(snapshot: &Snapshot, id: ServiceId) -> Result<IpAddr, ResolveError> {
    let placements = snapshot.services.get(&id).map(|service| &service.placements);
    let mut hosts = placements.iter().flat_map(|placements| placements.keys());
    let elsewhere = |host: &&HostId| **host != snapshot.local;
    let chosen = hosts.clone().find(elsewhere).or_else(|| hosts.next());
    let name = || snapshot.services.get(&id).map_or_else(String::new, |it| it.name.to_string());
    let host = chosen.ok_or_else(|| ResolveError::NoWorkload(name()))?;
    Ok(snapshot.workload_ipv6(*host, id).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::show::tests::state;

    #[test]
    fn names_addresses_and_dns_names_lead_to_an_address() {
        let state = state();
        let prefix = state.snapshot.mesh.prefix;
        let host2 = IpAddr::V6(prefix.address(HostId(2), ServiceId(0)));
        let web2 = IpAddr::V6(prefix.address(HostId(2), ServiceId(5)));
        let press = IpAddr::V6(prefix.address(HostId(2), ServiceId(9)));
        for (target, expected) in [
            ("web-1", host2),
            ("host:web-1", host2),
            ("web", web2),
            ("service:web", web2),
            ("web.prod.mesh.internal", web2),
            ("web.prod.mesh.internal.", web2),
            ("web.prod", web2),
            ("service:web.prod", web2),
            ("web-1.host", host2),
            ("press.device", press),
            ("100.127.0.5", web2),
            ("press", press),
            ("device:press", press),
            ("100.64.0.16", "100.64.0.16".parse().unwrap()),
        ] {
            assert_eq!(resolve(&state, target), Ok(expected), "{target}");
        }
    }

    #[test]
    fn who_is_unknown_is_named() {
        let state = state();
        for target in [
            "nobody",
            "host:web",
            "web.dev",
            "web.dev.mesh.internal",
            "web.mesh.internal",
            "mesh.internal",
            "kind:web",
            "",
        ] {
            let error = resolve(&state, target).unwrap_err();
            assert_eq!(error, ResolveError::Unknown(target.to_owned()));
        }
        let foreign = "192.0.2.1".parse().unwrap();
        assert_eq!(resolve(&state, "192.0.2.1"), Err(ResolveError::Foreign(foreign)));
        let homeless = resolve(&state, "homeless").unwrap_err();
        assert_eq!(homeless, ResolveError::NoWorkload("homeless".to_owned()));
    }
}
