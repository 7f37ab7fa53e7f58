//! Peer names, and the interfaces that packets come in and go out by.

use isthmus_model::{DeviceId, HostId};

/// Peer with a tunnel to this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PeerName {
    /// Another host's agent.
    Host(HostId),
    /// A device whose gateway this host is.
    Device(DeviceId),
}

/// Interface through which packets enter and leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Interface {
    Tun,
    Peer(PeerName),
}
