//! Mesh DNS: the zone by itself, the server on loopback, the host's resolver in a directory.

mod host_resolver;
mod serving;
pub(crate) mod support;
mod zone;
