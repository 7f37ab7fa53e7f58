//! Policy routing: what comes in by the agent's device is looked up in the agent's table first.
//!
//! So an address can be the host's own for packets that the data plane hands over, and still lead
//! into the device for everybody else.

use rtnetlink::IpVersion;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::RouteProtocol;
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};

use crate::netlink::{Netlink, NetlinkError, collect, tolerate};
use crate::routes::AGENT_TABLE;
use crate::sysctl::Family;

/// Behind the kernel's table of local addresses (0), before the main one (32766).
const PRIORITY: u32 = 15_100;

/// systemd-networkd deletes the rules of others whenever it is started or reloaded, but not the
/// kernel's.
const PROTOCOL: RouteProtocol = RouteProtocol::Kernel;

impl Netlink {
    /// Looks packets of `family` that come in by `device` up in [`AGENT_TABLE`]. A rule that is there
    /// already stays, if it is as we make them.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub async fn look_up_own_table(
        &self,
        device: &str,
        family: Family,
    ) -> Result<(), NetlinkError> {
        let others = self.own_rules(device, family).await?;
        for other in others.into_iter().filter(|it| !has_our_protocol(it)) {
            let request = self.handle.rule().del(other);
            let result = request.execute().await.map_err(NetlinkError::request("delete a rule"));
            tolerate(result, libc::ENOENT)?;
        }
        let mut request = self.handle.rule().add();
        *request.message_mut() = rule(device, family);
        let result = request.execute().await.map_err(NetlinkError::request("add a rule"));
        tolerate(result, libc::EEXIST)
    }

    /// Whether packets are looked up as [`Netlink::look_up_own_table`] makes them.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub async fn looks_up_own_table(
        &self,
        device: &str,
        family: Family,
    ) -> Result<bool, NetlinkError> {
        Ok(self.own_rules(device, family).await?.iter().any(has_our_protocol))
    }

    /// Undoes [`Netlink::look_up_own_table`].
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub async fn forget_own_table(&self, device: &str, family: Family) -> Result<(), NetlinkError> {
        let request = self.handle.rule().del(rule(device, family));
        let result = request.execute().await.map_err(NetlinkError::request("delete a rule"));
        tolerate(result, libc::ENOENT)
    }

    async fn own_rules(
        &self,
        device: &str,
        family: Family,
    ) -> Result<Vec<RuleMessage>, NetlinkError> {
        let version = match family {
            Family::Ipv4 => IpVersion::V4,
            Family::Ipv6 => IpVersion::V6,
        };
        let mut rules =
            collect(self.handle.rule().get(version).execute(), "list the rules").await?;
        rules.retain(|found| leads_to_own_table(found, device));
        Ok(rules)
    }
}

/// Whether a rule leads what comes in by `device` to the agent's table, with the agent's priority.
pub(crate) fn leads_to_own_table(rule: &RuleMessage, device: &str) -> bool {
    let has = |wanted: &RuleAttribute| rule.attributes.contains(wanted);
    rule.header.table == AGENT_TABLE
        && has(&RuleAttribute::Iifname(device.to_owned()))
        && has(&RuleAttribute::Priority(PRIORITY))
}

fn has_our_protocol(rule: &RuleMessage) -> bool {
    rule.attributes.contains(&RuleAttribute::Protocol(PROTOCOL))
}

fn rule(device: &str, family: Family) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = match family {
        Family::Ipv4 => AddressFamily::Inet,
        Family::Ipv6 => AddressFamily::Inet6,
    };
    message.header.action = RuleAction::ToTable;
    message.header.table = AGENT_TABLE;
    message.attributes.push(RuleAttribute::Iifname(device.to_owned()));
    message.attributes.push(RuleAttribute::Priority(PRIORITY));
    message.attributes.push(RuleAttribute::Protocol(PROTOCOL));
    message
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
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
                let netlink = netlink();
                for (family, flag) in [(Family::Ipv4, "-4"), (Family::Ipv6, "-6")] {
                    for _ in 0..2 {
                        netlink.look_up_own_table("isth-p0", family).await.unwrap();
                        assert_eq!(rules(flag), 1);
                        assert!(netlink.looks_up_own_table("isth-p0", family).await.unwrap());
                    }
                    for _ in 0..2 {
                        netlink.forget_own_table("isth-p0", family).await.unwrap();
                        assert_eq!(rules(flag), 0);
                        assert!(!netlink.looks_up_own_table("isth-p0", family).await.unwrap());
                    }
                }
            });
        });
    }

    #[test]
    fn a_rule_of_an_older_agent_is_replaced_by_one_that_networkd_leaves_alone() {
        in_netns(|| {
            let _tun = Tun::create("isth-p1", 1400).unwrap();
            let ip = |arguments: &str| {
                let arguments = arguments.split(' ');
                let done = Command::new("ip").args(arguments).output().unwrap();
                assert!(done.status.success(), "{done:?}");
                String::from_utf8(done.stdout).unwrap()
            };
            ip("rule add iif isth-p1 table 151 priority 15100 protocol static");
            block_on(async {
                let netlink = netlink();
                assert!(!netlink.looks_up_own_table("isth-p1", Family::Ipv4).await.unwrap());
                netlink.look_up_own_table("isth-p1", Family::Ipv4).await.unwrap();
                assert!(netlink.looks_up_own_table("isth-p1", Family::Ipv4).await.unwrap());
            });
            let rules = ip("-details rule show iif isth-p1");
            assert_eq!(rules.lines().count(), 1, "{rules}");
            assert!(rules.contains("proto kernel"), "{rules}");
        });
    }
}
