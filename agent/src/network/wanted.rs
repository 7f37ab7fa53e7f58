//! Wanted and found network configuration of the overlay, and the difference.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnet::{IpNet, Ipv6Net};
use isthmus_model::{ServiceId, Snapshot};
use isthmus_net::netlink::LinkInfo;
use isthmus_net::routes::{Route, RouteInfo, RouteKind};
use isthmus_net::sysctl::Family;

use crate::addresses::{answers, own, prefixes};

/// Network configuration that a snapshot wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) addresses: BTreeSet<IpAddr>,
    pub(super) routes: Vec<Route>,
    /// Applications whose answers are the proxy's, whomever they are for.
    pub(super) answers: BTreeSet<SocketAddr>,
    /// Those of the host itself.
    pub(super) own: Vec<IpAddr>,
    /// All of the mesh's.
    pub(super) mesh: Vec<IpNet>,
}

/// Network configuration in the kernel.
#[derive(Clone, Debug, Default)]
pub(super) struct Found {
    pub(super) link: Option<LinkInfo>,
    pub(super) addresses: BTreeSet<IpAddr>,
    pub(super) routes: Vec<RouteInfo>,
    /// The families whose packets from the device are looked up in the agent's table.
    pub(super) rules: Vec<Family>,
    /// Whose answers are led back.
    pub(super) answers: BTreeSet<SocketAddr>,
    /// Settings of the device that have another value than they were given.
    pub(super) settings: Vec<Setting>,
}

/// A setting of the device's under `/proc/sys/net`, and the value that the overlay needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Setting {
    pub(super) family: Family,
    pub(super) key: &'static str,
    pub(super) value: &'static str,
}

/// Something that the kernel should have and hasn't.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Lost {
    /// The device has another name.
    Name,
    /// The device is down.
    Up,
    Mtu(u32),
    Setting(Setting),
    Address(IpAddr),
    Route(Route),
    Rule(Family),
    /// An application's answers aren't led back, or somebody's are who isn't one.
    Answers(Family),
}

impl Wanted {
    pub(super) fn of(snapshot: &Snapshot, device: u32) -> Self {
        let [own4, own6] = own(snapshot);
        let own = |prefix: &IpNet| if matches!(prefix, IpNet::V4(_)) { own4 } else { own6 };
        let mesh = prefixes(snapshot).into_iter();
        let routes = mesh.map(|it| Route::via_device(it, device).with_source(own(&it)));
        let virtuals = virtual_prefixes(snapshot).into_iter().map(Route::local_from_device);
        let answers = answers(snapshot);
        let back = prefixes(snapshot).into_iter().filter(|_| !answers.is_empty());
        let back = back.map(Route::local_for_answers);
        Self {
            addresses: snapshot.local_addresses().collect(),
            routes: routes.chain(virtuals).chain(back).collect(),
            answers,
            own: vec![own4, own6],
            mesh: prefixes(snapshot).into(),
        }
    }

    /// Only what is of this family.
    pub(super) fn only(&self, family: Family) -> Self {
        let is_wanted = |address: &IpAddr| family_of(*address) == family;
        Self {
            addresses: self.addresses.iter().copied().filter(is_wanted).collect(),
            routes: self.routes.iter().filter(|it| of_route(it) == family).cloned().collect(),
            answers: self.answers.iter().copied().filter(|it| is_wanted(&it.ip())).collect(),
            own: self.own.iter().copied().filter(is_wanted).collect(),
            mesh: self.mesh.iter().copied().filter(|it| is_wanted(&it.addr())).collect(),
        }
    }
}

/// The name and the MTU of the device.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape<'a> {
    pub(super) name: &'a str,
    pub(super) mtu: u32,
}

/// What is missing of `families`, in the order in which it has to be put back: a device that is down
/// takes no routes, and no route has a source that isn't there.
pub(super) fn missing(
    wanted: &Wanted,
    shape: Shape<'_>,
    families: &[Family],
    found: &Found,
) -> Vec<Lost> {
    // A device that is gone ends the data plane, and with it the agent.
    let Some(link) = &found.link else { return Vec::new() };
    if link.name != shape.name {
        // Settings, rules and filters know it by its name: there is no telling what else is missing.
        return vec![Lost::Name];
    }
    let mut lost = Vec::new();
    if !link.up {
        lost.push(Lost::Up);
    }
    if link.mtu.is_some_and(|found| found != shape.mtu) {
        lost.push(Lost::Mtu(shape.mtu));
    }
    lost.extend(found.settings.iter().copied().map(Lost::Setting));
    let of_families = |address: &IpAddr| families.contains(&family_of(*address));
    let addresses = wanted.addresses.difference(&found.addresses).copied();
    lost.extend(addresses.filter(of_families).map(Lost::Address));
    let is_there = |route: &Route| found.routes.iter().any(|it| it.is(route));
    let routes = wanted.routes.iter().filter(|it| families.contains(&of_route(it)));
    lost.extend(routes.filter(|it| !is_there(it)).cloned().map(Lost::Route));
    let rules = families.iter().filter(|family| !found.rules.contains(family));
    lost.extend(rules.copied().map(Lost::Rule));
    let of_family = |all: &BTreeSet<SocketAddr>, family| -> BTreeSet<SocketAddr> {
        all.iter().copied().filter(|it| family_of(it.ip()) == family).collect()
    };
    let differs = |family: &&Family| {
        of_family(&wanted.answers, **family) != of_family(&found.answers, **family)
    };
    lost.extend(families.iter().filter(differs).copied().map(Lost::Answers));
    lost
}

impl Lost {
    /// Whether only one family misses it.
    pub(super) fn family(&self) -> Option<Family> {
        match self {
            Self::Name | Self::Up | Self::Mtu(_) => None,
            Self::Setting(setting) => Some(setting.family),
            Self::Address(address) => Some(family_of(*address)),
            Self::Route(route) => Some(of_route(route)),
            Self::Rule(family) | Self::Answers(family) => Some(*family),
        }
    }
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name => write!(f, "the device's name"),
            Self::Up => write!(f, "the device's being up"),
            Self::Mtu(mtu) => write!(f, "the device's MTU of {mtu}"),
            Self::Setting(setting) => write!(f, "the device's setting {}", setting.key),
            Self::Address(address) => write!(f, "the address {address}"),
            Self::Route(route) => match route.kind {
                RouteKind::Unicast => write!(f, "the route {}", route.destination),
                RouteKind::Local | RouteKind::LocalFromDevice | RouteKind::LocalForAnswers => {
                    write!(f, "the proxy's route {}", route.destination)
                }
            },
            Self::Rule(Family::Ipv4) => write!(f, "the rule for IPv4"),
            Self::Rule(Family::Ipv6) => write!(f, "the rule for IPv6"),
            Self::Answers(Family::Ipv4) => write!(f, "the rules for applications' answers by IPv4"),
            Self::Answers(Family::Ipv6) => write!(f, "the rules for applications' answers by IPv6"),
        }
    }
}

pub(super) const fn family_of(address: IpAddr) -> Family {
    match address {
        IpAddr::V4(_) => Family::Ipv4,
        IpAddr::V6(_) => Family::Ipv6,
    }
}

pub(super) fn of_route(route: &Route) -> Family {
    family_of(route.destination.addr())
}

/// The virtual addresses of all services.
fn virtual_prefixes(snapshot: &Snapshot) -> [IpNet; 2] {
    // INVARIANT: 96 is a valid prefix length. Host 0 stands for virtual addresses.
    let ipv6 = Ipv6Net::new_assert(snapshot.virtual_ipv6(ServiceId(0)), 96);
    let ipv4 = snapshot.mesh.virtual_ipv4;
    [IpNet::V6(ipv6), IpNet::V4(ipv4)]
}

#[cfg(test)]
mod tests {
    use isthmus_net::netlink::LinkKind;

    use super::*;
    use crate::dns::tests::support::snapshot;

    const DEVICE: u32 = 7;
    const MTU: u32 = 1_420;
    const SHAPE: Shape<'_> = Shape { name: "isth0", mtu: MTU };
    const BOTH: [Family; 2] = [Family::Ipv4, Family::Ipv6];

    /// A kernel that has everything.
    fn complete(wanted: &Wanted) -> Found {
        let link = LinkInfo {
            name: "isth0".to_owned(),
            up: true,
            loopback: false,
            mtu: Some(MTU),
            kind: LinkKind::Tun,
            master: None,
        };
        let has = |route: &Route| RouteInfo {
            destination: route.destination,
            device: Some(route.device),
            device_name: None,
            gateway: None,
            table: if route.kind == RouteKind::Unicast { 254 } else { 151 },
            metric: None,
            source: route.source,
            local: route.kind != RouteKind::Unicast,
            ours: true,
        };
        Found {
            link: Some(link),
            addresses: wanted.addresses.clone(),
            routes: wanted.routes.iter().map(has).collect(),
            rules: BOTH.to_vec(),
            answers: wanted.answers.clone(),
            settings: Vec::new(),
        }
    }

    #[test]
    fn nothing_is_missing_where_everything_is() {
        let wanted = Wanted::of(&snapshot(), DEVICE);
        assert_eq!(missing(&wanted, SHAPE, &BOTH, &complete(&wanted)), []);
        let mut more = complete(&wanted);
        more.addresses.insert("192.0.2.1".parse().unwrap());
        assert_eq!(missing(&wanted, SHAPE, &BOTH, &more), [], "what others add is theirs");
    }

    #[test]
    fn each_thing_that_is_taken_is_missed_and_only_that() {
        let wanted = Wanted::of(&snapshot(), DEVICE);
        for address in &wanted.addresses {
            let mut found = complete(&wanted);
            found.addresses.remove(address);
            assert_eq!(missing(&wanted, SHAPE, &BOTH, &found), [Lost::Address(*address)]);
        }
        for (index, route) in wanted.routes.iter().enumerate() {
            let mut found = complete(&wanted);
            found.routes.remove(index);
            assert_eq!(missing(&wanted, SHAPE, &BOTH, &found), [Lost::Route(route.clone())]);
        }
        for family in BOTH {
            let mut found = complete(&wanted);
            found.rules.retain(|it| *it != family);
            assert_eq!(missing(&wanted, SHAPE, &BOTH, &found), [Lost::Rule(family)]);
        }
        let mut found = complete(&wanted);
        found.link.as_mut().unwrap().mtu = Some(576);
        assert_eq!(missing(&wanted, SHAPE, &BOTH, &found), [Lost::Mtu(MTU)]);
        found.link.as_mut().unwrap().name = "other0".to_owned();
        assert_eq!(missing(&wanted, SHAPE, &BOTH, &found), [Lost::Name]);
    }

    #[test]
    fn a_route_that_lost_its_source_or_leads_elsewhere_is_missing() {
        let wanted = Wanted::of(&snapshot(), DEVICE);
        let mut found = complete(&wanted);
        found.routes[0].source = None;
        found.routes[1].device = Some(DEVICE + 1);
        let lost = missing(&wanted, SHAPE, &BOTH, &found);
        assert_eq!(lost, wanted.routes[..2].iter().cloned().map(Lost::Route).collect::<Vec<_>>());
    }

    #[test]
    fn a_device_that_was_down_is_brought_up_before_its_routes_are_made() {
        let wanted = Wanted::of(&snapshot(), DEVICE);
        let mut found = complete(&wanted);
        found.link.as_mut().unwrap().up = false;
        found.addresses.retain(IpAddr::is_ipv4);
        found.routes.clear();
        let lost = missing(&wanted, SHAPE, &BOTH, &found);
        assert_eq!(lost[0], Lost::Up);
        let first_route = lost.iter().position(|it| matches!(it, Lost::Route(_))).unwrap();
        let last_address = lost.iter().rposition(|it| matches!(it, Lost::Address(_))).unwrap();
        assert!(last_address < first_route, "{lost:?}");
    }

    #[test]
    fn a_family_that_the_host_lacks_is_not_missed() {
        let wanted = Wanted::of(&snapshot(), DEVICE);
        let mut found = complete(&wanted.only(Family::Ipv4));
        found.rules = vec![Family::Ipv4];
        assert_eq!(missing(&wanted, SHAPE, &[Family::Ipv4], &found), []);
        let lost = missing(&wanted, SHAPE, &BOTH, &found);
        assert!(!lost.is_empty());
        assert!(lost.iter().all(|it| it.family() == Some(Family::Ipv6)), "{lost:?}");
    }
}
