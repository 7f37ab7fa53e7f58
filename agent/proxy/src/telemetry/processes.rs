//! Client processes of this host, for log lines about refused requests.

use std::fmt;
use std::net::SocketAddr;

/// Knows the processes of this host.
pub trait Processes: fmt::Debug + Send + Sync {
    /// The process behind the connection from `caller` to `called`, its two ends as the proxy sees them.
    /// Requests wait meanwhile: it mustn't take long.
    fn of(&self, caller: SocketAddr, called: SocketAddr) -> Option<Process>;
}

/// A process in words, each empty where it isn't known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Process {
    /// Its user's name or number.
    pub user: String,
    /// Its systemd unit or cgroup.
    pub unit: String,
    /// Its program's path.
    pub program: String,
}
