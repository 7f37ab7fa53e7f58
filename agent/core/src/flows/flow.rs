//! A flow: its two legs, who is at its ends, what was decided, and how far it is.

use std::time::{Duration, Instant};

use isthmus_model::{Layer4, Place};
use isthmus_packet::{Address, FlowKey, Rewrite, TcpFlags, Transport, protocol};
use isthmus_policy::Verdict;

use super::InsertError;
use crate::types::Interface;

/// Key of a leg.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct LegKey {
    pub(crate) flow: FlowKey,
    pub(crate) port: Interface,
}

/// One direction of a flow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Leg {
    pub(crate) key: LegKey,
    pub(crate) rewrite: Rewrite,
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
    /// The last acknowledgement number of a TCP flow: what this side expects next, so that it can
    /// be sent a RST that it believes.
    pub(crate) acknowledged: Option<u32>,
    has_finished: bool,
}

/// One end of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct End {
    pub(crate) place: Place,
    /// The place's overlay address; legs may show a virtual one instead.
    pub(crate) address: Address,
}

/// A flow before it is inserted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewFlow {
    pub(crate) from: End,
    pub(crate) to: End,
    pub(crate) layer4: Layer4,
    pub(crate) verdict: Verdict,
    pub(crate) ingress: Interface,
    pub(crate) egress: Interface,
    /// As the originator's packets come in.
    pub(crate) original: FlowKey,
    /// As they leave.
    pub(crate) translated: FlowKey,
}

/// A flow.
#[derive(Clone, Debug)]
pub(crate) struct Flow {
    pub(crate) legs: [Leg; 2],
    pub(crate) from: End,
    pub(crate) to: End,
    pub(crate) layer4: Layer4,
    pub(crate) verdict: Verdict,
    /// Epoch of the snapshot that it was judged under.
    pub(crate) epoch: u32,
    /// Epoch under which its owner was looked up, and the time.
    pub(crate) owner_epoch: u32,
    pub(crate) owner_asked: Instant,
    /// Result of [`Owners::changes`](crate::Owners::changes) before its owner was looked up.
    pub(crate) owner_changes: u32,
    pub(crate) state: FlowState,
    pub(crate) created: Instant,
    pub(crate) last_seen: Instant,
}

/// Phase of a flow, which decides its timeout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FlowState {
    /// Refused; remembered so that the policy needn't be asked for each retry.
    Denied,
    /// One side has spoken.
    Opening,
    /// Both sides have.
    Established,
    /// One side has said that it is done.
    HalfClosed,
    /// Both have, or the connection was reset.
    Closing,
}

/// Packet and byte counts.
#[derive(Clone, Copy)]
pub(crate) struct Load {
    pub(crate) packets: usize,
    pub(crate) bytes: usize,
}

impl Flow {
    pub(super) fn new(new: &NewFlow, epoch: u32, now: Instant) -> Result<Self, InsertError> {
        let back = (new.translated.reversed(), new.original.reversed());
        let forward = Rewrite::between(&new.original, &new.translated);
        let backward = Rewrite::between(&back.0, &back.1);
        let (Ok(forward), Ok(backward)) = (forward, backward) else {
            return Err(InsertError::Rewrite);
        };
        let leg = |flow, port, rewrite| Leg {
            key: LegKey { flow, port },
            rewrite,
            packets: 0,
            bytes: 0,
            acknowledged: None,
            has_finished: false,
        };
        let is_denied = new.verdict.denies();
        Ok(Self {
            legs: [leg(new.original, new.ingress, forward), leg(back.0, new.egress, backward)],
            from: new.from,
            to: new.to,
            layer4: new.layer4,
            verdict: new.verdict,
            epoch,
            owner_epoch: epoch,
            owner_asked: now,
            owner_changes: 0,
            state: if is_denied { FlowState::Denied } else { FlowState::Opening },
            created: now,
            last_seen: now,
        })
    }

    pub(crate) fn is_denied(&self) -> bool {
        self.state == FlowState::Denied
    }

    pub(super) fn is_half_open(&self) -> bool {
        matches!(self.state, FlowState::Denied | FlowState::Opening)
    }

    pub(crate) fn is_tcp(&self) -> bool {
        self.legs[0].key.flow.protocol == protocol::TCP
    }

    /// The key of the originator's packets after their rewrite.
    pub(crate) fn translated(&self) -> FlowKey {
        self.legs[1].key.flow.reversed()
    }

    /// Idle timeout of the flow. TCP follows RFC 5382, UDP RFC 4787.
    pub(super) fn timeout(&self) -> Duration {
        let seconds = match (self.state, self.legs[0].key.flow.protocol) {
            (FlowState::Denied, _) => 10,
            (FlowState::Closing, _) => 30,
            (FlowState::Opening | FlowState::HalfClosed, protocol::TCP) => 240,
            (FlowState::Established, protocol::TCP) => 7440,
            (FlowState::Established, protocol::UDP | protocol::UDP_LITE) => 180,
            (_, protocol::ICMP | protocol::ICMPV6) => 30,
            (FlowState::Established, _) => 600,
            (FlowState::Opening | FlowState::HalfClosed, _) => 30,
        };
        Duration::from_secs(seconds)
    }

    /// Counts a packet and follows TCP as far as timeouts care.
    pub(crate) fn note(
        &mut self,
        leg: u8,
        transport: Transport,
        acknowledged: Option<u32>,
        load: Load,
        now: Instant,
    ) {
        self.last_seen = now;
        let [here, there] = self.leg_pair(leg);
        here.packets += load.packets as u64;
        here.bytes += load.bytes as u64;
        let both_spoke = here.packets > 0 && there.packets > 0;
        let Transport::Tcp { flags } = transport else {
            if self.state == FlowState::Opening && both_spoke {
                self.state = FlowState::Established;
            }
            return;
        };
        here.acknowledged = acknowledged.or(here.acknowledged);
        here.has_finished |= flags.fin();
        let finished = (here.has_finished, there.has_finished);
        self.state = tcp_state(self.state, flags, leg, both_spoke, finished);
    }

    fn leg_pair(&mut self, leg: u8) -> [&mut Leg; 2] {
        let [first, second] = &mut self.legs;
        if leg == 0 { [first, second] } else { [second, first] }
    }
}

/// | from | event | to |
/// | --- | --- | --- |
/// | opening | the originator acks after an answer | established |
/// | opening, established | FIN by one side | half-closed |
/// | any but denied | FIN by both sides, or RST | closing |
fn tcp_state(
    state: FlowState,
    flags: TcpFlags,
    leg: u8,
    both_spoke: bool,
    finished: (bool, bool),
) -> FlowState {
    match state {
        FlowState::Denied | FlowState::Closing => state,
        _ if flags.rst() || finished == (true, true) => FlowState::Closing,
        _ if finished.0 || finished.1 => FlowState::HalfClosed,
        FlowState::Opening if both_spoke && leg == 0 && flags.ack() => FlowState::Established,
        // Adopted in mid-flow: the answer to what the originator sent.
        FlowState::Opening if both_spoke && leg == 1 && !flags.syn() => FlowState::Established,
        FlowState::Opening | FlowState::Established | FlowState::HalfClosed => state,
    }
}
