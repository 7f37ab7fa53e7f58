//! Policy routing: what comes in by the agent's device is looked up in the agent's table first.
//!
//! So an address can be the host's own for packets that the data plane hands over, and still lead
//! into the device for everybody else.

use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};

use crate::netlink::{Netlink, NetlinkError, tolerate};
use crate::routes::AGENT_TABLE;

/// Behind the kernel's table of local addresses (0), before the main one (32766).
const PRIORITY: u32 = 15_100;

impl Netlink {
    /// Looks packets that come in by `device` up in [`AGENT_TABLE`]. A rule that is there already
    /// stays.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub async fn look_up_own_table(&self, device: &str, ipv6: bool) -> Result<(), NetlinkError> {
        for family in families(ipv6) {
            let mut request = self.handle.rule().add();
            *request.message_mut() = rule(device, family);
            let result = request.execute().await.map_err(NetlinkError::request("add a rule"));
            tolerate(result, libc::EEXIST)?;
        }
        Ok(())
    }

    /// Undoes [`Netlink::look_up_own_table`].
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub async fn forget_own_table(&self, device: &str, ipv6: bool) -> Result<(), NetlinkError> {
        for family in families(ipv6) {
            let request = self.handle.rule().del(rule(device, family));
            let result = request.execute().await.map_err(NetlinkError::request("delete a rule"));
            tolerate(result, libc::ENOENT)?;
        }
        Ok(())
    }
}

fn families(ipv6: bool) -> impl Iterator<Item = AddressFamily> {
    [Some(AddressFamily::Inet), ipv6.then_some(AddressFamily::Inet6)].into_iter().flatten()
}

fn rule(device: &str, family: AddressFamily) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = family;
    message.header.action = RuleAction::ToTable;
    message.header.table = AGENT_TABLE;
    message.attributes.push(RuleAttribute::Iifname(device.to_owned()));
    message.attributes.push(RuleAttribute::Priority(PRIORITY));
    message
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use crate::testing::{block_on, in_netns, netlink};
    use crate::tun::Tun;

    #[test]
    fn a_rule_is_made_once_and_deleted_once() {
        in_netns(|| {
            let _tun = Tun::create("isth-p0", 1400).unwrap();
            let rules = |family: &str| {
                let listed = Command::new("ip").args([family, "rule"]).output().unwrap().stdout;
                let listed = String::from_utf8(listed).unwrap();
                listed.lines().filter(|line| line.contains("iif isth-p0")).count()
            };
            block_on(async {
                for _ in 0..2 {
                    netlink().look_up_own_table("isth-p0", true).await.unwrap();
                    assert_eq!((rules("-4"), rules("-6")), (1, 1));
                }
                for _ in 0..2 {
                    netlink().forget_own_table("isth-p0", true).await.unwrap();
                    assert_eq!((rules("-4"), rules("-6")), (0, 0));
                }
            });
        });
    }
}
