//! Interim answers (`1xx`): passed from the reader of an application's answer to the writer of the caller's.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

/// Interim answers that wait for the caller, of one request.
const MAX_INTERIM_BYTES: usize = 64 * 1024;

/// Interim answers of one request that the caller has yet to get.
#[derive(Debug, Default)]
pub struct Interim {
    waiting: Mutex<Vec<u8>>,
    is_there: AtomicBool,
}

impl Interim {
    /// Adds one that the application has sent.
    pub fn push(&self, interim: &[u8]) {
        let mut waiting = self.waiting.lock();
        if waiting.len() + interim.len() <= MAX_INTERIM_BYTES {
            waiting.extend_from_slice(interim);
            self.is_there.store(true, Ordering::Relaxed);
        }
    }

    /// Moves those that wait to `out`.
    pub fn take(&self, out: &mut Vec<u8>) {
        if self.is_there.swap(false, Ordering::Relaxed) {
            let mut waiting = self.waiting.lock();
            out.append(&mut waiting);
        }
    }
}
