//! Super-packets: what is split and put together again is what it was, broken checksums and all. Played by
//! [`isthmus_core::sim::offload`].

use isthmus_core::sim::offload::fuzz_offload;

/// Says whether `input` was understood.
pub(crate) fn hold(input: &[u8]) -> bool {
    fuzz_offload(input)
}
