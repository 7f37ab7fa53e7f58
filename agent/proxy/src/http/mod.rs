//! HTTP as bytes: what is read from a connection and written to it, whoever asks and whatever the mesh says.

pub(crate) mod activity;
pub(crate) mod body;
pub(crate) mod copy;
pub mod detect;
pub(crate) mod grpc;
pub(crate) mod h1;
pub(crate) mod h2;
pub(crate) mod headers;
pub(crate) mod interim;
pub(crate) mod io;
pub(crate) mod limits;
pub(crate) mod marks;
pub(crate) mod peek;
pub(crate) mod proxy_protocol;
pub(crate) mod random;
pub(crate) mod trace;
pub(crate) mod upgrade;
