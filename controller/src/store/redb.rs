//! The embedded store: one file ([`tables`] tells what is in it).
//!
//! ```text
//!            commit fails: the database is given up, for it takes no more
//!   Open ────────────────────────────────────────────────────────────────▶ Shut
//!     ▲                                                                     │
//!     └── opened again, and it holds what the last good commit left in it ──┘  at once, and before each commit
//! ```
//!
//! A commit that failed may have been made all the same. Which of both it is the file says once it can be
//! opened: each commit leaves a mark of its own.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};

use parking_lot::{Mutex, MutexGuard};
use redb::backends::FileBackend;
use redb::{Builder, Database, DatabaseError};

use super::copy::{Copy, guarded};
use super::tables::{self, Mark};
use super::{Change, Saved, Store, StoreError};
use crate::files;

/// The whole of a large mesh is a few megabytes.
const CACHE_BYTES: usize = 4 << 20;

/// A store in one file, which no other process can open meanwhile.
#[derive(Debug)]
pub struct Redb {
    path: PathBuf,
    open: Open,
    disk: Mutex<Disk>,
}

/// Opens a file as a database.
type Open = fn(File) -> Result<Database, DatabaseError>;

#[derive(Debug)]
struct Disk {
    state: State,
    /// What the last good commit left.
    mark: Mark,
    /// What one left that failed, or didn't.
    doubtful: Option<Mark>,
    /// What was there at the beginning, until it is asked for.
    saved: Option<Saved>,
}

#[derive(Debug)]
enum State {
    Open(Database),
    /// It can't be written now. The lock keeps other controllers away.
    Shut(#[expect(dead_code, reason = "dropping it gives the lock back")] Option<File>),
}

impl Redb {
    /// The file's name in the state directory.
    pub const FILE: &str = "store.redb";

    /// Makes a new, empty store.
    ///
    /// # Errors
    ///
    /// There is one already, or it can't be written.
    pub fn create(state_dir: &Path) -> Result<Self, StoreError> {
        let path = state_dir.join(Self::FILE);
        let failed = |why: String| StoreError::Failed(path.display().to_string(), why);
        let file = files::create(&path).map_err(|error| failed(error.to_string()))?;
        let make = || {
            let database = database(file)?;
            tables::begin(&database)?;
            Ok(database)
        };
        let state = State::Open(guarded(make).map_err(failed)?);
        let disk = Disk { state, mark: Mark::default(), doubtful: None, saved: None };
        Ok(Self { path, open: database, disk: Mutex::new(disk) })
    }

    /// Opens the store of a state directory. One that can be read only is read, and written as soon as
    /// it can be.
    ///
    /// # Errors
    ///
    /// There is none, it is damaged, another process has it open, or a newer version wrote it.
    pub fn open(state_dir: &Path) -> Result<Self, StoreError> {
        Self::open_with(state_dir, database)
    }

    fn open_with(state_dir: &Path, open: Open) -> Result<Self, StoreError> {
        let path = state_dir.join(Self::FILE);
        let lock = lock(&path)?;
        let Copy { saved, mark } = Copy::read(&path)?;
        let state = State::Shut(Some(lock));
        let disk = Disk { state, mark, doubtful: None, saved: Some(saved) };
        let store = Self { path, open, disk: Mutex::new(disk) };
        match store.heal() {
            // What can be read is enough to begin with.
            Ok(()) | Err(StoreError::Failed(..)) => Ok(store),
            Err(error) => Err(error),
        }
    }

    /// Opens the file for writing, where it isn't. It must hold what the last good commit left in it.
    fn reopen(&self, disk: &mut Disk) -> Result<(), StoreError> {
        if matches!(disk.state, State::Open(_)) {
            return Ok(());
        }
        // redb takes a lock of its own.
        disk.state = State::Shut(None);
        let database = match self.open_file() {
            Ok(database) => database,
            Err(error) => {
                disk.state = State::Shut(lock(&self.path).ok());
                return Err(error);
            }
        };
        let mark = guarded(|| tables::mark(&database)).map_err(|why| failed(&self.path, why))?;
        if mark != disk.mark && Some(mark) != disk.doubtful {
            return Err(StoreError::Moved(self.path.display().to_string()));
        }
        disk.mark = mark;
        disk.state = State::Open(database);
        Ok(())
    }

    fn open_file(&self) -> Result<Database, StoreError> {
        let file = OpenOptions::new().read(true).write(true).open(&self.path);
        let file = file.map_err(|error| failed(&self.path, error.to_string()))?;
        // redb would begin anew in it.
        if file.metadata().is_ok_and(|file| file.len() == 0) {
            return Err(StoreError::Moved(self.path.display().to_string()));
        }
        let mut in_use = false;
        let open = || {
            let opened = (self.open)(file);
            in_use = matches!(opened, Err(DatabaseError::DatabaseAlreadyOpen));
            Ok(opened?)
        };
        let opened = guarded(open);
        if in_use {
            return Err(StoreError::InUse(self.path.display().to_string()));
        }
        opened.map_err(|why| failed(&self.path, why))
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock()
    }

    fn heal(&self) -> Result<(), StoreError> {
        self.reopen(&mut self.disk())
    }
}

impl Store for Redb {
    fn load(&self) -> Result<Saved, StoreError> {
        match self.disk().saved.take() {
            Some(saved) => Ok(saved),
            None => Ok(Copy::read(&self.path)?.saved),
        }
    }

    fn commit(&self, changes: &[Change]) -> Result<(), StoreError> {
        let mut disk = self.disk();
        let before = disk.mark;
        self.reopen(&mut disk)?;
        if disk.mark != before {
            // It was said to have failed.
            return Err(StoreError::Moved(self.path.display().to_string()));
        }
        let State::Open(database) = &disk.state else {
            return Err(failed(&self.path, "it isn't open"));
        };
        let mark = Mark::random().map_err(|error| failed(&self.path, error.to_string()))?;
        let Err(why) = guarded(|| tables::write(database, changes, mark)) else {
            (disk.mark, disk.doubtful) = (mark, None);
            return Ok(());
        };
        disk.doubtful = Some(mark);
        let given_up = std::mem::replace(&mut disk.state, State::Shut(None));
        // What it says at its end was said before.
        let _ = guarded(move || {
            drop(given_up);
            Ok(())
        });
        match self.reopen(&mut disk) {
            Ok(()) if disk.mark == mark => Ok(()),
            Ok(()) | Err(StoreError::Failed(..)) => Err(failed(&self.path, why)),
            Err(error) => Err(error),
        }
    }
}

fn failed(path: &Path, why: impl Into<String>) -> StoreError {
    StoreError::Failed(path.display().to_string(), why.into())
}

/// Keeps other controllers away where the file can only be read.
fn lock(path: &Path) -> Result<File, StoreError> {
    let file = File::open(path).map_err(|error| failed(path, error.to_string()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => {
            Err(StoreError::InUse(path.display().to_string()))
        }
        Err(std::fs::TryLockError::Error(error)) => Err(failed(path, error.to_string())),
    }
}

fn database(file: File) -> Result<Database, DatabaseError> {
    Builder::new().set_cache_size(CACHE_BYTES).create_with_backend(FileBackend::new(file)?)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use std::cell::Cell;
    use std::fs;
    use std::io;
    use std::ops::Bound;

    use isthmus_controller_core::Leaving;
    use isthmus_model::topology::SourceFile;
    use isthmus_model::{HostId, Revision};
    use redb::{BackendError, StorageBackend};

    use super::*;

    thread_local! {
        /// Writes that the disk takes before it fails.
        static WRITES_LEFT: Cell<usize> = const { Cell::new(usize::MAX) };
    }

    /// A disk that fails when it is told to.
    #[derive(Debug)]
    struct Failing(FileBackend);

    impl Failing {
        fn open(file: File) -> Result<Database, DatabaseError> {
            Builder::new().create_with_backend(Self(FileBackend::new(file)?))
        }

        fn spend() -> io::Result<()> {
            let left = WRITES_LEFT.get();
            if left == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            WRITES_LEFT.set(left.saturating_sub(1));
            Ok(())
        }
    }

    impl StorageBackend for Failing {
        fn len(&self) -> io::Result<u64> {
            self.0.len()
        }

        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            self.0.read(offset, out)
        }

        fn set_len(&self, len: u64) -> io::Result<()> {
            Self::spend()?;
            self.0.set_len(len)
        }

        fn sync_data(&self) -> io::Result<()> {
            Self::spend()?;
            self.0.sync_data()
        }

        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            Self::spend()?;
            self.0.write(offset, data)
        }

        fn close(&self) -> io::Result<()> {
            self.0.close()
        }

        fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
            self.0.try_lock_range(start, end)
        }

        fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
            self.0.unlock_range(start, end)
        }
    }

    fn revision(store: &Redb) -> u64 {
        Copy::read(&store.path).unwrap().saved.revision.0
    }

    #[test]
    fn what_was_committed_is_there_after_opening_again() {
        let folder = tempfile::tempdir().unwrap();
        let file = SourceFile { name: "a.toml".into(), text: "[mesh]".to_owned() };
        let store = Redb::create(folder.path()).unwrap();
        let leaving: Leaving = [("api".parse().unwrap(), HostId(3), 1_000)].into_iter().collect();
        let changes = [
            Change::Revision(Revision(7)),
            Change::Files(vec![file.clone()]),
            Change::Leaving(leaving.clone()),
        ];
        store.commit(&changes).unwrap();
        drop(store);
        let saved = Redb::open(folder.path()).unwrap().load().unwrap();
        assert_eq!(saved.revision, Revision(7));
        assert_eq!(saved.files, [file]);
        assert_eq!(saved.leaving, leaving);
        assert!(saved.members.is_empty() && saved.tokens.is_empty());
    }

    /// Written by the last version that kept no history, operators or audit log: one host has joined by a
    /// token, another is left.
    #[test]
    fn a_store_of_a_former_version_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let packed = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/stores/before-history.redb.gz");
        let unpacked = Command::new("gzip").args(["-dc", packed]).output().unwrap();
        assert!(unpacked.status.success(), "{unpacked:?}");
        fs::write(folder.path().join(Redb::FILE), unpacked.stdout).unwrap();
        let store = Redb::open(folder.path()).unwrap();
        let saved = store.load().unwrap();
        assert_eq!(saved.revision, Revision(3));
        assert!(saved.files[0].text.contains("[service.web]"), "{:?}", saved.files);
        let [member] = &*saved.members else { panic!("{:?}", saved.members) };
        assert_eq!((member.name.as_str(), member.id), ("app-1", HostId(1)));
        assert_eq!((member.joined, saved.tokens.len()), (1_796_065_627, 2));
        assert!(saved.operators.is_empty() && saved.applied.is_empty() && saved.acts.is_empty());
        store.commit(&[Change::Revision(Revision(4))]).unwrap();
        assert_eq!(store.load().unwrap().members.len(), 1, "what isn't changed stays");
    }

    #[test]
    fn a_store_in_use_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let _open = Redb::create(folder.path()).unwrap();
        let error = Redb::open(folder.path()).unwrap_err();
        assert!(matches!(error, StoreError::InUse(_)), "{error}");
    }

    #[test]
    fn a_newer_format_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let store = Redb::create(folder.path()).unwrap();
        if let State::Open(database) = &store.disk().state {
            tables::begin_as(database, 99).unwrap();
        }
        drop(store);
        let error = Redb::open(folder.path()).unwrap_err();
        assert!(matches!(error, StoreError::TooNew { found: 99, .. }), "{error}");
    }

    /// Wherever a commit fails: what it was said to be is what the file says, and the next one goes
    /// through, in the same process; or the process is told that it must read anew.
    #[test]
    fn after_a_failed_write_the_store_takes_the_next() {
        let folder = tempfile::tempdir().unwrap();
        drop(Redb::create(folder.path()).unwrap());
        let open = || Redb::open_with(folder.path(), Failing::open).unwrap();
        let mut store = open();
        let (mut now, mut failures, mut moves) = (0, 0, 0);
        for writes in 0..60 {
            WRITES_LEFT.set(writes);
            let files = vec![SourceFile { name: "a".into(), text: "x".repeat(writes * 10_000) }];
            let next = now + 1;
            let done = store.commit(&[Change::Revision(Revision(next)), Change::Files(files)]);
            WRITES_LEFT.set(usize::MAX);
            match done {
                Ok(()) => now = next,
                Err(StoreError::Failed(..)) => {
                    failures += 1;
                    if let Err(error) = store.commit(&[]) {
                        // It was made after all, and the disk failed when that was asked for.
                        assert!(matches!(error, StoreError::Moved(_)), "{writes}: {error}");
                        (now, moves) = (next, moves + 1);
                        drop(store);
                        store = open();
                    }
                }
                Err(error) => panic!("{writes}: {error}"),
            }
            assert_eq!(revision(&store), now, "after {writes} writes");
        }
        assert!((5..60).contains(&failures) && moves < failures, "{failures} {moves}");
    }

    #[test]
    fn a_commit_that_was_made_after_all_is_not_denied() {
        let folder = tempfile::tempdir().unwrap();
        drop(Redb::create(folder.path()).unwrap());
        let store = Redb::open_with(folder.path(), Failing::open).unwrap();
        // Another hand finishes what the process gave up.
        let mark = Mark::random().unwrap();
        {
            let mut disk = store.disk();
            disk.doubtful = Some(mark);
            let State::Open(database) = &disk.state else { panic!("it is open") };
            tables::write(database, &[Change::Revision(Revision(9))], mark).unwrap();
            disk.state = State::Shut(None);
        }
        let error = store.commit(&[]).unwrap_err();
        assert!(matches!(error, StoreError::Moved(_)), "{error}");
    }

    #[test]
    fn what_can_only_be_read_is_read_and_written_once_it_can_be() {
        let folder = tempfile::tempdir().unwrap();
        let store = Redb::create(folder.path()).unwrap();
        store.commit(&[Change::Revision(Revision(3))]).unwrap();
        drop(store);
        let read_only = |_| {
            Err(DatabaseError::Storage(io::Error::from(io::ErrorKind::ReadOnlyFilesystem).into()))
        };
        let mut store = Redb::open_with(folder.path(), read_only).unwrap();
        assert_eq!(store.load().unwrap().revision, Revision(3));
        let error = store.commit(&[Change::Revision(Revision(4))]).unwrap_err();
        assert!(error.to_string().contains("read-only"), "{error}");
        let other = Redb::open(folder.path()).unwrap_err();
        assert!(matches!(other, StoreError::InUse(_)), "{other}");
        store.open = database;
        store.commit(&[Change::Revision(Revision(4))]).unwrap();
        assert_eq!(revision(&store), 4);
    }

    #[test]
    fn a_damaged_store_ends_in_a_sentence_and_stays_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(Redb::FILE);
        let store = Redb::create(folder.path()).unwrap();
        for number in 1..4 {
            let text = "x".repeat(20_000);
            let files = vec![SourceFile { name: "a".into(), text }];
            let changes = [Change::Revision(Revision(number)), Change::Files(files)];
            store.commit(&changes).unwrap();
        }
        drop(store);
        let whole = fs::read(&path).unwrap();
        let cuts = (0..600).chain((600..whole.len()).step_by(9_973)).map(|at| whole[..at].to_vec());
        let flips = (0..512).chain((512..whole.len()).step_by(1_021)).map(|at| {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            bytes
        });
        let mut told = 0;
        for bytes in cuts.chain(flips) {
            fs::write(&path, &bytes).unwrap();
            match Copy::read(&path) {
                // What isn't in use may hold anything.
                Ok(copy) => assert_eq!(copy.saved.revision, Revision(3)),
                Err(StoreError::Damaged(..) | StoreError::TooNew { .. }) => told += 1,
                Err(error) => panic!("{error}"),
            }
            assert!(fs::read(&path).unwrap() == bytes);
        }
        assert!(told > 600, "{told}");
        fs::write(&path, &whole).unwrap();
        assert_eq!(Redb::open(folder.path()).unwrap().load().unwrap().revision, Revision(3));
    }
}
