//! Overlay addresses that follow from a snapshot.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use ipnet::{IpNet, Ipv6Net};
use isthmus_model::{ServiceId, Snapshot};

/// The host's own addresses.
pub(crate) fn own(snapshot: &Snapshot) -> [IpAddr; 2] {
    let ipv6 = snapshot.workload_ipv6(snapshot.local, ServiceId(0));
    [snapshot.local_host().ipv4().into(), ipv6.into()]
}

/// Addresses of applications here that see their callers' addresses: what they answer is the proxy's.
pub(crate) fn answers(snapshot: &Snapshot) -> BTreeSet<SocketAddr> {
    let places = snapshot.local_services().flat_map(|(id, service, ipv4)| {
        let ipv6 = snapshot.workload_ipv6(snapshot.local, id);
        let shown = service.ports().filter(|(_, protocol, application)| {
            application.shows_callers() && protocol.is_proxied(*application)
        });
        shown.flat_map(move |(port, ..)| [(ipv4, port).into(), (ipv6, port).into()])
    });
    places.collect()
}

/// All addresses of the mesh.
pub(crate) fn prefixes(snapshot: &Snapshot) -> [IpNet; 2] {
    let mesh = &snapshot.mesh;
    // INVARIANT: 48 is a valid prefix length.
    let ipv6 = Ipv6Net::new_assert(mesh.prefix.network(), 48);
    [IpNet::V6(ipv6), IpNet::V4(mesh.ipv4)]
}
