//! The controller of a mesh: lets hosts join, tells each what it needs to know, and takes orders
//! from operators.
//!
//! It has one port, TLS 1.3 only, with four gRPC services behind it. Who may call which is decided
//! by the client's certificate ([`Caller`]): none for `Join` (the token decides there), a host's for
//! `Sync`, an operator's for `Admin`, as far as their role goes ([`operators`]), and for `Credentials`.
//!
//! What the mesh is and what may happen to it is decided in `isthmus-controller-core`, without IO.
//! Here, [`mesh::Mesh`] holds the current state, makes each next one durable ([`store`]) and only then
//! publishes it; the streams of all agents watch what is published, each picks its own slice out of
//! it and sends what differs from the last one that its agent accepted ([`sync`]).

#![forbid(unsafe_code)]

mod absence;
mod admin;
mod agents;
mod apply;
mod authority;
mod caller;
mod cli;
mod convergence;
mod credentials;
mod crowd;
mod events;
mod export;
mod files;
mod health;
mod history;
mod init;
mod join;
mod limits;
mod listener;
mod logging;
pub mod mesh;
mod mesh_file;
mod operators;
mod places;
mod relocations;
mod revisions;
mod rollout;
mod rotation;
mod server;
mod settings;
mod shares;
mod status;
pub mod store;
pub mod sync;
mod time;
mod tls;
mod tokens;
mod twins;

pub use authority::Membership;
pub use caller::{Caller, Peer};
pub use cli::main;
pub use init::{Init, init};
pub use server::serve;
pub use settings::{LogFormat, Settings};
