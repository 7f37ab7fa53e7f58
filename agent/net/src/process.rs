//! Processes behind sockets, and users behind names.
//!
//! The kernel doesn't say which process holds a socket: it is found by reading what the processes
//! have open. That costs microseconds per process, so it is done once per socket, only where a
//! workload is selected by its program, and within a bound. Who looks first in the right cgroup
//! finds it among a handful.

use std::ffi::{CStr, CString, OsStr};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// `/etc/passwd` entries are short; directories of companies less so.
const PASSWD_BYTES_MAX: usize = 1 << 20;

/// The program of the process that holds the socket `inode`.
///
/// It is looked for among the processes of `cgroup` (a directory, see
/// [`crate::cgroup::Cgroups::directory`]) and then among those of the user `uid`. `None` when it
/// isn't found in `time`, or isn't this process's to see (needs CAP_SYS_PTRACE). A socket that
/// several processes share gets the first one's program; see [`exe`] for one replaced on disk.
pub fn exe_of(inode: u32, uid: u32, cgroup: Option<&Path>, time: Duration) -> Option<PathBuf> {
    let deadline = Instant::now() + time;
    let target = format!("socket:[{inode}]");
    let holds = |pid: &u32| holds(*pid, OsStr::new(&target), deadline);
    // Its user's first: whoever has many sockets open costs most.
    let (own, others): (Vec<u32>, Vec<u32>) =
        cgroup.map(members).unwrap_or_default().into_iter().partition(|pid| is_of(*pid, uid));
    let near = own.into_iter().chain(others).find(holds);
    exe(near.or_else(|| of_user(uid, deadline).find(holds))?)
}

/// The program that process `pid` runs, by the path that leads to it here. A program that isn't what
/// this process finds under the other's path is given as `/proc/<pid>/exe`: the path alone proves
/// nothing, since any user can put anything anywhere in a mount namespace of its own.
pub fn exe(pid: u32) -> Option<PathBuf> {
    let link = PathBuf::from(format!("/proc/{pid}/exe"));
    let path = fs::read_link(&link).ok()?;
    let running = fs::metadata(&link).ok()?;
    let is_it = fs::metadata(&path)
        .is_ok_and(|here| (here.dev(), here.ino()) == (running.dev(), running.ino()));
    Some(if is_it { path } else { link })
}

/// A process that has a socket open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    pub pid: u32,
    /// The user that started it: a program that is setuid acts as another.
    pub uid: u32,
    /// The cgroup (v2) that it is in, from the root of the hierarchy.
    pub cgroup: Option<String>,
    /// Its program, as [`exe`] has it.
    pub exe: Option<PathBuf>,
    /// What it calls itself: whoever runs it can choose that.
    pub name: Option<String>,
}

/// The processes that hold the socket `inode`: those of `cgroup` (a directory, see
/// [`crate::cgroup::Cgroups::directory`]) first, and all others until `budget` is spent. Needs CAP_SYS_PTRACE to see them.
pub fn holders(inode: u32, cgroup: Option<&Path>, budget: Duration) -> Vec<Holder> {
    let deadline = Instant::now() + budget;
    let target = format!("socket:[{inode}]");
    let near = cgroup.map(members).unwrap_or_default();
    let far = all_processes(deadline).filter(|pid| !near.contains(pid)).collect::<Vec<_>>();
    let pids = near.iter().chain(&far).copied();
    pids.filter(|pid| holds(*pid, OsStr::new(&target), deadline)).filter_map(holder).collect()
}

/// The processes of `cgroup` (see [`holders`]), whatever they hold: what can be told without CAP_SYS_PTRACE.
#[must_use]
pub fn of_cgroup(cgroup: &Path) -> Vec<Holder> {
    members(cgroup).into_iter().filter_map(holder).collect()
}

fn holder(pid: u32) -> Option<Holder> {
    let [uid, ..] = uids(pid)?;
    Some(Holder { pid, uid, cgroup: cgroup_of(pid), exe: exe(pid), name: name(pid) })
}

/// Process `pid` as its sockets would show it: `uid` is the user that it acts as. `None` if there is no
/// such process. Its program is this process's to see only with CAP_SYS_PTRACE.
pub fn as_sockets_show(pid: u32) -> Option<Holder> {
    let [_, _, _, uid] = uids(pid)?;
    Some(Holder { pid, uid, cgroup: cgroup_of(pid), exe: exe(pid), name: name(pid) })
}

/// Real, effective, saved, and the file system's, which the kernel gives to new sockets.
fn uids(pid: u32) -> Option<[u32; 4]> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    let uids: Vec<u32> = uids.split_whitespace().map_while(|uid| uid.parse().ok()).collect();
    uids.try_into().ok()
}

fn cgroup_of(pid: u32) -> Option<String> {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    groups.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned)
}

/// The user that this process runs as.
#[must_use]
pub fn own_user() -> u32 {
    // SAFETY: takes no pointers, and always succeeds.
    unsafe { libc::geteuid() }
}

/// Name of process `pid`, while there is one.
pub fn name(pid: u32) -> Option<String> {
    let name = fs::read(format!("/proc/{pid}/comm")).ok()?;
    Some(String::from_utf8_lossy(&name).trim_end().to_owned())
}

/// The number of the user `name`, from wherever the host keeps its users.
pub fn user_id(name: &str) -> Option<u32> {
    let name = CString::new(name).ok()?;
    let mut buffer = vec![0; 1024];
    while buffer.len() <= PASSWD_BYTES_MAX {
        match lookup_user(&name, &mut buffer) {
            Ok(uid) => return uid,
            Err(libc::ERANGE) => buffer.resize(buffer.len() * 2, 0),
            Err(libc::EINTR) => {}
            Err(_) => return None,
        }
    }
    None
}

fn lookup_user(name: &CStr, buffer: &mut [libc::c_char]) -> Result<Option<u32>, libc::c_int> {
    // SAFETY: an all-zero `passwd` (null pointers and zeros) is a valid value of it.
    let mut entry: libc::passwd = unsafe { std::mem::zeroed() };
    let mut found: *mut libc::passwd = std::ptr::null_mut();
    // SAFETY: all pointers are valid for the call, `buffer` for the length given with it. Of the
    // entry only the number is read afterwards, none of its pointers into `buffer`.
    let error = unsafe {
        libc::getpwnam_r(
            name.as_ptr(),
            &raw mut entry,
            buffer.as_mut_ptr(),
            buffer.len(),
            &raw mut found,
        )
    };
    if error != 0 {
        return Err(error);
    }
    Ok((!found.is_null()).then_some(entry.pw_uid))
}

fn members(cgroup: &Path) -> Vec<u32> {
    let procs = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    // A process of another PID namespace is listed as 0.
    procs.lines().filter_map(|pid| pid.parse().ok()).filter(|pid| *pid != 0).collect()
}

fn all_processes(deadline: Instant) -> impl Iterator<Item = u32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .take_while(move |_| Instant::now() < deadline)
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn of_user(uid: u32, deadline: Instant) -> impl Iterator<Item = u32> {
    all_processes(deadline).filter(move |pid| is_of(*pid, uid))
}

fn is_of(pid: u32, uid: u32) -> bool {
    fs::metadata(format!("/proc/{pid}")).is_ok_and(|it| it.uid() == uid)
}

fn holds(pid: u32, target: &OsStr, deadline: Instant) -> bool {
    fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten()
        .take_while(|_| Instant::now() < deadline)
        .filter_map(Result::ok)
        .any(|entry| {
            fs::read_link(entry.path())
                .is_ok_and(|link| link.as_os_str().as_bytes() == target.as_bytes())
        })
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};
    use std::os::fd::{AsRawFd, OwnedFd};
    use std::os::unix::process::CommandExt;

    use super::*;
    use crate::cgroup::Cgroups;
    use crate::sock_diag::{Lookup, Protocol, SocketDiag, SocketOwner};
    use crate::testing::{Shell, in_netns};

    const NOBODY: u32 = 65_534;
    const TIME: Duration = Duration::from_secs(5);

    #[test]
    fn a_flow_leads_to_the_cgroup_and_the_program_that_opened_it() {
        in_netns(|| {
            let mut cgroups = Cgroups::open().unwrap();
            let path = format!("/isthmus-test-{}-flow", std::process::id());
            let directory = cgroups.directory(&path);
            fs::create_dir(&directory).unwrap();
            let mut shell = Shell::spawn(|_| {});
            fs::write(directory.join("cgroup.procs"), shell.pid().to_string()).unwrap();

            let owner = connect(&mut shell);
            let found = cgroups.path_of(owner.cgroup_id.unwrap()).unwrap();
            // Not the user's: only the cgroup can lead to it.
            let exe = exe_of(owner.inode, NOBODY, Some(&directory), TIME);
            shell.end();
            fs::remove_dir(&directory).unwrap();
            assert_eq!(found.as_deref(), Some(path.as_str()));
            assert_eq!(exe, Some(bash()));
            assert_eq!(cgroups.path_of(owner.cgroup_id.unwrap()).unwrap(), None);
        });
    }

    #[test]
    fn without_a_cgroup_the_users_processes_are_searched() {
        in_netns(|| {
            let mut shell = Shell::spawn(|command| {
                command.uid(NOBODY).gid(NOBODY);
            });
            let owner = connect(&mut shell);
            assert_eq!(owner.uid, NOBODY);
            assert_eq!(exe_of(owner.inode, NOBODY, None, TIME), Some(bash()));
            assert_eq!(exe_of(owner.inode, 54_321, None, TIME), None, "no process of that user");
            shell.end();
            assert_eq!(exe_of(owner.inode, NOBODY, None, TIME), None);
        });
    }

    #[test]
    fn all_who_hold_a_socket_are_found_whoever_made_it() {
        in_netns(|| {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let inode = fs::metadata(format!("/proc/self/fd/{}", listener.as_raw_fd())).unwrap();
            let inode = u32::try_from(inode.ino()).unwrap();
            // As nginx does: root makes it, and a worker of another user inherits it.
            let mut worker = Shell::spawn(|command| {
                let inherited = OwnedFd::from(listener.try_clone().unwrap());
                command.uid(NOBODY).gid(NOBODY).stderr(inherited);
            });
            let found = holders(inode, None, Duration::from_secs(30));
            let pid = worker.pid();
            worker.end();
            assert!(found.iter().any(|it| it.pid == std::process::id()), "{found:?}");
            let inherited = found.iter().find(|it| it.pid == pid).unwrap();
            assert_eq!((inherited.uid, inherited.exe.clone()), (NOBODY, Some(bash())));
        });
    }

    #[test]
    fn a_program_that_is_not_what_its_path_leads_to_has_no_claim_to_the_path() {
        let copy = std::env::temp_dir().join(format!("isthmus-test-{}-sleep", std::process::id()));
        // By a child: a descriptor of ours, inherited by another test's child, would be "text busy".
        std::process::Command::new("cp").arg("/bin/sleep").arg(&copy).status().unwrap();
        let mut child = std::process::Command::new(&copy).arg("60").spawn().unwrap();
        let before = exe(child.id());
        fs::remove_file(&copy).unwrap();
        let after = exe(child.id());
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(before.as_ref(), Some(&copy));
        assert_eq!(after, Some(format!("/proc/{}/exe", child.id()).into()));
    }

    #[test]
    fn users_have_numbers() {
        assert_eq!(user_id("root"), Some(0));
        assert_eq!(user_id("nobody"), Some(NOBODY));
        assert_eq!(user_id("no-such-user-here"), None);
        assert_eq!(user_id("nul\0inside"), None);
    }

    /// Makes the shell connect to us, and asks whose socket that is.
    fn connect(shell: &mut Shell) -> SocketOwner {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let remote = listener.local_addr().unwrap();
        shell.run(&format!("exec 3<>/dev/tcp/127.0.0.1/{}", remote.port()));
        let (_stream, local) = listener.accept().unwrap();
        let flow = Lookup { protocol: Protocol::Tcp, local, remote };
        SocketDiag::open().unwrap().lookup(&flow).unwrap().unwrap()
    }

    fn bash() -> PathBuf {
        fs::canonicalize("/bin/bash").unwrap()
    }
}
