//! The proxy on loopback: addresses in 127.64.0.0/10 stand for the mesh's.

mod access;
mod application;
mod auto;
mod changes;
mod edge;
mod framing;
mod hops;
mod http1;
mod patience;
mod resilience;
mod room;
mod routed;
mod routes;
mod smuggling;
mod streams;
pub(crate) mod support;
mod telemetry;
mod tokens;
mod upgrades;
mod vectors;
