//! What agents saw that nobody should have done.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use isthmus_proto::v1;

const KEPT: usize = 256;

/// The latest security events.
#[derive(Debug, Default)]
pub(crate) struct Events {
    recent: Mutex<VecDeque<v1::SecurityEvent>>,
}

impl Events {
    pub(crate) fn push(&self, event: v1::SecurityEvent) {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
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
        if recent.len() == KEPT {
            recent.pop_front();
        }
        recent.push_back(event);
    }

    pub(crate) fn all(&self) -> Vec<v1::SecurityEvent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
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
}
