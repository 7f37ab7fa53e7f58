//! Containers by cgroup and by address.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use isthmus_net::namespaces::Inward;

/// A container that runs, as its engine and the kernel tell of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Container {
    /// 64 hexadecimal digits.
    pub(crate) id: String,
    pub(crate) name: String,
    /// Empty where it was started from a folder.
    pub(crate) image: String,
    pub(crate) labels: BTreeMap<String, String>,
    /// Its first process.
    pub(crate) pid: u32,
    /// The kernel's name of its cgroup (v2), from the root of the hierarchy. `None` where it has none
    /// of its own.
    pub(crate) cgroup: Option<String>,
    /// The kernel's name for its network namespace, unless that is the host's.
    pub(crate) namespace: Option<u64>,
    /// The addresses that the engine gave it, and those of its links.
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) macs: Vec<[u8; 6]>,
    /// Ports of its own that the engine publishes.
    pub(crate) published: Vec<Published>,
}

/// In the words of topologies.
impl fmt::Display for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, image, labels, .. } = self;
        write!(f, "container {name}")?;
        if !image.is_empty() {
            write!(f, ", image {image}")?;
        }
        labels.iter().try_for_each(|(key, value)| write!(f, ", label {key}={value}"))
    }
}

/// A port of a container, and the port of the host that leads there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Published {
    pub(crate) udp: bool,
    pub(crate) inside: u16,
    pub(crate) host_services: u16,
}

/// A network namespace of one or more containers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Network {
    pub(crate) namespace: u64,
    pub(crate) containers: Vec<Arc<Container>>,
    /// The links of this host that lead there.
    pub(crate) links: Vec<Inward>,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) macs: Vec<[u8; 6]>,
}

/// All containers that run.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Table {
    pub(crate) containers: Vec<Arc<Container>>,
    pub(crate) networks: Vec<Network>,
    by_address: HashMap<IpAddr, usize>,
}

impl Table {
    /// `observed`: what namespaces of which the engine tells no address have by themselves. `taken`:
    /// addresses that no container can have.
    pub(crate) fn new(
        mut containers: Vec<Arc<Container>>,
        links: &HashMap<u64, Vec<Inward>>,
        observed: &HashMap<u64, Vec<IpAddr>>,
        taken: impl Fn(IpAddr) -> bool,
    ) -> Self {
        containers.sort_by(|one, other| (&one.name, &one.id).cmp(&(&other.name, &other.id)));
        let mut networks: BTreeMap<u64, Network> = BTreeMap::new();
        for container in &containers {
            let Some(namespace) = container.namespace else { continue };
            let network = networks.entry(namespace).or_default();
            network.namespace = namespace;
            network.containers.push(Arc::clone(container));
            network.addresses.extend(&container.addresses);
            network.macs.extend(&container.macs);
        }
        let mut networks: Vec<Network> = networks.into_values().collect();
        // What two have is nobody's. What the engine gave is its owner's, whoever else took it, too.
        let given = sole(networks.iter().map(|it| &it.addresses));
        let macs = sole(networks.iter().map(|it| &it.macs));
        let all_given: HashSet<IpAddr> =
            networks.iter().flat_map(|it| it.addresses.iter().copied()).collect();
        let none = Vec::new();
        let seen = sole(networks.iter().map(|network| {
            let tells_none = network.addresses.is_empty();
            observed.get(&network.namespace).filter(|_| tells_none).unwrap_or(&none)
        }));
        for network in &mut networks {
            let mut addresses: Vec<IpAddr> = if network.addresses.is_empty() {
                let own = observed.get(&network.namespace).into_iter().flatten();
                own.filter(|it| seen.contains(it) && !all_given.contains(it)).copied().collect()
            } else {
                network.addresses.iter().filter(|it| given.contains(it)).copied().collect()
            };
            addresses.retain(|address| !taken(*address));
            addresses.sort_unstable();
            addresses.dedup();
            network.addresses = addresses;
            network.macs.retain(|mac| macs.contains(mac));
            network.macs.sort_unstable();
            network.macs.dedup();
            network.links = links.get(&network.namespace).cloned().unwrap_or_default();
        }
        let by_address = networks
            .iter()
            .enumerate()
            .filter(|(_, network)| !network.links.is_empty())
            .flat_map(|(at, network)| network.addresses.iter().map(move |it| (*it, at)))
            .collect();
        Self { containers, networks, by_address }
    }

    /// The container that a process in this cgroup is in: the innermost.
    pub(crate) fn of_cgroup(&self, cgroup: &str) -> Option<&Arc<Container>> {
        let cgroup = Path::new(cgroup);
        let own = |it: &&Arc<Container>| {
            it.cgroup.as_deref().is_some_and(|within| cgroup.starts_with(within))
        };
        let depth = |it: &&Arc<Container>| it.cgroup.as_ref().map_or(0, String::len);
        self.containers.iter().filter(own).max_by_key(depth)
    }

    /// A container's network, if it has one of its own.
    pub(crate) fn network(&self, container: &Container) -> Option<&Network> {
        self.networks.iter().find(|it| Some(it.namespace) == container.namespace)
    }

    /// The network behind this host that has this address, and a link that leads there.
    pub(crate) fn behind(&self, address: IpAddr) -> Option<&Network> {
        self.networks.get(*self.by_address.get(&address)?)
    }
}

/// What exactly one of them has.
fn sole<'a, T: Copy + Eq + std::hash::Hash + 'a>(
    lists: impl Iterator<Item = &'a Vec<T>>,
) -> HashSet<T> {
    let mut owners: HashMap<T, usize> = HashMap::new();
    for list in lists {
        let distinct: HashSet<T> = list.iter().copied().collect();
        for one in distinct {
            *owners.entry(one).or_default() += 1;
        }
    }
    owners.into_iter().filter(|(_, count)| *count == 1).map(|(one, _)| one).collect()
}

/// Whether a cgroup is named as engines name containers' (`docker-<id>.scope`, `libpod-<id>`, …). A
/// name proves nothing: this only tells for whom it's worth to wait until its engine has told of it.
pub(crate) fn looks_contained(cgroup: &str) -> bool {
    cgroup.split('/').any(|component| id_in(component).is_some())
}

/// The container's number that a cgroup's name ends with.
pub(super) fn id_in(component: &str) -> Option<&str> {
    const DIGITS: usize = 64;
    let name = component.strip_suffix(".scope").unwrap_or(component);
    let id = name.get(name.len().checked_sub(DIGITS)?..)?;
    id.bytes().all(|byte| byte.is_ascii_hexdigit()).then_some(id)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A container by its name, in the namespace with this number.
    pub(crate) fn container(name: &str, namespace: Option<u64>, addresses: &[&str]) -> Container {
        Container {
            id: format!("{:064x}", name.len()),
            name: name.to_owned(),
            cgroup: Some(format!("/system.slice/docker-{name}.scope")),
            namespace,
            addresses: addresses.iter().map(|it| it.parse().unwrap()).collect(),
            ..Container::default()
        }
    }

    fn links(namespaces: &[u64]) -> HashMap<u64, Vec<Inward>> {
        let link = |index| Inward::new(index, Some(1));
        namespaces.iter().map(|it| (*it, vec![link(u32::try_from(*it).unwrap())])).collect()
    }

    fn table(containers: &[Container], observed: &[(u64, &[&str])]) -> Table {
        let containers = containers.iter().cloned().map(Arc::new).collect();
        let observed = observed.iter().map(|(namespace, addresses)| {
            (*namespace, addresses.iter().map(|it| it.parse().unwrap()).collect())
        });
        let taken = |address: IpAddr| address == IpAddr::from([192, 0, 2, 1]);
        Table::new(containers, &links(&[2, 3, 4]), &observed.collect(), taken)
    }

    fn behind<'a>(table: &'a Table, address: &str) -> Option<&'a str> {
        let network = table.behind(address.parse().unwrap())?;
        Some(network.containers[0].name.as_str())
    }

    #[test]
    fn a_process_is_in_the_innermost_container_around_it() {
        let outer = container("outer", None, &[]);
        let inner = Container {
            cgroup: Some("/system.slice/docker-outer.scope/inner".to_owned()),
            ..container("inner", None, &[])
        };
        let table = table(&[outer, inner], &[]);
        let of = |cgroup| table.of_cgroup(cgroup).map(|it| it.name.as_str());
        assert_eq!(of("/system.slice/docker-outer.scope"), Some("outer"));
        assert_eq!(of("/system.slice/docker-outer.scope/x"), Some("outer"));
        assert_eq!(of("/system.slice/docker-outer.scope/inner/y"), Some("inner"));
        assert_eq!(of("/system.slice/docker-outer.scopes"), None);
        assert_eq!(of("/user.slice/user-1000.slice/docker-outer.scope"), None);
    }

    #[test]
    fn an_address_is_its_containers_and_only_one_containers() {
        let table = table(
            &[
                container("a", Some(2), &["10.0.0.2"]),
                container("b", Some(3), &["10.0.0.3", "10.0.0.9"]),
                container("c", Some(4), &["10.0.0.9", "192.0.2.1"]),
                container("lost", Some(5), &["10.0.0.5"]),
                container("host", None, &[]),
            ],
            &[],
        );
        assert_eq!(behind(&table, "10.0.0.2"), Some("a"));
        assert_eq!(behind(&table, "10.0.0.3"), Some("b"));
        assert_eq!(behind(&table, "10.0.0.9"), None, "two have it");
        assert_eq!(behind(&table, "192.0.2.1"), None, "it is the host's");
        assert_eq!(behind(&table, "10.0.0.5"), None, "no link leads there");
    }

    #[test]
    fn nobody_gets_an_address_of_anothers_by_taking_it() {
        let containers = [
            container("a", Some(2), &["10.0.0.2"]),
            container("self-made", Some(3), &[]),
            container("likewise", Some(4), &[]),
        ];
        let table = table(
            &containers,
            &[(2, &["10.0.0.7"]), (3, &["10.0.0.2", "10.0.0.3", "10.0.0.4"]), (4, &["10.0.0.4"])],
        );
        assert_eq!(behind(&table, "10.0.0.2"), Some("a"), "the engine gave it");
        assert_eq!(behind(&table, "10.0.0.7"), None, "the engine gave it another");
        assert_eq!(behind(&table, "10.0.0.3"), Some("self-made"));
        assert_eq!(behind(&table, "10.0.0.4"), None);
    }

    #[test]
    fn engines_name_cgroups_by_the_containers_number() {
        let id = "0123456789abcdef".repeat(4);
        for cgroup in [
            format!("/system.slice/docker-{id}.scope"),
            format!("/machine.slice/libpod-{id}.scope/container"),
            format!("/kubepods.slice/kubepods-pod1.slice/cri-containerd-{id}.scope"),
            format!("/docker/{id}"),
        ] {
            assert!(looks_contained(&cgroup), "{cgroup}");
        }
        assert!(!looks_contained("/system.slice/nginx.service"));
        assert!(!looks_contained(&format!("/docker/{}", &id[1..])));
        assert!(!looks_contained("/ü".repeat(40).as_str()));
    }
}
