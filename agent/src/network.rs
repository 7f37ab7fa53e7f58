//! The overlay as the host's kernel sees it: a device with this host's addresses, and the mesh's
//! routes.
//!
//! ```text
//!  isth0   this host's own addresses, then those of its workloads (/32 and /128)
//!  routes  the mesh's /48 and its IPv4 range, sent from the host's own address
//!  rule    what comes in by the device with a virtual address is the host's own: the proxy's
//!  rules   what an application that sees its callers (`source`) answers them is the proxy's, too
//! ```
//!
//! Addresses and routes hang on the TUN device, which the kernel removes with the process, however
//! that ends. The rule and its table outlive a crash; without the device they mean nothing, and the
//! next start finds them. The filter around it all is [`crate::guard`]'s.

mod keeper;
mod wanted;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use anyhow::Context as _;
use ipnet::IpNet;
use isthmus_core::segments_per_run;
use isthmus_model::Snapshot;
use isthmus_net::netlink::Netlink;
use isthmus_net::routes::{Route, RouteKind};
use isthmus_net::sysctl::{self, Family, SysctlError};
use isthmus_net::tun::Tun;
use tokio::sync::watch;

pub(crate) use keeper::{clash, keep, no_ipv6};
use wanted::{Found, Lost, Setting, Shape, Wanted, missing};

/// Packets that wait for the data plane while it is busy.
const QUEUE_PACKETS: u32 = 1_000;

/// Routes that one sentence names.
const NAMED: usize = 3;

/// Changes that the kernel should make to the device.
const SETTINGS: [Setting; 4] = [
    // Flows between two workloads of one host come back in by the device with a virtual address as
    // their source, which the strict reverse-path filter would refuse where a host has one.
    Setting { family: Family::Ipv4, key: "rp_filter", value: "2" },
    // Nobody else could have our addresses, and nobody there advertises any. No link-local address:
    // the overlay has no use for what it would say.
    Setting { family: Family::Ipv6, key: "accept_dad", value: "0" },
    Setting { family: Family::Ipv6, key: "accept_ra", value: "0" },
    Setting { family: Family::Ipv6, key: "addr_gen_mode", value: "1" },
];

/// Shapes the overlay's device.
#[derive(Debug)]
pub(crate) struct Network {
    netlink: Netlink,
    device: u32,
    name: String,
    mtu: u32,
    /// Why there is no IPv6 here now, if there is none.
    no_ipv6: Option<String>,
    /// Settings that this host let us change.
    settings: Vec<Setting>,
    wanted: Wanted,
    /// The host's own addresses, of the families that it speaks.
    own: watch::Sender<Vec<IpAddr>>,
    /// All addresses of the mesh.
    mesh: watch::Sender<Vec<IpNet>>,
}

/// Takes away what an agent that died left of its device's, as far as that is possible.
pub(crate) async fn clear(device: &str) {
    let cleared = async {
        let netlink = Netlink::connect()?;
        netlink.delete_own_routes().await?;
        for family in [Family::Ipv4, Family::Ipv6] {
            netlink.lead_answers_back(&BTreeSet::new(), family).await?;
            netlink.forget_own_table(device, family).await?;
        }
        anyhow::Ok(())
    };
    if let Err(error) = cleared.await {
        tracing::warn!("couldn't take the proxy's routes away: {error:#}");
    }
}

impl Network {
    /// Prepares the device and brings it up. A new one has no addresses; what an earlier life of the agent
    /// left goes as soon as it isn't wanted ([`Self::apply`]).
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) async fn set_up(tun: &Tun, mtu: u16) -> anyhow::Result<Self> {
        let netlink = Netlink::connect()?;
        netlink.set_tx_queue_len(tun.index(), QUEUE_PACKETS).await?;
        // One that was kept has the MTU that it was made with.
        netlink.set_mtu(tun.index(), mtu.into()).await?;
        let left = Wanted { routes: netlink.left_routes().await?, ..Wanted::default() };
        let segments = segments_per_run(mtu);
        if let Err(error) = netlink.set_gso_max_segments(tun.index(), segments).await {
            tracing::debug!(%error, "large packets will be sent in two parts");
        }
        let mut network = Self {
            netlink,
            device: tun.index(),
            name: tun.name().to_owned(),
            mtu: mtu.into(),
            no_ipv6: why_no_ipv6(tun.name()),
            settings: Vec::new(),
            wanted: left,
            own: watch::Sender::new(Vec::new()),
            mesh: watch::Sender::new(Vec::new()),
        };
        network.tune();
        let netlink = &network.netlink;
        netlink.set_up(tun.index()).await.context("Failed to bring the overlay's device up")?;
        Ok(network)
    }

    /// The host's own addresses, of the families that it speaks now.
    #[must_use]
    pub(crate) fn own_addresses(&self) -> watch::Receiver<Vec<IpAddr>> {
        self.own.subscribe()
    }

    /// Makes the device's addresses and the routes those that the snapshot wants. A family that the
    /// host lacks costs that family only.
    ///
    /// # Errors
    /// When the kernel refuses; asking again is safe.
    pub(crate) async fn apply(&mut self, snapshot: &Snapshot) -> anyhow::Result<()> {
        let wanted = Wanted::of(snapshot, self.device);
        self.follow(&wanted, Family::Ipv4).await?;
        self.no_ipv6 = why_no_ipv6(&self.name);
        if self.no_ipv6.is_none()
            && let Err(error) = self.follow(&wanted, Family::Ipv6).await
        {
            self.no_ipv6 = Some(format!("{error:#}"));
        }
        self.mesh.send_replace(wanted.mesh.clone());
        self.wanted = wanted;
        self.tell_own();
        Ok(())
    }

    /// Takes away what doesn't go with the device.
    pub(crate) async fn tear_down(&self) {
        for family in self.families() {
            let routes = async {
                let routes = self.wanted.only(family).routes;
                // The others go with the device.
                for route in routes.iter().filter(|it| it.kind != RouteKind::Unicast) {
                    self.netlink.delete_route(route).await?;
                }
                self.netlink.lead_answers_back(&BTreeSet::new(), family).await?;
                self.netlink.forget_own_table(&self.name, family).await
            };
            if let Err(error) = routes.await {
                tracing::warn!(%error, "couldn't take the proxy's routes away");
            }
        }
    }

    async fn follow(&self, wanted: &Wanted, family: Family) -> anyhow::Result<()> {
        let (wanted, former) = (wanted.only(family), self.wanted.only(family));
        self.netlink
            .replace_addresses(self.device, &wanted.addresses, family)
            .await
            .context("Failed to set the overlay's addresses")?;
        for route in &wanted.routes {
            self.netlink.replace_route(route).await.context("Failed to set the mesh's routes")?;
        }
        let place = |route: &Route| (route.destination, route.kind);
        let is_stale = |old: &&Route| wanted.routes.iter().all(|new| place(new) != place(old));
        for stale in former.routes.iter().filter(is_stale) {
            self.netlink.delete_route(stale).await?;
        }
        self.netlink
            .lead_answers_back(&wanted.answers, family)
            .await
            .context("Failed to lead applications' answers to the proxy")?;
        self.netlink
            .look_up_own_table(&self.name, family)
            .await
            .context("Failed to lead virtual addresses to the proxy")
    }

    /// What of the overlay the kernel doesn't have any more. A family that was switched off isn't
    /// missed, and one that is back is put to use at once.
    async fn inspect(&mut self) -> anyhow::Result<Vec<Lost>> {
        let link = self.netlink.link(self.device).await?;
        if link.is_some_and(|link| link.name != self.name) {
            return Ok(vec![Lost::Name]);
        }
        let former = std::mem::replace(&mut self.no_ipv6, why_no_ipv6(&self.name));
        if former.is_some() && self.no_ipv6.is_none() {
            self.tune();
            if let Err(error) = self.follow(&self.wanted, Family::Ipv6).await {
                self.no_ipv6 = Some(format!("{error:#}"));
            }
        }
        self.tell_own();
        let shape = Shape { name: &self.name, mtu: self.mtu };
        Ok(missing(&self.wanted, shape, &self.families(), &self.find().await?))
    }

    async fn find(&self) -> anyhow::Result<Found> {
        let addresses = self.netlink.addresses().await?.into_iter();
        let of_device = addresses.filter(|found| found.link == self.device);
        let (mut rules, mut answers) = (Vec::new(), BTreeSet::new());
        for family in self.families() {
            answers.append(&mut self.netlink.answers_led_back(family).await?);
            if self.netlink.looks_up_own_table(&self.name, family).await? {
                rules.push(family);
            }
        }
        let is_changed = |setting: &&Setting| {
            let value = sysctl::read(setting.family, &self.name, setting.key);
            self.families().contains(&setting.family) && value.is_ok_and(|it| it != setting.value)
        };
        Ok(Found {
            link: self.netlink.link(self.device).await?,
            addresses: of_device.map(|found| found.address).collect(),
            routes: self.netlink.own_routes().await?,
            rules,
            answers,
            settings: self.settings.iter().filter(is_changed).copied().collect(),
        })
    }

    /// Puts back what was lost. What IPv6 refuses costs IPv6 only.
    async fn restore(&mut self, lost: &[Lost]) -> anyhow::Result<()> {
        for it in lost {
            let restored = self.restore_one(it).await;
            let Err(error) = restored.with_context(|| format!("Failed to put back {it}")) else {
                continue;
            };
            if it.family() != Some(Family::Ipv6) {
                return Err(error);
            }
            self.no_ipv6 = Some(format!("{error:#}"));
        }
        Ok(())
    }

    async fn restore_one(&self, lost: &Lost) -> anyhow::Result<()> {
        let netlink = &self.netlink;
        match lost {
            Lost::Name => netlink.set_name(self.device, &self.name).await?,
            Lost::Up => netlink.set_up(self.device).await?,
            Lost::Mtu(mtu) => netlink.set_mtu(self.device, *mtu).await?,
            Lost::Setting(it) => sysctl::set(it.family, &self.name, it.key, it.value)?,
            Lost::Address(address) => netlink.add_address(self.device, *address).await?,
            Lost::Route(route) => netlink.replace_route(route).await?,
            Lost::Rule(family) => netlink.look_up_own_table(&self.name, *family).await?,
            Lost::Answers(family) => {
                let wanted = self.wanted.only(*family).answers;
                netlink.lead_answers_back(&wanted, *family).await?;
            }
        }
        Ok(())
    }

    fn families(&self) -> Vec<Family> {
        let ipv6 = self.no_ipv6.is_none().then_some(Family::Ipv6);
        [Family::Ipv4].into_iter().chain(ipv6).collect()
    }

    fn tell_own(&self) {
        let families = self.families();
        let mut own = self.wanted.own.clone();
        own.retain(|address| families.contains(&wanted::family_of(*address)));
        self.own.send_if_modified(|told| {
            let changed = *told != own;
            *told = own;
            changed
        });
    }

    /// Sets what can be set: a container may not let us.
    fn tune(&mut self) {
        for setting in SETTINGS {
            let Setting { family, key, value } = setting;
            match sysctl::set(family, &self.name, key, value) {
                Ok(()) if self.settings.contains(&setting) => {}
                Ok(()) => self.settings.push(setting),
                Err(SysctlError::Missing(_)) if family == Family::Ipv6 => {}
                Err(error) => tracing::warn!(%error, "couldn't tune the overlay's device"),
            }
        }
    }
}

/// Why the overlay can't have IPv6 here, if it can't. The device's own switch is ours to set; what a
/// host sends to itself, and a route that makes it answer, need `lo` to have IPv6.
#[must_use]
pub(crate) fn why_no_ipv6(device: &str) -> Option<String> {
    let switch = |interface| sysctl::read(Family::Ipv6, interface, "disable_ipv6");
    match switch("lo") {
        Err(SysctlError::Missing(_)) => return Some("the kernel has none".to_owned()),
        Ok(value) if value != "0" => {
            return Some("it is switched off (net.ipv6.conf.lo.disable_ipv6)".to_owned());
        }
        Ok(_) | Err(_) => {}
    }
    if switch(device).is_ok_and(|value| value == "0") {
        return None;
    }
    let set = sysctl::set(Family::Ipv6, device, "disable_ipv6", "0");
    set.err().map(|error| format!("it is switched off on {device}: {error}"))
}

/// A prefix of the mesh, and a route of the host that leads elsewhere with some of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Clash {
    pub prefix: IpNet,
    /// As `ip route` prints it.
    pub route: String,
}

impl Clash {
    /// Message that removes the route.
    #[must_use]
    pub(crate) fn command(&self) -> String {
        let family = if self.prefix.addr().is_ipv6() { "-6 " } else { "" };
        format!("ip {family}route del {}", self.route)
    }
}

/// Why a host can't work by a mesh of these addresses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the mesh's addresses {prefix} clash with this host's route {routes}; choose another range \
     in the topology's [mesh] table, or remove it"
)]
pub(crate) struct Clashes {
    prefix: IpNet,
    routes: String,
}

impl Clashes {
    /// None where nothing clashes.
    #[must_use]
    pub(crate) fn of(all: &[Clash]) -> Option<Self> {
        let first = all.first()?;
        Some(Self { prefix: first.prefix, routes: routes(all) })
    }
}

/// All of them, in words, as far as a person reads them.
#[must_use]
pub(crate) fn routes(all: &[Clash]) -> String {
    let named: Vec<String> =
        all.iter().take(NAMED).map(|clash| format!("\"{}\"", clash.route)).collect();
    match all.len().saturating_sub(NAMED) {
        0 => named.join(" and "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}

/// All routes that clash with one of the prefixes. `device` is the overlay's own.
///
/// # Errors
/// When the kernel can't be asked.
pub(crate) async fn clashes(prefixes: &[IpNet], device: Option<u32>) -> anyhow::Result<Vec<Clash>> {
    let netlink = Netlink::connect()?;
    let mut all: Vec<Clash> = Vec::new();
    for prefix in prefixes {
        for route in netlink.clashes_with(*prefix, device).await? {
            let route = route.to_string();
            if all.iter().all(|clash| clash.route != route) {
                all.push(Clash { prefix: *prefix, route });
            }
        }
    }
    Ok(all)
}

/// Endpoints of this host's tunnels: its own addresses with the tunnels' port.
pub(crate) async fn endpoints(device: &str, port: u16) -> Vec<SocketAddr> {
    let found = match Netlink::connect() {
        Ok(netlink) => netlink.underlay_addresses(device).await,
        Err(error) => Err(error),
    };
    match found {
        Ok(addresses) => addresses.into_iter().map(|it| SocketAddr::new(it, port)).collect(),
        Err(error) => {
            tracing::warn!(%error, "couldn't find out this host's addresses");
            Vec::new()
        }
    }
}

/// The MTU of the widest link that tunnels may use, if it can be told.
pub(crate) async fn underlay_mtu(device: &str) -> Option<u32> {
    let netlink = Netlink::connect().ok()?;
    netlink.underlay_mtu(device).await.ok().flatten()
}
