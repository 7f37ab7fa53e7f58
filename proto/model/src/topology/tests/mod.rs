//! Whole topologies, right and wrong.

mod bounds;
mod differences;
mod reference;
mod right;
mod wrong;

use super::*;

/// A topology of one file.
fn file(text: &str) -> SourceFile {
    named("mesh.toml", text)
}

fn named(name: &str, text: &str) -> SourceFile {
    SourceFile { name: name.into(), text: text.to_owned() }
}

/// Reads a topology that must be right.
fn read(text: &str) -> Topology {
    let topology = parse(&[file(text)]).unwrap_or_else(|errors| panic!("{}", show(&errors)));
    reference::takes(text);
    topology
}

fn show(errors: &[Diagnostic]) -> String {
    errors.iter().map(|error| format!("{error}\n")).collect()
}
