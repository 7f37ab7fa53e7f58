//! Who calls, and what they may.

pub(crate) mod authorize;
pub(crate) mod first_speaker;
pub(crate) mod info;
