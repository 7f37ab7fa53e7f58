//! The store's file as it is, without touching it.
//!
//! It is read whole and opened in memory, where redb may repair what a crash left unfinished. So a
//! read-only disk is enough to read a mesh; and a file that somebody damaged is told by its checksums, and
//! stays what it is.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read as _};
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::sync::Once;

use redb::backends::InMemoryBackend;
use redb::{Builder, Database, StorageBackend as _};

use super::tables::{self, FORMAT, Mark};
use super::{Saved, StoreError};

/// A file as it was read.
#[derive(Debug)]
pub(super) struct Copy {
    pub(super) saved: Saved,
    pub(super) mark: Mark,
}

impl Copy {
    pub(super) fn read(path: &Path) -> Result<Self, StoreError> {
        let name = path.display().to_string();
        let failed = |error: io::Error| StoreError::Failed(name.clone(), error.to_string());
        let mut bytes = Vec::new();
        File::open(path).and_then(|mut file| file.read_to_end(&mut bytes)).map_err(failed)?;
        let damaged = |why: String| StoreError::Damaged(name.clone(), why);
        if bytes.is_empty() {
            return Err(damaged("it is empty".to_owned()));
        }
        let database = guarded(|| in_memory(&bytes)).map_err(damaged)?;
        let found = guarded(|| tables::format(&database)).map_err(damaged)?;
        if found > FORMAT {
            return Err(StoreError::TooNew { file: name.clone(), found, known: FORMAT });
        }
        let read = || Ok((tables::load(&database)?, tables::mark(&database)?));
        let (saved, mark) = guarded(read).map_err(damaged)?;
        Ok(Self { saved, mark })
    }
}

fn in_memory(bytes: &[u8]) -> Result<Database, redb::Error> {
    let backend = InMemoryBackend::new();
    backend.set_len(bytes.len() as u64)?;
    backend.write(0, bytes)?;
    Ok(Builder::new().set_check_integrity_on_open(true).create_with_backend(backend)?)
}

/// Says in words what redb says by panicking: it trusts files of its own.
pub(super) fn guarded<T>(work: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, String> {
    thread_local! {
        static GUARDED: Cell<bool> = const { Cell::new(false) };
    }
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let others = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            if !GUARDED.get() {
                others(panic);
            }
        }));
    });
    let before = GUARDED.replace(true);
    let done = panic::catch_unwind(AssertUnwindSafe(work));
    GUARDED.set(before);
    match done {
        Ok(done) => done.map_err(|error| error.to_string()),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            let first = text.unwrap_or_default().lines().next().unwrap_or_default();
            Err(format!("it can't be read ({first})"))
        }
    }
}
