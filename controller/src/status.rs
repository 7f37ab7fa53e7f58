//! The mesh as operators see it.

use std::collections::BTreeMap;

use isthmus_model::{DeviceId, HostId, Name, ServiceId, convert};
use isthmus_proto::v1;
use isthmus_proto::v1::resource::Body;

use crate::absence;
use crate::mesh::Mesh;
use crate::rotation;

pub(crate) fn status(mesh: &Mesh) -> v1::MeshStatus {
    let now = mesh.now();
    let all = now.world.everything();
    let mut status = v1::MeshStatus {
        name: all.mesh.name.to_string(),
        trust_domain: all.mesh.trust_domain.to_string(),
        revision: all.revision.0,
        events: mesh.events.all(),
        problems: mesh.problems.all(),
        ..v1::MeshStatus::default()
    };
    let host_name = |id: u32| all.hosts.get(&HostId(id)).map(|host| host.name.to_string());
    let mut services_on: BTreeMap<HostId, Vec<String>> = BTreeMap::new();
    for service in all.services.values() {
        for host in service.placements.keys().filter(|host| !service.leaving.contains(host)) {
            services_on.entry(*host).or_default().push(service.name.to_string());
        }
    }
    for resource in convert::resources(all) {
        match resource.body {
            Some(Body::Host(host)) => {
                let id = HostId(host.id);
                let services = services_on.remove(&id).unwrap_or_default();
                let ipv6 = all.workload_ipv6(id, ServiceId(0)).to_string();
                status.hosts.push(v1::HostStatus { ipv6, services, ..of_host(mesh, host) });
            }
            Some(Body::Service(service)) => status.services.push(v1::ServiceStatus {
                virtual_ipv6: all.virtual_ipv6(ServiceId(service.id)).to_string(),
                hosts: staying(&service).filter_map(host_name).collect(),
                dns_name: format!("{}.{}.mesh.internal", service.name, service.namespace),
                service: Some(service),
            }),
            Some(Body::Device(device)) => {
                let (via, id) = (HostId(device.via), DeviceId(device.id));
                status.devices.push(v1::DeviceStatus {
                    ipv6: all.workload_ipv6(via, ServiceId(id.0)).to_string(),
                    via: host_name(device.via).unwrap_or_default(),
                    device: Some(device),
                });
            }
            Some(
                Body::Mesh(_) | Body::Rule(_) | Body::Policy(_) | Body::Route(_) | Body::Limit(_),
            )
            | None => {}
        }
    }
    status
}

/// The hosts that the topology places a service on.
fn staying(service: &v1::Service) -> impl Iterator<Item = u32> {
    service.placements.keys().copied().filter(|host| !service.leaving.contains(host))
}

fn of_host(mesh: &Mesh, host: v1::Host) -> v1::HostStatus {
    let now = mesh.now();
    let member = now.state.inventory.member(&host.name);
    let agent = host.name.parse::<Name>().map(|name| mesh.agents.view(&name)).unwrap_or_default();
    let problems = absence::problems(mesh, &host.name, member, &agent);
    let (former_key_until, former_key_awaits) =
        member.map(|member| rotation::shown(mesh, member)).unwrap_or_default();
    v1::HostStatus {
        ipv6: String::new(),
        connected: agent.connected,
        revision: agent.accepted.0,
        version: agent.version,
        joined: member.map_or(0, |member| member.joined),
        certificate_expires: member.map_or(0, |member| member.certificate_expires),
        services: Vec::new(),
        problems,
        former_key_until,
        former_key_awaits,
        refusal: agent.refused.map(|it| it.reason).unwrap_or_default(),
        host: Some(host),
    }
}
