//! The overlay as the host's kernel sees it: a device with this host's addresses, and the mesh's
//! routes.
//!
//! ```text
//!  isth0   this host's own addresses, then those of its workloads (/32 and /128)
//!  routes  the mesh's /48 and its IPv4 range, sent from the host's own address
//!  rule    what comes in by the device with a virtual address is the host's own: the proxy's
//! ```
//!
//! Addresses and routes hang on the TUN device, which the kernel removes with the process, however
//! that ends. The rule and its table outlive a crash; without the device they mean nothing, and the
//! next start finds them. The filter around it all is [`crate::guard`]'s.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use anyhow::Context as _;
use ipnet::{IpNet, Ipv6Net};
use isthmus_core::segments_per_run;
use isthmus_model::{ServiceId, Snapshot};
use isthmus_net::netlink::Netlink;
use isthmus_net::routes::Route;
use isthmus_net::sysctl::{self, Family, SysctlError};
use isthmus_net::tun::Tun;

/// Packets that wait for the data plane while it is busy.
const QUEUE_PACKETS: u32 = 1_000;

/// Shapes the overlay's device.
#[derive(Debug)]
pub struct Network {
    netlink: Netlink,
    device: u32,
    name: String,
    /// Whether the kernel speaks IPv6 at all.
    ipv6: bool,
    routes: BTreeSet<IpNet>,
    virtuals: BTreeSet<IpNet>,
}

impl Network {
    /// Prepares the device and brings it up, without addresses.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn set_up(tun: &Tun, mtu: u16) -> anyhow::Result<Self> {
        let netlink = Netlink::connect()?;
        let ipv6 = tune(tun.name());
        netlink.set_tx_queue_len(tun.index(), QUEUE_PACKETS).await?;
        let segments = segments_per_run(mtu);
        if let Err(error) = netlink.set_gso_max_segments(tun.index(), segments).await {
            tracing::debug!(%error, "large packets will be sent in two parts");
        }
        netlink.set_up(tun.index()).await.context("Failed to bring the overlay's device up")?;
        let name = tun.name().to_owned();
        netlink
            .look_up_own_table(&name, ipv6)
            .await
            .context("Failed to lead virtual addresses to the proxy")?;
        let (routes, virtuals) = (BTreeSet::new(), BTreeSet::new());
        Ok(Self { netlink, device: tun.index(), name, ipv6, routes, virtuals })
    }

    /// The device's index.
    #[must_use]
    pub const fn device(&self) -> u32 {
        self.device
    }

    /// Makes the device's addresses and the routes those that the snapshot wants.
    ///
    /// # Errors
    /// When the kernel refuses; asking again is safe.
    pub async fn apply(&mut self, snapshot: &Snapshot) -> anyhow::Result<()> {
        let usable = |address: &IpAddr| self.ipv6 || address.is_ipv4();
        let addresses: BTreeSet<IpAddr> = snapshot.local_addresses().filter(usable).collect();
        self.netlink
            .replace_addresses(self.device, &addresses)
            .await
            .context("Failed to set the overlay's addresses")?;
        let wanted = self.wanted_routes(snapshot);
        for route in &wanted {
            self.netlink.replace_route(route).await.context("Failed to set the mesh's routes")?;
        }
        let destinations = wanted.iter().map(|route| route.destination).collect();
        for stale in self.routes.difference(&destinations) {
            self.netlink.delete_route(&Route::via_device(*stale, self.device)).await?;
        }
        self.routes = destinations;
        self.follow_virtuals(snapshot).await
    }

    /// Takes away what doesn't go with the device.
    pub async fn tear_down(&self) {
        let routes = async {
            for prefix in &self.virtuals {
                self.netlink.delete_route(&Route::local_from_device(*prefix)).await?;
            }
            self.netlink.forget_own_table(&self.name, self.ipv6).await
        };
        if let Err(error) = routes.await {
            tracing::warn!(%error, "couldn't take the proxy's routes away");
        }
    }

    /// Gives the proxy what comes in by the device with a virtual address.
    async fn follow_virtuals(&mut self, snapshot: &Snapshot) -> anyhow::Result<()> {
        let wanted: BTreeSet<IpNet> = virtual_prefixes(snapshot)
            .into_iter()
            .filter(|prefix| self.ipv6 || matches!(prefix, IpNet::V4(_)))
            .collect();
        for prefix in &wanted {
            let route = Route::local_from_device(*prefix);
            self.netlink.replace_route(&route).await.context("Failed to set the proxy's routes")?;
        }
        for stale in self.virtuals.difference(&wanted) {
            self.netlink.delete_route(&Route::local_from_device(*stale)).await?;
        }
        self.virtuals = wanted;
        Ok(())
    }

    /// The host's own addresses, of the families that it speaks.
    #[must_use]
    pub fn own_addresses(&self, snapshot: &Snapshot) -> Vec<IpAddr> {
        let ipv6 = snapshot.workload_ipv6(snapshot.local, ServiceId(0));
        let ipv6 = self.ipv6.then_some(IpAddr::V6(ipv6));
        [IpAddr::V4(snapshot.local_host().ipv4())].into_iter().chain(ipv6).collect()
    }

    fn wanted_routes(&self, snapshot: &Snapshot) -> Vec<Route> {
        let own4 = IpAddr::V4(snapshot.local_host().ipv4());
        let own6 = IpAddr::V6(snapshot.workload_ipv6(snapshot.local, ServiceId(0)));
        prefixes(snapshot)
            .into_iter()
            .filter(|prefix| self.ipv6 || matches!(prefix, IpNet::V4(_)))
            .map(|prefix| {
                let own = if matches!(prefix, IpNet::V4(_)) { own4 } else { own6 };
                Route::via_device(prefix, self.device).with_source(own)
            })
            .collect()
    }
}

/// A prefix of the mesh, and a route of the host that leads elsewhere with some of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the mesh's addresses {prefix} clash with this host's route \"{route}\"; choose another range \
     in the topology's [mesh] table, or remove the route"
)]
pub struct Clash {
    pub prefix: IpNet,
    /// As `ip route` prints it.
    pub route: String,
}

/// The first of the prefixes that clashes, if any does. `device` is the overlay's own.
///
/// # Errors
/// When the kernel can't be asked.
pub async fn clash(prefixes: &[IpNet], device: Option<u32>) -> anyhow::Result<Option<Clash>> {
    let netlink = Netlink::connect()?;
    for prefix in prefixes {
        let clashes = netlink.clashes_with(*prefix, device).await?;
        if let Some(route) = clashes.first() {
            return Ok(Some(Clash { prefix: *prefix, route: route.to_string() }));
        }
    }
    Ok(None)
}

/// Where this host's tunnels can be reached: its own addresses with the tunnels' port.
pub async fn endpoints(device: &str, port: u16) -> Vec<SocketAddr> {
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
pub async fn underlay_mtu(device: &str) -> Option<u32> {
    let netlink = Netlink::connect().ok()?;
    netlink.underlay_mtu(device).await.ok().flatten()
}

/// All addresses of the mesh.
#[must_use]
pub fn prefixes(snapshot: &Snapshot) -> [IpNet; 2] {
    let mesh = &snapshot.mesh;
    // INVARIANT: 48 is a valid prefix length.
    let ipv6 = Ipv6Net::new_assert(mesh.prefix.network(), 48);
    [IpNet::V6(ipv6), IpNet::V4(mesh.ipv4)]
}

/// The virtual addresses of all services.
fn virtual_prefixes(snapshot: &Snapshot) -> [IpNet; 2] {
    // INVARIANT: 96 is a valid prefix length. Host 0 stands for virtual addresses.
    let ipv6 = Ipv6Net::new_assert(snapshot.virtual_ipv6(ServiceId(0)), 96);
    let ipv4 = snapshot.mesh.virtual_ipv4;
    [IpNet::V6(ipv6), IpNet::V4(ipv4)]
}

/// What the kernel should do differently on this device. Says whether there is IPv6.
///
/// Flows between two workloads of one host come back in by the device with a virtual address as
/// their source, which the strict reverse-path filter would refuse where a host has one.
fn tune(device: &str) -> bool {
    let set = |family, key, value| match sysctl::set(family, device, key, value) {
        Ok(()) => true,
        Err(SysctlError::Missing(_)) if family == Family::Ipv6 => false,
        Err(error) => {
            tracing::warn!(%error, "couldn't tune the overlay's device");
            true
        }
    };
    set(Family::Ipv4, "rp_filter", "2");
    let ipv6 = set(Family::Ipv6, "disable_ipv6", "0");
    if ipv6 {
        // Nobody else could have our addresses, and nobody there advertises any. No link-local
        // address: the overlay has no use for what it would say.
        set(Family::Ipv6, "accept_dad", "0");
        set(Family::Ipv6, "accept_ra", "0");
        set(Family::Ipv6, "addr_gen_mode", "1");
    } else {
        tracing::warn!("the kernel has no IPv6: the overlay has only IPv4 here");
    }
    ipv6
}
