//! The topology language: what operators write.
//!
//! [`parse`] reads any number of files as one topology and either gives a [`Topology`] without
//! contradictions, or says everything that is wrong with it, each thing with its place, its cause
//! and what to write instead ([`Diagnostic`]). [`diff`] tells two topologies apart in an operator's
//! words.
//!
//! Rooms, from the ground (`scripts/rooms.toml`), as a file passes them:
//!
//! ```text
//!  text ──read──▶ tables of TOML ──tables, of values──▶ draft ──check──▶ Topology
//!                 with their places   each by itself           between tables
//! ```
//!
//! `decl` what a topology says, once it is read · `read` TOML with places, reports · `values` single values ·
//! `tables` a file for each kind of table · `draft` all tables · `check` between them · `parse` the whole way ·
//! `diff`, `warn` about topologies · `reference` all keys, for people.

mod check;
mod decl;
mod diff;
mod draft;
mod parse;
mod read;
pub mod reference;
mod tables;
#[cfg(test)]
mod tests;
mod values;
mod warn;

pub use decl::{
    DeviceDecl, Diagnostic, HostDecl, LatencyBound, LatencyGoal, MeshDecl, OnFailure, Placement,
    RolloutDecl, ServiceDecl, SourceFile, TestDecl, TestRequest, TestToken, Topology,
};
pub use diff::{Change, ChangeKind, diff};
pub use parse::parse;
pub use read::{setting_at, setting_error};
pub use warn::{Warning, warnings};
