//! A laboratory for meshes on one machine: hosts are network namespaces, programs are processes.
//!
//! A [`Lab`] owns namespaces with unique names and removes them when it is dropped, also when a
//! test fails; what a killed test run left behind goes with the next one's start. [`Mesh`] is the
//! usual set-up on top of it: a switch, a controller and agents that have joined.
//!
//! Nothing here sleeps for a result: [`wait_for`] polls a condition under a deadline and says what it
//! waited for.

#![forbid(unsafe_code)]

mod capture;
pub mod chaos;
mod lab;
mod mesh;
mod podman;
mod process;
mod wait;

pub use capture::{Capture, ends, frames};
pub use lab::{Lab, Link, Node};
pub use mesh::{Host, Joined, Mesh, MeshOptions};
pub use podman::{CONTAINER_LIMITS, Podman};
pub use process::{Output, Process, binary};
pub use wait::{wait_for, wait_for_value};
