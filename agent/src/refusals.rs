//! Whoever is refused again and again isn't listened to for a while.
//!
//! The kernel drops what it is told to before it gets into the device's queue, where it would cost
//! others their packets (see [`isthmus_net::senders`]). One packet of a refused flow comes through now
//! and then, so that its sender is told why nothing comes back, and a new revision takes effect.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use isthmus_net::senders::{Budget, Senders};

/// For how long packets of a refused flow don't come.
const SILENCE: Duration = Duration::from_millis(100);
/// Refused packets that an owner may send at once, and each second.
const BURST: f64 = 1000.0;
const PER_SECOND: f64 = 1000.0;
/// Owners whose budgets are known. Who is forgotten has a full one.
const OWNERS: usize = 4096;

/// Budgets of refused packets.
#[derive(Debug)]
pub(crate) struct Refusals {
    senders: Arc<Senders>,
    budgets: HashMap<Budget, Bucket>,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: f64,
    filled: Instant,
}

impl Refusals {
    pub(crate) fn new(senders: Arc<Senders>) -> Self {
        Self { senders, budgets: HashMap::new() }
    }

    /// A UDP packet was refused.
    pub(crate) fn datagram(&mut self, local: SocketAddr, remote: SocketAddr, now: Instant) {
        let Some(sender) = self.senders.sender(local, remote) else { return };
        let told = self.senders.refuse(local, remote, sender.cookie, SILENCE);
        log(told);
        self.charge(Budget::of(sender.uid, sender.cgroup_id), now);
    }

    /// A packet of another kind was refused, whose owner was found.
    pub(crate) fn charge(&mut self, owner: Budget, now: Instant) {
        if self.budgets.len() >= OWNERS && !self.budgets.contains_key(&owner) {
            self.budgets.clear();
        }
        let full = Bucket { tokens: BURST, filled: now };
        if !self.budgets.entry(owner).or_insert(full).take(now) {
            tracing::debug!(uid = owner.uid(), "refused too often: its new flows are dropped");
            log(self.senders.hold_back(owner, SILENCE));
        }
    }
}

impl Bucket {
    fn take(&mut self, now: Instant) -> bool {
        let earned = now.saturating_duration_since(self.filled).as_secs_f64() * PER_SECOND;
        self.tokens = (self.tokens + earned).min(BURST);
        self.filled = now;
        let has_some = self.tokens >= 1.0;
        if has_some {
            self.tokens -= 1.0;
        }
        has_some
    }
}

fn log(told: std::io::Result<()>) {
    if let Err(error) = told {
        tracing::debug!(%error, "couldn't have refused packets dropped");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_and_then_what_it_earns() {
        let now = Instant::now();
        let mut bucket = Bucket { tokens: BURST, filled: now };
        let taken = |bucket: &mut Bucket, now| (0..5000).filter(|_| bucket.take(now)).count();
        assert_eq!(taken(&mut bucket, now), 1000);
        assert_eq!(taken(&mut bucket, now + Duration::from_millis(100)), 100);
        assert_eq!(taken(&mut bucket, now + Duration::from_secs(60)), 1000);
    }
}
