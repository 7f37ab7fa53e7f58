//! Files that nobody else may read.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use anyhow::{Context as _, Result};

/// Makes a folder for the owner only. One that exists and is empty becomes so; one that isn't empty
/// is somebody's, and stays as it is.
pub(crate) fn private_folder(path: &Path) -> Result<()> {
    let make = || {
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        if fs::read_dir(path)?.next().is_none() {
            fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
        }
        Ok::<_, std::io::Error>(())
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

pub(crate) fn create(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)
}

pub(crate) fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("Failed to read {}", path.display()))
}
