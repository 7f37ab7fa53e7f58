//! Mesh DNS: the zone by itself, the server on loopback, the host's resolver in a directory.

mod host_resolver;
mod serving;
mod support;
mod zone;
