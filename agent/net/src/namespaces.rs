//! Other network namespaces, seen from this one: which links here lead into them.
//!
//! The kernel tells it of both ends: the pair of links that joins a container with its host can't be
//! made, moved or renamed into another's by who is inside.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::StreamExt;
use rtnetlink::packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::nsid::{NsidAttribute, NsidMessage};

use crate::netlink::{Netlink, NetlinkError, collect};

/// An end here of a pair of links whose other end is in another namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inward {
    /// Its index here. The kernel gives none twice.
    pub index: u32,
    /// The bridge that it is a port of.
    pub master: Option<u32>,
    /// The kernel's name here for the other end's namespace.
    pub namespace: i32,
}

impl Inward {
    /// One that leads nowhere, for tests.
    #[cfg(any(test, feature = "testing"))]
    #[must_use]
    pub const fn new(index: u32, master: Option<u32>) -> Self {
        Self { index, master, namespace: -1 }
    }

    /// Where what comes in by it comes in for the network: by its bridge, or itself.
    #[must_use]
    pub fn entry(&self) -> u32 {
        self.master.unwrap_or(self.index)
    }
}

impl Netlink {
    /// The links here that lead into other namespaces.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub async fn inward_links(&self) -> Result<Vec<Inward>, NetlinkError> {
        let links = self.handle.link().get().execute();
        let links = collect(links, "list the links").await?;
        let inward = links.into_iter().filter_map(|link| {
            let (mut master, mut namespace) = (None, None);
            for attribute in link.attributes {
                if let LinkAttribute::Controller(index) = attribute {
                    master = Some(index);
                } else if let LinkAttribute::LinkNetNsId(id) = attribute {
                    namespace = Some(id);
                }
            }
            Some(Inward { index: link.header.index, master, namespace: namespace? })
        });
        Ok(inward.collect())
    }

    /// The kernel's name here for the network namespace of process `pid`: the one that the links which
    /// lead there have. `None` for this namespace itself, one that no link leads to, and a process that is
    /// gone. Asks the kernel by the process's number, which takes no capability.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub async fn namespace_of(&self, pid: u32) -> Result<Option<i32>, NetlinkError> {
        const WHAT: &str = "name a network namespace";
        let mut message = NsidMessage::default();
        message.attributes = vec![NsidAttribute::Pid(pid)];
        let mut message = NetlinkMessage::from(RouteNetlinkMessage::GetNsId(message));
        message.header.flags = NLM_F_REQUEST;
        let mut handle = self.handle.clone();
        let mut answers = handle.request(message).map_err(NetlinkError::request(WHAT))?;
        while let Some(answer) = answers.next().await {
            if let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNsId(found)) =
                answer.payload
            {
                return Ok(found.attributes.iter().find_map(assigned));
            } else if let NetlinkPayload::Error(error) = answer.payload {
                let error = error.to_io();
                let is_gone = error.raw_os_error() == Some(libc::ESRCH);
                return if is_gone { Ok(None) } else { Err(NetlinkError::os(WHAT)(error)) };
            }
        }
        Ok(None)
    }
}

/// The kernel's name for a namespace, if it has one here; it says -1 where it has none.
fn assigned(attribute: &NsidAttribute) -> Option<i32> {
    if let NsidAttribute::Id(id) = attribute { Some(*id).filter(|id| *id >= 0) } else { None }
}

/// The addresses that a process's network namespace has for itself, but for those of loopback.
#[must_use]
pub fn addresses_of(pid: u32) -> Vec<IpAddr> {
    /// More is no container's.
    const MOST: usize = 64;
    let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/net/{file}"));
    let mut addresses = local_ipv4(&read("fib_trie").unwrap_or_default());
    addresses.extend(global_ipv6(&read("if_inet6").unwrap_or_default()));
    addresses.truncate(MOST);
    addresses
}

/// ```text
///         |-- 10.88.0.2
///            /32 host LOCAL
/// ```
fn local_ipv4(trie: &str) -> Vec<IpAddr> {
    let mut found = BTreeMap::new();
    let mut last = None;
    for line in trie.lines().map(str::trim) {
        if let Some(address) = line.strip_prefix("|-- ") {
            last = address.parse::<Ipv4Addr>().ok();
        } else if line == "/32 host LOCAL"
            && let Some(address) = last.filter(|address| !address.is_loopback())
        {
            found.insert(address, ());
        }
    }
    found.into_keys().map(IpAddr::V4).collect()
}

/// `address index length scope flags name`, all numbers in hexadecimal.
fn global_ipv6(table: &str) -> Vec<IpAddr> {
    let address = |line: &str| {
        let mut fields = line.split_whitespace();
        let bits = u128::from_str_radix(fields.next()?, 16).ok()?;
        let scope = fields.nth(2)?;
        (scope == "00").then(|| IpAddr::V6(Ipv6Addr::from_bits(bits)))
    };
    table.lines().filter_map(address).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::testing::{Shell, block_on, eventually, in_netns, netlink};

    #[test]
    fn the_links_that_lead_into_a_namespace_are_told_from_all_others() {
        in_netns(|| {
            let mut inside = ["one", "two"].map(|name| {
                let mut shell = Shell::spawn(|_| {});
                shell.run("exec unshare -n bash");
                let pid = shell.pid();
                let inode =
                    |process: &str| fs::metadata(format!("/proc/{process}/ns/net")).unwrap().ino();
                let own = inode("thread-self");
                eventually(|| if inode(&pid.to_string()) == own { Err("not yet") } else { Ok(()) });
                run(&format!("ip link add {name} type veth peer name eth0 netns {pid}"));
                shell.run(
                    "ip link set lo up; ip link set eth0 up; ip addr add 10.9.0.2/24 dev eth0",
                );
                shell
            });
            run("ip link add br0 type bridge");
            run("ip link set one master br0");
            run("ip link add p type veth peer name q");
            block_on(async {
                let netlink = netlink();
                let links = netlink.inward_links().await.unwrap();
                assert_eq!(links.len(), 2, "{links:?}");
                let mut found = Vec::new();
                for shell in &inside {
                    let namespace = netlink.namespace_of(shell.pid()).await.unwrap().unwrap();
                    let ends: Vec<_> =
                        links.iter().filter(|it| it.namespace == namespace).collect();
                    assert_eq!(ends.len(), 1, "{ends:?}");
                    found.push(ends[0]);
                }
                assert_ne!(found[0].index, found[1].index);
                assert!(found[0].master.is_some() && found[1].master.is_none());
                assert_eq!(netlink.namespace_of(own_thread()).await.unwrap(), None);
                assert_eq!(netlink.namespace_of(u32::MAX >> 2).await.unwrap(), None);
            });
            let expected: IpAddr = "10.9.0.2".parse().unwrap();
            eventually(|| match &*addresses_of(inside[0].pid()) {
                [address] if *address == expected => Ok(()),
                other => Err(other.to_vec()),
            });
            inside.iter_mut().for_each(Shell::end);
        });
    }

    #[test]
    fn addresses_are_read_from_what_proc_tells() {
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n\
                    Local:\n        |-- 10.88.0.2\n           /32 host LOCAL\n        |-- 10.88.255.255\n\
                    /32 link BROADCAST\n |-- 127.0.0.1\n /32 host LOCAL\n |-- 10.88.0.2\n /32 host LOCAL\n";
        assert_eq!(local_ipv4(trie), ["10.88.0.2".parse::<IpAddr>().unwrap()]);
        let table = "fd000000000000000000000000000002 02 40 00 80     eth0\n\
                     fe80000000000000b80c6afffe3b4a5c 02 40 20 80     eth0\nnonsense\n";
        assert_eq!(global_ipv6(table), ["fd00::2".parse::<IpAddr>().unwrap()]);
    }

    /// The namespace is this thread's, not its process's.
    fn own_thread() -> u32 {
        let link = fs::read_link("/proc/thread-self").unwrap();
        link.file_name().unwrap().to_str().unwrap().parse().unwrap()
    }

    fn run(command: &str) {
        let mut words = command.split(' ');
        let done = std::process::Command::new(words.next().unwrap()).args(words).status().unwrap();
        assert!(done.success(), "{command}");
    }
}
