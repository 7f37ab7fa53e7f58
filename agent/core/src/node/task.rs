//! Seal task: the rest of the work for a packet of the TUN device once it was decided about, that needs no
//! node, see `sealing.rs`.

use std::io::IoSlice;

use isthmus_packet::{Headers, Offload, VNET_HEADER};

use crate::tunnels::Sealing;
use crate::types::TunWriter;

/// The remaining work for a packet of the TUN device.
#[derive(Clone, Debug)]
pub enum Task {
    /// To seal it and send it to a peer.
    Seal(Sealing),
    /// To write it back to the device: its flow doesn't leave the host.
    Write(Hairpin),
}

/// A packet on its way back to the TUN device, as far as it isn't in the packet.
///
/// What the kernel left undone stays so, since the kernel is who gets it: a packet that stands for
/// many is one write, and nobody reads its payload.
#[derive(Clone, Copy, Debug)]
pub struct Hairpin {
    header: [u8; VNET_HEADER],
    length: usize,
}

impl Hairpin {
    /// A packet that lacks nothing.
    pub(crate) const fn complete(length: usize) -> Self {
        Self { header: [0; VNET_HEADER], length }
    }

    /// A packet whose checksum is partial, and that may stand for many. None for a transport that the
    /// kernel leaves nothing of to us.
    pub(crate) fn partial(headers: &Headers, segment: Option<u16>) -> Option<Self> {
        let header = Offload::header_of(headers, segment)?;
        Some(Self { header, length: headers.total_length })
    }

    /// Writes the packet.
    pub fn write(&self, packet: &[u8], tun: &mut dyn TunWriter) {
        let Some(packet) = packet.get(..self.length) else { return };
        tun.write(&[IoSlice::new(&self.header), IoSlice::new(packet)]);
    }
}
