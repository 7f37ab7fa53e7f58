//! The controller without its sockets, clock and disk: who belongs to the mesh, which numbers and
//! addresses everything has, and what each host needs to know.
//!
//! [`State`] is everything that must survive a restart. Each operation on it (a host joins, an
//! operator applies a topology, …) is a pure function that returns the next state, one revision on,
//! or says why not; the caller makes it durable and only then shows it to anybody.
//!
//! [`MeshSnapshot`] is a state looked at as a whole: every host, service and device with its addresses, and
//! who may exchange traffic with whom. A host is sent a *slice* of it ([`MeshSnapshot::slice`]): what it may
//! exchange traffic with, and no more. Between two slices of one host lies a [`Delta`].

#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod allocation;
mod audit;
mod consequences;
mod delta;
mod diagnostic;
mod endpoints;
mod epochs;
mod inventory;
mod leaving;
mod operators;
mod pending;
mod pool;
mod revision_hosts;
mod revisions;
pub mod rollout;
mod rotation;
pub mod shares;
mod state;
mod text;
mod tokens;
mod world;

pub use allocation::{Allocation, AllocationError};
pub use audit::{Act, Audit};
pub use consequences::Consequences;
pub use delta::Delta;
pub use endpoints::candidates;
pub use epochs::Epochs;
pub use inventory::{Inventory, Member, RequestHash};
pub use leaving::Leaving;
pub use operators::{Operator, Operators, Role, TooMany, UnknownRole};
pub use pending::Pending;
pub use revision_hosts::RevisionHosts;
pub use revisions::{AppliedRevision, Revisions};
pub use rotation::{Rotation, RotationError, pinned_by};
pub use state::{Admission, JoinError, MeshIdentity, Newcomer, State};
pub use tokens::{TokenRecord, TokenRefusal};
pub use world::MeshSnapshot;
