//! `scripts/bench`: what the mesh costs, beside what it is compared with, in interleaved rounds.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "a benchmark prints its table")]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use isthmus_netns_tests::{Lab, Link, Mesh, MeshOptions, Node, Output, Process, wait_for};
use serde_json::json;

const ROUNDS: usize = 5;
const APPLIES: usize = 100;

const TOPOLOGY: &str = r#"
[host.app-1]
[host.app-2]
[host.web-1]

[service.iperf]
port = 5201
hosts = ["web-1"]

[[allow]]
name = "hosts measure"
from = "host:*"
to = "service:iperf"
"#;

/// Figures by path, then by measure: one value a round.
type Figures = BTreeMap<String, BTreeMap<&'static str, Vec<f64>>>;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let what = arguments.next().unwrap_or_default();
    let json_file = match (arguments.next().as_deref(), arguments.next()) {
        (Some("--json"), Some(file)) => Some(file),
        (None, _) => None,
        _ => usage(),
    };
    let figures = match what.as_str() {
        "mesh" => mesh(),
        "l3" => l3(),
        _ => usage(),
    };
    print_table(&figures);
    if let Some(file) = json_file {
        std::fs::write(&file, json!(figures).to_string())
            .unwrap_or_else(|error| panic!("{file}: {error}"));
    }
}

fn usage() -> ! {
    println!(
        "usage: scripts/bench l3|mesh [--json FILE]\n\
         \x20 l3    throughput and latency beside veth and wireguard-go\n\
         \x20 mesh  join, propagation of a revision, memory"
    );
    std::process::exit(2);
}

/// Join, propagation and memory.
fn mesh() -> Figures {
    let mut figures = Figures::new();
    let mut mesh = Mesh::empty(MeshOptions::default());
    for name in ["app-1", "app-2", "web-1"] {
        mesh.add_host(name);
        let joined = mesh.join(name);
        record(&mut figures, "join", "ms", joined.took.as_secs_f64() * 1e3);
        joined.expect_success_line();
    }
    for number in 0..APPLIES {
        // Every agent's slice has this rule.
        let topology = TOPOLOGY.replace("hosts measure", &format!("hosts measure {number}"));
        let file = mesh.controller_node.folder().join("bench.toml");
        std::fs::write(&file, topology).expect("the lab's folder can be written");
        let started = Instant::now();
        let applied = mesh.agentctl(&["apply", "-o", "json", "-f", &file.to_string_lossy()]).json();
        record(
            &mut figures,
            "apply, as the operator sees it",
            "ms",
            started.elapsed().as_secs_f64() * 1e3,
        );
        let milliseconds =
            applied["rollout"]["milliseconds"].as_f64().expect("apply tells how long it took");
        record(&mut figures, "revision on three agents", "ms", milliseconds);
    }
    record(
        &mut figures,
        "controller",
        "MB resident",
        mesh.controller().resident_kib() as f64 / 1024.0,
    );
    for name in ["app-1", "app-2", "web-1"] {
        let resident = mesh.host_mut(name).agent().resident_kib();
        record(&mut figures, "agent", "MB resident", resident as f64 / 1024.0);
    }
    figures
}

/// Two namespaces and a way between them.
struct Path {
    name: &'static str,
    client: Node,
    target: String,
}

fn l3() -> Figures {
    let lab = Lab::new();
    let (veth, _servers) = veth(&lab);
    let (wireguard_go, _processes) = wireguard_go(&lab);
    let mut mesh = Mesh::new(&["app-1", "web-1"]);
    mesh.apply(&TOPOLOGY.replace("[host.app-2]\n", ""));
    let web = mesh.host("web-1");
    let _iperf = iperf_server(&web.node);
    let isthmus = Path {
        name: "isthmus",
        client: mesh.host("app-1").node.clone(),
        target: web.addresses().0.to_string(),
    };
    let service = mesh.agentctl(&["service", "list", "-o", "json"]).json();
    let workload = service[0]["workloads"][0]["ipv4"].as_str().expect("a workload").to_owned();
    let mut figures = Figures::new();
    for _ in 0..ROUNDS {
        for path in [&veth, &wireguard_go, &isthmus] {
            let iperf_target = if path.name == "isthmus" { &workload } else { &path.target };
            measure(&mut figures, path, iperf_target);
        }
    }
    for name in ["app-1", "web-1"] {
        let resident = mesh.host_mut(name).agent().resident_kib();
        record(&mut figures, "isthmus", "agent MB resident", resident as f64 / 1024.0);
    }
    figures
}

fn measure(figures: &mut Figures, path: &Path, iperf_target: &str) {
    let tcp = path.client.sh(&format!("iperf3 -J -t 3 -O 1 -c {iperf_target}"));
    let tcp: serde_json::Value = serde_json::from_str(&tcp).expect("iperf3 prints JSON");
    let bits = tcp["end"]["sum_received"]["bits_per_second"].as_f64().expect("iperf3 counts");
    record(figures, path.name, "TCP Gbit/s", bits / 1e9);
    let ping = path.client.sh(&format!("ping -q -i 0.005 -c 400 {}", path.target));
    let average =
        ping.rsplit_once("= ").and_then(|(_, times)| times.split('/').nth(1)?.parse::<f64>().ok());
    record(figures, path.name, "ping µs", average.expect("ping tells its times") * 1e3);
}

fn pair(lab: &Lab, name: &str, number: u8) -> (Node, Node) {
    let (a, b) = (lab.node(&format!("{name}-a")), lab.node(&format!("{name}-b")));
    lab.link(Link { a: (&a, "eth0"), b: (&b, "eth0"), mtu: 1500 });
    a.sh(&format!("ip addr add 10.8.{number}.1/24 dev eth0; ethtool -K eth0 tx on >/dev/null"));
    b.sh(&format!("ip addr add 10.8.{number}.2/24 dev eth0; ethtool -K eth0 tx on >/dev/null"));
    (a, b)
}

fn veth(lab: &Lab) -> (Path, Process) {
    let (a, b) = pair(lab, "veth", 1);
    let server = iperf_server(&b);
    (Path { name: "veth", client: a, target: "10.8.1.2".into() }, server)
}

fn wireguard_go(lab: &Lab) -> (Path, Vec<Process>) {
    let (a, b) = pair(lab, "wg", 2);
    let mut processes = Vec::new();
    let mut keys = Vec::new();
    for (node, device) in [(&a, "wgbench1"), (&b, "wgbench2")] {
        processes.push(node.spawn_sh(
            "wireguard-go",
            &format!("exec env WG_PROCESS_FOREGROUND=1 wireguard-go -f {device}"),
        ));
        wait_for("wireguard-go makes its device", Duration::from_secs(20), || {
            node.try_sh(&format!("wg show {device}")).success()
        });
        let key = node.folder().join("key");
        let key = key.display();
        keys.push(node.sh(&format!("umask 077; wg genkey > {key}; wg set {device} private-key {key} listen-port 51820; wg pubkey < {key}")));
    }
    for (node, own, other, key) in [(&a, 1, 2, &keys[1]), (&b, 2, 1, &keys[0])] {
        let device = format!("wgbench{own}");
        node.sh(&format!(
            "wg set {device} peer {} endpoint 10.8.2.{other}:51820 allowed-ips 10.7.0.{other}/32; \
             ip addr add 10.7.0.{own}/24 dev {device}; ip link set {device} mtu 1420 up",
            key.trim()
        ));
    }
    processes.push(iperf_server(&b));
    (Path { name: "wireguard-go (Debian)", client: a, target: "10.7.0.2".into() }, processes)
}

fn iperf_server(node: &Node) -> Process {
    let server = node.spawn_sh("iperf3", "exec iperf3 -s");
    wait_for("iperf3 listens", Duration::from_secs(5), || {
        let listening: Output = node.try_sh("ss -Hltn 'sport = :5201'");
        !listening.stdout.is_empty()
    });
    server
}

fn record(figures: &mut Figures, path: &str, measure: &'static str, value: f64) {
    figures.entry(path.to_owned()).or_default().entry(measure).or_default().push(value);
}

fn print_table(figures: &Figures) {
    println!(
        "{:34} {:18} {:>9} {:>9} {:>9} {:>9} {:>4}",
        "", "", "median", "p99", "min", "max", "n"
    );
    for (path, measures) in figures {
        for (measure, values) in measures {
            let mut sorted = values.clone();
            sorted.sort_by(f64::total_cmp);
            let at = |share: f64| sorted[((sorted.len() - 1) as f64 * share).round() as usize];
            println!(
                "{path:34} {measure:18} {:9.2} {:9.2} {:9.2} {:9.2} {:4}",
                at(0.5),
                at(0.99),
                at(0.0),
                at(1.0),
                sorted.len()
            );
        }
    }
}
