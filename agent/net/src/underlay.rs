//! The host's links to other machines, and its addresses there.
//!
//! A bridge for containers or virtual machines is a link like any other to the kernel, and its address
//! is the same on each host that has one. What tells them apart is what they lead to: a bridge whose
//! ports are all the ends of containers leads nowhere else, unless the default route says so.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::netlink::{AddressInfo, LinkInfo, LinkKind, Netlink, NetlinkError};

impl Netlink {
    /// The addresses at which other hosts may reach this one: global, usable, on a link that is
    /// up and leads to other machines, neither on loopback nor on `overlay`, the agent's own device.
    /// IPv4 first, sorted.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub async fn underlay_addresses(&self, overlay: &str) -> Result<Vec<IpAddr>, NetlinkError> {
        let underlay = self.underlay(overlay).await?;
        let sorted: BTreeSet<IpAddr> = underlay.iter().map(|(found, _)| found.address).collect();
        Ok(sorted.into_iter().collect())
    }

    /// The largest MTU of the links that have such addresses, if there are any.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub async fn underlay_mtu(&self, overlay: &str) -> Result<Option<u32>, NetlinkError> {
        let underlay = self.underlay(overlay).await?;
        Ok(underlay.into_iter().filter_map(|(_, link)| link.mtu).max())
    }

    async fn underlay(&self, overlay: &str) -> Result<Vec<(AddressInfo, LinkInfo)>, NetlinkError> {
        let links = self.links().await?;
        let usable = |found: &AddressInfo| {
            let link = links.get(&found.link);
            found.global
                && found.usable
                && !found.address.is_loopback()
                && link.is_some_and(|link| link.up && !link.loopback && link.name != overlay)
        };
        let mut addresses = self.addresses().await?;
        addresses.retain(usable);
        let candidates: BTreeSet<u32> = addresses.iter().map(|found| found.link).collect();
        let is_open = |index: &u32| links.get(index).is_some_and(|it| it.kind == LinkKind::Other);
        // A host may have very many routes: they are looked at only where they matter.
        let defaults = if candidates.iter().all(is_open) {
            BTreeSet::new()
        } else {
            self.default_links().await?
        };
        let outside = lead_outside(&links, &candidates, &defaults);
        let of_outside = |found: AddressInfo| {
            let link = outside.contains(&found.link).then(|| links.get(&found.link)).flatten()?;
            Some((found, link.clone()))
        };
        Ok(addresses.into_iter().filter_map(of_outside).collect())
    }

    /// The links that default routes lead to.
    async fn default_links(&self) -> Result<BTreeSet<u32>, NetlinkError> {
        let routes = self.routes().await?.into_iter();
        let defaults = routes.filter(|it| it.destination.prefix_len() == 0 && !it.local);
        Ok(defaults.filter_map(|route| route.device).collect())
    }
}

/// Those of `candidates` that lead to other machines.
///
/// An end of a pair is where a container's network begins, seen from its host, and where the world
/// begins, seen from the container; the kernel doesn't tell which. So it counts where the default
/// route goes by it, or where there is nothing else.
fn lead_outside(
    links: &BTreeMap<u32, LinkInfo>,
    candidates: &BTreeSet<u32>,
    defaults: &BTreeSet<u32>,
) -> BTreeSet<u32> {
    let has_outside_port = |bridge: u32| {
        let mut ports = links.values().filter(|link| link.master == Some(bridge));
        ports.any(|port| !matches!(port.kind, LinkKind::Veth | LinkKind::Tun))
    };
    let kind = |index: &u32| links.get(index).map(|link| link.kind);
    let leads = |index: &&u32| {
        defaults.contains(index)
            || match kind(index) {
                Some(LinkKind::Other | LinkKind::Tun) => true,
                Some(LinkKind::Bridge) => has_outside_port(**index),
                Some(LinkKind::Veth) | None => false,
            }
    };
    let certain: BTreeSet<u32> = candidates.iter().filter(leads).copied().collect();
    if !certain.is_empty() {
        return certain;
    }
    candidates.iter().filter(|index| kind(index) == Some(LinkKind::Veth)).copied().collect()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::testing::{LOOPBACK, block_on, in_netns, netlink};
    use crate::tun::Tun;

    #[test]
    fn only_reachable_addresses_are_endpoints() {
        in_netns(|| {
            let underlay = Tun::create("isth-n2", 1400).unwrap();
            let overlay = Tun::create("isth-n3", 1500).unwrap();
            let down = Tun::create("isth-n4", 1400).unwrap();
            block_on(async {
                let netlink = netlink();
                netlink.set_up(underlay.index()).await.unwrap();
                netlink.set_up(overlay.index()).await.unwrap();
                for (link, address) in [
                    (underlay.index(), "192.0.2.7"),
                    (underlay.index(), "2001:db8::7"),
                    (underlay.index(), "fe80::7"),
                    (overlay.index(), "100.64.0.1"),
                    (down.index(), "192.0.2.8"),
                    (LOOPBACK, "192.0.2.9"),
                ] {
                    netlink.add_address(link, address.parse().unwrap()).await.unwrap();
                }
                let found = netlink.underlay_addresses("isth-n3").await.unwrap();
                assert_eq!(found, Vec::from_iter(set(&["192.0.2.7", "2001:db8::7"])));
                assert_eq!(netlink.underlay_mtu("isth-n3").await.unwrap(), Some(1400));
                assert_eq!(netlink.underlay_mtu("isth-n2").await.unwrap(), Some(1500));
            });
        });
    }

    #[test]
    fn the_addresses_of_container_bridges_are_no_endpoints() {
        in_netns(|| {
            // A container's bridge, a network card, a bridge over one, and a container of its own.
            sh("ip link add docker9 type bridge && ip link add c9 type veth peer name c9in");
            sh("ip link set c9 master docker9 && ip addr add 172.17.0.1/16 dev docker9");
            sh("ip link add ve-9 type veth peer name host0 && ip addr add 192.168.9.1/28 dev ve-9");
            sh("ip link add virbr9 type bridge && ip addr add 192.168.122.1/24 dev virbr9");
            sh("for link in docker9 c9 c9in ve-9 host0 virbr9; do ip link set $link up; done");
            let found = || {
                block_on(async { netlink().underlay_addresses("isth0").await.unwrap() })
                    .iter()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>()
            };
            assert_eq!(found(), ["192.168.9.1"], "there is nothing better");

            sh(
                "ip link add card type ifb && ip link set card up && ip addr add 192.0.2.7/24 dev card",
            );
            assert_eq!(found(), ["192.0.2.7"]);

            sh(
                "ip link add port type ifb && ip link set port up && ip link set port master virbr9",
            );
            assert_eq!(found(), ["192.0.2.7", "192.168.122.1"], "a bridge with a card leads out");

            sh("ip route add default via 172.17.0.9 dev docker9");
            assert_eq!(found(), ["172.17.0.1", "192.0.2.7", "192.168.122.1"]);
        });
    }

    #[test]
    fn a_containers_only_link_leads_out_whatever_it_is() {
        let link = |kind, master| LinkInfo {
            name: String::new(),
            up: true,
            loopback: false,
            mtu: None,
            kind,
            master,
        };
        let links = BTreeMap::from([
            (2, link(LinkKind::Veth, None)),
            (3, link(LinkKind::Bridge, None)),
            (4, link(LinkKind::Veth, Some(3))),
            (5, link(LinkKind::Tun, Some(3))),
            (6, link(LinkKind::Other, None)),
        ]);
        let outside = |candidates: &[u32], defaults: &[u32]| {
            let set = |numbers: &[u32]| numbers.iter().copied().collect();
            Vec::from_iter(lead_outside(&links, &set(candidates), &set(defaults)))
        };
        assert_eq!(outside(&[2, 3], &[]), [2]);
        assert_eq!(outside(&[3], &[]), [0; 0]);
        assert_eq!(outside(&[3], &[3]), [3]);
        assert_eq!(outside(&[2, 3, 6], &[]), [6]);
        assert_eq!(outside(&[2, 3, 6], &[2]), [2, 6]);
    }

    fn sh(script: &str) {
        let done = Command::new("sh").args(["-c", script]).output().unwrap();
        assert!(done.status.success(), "{script}: {}", String::from_utf8_lossy(&done.stderr));
    }

    fn set(addresses: &[&str]) -> BTreeSet<IpAddr> {
        addresses.iter().map(|address| address.parse().unwrap()).collect()
    }
}
