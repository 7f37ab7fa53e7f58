//! Input and output of a node: datagrams from and to its shell.

use std::io::IoSlice;
use std::net::SocketAddr;

/// Datagrams to send.
#[derive(Clone, Copy, Debug)]
pub struct Transmit<'a> {
    /// Destination.
    pub to: SocketAddr,
    /// One datagram, or several of equal size (the last may be shorter) in a row.
    pub contents: &'a [u8],
    /// The size of each, if there are several: what UDP_SEGMENT wants.
    pub segment_size: Option<usize>,
    /// Whether routers may not fragment it.
    pub dont_fragment: bool,
}

/// Datagrams that were received.
#[derive(Debug)]
pub struct Received<'a> {
    /// Source.
    pub from: SocketAddr,
    /// One datagram, or several of equal size (the last may be shorter) in a row. They are opened
    /// in place.
    pub contents: &'a mut [u8],
    /// The size of each: what UDP_GRO tells.
    pub segment_size: usize,
}

/// Takes frames for the TUN device.
pub trait TunWriter {
    /// A frame in pieces: first the vnet header (see [`Offload`]), then a packet. Whether it was
    /// taken is the writer's to count.
    fn write(&mut self, frame: &[IoSlice<'_>]);
}

/// Why a datagram couldn't be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendError {
    /// Larger than the interface or the known path allows (EMSGSIZE).
    TooBig {
        /// The datagram's bytes, without IP and UDP headers.
        size: usize,
    },
    /// No route, or the last datagram met with an ICMP error.
    Unreachable,
}

/// A dual-stack socket shows IPv4 peers by mapped addresses.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
