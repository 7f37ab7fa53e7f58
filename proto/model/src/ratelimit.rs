//! Rate limits: how many requests a service takes, and from whom. What a `[ratelimit.NAME]` says.

use std::fmt;
use std::sync::Arc;

use crate::name::Name;
use crate::route::RouteMatch;
use crate::rules::Origin;

/// One `[ratelimit.NAME]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// Its name.
    pub name: Name,
    /// Service whose incoming requests are limited.
    pub service: Name,
    /// Matches that select requests: any of them may fit. Empty: all.
    pub matches: Vec<RouteMatch>,
    /// Thousandths of a request per second.
    pub rate: u64,
    /// Burst.
    pub burst: u32,
    /// Key by which each caller has a limit of its own.
    pub per: LimitKey,
    /// Scope.
    pub scope: LimitScope,
    /// Number of hosts that share it; at least 1.
    pub hosts: u32,
    /// Where it stands.
    pub origin: Origin,
}

/// Grouping of requests that are counted together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LimitKey {
    /// All requests.
    All,
    /// Those of one caller.
    Identity,
    /// Those with one value of a header, by its lower-case name. Those without it are counted together.
    Header(Arc<str>),
}

/// Where a limit holds. For all hosts together means that each works by a share of the rate, which the
/// controller deals out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitScope {
    /// For all hosts together.
    Mesh,
    /// On each host by itself.
    Host,
}

/// All of a limit, as a share of it: shares are counted in billionths.
pub const WHOLE: u32 = 1_000_000_000;

/// The share of a host that hasn't been told another one, and the least that any host has: a tenth of an
/// equal part. It is never dealt out to others, so a host that starts may use it without asking.
#[must_use]
pub const fn least_share(hosts: u32) -> u32 {
    const PART: u32 = 10;
    if hosts <= 1 { WHOLE } else { WHOLE / hosts / PART }
}

/// A host's share once other hosts have joined those who have one: each gives up a part.
#[must_use]
pub fn scaled(share: u32, before: u32, after: u32) -> u32 {
    if after <= before {
        return share;
    }
    u32::try_from(u64::from(share) * u64::from(before.max(1)) / u64::from(after)).unwrap_or(share)
}

impl fmt::Display for LimitKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Identity => f.write_str("identity"),
            Self::Header(name) => write!(f, "header {name}"),
        }
    }
}

impl fmt::Display for LimitScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mesh => "mesh",
            Self::Host => "host",
        })
    }
}
