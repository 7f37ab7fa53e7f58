//! Containers with networks of their own: who may send into the mesh from there, and where what is for
//! their services is led.
//!
//! An address stands for its container only if nobody else can send from it. So the filter lets it
//! in by the link that leads to the container alone: on a bridge by a table of the bridge's own, which
//! sees the port that a frame came by; where no bridge is between, by the link. Whoever lives on the same
//! bridge can't send as it, nor have the bridge or this host believe that it is somewhere else (ARP,
//! neighbour advertisements, its hardware address).
//!
//! Its packets keep their address up to the overlay's device, whatever the engine masquerades; there
//! the data plane gives them their service's. What comes for the service is led to the container's
//! port (DNAT): from the mesh with the caller's address, from this host's proxy with the bridge's.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use isthmus_model::Snapshot;

use super::{Place, Port, addresses, guarded};
use crate::containers::{Network, Table};
use crate::owners::{LocalService, Spoken, speaks_as};

/// Filter rules for containers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Behind {
    /// Whether anybody looks for containers: who is new gets a moment to be known.
    pub(super) looks: bool,
    /// Where an address comes in for the network: a bridge, or a link.
    pub(super) callers: BTreeSet<(u32, IpAddr)>,
    /// The ports of bridges that addresses, and hardware addresses, are behind.
    ports: BTreeSet<(u32, IpAddr)>,
    macs: BTreeSet<(u32, [u8; 6])>,
    /// Where what is for a workload is led.
    servers: BTreeMap<Place, SocketAddr>,
}

impl Behind {
    /// Rules derived from the running containers.
    pub(super) fn of(snapshot: &Snapshot, table: &Table, services: &[LocalService]) -> Self {
        let mut behind =
            Self { looks: services.iter().any(LocalService::is_container), ..Self::default() };
        for network in &table.networks {
            for link in &network.links {
                for address in &network.addresses {
                    behind.callers.insert((link.entry(), *address));
                    if link.master.is_some() {
                        behind.ports.insert((link.index, *address));
                    }
                }
                if link.master.is_some() {
                    behind.macs.extend(network.macs.iter().map(|mac| (link.index, *mac)));
                }
            }
        }
        // What the topology says where it listens isn't led elsewhere.
        let led = guarded(snapshot).filter(|(_, it)| it.application.listen.is_none());
        for ((id, _), service) in led {
            let is_its = |network: &&Network| speaks_as(services, network) == Spoken::Service(id);
            let of_service = table.networks.iter().filter(is_its);
            let Some(network) = of_service.min_by_key(|it| &it.containers[0].name) else {
                continue;
            };
            let port = Port::of(&service);
            let inside = inside(network, port);
            for address in addresses(snapshot, id, &service) {
                let same = |it: &&IpAddr| it.is_ipv4() == address.is_ipv4();
                if let Some(container) = network.addresses.iter().find(same) {
                    behind.servers.insert((address, port), SocketAddr::new(*container, inside));
                }
            }
        }
        behind
    }

    /// Whether something of the filter's depends on it.
    pub(super) fn is_empty(&self) -> bool {
        self.callers.is_empty()
    }

    /// Whether a workload's port is led to a container.
    pub(super) fn serves(&self, place: &Place) -> bool {
        self.servers.contains_key(place)
    }

    /// The sets and chains of the ports' table.
    pub(super) fn sets(&self) -> String {
        let mut text = String::new();
        for (suffix, address) in [("4", "ipv4_addr"), ("6", "ipv6_addr")] {
            text += &format!(
                "set callers{suffix} {{ type iface_index . {address}; }}\n\
                 set inside{suffix} {{ type {address}; }}\n\
                 set led{suffix} {{ type {address}; }}\n\
                 map {MAP}{suffix} {{ type {address} . inet_proto . inet_service : \
                 {address} . inet_service; }}\n"
            );
        }
        if !self.is_empty() {
            text += "chain naming { type nat hook postrouting priority 90; policy accept; }\n\
                     chain serving { type nat hook prerouting priority -110; policy accept; }\n\
                     chain proxying { type nat hook output priority -110; policy accept; }\n";
        }
        text
    }

    /// The rules of these chains; and those for who would send into the mesh, before all others are
    /// refused.
    pub(super) fn rules(&self, device: &str) -> (String, String) {
        let (mut chains, mut passing) = (String::new(), String::new());
        if !self.is_empty() {
            let (mut naming, mut leading) = (String::new(), String::new());
            for (suffix, ip) in FAMILIES {
                naming += &format!(
                    "oifname \"{device}\" {ip} saddr @inside{suffix} snat {ip} to {ip} saddr\n\
                     oifname != \"{device}\" ct status dnat ct original {ip} daddr @led{suffix} \
                     fib saddr type local masquerade\n"
                );
                leading += &format!(
                    "dnat {ip} to {ip} daddr . meta l4proto . th dport map @{MAP}{suffix}\n"
                );
                passing += &format!("iif . {ip} saddr @callers{suffix} accept\n");
            }
            // Of what came from the mesh.
            passing = format!("ct direction reply ct status dnat accept\n{passing}");
            chains = format!(
                "chain naming {{\n{naming}}}\nchain serving {{\niifname != \"{device}\" accept\n{leading}}}\n\
                 chain proxying {{\n{leading}}}\n"
            );
        }
        if self.looks {
            // Whoever tries again is known then, or refused.
            for (suffix, ip) in FAMILIES {
                passing += &format!(
                    "{ip} saddr != @forwarded{suffix} update @forwarded{suffix} \
                     {{ {ip} saddr counter }} drop\n"
                );
            }
        }
        (chains, passing)
    }

    /// Elements of the sets.
    pub(super) fn elements(&self) -> Vec<(String, Vec<String>)> {
        let mut sets = Vec::new();
        for (suffix, is_ipv6) in [("4", false), ("6", true)] {
            let of_family = |address: &IpAddr| address.is_ipv6() == is_ipv6;
            let callers = self.callers.iter().filter(|(_, it)| of_family(it));
            let inside: BTreeSet<IpAddr> = callers.clone().map(|(_, address)| *address).collect();
            let servers = self.servers.iter().filter(|((address, _), _)| of_family(address));
            let led: BTreeSet<IpAddr> = servers.clone().map(|((address, _), _)| *address).collect();
            let texts = |set: BTreeSet<IpAddr>| set.iter().map(ToString::to_string).collect();
            let mut fill = |set: &str, elements| sets.push((format!("{set}{suffix}"), elements));
            fill("callers", callers.map(|(link, address)| format!("{link} . {address}")).collect());
            fill("inside", texts(inside));
            fill("led", texts(led));
            let lead = |((address, port), to): (&Place, &SocketAddr)| {
                format!("{address} . {} : {} . {}", element(*port), to.ip(), to.port())
            };
            fill(MAP, servers.map(lead).collect());
        }
        sets
    }

    /// One transaction that has bridges keep to these ports.
    pub(super) fn bridge_script(&self, table: &str) -> String {
        let mut script = no_bridges(table);
        let mut rules = String::new();
        let mut sets = String::new();
        let mut set = |name: &str, kind: &str, elements: BTreeSet<String>| {
            let elements: Vec<String> = elements.into_iter().collect();
            let elements = match elements.as_slice() {
                [] => String::new(),
                some => format!(" elements = {{ {} }};", some.join(", ")),
            };
            sets += &format!("set {name} {{ type {kind};{elements} }}\n");
        };
        for ((suffix, ip), address) in FAMILIES.into_iter().zip(["ipv4_addr", "ipv6_addr"]) {
            let of_family = |it: &&(u32, IpAddr)| it.1.is_ipv6() == (suffix == "6");
            let ports = self.ports.iter().filter(of_family);
            let known = ports.clone().map(|(_, address)| address.to_string()).collect();
            set(&format!("known{suffix}"), address, known);
            let pairs = ports.map(|(link, address)| format!("{link} . {address}")).collect();
            set(&format!("ports{suffix}"), &format!("iface_index . {address}"), pairs);
            rules += &format!(
                "{ip} saddr @known{suffix} iif . {ip} saddr != @ports{suffix} counter drop\n"
            );
        }
        rules += "arp saddr ip @known4 iif . arp saddr ip != @ports4 counter drop\n";
        let hardware: BTreeSet<String> = self.macs.iter().map(|(_, mac)| text(mac)).collect();
        set("hardware", "ether_addr", hardware);
        let pairs = self.macs.iter().map(|(link, mac)| format!("{link} . {}", text(mac))).collect();
        set("sockets", "iface_index . ether_addr", pairs);
        rules += "ether saddr @hardware iif . ether saddr != @sockets counter drop\n";
        for address in self.ports.iter().filter_map(|(_, address)| match address {
            IpAddr::V6(address) => Some(address),
            IpAddr::V4(_) => None,
        }) {
            let own = self.ports.iter().filter(|(_, it)| *it == IpAddr::V6(*address));
            let own: Vec<String> = own.map(|(link, _)| link.to_string()).collect();
            // INVARIANT: writing to a string doesn't fail.
            let _ = writeln!(
                rules,
                "icmpv6 type nd-neighbor-advert @th,64,128 {:#x} iif != {{ {} }} counter drop",
                address.to_bits(),
                own.join(", ")
            );
        }
        let _ = write!(
            script,
            "table bridge {table} {{\n{sets}chain arriving {{\n\
             type filter hook prerouting priority -300; policy accept;\n{rules}}}\n}}\n"
        );
        script
    }
}

/// Script that removes the bridges' table.
pub(super) fn no_bridges(table: &str) -> String {
    format!("table bridge {table} {{}}\ndelete table bridge {table}\n")
}

/// What the name of the one map begins with; all others are sets.
pub(super) const MAP: &str = "servers";
const FAMILIES: [(&str, &str); 2] = [("4", "ip"), ("6", "ip6")];

/// The port of a container that a service's port leads to: that which the engine publishes there, or the
/// same.
fn inside(network: &Network, port: Port) -> u16 {
    let published = network.containers.iter().flat_map(|it| &it.published);
    let mut own = published.filter(|it| it.udp == port.udp && it.host_services == port.number);
    own.next().map_or(port.number, |it| it.inside)
}

fn element(port: Port) -> String {
    let protocol = if port.udp { "udp" } else { "tcp" };
    format!("{protocol} . {}", port.number)
}

fn text(mac: &[u8; 6]) -> String {
    let bytes: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
    bytes.join(":")
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::process::{Command, Stdio};
    use std::sync::Arc;

    use isthmus_model::{ContainerMatch, Exposure, Protocol, Selector, ServiceId};
    use isthmus_net::namespaces::Inward;

    use super::super::Ports;
    use super::super::script::script;
    use super::super::tests::snapshot;
    use super::*;
    use crate::containers::tests::container;
    use crate::containers::{Container, Published};
    use crate::owners::local_services;

    fn behind(with: impl FnOnce(&mut Container)) -> (Snapshot, Behind) {
        let mut snapshot = snapshot(&[(8080, Protocol::Tcp, Exposure::Mesh)]);
        let by_name = ContainerMatch { name: Some("web".into()), ..ContainerMatch::default() };
        let service = snapshot.services.get_mut(&ServiceId(20)).unwrap();
        service.selectors = vec![Selector::Container(by_name)];
        let mut web = container("web", Some(2), &["10.88.0.2", "fd99::2"]);
        web.macs = vec![[2, 0, 0, 0, 0, 0xa]];
        with(&mut web);
        let other = container("other", Some(3), &["10.88.0.3"]);
        // `lo` is a link that every namespace has.
        let links: HashMap<u64, Vec<Inward>> =
            [(2, vec![Inward::new(1, Some(1))]), (3, vec![Inward::new(1, None)])].into();
        let table =
            Table::new(vec![Arc::new(web), Arc::new(other)], &links, &HashMap::new(), |_| false);
        let behind = Behind::of(&snapshot, &table, &local_services(&snapshot));
        (snapshot, behind)
    }

    #[test]
    fn a_services_port_leads_to_its_containers_published_or_not() {
        let (snapshot, plain) = behind(|_| {});
        let workload: IpAddr = snapshot.services[&ServiceId(20)].placements[&snapshot.local].into();
        let place = (workload, Port { udp: false, number: 8080 });
        assert_eq!(plain.servers[&place], "10.88.0.2:8080".parse().unwrap());
        let (_, published) = behind(|web| {
            web.published = vec![
                Published { udp: true, inside: 1, host_services: 8080 },
                Published { udp: false, inside: 80, host_services: 8080 },
            ];
        });
        assert_eq!(published.servers[&place], "10.88.0.2:80".parse().unwrap());
        assert_eq!(published.servers.len(), 2, "by both families");
        let (_, without) = behind(|web| web.name = "db".to_owned());
        assert!(without.servers.is_empty() && !without.is_empty(), "it calls all the same");
    }

    #[test]
    fn the_kernel_takes_the_rules() {
        let (_, behind) = behind(|_| {});
        let bridges = behind.bridge_script("isthmus-isth0-ports");
        let ports = Ports { behind, ..Ports::default() };
        isthmus_net::testing::in_netns(move || {
            for script in [
                bridges.clone(),
                script("isth0", &ports),
                script("isth0", &ports),
                bridges,
                script("isth0", &Ports::default()),
            ] {
                let mut nft =
                    Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
                std::io::Write::write_all(&mut nft.stdin.take().unwrap(), script.as_bytes())
                    .unwrap();
                assert!(nft.wait().unwrap().success(), "{script}");
            }
        });
    }
}
