//! Peers that a snapshot wants.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use hashbrown::HashMap;
use isthmus_model::PublicKey;

use super::super::tunnel::INDEX_BITS;
use super::Slot;
use crate::snapshot::CompiledSnapshot;
use crate::types::PeerName;
use crate::types::random::Random;

/// Random, so that neither a restart nor an attacker meets an index again.
pub(super) fn free_index(
    random: &mut Random,
    by_index: &mut HashMap<u32, Slot>,
    slot: Slot,
) -> u32 {
    loop {
        let index = (random.next() >> (64 - INDEX_BITS)) as u32;
        if !by_index.contains_key(&index) {
            by_index.insert(index, slot);
            return index;
        }
    }
}

/// Configuration of a peer in a snapshot.
pub(super) struct Wanted {
    pub(super) keys: Vec<PublicKey>,
    pub(super) endpoints: Vec<SocketAddr>,
}

/// The peers that a state gives this host.
pub(super) fn wanted(state: &CompiledSnapshot) -> BTreeMap<PeerName, Wanted> {
    let local = state.local();
    let hosts = state.snapshot.hosts.iter().filter(|(id, _)| **id != local).map(|(id, host)| {
        let usable = host.endpoints.iter().filter(|endpoint| !state.is_overlay(endpoint.ip()));
        let keys = [host.public_key].into_iter().chain(host.former_key).collect();
        (PeerName::Host(*id), Wanted { keys, endpoints: usable.copied().collect() })
    });
    let devices = state.snapshot.devices.iter().filter(|(_, device)| device.via == local);
    let devices = devices.map(|(id, device)| {
        let wanted = Wanted { keys: vec![device.public_key], endpoints: Vec::new() };
        (PeerName::Device(*id), wanted)
    });
    hosts.chain(devices).collect()
}
