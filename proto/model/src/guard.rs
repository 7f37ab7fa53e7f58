//! Port exposure: the callers that may reach a service's port on its own host, and the users that may listen there.

use std::fmt;

/// How the port of a service is guarded on the hosts that have a workload of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PortGuard {
    /// Who may reach it around the mesh.
    pub exposure: Exposure,
    /// What becomes of the mesh's traffic while somebody else listens there.
    pub listener: ListenerCheck,
}

/// Who may reach a service's port around the mesh: by a host's other interfaces and, where the
/// application is told by the proxy who calls, by its loopback.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Exposure {
    /// Nobody.
    Mesh,
    /// Everybody, and the agent says who does.
    #[default]
    Count,
    /// Everybody.
    Open,
}

/// What to do while no process of the service holds the socket that listens on its port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ListenerCheck {
    /// Say so.
    #[default]
    Warn,
    /// Refuse what is meant for it, too.
    Strict,
}

impl Exposure {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Mesh, Self::Count, Self::Open];
}

impl ListenerCheck {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Warn, Self::Strict];
}

/// As topologies write it.
impl fmt::Display for Exposure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mesh => "mesh",
            Self::Count => "count",
            Self::Open => "open",
        })
    }
}

/// As topologies write it.
impl fmt::Display for ListenerCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Warn => "warn",
            Self::Strict => "strict",
        })
    }
}
