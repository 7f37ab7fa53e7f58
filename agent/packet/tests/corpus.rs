//! Replays the fuzz corpora: what the fuzzer found worth keeping stays tested without it.

#[path = "../../fuzz/properties/corpus.rs"]
mod corpus;
#[path = "../../fuzz/properties/offload.rs"]
mod offload;
#[path = "../../fuzz/properties/packet.rs"]
mod packet;

#[test]
fn packets_hold_their_properties() {
    corpus::replay("packet", packet::hold);
}

#[test]
fn super_packets_hold_their_properties() {
    corpus::replay("offload", offload::hold);
}
