//! A revision, made ready for packets: who is where, who may do what, which backend takes a flow; and whose a
//! socket is.

pub(crate) mod balance;
mod owners;
mod state;

pub use owners::{Deaf, Owner, Owners};
pub use state::CompiledSnapshot;
