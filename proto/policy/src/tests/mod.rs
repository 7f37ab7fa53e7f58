//! Tests of the whole engine.

mod capabilities;
mod golden;
mod properties;
mod size;
mod streams;
mod suggestions;
mod topologies;

use isthmus_model::topology::{SourceFile, Topology, parse};

/// Reads a topology that has no errors.
fn topology(text: &str) -> Topology {
    let file = SourceFile { name: "mesh.toml".into(), text: text.to_owned() };
    parse(&[file]).unwrap_or_else(|wrong| panic!("{wrong:?}"))
}
