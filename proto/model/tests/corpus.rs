//! Replays the fuzz corpora: what the fuzzer found worth keeping stays tested without it.

#[path = "../../../agent/fuzz/properties/corpus.rs"]
mod corpus;
#[cfg(feature = "proto")]
#[path = "../../../agent/fuzz/properties/resources.rs"]
mod resources;
#[path = "../../../agent/fuzz/properties/token.rs"]
mod token;
#[path = "../../../agent/fuzz/properties/topology.rs"]
mod topology;

#[test]
fn tokens_hold_their_properties() {
    corpus::replay("token", token::hold);
}

#[test]
fn topologies_hold_their_properties() {
    corpus::replay("topology", topology::hold);
}

#[cfg(feature = "proto")]
#[test]
fn resources_hold_their_properties() {
    corpus::replay("resources", resources::hold);
}
