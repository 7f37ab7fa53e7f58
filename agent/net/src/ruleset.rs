//! Hears of changes to one table of nftables, and of who made them.
//!
//! The kernel tells of each transaction as a list of what it changed, with a last message that says
//! which program it was. Any administrator's tool may delete a table that isn't its own:
//! `nft flush ruleset` is how many firewalls' scripts begin.

use std::io;

use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use rtnetlink::sys::{AsyncSocket as _, AsyncSocketExt as _, TokioSocket};

use crate::netlink::NetlinkError;

const HEADER_LEN: usize = 16;
/// `struct nfgenmsg`: family 1, version 1, resource 2.
const FAMILY_LEN: usize = 4;
/// The kernel tells nothing that is near this long; it could only be noise.
const MESSAGES_MAX: usize = 1 << 16;

/// The table's name, in messages about tables and about all that a table holds.
const TABLE_NAME: u16 = 1;
const GENERATION_PROGRAM: u16 = 3;

/// Listens for changes to a table.
pub struct RulesetMonitor {
    socket: TokioSocket,
    transaction: Transaction,
    told: Vec<RulesetChange>,
}

/// A transaction that changed the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RulesetChange {
    /// The netlink socket that it came by: mostly the number of its process, as that process sees it.
    pub socket: Option<u32>,
    /// The program's name, as far as the kernel keeps it; empty where it isn't known.
    pub program: String,
}

impl RulesetMonitor {
    /// Listens to the network namespace of the calling thread, on the current tokio runtime, for
    /// changes to the table `table` of the family `inet`.
    ///
    /// # Errors
    /// Fails when the process may not, or the kernel has no nftables.
    pub fn start(table: &str) -> Result<Self, NetlinkError> {
        let open = || {
            let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
            socket.socket_mut().bind_auto()?;
            socket.socket_mut().add_membership(libc::NFNLGRP_NFTABLES as u32)?;
            Ok(socket)
        };
        let socket = open().map_err(NetlinkError::os("listen to changes of the packet filter"))?;
        Ok(Self { socket, transaction: Transaction::of(table), told: Vec::new() })
    }

    /// Waits for the next change. Cancel-safe.
    ///
    /// # Errors
    /// When the kernel tells nothing any more.
    pub async fn changed(&mut self) -> io::Result<RulesetChange> {
        loop {
            if let Some(change) = self.told.pop() {
                return Ok(change);
            }
            match self.socket.recv_from_full().await {
                Ok((messages, sender)) if sender.port_number() == 0 => {
                    self.told.extend(self.transaction.handle(&messages));
                }
                // Not the kernel's.
                Ok(_) => {}
                // Messages were lost: anything may have changed.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    return Ok(RulesetChange { socket: None, program: String::new() });
                }
                Err(error) => return Err(error),
            }
        }
    }
}

impl std::fmt::Debug for RulesetMonitor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RulesetMonitor")
            .field("transaction", &self.transaction)
            .finish_non_exhaustive()
    }
}

/// What is known of the transaction that is being told.
#[derive(Debug)]
struct Transaction {
    table: String,
    /// Process that changed the table in it.
    changed_by: Option<u32>,
}

impl Transaction {
    fn of(table: &str) -> Self {
        Self { table: table.to_owned(), changed_by: None }
    }

    /// The transactions that end in `messages` and changed the table.
    fn handle(&mut self, messages: &[u8]) -> Vec<RulesetChange> {
        let mut rest = messages.get(..messages.len().min(MESSAGES_MAX)).unwrap_or_default();
        let mut changes = Vec::new();
        while let Some((message, after)) = Message::parse(rest) {
            if message.kind == libc::NFT_MSG_NEWGEN as u8 {
                let program = text(message.attribute(GENERATION_PROGRAM));
                let by = self.changed_by.take();
                changes.extend(by.map(|it| RulesetChange { socket: Some(it), program }));
            } else if message.family == libc::NFPROTO_INET as u8
                && text(message.attribute(TABLE_NAME)) == self.table
            {
                self.changed_by = Some(message.sender);
            }
            rest = after;
        }
        changes
    }
}

/// ```text
///  0  nlmsghdr: length 4, kind 1, subsystem 1, flags 2, sequence 4, sender 4
/// 16  nfgenmsg: family 1, version 1, resource 2
/// 20  attributes: length 2, type 2, value
/// ```
struct Message<'a> {
    kind: u8,
    family: u8,
    sender: u32,
    attributes: &'a [u8],
}

impl<'a> Message<'a> {
    /// The next message of nftables, and what follows it.
    fn parse(mut bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        loop {
            let header = bytes.first_chunk::<HEADER_LEN>()?;
            let len = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]);
            let len = usize::try_from(len).ok()?;
            let body = bytes.get(HEADER_LEN..len)?;
            let after = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
            let [kind, subsystem] = u16::from_ne_bytes([header[4], header[5]]).to_le_bytes();
            let sender = u32::from_ne_bytes([header[12], header[13], header[14], header[15]]);
            if subsystem == libc::NFNL_SUBSYS_NFTABLES as u8
                && let Some((family, attributes)) = body.split_first_chunk::<FAMILY_LEN>()
            {
                return Some((Self { kind, family: family[0], sender, attributes }, after));
            }
            bytes = after;
        }
    }

    fn attribute(&self, wanted: u16) -> &'a [u8] {
        crate::sock_diag::attribute(self.attributes, wanted).unwrap_or_default()
    }
}

/// A text that a zero ends.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;
    use crate::testing::{block_on, in_netns};

    #[test]
    fn changes_to_the_table_are_told_with_who_made_them_and_no_others() {
        in_netns(|| {
            block_on(async {
                let mut monitor = RulesetMonitor::start("mine").unwrap();
                nft("add table inet other");
                nft("add table ip mine");
                for change in [
                    "add table inet mine; add chain inet mine a",
                    "add rule inet mine a counter",
                    "flush chain inet mine a",
                    "flush ruleset",
                ] {
                    let by = nft(change);
                    let told = heard(&mut monitor).await;
                    assert_eq!((told.socket, &*told.program), (Some(by), "nft"), "{change}");
                }
            });
        });
    }

    #[test]
    fn nonsense_is_no_change() {
        let mut transaction = Transaction::of("mine");
        for len in 0..200_usize {
            for fill in [0, 1, 0x0a, 0xff] {
                let mut noise = vec![fill; len];
                if let Some(length) = noise.first_chunk_mut::<4>() {
                    *length = u32::try_from(len).unwrap().to_ne_bytes();
                }
                assert_eq!(transaction.handle(&noise), []);
            }
        }
    }

    async fn heard(monitor: &mut RulesetMonitor) -> RulesetChange {
        timeout(Duration::from_secs(5), monitor.changed()).await.unwrap().unwrap()
    }

    fn nft(script: &str) -> u32 {
        let mut child = Command::new("nft").arg(script).spawn().unwrap();
        assert!(child.wait().unwrap().success(), "nft {script}");
        child.id()
    }
}
