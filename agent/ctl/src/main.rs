//! `agentctl`, the face of Isthmus: operators change and watch the mesh with it, and everyone on a
//! host asks its agent why something works or doesn't.
//!
//! It speaks to two parties. The *controller* is asked with an operator's credentials, over TLS
//! ([`transport::Session::controller`]); the *agent* of this host on its Unix socket
//! ([`transport::Session::agent`]). `validate`, and `explain -f`, need neither.
//!
//! Every command gives text for people, or with `-o json` one value for programs. Every failure
//! ends in one sentence that says what to do next, and in an exit code that scripts can rely on
//! ([`errors::Exit`]).

#![forbid(unsafe_code)]

mod addresses;
mod agent_view;
mod apply;
mod check;
mod cli;
mod commands;
mod convergence;
mod credentials;
mod diagnostics;
mod errors;
mod explain;
mod flows;
mod inventory;
mod join;
mod leave;
mod mesh_view;
mod operator;
mod output;
mod ping;
mod problems;
mod programs;
mod reference;
mod rollout;
mod routes;
mod schema;
mod sources;
mod stat;
mod status;
mod tap;
#[cfg(test)]
mod tests;
mod token;
mod topology;
mod transport;
mod validate;
mod wait;
mod whois;
mod words;
mod world;

use std::process::ExitCode;

fn main() -> ExitCode {
    commands::main()
}
