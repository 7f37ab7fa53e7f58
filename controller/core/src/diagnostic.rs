//! Points at the place in the operator's files that an error is about.

use std::ops::Range;
use std::sync::Arc;

use isthmus_model::Origin;
use isthmus_model::topology::{Diagnostic, SourceFile, Topology};

use crate::allocation::AllocationError;

pub(crate) fn allocation(
    error: &AllocationError,
    topology: &Topology,
    files: &[SourceFile],
) -> Diagnostic {
    let origin = match error {
        AllocationError::RangeInUse { key, .. } => return in_mesh(files, key, error),
        AllocationError::NoBlockLeft { .. } => return in_mesh(files, "ipv4", error),
        AllocationError::BlockTaken { host, .. } | AllocationError::BlockFull { host, .. } => {
            topology.hosts.get(host).map(|declared| &declared.origin)
        }
        AllocationError::NoVirtualLeft { service, .. } => {
            topology.services.get(service).map(|declared| &declared.origin)
        }
    };
    match origin {
        Some(origin) => at(files, origin, error.to_string(), error.help()),
        None => in_mesh(files, "ipv4", error),
    }
}

/// At a line, from its first to its last visible character.
pub(crate) fn at(
    files: &[SourceFile],
    origin: &Origin,
    message: String,
    help: String,
) -> Diagnostic {
    let text = files.iter().find(|file| file.name == origin.file).map_or("", |file| &file.text);
    let mut start = 0;
    for (number, line) in (1..).zip(text.split_inclusive('\n')) {
        if number == origin.line {
            return visible(&origin.file, number, start, line, message, help);
        }
        start += line.len();
    }
    let span = Range { start: 0, end: 0 };
    Diagnostic { file: origin.file.clone(), line: origin.line, column: 1, span, message, help }
}

/// At a key of `[mesh]`, or at `[mesh]` itself, or at the first line there is.
pub(crate) fn mesh_key(
    files: &[SourceFile],
    key: &str,
    message: String,
    help: String,
) -> Diagnostic {
    let mut best = None;
    for file in files {
        let mut in_mesh = false;
        for (number, line) in (1..).zip(file.text.lines()) {
            let line = line.trim();
            if line.starts_with('[') {
                in_mesh = line.starts_with("[mesh]");
            }
            let origin = || Origin { file: file.name.clone(), line: number };
            if in_mesh && line.split('=').next().map(str::trim) == Some(key) {
                return at(files, &origin(), message, help);
            }
            if in_mesh && best.is_none() {
                best = Some(origin());
            }
        }
    }
    let first = files.first().map_or_else(|| Arc::from("topology"), |file| file.name.clone());
    let origin = best.unwrap_or(Origin { file: first, line: 1 });
    at(files, &origin, message, help)
}

fn in_mesh(files: &[SourceFile], key: &str, error: &AllocationError) -> Diagnostic {
    mesh_key(files, key, error.to_string(), error.help())
}

fn visible(
    file: &Arc<str>,
    line: u32,
    start: usize,
    text: &str,
    message: String,
    help: String,
) -> Diagnostic {
    let indent = text.len() - text.trim_start().len();
    let span = start + indent..start + indent.max(text.trim_end().len());
    let column = u32::try_from(text[..indent].chars().count() + 1).unwrap_or(u32::MAX);
    Diagnostic { file: file.clone(), line, column, span, message, help }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_at_the_key_in_the_mesh_table() {
        let text = "[host.a]\nipv4 = 1\n\n[mesh]\n  ipv4 = \"10.0.0.0/8\"\n".to_owned();
        let files = [SourceFile { name: "mesh.toml".into(), text }];
        let found = mesh_key(&files, "ipv4", String::new(), String::new());
        assert_eq!((found.line, found.column), (5, 3));
        assert_eq!(&files[0].text[found.span], "ipv4 = \"10.0.0.0/8\"");
    }
}
