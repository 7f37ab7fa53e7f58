//! Hears of changes to the host's addresses and default routes.

use futures_util::StreamExt;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::RouteNetlinkMessage;
use tokio::sync::mpsc;

use crate::netlink::{NetlinkError, Task};

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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rtnetlink::packet_core::NetlinkPayload::InnerMessage;
    use rtnetlink::packet_route::address::AddressMessage;
    use rtnetlink::packet_route::link::LinkMessage;
    use rtnetlink::packet_route::neighbour::NeighbourMessage;
    use rtnetlink::packet_route::route::RouteMessage;
    use tokio::time::timeout;

    use super::*;
    use crate::routes::Route;
    use crate::testing::{LOOPBACK, block_on, in_netns, netlink};
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
    fn lost_messages_are_news() {
        assert!(matters(&NetlinkPayload::Overrun(Vec::new()), Some(5)));
    }

    async fn heard(monitor: &mut AddressMonitor) -> bool {
        timeout(Duration::from_secs(5), monitor.changed()).await.unwrap()
    }
}
