//! ICMP errors: they belong to the flow of the packet that they quote, and are translated with it.

use std::time::Instant;

use isthmus_packet::{FlowKey, Headers, Quoted, Rewrite, quoted, rewrite_icmp_error};

use super::{Exit, Forwarder};
use crate::flows::{FlowRef, LegKey};
use crate::types::{DropReason, Interface};

impl Forwarder {
    /// An error goes against the flow of its quote: by the leg that answers would come in by. One
    /// about a flow that nobody knows is nobody's.
    pub(crate) fn pass_icmp_error(
        &mut self,
        ingress: Interface,
        packet: &mut [u8],
        headers: &Headers,
        now: Instant,
    ) -> Exit {
        if let Err(reason) = self.judge.check_source(ingress, headers) {
            return self.refuse_source(ingress, headers, reason, now);
        }
        let Some(quoted) = quoted(packet, headers) else {
            return self.dropped(DropReason::Icmp);
        };
        let key = LegKey { flow: quoted.key.reversed(), port: ingress };
        let Some((flow, leg)) = self.flows.find(&key) else {
            return self.dropped(DropReason::Icmp);
        };
        if !self.is_judged(flow, now) {
            return self.dropped(DropReason::Cut);
        }
        let Some((egress, outer, inner)) = self.error_rewrites(flow, leg, headers, &quoted) else {
            return self.dropped(DropReason::Icmp);
        };
        rewrite_icmp_error(packet, headers, &quoted, &outer, &inner);
        match egress {
            Interface::Tun => Exit::ToTun(headers.total_length),
            Interface::Peer(name) => {
                if let Some(slot) = self.tunnels.peers.by_name(name) {
                    let telemetry = &mut self.telemetry;
                    self.tunnels.send(slot, packet, headers.dont_fragment, telemetry, now);
                }
                Exit::Done
            }
        }
    }

    fn error_rewrites(
        &self,
        flow: FlowRef,
        leg: u8,
        headers: &Headers,
        quoted: &Quoted,
    ) -> Option<(Interface, Rewrite, Rewrite)> {
        let flow = self.flows.get(flow).filter(|flow| !flow.is_denied())?;
        let [first, second] = &flow.legs;
        let (here, there) = if leg == 0 { (first, second) } else { (second, first) };
        // The quoted packet as it was before this node rewrote it.
        let sent = there.key.flow;
        let inner = Rewrite::between(&quoted.key, &sent).ok()?;
        // An error by a router on the way keeps that router's address.
        let is_by_receiver = headers.key.source == here.key.flow.source;
        let source = if is_by_receiver { sent.destination } else { headers.key.source };
        let translated = FlowKey { source, destination: sent.source, ..headers.key };
        let outer = Rewrite::between(&headers.key, &translated).ok()?;
        Some((there.key.port, outer, inner))
    }
}
