//! Workloads that a topology no longer places stay for a while, and get nothing new.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::Arc;

use common::{empty, join};
use isthmus_controller_core::{MeshSnapshot, State};
use isthmus_model::topology::{SourceFile, parse};
use isthmus_model::{HostId, Service};

const CLIENT: &str = "[[allow]]\nname = \"all\"\nfrom = \"host:c\"\nto = \"service:api\"\n\
                      [host.a]\n[host.b]\n[host.c]\n";

/// An API on hosts, as a certain user.
fn api(hosts: &str) -> String {
    service("api", hosts)
}

fn service(name: &str, hosts: &str) -> String {
    format!("[service.{name}]\nport = 80\nhosts = [{hosts}]\nworkload = {{ user = \"u\" }}\n")
}

#[track_caller]
fn apply(state: &State, text: &str, now: i64) -> State {
    let files = [SourceFile { name: "mesh.toml".into(), text: text.to_owned() }];
    let topology = parse(&files).unwrap_or_else(|errors| panic!("{errors:?}"));
    state.apply(Arc::new(files), topology, now).unwrap_or_else(|errors| panic!("{errors:?}"))
}

/// Hosts a, b and c, and the API on a.
fn on_a() -> State {
    let mut state = empty();
    for name in ["a", "b", "c"] {
        state = join(&state, name, &[]).unwrap().0;
    }
    apply(&state, &(CLIENT.to_owned() + &api("\"a\"")), 0)
}

fn in_world(state: &State, name: &str) -> Service {
    let world = MeshSnapshot::new(state);
    let mut services = world.everything().services.values();
    services.find(|service| service.name.as_str() == name).unwrap().clone()
}

fn placed(state: &State) -> Vec<u32> {
    in_world(state, "api").placements.keys().map(|host| host.0).collect()
}

fn leaving(state: &State) -> Vec<u32> {
    in_world(state, "api").leaving.iter().map(|host| host.0).collect()
}

#[test]
fn who_moves_leaves_with_what_it_needs_and_goes_after_a_while() {
    let before = on_a();
    let moved = apply(&before, &(CLIENT.to_owned() + &api("\"b\"")), 1_000);
    assert_eq!((placed(&moved), leaving(&moved)), (vec![1, 2], vec![1]));
    assert_eq!(
        in_world(&moved, "api").placements[&HostId(1)],
        in_world(&before, "api").placements[&HostId(1)],
    );
    let slice = MeshSnapshot::new(&moved).slice(HostId(1)).unwrap();
    let own = slice.services.values().find(|it| it.name.as_str() == "api").unwrap();
    assert!(own.leaving.contains(&HostId(1)) && !own.selectors.is_empty());
    assert_eq!(slice.rules.rules.len(), 1);

    assert!(moved.let_go(1_029).unwrap().is_none());
    let gone = moved.let_go(1_030).unwrap().unwrap();
    assert!(gone.revision > moved.revision);
    assert_eq!((placed(&gone), leaving(&gone)), (vec![2], vec![]));
    assert!(MeshSnapshot::new(&gone).slice(HostId(1)).unwrap().rules.rules.is_empty());
    assert!(gone.let_go(9_999).unwrap().is_none());
}

#[test]
fn another_change_meanwhile_gives_no_more_time_and_placing_it_again_keeps_it() {
    let moved = apply(&on_a(), &(CLIENT.to_owned() + &api("\"b\"")), 1_000);
    let changed = apply(&moved, &(CLIENT.to_owned() + &api("\"b\", \"c\"")), 1_020);
    assert_eq!(leaving(&changed), [1]);
    assert_eq!(leaving(&changed.let_go(1_030).unwrap().unwrap()), [0; 0]);
    let back = apply(&moved, &(CLIENT.to_owned() + &api("\"a\"")), 1_020);
    assert_eq!((placed(&back), leaving(&back)), (vec![1, 2], vec![2]));
}

#[test]
fn a_host_or_service_that_is_removed_goes_at_once() {
    let moved = apply(&on_a(), &(CLIENT.to_owned() + &api("\"b\"")), 0);
    let removed = moved.remove("a").unwrap().unwrap();
    assert_eq!((placed(&removed), leaving(&removed)), (vec![2], vec![]));
    let gone = apply(&moved, &(CLIENT.replace("service:api", "host:b")), 0);
    assert!(MeshSnapshot::new(&gone).everything().services.is_empty() && gone.leaving.is_empty());
}

#[test]
fn nobody_stays_where_another_one_looks_the_same() {
    let both = api("\"b\"") + &service("other", "\"a\"");
    let moved = apply(&on_a(), &(CLIENT.to_owned() + &both), 0);
    assert_eq!((placed(&moved), leaving(&moved)), (vec![2], vec![]));
}

#[test]
fn what_is_at_the_edge_goes_at_once() {
    let gateway = |host| {
        format!("{CLIENT}[gateway.api]\nhosts = [\"{host}\"]\nlisteners = [{{ port = 80 }}]\n")
    };
    let state = apply(&on_a(), &gateway("a"), 0);
    let moved = apply(&state, &gateway("b"), 0);
    assert_eq!((placed(&moved), leaving(&moved)), (vec![2], vec![]));
}

#[test]
fn who_comes_has_the_addresses_before_who_leaves() {
    let tiny = |services: &str| {
        let hosts = "[host.a]\nipv4_block = \"100.64.9.0/30\"\n[host.b]\n";
        format!("{hosts}{services}")
    };
    let one =
        |name: &str, host: &str| format!("[service.{name}]\nport = 80\nhosts = [\"{host}\"]\n");
    let mut state = empty();
    for name in ["a", "b"] {
        state = join(&state, name, &[]).unwrap().0;
    }
    // Three addresses.
    let full = ["api", "x", "y"].map(|name| one(name, "a")).concat();
    let state = apply(&state, &tiny(&full), 0);
    let next = [one("api", "b"), one("x", "a"), one("y", "a"), one("z", "a")].concat();
    let moved = apply(&state, &tiny(&next), 0);
    assert_eq!((placed(&moved), leaving(&moved)), (vec![2], vec![]));
}
