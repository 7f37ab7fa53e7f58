//! A stock WireGuard peer: one tunnel, to its gateway, and nothing else.

use std::net::SocketAddr;
use std::time::Instant;

use super::topology::{device_key, host_key};
use crate::public_key;
use crate::tunnels::tunnel::{Keys, MIN_BUFFER, OVERHEAD, Opened, Tick, Tunnel};

/// A stock WireGuard peer.
pub struct Device {
    /// Source address of its datagrams.
    pub endpoint: SocketAddr,
    gateway: SocketAddr,
    tunnel: Tunnel,
    outbox: Vec<Vec<u8>>,
    /// Packets out of its tunnel.
    pub inbox: Vec<Vec<u8>>,
}

impl Device {
    /// The device with this number, whose gateway is this host.
    pub fn new(id: u32, via: u32, endpoint: SocketAddr, gateway: SocketAddr, now: Instant) -> Self {
        let keys = Keys::new(device_key(id));
        let mut tunnel = Tunnel::new(now);
        tunnel.line_up(&keys, &[public_key(&host_key(via))], || id);
        Self { endpoint, gateway, tunnel, outbox: Vec::new(), inbox: Vec::new() }
    }

    /// Sends a packet, whatever it says.
    pub fn send(&mut self, packet: &[u8], now: Instant) {
        self.tunnel.enqueue(packet, false, now);
        let mut out = [0; MIN_BUFFER];
        if !self.tunnel.has_session()
            && let Some(length) = self.tunnel.initiate(&mut out, now)
        {
            self.outbox.push(out[..length].to_vec());
        }
        self.flush(now);
    }

    /// A datagram came.
    pub fn receive(&mut self, from: SocketAddr, datagram: &[u8], now: Instant) {
        let mut out = vec![0; datagram.len().max(MIN_BUFFER)];
        match self.tunnel.open(from.ip(), datagram, &mut out, now) {
            Opened::Packet(length) => self.inbox.push(out[..length].to_vec()),
            Opened::Answer(length) | Opened::Completed(length) => {
                self.outbox.push(out[..length].to_vec());
            }
            Opened::Keepalive | Opened::Cookie | Opened::Outdated | Opened::Refused => {}
        }
        self.flush(now);
    }

    /// Time passes.
    pub fn tick(&mut self, now: Instant) {
        let mut out = [0; MIN_BUFFER];
        match self.tunnel.tick(&mut out, now) {
            Tick::Send(length) | Tick::Initiate { length, .. } => {
                self.outbox.push(out[..length].to_vec());
            }
            Tick::Idle | Tick::GiveUp(_) => {}
        }
        self.flush(now);
    }

    /// Datagrams that it sends, with their destinations.
    pub fn take_outbox(&mut self) -> (SocketAddr, Vec<Vec<u8>>) {
        (self.gateway, std::mem::take(&mut self.outbox))
    }

    /// Takes what came out of its tunnel.
    pub fn take_inbox(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.inbox)
    }

    fn flush(&mut self, now: Instant) {
        while let Some(waiting) = self.tunnel.dequeue() {
            let mut out = vec![0; (waiting.packet.len() + OVERHEAD).max(MIN_BUFFER)];
            if let Some(length) = self.tunnel.seal(&waiting.packet, &mut out, now) {
                self.outbox.push(out[..length].to_vec());
            }
        }
    }
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Device").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}
