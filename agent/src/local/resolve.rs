//! Whom a person means: a host, service or device by name, DNS name or address.

use std::net::IpAddr;

use isthmus_core::State;
use isthmus_model::{DeviceId, HostId, Place, ServiceId, Snapshot};

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

/// The address to ask.
pub(super) fn resolve(state: &State, target: &str) -> Result<IpAddr, ResolveError> {
    let snapshot = &state.snapshot;
    if let Ok(address) = target.parse() {
        return of_address(state, address);
    }
    let unknown = || ResolveError::Unknown(target.to_owned());
    let name = target.trim_end_matches('.');
    if let Some(name) = name.strip_suffix(DOMAIN) {
        let (name, namespace) = name.split_once('.').ok_or_else(unknown)?;
        let found = snapshot.services.iter().find(|(_, service)| {
            service.name.as_str() == name && service.namespace.as_str() == namespace
        });
        return match found {
            Some((id, _)) => of_service(snapshot, *id),
            None if namespace == "host" => host(snapshot, name).ok_or_else(unknown),
            None => Err(unknown()),
        };
    }
    if let Some(name) = name.strip_prefix("host:") {
        return host(snapshot, name).ok_or_else(unknown);
    }
    if let Some(name) = name.strip_prefix("device:") {
        return device(snapshot, name).ok_or_else(unknown);
    }
    if let Some(name) = name.strip_prefix("service:") {
        return service(snapshot, name).ok_or_else(unknown)?;
    }
    host(snapshot, name)
        .map(Ok)
        .or_else(|| service(snapshot, name))
        .or_else(|| device(snapshot, name).map(Ok))
        .ok_or_else(unknown)?
}

fn of_address(state: &State, address: IpAddr) -> Result<IpAddr, ResolveError> {
    match state.directory.place(address) {
        Some(Place::Virtual(service)) => of_service(&state.snapshot, service),
        Some(Place::Host(_) | Place::Workload(..) | Place::Device(..) | Place::Anycast) => {
            Ok(address)
        }
        None => Err(ResolveError::Foreign(address)),
    }
}

fn host(snapshot: &Snapshot, name: &str) -> Option<IpAddr> {
    let (id, _) = snapshot.hosts.iter().find(|(_, host)| host.name.as_str() == name)?;
    Some(snapshot.workload_ipv6(*id, ServiceId(0)).into())
}

fn service(snapshot: &Snapshot, name: &str) -> Option<Result<IpAddr, ResolveError>> {
    let (id, _) = snapshot.services.iter().find(|(_, service)| service.name.as_str() == name)?;
    Some(of_service(snapshot, *id))
}

fn device(snapshot: &Snapshot, name: &str) -> Option<IpAddr> {
    let found = snapshot.devices.iter().find(|(_, device)| device.name.as_str() == name);
    let (DeviceId(number), device) = found?;
    Some(snapshot.workload_ipv6(device.via, ServiceId(*number)).into())
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
        for target in ["nobody", "host:web", "web.dev.mesh.internal", "mesh.internal", ""] {
            let error = resolve(&state, target).unwrap_err();
            assert_eq!(error, ResolveError::Unknown(target.to_owned()));
        }
        let foreign = "192.0.2.1".parse().unwrap();
        assert_eq!(resolve(&state, "192.0.2.1"), Err(ResolveError::Foreign(foreign)));
        let homeless = resolve(&state, "homeless").unwrap_err();
        assert_eq!(homeless, ResolveError::NoWorkload("homeless".to_owned()));
    }
}
