//! The overlay's device while no agent runs: systemd keeps its queues (`FileDescriptorStoreMax=`) and hands
//! them to the next agent, so addresses, routes and the host's resolver stay as they are. Packets that
//! were sent meanwhile are dropped, and sent again by who wants an answer: nobody has noted who sent them.
//!
//! The device goes when the host leaves the mesh, and when the unit is stopped for good: systemd then closes
//! what it keeps. Without systemd it goes with the process.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use isthmus_net::handed_over;
use isthmus_net::tun::{Offloads, Tun, TunError};
use sd_notify::NotifyState;
use tokio::process::Command;
use tokio::time::timeout;

use crate::settings::Settings;

/// For systemd's answer; an agent that is stopped has no time to lose.
const PATIENCE: Duration = Duration::from_secs(1);

/// The names under which queues are kept say what was agreed with the kernel, which nobody can ask later.
const NAMES: [(&str, Offloads); 3] = [
    ("tun", Offloads { tcp: false, udp: false }),
    ("tun-tcp", Offloads { tcp: true, udp: false }),
    ("tun-tcp-udp", Offloads { tcp: true, udp: true }),
];

/// The device that an earlier agent made, where systemd has kept it and it is as the settings want it.
pub(crate) fn adopt(settings: &Settings) -> Option<Tun> {
    let (queues, offloads) = take()?;
    let name = &settings.device;
    let adopted = if queues.len() == usize::from(settings.lanes()) {
        Tun::adopt(name, queues, offloads)
    } else {
        drop(queues);
        Err(TunError::NotKept(name.clone()))
    };
    if let Err(error) = &adopted {
        tracing::info!(%error, "making a new one");
        forget();
    }
    adopted.ok()
}

/// Takes what systemd has handed over; of other names it is closed.
fn take() -> Option<(Vec<OwnedFd>, Offloads)> {
    let mut handed = handed_over::take();
    let known = |name: &str| NAMES.iter().find(|known| known.0 == name);
    let (name, offloads) = *handed.iter().find_map(|(name, _)| known(name))?;
    handed.retain(|handed| handed.0 == name);
    Some((handed.into_iter().map(|it| it.1).collect(), offloads))
}

/// Gives the device's queues to systemd.
pub(crate) fn keep(tun: &Tun) {
    let Some((name, _)) = NAMES.iter().find(|known| known.1 == tun.offloads()) else { return };
    let queues: Vec<BorrowedFd<'_>> = tun.queues().collect();
    let state = [NotifyState::FdStore, NotifyState::FdName(name)];
    if let Err(error) = sd_notify::notify_with_fds(&state, &queues) {
        tracing::debug!(%error, "systemd doesn't keep the overlay's device");
    }
}

/// Has systemd close what it keeps: the device goes once this process has dropped it, too.
pub(crate) fn forget() {
    drop(take());
    for (name, _) in NAMES {
        let state = [NotifyState::FdStoreRemove, NotifyState::FdName(name)];
        if let Err(error) = sd_notify::notify(&state) {
            tracing::debug!(%error, "systemd still keeps the overlay's device");
        }
    }
}

/// Whether this process is told to stop because systemd is about to start another.
pub(crate) async fn is_restart() -> bool {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return false;
    }
    let Some(unit) = own_unit() else { return false };
    let mut systemctl = Command::new("systemctl");
    systemctl.args(["list-jobs", "--no-legend", "--plain"]).kill_on_drop(true);
    match timeout(PATIENCE, systemctl.output()).await {
        Ok(Ok(output)) => has_restart(&String::from_utf8_lossy(&output.stdout), &unit),
        Ok(Err(_)) | Err(_) => false,
    }
}

fn own_unit() -> Option<String> {
    let table = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = table.lines().find_map(|line| line.strip_prefix("0::"))?;
    path.rsplit('/').next().filter(|it| it.ends_with(".service")).map(str::to_owned)
}

/// A job's columns: number, unit, type, state.
fn has_restart(jobs: &str, unit: &str) -> bool {
    jobs.lines().any(|job| {
        let mut columns = job.split_whitespace().skip(1);
        columns.next() == Some(unit) && columns.next() == Some("restart")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restart_is_told_from_a_stop() {
        let unit = "isthmus-agent.service";
        assert!(has_restart("817 isthmus-agent.service restart running\n", unit));
        assert!(has_restart(
            "3 a.service start waiting\n 9 isthmus-agent.service restart running",
            unit
        ));
        assert!(!has_restart("817 isthmus-agent.service stop running\n", unit));
        assert!(!has_restart("817 other.service restart running\n", unit));
        assert!(!has_restart("No jobs running.\n", unit));
    }
}
