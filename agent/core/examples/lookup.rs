//! Measures what a flow's packets cost in time: needs a calm machine.
//!
//!     cargo run --release -p isthmus-core --features sim --example lookup
//!
//! The goals are 60 ns for a packet of a flow that is known, and 10 µs for the first packet of a
//! flow under 100,000 rules (the look-up of its socket aside).

#![expect(clippy::print_stdout, reason = "a program for people")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use isthmus_core::sim::bench::{Established, First, Ruled};
use isthmus_packet::Headers;

/// Packets that are timed together: reading the clock costs as much as looking up one.
const BATCH: usize = 1000;
const ROUNDS: usize = 300;
const FIRST_PACKETS: usize = 20_000;

fn main() {
    println!("{:<56} {:>12} {:>12}", "", "median", "99 of 100");
    for connections in [1, 1000, 30_000, 1_000_000] {
        known(connections);
    }
    for rules in [10, 100_000] {
        let mut bench = Ruled::new(rules);
        first(&mut bench, "allowed", rules, true);
        first(&mut bench, "denied by default", rules, false);
    }
}

/// Packets of random flows out of so many.
fn known(connections: usize) {
    let mut bench = Established::new(connections);
    let mut seed = 1;
    let mut spent = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        // Each time others: their flows mustn't be in the cache already.
        let batch = packets(&bench, connections, &mut seed);
        spent[0].push(each(&batch, |(packet, _)| Headers::parse(packet).ok()));
        let batch = packets(&bench, connections, &mut seed);
        spent[1].push(each(&batch, |(_, headers)| bench.look_up(headers)));
        let batch = packets(&bench, connections, &mut seed);
        spent[2].push(each(&batch, |(packet, headers)| bench.note(packet, headers)));
    }
    let [parse, look_up, note] = &mut spent;
    line(&format!("{connections} flows: parse"), parse);
    line(&format!("{connections} flows: look-up and cached verdict"), look_up);
    line(&format!("{connections} flows: look-up, cached verdict and counting"), note);
}

fn packets(bench: &Established, connections: usize, seed: &mut u64) -> Vec<(Vec<u8>, Headers)> {
    let picks = (0..BATCH).map(|_| next(seed) as usize % connections);
    let packets = picks.map(|connection| bench.packet(connection));
    packets.filter_map(|packet| Headers::parse(&packet).ok().map(|it| (packet, it))).collect()
}

/// Time per item of a batch.
fn each<T, R>(batch: &[T], mut work: impl FnMut(&T) -> Option<R>) -> Duration {
    let mut work = |it| black_box(work(black_box(it))).is_some();
    let mut done = 0;
    let spent = time(|| done = batch.iter().filter(|it| work(it)).count());
    assert_eq!(done, BATCH, "a packet that isn't known");
    spent / BATCH as u32
}

/// First packets of flows, from the TUN device to the tunnel or to the refusal.
fn first(bench: &mut Ruled, fate: &str, rules: usize, is_allowed: bool) {
    let mut packets: Vec<First> =
        (0..FIRST_PACKETS).map(|flow| bench.first(flow, is_allowed)).collect();
    let mut spent: Vec<Duration> =
        packets.iter_mut().map(|packet| time(|| bench.handle(packet))).collect();
    line(&format!("{rules} rules: first packet of a flow, {fate}"), &mut spent);
}

fn time(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

fn line(what: &str, spent: &mut [Duration]) {
    spent.sort_unstable();
    let at = |percent: usize| spent[(spent.len() - 1) * percent / 100].as_nanos();
    println!("{what:<56} {:>9} ns {:>9} ns", at(50), at(99));
}

/// A linear congruential generator (Knuth, MMIX), without its weak low bits.
fn next(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *seed >> 33
}
