//! Replays the fuzz corpora: what the fuzzer found worth keeping stays tested without it.

#[path = "../../../agent/fuzz/properties/corpus.rs"]
mod corpus;
#[path = "../../../agent/fuzz/properties/request_path.rs"]
mod request_path;

#[test]
fn request_paths_hold_their_properties() {
    corpus::replay("request_path", request_path::hold);
}
