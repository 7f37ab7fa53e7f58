//! HTTP as bytes: what is read from a connection and written to it, whoever asks and whatever the mesh says.
//!
//! ```text
//!  bytes ── detect ──▶ h1 | h2 ── Request<Incoming> ──▶ a Service ── Response ──▶ h1 | h2 ──▶ bytes
//!                                                          └─▶ h1::client, to an application
//! ```
//!
//! It is given who answers ([`h1::server::Service`]), what is sent ([`h1::client::OutgoingBody`]) and what watches a connection
//! ([`activity::Activity`]), and knows neither names nor rules. What two programs could read in two ways is refused.

#![forbid(unsafe_code)]

pub mod activity;
pub mod body;
pub mod copy;
pub mod detect;
pub mod grpc;
pub mod h1;
pub mod h2;
pub mod headers;
pub mod interim;
pub mod io;
pub mod limits;
pub mod marks;
pub mod peek;
pub mod proxy_protocol;
pub mod random;
pub mod trace;
pub mod upgrade;
