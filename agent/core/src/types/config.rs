//! Start-up configuration of a node.

use std::fmt;

use zeroize::Zeroizing;

use crate::types::{Cipher, Ciphers};

/// Start-up configuration of a node.
pub struct Config {
    /// The host's tunnel key.
    pub private_key: Zeroizing<[u8; 32]>,
    /// While the host's key changes: the other one.
    pub second_key: Option<Zeroizing<[u8; 32]>>,
    /// The TUN device's MTU.
    pub mtu: u16,
    /// Listening port of the proxy.
    pub proxy_port: u16,
    /// Seeds hash tables, session indices and jitter: must be random, and secret.
    pub seed: u64,
    /// Limits on the node's memory.
    pub limits: Limits,
    /// Ciphers allowed for bulk sessions; an empty set turns them off.
    pub ciphers: Ciphers,
    /// Number of lanes (receiving threads), 1 to 16.
    pub lanes: u8,
    /// Whether the TUN device takes packets that stand for many.
    pub coalesces: bool,
}

/// Bounds of the node's memory.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Flows of all kinds.
    pub flows: usize,
    /// Flows that have seen packets in one direction only, or were denied. They make room for each
    /// other, never at the cost of established flows.
    pub half_open: usize,
    /// Bytes that wait for [`poll_transmit`](crate::Node::poll_transmit).
    pub transmit_bytes: usize,
    /// Packets that wait for [`poll_tun`](crate::Node::poll_tun).
    pub tun_packets: usize,
}

impl Config {
    /// A configuration with defaults for everything but the secrets.
    pub fn new(private_key: Zeroizing<[u8; 32]>, seed: u64) -> Self {
        Self {
            private_key,
            second_key: None,
            mtu: 1420,
            proxy_port: 15001,
            seed,
            limits: Limits::default(),
            ciphers: Ciphers::of(&[Cipher::ChaCha20Poly1305]),
            lanes: 1,
            coalesces: true,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { flows: 1_000_000, half_open: 65_536, transmit_bytes: 16 << 20, tun_packets: 16_384 }
    }
}

/// Without the secrets.
impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("mtu", &self.mtu)
            .field("proxy_port", &self.proxy_port)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}
