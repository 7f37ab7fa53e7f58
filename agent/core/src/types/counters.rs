//! Counters of a node.

use std::collections::HashMap;

use isthmus_policy::Outcome;

/// Rules whose verdicts are counted by name; more go under [`Counters::OTHER_RULES`].
const MAX_RULES: usize = 4096;

macro_rules! drop_reasons {
    ($($(#[$doc:meta])* $name:ident => $label:literal,)*) => {
        /// Why a packet went no further. Every one is counted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum DropReason {
            $($(#[$doc])* $name,)*
        }

        impl DropReason {
            /// All reasons.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// A short name for metrics.
            pub const fn label(self) -> &'static str {
                match self {
                    $(Self::$name => $label,)*
                }
            }
        }
    };
}

drop_reasons! {
    /// Not an IP packet that can be classified: see [`ParseError`](isthmus_packet::ParseError).
    Malformed => "malformed",
    /// To or from multicast, broadcast, loopback or the unspecified address.
    NotUnicast => "not-unicast",
    /// From the TUN device with a source that isn't this host's.
    ForeignSource => "foreign-source",
    /// From a workload's address, by a process that isn't that workload.
    NotOwner => "not-owner",
    /// By a tunnel whose peer doesn't own the source, or with a source that isn't placed there.
    Forged => "forged",
    /// The policy denies the flow.
    Denied => "denied",
    /// Denied, as the flow's packets just before: dropped before it came to the device.
    DeniedAgain => "denied-again",
    /// Would open a flow of a user whose flows are refused all the time: dropped before it came to
    /// the device.
    HeldBack => "held-back",
    /// IPv6 with a routing header: dropped before it came to the device.
    RoutingHeader => "routing-header",
    /// The device's queue had no room: the host sends more than the agent takes.
    DeviceQueue => "device-queue",
    /// The device didn't hand it to the host.
    DeviceInput => "device-input",
    /// The policy stopped allowing the flow.
    Cut => "cut",
    /// Nobody has this destination.
    NoRoute => "no-route",
    /// The service has no workload that could answer.
    NoBackend => "no-backend",
    /// By a tunnel, for somebody who isn't here: hosts don't forward for each other.
    Transit => "transit",
    /// From this host to this host: the kernel should have kept it.
    Local => "local",
    /// To a port where a service of this host has its requests judged, by another address than its
    /// own: dial the service.
    AroundProxy => "around-proxy",
    /// In the middle of a connection that nobody here knows.
    UnknownFlow => "unknown-flow",
    /// A fragment whose first fragment hasn't been seen.
    UnknownFragment => "unknown-fragment",
    /// An ICMP message that is neither an echo nor an error about a known flow.
    Icmp => "icmp",
    /// Larger than the path, and not to be fragmented.
    TooBig => "too-big",
    /// Forwarded too often.
    HopsExceeded => "hops-exceeded",
    /// All flows are in use.
    FlowTableFull => "flow-table-full",
    /// No source port is left that tells the flow from others.
    NoPort => "no-port",
    /// The peer's endpoint isn't known.
    NoEndpoint => "no-endpoint",
    /// A new connection to a host that hasn't answered for a while: refused.
    Silent => "silent",
    /// The tunnel's queue was full, or given up with the handshake.
    TunnelQueue => "tunnel-queue",
    /// More datagrams wait than the limit.
    TransmitQueue => "transmit-queue",
    /// More packets for the TUN device wait than the limit.
    TunQueue => "tun-queue",
    /// A datagram that isn't WireGuard's.
    NotWireGuard => "not-wireguard",
    /// A datagram for a session that doesn't exist (any more).
    UnknownSession => "unknown-session",
    /// A datagram that isn't authentic, or a replay.
    Unauthentic => "unauthentic",
    /// A handshake that is older than one before it: a replay, or its sender's clock went back.
    OutdatedHandshake => "outdated-handshake",
    /// A handshake by a key that no peer has.
    UnknownPeer => "unknown-peer",
    /// Too many handshakes from one source.
    HandshakeRate => "handshake-rate",
    /// A handshake that was asked to prove its source address first.
    HandshakeCookie => "handshake-cookie",
    /// A message between agents that can't be understood, or that a process tried to send.
    Control => "control",
    /// The kernel couldn't send the datagram.
    SendError => "send-error",
}

/// Counters of a node since it was made.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// Packets and bytes read from the TUN device.
    pub from_tun: Traffic,
    /// Packets and bytes written to it.
    pub to_tun: Traffic,
    /// Datagrams received.
    pub received: Traffic,
    /// Datagrams sent.
    pub sent: Traffic,
    /// Handshakes begun here.
    pub handshakes_initiated: u64,
    /// Handshakes answered.
    pub handshakes_answered: u64,
    /// Handshakes begun here that ended well.
    pub handshakes_completed: u64,
    /// Handshakes given up.
    pub handshakes_failed: u64,
    /// Flows made, denied ones included.
    pub flows_created: u64,
    /// Flows that ended or made room.
    pub flows_removed: u64,
    /// Half-open flows that made room before their time.
    pub flows_evicted: u64,
    /// Flows judged again because the revision moved.
    pub flows_rejudged: u64,
    /// Flows that a new revision ended.
    pub flows_cut: u64,
    /// RSTs and ICMP errors made here.
    pub refusals: u64,
    /// Packets sent although larger than the path, to be fragmented on the way.
    pub oversized: u64,
    /// Events that nobody took in time.
    pub events_lost: u64,
    drops: Drops,
    verdicts: HashMap<String, [u64; 3]>,
}

/// By reason.
#[derive(Clone, Debug)]
struct Drops([u64; DropReason::ALL.len()]);

impl Default for Drops {
    fn default() -> Self {
        Self([0; DropReason::ALL.len()])
    }
}

/// Packets and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Count.
    pub packets: u64,
    /// Total bytes.
    pub bytes: u64,
}

impl Traffic {
    pub(crate) fn add(&mut self, bytes: usize) {
        self.add_many(1, bytes);
    }

    pub(crate) fn add_many(&mut self, packets: usize, bytes: usize) {
        self.packets += packets as u64;
        self.bytes += bytes as u64;
    }
}

impl Counters {
    /// The rule under which verdicts are counted once there are too many rules.
    pub const OTHER_RULES: &str = "other";

    /// Packets dropped for a reason.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops.0[reason as usize]
    }

    /// Packets dropped, by reason.
    pub fn drops(&self) -> impl Iterator<Item = (DropReason, u64)> {
        DropReason::ALL.iter().map(|reason| (*reason, self.dropped(*reason)))
    }

    /// Flows judged, by the deciding rule's name and the outcome.
    pub fn verdicts(&self) -> impl Iterator<Item = (&str, Outcome, u64)> {
        const OUTCOMES: [Outcome; 3] = [Outcome::Deny, Outcome::Allow, Outcome::Inspect];
        self.verdicts.iter().flat_map(|(rule, counts)| {
            OUTCOMES
                .into_iter()
                .zip(counts)
                .filter(|(_, count)| **count > 0)
                .map(move |(outcome, count)| (rule.as_str(), outcome, *count))
        })
    }

    pub(crate) fn drop(&mut self, reason: DropReason) {
        self.drop_many(reason, 1);
    }

    /// Counts packets that were dropped for a reason.
    pub fn drop_many(&mut self, reason: DropReason, packets: u64) {
        self.drops.0[reason as usize] += packets;
    }

    pub(crate) fn judge(&mut self, rule: &str, outcome: Outcome) {
        let at = match outcome {
            Outcome::Deny => 0,
            Outcome::Allow => 1,
            Outcome::Inspect => 2,
        };
        if let Some(counts) = self.verdicts.get_mut(rule) {
            counts[at] += 1;
            return;
        }
        let rule = if self.verdicts.len() < MAX_RULES { rule } else { Self::OTHER_RULES };
        self.verdicts.entry(rule.to_owned()).or_default()[at] += 1;
    }
}
