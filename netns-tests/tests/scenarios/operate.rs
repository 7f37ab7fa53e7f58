//! Operators: their mistakes, their conflicts, and their ageing credentials.

use std::time::{Duration, Instant};

use isthmus_netns_tests::{Mesh, MeshOptions, Output, binary, wait_for};

const MESH: &str = "[host.app-1]\n[host.web-1]\n[service.web]\nport = 8080\nhosts = [\"web-1\"]\n\
                    workload = { user = \"nobody\" }\n[[allow]]\nname = \"all\"\nfrom = \"host:app-1\"\nto = \"service:web\"\n";

fn port(mesh: &Mesh) -> u64 {
    let status = mesh.status();
    status["services"][0]["port"].as_u64().unwrap_or_default()
}

/// `agentctl apply` as somebody types it, without a terminal.
fn apply(mesh: &Mesh, text: &str, options: &[&str]) -> Output {
    let file = mesh.controller_node.folder().join("typed.toml");
    std::fs::write(&file, text).expect("the lab's folder can be written");
    let file = file.to_string_lossy();
    mesh.agentctl(&[&["apply", "-f", &file], options].concat())
}

#[test]
fn mistakes_are_held_and_trials_undo_themselves_whoever_dies() {
    let mut mesh = Mesh::new(&["app-1", "web-1"]);
    mesh.apply(MESH);
    let first = mesh.revision();

    // An empty pipe, as `generate | agentctl apply -f -` leaves it, and a file without a host.
    for (text, why) in [("", "say nothing"), ("[host.app-1]\n", "1 of 2 hosts")] {
        let said = apply(&mesh, text, &[]).expect_failure();
        assert!(said.contains(why) && said.contains("say --yes"), "{said}");
    }
    let said = mesh.agentctl(&["host", "remove", "web-1"]).expect_failure();
    assert!(said.contains("service web loses its last workload"), "{said}");
    assert!(said.contains("--yes") && mesh.revision() == first, "{said}");

    // A trial; the controller is killed at once, and comes back late.
    let moved = MESH.replace("8080", "9090");
    let started = Instant::now();
    let said = apply(&mesh, &moved, &["--confirm-within", "6s"]).expect_success();
    assert!(said.contains("2 of 2 agents accepted") && said.contains("on trial"), "{said}");
    mesh.controller().kill();
    mesh.start_controller();
    assert_eq!(port(&mesh), 9090);
    let said = apply(&mesh, MESH, &[]).expect_failure();
    assert!(said.contains("of admin is undone at") && said.contains("agentctl confirm"), "{said}");
    wait_for("nobody confirms it", Duration::from_secs(10), || port(&mesh) == 8080);
    let took = started.elapsed();
    assert!((5..9).contains(&took.as_secs()), "undone after {took:?}");
    wait_for("the agents follow", Duration::from_secs(5), || {
        let revision = mesh.revision();
        ["app-1", "web-1"].iter().all(|name| mesh.host(name).status()["revision"] == revision)
    });

    // And one that somebody wants to keep.
    let _ =
        apply(&mesh, &moved, &["--confirm-within", "60s", "--note", "web moves"]).expect_success();
    let _ = mesh.agentctl(&["confirm"]).expect_success();
    let history = mesh.agentctl(&["topology", "history"]).expect_success();
    for part in ["web moves", "nobody confirmed it within 6 s", "runs"] {
        assert!(history.contains(part), "{part} in\n{history}");
    }
    let said = mesh.agentctl(&["topology", "rollback", &first.to_string()]).expect_success();
    assert!(said.contains("accepted") && port(&mesh) == 8080, "{said}");
    let said = mesh.agentctl(&["topology", "get"]).expect_success();
    assert!(said.contains(MESH), "{said}");
}

#[test]
fn operators_come_renew_themselves_and_go() {
    let options = MeshOptions { operator_lifetime: Some("2s"), ..MeshOptions::default() };
    let mesh = Mesh::with(&["app-1"], options);
    let folder = mesh.controller_node.folder().join("bob");
    let out = folder.to_string_lossy();
    let add = ["operator", "add", "bob", "--role", "apply", "--out", &out];
    let _ = mesh.agentctl(&add).expect_success();
    let as_bob = |arguments: &[&str]| {
        let mut command = mesh.controller_node.command(binary("agentctl"));
        command.args(arguments).arg("--credentials").arg(folder.join("operator.toml"));
        Output::of(command)
    };
    let certificate = || std::fs::read_to_string(folder.join("operator.pem")).unwrap();
    let topology = mesh.controller_node.folder().join("topology.toml");
    std::fs::write(&topology, "[host.app-1]\nsite = \"dc1\"\n").unwrap();
    let _ = as_bob(&["apply", "-f", &topology.to_string_lossy()]).expect_success();
    let first = certificate();
    // It expires, is renewed in passing, and expires again.
    for _ in 0..2 {
        let before = certificate();
        wait_for("it is renewed", Duration::from_secs(5), || {
            let _ = as_bob(&["status"]).expect_success();
            certificate() != before
        });
    }
    assert_ne!(certificate(), first);
    let said = as_bob(&["host", "remove", "app-1", "--yes"]).expect_failure();
    assert!(said.contains("role apply") && said.contains("needs admin"), "{said}");

    let _ = mesh.agentctl(&["operator", "revoke", "bob"]).expect_success();
    let said = as_bob(&["status"]).expect_failure();
    assert!(said.contains("revoked"), "{said}");
    let operators = mesh.agentctl(&["operator", "list", "-o", "json"]).json();
    let bob = operators.as_array().and_then(|all| all.iter().find(|one| one["name"] == "bob"));
    assert_eq!(bob.map(|bob| &bob["revoked_by"]), Some(&"admin".into()), "{operators}");
    let audit = mesh.agentctl(&["audit", "-o", "json"]).json();
    let acts: Vec<_> = audit
        .as_array()
        .unwrap()
        .iter()
        .map(|act| (&act["who"], &act["what"], &act["done"]))
        .collect();
    let told = |who: &str, what: &str, done: bool| {
        acts.contains(&(&who.into(), &what.into(), &done.into()))
    };
    assert!(
        told("bob", "apply a topology", true) && told("bob", "remove host app-1", false),
        "{audit}"
    );
    assert!(
        told("admin", "add operator bob (apply)", true)
            && told("admin", "revoke operator bob", true),
        "{audit}"
    );
}
