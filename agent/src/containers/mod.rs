//! Container identities: the service behind a container's packets.
//!
//! A container on the host's network is known by the cgroup of its sockets, as any process is. One
//! with a network of its own is known by where its packets come from: the kernel says which link of this
//! host leads into its network namespace, and a packet filter lets an address in by that link alone.
//! The engine names the container, its image and its labels (Docker's API over a Unix
//! socket, which Podman speaks, too).
//!
//! ```text
//!  engine ──▶ name, image, labels, first process ──▶ its cgroup ─────────▶ owner of a socket
//!                                                 └▶ its namespace ─▶ the links that lead there,
//!                                                    and its addresses ──▶ owner of a packet
//! ```
//!
//! Nothing that a container says of itself counts: not its cgroup's name alone (any user may name one
//! below its own), nor an address that another has been given.

mod engine;
mod keeper;
mod table;
#[cfg(test)]
pub(crate) use table::tests;

use std::sync::Arc;

use isthmus_model::{ServiceId, Snapshot};
use isthmus_proto::v1;
use tokio::sync::{Notify, watch};

use crate::owners::{LocalService, Spoken, local_services, speaks_as, told};

pub(crate) use keeper::keep;
#[cfg(test)]
pub(crate) use table::Published;
pub(crate) use table::{Container, Network, Table, looks_contained};

/// Known containers, shared by the task that queries engines and the look-up for packets.
#[derive(Debug, Default)]
pub(crate) struct Containers {
    table: watch::Sender<Arc<Table>>,
    wanted: Notify,
}

impl Containers {
    /// To look at the newest table.
    #[must_use]
    pub(crate) fn follow(&self) -> watch::Receiver<Arc<Table>> {
        self.table.subscribe()
    }

    /// The newest table.
    #[must_use]
    pub(crate) fn table(&self) -> Arc<Table> {
        Arc::clone(&self.table.borrow())
    }

    /// There is a container that nobody has told of yet.
    pub(crate) fn ask(&self) {
        self.wanted.notify_one();
    }

    async fn asked(&self) {
        self.wanted.notified().await;
    }

    /// Puts another table in the place of the last; says whether it is another.
    fn publish(&self, table: Table) -> bool {
        self.table.send_if_modified(|known| {
            let is_new = **known != table;
            if is_new {
                *known = Arc::new(table);
            }
            is_new
        })
    }
}

/// The containers that run here, and who they speak as.
pub(crate) fn shown(table: &Table, snapshot: &Snapshot) -> Vec<v1::ContainerStatus> {
    let services = local_services(snapshot);
    let show = |container: &Arc<Container>| {
        let network = table.network(container);
        let (service, why) = speaker(table, &services, container);
        let name = |id| snapshot.services.get(&id).map(|it| it.name.to_string());
        v1::ContainerStatus {
            name: container.name.clone(),
            image: container.image.clone(),
            addresses: network
                .map_or_else(Vec::new, |it| it.addresses.iter().map(ToString::to_string).collect()),
            service: service.and_then(name).unwrap_or_default(),
            why,
        }
    };
    table.containers.iter().map(show).collect()
}

/// Identity of a container, or the reason that it uses its host's.
pub(crate) fn speaker(
    table: &Table,
    services: &[LocalService],
    container: &Arc<Container>,
) -> (Option<ServiceId>, String) {
    match table.network(container) {
        Some(network) if network.addresses.is_empty() || network.links.is_empty() => {
            (None, "no link of this host leads to an address of its own".to_owned())
        }
        Some(network) => spoken(speaks_as(services, network)),
        None => spoken(told(services, container)),
    }
}

fn spoken(spoken: Spoken) -> (Option<ServiceId>, String) {
    match spoken {
        Spoken::Service(service) => (Some(service), String::new()),
        Spoken::Host(why) => (None, why),
    }
}
