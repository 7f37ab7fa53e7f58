//! The half of sending that needs no node: splitting and sealing what was decided.
//!
//! Several threads share a node, behind a lock that they hold to decide and not to work: sealing a
//! super-packet takes a hundred times as long as deciding about it. A [`Sealing`] has all that it
//! needs, counters included: no two ever have the same.

use std::net::SocketAddr;
use std::sync::Arc;

use isthmus_packet::{Headers, SuperPacket};

use super::outbox::{Outbox, RunTarget};
use super::tunnel::OVERHEAD;
use crate::bulk::{HEADER, Header, Key, TAG};

/// WireGuard pads packets to a multiple of this, to tell less of their length.
pub(crate) const PADDING: usize = 16;

// A path's limit is the same for bulk sessions as for WireGuard's.
const _: () = assert!(HEADER + TAG == OVERHEAD);

/// A packet that goes to a peer by its bulk session, as far as it isn't in the packet.
#[derive(Clone)]
pub struct Sealing {
    pub(crate) key: Arc<Key>,
    /// Of the first datagram; the counter goes up with each.
    pub(crate) header: Header,
    pub(crate) to: SocketAddr,
    pub(crate) dont_fragment: bool,
    /// Packets are padded to a multiple of this...
    pub(crate) padding: usize,
    /// ... but not beyond this: the path couldn't carry them.
    pub(crate) limit: usize,
    pub(crate) cut: Cut,
}

/// Split of a packet into datagrams.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Cut {
    /// It is one, of this length.
    Whole(usize),
    /// It stands for many; its headers are as they are now. Their checksums stay partial.
    Segments { headers: Headers, segment: u16 },
}

impl Sealing {
    /// Seals the packet into datagrams at the end of `outbox`. Returns how many were lost: what the
    /// outbox has no room for.
    pub fn seal(&self, packet: &[u8], outbox: &mut Outbox) -> usize {
        match &self.cut {
            Cut::Whole(length) => {
                let Some(packet) = packet.get(..*length) else { return 1 };
                let write = |out: &mut [u8]| {
                    out.copy_from_slice(packet);
                    true
                };
                usize::from(!self.seal_one(0, *length, write, outbox))
            }
            Cut::Segments { headers, segment } => {
                let Ok(whole) = SuperPacket::new(packet, headers, *segment) else { return 1 };
                let lost = |index: &usize| {
                    let write = |out: &mut [u8]| whole.write_partial(*index, out).is_some();
                    !self.seal_one(*index as u64, whole.length(*index), write, outbox)
                };
                (0..whole.count()).filter(lost).count()
            }
        }
    }

    #[inline]
    fn seal_one(
        &self,
        index: u64,
        length: usize,
        write: impl FnOnce(&mut [u8]) -> bool,
        outbox: &mut Outbox,
    ) -> bool {
        let padded = padded(length, self.padding, self.limit);
        let sealed = padded + OVERHEAD;
        let partial = matches!(self.cut, Cut::Segments { .. });
        let header = Header { counter: self.header.counter + index, partial, ..self.header };
        let (lane, _) = header.lanes();
        let target = RunTarget { to: self.to, lane, dont_fragment: self.dont_fragment };
        outbox.push_with(target, (sealed, sealed), |datagram| {
            let plain = datagram.get_mut(HEADER..HEADER + padded)?;
            let is_sealed = write_padded(plain, length, write) && self.key.seal(header, datagram);
            is_sealed.then_some(sealed)
        })
    }
}

/// WireGuard's padding, as far as the path has room for it.
pub(crate) fn padded(length: usize, padding: usize, limit: usize) -> usize {
    length.next_multiple_of(padding).min(limit.max(length))
}

/// Writes a packet to the start of `plain`, and zeros behind it.
pub(crate) fn write_padded(
    plain: &mut [u8],
    length: usize,
    write: impl FnOnce(&mut [u8]) -> bool,
) -> bool {
    let Some((packet, zeros)) = plain.split_at_mut_checked(length) else { return false };
    zeros.fill(0);
    write(packet)
}

impl std::fmt::Debug for Sealing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sealing")
            .field("to", &self.to)
            .field("cut", &self.cut)
            .finish_non_exhaustive()
    }
}
