//! Packets that stand for many, on real kernels: what comes out is what went in.

use std::time::Duration;

use isthmus_netns_tests::{Mesh, MeshOptions, Node, wait_for};

const TOPOLOGY: &str = r#"
[host.app-1]
[host.web-1]

[service.echo]
port = 7000
hosts = ["web-1"]

[service.echo-udp]
port = 7000
protocol = "udp"
hosts = ["web-1"]
workload = { user = "0" }

[[allow]]
name = "hosts ask"
from = "host:*"
to = ["service:echo", "service:echo-udp"]
"#;

/// Answers TCP with what it gets, and UDP likewise, one for one.
const SERVER: &str = include_str!("programs/offload_server.py");

/// Sends, and compares what comes back; prints how much that was.
const CLIENT: &str = include_str!("programs/offload_client.py");

fn start(node: &Node, name: &str, program: &str) -> String {
    let file = node.folder().join(name);
    std::fs::write(&file, program).expect("the lab's folder can be written");
    file.display().to_string()
}

/// The workloads' addresses of both services, IPv4 then IPv6.
fn addresses(mesh: &Mesh) -> Vec<[String; 2]> {
    let services = mesh.agentctl(&["service", "list", "-o", "json"]).json();
    let address = |service: usize, family: &str| {
        services[service]["workloads"][0][family].as_str().expect("a workload").to_owned()
    };
    ["ipv4", "ipv6"].map(|family| [address(0, family), address(1, family)]).into()
}

/// `largest` is what datagrams may measure without being told that the path is narrower.
fn everything_comes_back(options: MeshOptions, largest: usize) -> Mesh {
    let is_wireguard = options.settings.contains("off");
    let mesh = Mesh::with(&["app-1", "web-1"], options);
    mesh.apply(TOPOLOGY);
    let (app, web) = (mesh.host("app-1"), mesh.host("web-1"));
    let server = start(&web.node, "server.py", SERVER);
    let client = start(&app.node, "client.py", CLIENT);
    let addresses = addresses(&mesh);
    let all: Vec<String> = addresses
        .iter()
        .flat_map(|[tcp, udp]| [format!("tcp={tcp}"), format!("udp={udp}")])
        .collect();
    let running = web.node.spawn_sh("server", &format!("exec python3 {server} {}", all.join(" ")));
    wait_for("the server is ready", Duration::from_secs(10), || running.output().contains("ready"));
    let ask = |kind: &str, address: &str, argument: usize| {
        app.node.sh(&format!("python3 {client} {kind} {address} {argument}")).trim().to_owned()
    };
    for [tcp, udp] in &addresses {
        assert_eq!(ask("tcp", tcp, 20_000_000), "20000000");
        for size in [0, 1, 7, 1_391, 1_393, 9_000, 60_000].into_iter().filter(|it| *it <= largest) {
            assert_eq!(ask("datagram", udp, size), size.to_string());
        }
        for size in [1, 100, 1_100] {
            assert_eq!(ask("segments", udp, size), (size * 20 + 7).to_string());
        }
    }
    // It went by large packets, and none was lost on the way.
    let status = app.status();
    assert!(status["notes"].to_string().contains("TUN offload on (TCP, UDP)"), "{status}");
    for host in [app, web] {
        let peers = host.agentctl(&["peers", "-o", "json"]).json();
        assert_eq!(peers[0]["cipher"] == "wireguard", is_wireguard, "{peers}");
        let metrics = host.node.sh("curl -sS --fail http://127.0.0.1:9464/metrics");
        for name in ["device_refused_packets", "device_strange_frames"] {
            let none = format!("isthmus_{name}_total 0\n");
            assert!(metrics.contains(&none), "{none} isn't among {metrics}");
        }
    }
    mesh
}

#[test]
fn flows_spread_over_the_lanes_and_stay_in_theirs() {
    let options = MeshOptions { settings: "lanes = 3", ..MeshOptions::default() };
    let mesh = everything_comes_back(options, usize::MAX);
    for host in ["app-1", "web-1"].map(|name| mesh.host(name)) {
        for lane in 0..3 {
            let lane = format!("lane=\"{lane}\"");
            for name in ["isthmus_lane_messages_total", "isthmus_lane_frames_total"] {
                let read = host.metric(name, &lane);
                assert!(read > 0.0, "{name} of {lane}: {read}");
            }
        }
    }
    // The device is closed with all of its queues, and a new agent has it again.
    let mut mesh = mesh;
    let app = mesh.host_mut("app-1");
    app.agent().terminate(Duration::from_secs(5));
    app.start_agent();
    wait_for("the device is there again", Duration::from_secs(5), || {
        mesh.host("app-1").status()["notes"].to_string().contains("3 lanes")
    });
}

#[test]
fn what_comes_out_is_what_went_in_by_bulk_sessions() {
    let _ = everything_comes_back(MeshOptions::default(), usize::MAX);
}

#[test]
fn what_comes_out_is_what_went_in_by_wireguard_sessions() {
    let options = MeshOptions { settings: "bulk = \"off\"", ..MeshOptions::default() };
    let _ = everything_comes_back(options, usize::MAX);
}

#[test]
fn what_comes_out_is_what_went_in_by_a_narrow_path() {
    let _ = everything_comes_back(MeshOptions { mtu: 1280, ..MeshOptions::default() }, 1_100);
}

#[test]
fn agents_choose_the_cipher_that_both_have() {
    let mesh = Mesh::with(
        &["app-1", "web-1"],
        MeshOptions { settings: "bulk = \"chacha20-poly1305\"", ..MeshOptions::default() },
    );
    mesh.apply(TOPOLOGY);
    let app = mesh.host("app-1");
    let (web, _) = mesh.host("web-1").addresses();
    // Where a host that has just joined is comes with a revision of its own.
    wait_for("an answer through the tunnel", Duration::from_secs(5), || {
        app.node.try_sh(&format!("ping -c 1 -W 5 {web}")).success()
    });
    wait_for("bulk sessions both ways", Duration::from_secs(5), || {
        ["app-1", "web-1"].iter().all(|name| {
            let peers = mesh.host(name).agentctl(&["peers", "-o", "json"]).json();
            peers[0]["cipher"] == "chacha20-poly1305"
        })
    });
}
