//! Events that the shell logs or reports.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use isthmus_model::{HostId, Layer4, Principal, Revision};
use isthmus_packet::FlowKey;
use isthmus_policy::Verdict;

use crate::types::PeerName;

/// Events that wait for the shell; what comes on top is lost and counted.
const CAPACITY: usize = 256;

/// Events for the shell to log or report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A peer sent packets from an address that isn't its to use. Aggregated: the first at once,
    /// then at most one event per peer and address in ten seconds.
    Forged {
        /// The peer whose tunnel carried them.
        from: PeerName,
        /// The address they claimed.
        source: IpAddr,
        /// Number since the last event.
        packets: u64,
    },
    /// A flow was denied: once per flow, not per packet.
    Denied(Denial),
    /// A flow passed only because something audits rather than denies.
    Audited(Denial),
    /// A tunnel has a new session.
    Connected {
        /// With whom.
        peer: PeerName,
    },
    /// A peer speaks from a new place.
    Roamed {
        /// Who.
        peer: PeerName,
        /// Previous endpoint.
        from: Option<SocketAddr>,
        /// Current endpoint.
        to: SocketAddr,
    },
    /// A host that was sent something has given no sign of life.
    Silent {
        /// Who.
        peer: PeerName,
        /// When the first packet left that got none.
        since: Instant,
    },
    /// It has, or isn't a peer any more.
    Answers {
        /// Who.
        peer: PeerName,
    },
    /// The size of datagrams that the path to a host carries has been measured anew.
    PathMtu {
        /// The peer at the other end of the path.
        host: HostId,
        /// Bytes of the outer IP packet.
        bytes: u16,
    },
    /// The answer to a [`ping`](crate::Node::ping).
    Pong {
        /// The host whose agent answered.
        from: HostId,
        /// As given to `ping`.
        target: IpAddr,
        /// As given to `ping`.
        identifier: u16,
        /// As given to `ping`.
        sequence: u16,
        /// Round-trip time.
        round_trip: Duration,
    },
}

/// A flow that the policy would not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Denial {
    /// The process or identity that opened it.
    pub from: Principal,
    /// Whom it is for.
    pub to: Principal,
    /// As its packets came in: by the addresses that its socket has, if that is on this host.
    pub original: FlowKey,
    /// The overlay address of who opened it.
    pub source: IpAddr,
    /// Payload protocol.
    pub layer4: Layer4,
    /// Verdict of the policy in force.
    pub verdict: Verdict,
    /// The revision of that state: rule ids mean nothing to another.
    pub revision: Revision,
    /// Whether this host is where the flow begins (the sender's side), or where it ends.
    pub outbound: bool,
}

/// A bounded queue.
#[derive(Debug, Default)]
pub(crate) struct Events {
    queue: VecDeque<Event>,
}

impl Events {
    /// Returns whether there was room.
    pub(crate) fn push(&mut self, event: Event) -> bool {
        let has_room = self.queue.len() < CAPACITY;
        if has_room {
            self.queue.push_back(event);
        }
        has_room
    }

    pub(crate) fn pop(&mut self) -> Option<Event> {
        self.queue.pop_front()
    }
}
