//! A whole node's life: no sequence of packets, datagrams, revisions and times makes it panic or
//! outgrow its limits. The sequences are played by [`isthmus_core::sim::fuzz`].

use isthmus_core::sim::fuzz::fuzz_sequence;

/// `input` is a sequence of events. There is none that can't be played.
pub(crate) fn hold(input: &[u8]) -> bool {
    fuzz_sequence(input);
    true
}
