//! Questions and warnings before a topology is replaced.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{apply, empty, join};
use isthmus_controller_core::rollout::Phase;
use isthmus_controller_core::{Consequences, State};

fn hosts(count: usize) -> String {
    (0..count).map(|number| format!("[host.h{number}]\n")).collect()
}

fn asks(before: &str, after: &str) -> Vec<String> {
    let before = apply(&empty(), before);
    Consequences::of(&before, &apply(&before, after)).asks
}

#[track_caller]
fn assert_asks(before: &str, after: &str, part: &str) {
    let asks = asks(before, after);
    assert!(asks.len() == 1 && asks[0].contains(part), "{asks:?}");
}

#[test]
fn files_that_say_nothing_are_asked_about() {
    let topology = format!("{}[service.api]\nport = 80\nhosts = [\"h0\"]\n", hosts(3));
    for nothing in ["", "\n# all gone\n", "[mesh]\nname = \"corp\"\n"] {
        assert_asks(&topology, nothing, "all 3 hosts, 1 service and 0 rules");
    }
    assert!(asks("", "").is_empty() && asks("", &topology).is_empty());
}

#[test]
fn more_than_a_tenth_of_the_hosts_is_asked_about() {
    assert!(asks(&hosts(10), &hosts(9)).is_empty());
    assert_asks(&hosts(10), &hosts(8), "2 of 10 hosts out of the topology: h8, h9");
    assert_asks(&hosts(9), &hosts(8), "1 of 9 hosts");
    assert_asks(&hosts(30), &hosts(10), "h14, h15, h16, h17 and 12 more");
    // Another file that says the same hosts, and more.
    assert!(asks(&hosts(10), &hosts(20)).is_empty());
}

#[test]
fn more_than_half_of_the_services_is_asked_about() {
    let services = |names: &[&str]| -> String {
        let one = |name: &&str| format!("[service.{name}]\nport = 80\nhosts = [\"h0\"]\n");
        hosts(1) + &names.iter().map(one).collect::<String>()
    };
    let before = services(&["a", "b", "c", "d"]);
    assert!(asks(&before, &services(&["a", "b"])).is_empty());
    assert_asks(&before, &services(&["a"]), "it removes 3 of 4 services: b, c, d");
    assert_asks(&before, &hosts(1), "4 of 4 services");
    let renamed = services(&["a", "new"]) + "aliases = [\"b\", \"c\"]\n";
    assert!(asks(&before, &renamed).is_empty(), "two have another name, one is gone");
}

#[test]
fn a_gateway_that_goes_is_asked_about() {
    let web = "[service.web]\nport = 80\nprotocol = \"http\"\nhosts = [\"h0\"]\n";
    let gateway = "[gateway.shop]\nhosts = [\"h0\"]\nlisteners = [{ port = 8080 }]\n\
                   [[route.shop]]\nto = [{ service = \"web\" }]\n";
    let before = format!("{}{web}{gateway}", hosts(1));
    assert_asks(&before, &format!("{}{web}", hosts(1)), "gateway shop");

    let device = "[device.press]\nvia = \"h19\"\n\
                  wireguard = { public_key = \"6dPMYUUTFuApQ1Hyv9gfqZ0sJoUQNl6VbMO0wU0NK1A=\" }\n";
    assert_asks(&(hosts(20) + device), &hosts(19), "host h19, the gateway of devices: press");
}

fn joined(names: &[&str], topology: &str) -> State {
    let mesh = names.iter().fold(empty(), |mesh, name| join(&mesh, name, &[]).unwrap().0);
    apply(&mesh, topology)
}

#[test]
fn a_service_that_loses_its_last_workload_is_named() {
    let api = |hosts: &str| {
        format!("[host.a]\n[host.b]\n[host.c]\n[service.api]\nport = 80\nhosts = [{hosts}]\n")
    };
    let notes = |to: &str| {
        let before = joined(&["a", "b"], &api("\"a\", \"b\""));
        Consequences::of(&before, &apply(&before, &api(to))).notes
    };
    assert!(notes("\"b\"").is_empty());
    // c hasn't joined.
    assert_eq!(notes("\"c\""), ["service api loses its last workload: it was on a, b"]);
}

#[test]
fn a_rollout_that_is_removed_says_what_the_weights_become() {
    let api = "[host.a]\n[service.api]\nport = 80\nprotocol = \"http\"\nhosts = [\"a\"]\n\
               [service.v2]\nport = 81\nprotocol = \"http\"\nhosts = [\"a\"]\n";
    let route = "[[route.api]]\nname = \"api\"\nto = [{ service = \"api\", weight = 9 }, { service = \"v2\" }]\n";
    let rollout =
        "[rollout.api]\nroute = \"api\"\nstable = \"api\"\ncanary = \"v2\"\nsteps = [25, 50]\n";
    let all = format!("{api}{route}{rollout}");
    let before = joined(&["a"], &all);
    let notes = |after: &str| Consequences::of(&before, &apply(&before, after)).notes;
    assert!(notes(&format!("{all}# the same\n")).is_empty());
    assert_eq!(
        notes(&format!("{api}{route}")),
        [
            "rollout api ends (progressing at 25 %); route api goes from api 75 %, v2 25 % to api 90 %, v2 10 %"
        ]
    );
    assert_eq!(notes(api), ["rollout api ends (progressing at 25 %); route api is gone, too"]);
    let name = "api".parse().unwrap();
    let phase = &before.rollouts[&name].phase;
    let promoted = before.advance_rollout(&name, phase, Phase::Promoted, 1).unwrap();
    let other = all.replace("[host.a]", "[host.a]\n[host.b]");
    assert!(Consequences::of(&promoted, &apply(&promoted, &other)).notes.is_empty());
    let swapped =
        all.replace("stable = \"api\"\ncanary = \"v2\"", "stable = \"v2\"\ncanary = \"api\"");
    let notes = Consequences::of(&promoted, &apply(&promoted, &swapped)).notes;
    assert_eq!(notes, ["rollout api (promoted at 100 %) begins anew, at 25 %"]);
}
