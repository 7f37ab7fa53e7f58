//! The words of a mesh, as types: names, identities, addresses, rules, snapshots, and the topology
//! language with its checks.
//!
//! Everything that two parts of Isthmus must agree on and that is not a message on the wire lives
//! here. It is pure: no clock, no sockets, no runtime. Parse, don't validate: a value of these types
//! is already right.
//!
//! The central idea is that *the address is the tag*: every workload has an overlay address of its
//! own, so that a packet carries the identities of both services ([`address`]).

#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod address;
pub mod application;
mod audit;
pub mod balance;
pub mod capability;
pub mod condition;
#[cfg(feature = "proto")]
pub mod convert;
pub mod directory;
pub mod edge;
pub mod guard;
pub mod identity;
pub mod jwt;
pub mod key;
pub mod name;
#[cfg(feature = "proto")]
pub mod problems;
pub mod ratelimit;
pub mod resilience;
pub mod route;
pub mod rules;
pub mod snapshot;
pub mod token;
pub mod topology;

pub use address::{Ipv4Net, MeshPrefix};
pub use application::{Application, HttpVersion, ProxyProtocol, SeenSource};
pub use audit::Audited;
pub use balance::{Balance, BalancePolicy, HashKey};
pub use capability::{Capabilities, Capability};
pub use condition::Condition;
#[cfg(feature = "proto")]
pub use convert::ConvertError;
pub use directory::{Directory, Place};
pub use edge::{Edge, External, Gateway};
pub use guard::{Exposure, ListenerCheck, PortGuard};
pub use identity::{DeviceId, HostId, Identity, Principal, ServiceId, TrustDomain};
pub use isthmus_host as host;
pub use jwt::{JwtMatch, JwtProvider, KeySource, TokenPlace};
pub use key::PublicKey;
pub use name::Name;
#[cfg(feature = "proto")]
pub use problems::{Code, Problem, Problems};
pub use ratelimit::{LimitKey, LimitScope, RateLimit};
pub use resilience::{Breaker, HealthCheck, HealthProbe, Outlier};
pub use route::Route;
pub use rules::{Action, Layer4, Origin, PortRule, RequestMatch, Rule, Rules, Subject};
pub use snapshot::{
    ContainerMatch, Device, Host, Mesh, PathMode, Protocol, Revision, Selector, Service,
    ServicePort, Snapshot,
};
