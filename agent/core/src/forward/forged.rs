//! Forged sources, reported without letting the forger flood the report.

use std::time::{Duration, Instant};

use hashbrown::HashMap;
use isthmus_packet::Address;

use crate::event::{Event, Events};
use crate::node::PeerName;

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
    /// Notes a packet; returns whether an event was lost.
    pub(crate) fn note(
        &mut self,
        peer: PeerName,
        source: Address,
        events: &mut Events,
        now: Instant,
    ) -> bool {
        if let Some(packets) = self.unreported.get_mut(&(peer, source)) {
            *packets += 1;
            return false;
        }
        if self.unreported.len() >= CAPACITY {
            return false;
        }
        self.unreported.insert((peer, source), 0);
        self.next_report.get_or_insert(now + PERIOD);
        !events.push(Event::Forged { from: peer, source: source.ip(), packets: 1 })
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.next_report
    }

    /// Reports what has come since, and forgets who has stopped. Returns how many events were lost.
    pub(crate) fn handle_timeout(&mut self, events: &mut Events, now: Instant) -> u64 {
        if self.next_report.is_none_or(|due| now < due) {
            return 0;
        }
        let mut lost = 0;
        self.unreported.retain(|(peer, source), packets| {
            let goes_on = *packets > 0;
            if goes_on {
                let source = source.ip();
                let event = Event::Forged { from: *peer, source, packets: *packets };
                lost += u64::from(!events.push(event));
                *packets = 0;
            }
            goes_on
        });
        self.next_report = (!self.unreported.is_empty()).then_some(now + PERIOD);
        lost
    }
}
