//! Hosts become members by token, and only by a good one.

use std::time::Duration;

use isthmus_netns_tests::{Mesh, MeshOptions, Output, binary, wait_for};

#[test]
fn three_hosts_join_in_under_two_seconds_each() {
    let mut mesh = Mesh::empty(MeshOptions::default());
    for name in ["app-1", "app-2", "web-1"] {
        mesh.add_host(name);
        let joined = mesh.join(name);
        let took = joined.took;
        joined.expect_success_line();
        assert!(took < Duration::from_secs(2), "{name} took {took:?}");
        assert!(mesh.host(name).node.sh("ip -br link show isth0").contains("isth0"));
    }
    let hosts = mesh.status()["hosts"].as_array().expect("a list").clone();
    assert_eq!(hosts.len(), 3);
    assert!(hosts.iter().all(|host| host["connected"] == true), "{hosts:?}");
}

#[test]
fn a_bad_token_is_refused_with_the_reason() {
    let mut mesh = Mesh::empty(MeshOptions::default());
    mesh.add_host("app-1");
    mesh.add_host("app-2");
    let refused =
        |mesh: &Mesh, token: &str| mesh.host("app-1").join(token, "app-1").expect_failure();

    let garbage = refused(&mesh, "isthmus1.AAAA");
    assert!(garbage.contains("damaged"), "{garbage}");

    let good = mesh.token(&[]);
    let wrong = with_other_secret(&good);
    let said = refused(&mesh, &wrong);
    assert!(said.contains("secret"), "{said}");

    let short = mesh.token(&["--expires", "1s"]);
    wait_for("the token expires", Duration::from_secs(5), || {
        let tokens = mesh.agentctl(&["token", "list", "-o", "json"]).json();
        tokens.as_array().is_some_and(|all| all.iter().any(|token| token["state"] == "expired"))
    });
    let said = refused(&mesh, &short);
    assert!(said.contains("expired"), "{said}");

    let _ = mesh.host("app-2").join(&good, "app-2").expect_success();
    let said = refused(&mesh, &good);
    assert!(said.contains("used up"), "{said}");

    let revoked = mesh.token(&[]);
    let id = newest_valid_token(&mesh);
    let _ = mesh.agentctl(&["token", "revoke", &id]).expect_success();
    let said = refused(&mesh, &revoked);
    assert!(said.contains("revoked"), "{said}");

    let other = Mesh::empty(MeshOptions::default());
    let foreign = other.token(&[]);
    let said = refused(&mesh, &foreign);
    assert!(said.contains("CA"), "{said}");

    assert_eq!(mesh.status()["hosts"].as_array().map(Vec::len), Some(1));
}

#[test]
fn certificates_renew_themselves() {
    let mut mesh = Mesh::with(
        &["app-1"],
        MeshOptions { certificate_lifetime: Some("8s"), ..MeshOptions::default() },
    );
    let expires = |mesh: &Mesh| mesh.host("app-1").status()["certificate_expires"].to_string();
    let first = expires(&mesh);
    for _ in 0..2 {
        let before = expires(&mesh);
        wait_for("the certificate is renewed", Duration::from_secs(12), || {
            expires(&mesh) != before
        });
    }
    assert_ne!(first, expires(&mesh));
    assert_eq!(mesh.host("app-1").status()["connected"], true);
    assert!(mesh.host_mut("app-1").agent().is_running());
}

#[test]
fn a_host_leaves_and_keeps_nothing_and_may_come_again() {
    const MESH: &str = "[host.app-1]\n[host.web-1]\n[service.web]\nport = 8080\nprotocol = \"http\"\nhosts = [\"web-1\"]\n\
                        workload = { user = \"33\" }\n[[allow]]\nname = \"all\"\nfrom = \"host:app-1\"\nto = \"service:web\"\n";
    let mut mesh = Mesh::new(&["app-1", "web-1"]);
    let _nginx = mesh.host("web-1").nginx(33, 8080, "location / { return 200 hello; }");
    let kernel = |mesh: &Mesh| {
        mesh.host("web-1").node.sh("ip -br link; ip rule; ip -6 rule; nft list ruleset; \
             for f in -4 -6; do ip $f route show table all | grep -v 'multicast\\|fe80'; done")
    };
    let ours = |state: &str| {
        ["isth", "100.64", "lookup 151", "unreachable 1"].map(|it| state.contains(it))
    };
    let kept = |mesh: &Mesh| {
        mesh.host("web-1").node.sh(&format!("ls {}", mesh.host("web-1").state().display()))
    };
    let served = |mesh: &Mesh| {
        mesh.host("app-1").curl(0, &["http://web.default.mesh.internal:8080/"]).stdout == "hello"
    };
    mesh.apply(MESH);
    wait_for("web-1 serves", Duration::from_secs(5), || served(&mesh));
    assert_eq!(ours(&kernel(&mesh)), [true; 4]);

    let said = mesh.host("web-1").agentctl(&["leave"]).expect_failure();
    assert!(said.contains("workload of service web") && said.contains("say --yes"), "{said}");
    assert!(served(&mesh));
    let said = mesh.host("web-1").agentctl(&["leave", "--yes"]).expect_success();
    assert!(said.contains("left mesh corp: host web-1 is no member any more"), "{said}");
    assert_eq!((ours(&kernel(&mesh)), &*kept(&mesh)), ([false; 4], "lock\n"));
    let status = mesh.status();
    assert_eq!(status["hosts"].as_array().map(Vec::len), Some(1), "{status}");
    assert_eq!(status["problems"][0]["code"], "host-left", "{status}");
    wait_for("its peer drops it", Duration::from_secs(3), || {
        let peers = mesh.host("app-1").agentctl(&["peers", "-o", "json"]).json();
        !peers.to_string().contains("web-1")
    });
    let said = mesh.host("web-1").agentctl(&["leave", "--yes"]).expect_failure();
    assert!(said.contains("not a member"), "{said}");

    mesh.join("web-1").expect_success_line();
    wait_for("it serves again", Duration::from_secs(10), || served(&mesh));

    // No agent runs, nor a controller: as when the package is purged, after a crash.
    mesh.host_mut("web-1").agent().kill();
    mesh.controller().kill();
    let node = &mesh.host("web-1").node;
    let mut leave = node.command(binary("isthmus-agent"));
    leave.args(["leave", "--yes", "--settings"]).arg(node.folder().join("agent.toml"));
    let output = Output::of(leave);
    assert!(output.success() && output.stderr.contains("`agentctl host remove web-1`"), "{output}");
    assert_eq!((ours(&kernel(&mesh)), &*kept(&mesh)), ([false; 4], "lock\n"));
}

/// The same token id with another secret: bytes 8 to 39 of the body.
fn with_other_secret(token: &str) -> String {
    let (prefix, body) = token.trim().split_once('.').expect("a token has a prefix");
    let mut characters: Vec<char> = body.chars().collect();
    for character in &mut characters[20..30] {
        *character = if *character == 'A' { 'B' } else { 'A' };
    }
    format!("{prefix}.{}", characters.into_iter().collect::<String>())
}

fn newest_valid_token(mesh: &Mesh) -> String {
    let tokens = mesh.agentctl(&["token", "list", "-o", "json"]).json();
    let valid =
        tokens.as_array().and_then(|all| all.iter().find(|token| token["state"] == "valid"));
    valid.and_then(|token| token["id"].as_str()).expect("a valid token").to_owned()
}
