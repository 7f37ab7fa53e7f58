//! Gives up what the agent doesn't need.
//!
//! Capabilities and `no_new_privs` belong to a *thread* and are inherited by the threads it makes:
//! they are dropped in `main`, before any other thread exists.

use std::io;

pub use caps::Capability;
use caps::{CapSet, CapsHashSet};

use crate::process::own_user;

/// What the agent keeps while it runs:
///
/// - `NET_ADMIN`: links, addresses, routes, large socket buffers;
/// - `NET_RAW`: sockets bound to a device;
/// - `NET_BIND_SERVICE`: DNS on port 53;
/// - `SYS_PTRACE`: to see what other users' processes have open, and which program they run. The
///   packages' unit doesn't give it: see [`sees_processes`];
/// - `DAC_READ_SEARCH`: to name a socket's cgroup.
pub fn agent_capabilities() -> [Capability; 5] {
    [
        Capability::CAP_NET_ADMIN,
        Capability::CAP_NET_RAW,
        Capability::CAP_NET_BIND_SERVICE,
        Capability::CAP_SYS_PTRACE,
        Capability::CAP_DAC_READ_SEARCH,
    ]
}

/// Whether this process may see what others' processes have open, and which program they run. Without it,
/// services can't be told by their program, and whose a socket is that root made follows from its cgroup.
#[must_use]
pub fn sees_processes() -> bool {
    caps::has_cap(None, CapSet::Effective, Capability::CAP_SYS_PTRACE).unwrap_or(false)
}

/// Reduces this thread to the capabilities in `keep`, for ever, and keeps the process's memory
/// (which holds keys) out of core dumps and debuggers. The programs that a user other than root starts
/// (`nft`) get `NET_ADMIN`, as root's do by themselves.
///
/// Returns those of `keep` that the thread didn't have: what depends on them won't work.
///
/// # Errors
/// On any error the caller should stop: it has more power than it was meant to have.
pub fn drop_to(keep: &[Capability]) -> Result<Vec<Capability>, PrivilegesError> {
    let held = caps::read(None, CapSet::Permitted)?;
    let keep: CapsHashSet = keep.iter().copied().collect();
    let kept: CapsHashSet = keep.intersection(&held).copied().collect();

    caps::clear(None, CapSet::Ambient)?;
    // Without SETPCAP the bounding set can't shrink; no_new_privs makes it moot.
    if held.contains(&Capability::CAP_SETPCAP) {
        caps::raise(None, CapSet::Effective, Capability::CAP_SETPCAP)?;
        for capability in caps::read(None, CapSet::Bounding)?.difference(&keep) {
            caps::drop(None, CapSet::Bounding, *capability)?;
        }
    }
    caps::clear(None, CapSet::Inheritable)?;
    // The effective set must never exceed the permitted one: first the former.
    caps::set(None, CapSet::Effective, &kept)?;
    caps::set(None, CapSet::Permitted, &kept)?;
    let handed_on = Capability::CAP_NET_ADMIN;
    if own_user() != 0 && kept.contains(&handed_on) {
        caps::raise(None, CapSet::Inheritable, handed_on)?;
        caps::raise(None, CapSet::Ambient, handed_on)?;
    }

    set_process_flag(libc::PR_SET_NO_NEW_PRIVS, 1, "PR_SET_NO_NEW_PRIVS")?;
    set_process_flag(libc::PR_SET_DUMPABLE, 0, "PR_SET_DUMPABLE")?;

    let mut missing: Vec<Capability> = keep.difference(&kept).copied().collect();
    missing.sort_by_key(Capability::index);
    Ok(missing)
}

#[derive(Debug, thiserror::Error)]
pub enum PrivilegesError {
    #[error("capabilities couldn't be dropped: {0}")]
    Capabilities(#[from] caps::errors::CapsError),
    #[error("{flag} was refused")]
    Flag { flag: &'static str, source: io::Error },
}

fn set_process_flag(
    option: libc::c_int,
    value: libc::c_ulong,
    flag: &'static str,
) -> Result<(), PrivilegesError> {
    const NONE: libc::c_ulong = 0;
    // SAFETY: these options take one number, and no pointers.
    let result = unsafe { libc::prctl(option, value, NONE, NONE, NONE) };
    if result < 0 {
        return Err(PrivilegesError::Flag { flag, source: io::Error::last_os_error() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    use super::*;
    use crate::cgroup::Cgroups;
    use crate::listen::bind_freebind_udp;
    use crate::process::exe_of;
    use crate::routes::Route;
    use crate::senders::Senders;
    use crate::sock_diag::{Lookup, Protocol, SocketDiag};
    use crate::sysctl;
    use crate::testing::{Shell, block_on, in_netns, netlink};
    use crate::tun::Tun;

    /// Set in the child that a test starts of its own program: what is dropped is gone for the
    /// whole process.
    const IN_CHILD: &str = "ISTHMUS_TEST_PRIVILEGES";
    const TIME: std::time::Duration = std::time::Duration::from_secs(5);

    #[test]
    fn only_the_kept_capabilities_remain() {
        in_child("only_the_kept_capabilities_remain", drop_and_check);
    }

    #[test]
    fn the_kept_capabilities_suffice() {
        in_child("the_kept_capabilities_suffice", || in_netns(drop_and_work));
    }

    #[test]
    fn what_another_user_than_root_starts_may_administer_the_network_too() {
        const NAME: &str =
            "privileges::tests::what_another_user_than_root_starts_may_administer_the_network_too";
        if std::env::var_os(IN_CHILD).is_some() {
            drop_to(&agent_capabilities()).unwrap();
            let child = Command::new("cat").arg("/proc/self/status").output().unwrap();
            let status = String::from_utf8_lossy(&child.stdout).into_owned();
            let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:\t")).unwrap();
            let effective = u64::from_str_radix(effective, 16).unwrap();
            assert_eq!(effective, Capability::CAP_NET_ADMIN.bitmask());
            assert!(!sees_processes());
            return;
        }
        let child = Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .args(["--inh-caps=+net_admin,+net_raw", "--ambient-caps=+net_admin,+net_raw"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", NAME])
            .env(IN_CHILD, "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stdout);
        assert!(child.status.success() && said.contains("1 passed"), "{said}");
    }

    fn in_child(name: &str, test: impl FnOnce()) {
        if std::env::var_os(IN_CHILD).is_some() {
            return test();
        }
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &format!("privileges::tests::{name}")])
            .env(IN_CHILD, "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stdout);
        assert!(child.status.success() && said.contains("1 passed"), "{said}");
    }

    /// Everything that the agent asks of the kernel, with what it keeps.
    fn drop_and_work() {
        let mut nobody = Shell::spawn(|command| {
            command.uid(65_534).gid(65_534);
        });
        let senders = Senders::load().unwrap();
        assert_eq!(drop_to(&agent_capabilities()).unwrap(), []);

        let tun = Tun::create("isth-p0", 1400).unwrap();
        senders.attach(tun.index()).unwrap();
        block_on(async {
            let netlink = netlink();
            netlink.set_up(tun.index()).await.unwrap();
            netlink.add_address(tun.index(), "100.64.0.1".parse().unwrap()).await.unwrap();
            let route = Route::local("100.127.0.0/16".parse().unwrap());
            netlink.replace_route(&route).await.unwrap();
        });
        sysctl::set(sysctl::Family::Ipv4, "isth-p0", "rp_filter", "0").unwrap();
        bind_freebind_udp("100.64.0.9:53".parse().unwrap()).unwrap();

        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let remote = listener.local_addr().unwrap();
        nobody.run(&format!("exec 3<>/dev/tcp/127.0.0.1/{}", remote.port()));
        let (_stream, local) = listener.accept().unwrap();
        let flow = Lookup { protocol: Protocol::Tcp, local, remote };
        let owner = SocketDiag::open().unwrap().lookup(&flow).unwrap().unwrap();
        let mut cgroups = Cgroups::open().unwrap();
        let path = cgroups.path_of(owner.cgroup_id.unwrap()).unwrap().unwrap();
        let directory = cgroups.directory(&path);
        assert!(exe_of(owner.inode, owner.uid, None, TIME).unwrap().ends_with("bash"));
        assert!(directory.join("cgroup.procs").exists());
        nobody.end();
    }

    fn drop_and_check() {
        caps::drop(None, CapSet::Effective, Capability::CAP_NET_RAW).unwrap();
        caps::drop(None, CapSet::Permitted, Capability::CAP_NET_RAW).unwrap();
        let missing = drop_to(&agent_capabilities()).unwrap();
        assert_eq!(missing, [Capability::CAP_NET_RAW]);

        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            u64::from_str_radix(line[name.len() + 1..].trim(), 16).unwrap()
        };
        let all: u64 = agent_capabilities().iter().map(Capability::bitmask).sum();
        let held = all & !Capability::CAP_NET_RAW.bitmask();
        assert_eq!(field("CapPrm"), held);
        assert_eq!(field("CapEff"), held);
        assert_eq!(field("CapBnd"), all);
        assert_eq!((field("CapInh"), field("CapAmb")), (0, 0));
        assert_eq!(field("NoNewPrivs"), 1);
        // SAFETY: takes no pointers.
        assert_eq!(unsafe { libc::prctl(libc::PR_GET_DUMPABLE) }, 0);
        // SAFETY: takes no pointers; it fails, and so changes nothing.
        let moved = unsafe { libc::unshare(libc::CLONE_NEWNS) };
        assert_eq!(moved, -1, "CAP_SYS_ADMIN is still there");
    }
}
