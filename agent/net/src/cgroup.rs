//! From a cgroup's number to its path, which names systemd's units and containers.
//!
//! The number is what `sock_diag` gives for a socket; it is the file handle of a directory of
//! cgroup v2, and never reused. Opening a handle costs 45 to 70 µs, so paths are remembered, and
//! checked by one `stat` when used: a removed cgroup has no path any more.

use std::collections::HashMap;
use std::ffi::CStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// More cgroups than a host has running, and no more than a few hundred KiB.
const REMEMBERED: usize = 4096;

/// `FILEID_KERNFS`: the handle is the 64-bit number of the node.
const FILEID_KERNFS: libc::c_int = 0xfe;

/// Resolves the numbers of cgroups of this host.
#[derive(Debug)]
pub struct Cgroups {
    mount: OwnedFd,
    /// What the kernel puts before the paths of open files of this mount.
    mount_point: PathBuf,
    known: HashMap<u64, Known>,
    /// Counts look-ups: the clock by which the least recently used path is forgotten.
    tick: u64,
}

#[derive(Debug)]
struct Known {
    path: Arc<str>,
    used: u64,
}

impl Cgroups {
    /// Finds cgroup v2 where it is mounted, or mounts it for itself where the mount is hidden (as
    /// it is under `ip netns exec`).
    ///
    /// # Errors
    /// The kernel lacks cgroup v2, or its mount is out of reach and mounting isn't permitted.
    pub fn open() -> Result<Self, CgroupError> {
        let table =
            fs::read_to_string("/proc/thread-self/mountinfo").map_err(CgroupError::NoMountTable)?;
        let visible = mount_points(&table).find_map(|point| Some((open_root(&point)?, point)));
        let (mount, mount_point) = match visible {
            Some(found) => found,
            None => (mount_privately().map_err(CgroupError::NotMounted)?, PathBuf::from("/")),
        };
        Ok(Self { mount, mount_point, known: HashMap::new(), tick: 0 })
    }

    /// The path from the root of the hierarchy, such as `/system.slice/nginx.service`; `None` for
    /// a cgroup that doesn't exist any more.
    ///
    /// # Errors
    /// Needs CAP_DAC_READ_SEARCH.
    pub fn path_of(&mut self, id: u64) -> Result<Option<Arc<str>>, CgroupError> {
        self.tick += 1;
        if let Some(known) = self.known.get_mut(&id) {
            let directory = directory(self.mount.as_raw_fd(), &known.path);
            if fs::metadata(directory).is_ok_and(|it| it.ino() == id) {
                known.used = self.tick;
                return Ok(Some(Arc::clone(&known.path)));
            }
            self.known.remove(&id);
        }
        let Some(path) = self.resolve(id)? else { return Ok(None) };
        if self.known.len() >= REMEMBERED {
            self.forget_half();
        }
        self.known.insert(id, Known { path: Arc::clone(&path), used: self.tick });
        Ok(Some(path))
    }

    /// Where the files of the cgroup `path` (`cgroup.procs`, …) are for this process.
    pub fn directory(&self, path: &str) -> PathBuf {
        directory(self.mount.as_raw_fd(), path)
    }

    fn resolve(&self, id: u64) -> Result<Option<Arc<str>>, CgroupError> {
        let opened = match open_handle(&self.mount, id) {
            Ok(opened) => opened,
            Err(error) => {
                return match error.raw_os_error() {
                    Some(libc::ESTALE | libc::ENOENT) => Ok(None),
                    Some(libc::EPERM) => Err(CgroupError::NotPermitted),
                    _ => Err(CgroupError::Handle(error)),
                };
            }
        };
        let link = fs::read_link(format!("/proc/thread-self/fd/{}", opened.as_raw_fd()))
            .map_err(CgroupError::Handle)?;
        let Some(link) = link.to_str() else { return Ok(None) };
        Ok(relative_to(link, &self.mount_point).map(Arc::from))
    }

    /// Half at a time, so that the cost of choosing is spread over many look-ups.
    fn forget_half(&mut self) {
        let mut uses: Vec<u64> = self.known.values().map(|known| known.used).collect();
        let middle = uses.len() / 2;
        let (_, median, _) = uses.select_nth_unstable(middle);
        let median = *median;
        self.known.retain(|_, known| known.used > median);
    }
}

#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    #[error("/proc/thread-self/mountinfo can't be read; is /proc mounted?")]
    NoMountTable(#[source] io::Error),
    #[error(
        "cgroup v2 isn't mounted where this process can see it, and can't be mounted: mount it \
         with 'mount -t cgroup2 none /sys/fs/cgroup', or select workloads by user or exe instead"
    )]
    NotMounted(#[source] io::Error),
    #[error("naming a socket's cgroup needs CAP_DAC_READ_SEARCH")]
    NotPermitted,
    #[error("the kernel refused to name a cgroup")]
    Handle(#[source] io::Error),
}

/// Through the descriptor, since the mount may have no name in this mount namespace.
fn directory(mount: RawFd, path: &str) -> PathBuf {
    format!("/proc/self/fd/{mount}/{}", path.trim_start_matches('/')).into()
}

/// The kernel's name of an open directory, less where its hierarchy is mounted.
fn relative_to<'a>(link: &'a str, mount_point: &Path) -> Option<&'a str> {
    if link.ends_with(" (deleted)") {
        return None;
    }
    let inside = link.strip_prefix(mount_point.to_str()?.trim_end_matches('/'))?;
    match inside {
        "" => Some("/"),
        _ if inside.starts_with('/') => Some(inside),
        _ => None,
    }
}

/// The mounts of cgroup v2 in a mount table, the whole hierarchy first, since a mount of a part
/// (as containers have) can't name what is outside of it.
fn mount_points(table: &str) -> impl Iterator<Item = PathBuf> {
    let mut found: Vec<(bool, PathBuf)> = table.lines().filter_map(cgroup2_mount).collect();
    found.sort_by_key(|(whole, _)| !whole);
    found.into_iter().map(|(_, point)| point)
}

/// `36 35 98:0 /root /point options [tags…] - type source options`
fn cgroup2_mount(line: &str) -> Option<(bool, PathBuf)> {
    let (mount, filesystem) = line.split_once(" - ")?;
    if filesystem.split(' ').next() != Some("cgroup2") {
        return None;
    }
    let mut fields = mount.split(' ').skip(3);
    let whole = fields.next()? == "/";
    Some((whole, unescape(fields.next()?).into()))
}

/// Blanks, tabs, newlines and backslashes are written in octal.
fn unescape(field: &str) -> String {
    let escapes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    escapes.iter().fold(field.to_owned(), |field, (octal, plain)| field.replace(octal, plain))
}

/// `None` when something else is mounted over it.
fn open_root(point: &Path) -> Option<OwnedFd> {
    fs::metadata(point.join("cgroup.procs")).ok()?;
    File::open(point).ok().map(OwnedFd::from)
}

#[repr(C)]
struct KernfsHandle {
    bytes: libc::c_uint,
    kind: libc::c_int,
    id: [u8; 8],
}

fn open_handle(mount: &OwnedFd, id: u64) -> io::Result<OwnedFd> {
    let mut handle = KernfsHandle { bytes: 8, kind: FILEID_KERNFS, id: id.to_ne_bytes() };
    // SAFETY: `handle` has the layout of `struct file_handle` followed by the 8 bytes that it
    // announces; the kernel reads no more than those, and both live across the call.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_open_by_handle_at,
            mount.as_raw_fd(),
            &raw mut handle,
            libc::O_PATH | libc::O_CLOEXEC,
        )
    };
    owned(fd)
}

/// A mount of the hierarchy that only this descriptor knows. Needs CAP_SYS_ADMIN.
fn mount_privately() -> io::Result<OwnedFd> {
    const TYPE: &CStr = c"cgroup2";
    // SAFETY: the name is a C string with static life.
    let context = owned(unsafe { libc::syscall(libc::SYS_fsopen, TYPE.as_ptr(), FSOPEN_CLOEXEC) })?;
    // SAFETY: "create" takes neither key nor value.
    let created = unsafe {
        libc::syscall(
            libc::SYS_fsconfig,
            context.as_raw_fd(),
            FSCONFIG_CMD_CREATE,
            std::ptr::null::<libc::c_char>(),
            std::ptr::null::<libc::c_void>(),
            0,
        )
    };
    if created < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: takes no pointers.
    let mount = owned(unsafe {
        libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), FSMOUNT_CLOEXEC, 0)
    })?;
    // What fsmount gives is a path only (O_PATH), by which no handle can be opened.
    File::open(format!("/proc/thread-self/fd/{}", mount.as_raw_fd())).map(OwnedFd::from)
}

const FSOPEN_CLOEXEC: libc::c_uint = 1;
const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
const FSMOUNT_CLOEXEC: libc::c_uint = 1;

fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    match RawFd::try_from(result) {
        // SAFETY: a system call just returned this descriptor, and nobody else owns it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Shell;

    #[test]
    fn a_cgroup_has_its_path_until_it_is_removed() {
        let mut cgroups = Cgroups::open().unwrap();
        let group = TestGroup::new(&cgroups, "path");
        for _ in 0..2 {
            assert_eq!(cgroups.path_of(group.id()).unwrap().as_deref(), Some(group.path.as_str()));
        }
        let id = group.id();
        drop(group);
        assert_eq!(cgroups.path_of(id).unwrap(), None);
        assert!(cgroups.known.is_empty());
        assert_eq!(cgroups.path_of(u64::MAX).unwrap(), None);
    }

    #[test]
    fn a_process_is_listed_in_the_cgroup_it_was_moved_to() {
        let cgroups = Cgroups::open().unwrap();
        let group = TestGroup::new(&cgroups, "procs");
        let mut shell = Shell::spawn(|_| {});
        fs::write(group.directory.join("cgroup.procs"), shell.pid().to_string()).unwrap();
        let procs = fs::read_to_string(cgroups.directory(&group.path).join("cgroup.procs"));
        assert_eq!(procs.unwrap().trim(), shell.pid().to_string());
        shell.end();
    }

    #[test]
    fn a_private_mount_names_the_same_paths() {
        let visible = Cgroups::open().unwrap();
        let group = TestGroup::new(&visible, "private");
        let mut hidden = Cgroups {
            mount: mount_privately().unwrap(),
            mount_point: PathBuf::from("/"),
            known: HashMap::new(),
            tick: 0,
        };
        for _ in 0..2 {
            assert_eq!(hidden.path_of(group.id()).unwrap().as_deref(), Some(group.path.as_str()));
        }
        assert!(hidden.directory(&group.path).join("cgroup.procs").exists());
    }

    #[test]
    fn the_memory_is_bounded_and_keeps_what_was_used_last() {
        let mut cgroups = Cgroups::open().unwrap();
        // Far above the numbers of this machine's cgroups.
        let gone = |tick: u64| (1 << 60) + tick;
        for tick in 0..REMEMBERED as u64 {
            cgroups.known.insert(gone(tick), Known { path: "/gone".into(), used: tick });
        }
        cgroups.tick = REMEMBERED as u64;
        let group = TestGroup::new(&cgroups, "bound");
        assert!(cgroups.path_of(group.id()).unwrap().is_some());
        assert!(cgroups.known.len() <= REMEMBERED / 2 + 1, "{}", cgroups.known.len());
        assert!(cgroups.known.contains_key(&gone(REMEMBERED as u64 - 1)));
        assert!(!cgroups.known.contains_key(&gone(0)));
    }

    #[test]
    fn the_whole_hierarchy_is_preferred_to_a_part_of_it() {
        let table = "\
            31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
            37 31 0:34 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
            50 31 0:38 /part /mnt/part rw shared:1 - cgroup2 cgroup2 rw\n\
            38 31 0:38 / /sys/fs/with\\040blank rw,relatime shared:4 master:1 - cgroup2 none rw\n";
        let points: Vec<PathBuf> = mount_points(table).collect();
        assert_eq!(points, [Path::new("/sys/fs/with blank"), Path::new("/mnt/part")]);
    }

    #[test]
    fn a_path_starts_at_the_root_of_the_hierarchy() {
        let table = [
            ("/sys/fs/cgroup/a.slice/b", Some("/a.slice/b")),
            ("/sys/fs/cgroup", Some("/")),
            ("/sys/fs/cgroupish/a", None),
            ("/elsewhere", None),
            ("/sys/fs/cgroup/a (deleted)", None),
        ];
        for (link, expected) in table {
            assert_eq!(relative_to(link, Path::new("/sys/fs/cgroup")), expected, "{link}");
        }
        assert_eq!(relative_to("/a", Path::new("/")), Some("/a"));
    }

    /// A cgroup that exists as long as this value.
    struct TestGroup {
        path: String,
        directory: PathBuf,
    }

    impl TestGroup {
        fn new(cgroups: &Cgroups, name: &str) -> Self {
            let path = format!("/isthmus-test-{}-{name}", std::process::id());
            let directory = cgroups.mount_point.join(&path[1..]);
            fs::create_dir(&directory).unwrap();
            Self { path, directory }
        }

        fn id(&self) -> u64 {
            fs::metadata(&self.directory).unwrap().ino()
        }
    }

    impl Drop for TestGroup {
        fn drop(&mut self) {
            drop(fs::remove_dir(&self.directory));
        }
    }
}
