//! The messages and services that controller, agents and `agentctl` speak, generated from
//! `isthmus/v1/*.proto`.

#![forbid(unsafe_code)]

/// Version 1 of the protocol.
#[allow(
    clippy::all,
    clippy::pedantic,
    clippy::restriction,
    unreachable_pub,
    unused_qualifications,
    missing_debug_implementations,
    reason = "generated code: which of them it offends changes with the generator"
)]
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/isthmus.v1.rs"));
}
