//! Callers and their authorization.

pub(crate) mod authorize;
pub(crate) mod connection;
pub(crate) mod context;
pub(crate) mod entry;
pub(crate) mod first_speaker;
pub(crate) mod info;
