//! Waiting for conditions.

use std::time::{Duration, Instant};

const STEP: Duration = Duration::from_millis(20);

/// Polls until the condition holds.
///
/// # Panics
///
/// When it doesn't within the time; the message says what was waited for.
#[track_caller]
pub fn wait_for(what: &str, within: Duration, mut condition: impl FnMut() -> bool) {
    wait_for_value(what, within, || condition().then_some(()));
}

/// Polls until there is a value.
///
/// # Panics
///
/// When there is none within the time; the message says what was waited for.
#[track_caller]
pub fn wait_for_value<T>(what: &str, within: Duration, mut poll: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + within;
    loop {
        if let Some(value) = poll() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited {within:?} in vain: {what}");
        std::thread::park_timeout(STEP);
    }
}
