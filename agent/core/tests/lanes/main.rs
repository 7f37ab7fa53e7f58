//! Lanes that share a node, in many orders: shuttle chooses which thread goes on wherever one takes
//! a lock.
//!
//! ```text
//!   host 1                                                       host 2
//!   outbound 0 ─┐ decide, seal ─▶ by the receiver's lane ─▶ ┌─ inbound 0   find keys, open,
//!   outbound 1 ─┼ ─────────────────────────────────────────▶└─ inbound 1   decide, write
//!   outbound 2 ─┘                                                       keeper
//!   inbound 0, inbound 1, keeper ◀────────────────────────── what host 2 says of itself
//! ```
//!
//! Nodes, sessions, sealing and opening are the real ones. The threads are written as the agent's
//! are, without a kernel: the network is a queue for each lane.
//!
//! A failure prints its schedule, which `shuttle::replay` plays again. `ISTHMUS_SCHEDULES` asks for
//! more of them (default 60 of each kind a test), from another seed each time.

mod host;
mod ledger;
mod mesh;
mod traffic;
mod wire;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Config, Runner};

use host::Step;
use mesh::{Mesh, Replays};
use traffic::Flow;

/// Nodes have packets on their stacks.
const STACK_BYTES: usize = 1 << 19;
/// Number of changes in a schedule of the second kind.
const CHANGES: usize = 4;

#[test]
fn what_lanes_send_arrives_once_and_in_order() {
    explore(|| {
        let mut mesh = Mesh::new(Duration::ZERO);
        mesh.play(Vec::new(), Vec::new(), Replays::No);
        for flow in Flow::ALL.into_iter().filter(|flow| flow.ends_at(2)) {
            mesh.ledger().assert_all_arrived_in_order(flow);
        }
        mesh.assert_counters_add_up();
    });
}

#[test]
fn a_datagram_that_two_lanes_have_at_once_is_taken_once() {
    explore(|| {
        let mut mesh = Mesh::new(Duration::ZERO);
        mesh.play(Vec::new(), Vec::new(), Replays::ByTheOtherLane);
        for flow in Flow::ALL.into_iter().filter(|flow| flow.ends_at(2)) {
            mesh.ledger().assert_all_arrived(flow);
        }
        mesh.assert_counters_add_up();
    });
}

#[test]
fn nothing_of_a_flow_is_decided_after_the_revision_that_cuts_it() {
    static CUT_MIDWAY: AtomicUsize = AtomicUsize::new(0);
    explore(|| {
        let mut mesh = Mesh::new(Duration::ZERO);
        let here = vec![Step::Tick, mesh.revision(1), Step::Tick];
        let there = vec![Step::Tick, mesh.revision(2), Step::Tick];
        mesh.play(here, there, Replays::No);
        let ledger = mesh.ledger();
        for flow in Flow::ALL.into_iter().filter(|flow| flow.ends_at(2)) {
            if flow.is_cut() {
                ledger.assert_some_arrived_in_order(flow);
            } else {
                ledger.assert_all_arrived_in_order(flow);
            }
        }
        let cut = Flow::ALL.into_iter().filter(|flow| flow.is_cut());
        if cut.into_iter().any(|flow| ledger.is_cut_midway(flow)) {
            CUT_MIDWAY.fetch_add(1, Ordering::Relaxed);
        }
        drop(ledger);
        mesh.assert_counters_add_up();
    });
    assert!(CUT_MIDWAY.load(Ordering::Relaxed) > 0, "a revision among the packets of its flows");
}

#[test]
fn a_rekey_among_packets_loses_none() {
    static BY_BOTH: AtomicUsize = AtomicUsize::new(0);
    explore(|| {
        let mut mesh = Mesh::new(mesh::UNTIL_REKEY);
        let ticks = || (0..12).map(|_| Step::Tick).collect();
        mesh.play(ticks(), ticks(), Replays::No);
        let ledger = mesh.ledger();
        for flow in Flow::ALL.into_iter().filter(|flow| flow.ends_at(2)) {
            ledger.assert_all_arrived_in_order(flow);
        }
        if ledger.sessions_to(2) > 1 {
            BY_BOTH.fetch_add(1, Ordering::Relaxed);
        }
    });
    assert!(BY_BOTH.load(Ordering::Relaxed) > 0, "packets by the session before and by the next");
}

/// Runs `test` under schedules that choose anew at each step, and under such that seldom do.
fn explore(test: impl Fn() + Send + Sync + Copy + 'static) {
    let (schedules, seed) = match std::env::var("ISTHMUS_SCHEDULES") {
        Ok(text) => (text.parse().expect("ISTHMUS_SCHEDULES: a number"), None),
        Err(_) => (60, Some(7)),
    };
    let random = match seed {
        Some(seed) => RandomScheduler::new_from_seed(seed, schedules),
        None => RandomScheduler::new(schedules),
    };
    let changing = match seed {
        Some(seed) => PctScheduler::new_from_seed(seed, CHANGES, schedules),
        None => PctScheduler::new(CHANGES, schedules),
    };
    Runner::new(random, config()).run(test);
    Runner::new(changing, config()).run(test);
}

fn config() -> Config {
    let mut config = Config::new();
    config.stack_size = STACK_BYTES;
    config
}
