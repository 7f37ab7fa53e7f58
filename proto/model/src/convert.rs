//! Snapshots as the control protocol's resources, and back.

/// Why resources don't make a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("resource {key:?}: {reason}")]
pub struct ConvertError {
    /// The resource's key.
    pub key: String,
    /// What is wrong with it.
    pub reason: String,
}
