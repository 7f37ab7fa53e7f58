//! Callers that attack the proxies: memory stays bounded, and others' requests go on.

use std::time::{Duration, Instant};

use isthmus_netns_tests::{Host, Mesh, Output, Process, wait_for, wait_for_value};
use serde_json::Value;

const CLIENT: u32 = 40_002;
const ATTACKER: u32 = 40_003;
const WEB: u32 = 40_011;
const OTHER: u32 = 40_012;

/// How much larger an agent may be during an attack, and after it, than before.
const MOST_GROWTH_KIB: u64 = 128 * 1024;
/// What the other caller's requests take at the most. Idle, they take about a millisecond: these allow
/// for a debug build on a machine that is busy with something else.
const MOST_P50: f64 = 0.5;
const MOST_P99: f64 = 3.0;

const TOPOLOGY: &str = r#"
[host.app-1]
[host.web-1]

[service.client]
port = 7000
hosts = ["app-1"]
workload = { user = "40002" }

[service.attacker]
port = 7001
hosts = ["app-1"]
workload = { user = "40003" }

[service.web]
port = 8081
protocol = "http"
hosts = ["web-1"]
workload = { user = "40011" }

[service.other]
port = 8082
protocol = "http"
hosts = ["web-1"]
workload = { user = "40012" }

[[allow]]
name = "the attacker may use the one"
from = "service:attacker"
to = "service:web"

[[allow]]
name = "the client uses the other"
from = "service:client"
to = "service:other"
"#;

/// Asks a hundred times, each second time on a new connection: failures, p50 and p99 in seconds.
const PROBE: &str = include_str!("programs/attacks_probe.py");

/// What the proxy must have done to an attacker's connections.
#[derive(Clone, Copy)]
enum Fate {
    /// Ended them, before this many bytes had gone to each.
    AllEnded { most_bytes: u64 },
    /// Let them be: they cost little.
    Any,
}

const MIB: u64 = 1024 * 1024;

/// Socket buffers, tunnel included, take what the proxy doesn't.
const ENDED: Fate = Fate::AllEnded { most_bytes: 8 * MIB };

const ATTACKS: [(&str, Fate); 7] = [
    ("endless headers", ENDED),
    ("one endless header", ENDED),
    ("many headers", ENDED),
    ("rapid reset", ENDED),
    ("continuation flood", ENDED),
    ("ping flood", Fate::Any),
    ("settings flood", Fate::Any),
];

struct Scene {
    mesh: Mesh,
    /// Resident memory of the agents before any attack.
    before: Vec<(String, u64)>,
    /// Where the client's requests go.
    probed: String,
    _servers: [Process; 2],
}

impl Scene {
    fn new() -> Self {
        let mesh = Mesh::new(&["app-1", "web-1"]);
        mesh.apply(TOPOLOGY);
        let web = mesh.host("web-1");
        let servers = [
            web.nginx(WEB, 8081, "location / { }"),
            web.nginx(OTHER, 8082, "location / { return 200 fine; }"),
        ];
        let big = web.web_root(8081).join("big");
        std::fs::write(big, vec![b'x'; MIB as usize]).expect("the lab's folder can be written");
        let probed = mesh.virtual_addresses("other").0.to_string();
        let mut scene = Self { mesh, before: Vec::new(), probed, _servers: servers };
        scene.others_are_served("nothing yet");
        scene.before = scene.resident();
        scene
    }

    fn resident(&self) -> Vec<(String, u64)> {
        let of = |(name, host): (&String, &Host)| (name.clone(), resident_kib(host.agent_id()));
        self.mesh.hosts.iter().map(of).collect()
    }

    #[track_caller]
    fn others_are_served(&self, during: &str) {
        let app = self.mesh.host("app-1");
        let mut command = app.node.command_as(CLIENT, None, "python3");
        command.args(["-c", PROBE, &self.probed]);
        let said = Output::of(command).json();
        let took = |key: &str| said[key].as_f64().unwrap_or(f64::NAN);
        eprintln!("{during}: {said}");
        assert_eq!(said["failed"], serde_json::json!([]), "{during}: {said}");
        assert!(took("p50") < MOST_P50 && took("p99") < MOST_P99, "{during}: {said}");
    }

    #[track_caller]
    fn agents_are_as_small_as_before(&self, during: &str) {
        for ((name, before), (_, now)) in self.before.iter().zip(self.resident()) {
            eprintln!("{during}: {name} had {before} KiB, has {now} KiB");
            assert!(now > 0, "{during}: the agent of {name} is gone");
            assert!(now < before + MOST_GROWTH_KIB, "{during}: {name}: {before} KiB, now {now}");
        }
    }

    /// Starts an attack, which ends when it is dropped, if not before.
    fn attack(&self, kind: &str, target: &str) -> Process {
        let app = self.mesh.host("app-1");
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/scenarios/attacker.py");
        let copy = app.node.folder().join("attacker.py");
        std::fs::copy(script, &copy).expect("the lab's folder can be written");
        let log = format!("attack-{}-{target}", kind.replace(' ', "-"));
        let line = format!(
            "exec setpriv --reuid={ATTACKER} --regid={ATTACKER} --clear-groups -- \
             python3 -u {} {kind:?} {target} 8081",
            copy.display()
        );
        let attack = app.node.spawn_sh(&log, &line);
        wait_for("the attack is on", Duration::from_secs(60), || {
            attack.output().contains("attacking")
        });
        attack
    }
}

fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).unwrap_or_default()
}

/// The JSON that an attack ends with.
fn outcome(attack: &Process) -> Option<Value> {
    let said = attack.output();
    said.lines()
        .rev()
        .find_map(|line| line.starts_with('{').then(|| serde_json::from_str(line).ok())?)
}

/// Both sides: the client's by the virtual address, the server's by the workload's.
fn targets(mesh: &Mesh) -> [String; 2] {
    let services = mesh.agentctl(&["service", "list", "-o", "json"]).json();
    let web = services.as_array().and_then(|all| all.iter().find(|it| it["name"] == "web"));
    let workload = web.and_then(|web| web["workloads"][0]["ipv4"].as_str());
    [
        mesh.virtual_addresses("web").0.to_string(),
        workload.expect("a workload has an address").to_owned(),
    ]
}

#[test]
fn attacks_neither_fill_memory_nor_stop_others() {
    let scene = Scene::new();
    let targets = targets(&scene.mesh);
    endure(&scene, "slow loris", ENDED, &targets[0]);
    for target in &targets {
        for (kind, fate) in ATTACKS {
            endure(&scene, kind, fate, target);
        }
    }
}

#[track_caller]
fn endure(scene: &Scene, kind: &str, fate: Fate, target: &str) {
    let during = format!("{kind} at {target}");
    let started = Instant::now();
    let attack = scene.attack(kind, target);
    scene.others_are_served(&during);
    scene.agents_are_as_small_as_before(&during);
    let end = format!("the end of {during}");
    let outcome = wait_for_value(&end, Duration::from_secs(60), || outcome(&attack));
    eprintln!("{during}: {outcome} in {:?}", started.elapsed());
    if let Fate::AllEnded { most_bytes } = fate {
        assert_eq!(outcome["ended"], outcome["connections"], "{during}: {outcome}");
        assert!(outcome["connections"].as_u64() > Some(0), "{during}: {outcome}");
        assert!(outcome["sent"].as_u64() <= Some(most_bytes), "{during}: {outcome}");
    }
    scene.agents_are_as_small_as_before(&during);
}

#[test]
fn ten_thousand_idle_connections_lock_nobody_out() {
    let scene = Scene::new();
    for target in targets(&scene.mesh) {
        let during = format!("10,000 idle connections to {target}");
        let attack = scene.attack("idle", &target);
        wait_for("they are counted", Duration::from_secs(20), || {
            attack.output().contains("counted")
        });
        eprintln!("{during}: {}", attack.output());
        scene.others_are_served(&during);
        scene.agents_are_as_small_as_before(&during);
    }
}

#[test]
fn a_caller_that_reads_nothing_fills_nobodys_memory() {
    let scene = Scene::new();
    for target in targets(&scene.mesh) {
        let during = format!("400 answers of a MiB that nobody reads from {target}");
        let _attack = scene.attack("windows", &target);
        scene.others_are_served(&during);
        scene.agents_are_as_small_as_before(&during);
    }
}
