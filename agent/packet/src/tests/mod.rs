//! Tests against etherparse, an implementation that shares nothing with it.

mod fragments;
mod offload;
mod oracle;
mod parsing;
mod replies;
mod rewriting;
mod translation;
