//! Bulk sessions: whatever is said, changed or made up, nothing changed is opened, and nothing twice. Played by
//! [`isthmus_core::sim::bulk`].

use isthmus_core::sim::bulk::fuzz_bulk;

/// Says whether `input` was understood.
pub(crate) fn hold(input: &[u8]) -> bool {
    fuzz_bulk(input)
}
