//! The time as answers tell it, written once a second.

use std::cell::RefCell;
use std::time::{SystemTime, UNIX_EPOCH};

struct Known {
    second: u64,
    text: String,
}

thread_local! {
    static KNOWN: RefCell<Known> =
        const { RefCell::new(Known { second: 0, text: String::new() }) };
}

/// Calls with the time as a `Date` field has it.
pub(super) fn with_now(write: impl FnOnce(&[u8])) {
    let now = SystemTime::now();
    let second = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    KNOWN.with_borrow_mut(|known| {
        if known.second != second || known.text.is_empty() {
            *known = Known { second, text: httpdate::fmt_http_date(now) };
        }
        write(known.text.as_bytes());
    });
}
