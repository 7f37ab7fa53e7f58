//! A token bucket per source, before anything costly is done about a handshake.
//!
//! boringtun's limiter is global and its cookies leave the port out: one source that floods would
//! put everybody under load. The table is of fixed size: sources that share a slot share its tokens,
//! which an attacker can't aim at without the seed.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::types::random::mix;

const SLOTS: usize = 4096;
/// Handshakes at once: hosts behind one NAT that come back together.
const BURST: u32 = 64;
/// One more each.
const REFILL: Duration = Duration::from_millis(30);

/// Admits handshakes by their source.
pub(crate) struct Admission {
    seed: u64,
    started: Instant,
    slots: Box<[Bucket]>,
}

#[derive(Clone, Copy)]
struct Bucket {
    tokens: u32,
    /// In steps of [`REFILL`] since the start.
    refilled: u32,
}

impl Admission {
    pub(crate) fn new(seed: u64, now: Instant) -> Self {
        let full = Bucket { tokens: BURST, refilled: 0 };
        Self { seed, started: now, slots: vec![full; SLOTS].into() }
    }

    /// Takes a token, if one is left.
    pub(crate) fn admit(&mut self, source: IpAddr, now: Instant) -> bool {
        let step = now.saturating_duration_since(self.started).as_millis() / REFILL.as_millis();
        let step = u32::try_from(step).unwrap_or(u32::MAX);
        let at = mix([self.seed, network(source)]) as usize % SLOTS;
        let Some(bucket) = self.slots.get_mut(at) else { return false };
        let earned = step.saturating_sub(bucket.refilled);
        bucket.tokens = bucket.tokens.saturating_add(earned).min(BURST);
        bucket.refilled = step;
        let admitted = bucket.tokens > 0;
        bucket.tokens = bucket.tokens.saturating_sub(1);
        admitted
    }
}

/// IPv6 sources by their /64: one machine has them all.
fn network(source: IpAddr) -> u64 {
    match source {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => (u128::from(address) >> 64) as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flooding_source_is_held_back_and_others_are_not() {
        let now = Instant::now();
        let mut admission = Admission::new(7, now);
        let flooder: IpAddr = "192.0.2.1".parse().unwrap();
        let admitted = (0..1000).filter(|_| admission.admit(flooder, now)).count();
        assert_eq!(admitted, BURST as usize);
        assert!(admission.admit("192.0.2.2".parse().unwrap(), now));
        let later = now + REFILL * 10;
        let admitted = (0..1000).filter(|_| admission.admit(flooder, later)).count();
        assert_eq!(admitted, 10);
    }
}
