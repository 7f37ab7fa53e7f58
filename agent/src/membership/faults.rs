//! Problems of a membership, each with its remedy.

use std::path::Path;

use isthmus_model::{Capability, Problem};
use isthmus_proto::v1;

use super::{FOREIGN, NOT_FORGOTTEN, NOT_KEPT, TOO_NEW, UNWRITABLE};
use crate::sync::resources::Resources;

/// The disk refuses: the next start would be as the member that this host was, until it is told again.
pub(super) fn not_forgotten(error: &anyhow::Error) -> Problem {
    Problem::new(
        NOT_FORGOTTEN,
        format!(
            "the mesh that this host is no member of any more couldn't be forgotten: {error:#}"
        ),
        "make the state directory writable, then remove what is in it",
    )
}

/// That nothing can be kept.
#[must_use]
pub(crate) fn state_not_writable(folder: &Path, error: &anyhow::Error) -> Problem {
    let text = format!("nothing can be kept in the state directory: {error:#}");
    let remedy = of_disk(folder, &text);
    Problem::new(UNWRITABLE, text, remedy)
}

/// Remedy for a failed write, by its error.
pub(super) fn of_disk(folder: &Path, said: &str) -> String {
    let folder = folder.display();
    if said.contains("Read-only") {
        return format!(
            "`mount -o remount,rw \"$(findmnt -no TARGET -T {folder})\"`, once you know why it is read-only \
             (`dmesg`)"
        );
    }
    format!("make room there (`df -h {folder}`, `df -i {folder}`), or make it writable")
}

/// Parts of a snapshot that this agent is too old to understand.
pub(super) fn foreign(resources: &Resources) -> Option<Problem> {
    let keys: Vec<&str> = resources.foreign().collect();
    (!keys.is_empty()).then(|| {
        Problem::new(
            FOREIGN,
            format!("the controller sent what this agent doesn't know: {}", keys.join(", ")),
            "update the agent",
        )
    })
}

/// A newer agent kept it, and this one would read wider rules in it than it holds.
pub(super) fn too_new(kept: &v1::SnapshotResources) -> Option<Problem> {
    let known = |name: &str| Capability::ALL.into_iter().any(|it| it.name() == name);
    let unknown: Vec<&str> =
        kept.capabilities.iter().map(String::as_str).filter(|name| !known(name)).collect();
    (!unknown.is_empty()).then(|| {
        Problem::new(
            TOO_NEW,
            format!(
                "the kept revision {} was made for a newer agent ({}), and isn't worked by",
                kept.revision,
                unknown.join(", ")
            ),
            "update the agent; once a controller is reachable, it sends what this one can work by",
        )
    })
}

/// The data plane works by the revision already, but a restart would bring the one before it back.
pub(super) fn not_kept(folder: &Path, revision: u64, error: &anyhow::Error) -> Problem {
    let text = format!("revision {revision} couldn't be kept on disk: {error:#}");
    let remedy = of_disk(folder, &text);
    Problem::new(NOT_KEPT, text, remedy)
}
