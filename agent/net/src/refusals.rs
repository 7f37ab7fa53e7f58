//! Routes that stand whether or not an agent runs: they refuse what nothing better is known for, and
//! keep the host's own addresses its own.
//!
//! They belong to no device of the agent's, so they stay when the agent and its device go; a program
//! that speaks to the overlay meanwhile is told at once that nobody is there, and nothing leaves by a
//! default route. What is sent to an own address waits for the next agent as far as its sender does.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};

use crate::netlink::{Netlink, NetlinkError, collect, tolerate};
use crate::routes::{LOOPBACK, RT_TABLE_LOCAL, ip};

/// `ip route show proto 152` lists them. Not the protocol of the agent's other routes, which go with it.
pub(crate) const PROTOCOL: RouteProtocol = RouteProtocol::Other(152);
/// Behind every other route: those of a device that has the same address are the kernel's.
const METRIC: u32 = u32::MAX - 1;

/// What stands, and for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    Refused(IpNet),
    Own(IpAddr),
}

impl Netlink {
    /// Makes `prefixes` what is refused but for the host's `own` addresses: adds what is missing,
    /// removes the rest. A family that the host doesn't have needs neither.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub async fn replace_refusals(
        &self,
        prefixes: &[IpNet],
        own: &[IpAddr],
    ) -> Result<(), NetlinkError> {
        let refused = prefixes.iter().map(|it| Standing::Refused(it.trunc()));
        let own = own.iter().copied().map(Standing::Own);
        let wanted: BTreeSet<Standing> = refused.chain(own).collect();
        let present = self.standing().await?;
        for stale in present.difference(&wanted) {
            let result = self.handle.route().del(message(*stale)).execute().await;
            tolerate(result.map_err(NetlinkError::request("delete a route")), libc::ESRCH)?;
        }
        for new in wanted.difference(&present) {
            let request = self.handle.route().add(message(*new)).replace();
            let result = request.execute().await.map_err(NetlinkError::request("add a route"));
            match new.destination() {
                IpNet::V4(_) => result?,
                IpNet::V6(_) => without_ipv6(result)?,
            }
        }
        Ok(())
    }

    async fn standing(&self) -> Result<BTreeSet<Standing>, NetlinkError> {
        let mut found = BTreeSet::new();
        for family in [
            RouteMessageBuilder::<Ipv4Addr>::new().build(),
            RouteMessageBuilder::<Ipv6Addr>::new().build(),
        ] {
            let routes =
                collect(self.handle.route().get(family).execute(), "list the routes").await?;
            found.extend(routes.iter().filter_map(standing));
        }
        Ok(found)
    }
}

impl Standing {
    fn destination(self) -> IpNet {
        match self {
            Self::Refused(prefix) => prefix,
            Self::Own(address) => address.into(),
        }
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

fn standing(message: &RouteMessage) -> Option<Standing> {
    if message.header.protocol != PROTOCOL {
        return None;
    }
    let address = message.attributes.iter().find_map(|it| {
        if let RouteAttribute::Destination(address) = it { ip(address) } else { None }
    })?;
    if message.header.kind == RouteType::Local {
        return Some(Standing::Own(address));
    }
    IpNet::new(address, message.header.destination_prefix_length).ok().map(Standing::Refused)
}

fn message(standing: Standing) -> RouteMessage {
    let mut message = match standing.destination() {
        IpNet::V4(net) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(net.addr(), net.prefix_len())
            .build(),
        IpNet::V6(net) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(net.addr(), net.prefix_len())
            .build(),
    };
    let header = &mut message.header;
    header.protocol = PROTOCOL;
    (header.kind, header.table, header.scope) = match standing {
        Standing::Refused(_) => {
            (RouteType::Unreachable, RouteHeader::RT_TABLE_MAIN, RouteScope::Universe)
        }
        Standing::Own(_) => (RouteType::Local, RT_TABLE_LOCAL, RouteScope::Host),
    };
    message.attributes.push(RouteAttribute::Priority(METRIC));
    if matches!(standing, Standing::Own(_)) {
        message.attributes.push(RouteAttribute::Oif(LOOPBACK));
    }
    message
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, SocketAddr};

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
                    netlink.replace_refusals(&prefixes, &[]).await.unwrap();
                    assert_eq!(netlink.standing().await.unwrap().len(), 2);
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
                netlink.replace_refusals(&prefixes[..1], &[]).await.unwrap();
                assert_eq!(netlink.standing().await.unwrap().len(), 1);
                netlink.replace_refusals(&[], &[]).await.unwrap();
                assert_eq!(netlink.standing().await.unwrap().len(), 0);
            });
        });
    }

    #[test]
    fn own_addresses_stay_the_hosts_own_when_their_device_goes() {
        in_netns(|| {
            let prefixes =
                ["100.64.0.0/10", "fd00:1:2::/48"].map(|it| it.parse::<IpNet>().unwrap());
            let own = ["100.64.0.16", "fd00:1:2::16"].map(|it| it.parse::<IpAddr>().unwrap());
            let sends = |to: IpAddr| {
                let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
                let socket = std::net::UdpSocket::bind((any, 0)).unwrap();
                socket.send_to(b"a question", (to, 53)).is_ok()
            };
            block_on(async {
                let netlink = netlink();
                netlink.set_up(crate::routes::LOOPBACK).await.unwrap();
                let overlay = Tun::create("isth-f2", 1400).unwrap();
                netlink.set_up(overlay.index()).await.unwrap();
                for address in own {
                    netlink.add_address(overlay.index(), address).await.unwrap();
                }
                for _ in 0..2 {
                    netlink.replace_refusals(&prefixes, &own).await.unwrap();
                    assert_eq!(netlink.standing().await.unwrap().len(), 4);
                }
                for prefix in prefixes {
                    let found = netlink.clashes_with(prefix, Some(overlay.index())).await.unwrap();
                    assert_eq!(found, []);
                }
                let index = overlay.index();
                drop(overlay);
                // A process that another test forks has the device open, too, until it is another program.
                let began = std::time::Instant::now();
                while netlink.links().await.unwrap().contains_key(&index) {
                    assert!(began.elapsed() < std::time::Duration::from_secs(5), "it stays");
                    tokio::task::yield_now().await;
                }
                assert!(own.into_iter().all(sends));
                netlink.replace_refusals(&prefixes, &[]).await.unwrap();
                assert!(!own.into_iter().any(sends));
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
