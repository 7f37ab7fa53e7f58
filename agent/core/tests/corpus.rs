//! Replays the fuzz corpora: what the fuzzer found worth keeping stays tested without it.

#[path = "../../fuzz/properties/corpus.rs"]
mod corpus;
#[cfg(feature = "sim")]
#[path = "../../fuzz/properties/node.rs"]
mod node;
#[path = "../../fuzz/properties/packet.rs"]
mod packet;

#[test]
fn packets_hold_their_properties() {
    corpus::replay("packet", packet::hold);
}

#[cfg(feature = "sim")]
#[test]
fn nodes_hold_their_properties() {
    corpus::replay("node", node::hold);
}
