//! Links, addresses and what the host has of them, over rtnetlink.
//!
//! Changes are idempotent: asking for what is already so succeeds, and so does removing what is
//! already gone. The agent can therefore apply a whole wish again after any failure.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use futures_util::{Stream, TryStreamExt};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec};
use tokio::task::JoinHandle;

/// A connection to the kernel, for the network namespace of the thread that made it.
#[derive(Debug)]
pub struct Netlink {
    pub(crate) handle: Handle,
    _connection: Task,
}

impl Netlink {
    /// Opens the connection, served by a task of the current tokio runtime (with IO enabled).
    ///
    /// # Errors
    /// Fails when the process may not open netlink sockets.
    pub fn connect() -> Result<Self, NetlinkError> {
        let (connection, handle, _) =
            rtnetlink::new_connection().map_err(NetlinkError::os("open a netlink socket"))?;
        Ok(Self { handle, _connection: Task(tokio::spawn(connection)) })
    }

    /// # Errors
    /// See [`NetlinkError`].
    pub async fn set_up(&self, link: u32) -> Result<(), NetlinkError> {
        self.change(LinkUnspec::new_with_index(link).up(), "bring the link up").await
    }

    /// # Errors
    /// See [`NetlinkError`]; an MTU below 1280 makes the kernel drop the link's IPv6.
    pub async fn set_mtu(&self, link: u32, mtu: u32) -> Result<(), NetlinkError> {
        self.change(LinkUnspec::new_with_index(link).mtu(mtu), "set the link's MTU").await
    }

    /// How many segments a packet that the kernel gives to `link` may stand for.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub async fn set_gso_max_segments(&self, link: u32, segments: u32) -> Result<(), NetlinkError> {
        let change = LinkUnspec::new_with_index(link)
            .append_extra_attribute(LinkAttribute::GsoMaxSegs(segments));
        self.change(change, "set the link's number of segments").await
    }

    /// # Errors
    /// See [`NetlinkError`].
    pub async fn set_tx_queue_len(&self, link: u32, packets: u32) -> Result<(), NetlinkError> {
        let change = LinkUnspec::new_with_index(link).txqueuelen(packets);
        self.change(change, "set the link's queue length").await
    }

    /// Gives `link` the single address `address` (/32 or /128), usable at once: nobody else on a
    /// TUN device could have it, so IPv6 doesn't probe for duplicates.
    ///
    /// Programs may bind to it when this returns; the kernel's route that delivers an IPv6
    /// address's packets follows within milliseconds, and only on a link that is up.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub async fn add_address(&self, link: u32, address: IpAddr) -> Result<(), NetlinkError> {
        let mut request =
            self.handle.address().add(link, address, host_prefix_len(address)).replace();
        if address.is_ipv6() {
            request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        }
        request.execute().await.map_err(NetlinkError::request("add an address"))
    }

    /// # Errors
    /// See [`NetlinkError`].
    pub async fn delete_address(&self, link: u32, address: IpAddr) -> Result<(), NetlinkError> {
        let message = host_address(link, address);
        let result = self.handle.address().del(message).execute().await;
        tolerate(result.map_err(NetlinkError::request("delete an address")), libc::EADDRNOTAVAIL)
    }

    /// Makes `wanted` the addresses of `link`: adds what is missing, removes the rest.
    ///
    /// Addresses that the kernel makes itself (link-local) stay.
    ///
    /// # Errors
    /// See [`NetlinkError`]; some of the changes may have been made.
    pub async fn replace_addresses(
        &self,
        link: u32,
        wanted: &BTreeSet<IpAddr>,
    ) -> Result<(), NetlinkError> {
        let present: BTreeSet<IpAddr> = self
            .addresses()
            .await?
            .into_iter()
            .filter(|found| found.link == link && found.global)
            .map(|found| found.address)
            .collect();
        for address in wanted.difference(&present) {
            self.add_address(link, *address).await?;
        }
        for address in present.difference(wanted) {
            self.delete_address(link, *address).await?;
        }
        Ok(())
    }

    /// The host's links by index.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub async fn links(&self) -> Result<BTreeMap<u32, LinkInfo>, NetlinkError> {
        let links = self.handle.link().get().execute();
        let links = collect(links, "list the links").await?;
        Ok(links.into_iter().map(|link| (link.header.index, LinkInfo::from(link))).collect())
    }

    /// The host's addresses, in no particular order.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub async fn addresses(&self) -> Result<Vec<AddressInfo>, NetlinkError> {
        let addresses = self.handle.address().get().execute();
        let addresses = collect(addresses, "list the addresses").await?;
        Ok(addresses.iter().filter_map(AddressInfo::parse).collect())
    }

    /// The addresses at which other hosts may reach this one: global, usable, on a link that is
    /// up, neither on loopback nor on `overlay`, the agent's own device. IPv4 first, sorted.
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
        let reachable = |found: AddressInfo| {
            let link = links.get(&found.link)?;
            let is_usable = found.global && found.usable && !found.address.is_loopback();
            let is_underlay = link.up && !link.loopback && link.name != overlay;
            (is_usable && is_underlay).then(|| (found, link.clone()))
        };
        Ok(self.addresses().await?.into_iter().filter_map(reachable).collect())
    }

    async fn change(
        &self,
        change: LinkMessageBuilder<LinkUnspec>,
        what: &'static str,
    ) -> Result<(), NetlinkError> {
        let request = self.handle.link().change(change.build());
        request.execute().await.map_err(NetlinkError::request(what))
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkInfo {
    pub name: String,
    pub up: bool,
    pub loopback: bool,
    pub mtu: Option<u32>,
}

impl From<LinkMessage> for LinkInfo {
    fn from(link: LinkMessage) -> Self {
        let mut info = Self {
            name: String::new(),
            up: link.header.flags.contains(LinkFlags::Up),
            loopback: link.header.flags.contains(LinkFlags::Loopback),
            mtu: None,
        };
        for attribute in link.attributes {
            if let LinkAttribute::IfName(name) = attribute {
                info.name = name;
            } else if let LinkAttribute::Mtu(mtu) = attribute {
                info.mtu = Some(mtu);
            }
        }
        info
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddressInfo {
    pub link: u32,
    pub address: IpAddr,
    pub prefix_len: u8,
    /// Meant for others to reach: neither link-local nor host-local.
    pub global: bool,
    /// Neither being probed, nor on its way out, nor an IPv6 privacy address.
    pub usable: bool,
}

impl AddressInfo {
    fn parse(message: &AddressMessage) -> Option<Self> {
        let mut flags = u32::from(message.header.flags.bits());
        let (mut local, mut peer) = (None, None);
        for attribute in &message.attributes {
            if let AddressAttribute::Local(address) = attribute {
                local = Some(*address);
            } else if let AddressAttribute::Address(address) = attribute {
                peer = Some(*address);
            } else if let AddressAttribute::Flags(all) = attribute {
                flags = all.bits();
            }
        }
        // On a point-to-point link "address" is the other end's.
        let address = local.or(peer)?;
        let flags = AddressFlags::from_bits_retain(flags);
        let mut unusable =
            AddressFlags::Tentative | AddressFlags::Dadfailed | AddressFlags::Deprecated;
        if message.header.family == AddressFamily::Inet6 {
            // The same bit as IFA_F_TEMPORARY.
            unusable |= AddressFlags::Secondary;
        }
        Some(Self {
            link: message.header.index,
            address,
            prefix_len: message.header.prefix_len,
            global: message.header.scope == AddressScope::Universe,
            usable: !flags.intersects(unusable),
        })
    }
}

/// Why the kernel didn't do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    #[error("the kernel doesn't let us {what}: needs CAP_NET_ADMIN")]
    NotPermitted { what: &'static str },
    #[error("the kernel refused to {what}")]
    Refused { what: &'static str, source: io::Error },
    #[error("can't {what}: the netlink connection failed: {detail}")]
    Connection { what: &'static str, detail: String },
}

impl NetlinkError {
    pub(crate) fn os(what: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Self::NotPermitted { what },
            _ => Self::Refused { what, source },
        }
    }

    pub(crate) fn request(what: &'static str) -> impl Fn(rtnetlink::Error) -> Self {
        move |error| {
            if let rtnetlink::Error::NetlinkError(answer) = error {
                Self::os(what)(answer.to_io())
            } else {
                Self::Connection { what, detail: error.to_string() }
            }
        }
    }
}

/// Success instead of the error which says that there was nothing to do.
pub(crate) fn tolerate(
    result: Result<(), NetlinkError>,
    errno: libc::c_int,
) -> Result<(), NetlinkError> {
    match result {
        Err(NetlinkError::Refused { source, .. }) if source.raw_os_error() == Some(errno) => Ok(()),
        other => other,
    }
}

pub(crate) async fn collect<T>(
    stream: impl Stream<Item = Result<T, rtnetlink::Error>>,
    what: &'static str,
) -> Result<Vec<T>, NetlinkError> {
    stream.try_collect().await.map_err(NetlinkError::request(what))
}

/// A task that ends with its owner.
#[derive(Debug)]
pub(crate) struct Task(pub(crate) JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn host_prefix_len(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn host_address(link: u32, address: IpAddr) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.index = link;
    message.header.prefix_len = host_prefix_len(address);
    message.header.family =
        if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{LOOPBACK, block_on, in_netns, netlink};
    use crate::tun::Tun;

    #[test]
    fn replacing_addresses_adds_the_missing_and_removes_the_rest() {
        in_netns(|| {
            let tun = Tun::create("isth-n0", 1400).unwrap();
            block_on(async {
                let netlink = netlink();
                netlink.set_up(tun.index()).await.unwrap();
                for wanted in [
                    set(&["100.64.0.1", "100.64.0.2", "fd00::1"]),
                    set(&["100.64.0.2", "100.64.0.3", "fd00::2"]),
                    set(&[]),
                ] {
                    netlink.replace_addresses(tun.index(), &wanted).await.unwrap();
                    let found = netlink.addresses().await.unwrap();
                    let found = found.iter().filter(|a| a.link == tun.index() && a.global);
                    let found: BTreeSet<IpAddr> =
                        found.inspect(|a| assert!(a.usable, "{a:?}")).map(|a| a.address).collect();
                    assert_eq!(found, wanted);
                }
            });
        });
    }

    #[test]
    fn asking_twice_is_as_good_as_once() {
        in_netns(|| {
            block_on(async {
                let netlink = netlink();
                for address in set(&["100.64.0.1", "fd00::1"]) {
                    netlink.add_address(LOOPBACK, address).await.unwrap();
                    netlink.add_address(LOOPBACK, address).await.unwrap();
                    netlink.delete_address(LOOPBACK, address).await.unwrap();
                    netlink.delete_address(LOOPBACK, address).await.unwrap();
                }
            });
        });
    }

    #[test]
    fn link_settings_are_what_was_asked() {
        in_netns(|| {
            let tun = Tun::create("isth-n1", 1400).unwrap();
            block_on(async {
                let netlink = netlink();
                assert!(!netlink.links().await.unwrap()[&tun.index()].up);
                netlink.set_up(tun.index()).await.unwrap();
                netlink.set_mtu(tun.index(), 1280).await.unwrap();
                netlink.set_tx_queue_len(tun.index(), 2000).await.unwrap();
                let link = netlink.links().await.unwrap().remove(&tun.index()).unwrap();
                assert_eq!((link.name.as_str(), link.up, link.mtu), ("isth-n1", true, Some(1280)));
            });
        });
    }

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
    fn a_refusal_says_what_was_asked() {
        in_netns(|| {
            let error = block_on(async { netlink().set_up(999).await.unwrap_err() });
            assert_eq!(error.to_string(), "the kernel refused to bring the link up");
        });
        let error = NetlinkError::os("add a route")(io::Error::from_raw_os_error(libc::EPERM));
        assert!(error.to_string().contains("needs CAP_NET_ADMIN"), "{error}");
    }

    fn set(addresses: &[&str]) -> BTreeSet<IpAddr> {
        addresses.iter().map(|address| address.parse().unwrap()).collect()
    }
}
