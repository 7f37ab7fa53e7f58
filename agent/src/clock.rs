//! The controller's clock, as far as this host knows it.
//!
//! Certificates live by the controller's time, and a host's own clock may be days off and set at any
//! moment. So their renewal goes by what the controller said its time was, and what has passed since.

use std::time::{Duration, SystemTime};

use isthmus_model::{Code, Problem};
use tokio::time::Instant;

/// The code of the problem that this host's clock and the controller's differ.
pub(crate) const SKEWED: Code = Code::ClockSkew;
/// A clock that differs by more is said to be wrong.
const SKEW: Duration = Duration::from_secs(30);

/// Controller's time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    said: SystemTime,
    at: Instant,
}

impl Clock {
    /// A controller says its time, in milliseconds since the epoch.
    #[must_use]
    pub(crate) fn told(milliseconds: i64) -> Self {
        let since = Duration::from_millis(u64::try_from(milliseconds).unwrap_or(0));
        // A time that can't be is no time.
        let said = SystemTime::UNIX_EPOCH.checked_add(since).unwrap_or_else(SystemTime::now);
        Self { said, at: Instant::now() }
    }

    /// Before a controller has said anything its clock is believed to be ours.
    #[must_use]
    pub(crate) fn ours() -> Self {
        Self { said: SystemTime::now(), at: Instant::now() }
    }

    /// In milliseconds since the epoch.
    #[must_use]
    pub(crate) fn milliseconds(&self) -> i64 {
        let since = self.now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
    }

    /// The controller's time now.
    #[must_use]
    pub(crate) fn now(&self) -> SystemTime {
        self.said.checked_add(self.at.elapsed()).unwrap_or(self.said)
    }

    /// What its clock showed when ours showed `ours`, if neither was set since.
    #[must_use]
    pub(crate) fn when(&self, ours: SystemTime) -> SystemTime {
        let now = self.now();
        match SystemTime::now().duration_since(ours) {
            Ok(ago) => now.checked_sub(ago).unwrap_or(now),
            Err(ahead) => now.checked_add(ahead.duration()).unwrap_or(now),
        }
    }

    /// That this host's clock differs from the controller's, if it does.
    #[must_use]
    pub(crate) fn problem(&self) -> Option<Problem> {
        let (ours, theirs) = (SystemTime::now(), self.now());
        let (by, how) = match ours.duration_since(theirs) {
            Ok(ahead) => (ahead, "ahead of"),
            Err(behind) => (behind.duration(), "behind"),
        };
        let text = format!("this host's clock is {} {how} the controller's", words(by));
        let remedy =
            "`timedatectl set-ntp true` on whichever of the two is wrong (`date -u` on both)";
        (by >= SKEW).then(|| Problem::new(SKEWED, text, remedy))
    }
}

/// "2 days", "45 s"
#[must_use]
pub(crate) fn words(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} minutes", seconds / 60),
        7_200..172_800 => format!("{} hours", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn told(at: SystemTime) -> Clock {
        let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap();
        Clock::told(since.as_millis().try_into().unwrap())
    }

    #[test]
    fn a_clock_that_differs_is_a_problem_in_words() {
        assert_eq!(told(SystemTime::now()).problem(), None);
        let ahead = told(SystemTime::now() - 2 * DAY).problem().unwrap();
        assert!(ahead.text.contains("2 days ahead of"), "{ahead:?}");
        let behind = told(SystemTime::now() + 3 * DAY).problem().unwrap();
        assert!(behind.text.contains("days behind"), "{behind:?}");
    }

    #[test]
    fn a_moment_is_the_same_by_both_clocks() {
        let clock = told(SystemTime::now() - 2 * DAY);
        let then = clock.when(SystemTime::now() - DAY);
        let ago = clock.now().duration_since(then).unwrap();
        assert!(ago.abs_diff(DAY) < Duration::from_secs(5), "{ago:?}");
        let nonsense = Clock::told(i64::MIN);
        assert_eq!(nonsense.now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs(), 0);
        assert!(Clock::told(i64::MAX).problem().is_some());
    }
}
