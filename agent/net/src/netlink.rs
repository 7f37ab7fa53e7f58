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
use rtnetlink::packet_route::link::{self, InfoKind, LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec};
use tokio::task::JoinHandle;

use crate::sysctl::Family;

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

    /// Renames a link, which goes down for it where the kernel (before Linux 6.2) wants that.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub async fn set_name(&self, link: u32, name: &str) -> Result<(), NetlinkError> {
        let renamed = || LinkUnspec::new_with_index(link).name(name.to_owned());
        if self.change(renamed(), "rename the link").await.is_ok() {
            return Ok(());
        }
        self.change(LinkUnspec::new_with_index(link).down(), "take the link down").await?;
        self.change(renamed(), "rename the link").await
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

    /// Makes `wanted` the addresses of `family` of `link`: adds what is missing, removes the rest.
    ///
    /// Addresses that the kernel makes itself (link-local) stay.
    ///
    /// # Errors
    /// See [`NetlinkError`]; some of the changes may have been made.
    pub async fn replace_addresses(
        &self,
        link: u32,
        wanted: &BTreeSet<IpAddr>,
        family: Family,
    ) -> Result<(), NetlinkError> {
        let of_family = |address: IpAddr| address.is_ipv4() == (family == Family::Ipv4);
        let present: BTreeSet<IpAddr> = self
            .addresses()
            .await?
            .into_iter()
            .filter(|found| found.link == link && found.global && of_family(found.address))
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

    /// The link with this index, if there is one.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub async fn link(&self, index: u32) -> Result<Option<LinkInfo>, NetlinkError> {
        let links = self.handle.link().get().match_index(index).execute();
        match collect(links, "look at a link").await {
            Err(NetlinkError::Refused { source, .. })
                if source.raw_os_error() == Some(libc::ENODEV) =>
            {
                Ok(None)
            }
            links => Ok(links?.pop().map(LinkInfo::from)),
        }
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
    pub kind: LinkKind,
    /// The bridge or bond that it is a port of.
    pub master: Option<u32>,
}

/// What kind of link it is, as far as that says what can be behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkKind {
    Bridge,
    /// One end of a pair, the other of which is mostly another network namespace's.
    Veth,
    /// A program's: a VPN's, or the network card of a virtual machine.
    Tun,
    /// Network cards, and what is made of them.
    Other,
}

impl From<LinkMessage> for LinkInfo {
    fn from(link: LinkMessage) -> Self {
        let mut info = Self {
            name: String::new(),
            up: link.header.flags.contains(LinkFlags::Up),
            loopback: link.header.flags.contains(LinkFlags::Loopback),
            mtu: None,
            kind: LinkKind::Other,
            master: None,
        };
        for attribute in link.attributes {
            if let LinkAttribute::IfName(name) = attribute {
                info.name = name;
            } else if let LinkAttribute::Mtu(mtu) = attribute {
                info.mtu = Some(mtu);
            } else if let LinkAttribute::Controller(index) = attribute {
                info.master = Some(index);
            } else if let LinkAttribute::LinkInfo(about) = attribute {
                info.kind = LinkKind::of(&about);
            }
        }
        info
    }
}

impl LinkKind {
    fn of(about: &[link::LinkInfo]) -> Self {
        let is = |kind: InfoKind| about.contains(&link::LinkInfo::Kind(kind));
        if is(InfoKind::Bridge) {
            Self::Bridge
        } else if is(InfoKind::Veth) || is(InfoKind::Netkit) {
            Self::Veth
        } else if is(InfoKind::Tun) {
            Self::Tun
        } else {
            Self::Other
        }
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
    #[error("the kernel refused to {what}: IPv6 is switched off (net.ipv6.conf.*.disable_ipv6)")]
    FamilyOff { what: &'static str },
    #[error("the kernel refused to {what}")]
    Refused { what: &'static str, source: io::Error },
    #[error("can't {what}: the netlink connection failed: {detail}")]
    Connection { what: &'static str, detail: String },
}

impl NetlinkError {
    pub(crate) fn os(what: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| match source.raw_os_error() {
            Some(libc::EPERM) => Self::NotPermitted { what },
            // What lacks a capability is answered by EPERM. This is what a device says without IPv6.
            Some(libc::EACCES) => Self::FamilyOff { what },
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
    use crate::sysctl;
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
                    for family in [Family::Ipv4, Family::Ipv6] {
                        let of_family = |it: &&IpAddr| it.is_ipv4() == (family == Family::Ipv4);
                        let wanted = wanted.iter().filter(of_family).copied().collect();
                        netlink.replace_addresses(tun.index(), &wanted, family).await.unwrap();
                    }
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
                assert!(!netlink.link(tun.index()).await.unwrap().unwrap().up);
                assert_eq!(netlink.link(999).await.unwrap(), None);
                netlink.set_up(tun.index()).await.unwrap();
                netlink.set_mtu(tun.index(), 1280).await.unwrap();
                netlink.set_tx_queue_len(tun.index(), 2000).await.unwrap();
                let link = netlink.links().await.unwrap().remove(&tun.index()).unwrap();
                assert_eq!((link.name.as_str(), link.up, link.mtu), ("isth-n1", true, Some(1280)));
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

    #[test]
    fn a_device_without_ipv6_is_named_and_not_a_missing_capability() {
        in_netns(|| {
            sysctl::set(Family::Ipv6, "lo", "disable_ipv6", "1").unwrap();
            let address = "fd00::1".parse().unwrap();
            let error = block_on(async { netlink().add_address(LOOPBACK, address).await });
            let error = error.unwrap_err();
            assert!(matches!(error, NetlinkError::FamilyOff { .. }), "{error:?}");
            assert!(error.to_string().contains("disable_ipv6"), "{error}");
        });
    }

    fn set(addresses: &[&str]) -> BTreeSet<IpAddr> {
        addresses.iter().map(|address| address.parse().unwrap()).collect()
    }
}
