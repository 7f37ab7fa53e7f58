//! Slows down whoever guesses join tokens, and whoever says too much.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// Failures that a source may have at once.
const BURST: u32 = 20;
/// Time until one of them is forgiven.
const FORGIVEN_AFTER: Duration = Duration::from_secs(3);
const MOST_SOURCES: usize = 4_096;

/// Failed attempts by source: an IPv4 address or an IPv6 /64.
#[derive(Debug, Default)]
pub(crate) struct Failures {
    sources: HashMap<IpAddr, Source>,
}

#[derive(Debug)]
struct Source {
    failures: u32,
    since: Instant,
}

impl Failures {
    /// Whether a source may try; if not, when it may again.
    pub(crate) fn check(&mut self, source: IpAddr, now: Instant) -> Result<(), Duration> {
        let Some(known) = self.sources.get_mut(&subject(source)) else { return Ok(()) };
        known.forgive(now);
        if known.failures < BURST {
            return Ok(());
        }
        Err(FORGIVEN_AFTER.saturating_sub(now.saturating_duration_since(known.since)))
    }

    pub(crate) fn record(&mut self, source: IpAddr, now: Instant) {
        if self.sources.len() >= MOST_SOURCES {
            self.sources.retain(|_, source| {
                source.forgive(now);
                source.failures > 0
            });
        }
        if self.sources.len() >= MOST_SOURCES {
            // So many guess at once that nobody can be told apart: start anew.
            self.sources.clear();
        }
        let known =
            self.sources.entry(subject(source)).or_insert(Source { failures: 0, since: now });
        known.forgive(now);
        known.failures = (known.failures + 1).min(BURST);
    }
}

impl Source {
    fn forgive(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.since);
        let forgiven = elapsed.as_millis() / FORGIVEN_AFTER.as_millis();
        let forgiven = u32::try_from(forgiven).unwrap_or(u32::MAX);
        if forgiven >= self.failures {
            *self = Self { failures: 0, since: now };
        } else {
            self.failures -= forgiven;
            self.since += FORGIVEN_AFTER * forgiven;
        }
    }
}

/// How often something may happen: a few times at once, then at its pace.
#[derive(Debug)]
pub(crate) struct Pace {
    burst: u32,
    every: Duration,
    paid_until: Option<Instant>,
}

impl Pace {
    pub(crate) const fn new(burst: u32, every: Duration) -> Self {
        Self { burst, every, paid_until: None }
    }

    /// Whether it may happen once more now.
    pub(crate) fn allows(&mut self, now: Instant) -> bool {
        let paid_until = self.paid_until.map_or(now, |until| until.max(now));
        if paid_until.saturating_duration_since(now) > self.every * (self.burst - 1) {
            return false;
        }
        self.paid_until = Some(paid_until + self.every);
        true
    }
}

/// Prefix that counts as one source.
pub(crate) fn subject(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_fails_too_often_has_to_wait_and_nobody_else() {
        let mut failures = Failures::default();
        let start = Instant::now();
        let (bad, good) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        for _ in 0..BURST {
            assert_eq!(failures.check(bad, start), Ok(()));
            failures.record(bad, start);
        }
        assert_eq!(failures.check(bad, start), Err(FORGIVEN_AFTER));
        assert_eq!(failures.check(good, start), Ok(()));
        assert_eq!(failures.check(bad, start + FORGIVEN_AFTER), Ok(()));
    }

    #[test]
    fn a_whole_64_is_one_source() {
        let mut failures = Failures::default();
        let now = Instant::now();
        for n in 0..BURST {
            failures.record(format!("2001:db8::{n:x}").parse().unwrap(), now);
        }
        assert!(failures.check("2001:db8::ffff".parse().unwrap(), now).is_err());
        assert!(failures.check("2001:db8:0:1::1".parse().unwrap(), now).is_ok());
    }

    #[test]
    fn a_pace_is_kept_after_a_burst() {
        let mut pace = Pace::new(3, Duration::from_secs(1));
        let start = Instant::now();
        let at = |tenths: u32| start + Duration::from_millis(100) * tenths;
        let allowed: Vec<u32> = (0..40).filter(|tenths| pace.allows(at(*tenths))).collect();
        assert_eq!(allowed, [0, 1, 2, 10, 20, 30]);
    }

    #[test]
    fn memory_stays_bounded() {
        let mut failures = Failures::default();
        let now = Instant::now();
        for n in 0..20_000_u32 {
            failures.record(std::net::Ipv4Addr::from(n).into(), now);
        }
        assert!(failures.sources.len() <= MOST_SOURCES);
    }
}
