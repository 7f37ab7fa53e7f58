//! Instructions that packets and decisions cost. `scripts/instructions` runs this under callgrind.
//!
//! ```text
//! instructions         tells the benchmarks' names
//! instructions NAME    runs one; what is to be counted happens in `counted`
//! ```
//!
//! What is counted is a batch, so that one flow's place in a table weighs little. Nothing here
//! seals: how many instructions that takes depends on what the processor has.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "what the script reads")]

use std::hint::black_box;

mod packets;
mod policy;

/// A benchmark's name, and what makes its input and runs it.
type Bench = (&'static str, fn());

fn main() {
    let benches = || packets::BENCHES.iter().chain(policy::BENCHES);
    let Some(wanted) = std::env::args().nth(1) else {
        benches().for_each(|(name, _)| println!("{name}"));
        return;
    };
    let (_, run) = benches().find(|(name, _)| *name == wanted).expect("a benchmark's name");
    run();
}

/// Callgrind counts from its beginning to its end, and finds it by its name. What takes and gives
/// memory stays outside.
#[inline(never)]
fn counted<Input, Output>(step: fn(Input) -> Output, input: Input) -> Output {
    step(black_box(input))
}
