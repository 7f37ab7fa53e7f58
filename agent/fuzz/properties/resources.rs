//! Slices from the controller: a host believes only what makes a snapshot without contradictions.

use std::collections::HashSet;

use isthmus_model::convert::{resources, snapshot};
use isthmus_model::{Directory, Place, Revision, Snapshot};
use isthmus_proto::v1;
use prost::Message as _;

/// `input` is a delta on nothing, as it travels. Says whether it makes a snapshot.
pub(crate) fn hold(input: &[u8]) -> bool {
    let Ok(delta) = v1::Delta::decode(input) else { return false };
    let revision = Revision(delta.revision);
    let read = snapshot(revision, &delta.changed);
    match &read {
        Ok(snapshot) => {
            survives_the_wire(snapshot);
            addresses_find_their_places(snapshot);
        }
        Err(error) => {
            let line = error.to_string();
            assert!(!error.reason.is_empty());
            assert!(line.len() < 4096, "{} bytes of complaint", line.len());
        }
    }
    read.is_ok()
}

fn survives_the_wire(given: &Snapshot) {
    let changed = resources(given);
    let wire = v1::Delta { revision: given.revision.0, base: 0, changed, gone: vec![], epoch: 0 };
    let read = v1::Delta::decode(&*wire.encode_to_vec()).expect("what was encoded");
    assert_eq!(snapshot(given.revision, &read.changed).as_ref(), Ok(given));
    assert_eq!(resources(given), read.changed);
}

/// Everything placed is found by both of its addresses, and nothing in the place of another.
fn addresses_find_their_places(snapshot: &Snapshot) {
    let directory = Directory::new(snapshot);
    let own: Vec<_> = snapshot.local_addresses().collect();
    assert_eq!(own.iter().collect::<HashSet<_>>().len(), own.len(), "{own:?}");
    for address in own {
        let place = directory.place(address).expect("this host's addresses are places");
        assert_eq!(place.host(), Some(snapshot.local));
        assert!(snapshot.identity(place.principal(snapshot.local)).is_some());
    }
    for (id, host) in &snapshot.hosts {
        assert_eq!(directory.place_v4(host.ipv4()), Some(Place::Host(*id)));
    }
    for (id, service) in &snapshot.services {
        assert_eq!(directory.place_v4(service.virtual_ipv4), Some(Place::Virtual(*id)));
        assert_eq!(directory.place_v6(snapshot.virtual_ipv6(*id)), Some(Place::Virtual(*id)));
        for (host, ipv4) in &service.placements {
            let place = Some(Place::Workload(*host, *id));
            assert_eq!(directory.place_v4(*ipv4), place);
            assert_eq!(directory.place_v6(snapshot.workload_ipv6(*host, *id)), place);
        }
    }
    for (id, device) in &snapshot.devices {
        assert_eq!(directory.place_v4(device.ipv4), Some(Place::Device(device.via, *id)));
    }
}
