//! HTTP/2, which hyper reads and writes.

pub(crate) mod gather;
mod server;

pub(crate) use gather::{Gather, Gathered};
pub(crate) use server::{WindowBytes, serve};
