//! Security events that agents have reported.

use std::collections::VecDeque;

use isthmus_proto::v1;
use parking_lot::Mutex;

const KEPT: usize = 256;
/// Of one reporter: nobody's word pushes all others' out.
const KEPT_OF_ONE: usize = 32;

/// The latest security events.
#[derive(Debug, Default)]
pub(crate) struct Events {
    recent: Mutex<VecDeque<v1::SecurityEvent>>,
}

impl Events {
    pub(crate) fn push(&self, event: v1::SecurityEvent) {
        let mut recent = self.recent.lock();
        // The same again only counts up.
        let same = recent.iter_mut().rev().find(|old| {
            old.reported_by == event.reported_by
                && old.from_host == event.from_host
                && old.claimed_source == event.claimed_source
        });
        if let Some(same) = same {
            same.packets = same.packets.saturating_add(event.packets);
            same.at = event.at;
            return;
        }
        let own = |old: &&v1::SecurityEvent| old.reported_by == event.reported_by;
        let goes = if recent.iter().filter(own).count() >= KEPT_OF_ONE {
            recent.iter().position(|old| own(&old))
        } else {
            (recent.len() >= KEPT).then_some(0)
        };
        if let Some(goes) = goes {
            recent.remove(goes);
        }
        recent.push_back(event);
    }

    pub(crate) fn all(&self) -> Vec<v1::SecurityEvent> {
        self.recent.lock().iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_is_bounded_and_counts_repetitions() {
        let events = Events::default();
        for n in 0..1_000 {
            let event = v1::SecurityEvent {
                reported_by: (n % 100).to_string(),
                claimed_source: n.to_string(),
                packets: 1,
                ..Default::default()
            };
            events.push(event.clone());
            events.push(event);
        }
        let all = events.all();
        assert_eq!(all.len(), KEPT);
        assert!(all.iter().all(|event| event.packets == 2));
    }

    #[test]
    fn one_reporter_pushes_nobody_elses_events_out() {
        let events = Events::default();
        let event = |reporter: &str, n: usize| v1::SecurityEvent {
            reported_by: reporter.to_owned(),
            claimed_source: n.to_string(),
            packets: 1,
            ..Default::default()
        };
        events.push(event("honest", 0));
        (0..1_000).for_each(|n| events.push(event("noisy", n)));
        let all = events.all();
        assert_eq!(all.len(), 1 + KEPT_OF_ONE);
        assert!(all.iter().any(|event| event.reported_by == "honest"));
        assert!(all.iter().any(|event| event.claimed_source == "999"), "the latest are kept");
    }
}
