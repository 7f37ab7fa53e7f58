//! Declarations: what a topology says, once it is read.

mod rollout;

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
pub(crate) use rollout::QUANTILES;
pub use rollout::{LatencyBound, LatencyGoal, OnFailure, RolloutDecl};

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

/// A request that a test asks about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestRequest {
    /// `method`
    pub method: Arc<str>,
    /// `path`
    pub path: Arc<str>,
    /// `host`; empty unless given.
    pub host: Arc<str>,
    /// `header`, by lower-case name.
    pub headers: Vec<(Arc<str>, Arc<str>)>,
    /// `query`, decoded.
    pub query: Vec<(Arc<str>, Arc<str>)>,
    /// `jwt`
    pub jwt: Option<TestToken>,
}

/// A token that was verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestToken {
    /// `provider`
    pub provider: Name,
    /// `claims`
    pub claims: Vec<(Arc<str>, Arc<str>)>,
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

/// As in `GET /accounts/1 header x-a=1`.
impl fmt::Display for TestRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { method, path, host, headers, query, jwt } = self;
        write!(f, "{method} {path}")?;
        if !host.is_empty() {
            write!(f, " host {host}")?;
        }
        headers.iter().try_for_each(|(name, value)| write!(f, " header {name}={value}"))?;
        query.iter().try_for_each(|(name, value)| write!(f, " query {name}={value}"))?;
        let Some(TestToken { provider, claims }) = jwt else { return Ok(()) };
        write!(f, " jwt {provider}")?;
        claims.iter().try_for_each(|(name, value)| write!(f, " {name}={value}"))
    }
}

impl Default for MeshDecl {
    fn default() -> Self {
        let ipv4 = Ipv4Net::new_assert(Ipv4Addr::new(100, 64, 0, 0), 10);
        Self {
            name: None,
            trust_domain: None,
            ipv4,
            virtual_ipv4: Self::last_of(ipv4),
            host_block: Self::HOST_BLOCK,
            exposure: None,
        }
    }
}

impl MeshDecl {
    /// The length of a host's block.
    pub(crate) const HOST_BLOCK: u8 = 28;

    /// The last /16 of a mesh's range, or the last quarter of one that is smaller than a /14.
    pub(crate) fn last_of(ipv4: Ipv4Net) -> Ipv4Net {
        let length = if ipv4.prefix_len() > 14 { ipv4.prefix_len() + 2 } else { 16 };
        let last = Ipv4Net::new_assert(ipv4.broadcast(), length.min(32));
        last.trunc()
    }
}

impl ServiceDecl {
    /// The kind of table that declares it.
    pub(crate) const fn kind(&self) -> &'static str {
        match &self.edge {
            Some(Edge::Gateway(_)) => "gateway",
            Some(Edge::External(_)) => "external",
            None => "service",
        }
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
