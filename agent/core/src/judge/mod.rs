//! Policy decision for a packet that belongs to no flow, by a revision and the socket's owner.

mod adopt;
mod decide;

use std::sync::Arc;

use crate::snapshot::{CompiledSnapshot, Deaf};
pub(crate) use decide::{Decision, Refusal, port_of};

/// Judges packets by a revision.
pub(crate) struct Judge {
    pub(crate) state: Arc<CompiledSnapshot>,
    /// Counts revisions: what was judged under an earlier one is judged again.
    pub(crate) epoch: u32,
    /// Listening port of the proxy.
    pub(crate) proxy_port: u16,
    pub(crate) deaf: Deaf,
}
