//! Checks of the kernel and of the agent's privileges.

use std::fs::{self, OpenOptions};
use std::io;
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use isthmus_model::{Code, Problem};
use isthmus_net::cgroup::Cgroups;
use isthmus_net::sock_diag::SocketDiag;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use tokio::time::timeout;

use super::Report;
use crate::app::no_cgroups;

/// The oldest kernel that the agent was made for.
const LEAST: (u32, u32) = (5, 10);
const NFT: Duration = Duration::from_secs(5);
const TUN: &str = "/dev/net/tun";
/// CAP_NET_ADMIN's bit.
const NET_ADMIN: u32 = 12;
/// A clock that is so far behind this program's file was never set.
const BEHIND: Duration = Duration::from_secs(86_400);
/// Tried, and not kept.
const TRIED: &str = "table inet isthmus-check {\n chain tried {\n\
    type filter hook prerouting priority -150; policy accept;\n meta mark 1 counter drop\n}\n}\n";

pub(super) async fn check(report: &mut Report) {
    let rights = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let is_admin = has_net_admin(&rights);
    let found = if is_admin { "CAP_NET_ADMIN is there" } else { "CAP_NET_ADMIN is missing" };
    report.add("rights", found, if is_admin { Vec::new() } else { vec![not_root()] });
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    report.add("kernel", format!("Linux {}", release.trim()), old(&release));
    let tun = OpenOptions::new().read(true).write(true).open(TUN);
    report.add("tun", TUN, tun.err().map(|error| no_tun(&error)).into_iter().collect::<Vec<_>>());
    // Without rights it can't be told.
    let nft = if is_admin { try_nft().await } else { Ok(()) };
    report.add(
        "nftables",
        "nft",
        nft.err().map(|error| no_nft(&error)).into_iter().collect::<Vec<_>>(),
    );
    let cgroups = Cgroups::open().err().map(|error| no_cgroups(&anyhow::Error::new(error)));
    report.add("cgroups", "cgroup v2", cgroups.into_iter().collect::<Vec<_>>());
    let sockets = SocketDiag::open().err().map(|error| {
        let error = anyhow::Error::new(error);
        Problem::new(
            Code::SocketsUnknown,
            format!("whose socket a flow is of can't be told: {error:#}"),
            "`modprobe -a tcp_diag udp_diag`, or a kernel with CONFIG_INET_DIAG",
        )
    });
    report.add("sockets", "sock_diag", sockets.into_iter().collect::<Vec<_>>());
    let made = std::env::current_exe().and_then(fs::metadata).and_then(|it| it.modified());
    let now = SystemTime::now();
    report.add("clock", "the system's", behind(now, made.unwrap_or(now)));
}

fn has_net_admin(status: &str) -> bool {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .is_some_and(|set| set & (1 << NET_ADMIN) != 0)
}

fn not_root() -> Problem {
    let text = "this check has no right to look at the network's rules, nor at others' processes";
    Problem::new(Code::NotRoot, text, "`sudo agentctl check`")
}

/// "6.1.0-18-amd64"
fn old(release: &str) -> Vec<Problem> {
    let mut numbers = release.split(|it: char| !it.is_ascii_digit()).map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
        return Vec::new();
    };
    if (major, minor) >= LEAST {
        return Vec::new();
    }
    let text = format!(
        "Linux {} is older than the agent was made for ({}.{})",
        release.trim(),
        LEAST.0,
        LEAST.1
    );
    vec![Problem::new(Code::KernelOld, text, "update the kernel, and reboot")]
}

fn no_tun(error: &io::Error) -> Problem {
    let remedy = if error.kind() == io::ErrorKind::NotFound {
        "`mkdir -p /dev/net && mknod -m 666 /dev/net/tun c 10 200`; in a container, give it the device \
         (`--device /dev/net/tun`)"
    } else if error.kind() == io::ErrorKind::PermissionDenied {
        "`chmod 666 /dev/net/tun`, or run this as root; in a container, give it the device"
    } else {
        "`modprobe tun`, or a kernel with CONFIG_TUN"
    };
    Problem::new(Code::TunMissing, format!("{TUN} can't be opened: {error}"), remedy)
}

/// Whether the kernel takes rules like ours; nothing is changed.
async fn try_nft() -> anyhow::Result<()> {
    let mut nft = Command::new("nft")
        .args(["--check", "-f", "-"])
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("nft can't be started")?;
    let mut input = nft.stdin.take().context("nft has no input")?;
    input.write_all(TRIED.as_bytes()).await.context("nft takes no rules")?;
    drop(input);
    let output = timeout(NFT, nft.wait_with_output()).await.context("nft doesn't end")??;
    let said = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "nft refuses rules: {}", said.trim());
    Ok(())
}

fn no_nft(error: &anyhow::Error) -> Problem {
    let text = format!("the overlay can't be guarded: {error:#}");
    let remedy = "`apt-get install nftables` (or dnf); where it is there, a kernel with CONFIG_NF_TABLES_INET";
    Problem::new(Code::NftMissing, text, remedy)
}

fn behind(now: SystemTime, made: SystemTime) -> Vec<Problem> {
    if made.duration_since(now).unwrap_or_default() < BEHIND {
        return Vec::new();
    }
    let text = "this host's clock is behind the day on which this program was installed";
    vec![Problem::new(Code::ClockSkew, text, "`timedatectl set-ntp true`, or set it by `date -s`")]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_told_by_their_release() {
        for (release, is_old) in [
            ("5.10.0-28-amd64\n", false),
            ("6.18.5", false),
            ("5.4.0-170-generic", true),
            ("4.18.0-513.el8.x86_64", true),
            ("strange", false),
        ] {
            assert_eq!(!old(release).is_empty(), is_old, "{release}");
        }
    }

    #[test]
    fn rights_are_read_from_the_effective_set() {
        assert!(has_net_admin("CapPrm:\t0\nCapEff:\t000001ffffffffff\n"));
        assert!(!has_net_admin("CapEff:\t0000000000000000\n"));
        assert!(!has_net_admin(""));
    }

    #[test]
    fn a_missing_device_and_a_missing_right_have_remedies_of_their_own() {
        let of = |kind: io::ErrorKind| no_tun(&kind.into()).remedy;
        assert!(of(io::ErrorKind::NotFound).contains("mknod"));
        assert!(of(io::ErrorKind::PermissionDenied).contains("chmod 666"));
        assert!(of(io::ErrorKind::Other).contains("modprobe tun"));
    }

    #[test]
    fn a_clock_that_was_never_set_is_behind_this_program() {
        let made = SystemTime::now();
        assert!(behind(made, made).is_empty());
        assert!(behind(made + BEHIND, made).is_empty());
        assert_eq!(behind(made - 2 * BEHIND, made)[0].code, Code::ClockSkew);
    }
}
