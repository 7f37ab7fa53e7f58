//! Changing addresses and ports in place, with checksums updated incrementally (RFC 1624).

use super::checksum::{add, checksum_offset, delta, update, zero_means_none};
use super::{Address, FlowKey, Headers, Transport, protocol};

/// A change of addresses and ports, from one flow key to another, with its checksum deltas
/// computed once so that applying it costs a few stores and additions.
///
/// INVARIANT: it may only be applied to packets whose key is the `from` it was made with; the
/// deltas are worth nothing for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rewrite {
    source: Address,
    destination: Address,
    source_port: u16,
    destination_port: u16,
    /// For the IPv4 header's checksum and for transports with a pseudo-header.
    address_delta: u16,
    port_delta: u16,
    changes: Changes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Changes {
    addresses: bool,
    ports: bool,
}

/// Why one flow can't be rewritten into another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RewriteError {
    /// IPv4 can't become IPv6, nor the other way round.
    #[error("cannot rewrite between IPv4 and IPv6")]
    Family,
    /// The keys are of different protocols.
    #[error("cannot rewrite one protocol into another")]
    Protocol,
    /// Only TCP, UDP and UDP-Lite ports can change: SCTP's CRC32c has no cheap update, and ICMP
    /// identifiers belong to the sender.
    #[error("ports of this protocol cannot be rewritten")]
    Ports,
}

impl Rewrite {
    /// Prepares the change that makes packets of flow `from` packets of flow `to`.
    ///
    /// The way back for answers is `between(to.reversed(), from.reversed())`.
    ///
    /// # Errors
    ///
    /// If no rewrite can do it.
    pub fn between(from: &FlowKey, to: &FlowKey) -> Result<Self, RewriteError> {
        let same_family =
            from.source.same_family(to.source) && from.destination.same_family(to.destination);
        if !same_family {
            return Err(RewriteError::Family);
        }
        if from.protocol != to.protocol {
            return Err(RewriteError::Protocol);
        }
        let rewrite = Self::unchecked(from, to);
        if rewrite.changes.ports && !has_changeable_ports(from.protocol) {
            return Err(RewriteError::Ports);
        }
        Ok(rewrite)
    }

    fn unchecked(from: &FlowKey, to: &FlowKey) -> Self {
        let address_sum = |key: &FlowKey| add(key.source.sum(), key.destination.sum());
        let port_sum = |key: &FlowKey| add(key.source_port, key.destination_port);
        let changes = Changes {
            addresses: (from.source, from.destination) != (to.source, to.destination),
            ports: (from.source_port, from.destination_port)
                != (to.source_port, to.destination_port),
        };
        Self {
            source: to.source,
            destination: to.destination,
            source_port: to.source_port,
            destination_port: to.destination_port,
            address_delta: if changes.addresses {
                delta(address_sum(from), address_sum(to))
            } else {
                0
            },
            port_delta: if changes.ports { delta(port_sum(from), port_sum(to)) } else { 0 },
            changes,
        }
    }

    /// Whether applying it leaves every packet as it is.
    pub const fn is_identity(&self) -> bool {
        !self.changes.addresses && !self.changes.ports
    }

    /// The key of a packet of this flow after the rewrite. Later fragments keep their lack of
    /// ports.
    pub const fn key_after(&self, headers: &Headers) -> FlowKey {
        let mut key = headers.key;
        key.source = self.source;
        key.destination = self.destination;
        if self.changes.ports && !headers.is_later_fragment() {
            key.source_port = self.source_port;
            key.destination_port = self.destination_port;
        }
        key
    }

    /// Rewrites a packet whose checksums are complete. Of fragments but the first, only the IP
    /// header is touched. `headers` must come from parsing `packet`.
    #[inline]
    pub fn apply(&self, packet: &mut [u8], headers: &Headers) {
        self.rewrite(packet, headers, ChecksumState::Complete);
    }

    /// Rewrites a packet whose transport checksum so far holds the sum of the pseudo-header
    /// only, as the kernel hands over super-packets (`VIRTIO_NET_HDR_F_NEEDS_CSUM`).
    #[inline]
    pub fn apply_partial(&self, packet: &mut [u8], headers: &Headers) {
        self.rewrite(packet, headers, ChecksumState::Partial);
    }

    /// Once for each state: what differs is decided where it is compiled.
    #[inline(always)]
    fn rewrite(&self, packet: &mut [u8], headers: &Headers, state: ChecksumState) {
        if self.changes.addresses {
            self.write_addresses(packet);
        }
        if self.changes.ports && has_changeable_ports(headers.key.protocol) {
            self.write_ports(packet, headers);
        }
        self.update_transport(packet, headers, state);
    }

    fn write_addresses(&self, packet: &mut [u8]) {
        match (self.source.v4_octets(), self.destination.v4_octets()) {
            (Some(source), Some(destination)) => {
                let Some(ip) = packet.first_chunk_mut::<20>() else { return };
                let header = u16::from_be_bytes([ip[10], ip[11]]);
                ip[10..12].copy_from_slice(&update(header, self.address_delta).to_be_bytes());
                ip[12..16].copy_from_slice(&source);
                ip[16..20].copy_from_slice(&destination);
            }
            (None, None) => {
                let Some(ip) = packet.first_chunk_mut::<40>() else { return };
                ip[8..24].copy_from_slice(&self.source.v6_octets());
                ip[24..40].copy_from_slice(&self.destination.v6_octets());
            }
            // `between` refuses mixed families on each side, and no packet has mixed ones.
            (Some(_), None) | (None, Some(_)) => {}
        }
    }

    fn write_ports(&self, packet: &mut [u8], headers: &Headers) {
        if headers.is_later_fragment() {
            return;
        }
        let Some(ports) =
            packet.get_mut(headers.l4_offset..).and_then(<[u8]>::first_chunk_mut::<4>)
        else {
            return;
        };
        ports[..2].copy_from_slice(&self.source_port.to_be_bytes());
        ports[2..].copy_from_slice(&self.destination_port.to_be_bytes());
    }

    /// Also used on quoted packets, whose checksum may be cut off.
    #[inline(always)]
    fn update_transport(&self, packet: &mut [u8], headers: &Headers, state: ChecksumState) {
        let Some(field) = checksum_offset(headers.transport) else { return };
        let Some(bytes) =
            packet.get_mut(headers.l4_offset + field..).and_then(<[u8]>::first_chunk_mut::<2>)
        else {
            return;
        };
        let old = u16::from_be_bytes(*bytes);
        let addresses = match headers.key.protocol {
            protocol::ICMP => 0,
            _ => self.address_delta,
        };
        *bytes = match state {
            ChecksumState::Partial => add(old, addresses),
            ChecksumState::Complete => {
                complete(old, add(addresses, self.port_delta), headers.transport)
            }
        }
        .to_be_bytes();
    }
}

#[derive(Clone, Copy)]
enum ChecksumState {
    Complete,
    Partial,
}

/// UDP's zero means that there is no checksum and stays; a computed zero is sent as 0xffff.
#[inline]
const fn complete(old: u16, delta: u16, transport: Transport) -> u16 {
    if !zero_means_none(transport) {
        return update(old, delta);
    }
    match old {
        0 => 0,
        old => match update(old, delta) {
            0 => 0xffff,
            new => new,
        },
    }
}

const fn has_changeable_ports(protocol: u8) -> bool {
    matches!(protocol, protocol::TCP | protocol::UDP | protocol::UDP_LITE)
}
