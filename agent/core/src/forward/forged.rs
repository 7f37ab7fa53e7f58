//! Forged sources, reported without letting the forger flood the report.

use std::time::{Duration, Instant};

use hashbrown::HashMap;
use isthmus_packet::Address;

use crate::types::{Event, PeerName, Telemetry};

/// At most one event per peer and address in this time.
const PERIOD: Duration = Duration::from_secs(10);
/// Pairs of peer and address that are remembered; more are only counted.
const CAPACITY: usize = 256;

/// Collects forged packets into events.
#[derive(Default)]
pub(crate) struct ForgedLog {
    unreported: HashMap<(PeerName, Address), u64>,
    next_report: Option<Instant>,
}

impl ForgedLog {
    /// Notes a packet.
    pub(crate) fn note(
        &mut self,
        peer: PeerName,
        source: Address,
        telemetry: &mut Telemetry,
        now: Instant,
    ) {
        if let Some(packets) = self.unreported.get_mut(&(peer, source)) {
            *packets += 1;
            return;
        }
        if self.unreported.len() >= CAPACITY {
            return;
        }
        self.unreported.insert((peer, source), 0);
        self.next_report.get_or_insert(now + PERIOD);
        telemetry.tell(Event::Forged { from: peer, source: source.ip(), packets: 1 });
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.next_report
    }

    /// Reports what has come since, and forgets who has stopped.
    pub(crate) fn handle_timeout(&mut self, telemetry: &mut Telemetry, now: Instant) {
        if self.next_report.is_none_or(|due| now < due) {
            return;
        }
        self.unreported.retain(|(peer, source), packets| {
            let goes_on = *packets > 0;
            if goes_on {
                let source = source.ip();
                telemetry.tell(Event::Forged { from: *peer, source, packets: *packets });
                *packets = 0;
            }
            goes_on
        });
        self.next_report = (!self.unreported.is_empty()).then_some(now + PERIOD);
    }
}
