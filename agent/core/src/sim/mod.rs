//! A mesh in one thread: nodes, the network between them, and a clock that jumps.
//!
//! Everything is deterministic by the seed, but for boringtun's keys and its own view of the time
//! (see `tunnel.rs`), which no scenario here depends on.

pub mod bench;
pub mod bulk;
pub mod device;
pub mod fuzz;
pub mod host;
pub mod network;
pub mod packets;
pub mod topology;
pub mod world;

pub use device::Device;
pub use fuzz::fuzz_sequence;
pub use host::{Host, Kernel};
pub use network::{Link, Network};
pub use topology::{Builder, Topology};
pub use world::World;

#[cfg(test)]
mod tests;
