//! Traffic between hosts: encrypted, tagged, allowed or not.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use isthmus_netns_tests::{Capture, Mesh, MeshOptions, Output, Process, wait_for};

const CANARY: &str = "canary-4f1d0c7e-of-the-body";
const WEB: u32 = 40_001;
const CLIENT: u32 = 40_002;
const OTHER: u32 = 40_003;

const TOPOLOGY: &str = r#"
[host.app-1]
[host.web-1]

[service.web]
namespace = "prod"
port = 8080
hosts = ["web-1"]
workload = { user = "40001" }

[service.client]
namespace = "prod"
port = 9000
hosts = ["app-1"]
workload = { user = "40002" }

[service.other]
namespace = "prod"
port = 9001
hosts = ["app-1"]
workload = { user = "40003" }

[[allow]]
name = "client reads web"
from = "service:client"
to = "service:web"
"#;

#[test]
fn a_page_comes_by_name_over_both_families_and_no_byte_in_plaintext() {
    let mesh = Mesh::new(&["app-1", "web-1"]);
    a_page_comes_encrypted(&mesh);
}

#[test]
fn a_page_comes_over_an_ipv6_underlay() {
    let mesh = Mesh::with(
        &["app-1", "web-1"],
        MeshOptions { ipv6_underlay: true, ..MeshOptions::default() },
    );
    a_page_comes_encrypted(&mesh);
    let peers = mesh.host("app-1").agentctl(&["peers", "-o", "json"]).json();
    let endpoint = peers.as_array().and_then(|all| all[0]["endpoint"].as_str()).expect("a peer");
    assert!(endpoint.starts_with("[fd09::"), "{endpoint}");
}

fn a_page_comes_encrypted(mesh: &Mesh) {
    mesh.apply(TOPOLOGY);
    let (app, web) = (mesh.host("app-1"), mesh.host("web-1"));
    let _nginx = web.nginx(WEB, 8080, "");
    std::fs::write(web.web_root(8080).join("index.html"), CANARY)
        .expect("the lab's folder can be written");
    let capture = Capture::start(&web.node, "eth0");

    for family in ["-4", "-6"] {
        let page =
            app.curl(CLIENT, &[family, "http://web.prod.mesh.internal:8080/"]).expect_success();
        assert_eq!(page, CANARY);
    }

    let recording = capture.finish();
    assert!(recording.len() > 1_000, "the capture saw the tunnel: {} bytes", recording.len());
    assert!(!Capture::contains(&recording, CANARY.as_bytes()), "the body was on the wire");
    assert!(!Capture::contains(&recording, b"GET / HTTP"), "the request was on the wire");
}

#[test]
fn two_users_of_one_host_are_two_services() {
    let mesh = Mesh::new(&["app-1", "web-1"]);
    mesh.apply(TOPOLOGY);
    let (app, web) = (mesh.host("app-1"), mesh.host("web-1"));
    let _nginx = web.nginx(WEB, 8080, "return 200 ok;");
    let url = "http://web.prod.mesh.internal:8080/";

    assert_eq!(app.curl(CLIENT, &["-4", url]).expect_success(), "ok");
    let refused = app.curl(OTHER, &["-4", url]);
    assert_eq!(refused.code(), Some(7), "a RST refuses it at once: {refused}");
    let flow = app.wait_for_flow("the denied flow", |flow| flow["verdict"] == "deny");
    assert_eq!(
        (flow["from"].as_str(), flow["rule"].as_str()),
        (Some("service:other"), Some("default"))
    );

    // Allowed too, it has an address of its own.
    mesh.apply(
        &TOPOLOGY
            .replace("from = \"service:client\"", "from = [\"service:client\", \"service:other\"]"),
    );
    assert_eq!(app.curl(OTHER, &["-4", url]).expect_success(), "ok");
    // nginx answers first, and logs then.
    wait_for("both addresses are in the log", Duration::from_secs(5), || {
        let log = web.nginx_log(8080);
        let sources: BTreeSet<_> = log.lines().filter_map(|it| it.split(' ').next()).collect();
        sources.len() == 2
    });

    // A process that is no service speaks as its host, which nothing allows.
    assert!(!app.curl(40_099, &["-4", url]).success());
    let flow = app.wait_for_flow("the host's flow", |flow| flow["from"] == "host:app-1");
    assert_eq!(flow["verdict"], "deny");
}

#[test]
fn virtual_addresses_are_balanced_over_the_workloads() {
    let mesh = Mesh::new(&["app-1", "web-1", "web-2"]);
    mesh.apply(
        &TOPOLOGY
            .replace("[host.web-1]", "[host.web-1]\n[host.web-2]")
            .replace("hosts = [\"web-1\"]", "hosts = [\"web-1\", \"web-2\", \"app-1\"]"),
    );
    let mut servers = Vec::new();
    for name in ["web-1", "web-2", "app-1"] {
        servers.push(mesh.host(name).nginx(WEB, 8080, &format!("return 200 '{name} ';")));
    }
    let app = mesh.host("app-1");
    for family in ["-4", "-6"] {
        let mut answers = String::new();
        for _ in 0..40 {
            answers += &app
                .curl(CLIENT, &[family, "http://web.prod.mesh.internal:8080/"])
                .expect_success();
        }
        for name in ["web-1", "web-2", "app-1"] {
            assert!(answers.contains(name), "{name} never answered ({family}): {answers}");
        }
    }
}

#[test]
fn dns_answers_both_ways_and_passes_on_the_rest() {
    let before = std::fs::read("/etc/resolv.conf").ok();
    let mesh = Mesh::new(&["app-1", "web-1"]);
    mesh.apply(TOPOLOGY);
    let app = mesh.host("app-1");
    let server = app.addresses().0;
    let dig =
        |question: &str| app.node.sh(&format!("dig +short +time=2 +tries=1 @{server} {question}"));
    let (v4, v6) = mesh.virtual_addresses("web");
    assert_eq!(dig("web.prod.mesh.internal A").trim(), v4.to_string());
    assert_eq!(dig("web.prod.mesh.internal AAAA").trim(), v6.to_string());
    assert_eq!(dig(&format!("-x {v4}")).trim(), "web.prod.mesh.internal.");
    assert_eq!(dig(&format!("-x {v6}")).trim(), "web.prod.mesh.internal.");
    let missing = app.node.sh(&format!("dig @{server} nothing.prod.mesh.internal"));
    assert!(missing.contains("NXDOMAIN"), "{missing}");
    assert_eq!(std::fs::read("/etc/resolv.conf").ok(), before, "nobody asked for a change");

    // Everything else goes to the host's resolver: here a program that knows one answer to all.
    let mut upstream = mesh.controller_node.command("python3");
    upstream.args(["-u", "-c", UPSTREAM]);
    let upstream = mesh.controller_node.spawn("upstream", upstream);
    wait_for("the upstream listens", Duration::from_secs(5), || {
        upstream.output().contains("ready")
    });
    assert_eq!(dig("elsewhere.example A").trim(), "192.0.2.77");
    assert!(!upstream.output().contains("mesh"), "a question about the mesh left it");
}

/// Looks a name up again and again, as any program does, and says what came of it and after how long.
const LOOK_UPS: &str = include_str!("programs/traffic_look_ups.py");

#[test]
fn a_name_that_is_looked_up_while_an_agent_restarts_is_found_late_and_never_missing() {
    let mut mesh = Mesh::new(&["app-1"]);
    mesh.apply(&TOPOLOGY.replace("hosts = [\"web-1\"]", "hosts = [\"app-1\"]"));
    let app = mesh.host("app-1");
    let (own4, own6) = app.addresses();
    let look_ups = [IpAddr::from(own4), IpAddr::from(own6)].map(|server| {
        let mut program = app.node.command_as(CLIENT, Some(server), "python3");
        program.env("RES_OPTIONS", "timeout:2 attempts:2").args(["-u", "-c", LOOK_UPS]);
        app.node.spawn(if server.is_ipv4() { "look-ups-4" } else { "look-ups-6" }, program)
    });
    let found = || look_ups.each_ref().map(|it| it.output().matches("found").count());
    let wait_for_more = || {
        let before = found();
        wait_for("the name is found", Duration::from_secs(10), || {
            found().iter().zip(before).all(|(now, before)| *now > before + 3)
        });
    };
    wait_for_more();
    let stop = |agent: &mut Process| {
        let _ = agent.terminate(Duration::from_secs(10));
    };
    for end in [stop, Process::kill] {
        let host = mesh.host_mut("app-1");
        end(host.agent());
        host.start_agent();
        wait_for_more();
    }
    for look_up in &look_ups {
        let said = look_up.output();
        assert!(!said.contains("FAILED"), "{said}");
        let times = said.lines().filter_map(|line| line.split(' ').nth(1)?.parse::<f64>().ok());
        let late = times.filter(|seconds| *seconds > 1.0).collect::<Vec<_>>();
        assert!((1..=2).contains(&late.len()) && late.iter().all(|it| *it < 4.0), "{late:?}");
    }
}

#[test]
fn a_host_behind_nat_speaks_first_and_is_answered() {
    let mut mesh = Mesh::new(&["web-1"]);
    mesh.add_host_behind_nat("app-1");
    mesh.join("app-1").expect_success_line();
    mesh.apply(TOPOLOGY);
    let (app, web) = (mesh.host("app-1"), mesh.host("web-1"));
    let _nginx = web.nginx(WEB, 8080, "return 200 ok;");
    let page = app.curl(CLIENT, &["-4", "http://web.prod.mesh.internal:8080/"]).expect_success();
    assert_eq!(page, "ok");
    let peers = web.agentctl(&["peers", "-o", "json"]).json();
    let endpoint = peers[0]["endpoint"].as_str().expect("the peer has been heard");
    assert!(endpoint.starts_with("10.9.0.200:"), "the router's address: {endpoint}");
}

#[test]
fn overlay_addresses_mean_nothing_on_the_underlay() {
    let mesh = Mesh::new(&["app-1", "web-1"]);
    // Whoever may reach the port by the underlay's own addresses isn't the question here.
    let topology = format!("[mesh]\nexposure = \"open\"\n{TOPOLOGY}");
    mesh.apply(&topology);
    let (app, web) = (mesh.host("app-1"), mesh.host("web-1"));
    let _nginx = web.nginx(WEB, 8080, "return 200 ok;");
    let neighbour = mesh.lab.node("neighbour");
    mesh.lab.plug(&neighbour, &mesh.switch, &["10.9.0.66/24".into(), "fd09::66/64".into()], 1500);
    let (own4, own6) = web.addresses();
    neighbour
        .sh(&format!("ip route add {own4} via 10.9.0.12 && ip -6 route add {own6} via fd09::12"));
    let knocks = |address: &str| neighbour.try_sh(&format!("nc -z -w 2 {address} 8080")).success();
    assert!(knocks("10.9.0.12"), "the port is open by the underlay's address");
    assert!(!knocks(&own4.to_string()) && !knocks(&own6.to_string()), "past tunnel and policy");

    // A local process that dials a workload directly proves nothing by the address it binds.
    mesh.apply(&topology.replace("port = 8080\n", "port = 8080\nprotocol = \"http\"\n"));
    let local = app_workload(&mesh, "client", "app-1");
    assert!(app.curl(CLIENT, &["-4", "http://web.prod.mesh.internal:8080/"]).success());
    let direct =
        app.node.try_sh(&format!("curl -sS -m 2 --interface {local} http://{local}:15001/"));
    assert!(!direct.success(), "{direct}");
}

/// The IPv4 address of a workload.
fn app_workload(mesh: &Mesh, name: &str, host: &str) -> String {
    let services = mesh.agentctl(&["service", "list", "-o", "json"]).json();
    let all = services.as_array().expect("a list");
    let service = all.iter().find(|one| one["name"] == name).expect("the service");
    let workloads = service["workloads"].as_array().expect("a list");
    let workload = workloads.iter().find(|one| one["host"] == host).expect("placed there");
    workload["ipv4"].as_str().expect("an address").to_owned()
}

#[test]
fn ping_and_explain_say_why() {
    let mesh = Mesh::new(&["app-1", "web-1"]);
    mesh.apply(TOPOLOGY);
    let app = mesh.host("app-1");
    let ping = app.agentctl(&["ping", "web-1", "-c", "2"]).expect_success();
    assert!(ping.contains("web-1"), "{ping}");

    let allowed = app.agentctl(&["explain", "service:client", "service:web"]).expect_success();
    assert!(
        allowed.contains("client reads web") && allowed.contains("topology.toml:"),
        "{allowed}"
    );
    let denied = app.agentctl(&["explain", "service:other", "service:web"]);
    assert_eq!(denied.code(), Some(1), "{denied}");
    assert!(denied.stdout.contains("default"), "{denied}");
}

#[test]
fn a_small_underlay_carries_a_large_transfer_and_answers_too_big() {
    let mesh = Mesh::with(&["app-1", "web-1"], MeshOptions { mtu: 1280, ..MeshOptions::default() });
    // The agents' own links look fine; only the path between them is small.
    for name in ["app-1", "web-1"] {
        mesh.host(name).node.sh("ip link set eth0 mtu 1500");
        mesh.switch.sh(&format!("ip link set p-{name} mtu 1280"));
    }
    mesh.apply(TOPOLOGY);
    let (app, web) = (mesh.host("app-1"), mesh.host("web-1"));
    let _nginx = web.nginx(WEB, 8080, "");
    let body = "0123456789abcdef".repeat(10 * 65_536);
    std::fs::write(web.web_root(8080).join("large"), &body)
        .expect("the lab's folder can be written");
    for family in ["-4", "-6"] {
        let sum = app
            .curl(CLIENT, &[family, "--max-time", "20", "http://web.prod.mesh.internal:8080/large"])
            .expect_success();
        assert!(sum == body, "{} of {} bytes arrived", sum.len(), body.len());
    }
    datagram_too_large_is_answered(&mesh);
}

fn datagram_too_large_is_answered(mesh: &Mesh) {
    let (app, web) = (mesh.host("app-1"), mesh.host("web-1"));
    // Hosts may ping hosts: an echo of 1,300 bytes with DF doesn't fit a path of 1,280.
    let target = web.addresses().0;
    wait_for("the path's size is known", Duration::from_secs(10), || {
        let peers = app.agentctl(&["peers", "-o", "json"]).json();
        peers.as_array().is_some_and(|all| all.iter().any(|peer| peer["path_mtu"] == 1280))
    });
    let ping = app.node.try_sh(&format!("ping -M do -c 1 -W 2 -s 1300 {target}"));
    let said = format!("{}{}", ping.stdout, ping.stderr);
    assert!(said.contains("Frag needed") || said.contains("message too long"), "{said}");
    // One whose sender allows fragments gets through: the tunnel's own packets are split on the way.
    for name in ["app-1", "web-1"] {
        mesh.host(name).node.sh("ip link set eth0 mtu 1280");
    }
    app.node.sh(&format!("ping -M dont -c 1 -W 2 -s 1300 {target}"));
    let output: Output = udp_send_errors(mesh);
    assert!(output.stdout.contains("EMSGSIZE"), "{output}");
}

/// Sends connected UDP datagrams with DF until the kernel has learnt the path's size.
fn udp_send_errors(mesh: &Mesh) -> Output {
    let app = mesh.host("app-1");
    let program = r#"
import errno, socket, sys, time
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_MTU_DISCOVER = DO
sock.connect((sys.argv[1], 8080))
deadline = time.monotonic() + 5
while time.monotonic() < deadline:
    try:
        sock.send(b"x" * 1300)
    except OSError as error:
        if error.errno == errno.EMSGSIZE:
            print("EMSGSIZE")
            break
        if error.errno != errno.ECONNREFUSED:
            raise
"#;
    let udp = TOPOLOGY.replace(
        "[service.client]",
        "[service.sink]\nnamespace = \"prod\"\nport = 8080\nprotocol = \"udp\"\nhosts = [\"web-1\"]\n\n[service.client]",
    ) + "\n[[allow]]\nname = \"client feeds sink\"\nfrom = \"service:client\"\nto = \"service:sink\"\n";
    mesh.apply(&udp);
    let sink = mesh.virtual_addresses("sink").0;
    let mut command = app.command_as(CLIENT, "python3");
    command.args(["-c", program, &sink.to_string()]);
    Output::of(command)
}

/// A DNS server that answers 192.0.2.77 to everything, and prints what it was asked.
const UPSTREAM: &str = include_str!("programs/traffic_upstream.py");
