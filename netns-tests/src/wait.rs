//! Waiting for conditions.

use std::time::{Duration, Instant};

/// Most conditions ask a program, which takes a processor longer than the first pause.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// Polls until the condition holds, ever less often.
///
/// # Panics
///
/// When it doesn't within the time; the message says what was waited for.
#[track_caller]
pub fn wait_for(what: &str, within: Duration, mut condition: impl FnMut() -> bool) {
    wait_for_value(what, within, || condition().then_some(()));
}

/// Polls until there is a value, ever less often.
///
/// # Panics
///
/// When there is none within the time; the message says what was waited for.
#[track_caller]
pub fn wait_for_value<T>(what: &str, within: Duration, mut poll: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + within;
    let mut pause = FIRST_PAUSE;
    loop {
        if let Some(value) = poll() {
            return value;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        assert!(!left.is_zero(), "waited {within:?} in vain: {what}");
        std::thread::park_timeout(pause.min(left));
        pause = (pause * 3 / 2).min(LONGEST_PAUSE);
    }
}
