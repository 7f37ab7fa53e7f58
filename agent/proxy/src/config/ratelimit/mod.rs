//! Rate limits: token buckets per limit, by caller or header.
//!
//! ```text
//!  RateLimits, one of a proxy ── follow(snapshot) ─▶ Limits of a view: by service
//!        states, which outlive revisions ◀──────────────┘ admit: no lock, no allocation
//! ```
//!
//! Limits count where requests arrive, so that nobody gets around them: at the server's side, for a gateway at the
//! gateway, for an external service at its `via` hosts. They come after policy. A request that one limit refuses takes
//! no token of another. The 429 names the limit to the caller's proxy ([`RATE_LIMITED`]), which then doesn't count it
//! against the workload.
//!
//! A limit for the whole mesh has a share here, which the controller assigns; without news from it the last share stays.
//! A service without a limit costs a request one look at a map.

mod bucket;
mod keyed;
mod matching;
mod state;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http::request::Parts;
use isthmus_model::ratelimit::{LimitScope, RateLimit};
use isthmus_model::{Name, Origin, ServiceId, Snapshot};
use parking_lot::{Mutex, MutexGuard};

use self::state::State;
use crate::config::parties::Parties;

/// All limits of a proxy.
#[derive(Debug)]
pub struct RateLimits {
    start: Instant,
    known: Mutex<BTreeMap<Name, Arc<Limiter>>>,
    /// The newest word of the controller's, on this stream.
    round: AtomicU64,
    /// When demand was told last.
    told: Mutex<Instant>,
}

/// The limits of one view, by service.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    start: Instant,
    of: Arc<HashMap<ServiceId, Vec<Arc<Limiter>>>>,
}

/// A limit as one revision has it.
#[derive(Debug)]
struct Limiter {
    limit: RateLimit,
    state: Arc<State>,
}

/// A request that comes too soon.
#[derive(Debug)]
pub(crate) struct TooMany {
    pub(crate) limit: String,
    pub(crate) origin: Origin,
    pub(crate) wait: Duration,
}

/// A limit and what it did, to be shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitView {
    /// Its value.
    pub limit: RateLimit,
    /// Rate that it allows here, in thousandths per second.
    pub share: u64,
    /// Requests that passed.
    pub passed: u64,
    /// Requests that were refused.
    pub refused: u64,
    /// Whose, as far as they could be remembered.
    pub refused_by: Vec<(String, u64)>,
}

/// Demand on a limit that the whole mesh shares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Demand {
    /// The limit's name.
    pub limit: String,
    /// Thousandths of a request per second, refused ones among them.
    pub demand: u64,
    /// The share that is in force here, in billionths.
    pub share: u32,
    /// By which word of the controller's; 0 for none.
    pub round: u64,
}

impl RateLimits {
    /// The limits of a snapshot. Those whose words stay the same go on with their buckets.
    pub(crate) fn follow(&self, snapshot: &Snapshot) -> Limits {
        let mut known = self.known();
        let mut before = std::mem::take(&mut *known);
        let mut of: HashMap<ServiceId, Vec<Arc<Limiter>>> = HashMap::new();
        let ids: HashMap<&Name, ServiceId> =
            snapshot.services.iter().map(|(id, service)| (&service.name, *id)).collect();
        for limit in &snapshot.limits {
            let state = state::after(before.remove(&limit.name), limit);
            let limiter = Arc::new(Limiter { limit: limit.clone(), state });
            known.insert(limit.name.clone(), Arc::clone(&limiter));
            if let Some(service) = ids.get(&limit.service) {
                of.entry(*service).or_default().push(limiter);
            }
        }
        Limits { start: self.start, of: Arc::new(of) }
    }

    /// The limits' state, to be shown.
    #[must_use]
    pub fn views(&self) -> Vec<LimitView> {
        self.known().values().map(|limiter| limiter.view()).collect()
    }

    /// Demand on the shared limits since the last call.
    #[must_use]
    pub fn take_demand(&self) -> Vec<Demand> {
        let known = self.known();
        let round = self.round.load(Ordering::Relaxed);
        let now = Instant::now();
        let before = std::mem::replace(&mut *self.told.lock(), now);
        let seconds = now.saturating_duration_since(before).as_secs_f64().max(0.001);
        let shared = known.values().filter(|limiter| limiter.limit.scope == LimitScope::Mesh);
        let demand = |limiter: &Arc<Limiter>| Demand {
            limit: limiter.limit.name.to_string(),
            demand: (limiter.state.take_asked() as f64 * 1000.0 / seconds) as u64,
            share: limiter.state.share(),
            round,
        };
        shared.map(demand).collect()
    }

    /// The controller deals out shares, in billionths.
    pub fn handle_shares<'a>(&self, round: u64, shares: impl Iterator<Item = (&'a str, u32)>) {
        let known = self.known();
        for (limit, share) in shares {
            if let Some(limiter) = known.get(limit) {
                limiter.state.work_by(share);
            }
        }
        self.round.store(round, Ordering::Relaxed);
    }

    /// Rounds are counted anew on each stream to a controller.
    pub fn handle_connected(&self) {
        self.round.store(0, Ordering::Relaxed);
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<Name, Arc<Limiter>>> {
        self.known.lock()
    }
}

impl Default for RateLimits {
    fn default() -> Self {
        let start = Instant::now();
        Self {
            start,
            known: Mutex::default(),
            round: AtomicU64::default(),
            told: Mutex::new(start),
        }
    }
}

impl Limits {
    /// Lets a request pass to a service, or says when one may. What one limit refuses takes nothing
    /// of the others.
    pub(crate) fn admit(&self, parties: &Parties, head: &Parts) -> Result<(), TooMany> {
        let Some(limiters) = self.of.get(&parties.service) else { return Ok(()) };
        let now = nanos(self.start.elapsed());
        let fitting = || limiters.iter().filter(|limiter| limiter.is_about(head));
        for (index, limiter) in fitting().enumerate() {
            if let Err(wait) = limiter.state.take(&limiter.limit, parties, head, now) {
                let earlier = fitting().take(index);
                earlier.for_each(|it| it.state.give_back(&it.limit, parties, head, now));
                return Err(limiter.refuse(parties, wait));
            }
        }
        fitting().for_each(|limiter| limiter.state.count_passed());
        Ok(())
    }

    /// Gives back what a request took that went no further.
    pub(crate) fn give_back(&self, parties: &Parties, head: &Parts) {
        let Some(limiters) = self.of.get(&parties.service) else { return };
        let now = nanos(self.start.elapsed());
        let fitting = limiters.iter().filter(|limiter| limiter.is_about(head));
        fitting.for_each(|it| it.state.give_back(&it.limit, parties, head, now));
    }
}

/// For meshes without any.
impl Default for Limits {
    fn default() -> Self {
        Self { start: Instant::now(), of: Arc::default() }
    }
}

impl Limiter {
    fn is_about(&self, head: &Parts) -> bool {
        let matches = &self.limit.matches;
        matches.is_empty() || matches.iter().any(|wanted| matching::fits(wanted, head))
    }

    fn refuse(&self, parties: &Parties, wait: u64) -> TooMany {
        self.state.count_refused(&parties.from);
        TooMany {
            limit: self.limit.name.to_string(),
            origin: self.limit.origin.clone(),
            wait: Duration::from_nanos(wait),
        }
    }

    fn view(&self) -> LimitView {
        let (passed, refused, refused_by) = self.state.counts();
        let rate = self.state.rate(&self.limit);
        LimitView { limit: self.limit.clone(), share: rate, passed, refused, refused_by }
    }
}

impl TooMany {
    /// After which a request may pass, for `Retry-After`.
    pub(crate) fn seconds(&self) -> u64 {
        let whole = self.wait.as_secs();
        whole + u64::from(self.wait.subsec_nanos() > 0 || whole == 0)
    }

    /// For gRPC, which has a header in milliseconds.
    pub(crate) fn millis(&self) -> u64 {
        u64::try_from(self.wait.as_micros().div_ceil(1000)).unwrap_or(u64::MAX)
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_as_long_as_told_waits_long_enough_and_not_a_second_more() {
        let told = |wait| {
            let origin = Origin { file: "mesh.toml".into(), line: 1 };
            let refused = TooMany { limit: String::new(), origin, wait };
            (refused.seconds(), refused.millis())
        };
        assert_eq!(told(Duration::from_micros(1)), (1, 1));
        assert_eq!(told(Duration::from_millis(1000)), (1, 1000));
        assert_eq!(told(Duration::from_micros(1_000_001)), (2, 1001));
    }
}
