//! Attackers beside the mesh, not in it: a neighbour on the underlay and a user without privileges. The
//! attacks are in `siege/neighbour.py` and `siege/local_user.py`, thirty each, with what each tries.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use isthmus_netns_tests::{Capture, Mesh, Node, Output, Process, ends, frames, wait_for};
use serde_json::{Value, json};

const WEB: u32 = 40_001;
const CLIENT: u32 = 40_002;
const STATS: u32 = 40_005;
const LEDGER: u32 = 40_006;
const PEER: u32 = 40_007;
/// Of no service.
const MALLORY: u32 = 45_000;

const TOPOLOGY: &str = r#"
[host.app-1]
[host.srv-1]

[service.client]
namespace = "prod"
port = 7000
hosts = ["app-1"]
workload = { user = "40002" }

[service.peer]
namespace = "prod"
port = 8125
protocol = "udp"
hosts = ["app-1"]
workload = { user = "40007" }

[service.web]
namespace = "prod"
port = 8080
protocol = "http"
hosts = ["srv-1"]
workload = { user = "40001" }

[service.stats]
namespace = "prod"
port = 8125
protocol = "udp"
hosts = ["srv-1"]
workload = { user = "40005" }

[service.ledger]
namespace = "prod"
port = 9100
hosts = ["srv-1"]
workload = { user = "40006" }

[[allow]]
name = "the client may use all"
from = "service:client"
to = ["service:web", "service:stats", "service:ledger"]

[[allow]]
name = "the services speak to each other"
from = ["service:peer", "service:web", "service:stats"]
to = ["service:peer", "service:stats"]
"#;

/// A machine with the overlay's addresses and the services' programs, and no guard: what the attacks
/// are worth.
struct Bare {
    node: Node,
    sinks: Vec<Process>,
}

struct Lab {
    bare: Bare,
    sinks: Vec<Process>,
    peer: Process,
    evil: Node,
    facts: Value,
    mesh: Mesh,
}

impl Lab {
    fn new() -> Self {
        let mesh = Mesh::new(&["app-1", "srv-1"]);
        mesh.apply(TOPOLOGY);
        copy_scripts(mesh.lab.folder());
        let facts = facts(&mesh);
        let (app, srv) = (&mesh.host("app-1").node, &mesh.host("srv-1").node);
        // Containers' hosts forward.
        srv.sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
        let peer = sink(app, PEER, &["udp:8125"]);
        let sinks = services(srv, &facts);
        let evil = mesh.lab.node("evil");
        let (evil4, evil6) = ("10.9.0.66/24".to_owned(), "fd09::66/64".to_owned());
        mesh.lab.plug(&evil, &mesh.switch, &[evil4, evil6], 1500);
        let bare = Bare::new(&mesh, &facts);
        Self { bare, sinks, peer, evil, facts, mesh }
    }

    /// What the mesh's programs have heard so far.
    fn heard(&self) -> String {
        let all = self.sinks.iter().chain([&self.peer]).map(Process::output);
        all.collect::<Vec<_>>().join("\n")
    }

    /// The client's, that is allowed: so that silence means something.
    #[track_caller]
    fn allowed_traffic_passes(&self, token: &str) {
        let app = self.mesh.host("app-1");
        let (web, _) = self.mesh.virtual_addresses("web");
        let (_, stats) = self.mesh.virtual_addresses("stats");
        wait_for("what is allowed passes", Duration::from_secs(20), || {
            let url = format!("http://{web}:8080/{token}");
            let got = app.curl(CLIENT, &[&url]).success();
            let mut command = app.node.command_as(CLIENT, None, "sh");
            let line = format!("printf {token} | timeout 2 socat -t1 - UDP6:[{stats}]:8125");
            command.args(["-c", &line]);
            got && Output::of(command).stdout.contains("pong")
        });
        let heard = self.heard();
        assert!(heard.matches(token).count() >= 2, "{heard}");
    }
}

impl Bare {
    fn new(mesh: &Mesh, facts: &Value) -> Self {
        let node = mesh.lab.node("bare");
        let (v4, v6) = ("10.9.0.77/24".to_owned(), "fd09::77/64".to_owned());
        mesh.lab.plug(&node, &mesh.switch, &[v4, v6], 1500);
        node.sh("ip tuntap add isth0 mode tun && ip link set isth0 up");
        for key in ["web", "stats", "ledger", "own"] {
            for address in pair(facts, key) {
                let family = if address.contains(':') { "/128 nodad" } else { "/32" };
                node.sh(&format!("ip addr add {address}{family} dev isth0"));
            }
        }
        node.sh("ip route add default via 10.9.0.66 && ip -6 route add default via fd09::66");
        let sinks = services(&node, facts);
        Self { node, sinks }
    }
}

#[test]
fn a_neighbour_reaches_nothing_and_is_believed_nothing() {
    let lab = Lab::new();
    let srv = &lab.mesh.host("srv-1").node;
    let recording = Capture::start(&lab.mesh.switch, "p-srv-1");
    lab.allowed_traffic_passes("before");
    let tunnelled = recording.finish();
    let mut facts = lab.facts.clone();
    facts["recorded"] = recorded(&tunnelled);

    // What the attacks are worth where nobody guards.
    let bare = aimed_at(&facts, &lab.bare.node, "10.9.0.77", "fd09::77");
    let report = attack(&lab.evil, "neighbour.py", &bare, None);
    bites_are_heard(&report, &lab.bare.sinks);
    wait_for("errors are believed", Duration::from_secs(10), || {
        lab.bare.sinks.iter().any(|it| it.output().contains("TOLD"))
    });

    let wire = Capture::start(&lab.mesh.switch, "p-srv-1");
    let aimed = aimed_at(&facts, srv, "10.9.0.12", "fd09::12");
    let report = attack(&lab.evil, "neighbour.py", &aimed, None);
    assert_eq!(report.len(), 30, "{report:?}");
    nothing_was_answered(&report);
    lab.allowed_traffic_passes("after");
    nothing_was_heard(&report, &lab.heard());
    let told: Vec<_> = lab.sinks.iter().map(Process::output).collect();
    assert!(told.iter().all(|it| !it.contains("TOLD")), "{told:?}");
    for address in pair(&facts, "remote") {
        let route = srv.sh(&format!("ip route get {address}"));
        assert!(route.contains("dev isth0") && !route.contains("mtu"), "{route}");
    }
    let sent = from_host(&wire.finish(), facts_mac(&aimed));
    let leaked = plaintext(&sent, &facts);
    assert!(leaked.is_empty(), "{leaked:?}");
}

#[test]
fn a_user_without_privileges_reaches_nothing_and_is_believed_nothing() {
    let lab = Lab::new();
    let host = lab.mesh.host("srv-1");
    lab.allowed_traffic_passes("before");
    let bare = aimed_at(&lab.facts, &lab.bare.node, "10.9.0.77", "fd09::77");
    let report = attack(&lab.bare.node, "local_user.py", &bare, Some(MALLORY));
    bites_are_heard(&report, &lab.bare.sinks);

    let wire = Capture::start(&lab.mesh.switch, "p-srv-1");
    let aimed = aimed_at(&lab.facts, &host.node, "10.9.0.12", "fd09::12");
    let report = attack(&host.node, "local_user.py", &aimed, Some(MALLORY));
    assert_eq!(report.len(), 30, "{report:?}");
    nothing_was_answered(&report);
    lab.allowed_traffic_passes("after");
    nothing_was_heard(&report, &lab.heard());
    let sent = from_host(&wire.finish(), facts_mac(&aimed));
    let leaked = plaintext(&sent, &lab.facts);
    assert!(leaked.is_empty(), "{leaked:?}");
}

/// Runs a script of attacks; by name, what each was answered.
fn attack(from: &Node, script: &str, facts: &Value, user: Option<u32>) -> Vec<Value> {
    let victim = pair(facts, "victim");
    if user.is_none() {
        let mesh6 = facts["mesh6"].as_str().expect("a prefix");
        from.sh(&format!(
            "ip route replace 100.64.0.0/10 via {} && ip -6 route replace {mesh6} via {}",
            victim[0], victim[1]
        ));
    }
    let mut command = match user {
        None => from.command("python3"),
        Some(user) => from.command_as(user, None, "python3"),
    };
    let folder = from.folder().parent().expect("a node's folder is in the lab's").join("siege");
    command.arg(folder.join(script)).arg(facts.to_string()).env("PYTHONDONTWRITEBYTECODE", "1");
    let report = Output::of(command).json();
    for attack in report.as_array().expect("a list") {
        eprintln!(
            "{}: {} {} {}",
            attack["name"], attack["tries"], attack["answers"], attack["errors"]
        );
    }
    report.as_array().expect("a list").clone()
}

#[track_caller]
fn nothing_was_answered(report: &[Value]) {
    // What an attack must count with it handles itself; what it couldn't even try shows nothing.
    let untried: Vec<_> = report.iter().filter(|it| it["errors"] != json!([])).collect();
    let is_shut = |it: &&Value| it["name"] == "the_agents_api";
    assert!(untried.iter().all(is_shut), "{untried:#?}");
    let answered: Vec<_> = report.iter().filter(|it| it["answers"] != json!([])).collect();
    assert!(answered.is_empty(), "{answered:#?}");
}

#[track_caller]
fn nothing_was_heard(report: &[Value], heard: &str) {
    let heard: Vec<_> = names(report).into_iter().filter(|name| heard.contains(name)).collect();
    assert!(heard.is_empty(), "{heard:?}");
}

/// Those attacks that are said to bite do, where nothing guards.
#[track_caller]
fn bites_are_heard(report: &[Value], sinks: &[Process]) {
    let is_biting = |it: &&Value| it["bites"] == json!(true) && it["answers"] == json!([]);
    let biting: Vec<Value> = report.iter().filter(is_biting).cloned().collect();
    assert!(report.iter().filter(|it| it["bites"] == json!(true)).count() >= 7);
    let heard = || sinks.iter().map(Process::output).collect::<String>();
    wait_for("the attacks bite without a guard", Duration::from_secs(10), || {
        let heard = heard();
        let missing: Vec<_> =
            names(&biting).into_iter().filter(|name| !heard.contains(name)).collect();
        if !missing.is_empty() {
            eprintln!("not heard: {missing:?}");
        }
        missing.is_empty()
    });
}

fn names(report: &[Value]) -> Vec<String> {
    report.iter().filter_map(|it| it["name"].as_str().map(str::to_owned)).collect()
}

/// What of the host's frames has an overlay address on its outside.
fn plaintext(frames: &[Vec<u8>], facts: &Value) -> BTreeSet<String> {
    let mesh6 = facts["mesh6"].as_str().expect("a prefix").trim_end_matches("::/48").to_owned();
    let is_overlay = |address: &IpAddr| match address {
        IpAddr::V4(it) => it.octets()[0] == 100 && it.octets()[1] & 0xc0 == 64,
        IpAddr::V6(it) => it.to_string().starts_with(&mesh6),
    };
    let all = frames.iter().filter_map(|frame| ends(frame));
    let bad = all.filter(|ends| ends.iter().any(is_overlay));
    bad.map(|[from, to]| format!("{from} > {to}")).collect()
}

fn from_host(recording: &[u8], mac: [u8; 6]) -> Vec<Vec<u8>> {
    frames(recording).filter(|it| it.get(6..12) == Some(&mac)).map(<[u8]>::to_vec).collect()
}

/// Tunnel packets for the victim, as text.
fn recorded(recording: &[u8]) -> Value {
    let tunnel = 51_820_u16.to_be_bytes();
    let all = frames(recording).filter(|frame| {
        frame.get(12..14) == Some(&[8, 0]) && frame.get(36..38) == Some(&tunnel) && frame.len() > 80
    });
    let hex = |frame: &[u8]| frame.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    all.take(40).map(hex).collect()
}

fn aimed_at(facts: &Value, victim: &Node, v4: &str, v6: &str) -> Value {
    let mut facts = facts.clone();
    facts["victim"] = json!([v4, v6]);
    let link = victim.sh("ip -o link show dev eth0");
    let mac = link.split("link/ether ").nth(1).and_then(|it| it.split(' ').next());
    facts["mac"] = json!(mac.expect("eth0 is Ethernet"));
    facts
}

fn facts_mac(facts: &Value) -> [u8; 6] {
    let bytes = facts["mac"].as_str().expect("a MAC").split(':');
    let bytes: Vec<u8> = bytes.filter_map(|it| u8::from_str_radix(it, 16).ok()).collect();
    bytes.try_into().expect("six bytes")
}

fn pair(facts: &Value, key: &str) -> [String; 2] {
    [0, 1].map(|at| facts[key][at].as_str().expect("an address").to_owned())
}

fn facts(mesh: &Mesh) -> Value {
    let services = mesh.agentctl(&["service", "list", "-o", "json"]).json();
    let services = services.as_array().expect("a list").clone();
    let of = |name: &str| services.iter().find(|it| it["name"] == name).expect("is there").clone();
    let workload = |name: &str| {
        let workload = of(name)["workloads"][0].clone();
        json!([workload["ipv4"], workload["ipv6"]])
    };
    let shown = |name: &str| json!([of(name)["virtual_ipv4"], of(name)["virtual_ipv6"]]);
    let host = |name: &str| {
        let (v4, v6) = mesh.host(name).addresses();
        json!([v4, v6])
    };
    let srv = mesh.host("srv-1");
    let own = host("srv-1");
    let own6: std::net::Ipv6Addr = own[1].as_str().and_then(|it| it.parse().ok()).expect("IPv6");
    let [a, b, c, ..] = own6.segments();
    json!({
        "web": workload("web"), "stats": workload("stats"), "ledger": workload("ledger"),
        "remote": workload("peer"), "virtual": shown("client"),
        "virtual_web": shown("web"), "virtual_stats": shown("stats"), "virtual_ledger": shown("ledger"),
        "own": own, "host_remote": host("app-1"), "nobody6": format!("{a:x}:{b:x}:{c:x}::77:0:99"),
        "mesh6": format!("{a:x}:{b:x}:{c:x}::/48"),
        "me": ["10.9.0.66", "fd09::66"], "peer": "10.9.0.11", "recorded": [],
        "agent": srv.agent_id(), "socket": srv.socket(), "state": srv.node.folder().join("state"),
    })
}

/// The programs behind the victim's services; the one of `stats` has flows open to another host.
fn services(node: &Node, facts: &Value) -> Vec<Process> {
    let [stats4, stats6] = pair(facts, "stats");
    let [remote4, remote6] = pair(facts, "remote");
    let ask4 = format!("ask:{stats4}:{remote4}");
    let ask6 = format!("ask:{}:{}", stats6.replace(':', "="), remote6.replace(':', "="));
    vec![
        sink(node, WEB, &["tcp:8080"]),
        sink(node, STATS, &["udp:8125", &ask4, &ask6]),
        sink(node, LEDGER, &["tcp:9100"]),
    ]
}

fn sink(node: &Node, user: u32, words: &[&str]) -> Process {
    let folder = node.folder().parent().expect("a node's folder is in the lab's").join("siege");
    let mut command = node.command_as(user, None, "python3");
    command.arg("-u").arg(folder.join("sink.py")).args(words);
    let sink = node.spawn(&format!("sink-{user}"), command);
    wait_for("it listens", Duration::from_secs(20), || sink.output().contains("LISTENING"));
    sink
}

fn copy_scripts(folder: &Path) {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios/siege");
    let to = folder.join("siege");
    std::fs::create_dir_all(&to).expect("the lab's folder can be written");
    for script in ["craft.py", "neighbour.py", "local_user.py", "sink.py", "talker.py"] {
        std::fs::copy(from.join(script), to.join(script)).expect("the script is there");
    }
}
