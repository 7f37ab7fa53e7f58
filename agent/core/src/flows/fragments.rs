//! Fragment table: later fragments have no ports to find their flow by.

use isthmus_packet::{FlowKey, Rewrite};

use super::FlowRef;
use crate::types::Interface;

/// Decision about a first fragment.
#[derive(Clone, Copy)]
pub(crate) struct FragmentFlow {
    /// [`FlowRef::NONE`] if it was refused without one.
    pub(crate) flow: FlowRef,
    /// The first fragment's, as it came.
    pub(crate) key: FlowKey,
    pub(crate) leg: u8,
    pub(crate) ingress: Interface,
    /// Rewrite that makes the datagram the flow's, where its source differs from the flow's.
    pub(crate) adapt: Option<Rewrite>,
}
