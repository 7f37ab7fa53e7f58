//! Files that nobody else may read.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// Makes a folder for the owner only. One that exists and is empty becomes so; one that isn't empty
/// is somebody's, and stays as it is.
pub(crate) fn private_folder(path: &Path) -> Result<()> {
    let make = || {
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        if fs::read_dir(path)?.next().is_none() {
            fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
        }
        Ok::<_, io::Error>(())
    };
    make().with_context(|| format!("Failed to make the folder {}", path.display()))
}

/// Writes a file that must not exist yet, for the owner only, and waits until it is on disk.
pub(crate) fn private_file(path: &Path, contents: &[u8]) -> Result<()> {
    create(path)
        .and_then(|mut file| {
            file.write_all(contents)?;
            file.sync_all()
        })
        .with_context(|| format!("Failed to write {}", path.display()))
}

/// Makes a folder that is there whole or not at all: filled beside its place, then renamed.
pub(crate) fn whole_folder(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let beside = beside(path);
    remove(&beside)?;
    private_folder(&beside)?;
    fill(&beside)?;
    flush(&beside)?;
    rename(&beside, path)
}

/// Where a file or folder is made before it takes its place.
pub(crate) fn beside(path: &Path) -> PathBuf {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    beside.into()
}

/// Gives a file or folder its place, for good once this returns.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).with_context(|| format!("Failed to write {}", to.display()))?;
    flush(match to.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    })
}

/// Removes a file or a folder, if it is there.
pub(crate) fn remove(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("Failed to remove {}", path.display()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn flush(folder: &Path) -> Result<()> {
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .with_context(|| format!("Failed to write {}", folder.display()))
}

pub(crate) fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)
}

pub(crate) fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("Failed to read {}", path.display()))
}
