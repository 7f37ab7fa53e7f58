//! File descriptors from systemd: those that an earlier life of this process gave it to keep.

use std::os::fd::{FromRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

static TAKEN: AtomicBool = AtomicBool::new(false);

/// Takes all descriptors that systemd has handed to this process, with their names (`sd_listen_fds(3)`).
/// Empty where there are none, and on every call but the first.
#[must_use]
pub fn take() -> Vec<(String, OwnedFd)> {
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Vec::new();
    }
    let Ok(descriptors) = sd_notify::listen_fds_with_names() else { return Vec::new() };
    // SAFETY: systemd opened these for this very process (it names the process in $LISTEN_PID), and
    // nobody else owns them: they are taken once.
    descriptors.map(|(fd, name)| (name, unsafe { OwnedFd::from_raw_fd(fd) })).collect()
}
