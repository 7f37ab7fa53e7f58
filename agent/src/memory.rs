//! Gives memory back to the system: what a burst of connections, or a large revision, left free, and
//! what of the program only the start needed, or something else that is rare.

use std::time::Duration;

use isthmus_net::memory::{free_bytes, give_program_back, trim};
use tokio::task::spawn_blocking;
use tokio::time::sleep;

/// Between two looks. The first comes when the start is over.
const EVERY: Duration = Duration::from_secs(10);
/// So many looks.
const A_MINUTE: u64 = 6;
/// Less than this isn't worth the work.
const WORTH: usize = 1024 * 1024;

/// Free heap that has already been returned to the kernel.
#[derive(Debug, Default)]
struct Tidy {
    returned: usize,
}

/// Looks after it for as long as the agent runs.
pub(crate) async fn keep_tidy() {
    let mut tidy = Tidy::default();
    for look in 0.. {
        sleep(EVERY).await;
        let is_worth_it = tidy.is_worth_it(free_bytes());
        // Should it fail there is another look.
        if is_worth_it {
            let _ = spawn_blocking(trim).await;
            tidy.returned = free_bytes();
        }
        // It costs some hundred page faults, in which what is used comes again.
        if is_worth_it || look % A_MINUTE == 0 {
            let _ = spawn_blocking(give_program_back).await;
        }
    }
}

impl Tidy {
    /// What is free stays free in the allocator's books once the system has it back. Only what has been
    /// used since can have come anew.
    fn is_worth_it(&mut self, free: usize) -> bool {
        self.returned = self.returned.min(free);
        free > self.returned + WORTH
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_given_back_isnt_given_again_until_it_has_been_used() {
        const MB: usize = 1 << 20;
        let mut tidy = Tidy::default();
        assert!(!tidy.is_worth_it(MB));
        assert!(tidy.is_worth_it(50 * MB));
        tidy.returned = 50 * MB;
        assert!(!tidy.is_worth_it(50 * MB));
        assert!(!tidy.is_worth_it(20 * MB), "30 MB are in use again");
        assert!(tidy.is_worth_it(50 * MB), "and free now");
    }
}
