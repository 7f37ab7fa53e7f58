//! Super-packets: what is split and put together again is what it was, broken checksums and all. Played by
//! [`isthmus_packet::testing`].

use isthmus_packet::testing::fuzz_offload;

/// Says whether `input` was understood.
pub(crate) fn hold(input: &[u8]) -> bool {
    fuzz_offload(input)
}
