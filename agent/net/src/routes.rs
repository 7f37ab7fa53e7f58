//! Routes: the agent's own, and the host's that could clash with them.
//!
//! The agent's routes carry a protocol number of their own, so that those of an agent that was
//! killed can be told from the administrator's, and removed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::{Handle, RouteMessageBuilder};

use crate::netlink::{Netlink, NetlinkError, Task, collect, tolerate};
use crate::refusals;

/// Not in iproute2's `rt_protos`; `ip route show proto 151` lists the agent's routes.
pub const ROUTE_PROTOCOL: u8 = 151;

/// `LOOPBACK_IFINDEX`: `lo` has this index in every network namespace.
pub(crate) const LOOPBACK: u32 = 1;
pub(crate) const RT_TABLE_LOCAL: u8 = 255;

/// A route of the agent's.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Route {
    pub destination: IpNet,
    pub device: u32,
    pub kind: RouteKind,
    /// The address that programs send from when they don't choose one.
    pub source: Option<IpAddr>,
    pub metric: Option<u32>,
}

/// The agent's own table: packets from its device are looked up here, others aren't.
pub const AGENT_TABLE: u8 = 151;
/// What applications answer to those whom the proxy speaks for is looked up here.
pub const ANSWERS_TABLE: u8 = 153;

/// Action of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RouteKind {
    /// Sends it out of the device.
    Unicast,
    /// Takes it as the host's own ("AnyIP"): a listener gets it though no device has the address.
    Local,
    /// Likewise, but only what [`Netlink::look_up_own_table`] leads there.
    LocalFromDevice,
    /// Likewise, but only what [`Netlink::lead_answers_back`] leads there.
    LocalForAnswers,
}

impl Route {
    pub fn via_device(destination: IpNet, device: u32) -> Self {
        let kind = RouteKind::Unicast;
        Self { destination, device, kind, source: None, metric: None }
    }

    /// Makes the host answer for all of `destination`.
    pub fn local(destination: IpNet) -> Self {
        let kind = RouteKind::Local;
        Self { destination, device: LOOPBACK, kind, source: None, metric: None }
    }

    /// Makes the host answer for all of `destination` to packets that come in by the agent's device.
    pub fn local_from_device(destination: IpNet) -> Self {
        Self { kind: RouteKind::LocalFromDevice, ..Self::local(destination) }
    }

    /// Makes the host take all of `destination` of what applications answer to the proxy.
    pub fn local_for_answers(destination: IpNet) -> Self {
        Self { kind: RouteKind::LocalForAnswers, ..Self::local(destination) }
    }

    pub fn with_source(self, source: IpAddr) -> Self {
        Self { source: Some(source), ..self }
    }

    pub fn with_metric(self, metric: u32) -> Self {
        Self { metric: Some(metric), ..self }
    }

    fn message(&self) -> RouteMessage {
        let destination = self.destination.trunc();
        let mut message = match destination {
            IpNet::V4(net) => RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(net.addr(), net.prefix_len())
                .output_interface(self.device)
                .build(),
            IpNet::V6(net) => RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(net.addr(), net.prefix_len())
                .output_interface(self.device)
                .build(),
        };
        let header = &mut message.header;
        header.protocol = RouteProtocol::Other(ROUTE_PROTOCOL);
        (header.kind, header.table, header.scope) = match self.kind {
            RouteKind::Unicast => {
                (RouteType::Unicast, RouteHeader::RT_TABLE_MAIN, RouteScope::Link)
            }
            RouteKind::Local => (RouteType::Local, RT_TABLE_LOCAL, RouteScope::Host),
            RouteKind::LocalFromDevice => (RouteType::Local, AGENT_TABLE, RouteScope::Host),
            RouteKind::LocalForAnswers => (RouteType::Local, ANSWERS_TABLE, RouteScope::Host),
        };
        if let Some(source) = self.source {
            message.attributes.push(RouteAttribute::PrefSource(source.into()));
        }
        if let Some(metric) = self.metric {
            message.attributes.push(RouteAttribute::Priority(metric));
        }
        message
    }
}

/// A route that the host has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteInfo {
    pub destination: IpNet,
    pub device: Option<u32>,
    pub device_name: Option<String>,
    pub gateway: Option<IpAddr>,
    pub table: u32,
    pub metric: Option<u32>,
    /// The address that programs send from when they don't choose one.
    pub source: Option<IpAddr>,
    /// Whether the host itself answers for the destination.
    pub local: bool,
    /// Whether an agent made it.
    pub ours: bool,
}

/// As `ip route` would print it, for messages to people.
impl std::fmt::Display for RouteInfo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = if self.local { "local " } else { "" };
        write!(f, "{kind}{}", self.destination)?;
        if let Some(gateway) = self.gateway {
            write!(f, " via {gateway}")?;
        }
        if let Some(device) = &self.device_name {
            write!(f, " dev {device}")?;
        }
        let usual = if self.local { RT_TABLE_LOCAL } else { RouteHeader::RT_TABLE_MAIN };
        if self.table != usual.into() {
            write!(f, " table {}", self.table)?;
        }
        Ok(())
    }
}

impl RouteInfo {
    /// Whether it is not the agent's and leads elsewhere with some of `prefix`.
    pub(crate) fn clashes(&self, prefix: IpNet) -> bool {
        let overlaps = self.destination.contains(&prefix) || prefix.contains(&self.destination);
        overlaps && !self.ours && self.destination.prefix_len() > 1
    }

    /// Whether it is `route`, with everything that the agent wants of it.
    #[must_use]
    pub fn is(&self, route: &Route) -> bool {
        let (local, table) = match route.kind {
            RouteKind::Unicast => (false, RouteHeader::RT_TABLE_MAIN),
            RouteKind::Local => (true, RT_TABLE_LOCAL),
            RouteKind::LocalFromDevice => (true, AGENT_TABLE),
            RouteKind::LocalForAnswers => (true, ANSWERS_TABLE),
        };
        self.destination == route.destination.trunc()
            && self.device == Some(route.device)
            && self.local == local
            && self.table == table.into()
            && (route.source.is_none() || self.source == route.source)
            && (route.metric.is_none() || self.metric == route.metric)
    }
}

impl Netlink {
    /// Adds `route`, or changes the one with the same destination and metric.
    ///
    /// # Errors
    /// See [`NetlinkError`]; the device must be up, and the source one of the host's addresses.
    pub async fn replace_route(&self, route: &Route) -> Result<(), NetlinkError> {
        let request = self.handle.route().add(route.message()).replace();
        request.execute().await.map_err(NetlinkError::request("add a route"))
    }

    /// # Errors
    /// See [`NetlinkError`]; a route that is gone already isn't an error.
    pub async fn delete_route(&self, route: &Route) -> Result<(), NetlinkError> {
        let mut message = route.message();
        // The preferred source may have been withdrawn from the route by the kernel meanwhile.
        message.attributes.retain(|it| !matches!(it, RouteAttribute::PrefSource(_)));
        let result = self.handle.route().del(message).execute().await;
        tolerate(result.map_err(NetlinkError::request("delete a route")), libc::ESRCH)
    }

    /// Removes every route that carries [`ROUTE_PROTOCOL`], and says how many there were.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub async fn delete_own_routes(&self) -> Result<usize, NetlinkError> {
        let own = self.left_routes().await?;
        for route in &own {
            self.delete_route(route).await?;
        }
        Ok(own.len())
    }

    /// The routes of an agent, as far as it takes to delete them.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub async fn left_routes(&self) -> Result<Vec<Route>, NetlinkError> {
        Ok(self.own_routes().await?.iter().filter_map(as_own).collect())
    }

    /// The host's routes of both families and all tables.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub async fn routes(&self) -> Result<Vec<RouteInfo>, NetlinkError> {
        let links = self.links().await?;
        let mut messages =
            dump(&self.handle, RouteMessageBuilder::<Ipv4Addr>::new().build()).await?;
        messages.extend(dump(&self.handle, RouteMessageBuilder::<Ipv6Addr>::new().build()).await?);
        let mut routes: Vec<RouteInfo> = messages.iter().filter_map(parse).collect();
        for route in &mut routes {
            let link = route.device.and_then(|index| links.get(&index));
            route.device_name = link.map(|link| link.name.clone());
        }
        Ok(routes)
    }

    /// The routes that an agent made. Of a host's many routes, the kernel sends only these (Linux 4.20).
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub async fn own_routes(&self) -> Result<Vec<RouteInfo>, NetlinkError> {
        let (connection, handle, _) = rtnetlink::new_connection_with_strict_check()
            .or_else(|_| rtnetlink::new_connection())
            .map_err(NetlinkError::os("open a netlink socket"))?;
        let _connection = Task(tokio::spawn(connection));
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = RouteMessage::default();
            request.header.address_family = family;
            request.header.protocol = RouteProtocol::Other(ROUTE_PROTOCOL);
            let found = dump(&handle, request).await?;
            routes.extend(found.iter().filter_map(parse).filter(|route| route.ours));
        }
        Ok(routes)
    }

    /// The routes that lead elsewhere with some of `prefix`, apart from those over the device
    /// `own` and those that an agent made.
    ///
    /// Default routes don't count, nor the halves (`0.0.0.0/1`) that VPNs use in their stead.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub async fn clashes_with(
        &self,
        prefix: IpNet,
        own: Option<u32>,
    ) -> Result<Vec<RouteInfo>, NetlinkError> {
        let mut routes = self.routes().await?;
        routes.retain(|route| {
            let over_ours = own.is_some() && route.device == own;
            !over_ours && route.clashes(prefix)
        });
        Ok(routes)
    }
}

async fn dump(handle: &Handle, request: RouteMessage) -> Result<Vec<RouteMessage>, NetlinkError> {
    collect(handle.route().get(request).execute(), "list the routes").await
}

/// `None` for what no packet of a host's is sent by: broadcasts, anycast, multicast, our refusals.
pub(crate) fn parse(message: &RouteMessage) -> Option<RouteInfo> {
    let header = &message.header;
    if matches!(header.kind, RouteType::Broadcast | RouteType::Anycast | RouteType::Multicast)
        || header.protocol == refusals::PROTOCOL
    {
        return None;
    }
    let unspecified = if header.address_family == AddressFamily::Inet {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED)
    } else {
        IpAddr::V6(Ipv6Addr::UNSPECIFIED)
    };
    let mut route = RouteInfo {
        destination: IpNet::new(unspecified, header.destination_prefix_length).ok()?,
        device: None,
        device_name: None,
        gateway: None,
        table: header.table.into(),
        metric: None,
        source: None,
        local: header.kind == RouteType::Local,
        ours: header.protocol == RouteProtocol::Other(ROUTE_PROTOCOL),
    };
    for attribute in &message.attributes {
        if let RouteAttribute::Destination(address) = attribute {
            let address = ip(address)?;
            route.destination = IpNet::new(address, header.destination_prefix_length).ok()?;
        } else if let RouteAttribute::Oif(index) = attribute {
            route.device = Some(*index);
        } else if let RouteAttribute::Gateway(address) = attribute {
            route.gateway = ip(address);
        } else if let RouteAttribute::Table(table) = attribute {
            route.table = *table;
        } else if let RouteAttribute::Priority(metric) = attribute {
            route.metric = Some(*metric);
        } else if let RouteAttribute::PrefSource(address) = attribute {
            route.source = ip(address);
        } else if let RouteAttribute::MultiPath(hops) = attribute {
            route.device = hops.first().map(|hop| hop.interface_index);
        }
    }
    Some(route)
}

pub(crate) fn ip(address: &RouteAddress) -> Option<IpAddr> {
    if let RouteAddress::Inet(address) = address {
        Some((*address).into())
    } else if let RouteAddress::Inet6(address) = address {
        Some((*address).into())
    } else {
        None
    }
}

fn as_own(found: &RouteInfo) -> Option<Route> {
    let kind = match (found.local, found.table) {
        (true, table) if table == u32::from(AGENT_TABLE) => RouteKind::LocalFromDevice,
        (true, table) if table == u32::from(ANSWERS_TABLE) => RouteKind::LocalForAnswers,
        (true, _) => RouteKind::Local,
        (false, _) => RouteKind::Unicast,
    };
    let RouteInfo { destination, metric, .. } = *found;
    Some(Route { destination, device: found.device?, kind, source: None, metric })
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpListener, TcpStream};

    use super::*;
    use crate::testing::{block_on, in_netns, netlink};
    use crate::tun::Tun;

    #[test]
    fn a_route_is_made_changed_and_deleted() {
        in_netns(|| {
            let tun = Tun::create("isth-r0", 1400).unwrap();
            block_on(async {
                let netlink = netlink();
                netlink.set_up(tun.index()).await.unwrap();
                for (prefix, source) in [("100.64.0.0/10", "100.64.0.1"), ("fd00::/48", "fd00::1")]
                {
                    let source = source.parse().unwrap();
                    netlink.add_address(tun.index(), source).await.unwrap();
                    let route = Route::via_device(net(prefix), tun.index())
                        .with_source(source)
                        .with_metric(50);
                    netlink.replace_route(&route).await.unwrap();
                    netlink.replace_route(&route).await.unwrap();
                    let found = named(&netlink, prefix).await;
                    assert_eq!(found.len(), 1, "{found:?}");
                    assert_eq!(found[0].device_name.as_deref(), Some("isth-r0"));
                    assert_eq!((found[0].metric, found[0].ours), (Some(50), true));

                    netlink.delete_route(&route).await.unwrap();
                    netlink.delete_route(&route).await.unwrap();
                    assert_eq!(named(&netlink, prefix).await, []);
                }
            });
        });
    }

    #[test]
    fn a_local_route_makes_the_host_answer_for_a_prefix() {
        in_netns(|| {
            block_on(async {
                let netlink = netlink();
                for (prefix, address) in
                    [("100.127.0.0/16", "100.127.3.4"), ("fd00::/96", "fd00::9")]
                {
                    netlink.replace_route(&Route::local(net(prefix))).await.unwrap();
                    let address: IpAddr = address.parse().unwrap();
                    let wildcard = SocketAddr::new(any(address), 0);
                    let listener = TcpListener::bind(wildcard).unwrap();
                    let port = listener.local_addr().unwrap().port();
                    let client = TcpStream::connect((address, port)).unwrap();
                    assert_eq!(client.peer_addr().unwrap().ip(), address);
                }
            });
        });
    }

    #[test]
    fn the_routes_of_a_killed_agent_can_be_removed_and_no_others() {
        in_netns(|| {
            let tun = Tun::create("isth-r1", 1400).unwrap();
            block_on(async {
                let netlink = netlink();
                netlink.set_up(tun.index()).await.unwrap();
                let own = [
                    Route::local(net("100.127.0.0/16")),
                    Route::local(net("fd00::/96")),
                    Route::local_from_device(net("100.127.0.0/16")),
                    Route::via_device(net("100.64.0.0/10"), tun.index()),
                    Route::via_device(net("fd00::/48"), tun.index()).with_metric(7),
                ];
                foreign(&netlink, "10.0.0.0/8", tun.index()).await;
                for route in &own {
                    netlink.replace_route(route).await.unwrap();
                }
                let found = netlink.own_routes().await.unwrap();
                assert_eq!(found.len(), own.len(), "{found:?}");
                for route in &own {
                    assert_eq!(found.iter().filter(|it| it.is(route)).count(), 1, "{route:?}");
                }
                assert_eq!(netlink.delete_own_routes().await.unwrap(), own.len());
                let left = netlink.routes().await.unwrap();
                assert!(left.iter().all(|route| !route.ours), "{left:?}");
                assert_eq!(named(&netlink, "10.0.0.0/8").await.len(), 1);
            });
        });
    }

    #[test]
    fn clashes_are_the_foreign_routes_that_overlap() {
        in_netns(|| {
            let ours = Tun::create("isth-r2", 1400).unwrap();
            let other = Tun::create("isth-r3", 1400).unwrap();
            block_on(async {
                let netlink = netlink();
                netlink.set_up(ours.index()).await.unwrap();
                netlink.set_up(other.index()).await.unwrap();
                netlink.add_address(ours.index(), "100.64.0.1".parse().unwrap()).await.unwrap();
                netlink.add_address(other.index(), "100.64.7.1".parse().unwrap()).await.unwrap();
                for prefix in
                    ["0.0.0.0/0", "128.0.0.0/1", "100.64.8.0/24", "100.0.0.0/8", "10.0.0.0/8"]
                {
                    foreign(&netlink, prefix, other.index()).await;
                }
                foreign(&netlink, "100.64.9.0/24", ours.index()).await;

                let found =
                    netlink.clashes_with(net("100.64.0.0/16"), Some(ours.index())).await.unwrap();
                let mut found: Vec<String> = found.iter().map(ToString::to_string).collect();
                found.sort();
                let expected = [
                    "100.0.0.0/8 dev isth-r3",
                    "100.64.8.0/24 dev isth-r3",
                    "local 100.64.7.1/32 dev isth-r3",
                ];
                assert_eq!(found, expected);
                let found = netlink.clashes_with(net("fd12::/48"), None).await.unwrap();
                assert_eq!(found, []);
            });
        });
    }

    /// A route as an administrator would make it.
    async fn foreign(netlink: &Netlink, prefix: &str, device: u32) {
        let mut message = Route::via_device(net(prefix), device).message();
        message.header.protocol = RouteProtocol::Static;
        netlink.handle.route().add(message).execute().await.unwrap();
    }

    async fn named(netlink: &Netlink, prefix: &str) -> Vec<RouteInfo> {
        let mut routes = netlink.routes().await.unwrap();
        routes.retain(|route| route.destination == net(prefix));
        routes
    }

    fn any(address: IpAddr) -> IpAddr {
        match address {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        }
    }

    fn net(prefix: &str) -> IpNet {
        prefix.parse().unwrap()
    }
}
