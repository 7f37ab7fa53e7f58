//! Hosts become members by token, and only by a good one.

use std::time::Duration;

use isthmus_netns_tests::{Mesh, MeshOptions, wait_for};

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
