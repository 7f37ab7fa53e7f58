//! Replays the fuzz corpora: what the fuzzer found worth keeping stays tested without it.

#[path = "../fuzz/properties/corpus.rs"]
mod corpus;
#[path = "../fuzz/properties/dns.rs"]
mod dns;
#[path = "../fuzz/properties/traceparent.rs"]
mod traceparent;

use isthmus_agent::dns::zone;

#[test]
fn dns_answers_hold_their_properties() {
    corpus::replay("dns", dns::hold);
}

#[test]
fn trace_contexts_hold_their_properties() {
    corpus::replay("traceparent", traceparent::hold);
}
