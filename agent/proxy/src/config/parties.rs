//! The two ends of a connection, and at which of them the proxy stands.

use isthmus_model::{Identity, Principal, Protocol, ServiceId};

/// The side of a request on which this proxy stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// Before a workload here: requests are judged.
    Server,
    /// Behind a caller here: requests are routed.
    Client,
}

/// Caller and called service of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Parties {
    pub(crate) side: Side,
    pub(crate) caller: Principal,
    pub(crate) from: Identity,
    pub(crate) to: Identity,
    pub(crate) service: ServiceId,
    pub(crate) protocol: Protocol,
    /// The service's port, where the application listens.
    pub(crate) port: u16,
    /// Whether it has no name: routes are about this one.
    pub(crate) is_own_port: bool,
}

impl Parties {
    /// The port that is meant where they go on to a service: their own, if it is the one that was asked.
    pub(crate) fn port_of(&self, service: ServiceId) -> Option<u16> {
        (service == self.service).then_some(self.port)
    }
}

impl Side {
    /// As in `client`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Client => "client",
        }
    }
}
