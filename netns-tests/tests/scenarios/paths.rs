//! Path MTU: discovered, used, and noticed when it changes.

use std::time::Duration;

use isthmus_netns_tests::{Mesh, MeshOptions, wait_for};

const TOPOLOGY: &str = r#"
[host.app-1]
[host.web-1]

[service.sink]
port = 7000
hosts = ["web-1"]

[[allow]]
name = "hosts send"
from = "host:*"
to = "service:sink"
"#;

/// Sends this many bytes, and waits until the other side has them all.
const SEND: &str = include_str!("programs/paths_send.py");

/// Answers with how many bytes it got.
const SINK: &str = include_str!("programs/paths_sink.py");

fn path_mtu(mesh: &Mesh, host: &str) -> u64 {
    let peers = mesh.host(host).agentctl(&["peers", "-o", "json"]).json();
    peers[0]["path_mtu"].as_u64().unwrap_or_default()
}

fn answers(mesh: &Mesh, size: usize) -> bool {
    let (web, _) = mesh.host("web-1").addresses();
    let line = format!("ping -M do -c 1 -W 2 -s {size} {web}");
    mesh.host("app-1").node.try_sh(&line).success()
}

#[test]
fn jumbo_frames_are_found_and_a_path_that_narrows_in_silence_is_noticed() {
    let mesh = Mesh::with(&["app-1", "web-1"], MeshOptions { mtu: 9000, ..MeshOptions::default() });
    mesh.apply(TOPOLOGY);
    let (app, web) = (mesh.host("app-1"), mesh.host("web-1"));
    assert_eq!(app.status()["mtu"], 8920);
    wait_for("an answer through the tunnel", Duration::from_secs(5), || answers(&mesh, 56));
    wait_for("jumbo frames", Duration::from_secs(5), || path_mtu(&mesh, "app-1") == 9000);
    assert!(answers(&mesh, 8_800), "a jumbo frame");

    // A switch on the way drops large packets and says nothing. It must see each by itself.
    for host in [app, web] {
        host.node.sh("ethtool -K eth0 tx-udp-segmentation off gso off gro off");
    }
    let server = web.node.folder().join("sink.py");
    let client = app.node.folder().join("send.py");
    std::fs::write(&server, SINK).expect("the lab's folder can be written");
    std::fs::write(&client, SEND).expect("the lab's folder can be written");
    let sink = web.node.spawn_sh("sink", &format!("exec python3 {}", server.display()));
    wait_for("the sink is ready", Duration::from_secs(10), || sink.output().contains("ready"));
    let services = mesh.agentctl(&["service", "list", "-o", "json"]).json();
    let address = services[0]["workloads"][0]["ipv4"].as_str().expect("a workload");
    let send = |bytes: u64| {
        app.node.sh(&format!("python3 {} {address} {bytes}", client.display())).trim().to_owned()
    };
    assert_eq!(send(10_000_000), "10000000");
    let narrow = |length: u32| {
        mesh.switch.sh(&format!(
            "nft add table bridge narrow && \
             nft add chain bridge narrow sizes '{{ type filter hook forward priority 0; }}' && \
             nft add rule bridge narrow sizes ip length '>' {length} counter drop"
        ));
    };
    narrow(1400);
    assert!(!answers(&mesh, 8_800), "the switch drops it");
    // TCP comes through once the path is known: it neither hangs nor fails.
    assert_eq!(send(1_000_000), "1000000");
    wait_for("the narrow path", Duration::from_secs(20), || path_mtu(&mesh, "app-1") == 1380);
    assert!(answers(&mesh, 1_200));
}

#[test]
fn a_larger_overlay_than_the_underlay_is_a_choice() {
    let options = MeshOptions { settings: "mtu = 4000", ..MeshOptions::default() };
    let mesh = Mesh::with(&["app-1", "web-1"], options);
    mesh.apply(TOPOLOGY);
    assert_eq!(mesh.host("app-1").status()["mtu"], 4000);
    wait_for("an answer through the tunnel", Duration::from_secs(5), || answers(&mesh, 56));
    wait_for("a measured path", Duration::from_secs(5), || path_mtu(&mesh, "app-1") == 1500);
    let (web, _) = mesh.host("web-1").addresses();
    // What is too big is answered, and fragments pass.
    let told = mesh.host("app-1").node.try_sh(&format!("ping -M do -c 2 -W 2 -s 3000 {web}"));
    assert!(!told.success(), "{told:?}");
    assert!(format!("{told:?}").contains("mtu"), "{told:?}");
    let line = format!("ping -M dont -c 1 -W 2 -s 3000 {web}");
    assert!(mesh.host("app-1").node.try_sh(&line).success());
}
