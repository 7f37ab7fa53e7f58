//! Notices to systemd (`sd_notify(3)`); elsewhere they go nowhere.

use sd_notify::NotifyState;

use crate::status::Shared;

/// Tells systemd that the agent is up: its data plane, or its socket where there is none yet.
pub(crate) fn ready() {
    notify(&[NotifyState::Ready]);
}

/// Tells systemd in one line how the agent stands.
pub(crate) fn tell_status(shared: &Shared) {
    notify(&[NotifyState::Status(&shared.status().summary())]);
}

/// Tells systemd that the agent is about to end.
pub(crate) fn stopping() {
    notify(&[NotifyState::Stopping]);
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "couldn't notify systemd");
    }
}
