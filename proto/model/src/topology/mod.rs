//! The topology language: what operators write.
//!
//! [`parse`] reads any number of files as one topology and either gives a [`Topology`] without
//! contradictions, or says everything that is wrong with it, each thing with its place, its cause
//! and what to write instead ([`Diagnostic`]). [`diff`] tells two topologies apart in an operator's
//! words.
//!
//! Reading has three steps, each in modules of its own:
//!
//! ```text
//!  text ──syntax──▶ TOML tree ──parse, declare, policy, route──▶ draft ──check──▶ Topology
//!                   with spans    one table at a time               between tables
//! ```

#[path = "check/addresses.rs"]
mod addresses;
#[path = "tables/application.rs"]
mod application;
#[path = "tables/balance.rs"]
mod balance;
#[path = "check/mod.rs"]
mod check;
#[path = "tables/service.rs"]
mod declare;
#[path = "diff/mod.rs"]
mod diff;
#[path = "tables/edge.rs"]
mod edge;
#[path = "check/edges.rs"]
mod edges;
#[path = "values/fields.rs"]
mod fields;
#[path = "tables/guard.rs"]
mod guard;
#[path = "tables/jwt.rs"]
mod jwt;
#[path = "tables/mesh.rs"]
mod mesh;
mod parse;
#[path = "tables/policy.rs"]
mod policy;
#[path = "tables/ports.rs"]
mod ports;
#[path = "tables/test.rs"]
mod question;
#[path = "tables/ratelimit.rs"]
mod ratelimit;
#[path = "read/reader.rs"]
mod reader;
pub mod reference;
#[path = "tables/rollout.rs"]
mod rollout;
#[path = "tables/route.rs"]
mod route;
#[path = "diff/routes.rs"]
mod route_words;
#[path = "check/routes.rs"]
mod routes;
#[path = "tables/action.rs"]
mod routing;
#[path = "read/suggest.rs"]
mod suggest;
#[path = "read/syntax.rs"]
mod syntax;
#[cfg(test)]
mod tests;
#[path = "values/mod.rs"]
mod values;
mod warn;
#[path = "values/words.rs"]
mod words;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use crate::address::Ipv4Net;
use crate::application::Application;
use crate::balance::Balance;
use crate::edge::Edge;
use crate::guard::{Exposure, ListenerCheck};
use crate::identity::TrustDomain;
use crate::key::PublicKey;
use crate::name::Name;
use crate::ratelimit::RateLimit;
use crate::route::Route;
use crate::rules::{Action, Layer4, Origin, Rules, Subject};
use crate::snapshot::{PathMode, Protocol, Selector, ServicePort};

pub use diff::{Change, ChangeKind, diff};
pub use parse::parse;
pub use question::{TestRequest, TestToken};
pub use rollout::{LatencyBound, LatencyGoal, OnFailure, RolloutDecl};
pub use suggest::did_you_mean;
pub use warn::{Warning, warnings};

/// A file of a topology.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceFile {
    /// Its name, as the operator gave it.
    pub name: Arc<str>,
    /// What it says.
    pub text: String,
}

/// A topology without contradictions: every name that it uses is declared in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    /// `[mesh]`
    pub mesh: MeshDecl,
    /// `[host.NAME]`
    pub hosts: BTreeMap<Name, HostDecl>,
    /// `[service.NAME]`, `[gateway.NAME]` and `[external.NAME]`
    pub services: BTreeMap<Name, ServiceDecl>,
    /// `[device.NAME]`
    pub devices: BTreeMap<Name, DeviceDecl>,
    /// `[policy]`, `[[allow]]`, `[[deny]]`
    pub rules: Rules,
    /// `[[route.NAME]]`, in order of the files.
    pub routes: Vec<Route>,
    /// `[rollout.NAME]`
    pub rollouts: BTreeMap<Name, RolloutDecl>,
    /// `[ratelimit.NAME]`
    pub ratelimits: BTreeMap<Name, RateLimit>,
    /// `[[test]]`
    pub tests: Vec<TestDecl>,
}

/// `[mesh]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshDecl {
    /// `name`; none where the topology leaves it to the controller.
    pub name: Option<Name>,
    /// `trust_domain`; none likewise. Must be the controller's.
    pub trust_domain: Option<TrustDomain>,
    /// `ipv4`: all IPv4 addresses of the mesh; by default 100.64.0.0/10.
    pub ipv4: Ipv4Net,
    /// `virtual_ipv4`: the part of it for virtual addresses; by default the last /16 of `ipv4`
    /// (or its last quarter where it is smaller than a /14).
    pub virtual_ipv4: Ipv4Net,
    /// `host_block`: the length of a host's block; by default 28.
    pub host_block: u8,
    /// `exposure` of services that don't say it; none where it is left to the controller.
    pub exposure: Option<Exposure>,
}

/// `[host.NAME]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostDecl {
    /// `site`
    pub site: Option<Name>,
    /// `labels`
    pub labels: BTreeMap<String, String>,
    /// `endpoints`: where its tunnels can be reached, if that isn't what the agent sees.
    pub endpoints: Vec<SocketAddr>,
    /// `ipv4_block`: fixed rather than allocated.
    pub ipv4_block: Option<Ipv4Net>,
    /// Where it is declared.
    pub origin: Origin,
}

/// `[service.NAME]`, `[gateway.NAME]` or `[external.NAME]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceDecl {
    /// `namespace`; `default` unless given.
    pub namespace: Name,
    /// `port`
    pub port: u16,
    /// `protocol`; `tcp` unless given.
    pub protocol: Protocol,
    /// `ports`: those beside it.
    pub more: Vec<ServicePort>,
    /// `hosts`
    pub hosts: Placement,
    /// `workload`
    pub selectors: Vec<Selector>,
    /// `balance`, `breaker`, `outlier` and `health`
    pub balance: Balance,
    /// What a gateway or an external service says.
    pub edge: Option<Edge>,
    /// `proxy_protocol`, `http` and `trailers`
    pub application: Application,
    /// `paths`; `strict` unless given.
    pub paths: PathMode,
    /// `exposure`; the mesh's unless given.
    pub exposure: Option<Exposure>,
    /// `listener`; `warn` unless given.
    pub listener: ListenerCheck,
    /// `aliases`: names that it had before.
    pub aliases: Vec<Name>,
    /// Where it is declared.
    pub origin: Origin,
}

/// Where a service's workloads are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Placement {
    /// On these hosts.
    Names(Vec<Name>),
    /// On every host that has all these labels.
    Labels(BTreeMap<String, String>),
}

/// `[device.NAME]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceDecl {
    /// `wireguard.public_key`
    pub public_key: PublicKey,
    /// `via`: the host that ends its tunnel.
    pub via: Name,
    /// `ipv4`: fixed rather than allocated.
    pub ipv4: Option<Ipv4Addr>,
    /// Where it is declared.
    pub origin: Origin,
}

/// `[[test]]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestDecl {
    /// `name`
    pub name: Arc<str>,
    /// `from`: a service, host or device.
    pub from: Subject,
    /// `to`: a service, host or device.
    pub to: Subject,
    /// `port`, as in rules (`tcp/22`); the service's own unless given.
    pub layer4: Option<Layer4>,
    /// The request; the connection as a whole unless given.
    pub request: Option<TestRequest>,
    /// `expect`
    pub expect: Action,
    /// Where it stands.
    pub origin: Origin,
}

/// What is wrong with a topology, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// The file.
    pub file: Arc<str>,
    /// The line, from 1.
    pub line: u32,
    /// The column, from 1, in characters.
    pub column: u32,
    /// The text that is wrong: byte offsets into the file.
    pub span: std::ops::Range<usize>,
    /// What is wrong, with the offending value.
    pub message: String,
    /// What to do about it.
    pub help: String,
}

/// One line: `file:line:column: message; help`.
impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, column, span: _, message, help } = self;
        write!(f, "{file}:{line}:{column}: {message}; {help}")
    }
}

impl Topology {
    /// Whether two topologies say the same, wherever in the files they say it. The order of the
    /// rules counts.
    #[must_use]
    pub fn same_meaning(&self, other: &Self) -> bool {
        diff(Some(self), other).is_empty()
    }
}

/// A topology that says nothing: no hosts, deny by default.
impl Default for Topology {
    fn default() -> Self {
        Self {
            mesh: MeshDecl::default(),
            hosts: BTreeMap::new(),
            services: BTreeMap::new(),
            devices: BTreeMap::new(),
            rules: Rules::default(),
            routes: Vec::new(),
            rollouts: BTreeMap::new(),
            ratelimits: BTreeMap::new(),
            tests: Vec::new(),
        }
    }
}

impl Placement {
    /// Whether a host of this name and with these labels has the service.
    #[must_use]
    pub fn covers(&self, host: &Name, labels: &BTreeMap<String, String>) -> bool {
        match self {
            Self::Names(names) => names.contains(host),
            Self::Labels(wanted) => {
                wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
            }
        }
    }
}
