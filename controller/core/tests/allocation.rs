//! Numbers and addresses: never shared, never moved, never gone while there is room.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::Ipv4Addr;

use common::{Drawn, HOSTS, apply, drawn, empty, join, newcomer, try_apply};
use isthmus_controller_core::{Admission, Allocation, JoinError, MeshSnapshot, Newcomer, State};
use isthmus_model::Ipv4Net;
use proptest::prelude::*;

/// What may happen to a mesh.
#[derive(Clone, Debug)]
enum Step {
    Join(usize, bool),
    Remove(usize),
    Apply(Drawn),
    Wait,
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..HOSTS, any::<bool>()).prop_map(|(host, label)| Step::Join(host, label)),
        1 => (0..HOSTS).prop_map(Step::Remove),
        3 => drawn().prop_map(Step::Apply),
        1 => Just(Step::Wait),
        1 => Just(Step::Restart),
    ]
}

fn take(state: State, step: Step) -> State {
    match step {
        Step::Join(host, label) => {
            let labels: &[_] = if label { &[("role", "app")] } else { &[] };
            join(&state, &format!("h{host}"), labels).map_or(state, |(next, _)| next)
        }
        Step::Remove(host) => state.remove(&format!("h{host}")).unwrap().unwrap_or(state),
        Step::Apply(drawn) => apply(&state, &drawn.text()),
        Step::Wait => state.let_go(100).unwrap().unwrap_or(state),
        Step::Restart => {
            let json = serde_json::to_string(&state.allocation).unwrap();
            let allocation: Allocation = serde_json::from_str(&json).unwrap();
            assert_eq!(allocation, state.allocation);
            State { allocation, ..state }
        }
    }
}

/// Who has which IPv4 address, and which number, as text.
fn holders(state: &State) -> (HashMap<String, Ipv4Addr>, BTreeMap<String, u32>) {
    let world = MeshSnapshot::new(state);
    let all = world.everything();
    let (mut addresses, mut numbers) = (HashMap::new(), BTreeMap::new());
    addresses.insert("anycast".to_owned(), all.mesh.anycast_ipv4());
    for (id, host) in &all.hosts {
        addresses.insert(format!("{}#{}", host.name, id.0), host.ipv4());
        numbers.insert(format!("host {}#{}", host.name, id.0), id.0);
    }
    for (id, service) in &all.services {
        addresses.insert(format!("{}", service.name), service.virtual_ipv4);
        numbers.insert(format!("part {}", service.name), id.0);
        for (host, ipv4) in &service.placements {
            addresses.insert(format!("{} on {}", service.name, host.0), *ipv4);
            assert!(all.hosts[host].ipv4_block.contains(ipv4), "{ipv4} outside its host's block");
        }
    }
    for (id, device) in &all.devices {
        addresses.insert(format!("{} via {}", device.name, device.via.0), device.ipv4);
        numbers.insert(format!("part {}", device.name), id.0);
        assert!(all.hosts[&device.via].ipv4_block.contains(&device.ipv4));
    }
    (addresses, numbers)
}

proptest! {
    #[test]
    fn nothing_is_shared_and_nothing_moves(steps in proptest::collection::vec(step(), 1..20)) {
        let mut state = empty();
        let mut old = holders(&state);
        let mut hosts_ever: HashMap<u32, String> = HashMap::new();
        for step in steps {
            state = take(state, step);
            let new = holders(&state);
            let addresses: HashSet<_> = new.0.values().collect();
            prop_assert_eq!(addresses.len(), new.0.len(), "an address is shared: {:?}", new.0);
            let parts: Vec<_> = new.1.iter().filter(|(name, _)| name.starts_with("part")).collect();
            let numbers: HashSet<_> = parts.iter().map(|(_, number)| *number).collect();
            prop_assert_eq!(numbers.len(), parts.len(), "a number is shared: {:?}", new.1);
            for (who, address) in &new.0 {
                prop_assert!(old.0.get(who).is_none_or(|was| was == address), "{} moved", who);
            }
            for (who, number) in &new.1 {
                prop_assert!(old.1.get(who).is_none_or(|was| was == number), "{} renumbered", who);
                if who.starts_with("host") {
                    let first = hosts_ever.entry(*number).or_insert_with(|| who.clone());
                    prop_assert_eq!(&*first, who, "a host's number was used again");
                }
            }
            old = new;
        }
    }
}

#[test]
fn a_number_or_address_given_back_is_not_the_next_to_be_given() {
    let state = apply(&empty(), "[service.a]\nport = 1\nhosts = [\"h\"]\n[host.h]\n");
    let before = MeshSnapshot::new(&state).everything().clone();
    let state = apply(&state, "[service.b]\nport = 1\nhosts = [\"h\"]\n[host.h]\n");
    let after = MeshSnapshot::new(&state).everything().clone();
    assert_ne!(before.services.keys().next(), after.services.keys().next());
    let address =
        |all: &isthmus_model::Snapshot| all.services.values().next().unwrap().virtual_ipv4;
    assert_ne!(address(&before), address(&after));
}

#[test]
fn what_comes_back_has_what_it_had() {
    let (state, _) = join(&apply(&empty(), DEVICES), "gw", &[]).unwrap();
    let without = apply(&state, "[host.gw]\nipv4_block = \"100.64.0.16/29\"\n");
    assert_eq!(holders(&without).0.len(), 2, "the host and the anycast address are left");
    // Others come meanwhile, and get other addresses as long as there are any.
    let others = "[host.gw]\nipv4_block = \"100.64.0.16/29\"\n\
                  [service.x]\nport = 1\nhosts = [\"gw\"]\n[service.y]\nport = 2\nhosts = [\"gw\"]\n";
    let between = apply(&without, others);
    let json = serde_json::to_string(&between.allocation).unwrap();
    let between = State { allocation: serde_json::from_str(&json).unwrap(), ..between };
    let (before, others) = (holders(&state), holders(&between));
    assert!(others.0.iter().all(|(who, address)| {
        before.0.get(who).is_none_or(|it| it == address)
            && before.0.iter().all(|(other, it)| other == who || it != address)
    }));
    assert_eq!(holders(&apply(&between, DEVICES)), before);
    // Who takes all addresses takes those that were kept, too.
    let full: String =
        (0..6).map(|number| format!("[service.f{number}]\nport = 1\nhosts = [\"gw\"]\n")).collect();
    let full = apply(&between, &format!("[host.gw]\nipv4_block = \"100.64.0.16/29\"\n{full}"));
    assert_eq!(holders(&full).0.len(), 2 + 2 * 6);
}

#[test]
fn what_comes_back_never_has_its_hosts_own_address() {
    let topology = |block: &str, services: &[&str]| -> String {
        let one = |name: &&str| format!("[service.{name}]\nport = 1\nhosts = [\"h\"]\n");
        format!("[host.h]\nipv4_block = \"{block}\"\n")
            + &services.iter().map(one).collect::<String>()
    };
    let all = topology("100.64.0.16/28", &["a", "b", "c", "d"]);
    let (state, id) = join(&apply(&empty(), &all), "h", &[]).unwrap();
    assert_eq!(holders(&state).0[&format!("d on {}", id.0)], Ipv4Addr::new(100, 64, 0, 20));
    // The block begins where a workload's address was.
    let state =
        apply(&apply(&state, &topology("100.64.0.16/28", &[])), &topology("100.64.0.20/30", &[]));
    let back = holders(&apply(&state, &topology("100.64.0.20/30", &["d"]))).0;
    assert_eq!(back[&format!("h#{}", id.0)], Ipv4Addr::new(100, 64, 0, 20));
    assert_ne!(back[&format!("d on {}", id.0)], Ipv4Addr::new(100, 64, 0, 20));
}

#[test]
fn a_host_that_comes_back_gets_another_number() {
    let (state, first) = join(&empty(), "h", &[]).unwrap();
    let state = state.remove("h").unwrap().unwrap();
    let (_, second) = join(&state, "h", &[]).unwrap();
    assert_ne!(first, second);
}

#[test]
fn an_expected_host_joins_anew_under_its_number_and_addresses() {
    let (state, first) = join(&empty(), "h", &[("role", "app")]).unwrap();
    let before = MeshSnapshot::new(&state).everything().hosts[&first].clone();
    let again = |state: &State, is_expected| {
        let labels = [("zone", "b")];
        state.join(Newcomer { is_expected, ..newcomer(state, "h", &labels) })
    };
    assert!(matches!(again(&state, false), Err(JoinError::NameTaken(_))));
    let Admission { next, id, generation } = again(&state, true).unwrap();
    assert_eq!((id, generation), (first, 1));
    let after = MeshSnapshot::new(&next).everything().hosts[&first].clone();
    assert_ne!(after.public_key, before.public_key);
    assert_eq!((after.labels.len(), after.ipv4()), (2, before.ipv4()));
    assert_eq!(next.revision.0, state.revision.0 + 1);
    assert_eq!(again(&next, true).unwrap().generation, 2);
}

#[test]
fn the_request_that_made_a_member_is_known_again() {
    let request = [9; 32];
    let host = newcomer(&empty(), "h", &[]);
    let name = host.name.clone();
    let state = empty().join(Newcomer { request, ..host }).unwrap().next;
    assert!(state.repeats(&name, &request).is_some());
    assert!(state.repeats(&name, &[8; 32]).is_none());
    assert!(state.repeats(&"other".parse().unwrap(), &request).is_none());
}

#[test]
fn a_service_under_another_name_keeps_its_number_and_address() {
    let old = "[host.a]\n[service.old]\nport = 80\nhosts = [\"a\"]\n";
    let (state, _) = join(&apply(&empty(), old), "a", &[]).unwrap();
    let service = |state: &State, name: &str| {
        let world = MeshSnapshot::new(state);
        let mut services = world.everything().services.iter();
        let found = services.find(|(_, service)| service.name.as_str() == name);
        found.map(|(id, service)| (*id, service.virtual_ipv4, service.placements.clone()))
    };
    let before = service(&state, "old").unwrap();
    let renamed = old.replace("[service.old]", "[service.new]\naliases = [\"older\", \"old\"]");
    let after = apply(&state, &renamed);
    assert_eq!((service(&after, "new"), service(&after, "old")), (Some(before.clone()), None));
    // The alias may go later, and the old name may be somebody else's then.
    let plain = old.replace("service.old", "service.new");
    let both = format!("{plain}[service.old]\nport = 81\nhosts = [\"a\"]\n");
    let after = apply(&apply(&after, &plain), &both);
    assert_eq!(service(&after, "new"), Some(before.clone()));
    assert_ne!(service(&after, "old").unwrap().0, before.0);
    // Without an alias it is another service.
    assert_ne!(service(&apply(&state, &plain), "new").unwrap().0, before.0);
}

const DEVICES: &str = "[host.gw]\nipv4_block = \"100.64.0.16/29\"\n\
     [service.web]\nport = 80\nhosts = [\"gw\"]\n\
     [device.c]\nvia = \"gw\"\nwireguard = { public_key = \"6dPMYUUTFuApQ1Hyv9gfqZ0sJoUQNl6VbMO0wU0NK1A=\" }\n\
     [device.d]\nvia = \"gw\"\nwireguard = { public_key = \"hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=\" }\n";

fn devices(state: &State) -> Vec<String> {
    let world = MeshSnapshot::new(state);
    world.everything().devices.values().map(|device| device.ipv4.to_string()).collect()
}

#[test]
fn a_devices_fixed_address_is_its_own_whoever_had_it() {
    let (state, gateway) = join(&apply(&empty(), DEVICES), "gw", &[]).unwrap();
    let before = devices(&state);
    assert!(
        before.iter().all(|address| address.starts_with("100.64.0.")) && before[0] != before[1]
    );
    // Each wants what another one has: the other device, then the service.
    let web = {
        let world = MeshSnapshot::new(&state);
        let mut services = world.everything().services.values();
        services.next().unwrap().placements[&gateway].to_string()
    };
    let fix = |text: &str, ipv4: &str| {
        text.replace("[device.d]", &format!("[device.d]\nipv4 = \"{ipv4}\""))
    };
    for wanted in [&before[0], &web, "100.64.0.22"] {
        let fixed = apply(&state, &fix(DEVICES, wanted));
        let now = devices(&fixed);
        assert_eq!(&now[1], wanted);
        assert_ne!(now[0], now[1]);
        // It stays, also where it is fixed no longer.
        assert_eq!(devices(&apply(&fixed, DEVICES))[1], *wanted);
    }
}

const TINY: &str =
    "[mesh]\nipv4 = \"10.0.0.0/24\"\nvirtual_ipv4 = \"10.0.0.128/25\"\nhost_block = 26\n";

#[test]
fn running_out_of_blocks_says_what_to_change() {
    let mut state = apply(&empty(), TINY);
    for name in ["a", "b"] {
        state = join(&state, name, &[]).unwrap().0;
    }
    let error = join(&state, "c", &[]).unwrap_err();
    assert!(matches!(error, JoinError::Allocation { .. }));
    let text = error.to_string();
    assert!(
        text.contains("/26") && text.contains("`ipv4`") && text.contains("host_block"),
        "{text}"
    );
    // What is given back can be used again.
    let state = state.remove("a").unwrap().unwrap();
    assert!(join(&state, "c", &[]).is_ok());
}

#[test]
fn a_full_block_points_at_its_host() {
    let mut text = "[mesh]\nhost_block = 30\n\n[host.h]\n\n".to_owned();
    // The topology alone can't tell: the label comes with the join token.
    let (state, _) = join(&apply(&empty(), &text), "h", &[("role", "app")]).unwrap();
    for n in 0..4 {
        text += &format!("[service.s{n}]\nport = 1\nhosts = {{ role = \"app\" }}\n");
    }
    let errors = try_apply(&state, &text).unwrap_err();
    assert!(errors[0].starts_with("mesh.toml:4:1: 4 workloads"), "{errors:?}");
    assert!(errors[0].contains("ipv4_block"), "{errors:?}");
}

#[test]
fn ranges_can_not_change_under_hosts() {
    let state = apply(&empty(), TINY);
    let wider = TINY.replace("/24", "/23");
    assert!(try_apply(&state, &wider).is_ok(), "nobody has joined");
    let (state, _) = join(&state, "h", &[]).unwrap();
    let errors = try_apply(&state, &wider).unwrap_err();
    assert!(
        errors[0].starts_with("mesh.toml:2:1: `ipv4` can't change from 10.0.0.0/24"),
        "{errors:?}"
    );
    let errors = try_apply(&state, &TINY.replace("26", "27")).unwrap_err();
    assert!(errors[0].starts_with("mesh.toml:4:1: `host_block`"), "{errors:?}");
    assert!(try_apply(&state, TINY).is_ok());
}

#[test]
fn a_fixed_block_is_kept_free_and_given_to_its_host() {
    let text = "[mesh]\nipv4 = \"10.0.0.0/24\"\nvirtual_ipv4 = \"10.0.0.128/25\"\nhost_block = 26\n[host.f]\nipv4_block = \"10.0.0.64/26\"\n";
    let fixed: Ipv4Net = "10.0.0.64/26".parse().unwrap();
    let (state, other) = join(&apply(&empty(), text), "o", &[]).unwrap();
    assert_ne!(state.allocation.block(other), Some(fixed));
    let (state, id) = join(&state, "f", &[]).unwrap();
    assert_eq!(state.allocation.block(id), Some(fixed));
}

#[test]
fn a_fixed_block_that_another_host_has_is_refused() {
    let (state, id) = join(&empty(), "o", &[]).unwrap();
    let block = state.allocation.block(id).unwrap();
    let text = format!("[host.f]\nipv4_block = \"{block}\"\n");
    let errors = try_apply(&state, &text).unwrap_err();
    assert!(errors[0].contains("\"o\"") && errors[0].starts_with("mesh.toml:1:1"), "{errors:?}");
}

#[test]
fn names_and_keys_are_one_hosts_only() {
    let (state, _) = join(&empty(), "h", &[]).unwrap();
    let error = join(&state, "h", &[]).unwrap_err().to_string();
    assert!(error.contains("agentctl host remove h"), "{error}");
    let key = state.inventory.member("h").unwrap().public_key;
    let device =
        format!("[host.h]\n[device.d]\nvia = \"h\"\nwireguard = {{ public_key = \"{key}\" }}\n");
    let errors = try_apply(&state, &device).unwrap_err();
    assert!(errors[0].contains("tunnel key of host"), "{errors:?}");
}

#[test]
fn a_topology_of_another_mesh_is_refused() {
    let text = "[mesh]\nname = \"other\"\ntrust_domain = \"other.example\"\n";
    let errors = try_apply(&empty(), text).unwrap_err();
    assert!(errors[0].starts_with("mesh.toml:2:1: `name` is \"other\""), "{errors:?}");
    assert!(errors[1].starts_with("mesh.toml:3:1: `trust_domain`"), "{errors:?}");
    assert!(try_apply(&empty(), "[mesh]\nname = \"corp\"\n").is_ok());
}
