//! Snapshots as the control protocol's resources, and back.
//!
//! The way there always succeeds. The way back believes nothing: whatever the resources say, either
//! they make a [`Snapshot`] whose invariants hold, or a [`ConvertError`] names the resource that is
//! wrong. The order of the resources doesn't matter; that of the rules is in each rule's `order`.

mod application;
mod balance;
mod check;
mod decode;
mod edge;
mod encode;
mod jwt;
mod ratelimit;
mod routes;
#[cfg(test)]
mod tests;

pub use decode::{is_foreign, snapshot};
pub use encode::resources;

/// Why resources don't make a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("resource {key:?}: {reason}")]
pub struct ConvertError {
    /// The resource's key.
    pub key: String,
    /// What is wrong with it.
    pub reason: String,
}

impl ConvertError {
    fn new(key: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { key: key.into(), reason: reason.into() }
    }
}
