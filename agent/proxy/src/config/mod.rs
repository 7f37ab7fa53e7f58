//! Proxy configuration: one revision of the mesh, its routes, limits and keys, ready for look-ups.

pub(crate) mod fields;
pub(crate) mod host_services;
pub(crate) mod jwt;
pub(crate) mod life;
pub(crate) mod limits;
pub(crate) mod listens;
pub(crate) mod parties;
pub(crate) mod ratelimit;
pub(crate) mod routes;
pub(crate) mod view;
