//! The `wg-quick` file of a device.

use std::fmt::Write as _;

use isthmus_controller_core::State;
use isthmus_model::{Device, Host, ServiceId, Snapshot};
use tonic::Status;

/// What a tunnel inside a path of 1500 bytes carries; the agents' TUN device has the same.
const MTU: u16 = 1_420;

pub(crate) fn device(state: &State, all: &Snapshot, name: &str) -> Result<String, Status> {
    let Some(declared) = state.topology.devices.get(name) else {
        return Err(Status::not_found(format!(
            "The topology declares no device {name:?}. Add [device.{name}] to it and apply it."
        )));
    };
    let found = all.devices.iter().find(|(_, device)| device.name.as_str() == name);
    let gateway = found.and_then(|(_, device)| all.hosts.get(&device.via));
    let (Some((id, device)), Some(gateway)) = (found, gateway) else {
        return Err(Status::failed_precondition(format!(
            "The gateway of device {name:?}, host {:?}, hasn't joined yet. Join it first (`agentctl join` there).",
            declared.via.as_str()
        )));
    };
    let Some(endpoint) = gateway.endpoints.first() else {
        return Err(Status::failed_precondition(format!(
            "Nobody knows where the gateway, host {0:?}, can be reached: its agent has never been connected. Start it, or give `endpoints` in [host.{0}].",
            gateway.name.as_str()
        )));
    };
    let ipv6 = all.workload_ipv6(device.via, ServiceId(id.0));
    Ok(write(all, device, ipv6, gateway, endpoint))
}

fn write(
    all: &Snapshot,
    device: &Device,
    ipv6: std::net::Ipv6Addr,
    gateway: &Host,
    endpoint: &std::net::SocketAddr,
) -> String {
    let (mesh, ipv4) = (&all.mesh, device.ipv4);
    let dns_ipv6 = all.workload_ipv6(device.via, ServiceId(0));
    let mut text = String::new();
    let _ = write!(
        text,
        "# Device {device} of mesh {name}, through {gateway}.\n\
         # Only the private key is missing: the one that belongs to the public key\n\
         # {public_key}\n\
         # Either write it below, or name the file that holds it.\n\
         [Interface]\n\
         # PrivateKey = ...\n\
         # PostUp = wg set %i private-key /etc/wireguard/private.key\n\
         Address = {ipv4}/32, {ipv6}/128\n\
         DNS = {dns_ipv4}, {dns_ipv6}, mesh.internal\n\
         MTU = {MTU}\n\
         \n\
         [Peer]\n\
         PublicKey = {gateway_key}\n\
         AllowedIPs = {range}, {prefix}/48\n\
         Endpoint = {endpoint}\n\
         PersistentKeepalive = 25\n",
        device = device.name,
        name = mesh.name,
        gateway = gateway.name,
        public_key = device.public_key,
        dns_ipv4 = gateway.ipv4(),
        gateway_key = gateway.public_key,
        range = mesh.ipv4,
        prefix = mesh.prefix.network(),
    );
    text
}
