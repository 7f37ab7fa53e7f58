//! Replays the fuzz corpora: what the fuzzer found worth keeping stays tested without it.

#[cfg(feature = "sim")]
#[path = "../../fuzz/properties/bulk.rs"]
mod bulk;
#[path = "../../fuzz/properties/corpus.rs"]
mod corpus;
#[cfg(feature = "sim")]
#[path = "../../fuzz/properties/node.rs"]
mod node;
#[cfg(feature = "sim")]
#[path = "../../fuzz/properties/offload.rs"]
mod offload;
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

#[cfg(feature = "sim")]
#[test]
fn super_packets_hold_their_properties() {
    corpus::replay("offload", offload::hold);
}

#[cfg(feature = "sim")]
#[test]
fn bulk_sessions_hold_their_properties() {
    corpus::replay("bulk", bulk::hold);
}
