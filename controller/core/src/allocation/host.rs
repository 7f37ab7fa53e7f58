//! Addresses within one host's block.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use isthmus_model::Ipv4Net;

use super::Host;
use crate::pool::Cursor;

impl Host {
    pub(super) fn new(block: Ipv4Net) -> Self {
        Self { block, addresses: BTreeMap::new(), cursor: Cursor::default() }
    }

    /// Gives each of these numbers an address: the fixed one that it has, which whoever had it before
    /// gives up. What others `had` who could come back is given last. The block's first one is the host's own.
    ///
    /// # Errors
    ///
    /// Number of addresses, if there are too few.
    pub(super) fn give_addresses(
        &mut self,
        wanted: &BTreeSet<u32>,
        fixed: &BTreeMap<u32, Ipv4Addr>,
        had: &BTreeSet<Ipv4Addr>,
    ) -> Result<(), u64> {
        let others: BTreeSet<&Ipv4Addr> = fixed.values().collect();
        self.addresses
            .retain(|number, address| wanted.contains(number) && !others.contains(address));
        self.addresses.extend(fixed);
        let room = size(self.block) - 1;
        let mut taken: BTreeSet<Ipv4Addr> = self.addresses.values().copied().collect();
        for number in wanted {
            if self.addresses.contains_key(number) {
                continue;
            }
            let is_free = |index| index > 0 && !taken.contains(&nth(self.block, index));
            let is_nobodys = |index| is_free(index) && !had.contains(&nth(self.block, index));
            let index = self
                .cursor
                .next_free(room + 1, is_nobodys)
                .or_else(|| self.cursor.next_free(room + 1, is_free))
                .ok_or(room)?;
            let address = nth(self.block, index);
            taken.insert(address);
            self.addresses.insert(*number, address);
        }
        Ok(())
    }
}

/// Address ranges that are in use, none overlapping another.
pub(super) struct Taken {
    /// First address to last.
    ranges: BTreeMap<u32, u32>,
}

impl Taken {
    pub(super) fn new(first: Ipv4Net) -> Self {
        let mut taken = Self { ranges: BTreeMap::new() };
        taken.insert(first);
        taken
    }

    pub(super) fn insert(&mut self, net: Ipv4Net) {
        self.ranges.insert(net.network().into(), net.broadcast().into());
    }

    pub(super) fn leaves(&self, net: Ipv4Net) -> bool {
        let last_before = self.ranges.range(..=u32::from(net.broadcast())).next_back();
        last_before.is_none_or(|(_, end)| *end < u32::from(net.network()))
    }
}

pub(super) fn overlap(a: Ipv4Net, b: Ipv4Net) -> bool {
    a.contains(&b) || b.contains(&a)
}

pub(super) fn size(net: Ipv4Net) -> u64 {
    1 << (32 - net.prefix_len())
}

pub(super) fn nth(net: Ipv4Net, index: u64) -> Ipv4Addr {
    let offset = u32::try_from(index).unwrap_or(u32::MAX);
    u32::from(net.network()).saturating_add(offset).into()
}
