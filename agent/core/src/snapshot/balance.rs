//! Backend choice for a flow to a virtual address: rendezvous hashing (Thaler, Ravishankar 1998).
//!
//! Every backend gets a score from the flow and its own number; the highest wins. No table, no state:
//! the answer is the same after a restart of the agent, and when a backend goes only its own flows
//! move.

use isthmus_model::{HostId, ServiceId};
use isthmus_packet::{Address, FlowKey};

use crate::snapshot::CompiledSnapshot;
use crate::types::random::mix;

/// Picks the workload that takes a flow of this key; `flow.source` must be the address that the mesh
/// sees, so that a restarted agent picks the same.
pub(crate) fn pick(
    state: &CompiledSnapshot,
    service: ServiceId,
    flow: &FlowKey,
) -> Option<(HostId, Address)> {
    let declared = state.snapshot.services.get(&service)?;
    let flow_hash = hash(flow);
    // Who is about to go gets what nobody else could take.
    let rank = |host: &&HostId| (!declared.leaving.contains(host), mix([flow_hash, host.0.into()]));
    let host = declared.placements.keys().max_by_key(rank)?;
    let address = state.workload_address(*host, service, flow.destination.is_v4())?;
    Some((*host, address))
}

fn hash(flow: &FlowKey) -> u64 {
    let halves = |address: Address| {
        let bits = u128::from_be_bytes(address.v6_octets());
        [(bits >> 64) as u64, bits as u64]
    };
    let [source_high, source_low] = halves(flow.source);
    let [destination_high, destination_low] = halves(flow.destination);
    let ports = u64::from(flow.source_port) << 16 | u64::from(flow.destination_port);
    let rest = ports << 8 | u64::from(flow.protocol);
    mix([source_high, source_low, destination_high, destination_low, rest])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::topology;

    fn flow(port: u16, to: Address) -> FlowKey {
        FlowKey {
            source: Address::v4([100, 64, 0, 2]),
            destination: to,
            source_port: port,
            destination_port: 80,
            protocol: 6,
        }
    }

    #[test]
    fn backends_share_flows_and_keep_theirs_when_one_goes() {
        let topology = topology::Builder::new(4).service("web", 80, &[1, 2, 3]).build();
        let service = topology.service("web");
        let all = CompiledSnapshot::new(topology.snapshot(4));
        let vip = all.virtual_address(service, true).unwrap();
        let before: Vec<_> =
            (1..=3000).map(|port| pick(&all, service, &flow(port, vip)).unwrap().0).collect();
        for host in 1..=3 {
            let share = before.iter().filter(|picked| picked.0 == host).count();
            assert!((800..1200).contains(&share), "host {host} got {share} of 3000");
        }
        let mut snapshot = topology.snapshot(4);
        snapshot.services.get_mut(&service).unwrap().placements.remove(&HostId(2));
        let fewer = CompiledSnapshot::new(snapshot);
        for (port, before) in (1..=3000).zip(before) {
            let after = pick(&fewer, service, &flow(port, vip)).unwrap().0;
            assert!(after == before || before == HostId(2));
        }
    }

    #[test]
    fn who_is_about_to_go_gets_flows_only_if_nobody_else_is_there() {
        let topology = topology::Builder::new(4).service("web", 80, &[1, 2]).build();
        let service = topology.service("web");
        let picked = |leaving: &[u32]| {
            let mut snapshot = topology.snapshot(4);
            let declared = snapshot.services.get_mut(&service).unwrap();
            declared.leaving = leaving.iter().copied().map(HostId).collect();
            let state = CompiledSnapshot::new(snapshot);
            let vip = state.virtual_address(service, true).unwrap();
            let pick = |port| pick(&state, service, &flow(port, vip)).unwrap().0.0;
            (1..=100).map(pick).collect::<std::collections::BTreeSet<_>>()
        };
        assert_eq!(picked(&[1]), [2].into());
        assert_eq!(picked(&[1, 2]), [1, 2].into());
    }
}
