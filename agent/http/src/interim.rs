//! Interim answers (`1xx`), which an application says before its answer: from who reads them to who tells them the caller.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

/// Interim answers that wait for the caller, of one request.
const MAX_INTERIM_BYTES: usize = 64 * 1024;

/// Those of one request that the caller hasn't been told.
#[derive(Debug, Default)]
pub struct Interim {
    waiting: Mutex<Vec<u8>>,
    is_there: AtomicBool,
}

impl Interim {
    /// The application has something to say before its answer.
    pub fn say(&self, interim: &[u8]) {
        let mut waiting = self.waiting.lock();
        if waiting.len() + interim.len() <= MAX_INTERIM_BYTES {
            waiting.extend_from_slice(interim);
            self.is_there.store(true, Ordering::Relaxed);
        }
    }

    /// Takes what it had to say.
    pub fn hear(&self, told: &mut Vec<u8>) {
        if self.is_there.swap(false, Ordering::Relaxed) {
            let mut waiting = self.waiting.lock();
            told.append(&mut waiting);
        }
    }
}
