//! HTTP/2, which hyper reads and writes.

pub mod gather;
mod server;

pub use gather::{Gather, Gathered};
pub use server::{WindowBytes, serve};
