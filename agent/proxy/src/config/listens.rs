//! Application listeners of this host, and the address that they see as the client.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Other addresses at which to look for a listener, besides the requested one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Listens {
    /// Nowhere else.
    There,
    /// At the workload's other address, by the same port.
    OrAt(IpAddr),
    /// Here and only here: another service, or anybody, may have the other addresses.
    At(SocketAddr),
}

/// As whom the proxy speaks to an application that is to see its callers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Shown {
    pub(crate) v4: Ipv4Addr,
    pub(crate) v6: Ipv6Addr,
}
