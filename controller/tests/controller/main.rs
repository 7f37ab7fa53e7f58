//! A controller on loopback, and hand-made agents and operators.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod admin;
mod capabilities;
mod door;
mod join;
mod lab;
mod leaving;
mod operators;
mod outage;
mod revisions;
mod rotation;
mod sync;
mod twins;
mod units;
