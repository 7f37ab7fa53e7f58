//! Policy routing: what comes in by the agent's device is looked up in the agent's table first, and so is
//! what applications answer to the proxy where it speaks for somebody else.
//!
//! So an address can be the host's own for packets that the data plane hands over, and still lead
//! into the device for everybody else.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use rtnetlink::IpVersion;
use rtnetlink::packet_route::route::RouteProtocol;
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage, RulePortRange};
use rtnetlink::packet_route::{AddressFamily, IpProtocol};

use crate::netlink::{Netlink, NetlinkError, collect, tolerate};
use crate::routes::{AGENT_TABLE, ANSWERS_TABLE};
use crate::sysctl::Family;

/// Behind the kernel's table of local addresses (0), before the main one (32766).
const PRIORITY: u32 = 15_100;
const ANSWERS_PRIORITY: u32 = 15_110;

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

    /// Looks what is sent by TCP from these addresses and ports up in [`ANSWERS_TABLE`], and nothing
    /// else of this family.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub async fn lead_answers_back(
        &self,
        wanted: &BTreeSet<SocketAddr>,
        family: Family,
    ) -> Result<(), NetlinkError> {
        for rule in self.answer_rules(family).await? {
            if answered(&rule).is_none_or(|from| !wanted.contains(&from)) {
                let request = self.handle.rule().del(rule);
                let result =
                    request.execute().await.map_err(NetlinkError::request("delete a rule"));
                tolerate(result, libc::ENOENT)?;
            }
        }
        for from in wanted.iter().filter(|it| it.is_ipv4() == (family == Family::Ipv4)) {
            let mut request = self.handle.rule().add();
            *request.message_mut() = answer_rule(*from);
            let result = request.execute().await.map_err(NetlinkError::request("add a rule"));
            tolerate(result, libc::EEXIST)?;
        }
        Ok(())
    }

    /// Whose answers are led back, of a family.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub async fn answers_led_back(
        &self,
        family: Family,
    ) -> Result<BTreeSet<SocketAddr>, NetlinkError> {
        Ok(self.answer_rules(family).await?.iter().filter_map(answered).collect())
    }

    async fn answer_rules(&self, family: Family) -> Result<Vec<RuleMessage>, NetlinkError> {
        let mut rules = self.rules(family).await?;
        rules.retain(|it| {
            it.header.table == ANSWERS_TABLE
                && it.attributes.contains(&RuleAttribute::Priority(ANSWERS_PRIORITY))
        });
        Ok(rules)
    }

    async fn own_rules(
        &self,
        device: &str,
        family: Family,
    ) -> Result<Vec<RuleMessage>, NetlinkError> {
        let mut rules = self.rules(family).await?;
        rules.retain(|found| leads_to_own_table(found, device));
        Ok(rules)
    }

    async fn rules(&self, family: Family) -> Result<Vec<RuleMessage>, NetlinkError> {
        let version = match family {
            Family::Ipv4 => IpVersion::V4,
            Family::Ipv6 => IpVersion::V6,
        };
        collect(self.handle.rule().get(version).execute(), "list the rules").await
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
    let table = (AGENT_TABLE, PRIORITY);
    rule_to(table, family, [RuleAttribute::Iifname(device.to_owned())])
}

/// What an application sends from where it listens, if this host sends it: `iif lo` is that.
fn answer_rule(from: SocketAddr) -> RuleMessage {
    let family = if from.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 };
    let ports = RulePortRange { start: from.port(), end: from.port() };
    let matches = [
        RuleAttribute::Iifname("lo".to_owned()),
        RuleAttribute::Source(from.ip()),
        RuleAttribute::IpProtocol(IpProtocol::Tcp),
        RuleAttribute::SourcePortRange(ports),
    ];
    let mut message = rule_to((ANSWERS_TABLE, ANSWERS_PRIORITY), family, matches);
    message.header.src_len = if from.is_ipv4() { 32 } else { 128 };
    message
}

/// The application that a rule of ours is about, if it is as we make them.
fn answered(rule: &RuleMessage) -> Option<SocketAddr> {
    let address: Option<IpAddr> = rule
        .attributes
        .iter()
        .find_map(|it| if let RuleAttribute::Source(address) = it { Some(*address) } else { None });
    let port = rule.attributes.iter().find_map(|it| {
        if let RuleAttribute::SourcePortRange(ports) = it { Some(ports.start) } else { None }
    });
    let from = SocketAddr::new(address?, port?);
    let made = answer_rule(from);
    let has = |wanted: &RuleAttribute| rule.attributes.contains(wanted);
    (made.attributes.iter().all(has) && rule.header.src_len == made.header.src_len).then_some(from)
}

fn rule_to(
    (table, priority): (u8, u32),
    family: Family,
    matches: impl IntoIterator<Item = RuleAttribute>,
) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = match family {
        Family::Ipv4 => AddressFamily::Inet,
        Family::Ipv6 => AddressFamily::Inet6,
    };
    message.header.action = RuleAction::ToTable;
    message.header.table = table;
    message.attributes.extend(matches);
    message.attributes.push(RuleAttribute::Priority(priority));
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
    fn answers_are_led_back_from_where_they_are_wanted_and_nowhere_else() {
        in_netns(|| {
            let at = |text: &str| text.parse::<SocketAddr>().unwrap();
            let both: BTreeSet<SocketAddr> =
                ["100.64.0.17:80", "100.64.0.18:443", "[fd00::7]:80"].map(at).into();
            let one: BTreeSet<SocketAddr> = [at("100.64.0.18:443")].into();
            block_on(async {
                let netlink = netlink();
                for _ in 0..2 {
                    netlink.lead_answers_back(&both, Family::Ipv4).await.unwrap();
                    netlink.lead_answers_back(&both, Family::Ipv6).await.unwrap();
                    let four = netlink.answers_led_back(Family::Ipv4).await.unwrap();
                    let six = netlink.answers_led_back(Family::Ipv6).await.unwrap();
                    assert_eq!(&four | &six, both);
                }
                netlink.lead_answers_back(&one, Family::Ipv4).await.unwrap();
                assert_eq!(netlink.answers_led_back(Family::Ipv4).await.unwrap(), one);
            });
            let listed = Command::new("ip").arg("rule").output().unwrap().stdout;
            let listed = String::from_utf8(listed).unwrap();
            let line = "from 100.64.0.18 iif lo ipproto tcp sport 443 lookup 153";
            assert!(listed.contains(line), "{listed}");
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
