//! A packet filter around the overlay's addresses, so that they mean something only on the overlay.
//!
//! Linux takes a packet for any address of the host by any interface, and sends one for a missing
//! route by the default route. Without a guard, a neighbour on the underlay reaches a workload's
//! address past tunnel and policy, anybody on this host speaks as somebody far away, and while the
//! agent is down, what is meant for the overlay leaves in plaintext.
//!
//! ```text
//!  arriving   (prerouting)  an overlay address that came by another interface, or that isn't this
//!                           host's on loopback, and errors that quote one: dropped
//!  passing    (forward)     to an overlay address, but not into the overlay: refused
//!  leaving    (output)      an overlay address by another interface: refused; the agent's ports by
//!                           another user: dropped; that nobody answers DNS at an own address: unsaid
//!  routes                   to all of the mesh: unreachable, wherever nothing better is known; to the
//!                           host's own addresses: its own
//! ```
//!
//! The last of each is for an agent that restarts: who looks up a name meanwhile hears nothing, asks
//! once more, as every resolver does, and is answered late. Told that nobody is there, it would give up.
//!
//! It stands for as long as the host belongs to the mesh, whether or not the agent runs: at boot,
//! `isthmus-agent guard` raises it before there is a network. Routes and rules each keep packets
//! from leaving by themselves, so that whoever flushes the one still has the other.

mod keeper;
mod nft;
mod rules;
pub(crate) mod taken;

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;
use isthmus_net::netlink::Netlink;
use isthmus_net::sysctl;
use tokio::sync::{Mutex, MutexGuard};

pub(crate) use keeper::{MISSING, keep, missing};
pub(crate) use nft::Nft;
pub use rules::Guard;

use crate::ports;

/// A guard that stands.
#[derive(Debug)]
pub struct Standing {
    guard: Mutex<Guard>,
    /// Whether the kernel took it.
    is_raised: AtomicBool,
    nft: Nft,
}

impl Standing {
    /// Raises a guard, in the stead of what an earlier life of the agent raised, and says what that came
    /// to: `nft` may be missing, or the kernel refuse. [`Standing::restore`] may succeed later.
    pub async fn raise(guard: Guard) -> (Self, anyhow::Result<()>) {
        let standing = Self {
            guard: Mutex::new(guard),
            is_raised: AtomicBool::new(false),
            nft: Nft::default(),
        };
        let raised = standing.restore().await;
        (standing, raised)
    }

    /// Has another guard stand from now on.
    ///
    /// # Errors
    /// When `nft` isn't there, or the kernel refuses; then the old one stands.
    pub async fn replace(&self, guard: Guard) -> anyhow::Result<()> {
        let mut standing = self.guard.lock().await;
        if *standing == guard && self.is_raised.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.apply(&guard).await?;
        *standing = guard;
        Ok(())
    }

    /// Raises it again.
    ///
    /// # Errors
    /// When `nft` isn't there, or the kernel refuses.
    pub async fn restore(&self) -> anyhow::Result<()> {
        let guard = self.guard.lock().await;
        self.apply(&guard).await
    }

    async fn apply(&self, guard: &Guard) -> anyhow::Result<()> {
        // The rules first: they alone would do.
        let ruled = self.nft.run(&guard.script()).await;
        self.is_raised.fetch_or(ruled.is_ok(), Ordering::Relaxed);
        if let Err(error) = refuse_by_route(guard).await {
            tracing::warn!("the overlay's filter stands without its routes: {error:#}");
        }
        for port in &guard.tunnel_ports {
            if let Err(error) = sysctl::reserve_port(*port) {
                tracing::debug!(%error, port, "somebody may be given it while the agent is down");
            }
        }
        ruled
    }

    async fn table(&self) -> String {
        let guard: MutexGuard<'_, Guard> = self.guard.lock().await;
        guard.table()
    }
}

async fn refuse_by_route(guard: &Guard) -> anyhow::Result<()> {
    let netlink = Netlink::connect()?;
    let set = netlink.replace_refusals(&guard.prefixes, &guard.names).await;
    set.context("Failed to set the guard's routes")
}

/// Takes it away, as far as that is possible.
pub async fn lower_or_say(device: &str) {
    if let Err(error) = lower(device).await {
        tracing::warn!("couldn't take the overlay's filter away: {error:#}");
    }
}

/// Takes the guard of an agent with this device away, if there is one.
///
/// # Errors
/// When `nft` isn't there or the kernel refuses.
pub async fn lower(device: &str) -> anyhow::Result<()> {
    Netlink::connect()?.replace_refusals(&[], &[]).await?;
    Nft::default().run(&rules::no_rules(device)).await?;
    ports::lower(device).await
}
