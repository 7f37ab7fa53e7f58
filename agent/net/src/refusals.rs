//! Routes that refuse what nothing better is known for, whether or not an agent runs.
//!
//! They belong to no device, so they stay when the agent and its device go; a program that speaks to
//! the overlay meanwhile is told at once that nobody is there, and nothing leaves by a default route.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};

use crate::netlink::{Netlink, NetlinkError, collect, tolerate};
use crate::routes::ip;

/// `ip route show proto 152` lists them. Not the protocol of the agent's other routes, which go with it.
pub(crate) const PROTOCOL: RouteProtocol = RouteProtocol::Other(152);
/// Behind every other route.
const METRIC: u32 = u32::MAX - 1;

impl Netlink {
    /// Makes `prefixes` what is refused: adds what is missing, removes the rest. A family that the host
    /// doesn't have needs no refusal.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub async fn replace_refusals(&self, prefixes: &[IpNet]) -> Result<(), NetlinkError> {
        let wanted: BTreeSet<IpNet> = prefixes.iter().map(IpNet::trunc).collect();
        let present = self.refusals().await?;
        for prefix in present.difference(&wanted) {
            let result = self.handle.route().del(message(*prefix)).execute().await;
            tolerate(result.map_err(NetlinkError::request("delete a route")), libc::ESRCH)?;
        }
        for prefix in wanted.difference(&present) {
            let request = self.handle.route().add(message(*prefix)).replace();
            let result = request.execute().await.map_err(NetlinkError::request("add a route"));
            match prefix {
                IpNet::V4(_) => result?,
                IpNet::V6(_) => without_ipv6(result)?,
            }
        }
        Ok(())
    }

    async fn refusals(&self) -> Result<BTreeSet<IpNet>, NetlinkError> {
        let mut found = BTreeSet::new();
        for family in [
            RouteMessageBuilder::<Ipv4Addr>::new().build(),
            RouteMessageBuilder::<Ipv6Addr>::new().build(),
        ] {
            let routes =
                collect(self.handle.route().get(family).execute(), "list the routes").await?;
            found.extend(routes.iter().filter_map(refused));
        }
        Ok(found)
    }
}

/// A kernel without IPv6 says one of these.
fn without_ipv6(result: Result<(), NetlinkError>) -> Result<(), NetlinkError> {
    let errors = [libc::EOPNOTSUPP, libc::EAFNOSUPPORT, libc::ENODEV];
    if matches!(result, Err(NetlinkError::NotPermitted { .. })) {
        // `disable_ipv6` on `lo`, where such routes hang, answers EACCES.
        return Ok(());
    }
    errors.into_iter().fold(result, tolerate)
}

fn refused(message: &RouteMessage) -> Option<IpNet> {
    if message.header.protocol != PROTOCOL || message.header.kind != RouteType::Unreachable {
        return None;
    }
    let address = message.attributes.iter().find_map(|it| {
        if let RouteAttribute::Destination(address) = it { ip(address) } else { None }
    })?;
    IpNet::new(address, message.header.destination_prefix_length).ok()
}

fn message(prefix: IpNet) -> RouteMessage {
    let mut message = match prefix {
        IpNet::V4(net) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(net.addr(), net.prefix_len())
            .build(),
        IpNet::V6(net) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(net.addr(), net.prefix_len())
            .build(),
    };
    let header = &mut message.header;
    (header.kind, header.protocol) = (RouteType::Unreachable, PROTOCOL);
    (header.table, header.scope) = (RouteHeader::RT_TABLE_MAIN, RouteScope::Universe);
    message.attributes.push(RouteAttribute::Priority(METRIC));
    message
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use ipnet::IpNet;

    use crate::routes::Route;
    use crate::testing::{block_on, in_netns, netlink};
    use crate::tun::Tun;

    #[test]
    fn what_is_refused_fails_at_once_unless_a_better_route_is_there() {
        in_netns(|| {
            let default = Tun::create("isth-f0", 1400).unwrap();
            let overlay = Tun::create("isth-f1", 1400).unwrap();
            let prefixes =
                ["100.64.0.0/10", "fd00:1:2::/48"].map(|it| it.parse::<IpNet>().unwrap());
            block_on(async {
                let netlink = netlink();
                for (device, v4, v6) in
                    [(&default, "10.5.0.1", "fd05::1"), (&overlay, "100.64.0.1", "fd00:1:2::1")]
                {
                    netlink.set_up(device.index()).await.unwrap();
                    for address in [v4, v6] {
                        let address = address.parse().unwrap();
                        netlink.add_address(device.index(), address).await.unwrap();
                    }
                }
                for prefix in ["0.0.0.0/0", "::/0"] {
                    let route = Route::via_device(prefix.parse().unwrap(), default.index());
                    netlink.replace_route(&route).await.unwrap();
                }
                for _ in 0..2 {
                    netlink.replace_refusals(&prefixes).await.unwrap();
                    assert_eq!(netlink.refusals().await.unwrap().len(), 2);
                }
                for address in ["100.64.7.1", "fd00:1:2::7"] {
                    assert_eq!(begin(address), Some(libc::EHOSTUNREACH), "{address}");
                }
                for prefix in prefixes {
                    let found = netlink.clashes_with(prefix, Some(overlay.index())).await.unwrap();
                    assert_eq!(found, [], "our own");
                    let route = Route::via_device(prefix, overlay.index());
                    netlink.replace_route(&route).await.unwrap();
                }
                for address in ["100.64.7.1", "fd00:1:2::7"] {
                    assert_eq!(begin(address), Some(libc::EINPROGRESS), "{address}");
                }
                netlink.replace_refusals(&prefixes[..1]).await.unwrap();
                assert_eq!(netlink.refusals().await.unwrap().len(), 1);
                netlink.replace_refusals(&[]).await.unwrap();
                assert_eq!(netlink.refusals().await.unwrap().len(), 0);
            });
        });
    }

    /// What the kernel says to who begins a connection.
    fn begin(address: &str) -> Option<i32> {
        let address = SocketAddr::new(address.parse().unwrap(), 80);
        let domain = socket2::Domain::for_address(address);
        let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket.connect(&address.into()).err()?.raw_os_error()
    }
}
