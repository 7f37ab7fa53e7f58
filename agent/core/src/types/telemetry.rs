//! Telemetry: counters, and pending events.

use super::event::Events;
use super::{Counters, DropReason, Event};

/// Counters, and events that wait to be polled.
#[derive(Debug, Default)]
pub(crate) struct Telemetry {
    pub(crate) counters: Counters,
    events: Events,
}

impl Telemetry {
    /// Something that the shell should tell somebody about.
    pub(crate) fn tell(&mut self, event: Event) {
        if !self.events.push(event) {
            self.counters.events_lost += 1;
        }
    }

    /// A packet went no further.
    pub(crate) fn drop(&mut self, reason: DropReason) {
        self.counters.drop(reason);
    }

    pub(crate) fn poll(&mut self) -> Option<Event> {
        self.events.pop()
    }
}
