//! Nothing of the overlay is ever on the wire in plaintext: not while the agent starts, stops, restarts,
//! crashes, or is removed by a firewall's script, and not while its host boots. Programs go on speaking all
//! the time, and a gateway of the underlay answers for every address.

use std::net::{IpAddr, Ipv6Addr};
use std::path::Path;
use std::time::{Duration, Instant};

use isthmus_netns_tests::{
    Capture, Mesh, Node, Output, Process, binary, ends, frames, wait_for, wait_for_value,
};

/// The users that serve, and where they listen.
const SERVICES: [(u32, &str); 3] =
    [(40_001, "tcp:8080"), (40_005, "udp:8125"), (40_006, "tcp:9100")];
const CLIENT: u32 = 40_002;
const MALLORY: u32 = 45_000;

const TOPOLOGY: &str = r#"
[host.app-1]
[host.srv-1]

[service.client]
namespace = "prod"
port = 7000
hosts = ["app-1"]
workload = { user = "40002" }

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
"#;

struct Lab {
    mesh: Mesh,
    /// Answers for every address, if it is asked.
    gateway: Node,
    /// Arguments of `talker.py`.
    words: Vec<String>,
    mesh6: String,
    _sinks: [Process; 3],
    /// The gateway's program, which hears what is meant for the mesh.
    strange: Process,
}

impl Lab {
    fn new() -> Self {
        let mesh = Mesh::new(&["app-1", "srv-1"]);
        mesh.apply(TOPOLOGY);
        copy_scripts(mesh.lab.folder());
        let Ok(IpAddr::V6(own6)) = mesh.host("app-1").addresses().1.to_string().parse() else {
            panic!("the host has an IPv6 address")
        };
        let mesh6 = prefix(own6);
        let gateway = mesh.lab.node("gw");
        mesh.lab.plug(
            &gateway,
            &mesh.switch,
            &["10.9.0.254/24".into(), "fd09::fe/64".into()],
            1500,
        );
        gateway.sh(&format!(
            "ip route add local 100.64.0.0/10 dev lo && ip -6 route add local {mesh6} dev lo"
        ));
        let srv = &mesh.host("srv-1").node;
        let _sinks = SERVICES.map(|(user, word)| sink(srv, user, &[word]));
        let strange = sink(&gateway, MALLORY, &SERVICES.map(|it| it.1));
        let words = words(&mesh);
        let lab = Self { mesh, gateway, words, mesh6, _sinks, strange };
        lab.route_by_gateway();
        lab
    }

    fn app(&self) -> &Node {
        &self.mesh.host("app-1").node
    }

    fn route_by_gateway(&self) {
        self.app().sh(
            "ip route replace default via 10.9.0.254 && ip -6 route replace default via fd09::fe",
        );
    }

    fn talker(&self) -> Process {
        let script = self.mesh.lab.folder().join("siege/talker.py");
        let mut command = self.app().command_as(CLIENT, None, "python3");
        command.arg("-u").arg(script).args(&self.words);
        self.app().spawn("talker", command)
    }

    /// Every kind of flow works.
    #[track_caller]
    fn all_is_well(&self, talker: &Process) {
        let from = talker.output().len();
        wait_for("all flows work", Duration::from_secs(40), || {
            let said = talker.output();
            let said = said.get(from..).unwrap_or_default();
            let tries = said.lines().filter(|line| line.starts_with("TRY"));
            let works = |line: &&str| line.contains("pong") || line.contains("200 OK");
            let working: std::collections::BTreeSet<&str> =
                tries.filter(works).filter_map(|it| it.split(" bound=").next()).collect();
            working.len() == 6 && said.contains("LONG")
        });
    }

    /// Whoever tries is told at once that nobody is there.
    #[track_caller]
    fn all_is_refused_at_once(&self, talker: &Process) {
        let from = talker.output().len();
        let said = wait_for_value("programs are told", Duration::from_secs(20), || {
            let said = talker.output().get(from..).unwrap_or_default().to_owned();
            (said.matches("TRY").count() >= 60).then_some(said)
        });
        // Each of the talker's threads had one under way when the agent went, which may have waited.
        let mut under_way = std::collections::BTreeSet::new();
        let mut later: Vec<&str> = said.lines().filter(|it| it.starts_with("TRY")).collect();
        let thread = |line: &str| line.split(' ').take(4).map(str::to_owned).collect::<Vec<_>>();
        later.retain(|line| !under_way.insert(thread(line)));
        let took = |line: &&str| line.split(' ').nth(4).and_then(|it| it.parse::<f64>().ok());
        let slow: Vec<_> = later.iter().filter(|it| took(it).is_none_or(|it| it > 1.0)).collect();
        assert!(slow.is_empty(), "{slow:?}");
        assert!(later.iter().all(|it| it.contains("Error")), "{later:?}");
    }

    fn guard_rules(&self) -> String {
        self.app().try_sh("nft list table inet isthmus-isth0").stdout
    }

    fn problem(&self, code: &str) -> Option<String> {
        let status = self.mesh.host("app-1").status();
        let problems = status["problems"].as_array()?.clone();
        let found = problems.iter().find(|it| it["code"] == code)?;
        Some(found["text"].as_str()?.to_owned())
    }

    #[track_caller]
    fn nothing_was_in_plaintext(&self, recording: &[u8]) {
        let mesh6 = self.mesh6.trim_end_matches("::/48");
        let is_overlay = |address: &IpAddr| match address {
            IpAddr::V4(it) => it.octets()[0] == 100 && it.octets()[1] & 0xc0 == 64,
            IpAddr::V6(it) => it.to_string().starts_with(mesh6),
        };
        let all: Vec<_> = frames(recording).filter_map(ends).collect();
        let leaked: Vec<_> = all.iter().filter(|ends| ends.iter().any(is_overlay)).collect();
        assert!(all.len() > 100, "the capture works: {}", all.len());
        assert!(leaked.is_empty(), "{leaked:?}");
        assert!(!Capture::contains(recording, b"overlay-secret"));
        let heard = self.strange.output();
        assert!(!heard.contains("HEARD"), "the gateway was spoken to: {heard}");
    }
}

#[test]
fn nothing_leaves_in_plaintext_whatever_becomes_of_the_agent() {
    let mut lab = Lab::new();
    let wire = Capture::start(&lab.mesh.switch, "p-app-1");
    let talker = lab.talker();
    lab.all_is_well(&talker);

    // A clean stop, and a start.
    lab.mesh.host_mut("app-1").agent().terminate(Duration::from_secs(20));
    lab.all_is_refused_at_once(&talker);
    // Rules and routes each suffice, so that whoever flushes the one has the other.
    lab.app().sh("nft flush ruleset");
    lab.all_is_refused_at_once(&talker);
    lab.mesh.host_mut("app-1").start_agent();
    lab.all_is_well(&talker);
    assert!(lab.guard_rules().contains("leaving"));

    // A crash.
    lab.mesh.host_mut("app-1").agent().kill();
    lab.all_is_refused_at_once(&talker);
    lab.app().sh("ip route flush proto 152; ip -6 route flush proto 152");
    lab.all_is_refused_at_once(&talker);
    lab.mesh.host_mut("app-1").start_agent();
    lab.all_is_well(&talker);

    // A restart, as quick as can be.
    for _ in 0..3 {
        lab.mesh.host_mut("app-1").agent().kill();
        lab.mesh.host_mut("app-1").start_agent();
    }
    lab.all_is_well(&talker);

    a_firewalls_script_takes_the_guard_for_a_moment(&lab);
    drop(talker);

    // A boot: another namespace, where the guard comes before the network.
    lab.mesh.host_mut("app-1").agent().kill();
    lab.nothing_was_in_plaintext(&wire.finish());
    let wire = reboot(&mut lab);
    let talker = lab.talker();
    lab.all_is_refused_at_once(&talker);
    lab.mesh.host_mut("app-1").start_agent();
    lab.all_is_well(&talker);
    drop(talker);
    lab.nothing_was_in_plaintext(&wire.finish());

    // Who leaves the mesh leaves the guard.
    let _ = lab.mesh.agentctl(&["host", "remove", "app-1", "--yes"]).expect_success();
    wait_for("the guard is gone", Duration::from_secs(20), || lab.guard_rules().is_empty());
    let routes = lab.app().sh("ip route show proto 152; ip -6 route show proto 152");
    assert_eq!(routes, "");
}

fn a_firewalls_script_takes_the_guard_for_a_moment(lab: &Lab) {
    for flush in [
        "flush ruleset",
        "delete table inet isthmus-isth0",
        "flush chain inet isthmus-isth0 leaving",
    ] {
        lab.app().sh(&format!("nft {flush}"));
        let began = Instant::now();
        wait_for("the guard is back", Duration::from_secs(5), || {
            lab.guard_rules().contains("ip6 saddr") && lab.guard_rules().contains("meta skuid")
        });
        eprintln!("{flush}: back after {:?}", began.elapsed());
    }
    wait_for("operators are told", Duration::from_secs(5), || {
        lab.problem("guard-taken").is_some_and(|it| it.contains("3 times, last by \"nft\""))
    });
}

/// Somebody takes the agent's ports while it is down: nobody is answered there, and the agent names them.
#[test]
fn whoever_takes_the_agents_ports_is_named_and_gets_nobody() {
    let mut lab = Lab::new();
    for (what, port) in [("tcp:15001", 15_001), ("udp:51820", 51_820)] {
        lab.mesh.host_mut("app-1").agent().terminate(Duration::from_secs(20));
        let script = lab.mesh.lab.folder().join("siege/sink.py");
        let mut command = lab.app().command_as(MALLORY, None, "python3");
        command.arg("-u").arg(script).arg(what);
        let squatter = lab.app().spawn(&format!("squatter-{port}"), command);
        wait_for("it has the port", Duration::from_secs(10), || {
            squatter.output().contains("LISTENING")
        });
        let kind = if port == 15_001 { "TCP" } else { "UDP" };
        // Several at once, so that a full queue of connections is met, too.
        let line = format!(
            "for it in 1 2 3 4; do \
             echo hello | timeout 3 socat -t1 -T1 - {kind}4:10.9.0.11:{port},connect-timeout=1 & \
             done; wait"
        );
        let answer = lab.gateway.try_sh(&line);
        assert!(!answer.stdout.contains("pong"), "{answer}");

        lab.mesh.host_mut("app-1").start_agent();
        let said =
            wait_for_value("it is said", Duration::from_secs(20), || lab.problem("port-taken"));
        let who = format!("(process {}, user {MALLORY})", squatter.id());
        assert!(said.contains(&who) && said.contains("python3"), "{said}");
        // It keeps nobody out: another port serves.
        let talker = lab.talker();
        lab.all_is_well(&talker);
        drop(squatter);
    }
}

/// The host's programs are gone, its disk isn't.
fn reboot(lab: &mut Lab) -> Capture {
    lab.app().sh("ip link del eth0");
    let node = lab.mesh.lab.node("app-1b");
    let settings = lab.app().folder().join("agent.toml");
    let mut guard = node.command(binary("isthmus-agent"));
    guard.arg("guard").arg("--settings").arg(settings);
    let _ = Output::of(guard).expect_success();
    lab.mesh.lab.plug(
        &node,
        &lab.mesh.switch,
        &["10.9.0.11/24".into(), "fd09::11/64".into()],
        1500,
    );
    lab.mesh.host_mut("app-1").node = node;
    lab.route_by_gateway();
    Capture::start(&lab.mesh.switch, "p-app-1b")
}

fn words(mesh: &Mesh) -> Vec<String> {
    let services = mesh.agentctl(&["service", "list", "-o", "json"]).json();
    let workload = |name: &str, key: &str| {
        let all = services.as_array().expect("a list");
        let service = all.iter().find(|it| it["name"] == name).expect("the service is there");
        service["workloads"][0][key].as_str().expect("an address").to_owned()
    };
    let mut words = vec![workload("client", "ipv4"), workload("client", "ipv6"), ",".to_owned()];
    let (web4, web6) = mesh.virtual_addresses("web");
    words.extend([format!("{web4}/8080/tcp"), format!("{web6}/8080/tcp")]);
    for key in ["ipv4", "ipv6"] {
        words.push(format!("{}/8125/udp", workload("stats", key)));
        words.push(format!("{}/9100/tcp", workload("ledger", key)));
        words.push(format!("{}/9100/long", workload("ledger", key)));
    }
    words
}

fn sink(node: &Node, user: u32, words: &[&str]) -> Process {
    let script =
        node.folder().parent().expect("a node's folder is in the lab's").join("siege/sink.py");
    let mut command = node.command_as(user, None, "python3");
    command.arg("-u").arg(script).args(words);
    let sink = node.spawn(&format!("sink-{user}"), command);
    wait_for("it listens", Duration::from_secs(20), || {
        sink.output().matches("LISTENING").count() == words.len()
    });
    sink
}

fn prefix(own: Ipv6Addr) -> String {
    let [a, b, c, ..] = own.segments();
    format!("{a:x}:{b:x}:{c:x}::/48")
}

fn copy_scripts(folder: &Path) {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios/siege");
    let to = folder.join("siege");
    std::fs::create_dir_all(&to).expect("the lab's folder can be written");
    for script in ["sink.py", "talker.py"] {
        std::fs::copy(from.join(script), to.join(script)).expect("the script is there");
    }
}
