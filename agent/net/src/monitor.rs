//! Hears of changes to the host's addresses and default routes, and to what is the agent's own.

use futures_util::StreamExt;
use ipnet::IpNet;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{NLM_F_REPLACE, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::LinkFlags;
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage};
use tokio::sync::{mpsc, watch};

use crate::netlink::{NetlinkError, Task};
use crate::routes::{AGENT_TABLE, parse};
use crate::rules::leads_to_own_table;

/// Tells that something changed which other hosts may have to know, not what: whoever listens
/// looks at [`crate::netlink::Netlink::underlay_addresses`] again. Changes in between are one.
#[derive(Debug)]
pub struct AddressMonitor {
    changes: mpsc::Receiver<()>,
    _connection: Task,
    _listener: Task,
}

impl AddressMonitor {
    /// Listens to the network namespace of the calling thread, on the current tokio runtime.
    ///
    /// Changes on the device `overlay`, the agent's own, aren't told.
    ///
    /// # Errors
    /// Fails when the process may not open netlink sockets.
    pub fn start(overlay: Option<u32>) -> Result<Self, NetlinkError> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ];
        let (connection, _, mut messages) = rtnetlink::new_multicast_connection(&groups)
            .map_err(NetlinkError::os("listen to network changes"))?;
        let (sender, changes) = mpsc::channel(1);
        let listener = async move {
            while let Some((message, _)) = messages.next().await {
                if matters(&message.payload, overlay) {
                    // A full channel holds the news already.
                    let _ = sender.try_send(());
                }
            }
        };
        Ok(Self {
            changes,
            _connection: Task(tokio::spawn(connection)),
            _listener: Task(tokio::spawn(listener)),
        })
    }

    /// Waits for the next change; `false` when the connection to the kernel is lost. Cancel-safe.
    pub async fn changed(&mut self) -> bool {
        self.changes.recv().await.is_some()
    }
}

fn matters(payload: &NetlinkPayload<RouteNetlinkMessage>, overlay: Option<u32>) -> bool {
    // The kernel dropped messages: anything may have changed.
    if let NetlinkPayload::Overrun(_) = payload {
        return true;
    }
    let NetlinkPayload::InnerMessage(message) = payload else { return false };
    let foreign = |index: u32| overlay != Some(index);
    if let RouteNetlinkMessage::NewAddress(address) | RouteNetlinkMessage::DelAddress(address) =
        message
    {
        foreign(address.header.index)
    } else if let RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link) = message
    {
        foreign(link.header.index)
    } else if let RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) =
        message
    {
        route.header.destination_prefix_length == 0
    } else {
        false
    }
}

/// `lo` has this index in every network namespace.
const LOOPBACK: u32 = 1;
/// Changes that wait to be looked at.
const CHANGES: usize = 64;

/// Tells that something of the agent's own may have changed: its device, the addresses and routes
/// there, its table, its rules, or whether `lo` has addresses; and that somebody else has, or no longer
/// has, a route into the mesh. Whoever listens looks for itself.
#[derive(Debug)]
pub struct OwnMonitor {
    changes: mpsc::Receiver<Change>,
    _connection: Task,
    _listener: Task,
}

/// A change to something of the agent's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Who took something away, if it was taken and the kernel says by whom: the number of a netlink
    /// socket, which is mostly its process's.
    pub taken_by: Option<u32>,
    /// Whether it is about another's route with some of the mesh's addresses.
    pub foreign_route: bool,
}

impl OwnMonitor {
    /// Listens to the network namespace of the calling thread, on the current tokio runtime, for
    /// changes to what belongs to `device`, the agent's own, which is called `name`, and to others' routes
    /// that overlap with `mesh`.
    ///
    /// # Errors
    /// Fails when the process may not open netlink sockets.
    pub fn start(
        device: u32,
        name: &str,
        mesh: watch::Receiver<Vec<IpNet>>,
    ) -> Result<Self, NetlinkError> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
            MulticastGroup::Ipv4Rule,
            MulticastGroup::Ipv6Rule,
        ];
        let (connection, _, mut messages) = rtnetlink::new_multicast_connection(&groups)
            .map_err(NetlinkError::os("listen to network changes"))?;
        let (sender, changes) = mpsc::channel(CHANGES);
        let name = name.to_owned();
        let listener = async move {
            while let Some((message, _)) = messages.next().await {
                if let Some(change) = own_change(&message, device, &name, &mesh.borrow()) {
                    // A full channel has its listener look in any case.
                    let _ = sender.try_send(change);
                }
            }
        };
        Ok(Self {
            changes,
            _connection: Task(tokio::spawn(connection)),
            _listener: Task(tokio::spawn(listener)),
        })
    }

    /// Waits for the next change; `None` when the connection to the kernel is lost. Cancel-safe.
    pub async fn changed(&mut self) -> Option<Change> {
        self.changes.recv().await
    }

    /// The next change, if there was one.
    pub fn pending(&mut self) -> Option<Change> {
        self.changes.try_recv().ok()
    }
}

fn own_change(
    message: &NetlinkMessage<RouteNetlinkMessage>,
    device: u32,
    name: &str,
    mesh: &[IpNet],
) -> Option<Change> {
    // The kernel dropped messages: anything may have changed.
    if let NetlinkPayload::Overrun(_) = &message.payload {
        return Some(Change { taken_by: None, foreign_route: true });
    }
    let NetlinkPayload::InnerMessage(inner) = &message.payload else { return None };
    let (concerns, taken) = concern(inner, message.header.flags, device, name);
    let taken_by = Some(message.header.port_number).filter(|port| taken && *port != 0);
    let foreign_route = leads_into(inner, device, mesh);
    (concerns || foreign_route).then_some(Change { taken_by, foreign_route })
}

/// Whether it is about another's route that [`Netlink::clashes_with`](crate::netlink::Netlink::clashes_with)
/// would name.
fn leads_into(message: &RouteNetlinkMessage, device: u32, mesh: &[IpNet]) -> bool {
    let (RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route)) = message
    else {
        return false;
    };
    !is_of(route, device)
        && parse(route).is_some_and(|it| mesh.iter().any(|mesh| it.clashes(*mesh)))
}

/// Whether a message is about the agent's own, and whether something was taken away.
fn concern(message: &RouteNetlinkMessage, flags: u16, device: u32, name: &str) -> (bool, bool) {
    if let RouteNetlinkMessage::DelAddress(it) = message {
        (it.header.index == device || it.header.index == LOOPBACK, it.header.index == device)
    } else if let RouteNetlinkMessage::NewAddress(it) = message {
        (it.header.index == LOOPBACK, false)
    } else if let RouteNetlinkMessage::NewLink(it) = message {
        let down = !it.header.flags.contains(LinkFlags::Up);
        (it.header.index == device, down)
    } else if let RouteNetlinkMessage::DelRoute(it) = message {
        let own = is_of(it, device);
        (own, own)
    } else if let RouteNetlinkMessage::NewRoute(it) = message {
        // It may have taken the place of one of the agent's.
        let replaces = flags & NLM_F_REPLACE != 0 && !is_of(it, device);
        (replaces, replaces)
    } else if let RouteNetlinkMessage::DelRule(it) = message {
        let own = leads_to_own_table(it, name);
        (own, own)
    } else {
        (false, false)
    }
}

fn is_of(route: &RouteMessage, device: u32) -> bool {
    route.header.table == AGENT_TABLE || route.attributes.contains(&RouteAttribute::Oif(device))
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    use rtnetlink::packet_core::NetlinkPayload::InnerMessage;
    use rtnetlink::packet_route::address::AddressMessage;
    use rtnetlink::packet_route::link::LinkMessage;
    use rtnetlink::packet_route::neighbour::NeighbourMessage;
    use rtnetlink::packet_route::route::RouteMessage;
    use tokio::time::timeout;

    use super::*;
    use crate::routes::Route;
    use crate::sysctl::Family;
    use crate::testing::{block_on, in_netns, netlink};
    use crate::tun::Tun;

    #[test]
    fn changes_of_addresses_default_routes_and_links_are_told() {
        in_netns(|| {
            let underlay = Tun::create("isth-m0", 1400).unwrap();
            block_on(async {
                let netlink = netlink();
                netlink.set_up(underlay.index()).await.unwrap();
                let mut monitor = AddressMonitor::start(None).unwrap();

                let address = "192.0.2.7".parse().unwrap();
                netlink.add_address(underlay.index(), address).await.unwrap();
                assert!(heard(&mut monitor).await);
                netlink.delete_address(underlay.index(), address).await.unwrap();
                assert!(heard(&mut monitor).await);
                let default = Route::via_device("0.0.0.0/0".parse().unwrap(), underlay.index());
                netlink.replace_route(&default).await.unwrap();
                assert!(heard(&mut monitor).await);
                netlink.set_mtu(LOOPBACK, 1300).await.unwrap();
                assert!(heard(&mut monitor).await);
            });
        });
    }

    #[test]
    fn the_overlays_own_changes_are_no_news() {
        const OVERLAY: u32 = 5;
        for (index, news) in [(OVERLAY, false), (OVERLAY + 1, true)] {
            let mut address = AddressMessage::default();
            address.header.index = index;
            let mut link = LinkMessage::default();
            link.header.index = index;
            for message in [
                RouteNetlinkMessage::NewAddress(address.clone()),
                RouteNetlinkMessage::DelAddress(address),
                RouteNetlinkMessage::NewLink(link.clone()),
                RouteNetlinkMessage::DelLink(link),
            ] {
                let message = InnerMessage(message);
                assert_eq!(matters(&message, Some(OVERLAY)), news, "{message:?}");
                assert!(matters(&message, None));
            }
        }
    }

    #[test]
    fn only_default_routes_are_news() {
        let default = RouteMessage::default();
        let mut other = default.clone();
        other.header.destination_prefix_length = 8;
        for (message, news) in [
            (RouteNetlinkMessage::NewRoute(default.clone()), true),
            (RouteNetlinkMessage::DelRoute(default), true),
            (RouteNetlinkMessage::NewRoute(other), false),
            (RouteNetlinkMessage::NewNeighbour(NeighbourMessage::default()), false),
        ] {
            assert_eq!(matters(&InnerMessage(message), None), news);
        }
    }

    #[test]
    fn who_takes_something_of_the_agents_is_told_and_nothing_else_is() {
        in_netns(|| {
            let tun = Tun::create("isth-m1", 1400).unwrap();
            let other = Tun::create("isth-m2", 1400).unwrap();
            block_on(async {
                let netlink = netlink();
                for link in [tun.index(), other.index()] {
                    netlink.set_up(link).await.unwrap();
                }
                let routes = [
                    Route::via_device("100.64.0.0/10".parse().unwrap(), tun.index()),
                    Route::local_from_device("100.127.0.0/16".parse().unwrap()),
                ];
                netlink.add_address(tun.index(), "100.64.0.1".parse().unwrap()).await.unwrap();
                for route in &routes {
                    netlink.replace_route(route).await.unwrap();
                }
                netlink.look_up_own_table("isth-m1", Family::Ipv4).await.unwrap();

                let (_prefixes, mesh) = watch::channel(vec!["100.64.0.0/10".parse().unwrap()]);
                let mut monitor = OwnMonitor::start(tun.index(), "isth-m1", mesh).unwrap();
                ip("addr add 192.0.2.7/24 dev isth-m2");
                ip("rule add iif isth-m2 table 151");
                ip("route add 198.51.100.0/24 dev isth-m2");
                for foreign in ["add 100.64.7.1/32 dev isth-m2", "del 100.64.7.1/32 dev isth-m2"] {
                    ip(&format!("route {foreign}"));
                    let next = timeout(Duration::from_secs(5), monitor.changed());
                    let change = next.await.expect(foreign).unwrap();
                    assert_eq!(change, Change { taken_by: None, foreign_route: true }, "{foreign}");
                }
                ip("link set isth-m2 down");
                for taking in [
                    "rule del iif isth-m1 table 151",
                    "route flush table 151",
                    "route del 100.64.0.0/10 dev isth-m1",
                    "addr del 100.64.0.1/32 dev isth-m1",
                    "link set isth-m1 down",
                ] {
                    let taker = ip(taking);
                    let next = timeout(Duration::from_secs(5), monitor.changed());
                    let change = next.await.expect(taking).unwrap();
                    // Kernels don't say who puts a link down before Linux 6.2.
                    let known = change.taken_by.is_none_or(|by| by == taker);
                    assert!(known, "{taking}: {change:?}, not {taker}");
                    while monitor.pending().is_some() {}
                }
            });
        });
    }

    fn ip(arguments: &str) -> u32 {
        let mut child = Command::new("ip").args(arguments.split(' ')).spawn().unwrap();
        assert!(child.wait().unwrap().success(), "ip {arguments}");
        child.id()
    }

    #[test]
    fn lost_messages_are_news() {
        assert!(matters(&NetlinkPayload::Overrun(Vec::new()), Some(5)));
    }

    async fn heard(monitor: &mut AddressMonitor) -> bool {
        timeout(Duration::from_secs(5), monitor.changed()).await.unwrap()
    }
}
