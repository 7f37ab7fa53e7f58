//! The mesh's other programs on this machine.

use std::path::{Path, PathBuf};

pub(crate) const AGENT: &str = "isthmus-agent";

/// Beside this program, or where packages put it.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    let here = std::env::current_exe().ok();
    let beside = here.as_deref().and_then(Path::parent).map(|folder| folder.join(name));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/bin".into(), "/usr/sbin".into()]);
    let known = folders.map(|folder| folder.join(name));
    beside.into_iter().chain(known).find(|path| path.is_file())
}
