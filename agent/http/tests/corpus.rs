//! Replays the fuzz corpora: what the fuzzer found worth keeping stays tested without it.

#[path = "../../fuzz/properties/corpus.rs"]
mod corpus;
#[path = "../../fuzz/properties/detect.rs"]
mod detect;
#[path = "../../fuzz/properties/http1.rs"]
mod http1;
#[path = "../../fuzz/properties/sni.rs"]
mod sni;

#[test]
fn requests_are_read_in_one_way() {
    corpus::replay("http1", http1::hold);
}

#[test]
fn server_names_hold_their_properties() {
    corpus::replay("sni", sni::hold);
}

#[test]
fn detection_holds_its_properties() {
    corpus::replay("detect", detect::hold);
}
