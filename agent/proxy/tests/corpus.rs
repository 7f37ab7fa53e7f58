//! Replays the committed corpus of the HTTP/1 fuzz target.

#[path = "../../fuzz/properties/corpus.rs"]
mod corpus;
#[path = "../../fuzz/properties/http1.rs"]
mod http1;

#[test]
fn requests_are_read_in_one_way() {
    corpus::replay("http1", http1::hold);
}
