//! Saying no: RST and ICMP errors to those who are near, silence to those who are far.
//!
//! A local socket and a device are refused at once, so that nobody waits for a timeout. A host's
//! packets were judged by its own agent already; what still arrives deserves no answer.

use std::time::Instant;

use isthmus_packet::{
    FlowKey, Headers, REPLY_BUFFER, Reason, TcpFlags, Transport, icmp_error, tcp_reset,
};

use super::Forwarder;
use crate::flows::{Flow, Leg};
use crate::types::{DropReason, Interface, PeerName};

/// The longest IP and TCP headers that a made-up segment needs.
const SEGMENT: usize = 60;

impl Forwarder {
    /// The policy denies the flow that this packet belongs to.
    pub(crate) fn deny(
        &mut self,
        ingress: Interface,
        packet: &[u8],
        headers: &Headers,
        now: Instant,
    ) {
        self.telemetry.drop(DropReason::Denied);
        if !is_near(ingress) {
            return;
        }
        match headers.transport {
            Transport::Tcp { .. } => self.reset(ingress, packet, headers, now),
            Transport::Udp
            | Transport::UdpLite
            | Transport::Sctp
            | Transport::EchoRequest { .. }
            | Transport::EchoReply { .. }
            | Transport::IcmpError { .. }
            | Transport::Icmp { .. }
            | Transport::Other
            | Transport::LaterFragment => {
                self.answer(ingress, packet, headers, Reason::Prohibited, now);
            }
        }
    }

    /// Tells the sender of a packet by ICMP why it goes no further.
    pub(crate) fn answer(
        &mut self,
        ingress: Interface,
        packet: &[u8],
        headers: &Headers,
        reason: Reason,
        now: Instant,
    ) {
        let v4 = headers.key.source.is_v4();
        let from = match ingress {
            Interface::Tun => self.judge.state.anycast_address(v4),
            Interface::Peer(_) => self.judge.state.own_address(v4),
        };
        let mut reply = [0; REPLY_BUFFER];
        if let Some(length) = icmp_error(packet, headers, reason, from, &mut reply) {
            self.emit(ingress, reply.get(..length).unwrap_or_default(), now);
        }
    }

    /// There is nowhere to send a packet. A connection that is open already has lost its other end
    /// with a revision, and must end: ICMP would be a soft error to it (RFC 5461).
    pub(crate) fn turn_away(
        &mut self,
        ingress: Interface,
        packet: &[u8],
        headers: &Headers,
        reason: Reason,
        now: Instant,
    ) {
        let opens = match headers.transport {
            Transport::Tcp { flags } => flags.opens(),
            Transport::Udp
            | Transport::UdpLite
            | Transport::Sctp
            | Transport::EchoRequest { .. }
            | Transport::EchoReply { .. }
            | Transport::IcmpError { .. }
            | Transport::Icmp { .. }
            | Transport::Other
            | Transport::LaterFragment => true,
        };
        if opens || !is_near(ingress) {
            self.answer(ingress, packet, headers, reason, now);
        } else {
            self.reset(ingress, packet, headers, now);
        }
    }

    fn reset(&mut self, ingress: Interface, packet: &[u8], headers: &Headers, now: Instant) {
        let mut reply = [0; SEGMENT];
        if let Some(length) = tcp_reset(packet, headers, &mut reply) {
            self.emit(ingress, reply.get(..length).unwrap_or_default(), now);
        }
    }

    /// Resets the near ends of a TCP flow that is cut, though no packet is at hand.
    pub(crate) fn reset_near_ends(&mut self, flow: &Flow, now: Instant) {
        for leg in flow.legs.iter().filter(|leg| is_near(leg.key.port)) {
            let mut segment = [0; SEGMENT];
            let Some(length) = segment_of(leg, &mut segment) else { continue };
            let segment = segment.get(..length).unwrap_or_default();
            if let Ok(headers) = Headers::parse(segment) {
                self.reset(leg.key.port, segment, &headers, now);
            }
        }
    }

    /// Sends a packet of the node's own.
    fn emit(&mut self, to: Interface, packet: &[u8], now: Instant) {
        self.telemetry.counters.refusals += 1;
        match to {
            Interface::Tun => self.push_tun(packet),
            Interface::Peer(name) => {
                if let Some(slot) = self.tunnels.peers.by_name(name) {
                    self.tunnels.send(slot, packet, true, &mut self.telemetry, now);
                }
            }
        }
    }
}

fn is_near(port: Interface) -> bool {
    match port {
        Interface::Tun | Interface::Peer(PeerName::Device(_)) => true,
        Interface::Peer(PeerName::Host(_)) => false,
    }
}

/// The segment that a side of a flow could send next, to be answered by the RST that it believes: one
/// whose sequence number is just what it expects (RFC 5961 section 3.2).
fn segment_of(leg: &Leg, out: &mut [u8; SEGMENT]) -> Option<usize> {
    let acknowledged = leg.acknowledged?;
    let FlowKey { source, destination, source_port, destination_port, .. } = leg.key.flow;
    let start = match (source.v4_octets(), destination.v4_octets()) {
        (Some(source), Some(destination)) => {
            out[..4].copy_from_slice(&[0x45, 0, 0, 40]);
            out[8..10].copy_from_slice(&[64, leg.key.flow.protocol]);
            out[12..16].copy_from_slice(&source);
            out[16..20].copy_from_slice(&destination);
            20
        }
        (None, None) => {
            out[0] = 0x60;
            out[4..8].copy_from_slice(&[0, 20, leg.key.flow.protocol, 64]);
            out[8..24].copy_from_slice(&source.v6_octets());
            out[24..40].copy_from_slice(&destination.v6_octets());
            40
        }
        (Some(_), None) | (None, Some(_)) => return None,
    };
    let tcp = out.get_mut(start..start + 20)?;
    tcp[..2].copy_from_slice(&source_port.to_be_bytes());
    tcp[2..4].copy_from_slice(&destination_port.to_be_bytes());
    tcp[8..12].copy_from_slice(&acknowledged.to_be_bytes());
    tcp[12..14].copy_from_slice(&[5 << 4, TcpFlags::ACK]);
    Some(start + 20)
}
