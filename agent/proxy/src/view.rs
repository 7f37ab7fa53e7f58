//! What the proxy judges by, and who the two ends of a connection are.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use isthmus_model::{Directory, HostId, Identity, Layer4, Place, Protocol, ServiceId, Snapshot};
use isthmus_policy::{Policy, Query, Request, Verdict};

/// One revision of the mesh, ready for look-ups. Shared as `Arc<View>`.
#[derive(Clone)]
pub struct View {
    /// Names and numbers.
    pub snapshot: Arc<Snapshot>,
    /// The rules of the same revision, compiled.
    pub policy: Arc<Policy>,
    /// The addresses of the same revision.
    pub directory: Directory,
}

/// Who calls whom on a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Parties {
    pub(crate) from: Identity,
    pub(crate) to: Identity,
    pub(crate) service: ServiceId,
    /// The service's own port, where the application listens.
    pub(crate) port: u16,
}

impl View {
    /// Indexes a snapshot and its rules.
    #[must_use]
    pub fn new(snapshot: Arc<Snapshot>, policy: Arc<Policy>) -> Self {
        let directory = Directory::new(&snapshot);
        Self { snapshot, policy, directory }
    }

    /// Who the addresses of an accepted connection stand for. None unless `local` is a workload of
    /// an HTTP service on this host and `peer` is placed.
    pub(crate) fn parties(&self, local: IpAddr, peer: IpAddr) -> Option<Parties> {
        let Place::Workload(host, id) = self.directory.place(local)? else { return None };
        if host != self.snapshot.local {
            return None;
        }
        let service = self.snapshot.services.get(&id)?;
        if service.protocol != Protocol::Http {
            return None;
        }
        let caller = self.directory.place(peer)?;
        if is_on_kernels_loopback(caller, self.snapshot.local) {
            return None;
        }
        let caller = caller.principal(self.snapshot.local);
        Some(Parties {
            from: self.snapshot.identity(caller)?,
            to: service.identity(),
            service: id,
            port: service.port,
        })
    }

    /// Judges a request, or without one the connection as a whole.
    pub(crate) fn judge(&self, parties: &Parties, request: Option<Request<'_>>) -> Verdict {
        self.policy.evaluate(&Query {
            from: &parties.from,
            to: &parties.to,
            layer4: Layer4::Tcp(parties.port),
            request,
        })
    }
}

/// A process of this host that dials a workload's address directly never passes the flow table,
/// which alone verifies sources: any user may bind any address of the host. Flows that stay on this
/// host by way of a virtual address come from one.
fn is_on_kernels_loopback(caller: Place, local: HostId) -> bool {
    match caller {
        Place::Host(host) | Place::Workload(host, _) => host == local,
        Place::Device(..) | Place::Virtual(_) | Place::Anycast => false,
    }
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("View").field("revision", &self.snapshot.revision).finish_non_exhaustive()
    }
}
