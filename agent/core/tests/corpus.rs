//! Replays the fuzz corpora: what the fuzzer found worth keeping stays tested without it.

#[path = "../../fuzz/properties/bulk.rs"]
mod bulk;
#[path = "../../fuzz/properties/corpus.rs"]
mod corpus;
#[path = "../../fuzz/properties/node.rs"]
mod node;

#[test]
fn nodes_hold_their_properties() {
    corpus::replay("node", node::hold);
}

#[test]
fn bulk_sessions_hold_their_properties() {
    corpus::replay("bulk", bulk::hold);
}
