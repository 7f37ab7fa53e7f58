//! Files that are private, and are replaced whole.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use super::LOCK;

/// Replaces a file whole or not at all, for its owner only.
///
/// # Errors
/// When the disk refuses.
pub(crate) fn replace(path: &Path, contents: &[u8]) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let mut file =
        private(OpenOptions::new().create(true).truncate(true).write(true)).open(&beside)?;
    file.write_all(contents)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    File::open(path.parent().unwrap_or(path))?.sync_all()
}

/// What is above it may belong to others too: only the directory itself is private.
///
/// # Errors
/// When the disk refuses.
pub(crate) fn make_directory(path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

/// One that is for its owner only already needs nothing: perhaps it can only be read.
pub(super) fn make_private(path: &Path) -> io::Result<()> {
    let is_private = |mode: u32| mode & 0o777 == 0o700;
    if fs::metadata(path).is_ok_and(|found| is_private(found.permissions().mode())) {
        return Ok(());
    }
    match fs::set_permissions(path, fs::Permissions::from_mode(0o700)) {
        // Nothing can be written into it, so there is nothing to be hidden that wasn't open before.
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
            tracing::warn!("the state directory {} is open for others", path.display());
            Ok(())
        }
        done => done,
    }
}

/// Lock that needs no write: on the file from before, else on the directory.
pub(super) fn open_lock(path: &Path) -> io::Result<File> {
    let file = path.join(LOCK);
    let lock = private(OpenOptions::new().create(true).truncate(false).write(true)).open(&file);
    lock.or_else(|error| File::open(&file).or_else(|_| File::open(path)).map_err(|_| error))
}

pub(super) fn private(options: &mut OpenOptions) -> &mut OpenOptions {
    options.mode(0o600)
}
