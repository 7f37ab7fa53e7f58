//! Size of a waiting request's future: that much is copied when it begins, and held by each stream.

use std::future::Future;

use crate::exchange;
use crate::exchange::outbound;
use crate::pool::Backends;

fn of_three<A, B, C, F: Future>(_: impl Fn(A, B, C) -> F) -> usize {
    size_of::<F>()
}

fn of_four<A, B, C, D, F: Future>(_: impl Fn(A, B, C, D) -> F) -> usize {
    size_of::<F>()
}

fn of_five<A, B, C, D, E, F: Future>(_: impl Fn(A, B, C, D, E) -> F) -> usize {
    size_of::<F>()
}

#[test]
fn a_request_takes_little_room() {
    let (server, client) = (of_three(exchange::handle), of_four(outbound::handle));
    let sending = of_five(Backends::send);
    assert!(server <= 5120, "{server}");
    assert!(client <= 6144, "{client}");
    assert!(sending <= 2048, "{sending}");
}
