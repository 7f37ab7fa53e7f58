//! Container owners: the identities that containers speak as.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use isthmus_core::Owner;
use isthmus_model::ServiceId;
use tokio::sync::watch;

use super::REMEMBERED;
use super::workloads::{LocalService, Match, Process, Wanted, best};
use crate::containers::{Container, Network, Table};
use crate::status::Shared;

/// A container that has just begun is looked at before anything is said of its processes.
const BEGINNING: Duration = Duration::from_secs(2);

/// Who containers are: what the data plane remembers of it.
#[derive(Debug)]
pub(super) struct ContainerOwners {
    newest: Option<watch::Receiver<Arc<Table>>>,
    shared: Option<Arc<Shared>>,
    pub(super) table: Arc<Table>,
    /// No more than the table has addresses.
    pub(super) by_address: HashMap<IpAddr, Owner>,
    /// When cgroups that may be of new containers were seen first.
    beginning: HashMap<u64, Instant>,
}

impl ContainerOwners {
    pub(super) fn new(shared: Option<Arc<Shared>>) -> Self {
        Self {
            newest: shared.as_ref().map(|it| it.containers.follow()),
            shared,
            table: Arc::default(),
            by_address: HashMap::new(),
            beginning: HashMap::new(),
        }
    }

    /// Takes the newest table; says whether it is another.
    pub(super) fn follow(&mut self) -> bool {
        let Some(newest) = self.newest.as_mut().filter(|it| it.has_changed().unwrap_or(false))
        else {
            return false;
        };
        self.table = Arc::clone(&newest.borrow_and_update());
        self.by_address.clear();
        true
    }

    /// Whether a cgroup was seen first a moment ago. Has its engine asked for it.
    pub(super) fn is_beginning(&mut self, id: u64, now: Instant) -> bool {
        if self.beginning.len() >= REMEMBERED {
            self.beginning.clear();
        }
        let since = *self.beginning.entry(id).or_insert(now);
        let is_new = now.duration_since(since) < BEGINNING;
        if let Some(shared) = self.shared.as_ref().filter(|_| is_new) {
            shared.containers.ask();
        }
        is_new
    }
}

/// Identity of a container with a network of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Spoken {
    Service(ServiceId),
    /// As its host, for this reason.
    Host(String),
}

/// Who all containers that share a network speak as: their packets can't be told from each other's.
pub(crate) fn speaks_as(services: &[LocalService], network: &Network) -> Spoken {
    let mut found: Option<&LocalService> = None;
    for container in &network.containers {
        let process = Process {
            uid: None,
            cgroup: container.cgroup.as_deref(),
            exe: None,
            container: Some(container),
        };
        let Match::Owner(Owner::Service(id)) = best(services, &process).0 else { continue };
        let Some(service) = services.iter().find(|it| it.id == id) else { continue };
        match found {
            Some(other) if other.id != id => {
                return Spoken::Host(format!(
                    "services {} and {} share its network",
                    other.name, service.name
                ));
            }
            Some(_) | None => found = Some(service),
        }
    }
    match found {
        Some(service) => Spoken::Service(service.id),
        None => Spoken::Host(why_none(services, network, true)),
    }
}

/// Who a container is, as far as it alone tells.
pub(crate) fn told(services: &[LocalService], container: &Arc<Container>) -> Spoken {
    let alone = Network { containers: vec![Arc::clone(container)], ..Network::default() };
    match speaks_as(services, &alone) {
        Spoken::Host(_) => Spoken::Host(why_none(services, &alone, false)),
        service @ Spoken::Service(_) => service,
    }
}

/// Why none of the services is a container's.
fn why_none(services: &[LocalService], network: &Network, is_apart: bool) -> String {
    for (service, container) in
        services.iter().flat_map(|it| network.containers.iter().map(move |other| (it, other)))
    {
        let of_container = |it: &&Wanted| matches!(it, Wanted::Container(_));
        let process = Process { uid: None, cgroup: None, exe: None, container: Some(container) };
        let mut selectors = service.selectors.iter().filter(of_container);
        let is_meant = service.is_container()
            && selectors.all(|selector| selector.matches(&process) == Some(true));
        if is_meant && !is_apart {
            return format!(
                "those of its processes that all of `workload` of service {} fits speak as that",
                service.name
            );
        }
        if is_meant {
            return format!(
                "`workload` of service {} asks for more than its container, which can't be seen in a \
                 container with a network of its own",
                service.name
            );
        }
    }
    "no `workload` of a service placed here fits it".to_owned()
}

#[cfg(test)]
mod tests {
    use isthmus_model::ContainerMatch;

    use super::super::workloads::tests::{WEB, of, process, service, user};
    use super::*;
    use crate::containers;

    fn in_container(name: &str, labels: &[(&str, &str)]) -> Container {
        let label = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        Container {
            labels: labels.iter().map(label).collect(),
            ..containers::tests::container(name, Some(2), &["10.0.0.2"])
        }
    }

    fn by_labels(labels: &[(&str, &str)]) -> Wanted {
        let labels = in_container("", labels).labels;
        Wanted::Container(ContainerMatch { labels, ..ContainerMatch::default() })
    }

    fn network(containers: Vec<Container>) -> Network {
        let containers = containers.into_iter().map(Arc::new).collect();
        Network { containers, ..Network::default() }
    }

    #[test]
    fn two_containers_of_one_image_are_two_services_by_their_labels() {
        let services = [
            service(1, vec![by_labels(&[("role", "good")])]),
            service(2, vec![by_labels(&[("role", "bad")])]),
        ];
        let speaks = |labels: &[(&str, &str)]| {
            speaks_as(&services, &network(vec![in_container("c", labels)]))
        };
        assert_eq!(speaks(&[("role", "good")]), Spoken::Service(ServiceId(1)));
        assert_eq!(speaks(&[("role", "bad"), ("x", "")]), Spoken::Service(ServiceId(2)));
        let Spoken::Host(why) = speaks(&[]) else { panic!("it fits nothing") };
        assert!(why.contains("no `workload`"), "{why}");
        let good = in_container("c", &[("role", "good")]);
        let inside = Process { container: Some(&good), ..process(0, "/docker/x") };
        assert_eq!(best(&services, &inside).0, of(1), "on the host's network, too");
    }

    #[test]
    fn a_service_of_containers_is_no_process_outside_of_them() {
        let services = [service(1, vec![by_labels(&[("role", "good")])])];
        assert_eq!(best(&services, &process(0, WEB)).0, Match::Owner(Owner::Host));
    }

    #[test]
    fn what_cannot_be_seen_in_a_container_with_its_own_network_matches_nobody() {
        let services = [service(1, vec![user(33), by_labels(&[("role", "good")])])];
        let inside = network(vec![in_container("c", &[("role", "good")])]);
        let Spoken::Host(why) = speaks_as(&services, &inside) else {
            panic!("its users are its own")
        };
        assert!(why.contains("asks for more than its container"), "{why}");
    }

    #[test]
    fn containers_that_share_a_network_speak_as_one_service_or_as_the_host() {
        let services = [
            service(1, vec![by_labels(&[("role", "good")])]),
            service(2, vec![by_labels(&[("role", "bad")])]),
        ];
        let [good, bad, none] =
            [&[("role", "good")][..], &[("role", "bad")], &[]].map(|it| in_container("c", it));
        let pod = network(vec![none, good.clone()]);
        assert_eq!(speaks_as(&services, &pod), Spoken::Service(ServiceId(1)));
        let Spoken::Host(why) = speaks_as(&services, &network(vec![good, bad])) else {
            panic!("it could be either")
        };
        assert!(why.contains("s1 and s2 share"), "{why}");
    }
}
