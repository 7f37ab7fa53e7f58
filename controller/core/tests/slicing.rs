//! Slices: nothing that is needed is missing, and not more than that.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;

use common::{HOSTS, apply, drawn, empty, join};
use isthmus_controller_core::{MeshSnapshot, State};
use isthmus_model::{Directory, HostId, Identity, Layer4, Place, Principal, Snapshot};
use isthmus_policy::{Outcome, Policy, Query, Request};
use proptest::prelude::*;

/// All hosts but some have joined; every second one has the label.
fn populated(text: &str, absent: usize) -> State {
    let mut state = apply(&empty(), text);
    for host in (0..HOSTS).filter(|host| *host != absent) {
        let labels: &[_] = if host % 2 == 0 { &[("role", "app")] } else { &[] };
        state = join(&state, &format!("h{host}"), labels).unwrap().0;
    }
    state
}

/// Everybody in a mesh, and where.
fn places(all: &Snapshot) -> Vec<(Place, HostId, Identity)> {
    let mut places: Vec<(Place, HostId)> =
        all.hosts.keys().map(|id| (Place::Host(*id), *id)).collect();
    for (id, service) in &all.services {
        places.extend(service.placements.keys().map(|host| (Place::Workload(*host, *id), *host)));
    }
    places.extend(all.devices.iter().map(|(id, d)| (Place::Device(d.via, *id), d.via)));
    places
        .into_iter()
        .map(|(place, host)| {
            (place, host, all.identity(place.principal(host)).expect("everybody is known"))
        })
        .collect()
}

fn layers() -> Vec<Layer4> {
    let mut layers: Vec<Layer4> = (8_000..8_005).map(Layer4::Tcp).collect();
    layers.extend([Layer4::Tcp(22), Layer4::Udp(53), Layer4::Icmp]);
    layers
}

fn host_ping(from: &Identity, to: &Identity, layer4: Layer4) -> bool {
    matches!((from, to, layer4), (Identity::Host(_), Identity::Host(_), Layer4::Icmp))
}

fn holds(slice: &Snapshot, place: Place) -> bool {
    match place {
        Place::Host(host) => slice.hosts.contains_key(&host),
        Place::Workload(host, service) => {
            slice.services.get(&service).is_some_and(|s| s.placements.contains_key(&host))
        }
        Place::Device(_, device) => slice.devices.contains_key(&device),
        Place::Virtual(_) | Place::Anycast => true,
    }
}

fn assert_invariant(slice: &Snapshot) {
    assert!(slice.hosts.contains_key(&slice.local));
    for service in slice.services.values() {
        assert!(service.placements.keys().all(|host| slice.hosts.contains_key(host)));
        assert!(
            service.selectors.is_empty() || service.placements.contains_key(&slice.local),
            "selectors are for those who run the service"
        );
    }
    assert!(slice.devices.values().all(|device| slice.hosts.contains_key(&device.via)));
    let _ = Directory::new(slice);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn both_ends_of_whatever_is_allowed_know_each_other(drawn in drawn(), absent in 0..HOSTS) {
        let world = MeshSnapshot::new(&populated(&drawn.text(), absent));
        let all = world.everything();
        let policy = Policy::for_snapshot(all);
        let slices: BTreeMap<HostId, Snapshot> =
            all.hosts.keys().map(|id| (*id, world.slice(*id).unwrap())).collect();
        slices.values().for_each(assert_invariant);
        let places = places(all);
        for (source, from_host, from) in &places {
            for (target, to_host, to) in &places {
                let allowed = layers().into_iter().any(|layer4| {
                    let query = Query { from, to, layer4, request: None };
                    !host_ping(from, to, layer4) && policy.evaluate(&query).outcome != Outcome::Deny
                });
                if allowed && from_host != to_host {
                    prop_assert!(holds(&slices[from_host], *target), "{} lacks {}", from, to);
                    prop_assert!(holds(&slices[to_host], *source), "{} lacks {}", to, from);
                }
            }
        }
    }

    #[test]
    fn a_slice_decides_as_the_whole_does(drawn in drawn(), absent in 0..HOSTS) {
        let world = MeshSnapshot::new(&populated(&drawn.text(), absent));
        let all = world.everything();
        let whole = Policy::for_snapshot(all);
        let places = places(all);
        for local in all.hosts.keys() {
            let part = Policy::for_snapshot(&world.slice(*local).unwrap());
            for (_, from_host, from) in &places {
                for (_, to_host, to) in &places {
                    if from_host != local && to_host != local {
                        continue;
                    }
                    for layer4 in layers() {
                        for request in [None, Some(Request::new("GET", "/a"))] {
                            let query = Query { from, to, layer4, request };
                            let (a, b) = (whole.evaluate(&query), part.evaluate(&query));
                            prop_assert_eq!(a.outcome, b.outcome);
                            prop_assert_eq!(whole.describe(&a).name, part.describe(&b).name);
                        }
                    }
                }
            }
        }
    }
}

const TOPOLOGY: &str = r#"
[host.web-1]
[host.db-1]
[host.other-1]

[service.web]
port = 80
hosts = ["web-1"]
workload = { user = "web" }

[service.db]
port = 5432
hosts = ["db-1"]
workload = { user = "db" }

[service.other]
port = 1
hosts = ["other-1", "db-1"]

[[allow]]
name = "web reads db"
from = "service:web"
to = "service:db"
"#;

fn three() -> (State, [HostId; 3]) {
    let state = apply(&empty(), TOPOLOGY);
    let (state, web) = join(&state, "web-1", &[]).unwrap();
    let (state, db) = join(&state, "db-1", &[]).unwrap();
    let (state, other) = join(&state, "other-1", &[]).unwrap();
    (state, [web, db, other])
}

#[test]
fn a_host_learns_only_of_those_it_may_meet() {
    let (state, [web, db, other]) = three();
    let world = MeshSnapshot::new(&state);
    let slice = world.slice(web).unwrap();
    assert_eq!(slice.hosts.keys().copied().collect::<Vec<_>>(), [web, db]);
    assert_eq!(slice.services.len(), 3, "denials have names");
    let service = |name: &str| slice.services.values().find(|s| s.name.as_str() == name).unwrap();
    assert!(service("db").placements.contains_key(&db));
    assert!(service("db").selectors.is_empty());
    assert!(!service("web").selectors.is_empty());
    assert!(service("other").placements.is_empty(), "it may not meet it, though db-1 has it");
    assert_eq!(slice.rules.rules.len(), 1);

    let slice = world.slice(other).unwrap();
    assert_eq!(slice.hosts.keys().copied().collect::<Vec<_>>(), [other]);
    assert!(slice.rules.rules.is_empty(), "the rule can't decide about it");
    assert_eq!(slice.local_services().count(), 1, "its own workloads it always knows");
}

#[test]
fn routes_are_for_those_who_may_call_the_service() {
    let text = format!(
        "{}\n[[route.db]]\ntimeout = \"2s\"\n",
        TOPOLOGY.replace("port = 5432", "port = 5432\nprotocol = \"http\"")
    );
    let (state, _) = three();
    let world = MeshSnapshot::new(&apply(&state, &text));
    let routes = |host: &str| {
        let id = world.inventory().member(host).unwrap().id;
        world.slice(id).unwrap().routes
    };
    assert_eq!(routes("web-1").len(), 1);
    assert_eq!(routes("other-1"), [], "it may not call the service");
    assert_eq!(routes("db-1"), [], "it is called, and calls nobody");
    let later = MeshSnapshot::new(&apply(&state, &text.replace("2s", "3s")));
    let affected: Vec<String> = world.affected(&later).iter().map(ToString::to_string).collect();
    assert_eq!(affected, ["web-1"]);
}

#[test]
fn the_edge_is_known_to_those_who_stand_there() {
    let edge = r#"
[gateway.public]
hosts = ["web-1"]
listeners = [{ port = 443, tls = { certificate = "/c", key = "/k" } }]

[external.payments]
host = "payments.example"
tls = true
via = ["other-1"]

[[route.public]]
to = [{ service = "db" }]

[[allow]]
name = "the world reads db"
from = "service:public"
to = "service:db"

[[allow]]
name = "db pays"
from = "service:db"
to = "service:payments"
"#;
    let text = TOPOLOGY.replace("port = 5432", "port = 5432\nprotocol = \"http\"");
    let (state, _) = three();
    let world = MeshSnapshot::new(&apply(&state, &format!("{text}{edge}")));
    let slice = |host: &str| world.slice(world.inventory().member(host).unwrap().id).unwrap();
    let knows = |host: &str| {
        let slice = slice(host);
        let edges = slice.services.values().filter(|service| service.edge.is_some());
        let names: Vec<String> = edges.map(|service| service.name.to_string()).collect();
        (names, slice.routes.len())
    };
    assert_eq!(knows("web-1"), (vec!["public".to_owned()], 1), "the gateway needs its routes");
    assert_eq!(knows("db-1"), (vec!["payments".to_owned(), "public".to_owned()], 0));
    let seen = slice("db-1");
    let public = seen.services.values().find(|it| it.name.as_str() == "public").unwrap();
    assert_eq!(public.gateway().unwrap().listeners, [], "it meets the gateway, no more");
    assert_eq!(knows("other-1"), (vec!["payments".to_owned()], 0));
}

#[test]
fn only_those_are_affected_whose_slices_differ() {
    let (state, _) = three();
    let before = MeshSnapshot::new(&state);
    let names = |text: &str| -> Vec<String> {
        let after = MeshSnapshot::new(&apply(&state, text));
        before.affected(&after).iter().map(ToString::to_string).collect()
    };
    let port = TOPOLOGY.replace("user = \"web\"", "user = \"www\"");
    assert_eq!(names(&port), ["web-1"]);
    let rule = TOPOLOGY.replace("web reads db", "web asks db");
    assert_eq!(names(&rule), ["db-1", "web-1"]);
    assert!(names(TOPOLOGY).is_empty());
}

#[test]
fn a_removed_host_is_in_no_slice() {
    let (state, [web, db, _]) = three();
    let world = MeshSnapshot::new(&state.remove("db-1").unwrap().unwrap());
    let slice = world.slice(web).unwrap();
    assert_eq!(slice.hosts.keys().copied().collect::<Vec<_>>(), [web]);
    assert!(slice.services.values().all(|service| !service.placements.contains_key(&db)));
    assert!(world.slice(db).is_none());
    assert!(slice.identity(Principal::Host(db)).is_none());
}

#[test]
fn endpoints_that_the_topology_gives_win() {
    let (state, [web, ..]) = three();
    let moved = [("web-1".parse().unwrap(), vec!["192.0.2.1:51820".parse().unwrap()])].into();
    let state = state.relocate(&moved).unwrap();
    assert!(state.relocate(&moved).is_none(), "no news");
    let endpoints =
        |state: &State| MeshSnapshot::new(state).everything().hosts[&web].endpoints.clone();
    assert_eq!(endpoints(&state), ["192.0.2.1:51820".parse().unwrap()]);
    let text = TOPOLOGY.replace("[host.web-1]", "[host.web-1]\nendpoints = [\"198.51.100.1:7\"]");
    assert_eq!(endpoints(&apply(&state, &text)), ["198.51.100.1:7".parse().unwrap()]);
}
