//! The agent: the IO shell round the pure parts.
//!
//! Nothing here decides about a packet, a flow or a request. This crate opens the sockets, the TUN
//! device, the files and the control stream, and carries bytes and events between them and
//! `isthmus-core` (packets), `isthmus-proxy` (requests) and `isthmus-policy` (decisions).
//!
//! The agent's life has two states. *Unjoined*, it only serves its Unix socket and waits for a
//! token. As a *member* it works by a snapshot of the mesh: the one on disk at first, then
//! whatever the controller sends. [`app`] is the composition root and reads top-down;
//! [`membership`] is what a member does; [`overlay`] is everything that exists only while there is a
//! snapshot (device, packet thread, proxy, DNS).
//!
//! Two worlds of threads: the control plane runs on tokio, the data plane on threads of its own
//! ([`dataplane`]) which never wait for the control plane. They talk through bounded channels.

#![forbid(unsafe_code)]

mod addresses;
pub mod app;
mod callers;
mod clock;
mod containers;
mod credential;
mod dataplane;
pub mod dns;
pub mod doctor;
mod firewall;
mod gateway;
pub mod guard;
pub mod identity;
mod join;
mod keeper;
mod kept_device;
pub mod leave;
mod local;
pub mod logging;
mod membership;
mod memory;
mod network;
mod overlay;
mod own_ports;
mod owners;
mod patience;
mod places;
mod ports;
mod programs;
mod refusals;
pub mod settings;
pub mod state_dir;
mod status;
mod sync;
mod systemd;
mod telemetry;
mod tls;
mod vitals;
mod watchdog;
mod words;
