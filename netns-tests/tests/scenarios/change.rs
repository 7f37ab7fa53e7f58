//! Changes of the mesh's configuration and parts under traffic.

use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use isthmus_netns_tests::{Host, Mesh, Node, Output, Process, binary, wait_for};

const WEB: u32 = 40_001;
const CLIENT: u32 = 40_002;
const SECOND: Duration = Duration::from_secs(1);

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
"#;

const ALLOW: &str = r#"
[[allow]]
name = "client reads web"
from = "service:client"
to = "service:web"
"#;

/// Sends a line every 10 ms over one TCP connection and prints when its echo comes back.
const CLIENT_PROGRAM: &str = include_str!("programs/change_client.py");

const ECHO_PROGRAM: &str = include_str!("programs/change_echo.py");

struct Conversation {
    client: Process,
    _server: Process,
}

impl Conversation {
    fn start(mesh: &Mesh) -> Self {
        let web = mesh.host("web-1");
        let server = web.node.spawn("echo", python(web, WEB, ECHO_PROGRAM, &[]));
        wait_for("the echo server listens", Duration::from_secs(5), || {
            !web.node.sh("ss -Hltn 'sport = :8080'").is_empty()
        });
        let client = Self::client(mesh, mesh.virtual_addresses("web").0);
        let conversation = Self { client, _server: server };
        conversation.goes_on("lines are echoed");
        conversation
    }

    fn client(mesh: &Mesh, address: Ipv4Addr) -> Process {
        let app = mesh.host("app-1");
        app.node.spawn("client", python(app, CLIENT, CLIENT_PROGRAM, &[&address.to_string()]))
    }

    fn lines(&self) -> usize {
        self.client.output().lines().count()
    }

    #[track_caller]
    fn goes_on(&self, what: &str) {
        let before = self.lines();
        wait_for(what, Duration::from_secs(10), || self.lines() >= before + 20);
    }
}

/// Echo requests one way, for five seconds, watched where they arrive.
struct OneWay {
    ping: Process,
    arrivals: Process,
}

impl OneWay {
    fn start(from: &Node, source: String, to: &Node, target: String) -> Self {
        let watch =
            format!("exec tcpdump -l -n -tt --immediate-mode -i isth0 icmp and src host {source}");
        let arrivals = to.spawn_sh("arrivals", &watch);
        wait_for("tcpdump listens", Duration::from_secs(5), || {
            arrivals.output().contains("listening")
        });
        let ping = from.spawn_sh("one-way", &format!("exec ping -i 0.02 -c 250 {target}"));
        wait_for("echoes arrive", Duration::from_secs(5), || {
            arrivals.output().lines().count() > 20
        });
        Self { ping, arrivals }
    }

    /// When the last one arrived, after all were sent.
    fn last_arrival(&mut self) -> SystemTime {
        self.ping.wait(Duration::from_secs(30));
        let output = self.arrivals.output();
        let mut seconds =
            output.lines().filter_map(|line| line.split(' ').next()?.parse::<f64>().ok());
        SystemTime::UNIX_EPOCH
            + Duration::from_secs_f64(seconds.next_back().expect("echoes arrived"))
    }
}

fn python(host: &Host, user: u32, program: &str, arguments: &[&str]) -> Command {
    let mut command = host.node.command_as(user, None, "python3");
    command.args(["-u", "-c", program]).args(arguments);
    command
}

fn mesh_with_conversation() -> (Mesh, Conversation) {
    let mesh = Mesh::new(&["app-1", "web-1"]);
    mesh.apply(&format!("{TOPOLOGY}{ALLOW}"));
    let conversation = Conversation::start(&mesh);
    (mesh, conversation)
}

#[test]
fn taking_an_allow_away_cuts_a_live_flow_and_an_equal_file_changes_nothing() {
    let (mesh, mut conversation) = mesh_with_conversation();
    let revision = mesh.revision();
    let said = mesh.apply(&format!("{TOPOLOGY}{ALLOW}"));
    assert!(said.contains("nothing to change") || said.contains("unchanged"), "{said}");
    assert_eq!(mesh.revision(), revision);
    conversation.goes_on("lines are echoed after an equal file");

    let cut = Instant::now();
    mesh.apply(TOPOLOGY);
    conversation.client.wait(Duration::from_secs(5));
    assert!(cut.elapsed() < SECOND, "cut after {:?}", cut.elapsed());
    let said = conversation.client.output();
    assert!(said.contains("reset") || said.contains("refused"), "{said}");
}

#[test]
fn the_controller_may_die_and_return() {
    let (mut mesh, mut conversation) = mesh_with_conversation();
    mesh.controller().kill();
    conversation.goes_on("lines are echoed without a controller");
    wait_for("the agent notices", Duration::from_secs(30), || {
        mesh.host("web-1").status()["connected"] == false
    });

    // An agent that restarts meanwhile comes back from its disk.
    let revision = mesh.host("app-1").status()["revision"].clone();
    mesh.host_mut("app-1").agent().terminate(Duration::from_secs(10));
    mesh.host_mut("app-1").start_agent();
    wait_for("it works by its snapshot", Duration::from_secs(5), || {
        mesh.host("app-1").status()["revision"] == revision
    });
    assert_eq!(mesh.host("app-1").status()["connected"], false);
    conversation.goes_on("the same connection goes on after the agent's restart");
    assert!(conversation.client.is_running());

    mesh.start_controller();
    for name in ["app-1", "web-1"] {
        wait_for("agents come back by themselves", Duration::from_secs(15), || {
            mesh.host(name).status()["connected"] == true
        });
    }
    conversation.goes_on("lines are echoed with the controller back");
    mesh.apply(TOPOLOGY);
    conversation.client.wait(Duration::from_secs(3));
}

#[test]
fn no_packet_is_lost_when_the_controller_dies() {
    let (mut mesh, conversation) = mesh_with_conversation();
    let target = mesh.host("web-1").addresses().0;
    let app = mesh.host("app-1").node.clone();
    app.sh(&format!("ping -c 1 -W 2 {target}"));
    let mut ping = app.spawn_sh("ping", &format!("exec ping -i 0.01 -c 300 -W 1 {target}"));
    wait_for("pings pass", Duration::from_secs(5), || ping.output().lines().count() > 50);
    mesh.controller().kill();
    ping.wait(Duration::from_secs(20));
    conversation.goes_on("lines are echoed");
    let page =
        mesh.host("app-1").curl(CLIENT, &["-m", "1", "telnet://web.prod.mesh.internal:8080"]);
    assert_eq!(page.code(), Some(28), "a new flow is taken: {page}");
    let said = ping.output();
    assert!(said.contains("300 received, 0% packet loss"), "{said}");
}

#[test]
fn tunnel_keys_change_under_traffic_and_nothing_is_lost() {
    let (mut mesh, mut conversation) = mesh_with_conversation();
    let target = mesh.host("web-1").addresses().0;
    let app = mesh.host("app-1").node.clone();
    let key = |mesh: &Mesh, host: &str| {
        let shown = mesh.agentctl(&["host", "show", host, "-o", "json"]).json();
        (shown["public_key"].to_string(), shown["former_key_until"].is_string())
    };
    let before = key(&mesh, "web-1");
    let mut ping = app.spawn_sh("ping", &format!("exec ping -i 0.01 -c 400 -W 1 {target}"));
    wait_for("pings pass", Duration::from_secs(5), || ping.output().lines().count() > 50);
    let handshakes = |mesh: &Mesh| {
        let done = |label| mesh.host("app-1").metric("isthmus_handshakes_total", label);
        done("answered") + done("completed")
    };
    let shaken = handshakes(&mesh);
    for host in ["web-1", "app-1"] {
        let said = mesh.agentctl(&["host", "rotate-key", host]).expect_success();
        assert!(said.contains(&format!("host {host} has the tunnel key")), "{said}");
    }
    let after = key(&mesh, "web-1");
    assert!(after.0 != before.0 && (before.1, after.1) == (false, true), "{before:?} {after:?}");
    wait_for("the new keys are used", Duration::from_secs(5), || handshakes(&mesh) > shaken);
    ping.wait(Duration::from_secs(20));
    let said = ping.output();
    assert!(said.contains("400 received, 0% packet loss"), "{said}");
    conversation.goes_on("lines are echoed");

    // Whoever starts anew has both keys, and so have the others.
    let next = mesh.host("web-1").state().join("wireguard.next");
    let mode = std::fs::metadata(&next).expect("it is kept beside the former").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    mesh.controller().kill();
    mesh.host_mut("web-1").agent().kill();
    mesh.host_mut("web-1").start_agent();
    conversation.goes_on("the same connection goes on");
    assert!(conversation.client.is_running());
    let codes = mesh.host("web-1").status()["problems"].to_string();
    assert!(!codes.contains("tunnel-key-foreign"), "{codes}");
}

#[test]
fn an_agent_may_die_and_leaves_only_the_guard_behind_when_it_stops() {
    let (mut mesh, mut conversation) = mesh_with_conversation();
    // All that an agent could leave: devices, addresses, routes and rules of both families, filters.
    let state = |mesh: &Mesh| {
        mesh.host("web-1").node.sh(
            "ip -br link show; ip -br addr show; ip route show table all; ip -6 route show table all; \
             ip rule show; ip -6 rule show; nft list ruleset",
        )
    };
    let overlay = mesh.host("web-1").addresses().1.to_string();
    let prefix = &overlay[..overlay.find("::").expect("the host's number begins with zeros")];
    let running = state(&mesh);
    assert!([prefix, "isth0", "100.64"].iter().all(|word| running.contains(word)), "{running}");

    mesh.host_mut("web-1").agent().kill();
    let died = Instant::now();
    mesh.host_mut("web-1").start_agent();
    conversation.goes_on("the same connection goes on");
    assert!(died.elapsed() < Duration::from_secs(5), "healed after {:?}", died.elapsed());
    assert!(conversation.client.is_running());
    assert!(
        mesh.host("app-1")
            .curl(CLIENT, &["-m", "1", "telnet://web.prod.mesh.internal:8080"])
            .code()
            == Some(28)
    );

    let status = mesh.host_mut("web-1").agent().terminate(Duration::from_secs(10));
    assert!(status.success(), "{status}");
    let guarded = state(&mesh);
    assert!(guarded.contains("unreachable 100.64.0.0/10"), "{guarded}");
    assert!(guarded.contains("table inet isthmus-isth0"), "{guarded}");
    let node = &mesh.host("web-1").node;
    let mut lower = node.command(binary("isthmus-agent"));
    lower.args(["guard", "--lower", "--settings"]).arg(node.folder().join("agent.toml"));
    let _ = Output::of(lower).expect_success();
    let stopped = state(&mesh);
    assert!(![prefix, "isth0", "100.64"].iter().any(|word| stopped.contains(word)), "{stopped}");
    // The kernel's own: local, main and default for IPv4, local and main for IPv6.
    assert_eq!(stopped.matches("lookup").count(), 5, "{stopped}");
    assert!(!stopped.contains("table inet") && !stopped.contains("table ip "), "{stopped}");
}

#[test]
fn a_removed_host_is_cut_off_at_once() {
    let (mut mesh, mut conversation) = mesh_with_conversation();
    let (web, app) = (mesh.host("web-1").addresses().0, mesh.host("app-1").addresses().0);
    // A host that keeps its keys and doesn't listen to the controller any more.
    let switch = mesh.switch.clone();
    switch.sh("nft add table bridge t && nft add chain bridge t c '{ type filter hook forward priority 0; }'");
    switch.sh("nft add rule bridge t c iifname p-app-1 ip daddr 10.9.0.1 drop");

    // Both sides send without asking for answers, and both watch what comes out of their tunnels.
    let (app_node, web_node) = (mesh.host("app-1").node.clone(), mesh.host("web-1").node.clone());
    let mut streams = [
        OneWay::start(&app_node, app.to_string(), &web_node, web.to_string()),
        OneWay::start(&web_node, web.to_string(), &app_node, app.to_string()),
    ];
    let removed = SystemTime::now();
    let _ = mesh.agentctl(&["host", "remove", "app-1", "--yes"]).expect_success();
    for stream in &mut streams {
        let last = stream.last_arrival();
        let late = last.duration_since(removed).unwrap_or_default();
        assert!(late < SECOND, "a packet came through {late:?} after the removal");
    }
    let lines = conversation.lines();
    assert!(!app_node.try_sh(&format!("ping -c 2 -W 1 {web}")).success());
    assert_eq!(conversation.lines(), lines, "the old connection still moves");

    // With the controller in reach again it learns what happened, and can't sneak back in.
    switch.sh("nft delete table bridge t");
    wait_for("the agent forgets the mesh", Duration::from_secs(30), || {
        mesh.host("app-1").status()["joined"] == false
    });
    conversation.client.kill();
    mesh.host_mut("app-1").agent().terminate(Duration::from_secs(10));
}

#[test]
fn a_transfer_survives_loss_and_a_new_address() {
    let mesh = Mesh::new(&["app-1", "web-1"]);
    mesh.apply(&format!("{TOPOLOGY}{ALLOW}"));
    let (app, web) = (mesh.host("app-1"), mesh.host("web-1"));
    let _nginx = web.nginx(WEB, 8080, "limit_rate 1m;");
    let body = "0123456789abcdef".repeat(4 * 65_536);
    std::fs::write(web.web_root(8080).join("large"), &body)
        .expect("the lab's folder can be written");
    let file = app.node.folder().join("got");
    app.node.sh(&format!("touch {0} && chmod 666 {0}", file.display()));
    let size = || std::fs::metadata(&file).map_or(0, |data| data.len());

    let mut command = app.command_as(CLIENT, "curl");
    command.args(["-sS", "--max-time", "90", "-o"]).arg(&file);
    command.arg("http://web.prod.mesh.internal:8080/large");
    let mut curl = app.node.spawn("curl", command);
    wait_for("the transfer runs", Duration::from_secs(10), || size() > 200_000);

    app.node.lose("eth0", 20);
    let before = size();
    wait_for("it goes on with 20 % loss", Duration::from_secs(30), || size() > before + 100_000);
    app.node.sh("sysctl -qw net.ipv4.conf.eth0.promote_secondaries=1 && \
         ip addr add 10.9.0.77/24 dev eth0 && ip addr del 10.9.0.11/24 dev eth0");
    let before = size();
    wait_for("it goes on from a new address", Duration::from_secs(40), || {
        size() > before + 100_000
    });
    app.node.lose_nothing();

    let status = curl.wait(Duration::from_secs(90));
    assert!(status.success(), "{}", curl.output());
    assert!(std::fs::read_to_string(&file).is_ok_and(|got| got == body), "the file arrived whole");
}
