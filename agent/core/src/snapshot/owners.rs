//! Flow owners, as a revision names them: the one question that is asked of the shell.

use std::collections::HashSet;
use std::net::IpAddr;

use isthmus_model::ServiceId;
use isthmus_packet::FlowKey;

use crate::snapshot::CompiledSnapshot;
use crate::types::Counters;

/// Knows which process a flow belongs to.
///
/// Asked when a flow is new, and again where a port could have changed hands, while the packet
/// waits: an answer should take microseconds.
pub trait Owners {
    /// Whose socket has this flow. `flow` is as the socket sees it, source first: its own address
    /// and port, then its peer's. A TCP flow has an owner only if a socket is *connected* just so
    /// (or connecting): a listener isn't meant.
    fn owner(&mut self, flow: &FlowKey, state: &CompiledSnapshot) -> Owner;

    /// Owner of a source address outside the mesh: a container whose packets this host forwards.
    /// Whoever answers must know that nobody else can send from there.
    fn behind(&mut self, source: IpAddr, state: &CompiledSnapshot) -> Owner {
        let _ = (source, state);
        Owner::Unknown
    }

    /// A number that is another one once a connectionless flow's packets come from another socket than
    /// before. Asked for each packet of such a flow: it mustn't cost more than reading memory.
    fn changes(&self, flow: &FlowKey) -> u32 {
        let _ = flow;
        0
    }

    /// A packet of this flow came from the host and was refused: whoever sends many of them needn't be
    /// listened to for a while.
    fn refused(&mut self, flow: &FlowKey) {
        let _ = flow;
    }

    /// Adds what was dropped for these reasons before it came to the node.
    fn add_drops(&self, counters: &mut Counters) {
        let _ = counters;
    }
}

/// The answer of [`Owners`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// A process of this service, which is placed on this host.
    Service(ServiceId),
    /// A process that matches no service.
    Host,
    /// There is no such socket, or it can't be told whose it is.
    Unknown,
}

/// Services with an application here that listens on one family only, and at which TCP port: each with
/// whether the other family, where it doesn't, is IPv4.
pub type Deaf = HashSet<(ServiceId, u16, bool)>;
