//! The data plane beside its rivals: every path between two hosts on one switch, measured in turn,
//! round by round.

use std::time::{Duration, Instant};

use isthmus_netns_tests::{Lab, Mesh, MeshOptions, Node, Process, wait_for};
use serde_json::Value;

use crate::noise::{
    Noise, cpu_seconds, noise_of_rounds, record_noise, resident_mb, wait_for_calm, which,
};
use crate::report::Figures;
use crate::{Options, rivals};

const TCP: &str = "TCP 1, Gbit/s";
const TCP_4: &str = "TCP 4, Gbit/s";
const BOTH_WAYS: &str = "both ways, Gbit/s";
const CPU: &str = "overlay CPU s/GB";
const UDP: &str = "UDP 200 B, kpps";
const PING: &str = "ping p50, µs";
const PING_99: &str = "ping p99, µs";
const LOADED: &str = "loaded ping p50, ms";
const LOADED_99: &str = "loaded ping p99, ms";
const MEMORY: &str = "resident, MB";
const START: &str = "first reply, ms";

const TOPOLOGY: &str = r#"
[host.app-1]
[host.web-1]

[service.iperf]
port = 5201
hosts = ["web-1"]
workload = { user = "root", exe = "/usr/bin/iperf3" }

[[allow]]
name = "hosts measure"
from = "host:*"
to = "service:iperf"
ports = ["tcp/5201", "udp/5201", "icmp"]
"#;

/// The hosts of a mesh, client first.
const ENDS: [&str; 2] = ["app-1", "web-1"];
/// For a program to end in.
const ENOUGH: Duration = Duration::from_secs(10);

/// How Isthmus is measured: a name, what its agents' settings say, and the ceiling that its cipher
/// allows.
const VARIANTS: &[(&str, &str, &str)] = &[
    ("isthmus", "", "ceiling raes"),
    ("isthmus chacha", "bulk = \"chacha20-poly1305\"", "ceiling rchacha"),
    ("isthmus wireguard", "bulk = \"off\"", "ceiling rchacha"),
];

/// A way between two hosts.
pub(crate) struct Path {
    pub(crate) name: String,
    pub(crate) client: Node,
    pub(crate) server: Node,
    /// The server's address by this way.
    pub(crate) target: String,
    pub(crate) overlay: Overlay,
}

/// What makes a way.
pub(crate) enum Overlay {
    /// The network itself.
    None,
    /// One that isn't started again: not an overlay that people use.
    Once(Vec<Process>),
    Rival(Rival),
    Isthmus(Box<Mesh>),
}

/// Programs of both hosts, of which all that can be prepared is.
pub(crate) struct Rival {
    /// Starts both and gives them what they need.
    pub(crate) start: Box<dyn Fn() -> Vec<Process>>,
    /// By host: the device that goes with its program.
    pub(crate) devices: [String; 2],
    pub(crate) processes: Vec<Process>,
}

impl Path {
    /// Of the overlay's programs.
    fn pids(&self) -> Vec<u32> {
        match &self.overlay {
            Overlay::None => Vec::new(),
            Overlay::Once(processes) => processes.iter().map(Process::id).collect(),
            Overlay::Rival(rival) => rival.processes.iter().map(Process::id).collect(),
            Overlay::Isthmus(mesh) => ENDS.map(|name| mesh.host(name).agent_id()).to_vec(),
        }
    }

    /// Starts the overlay's programs again. None if there is nothing to start.
    fn restart(&mut self) -> Option<Instant> {
        match &mut self.overlay {
            Overlay::None | Overlay::Once(_) => None,
            Overlay::Rival(rival) => {
                for process in &mut rival.processes {
                    process.terminate(ENOUGH);
                }
                for (node, device) in [&self.client, &self.server].into_iter().zip(&rival.devices) {
                    wait_for("the device is gone", ENOUGH, || {
                        !node.try_sh(&format!("ip link show {device}")).success()
                    });
                }
                let started = Instant::now();
                rival.processes = (rival.start)();
                Some(started)
            }
            Overlay::Isthmus(mesh) => {
                for name in ENDS {
                    mesh.host_mut(name).agent().terminate(ENOUGH);
                }
                let started = Instant::now();
                for name in ENDS {
                    mesh.host_mut(name).spawn_agent();
                }
                Some(started)
            }
        }
    }

    /// Waits for the answer to a ping; they follow each other quickly.
    fn wait_for_reply(&self) {
        let ping = format!("ping -n -i 0.002 -w 2 {} 2>&1", self.target);
        let until = format!("until {ping} | grep -q -m 1 time=; do sleep 0.002; done");
        self.client.sh(&format!("timeout 20 sh -c '{until}'"));
    }

    /// CPU time of the overlay's programs so far.
    fn cpu(&self) -> f64 {
        self.pids().iter().map(|pid| cpu_seconds(*pid)).sum()
    }

    /// Of the larger end.
    fn resident_mb(&self) -> f64 {
        self.pids().iter().map(|pid| resident_mb(*pid)).fold(0.0, f64::max)
    }
}

/// Measures everything that is installed.
pub(crate) fn run(options: &Options) -> Figures {
    let wants = |name: &str| {
        options.only.is_empty() || options.only.iter().any(|only| name.contains(only.as_str()))
    };
    let lab = Lab::new();
    let nodes = [lab.node("rival-a"), lab.node("rival-b")];
    let addresses = ["10.8.0.1".to_owned(), "10.8.0.2".to_owned()];
    let switch = lab.switch("rivals");
    for (node, address) in nodes.iter().zip(&addresses) {
        lab.plug(node, &switch, &[format!("{address}/24")], 1500);
        offload(node);
    }
    offload_switch(&switch);
    let mut paths = vec![rivals::veth(nodes.clone(), &addresses)];
    let variants = VARIANTS.iter().filter(|(name, ..)| wants(name));
    paths.extend(variants.map(|(name, settings, _)| isthmus(mesh(settings), name)));
    if let Some(program) = &options.ceiling {
        for (number, cipher) in (1..).zip(["raes", "rchacha"]) {
            if wants(&format!("ceiling {cipher}")) {
                paths.push(rivals::ceiling(program, cipher, number, nodes.clone(), &addresses));
            }
        }
    }
    paths.extend(installed(&lab, &nodes, &addresses, &wants));
    let _servers: Vec<Process> = servers(&paths);

    let noise = wait_for_calm();
    let mut figures = Figures::default();
    let (rounds, seconds) = (options.rounds.unwrap_or(5), options.seconds.unwrap_or(4));
    for round in 1..=rounds {
        for path in &mut paths {
            eprintln!("round {round} of {rounds}: {}", path.name);
            let before = Noise::now();
            if let Some(started) = path.restart() {
                path.wait_for_reply();
                figures.record(&path.name, START, started.elapsed().as_secs_f64() * 1e3);
            }
            measure(&mut figures, path, seconds);
            record_noise(&mut figures, &path.name, before);
        }
    }
    println!("{}", figures.table());
    println!("{}", ratios(&figures));
    println!("before the first round the machine was {:.1} % busy", noise * 100.0);
    println!("{}", noise_of_rounds(&figures));
    figures
}

fn installed(
    lab: &Lab,
    nodes: &[Node; 2],
    addresses: &[String; 2],
    wants: &impl Fn(&str) -> bool,
) -> Vec<Path> {
    let find = |program: &str| if wants(program) { which(program) } else { None };
    let mut paths = Vec::new();
    if let Some(program) = find("wireguard-go") {
        let start =
            move |device: &str| format!("exec env WG_PROCESS_FOREGROUND=1 {program} -f {device}");
        paths.push(rivals::wireguard("wireguard-go", start, 1, nodes.clone(), addresses));
    }
    if let Some(program) = find("boringtun-cli") {
        let start = move |device: &str| {
            format!("exec env WG_SUDO=1 {program} -f --disable-drop-privileges {device}")
        };
        paths.push(rivals::wireguard("boringtun-cli", start, 2, nodes.clone(), addresses));
    }
    if let Some(program) = find("nebula") {
        paths.push(rivals::nebula(&program, lab, nodes.clone(), addresses));
    }
    if let Some(program) = find("vpncloud") {
        paths.push(rivals::vpncloud(&program, nodes.clone(), addresses));
    }
    paths
}

/// Two hosts with agents that work by these settings.
fn mesh(settings: &'static str) -> Mesh {
    let options = MeshOptions { settings, ..MeshOptions::default() };
    let mesh = Mesh::with(&ENDS, options);
    offload_mesh(&mesh);
    mesh.apply(TOPOLOGY);
    mesh
}

/// Gives a mesh's hosts usual network cards.
pub(crate) fn offload_mesh(mesh: &Mesh) {
    mesh.hosts.values().for_each(|host| offload(&host.node));
    offload_switch(&mesh.switch);
}

/// A network card as it is usual: it computes checksums and splits.
fn offload(node: &Node) {
    node.sh("ethtool -K eth0 tx on >/dev/null");
}

/// Likewise the other ends of the cables.
fn offload_switch(switch: &Node) {
    switch.sh("for port in $(ip -br link | sed -n 's/^\\(p-[^@ ]*\\).*/\\1/p'); do \
         ethtool -K $port tx on >/dev/null; done");
}

fn isthmus(mesh: Mesh, name: &str) -> Path {
    let services = mesh.agentctl(&["service", "list", "-o", "json"]).json();
    let workload = services[0]["workloads"][0]["ipv4"].as_str().expect("a workload").to_owned();
    Path {
        name: name.to_owned(),
        client: mesh.host("app-1").node.clone(),
        server: mesh.host("web-1").node.clone(),
        target: workload,
        overlay: Overlay::Isthmus(Box::new(mesh)),
    }
}

/// An iperf3 for each address that is measured to. Bound to it: a UDP socket that is connected from a
/// wildcard takes the host's own address.
fn servers(paths: &[Path]) -> Vec<Process> {
    let start = |path: &Path| {
        let target = &path.target;
        let server = path.server.spawn_sh("iperf3", &format!("exec iperf3 -s -B {target}"));
        wait_for("iperf3 listens", Duration::from_secs(5), || {
            let listening = path.server.try_sh("ss -Hltn 'sport = :5201'").stdout;
            listening.contains(&format!("{target}:5201"))
        });
        server
    };
    paths.iter().map(start).collect()
}

fn measure(figures: &mut Figures, path: &Path, seconds: u32) {
    let target = &path.target;
    let [p50, p99] = ping(path, "-i 0.002 -c 500");
    figures.record(&path.name, PING, p50 * 1e3);
    figures.record(&path.name, PING_99, p99 * 1e3);

    let before = path.cpu();
    let tcp = iperf(path, &format!("-t {seconds} -O 1 -c {target}"));
    figures.record(&path.name, TCP, received(&tcp));
    // The warm-up second is paid for, too.
    let bytes = tcp["end"]["sum_received"]["bytes"].as_f64().unwrap_or(f64::NAN);
    let all = bytes * f64::from(seconds + 1) / f64::from(seconds);
    if !path.pids().is_empty() {
        figures.record(&path.name, CPU, (path.cpu() - before) / (all / 1e9));
    }
    figures.record(
        &path.name,
        TCP_4,
        received(&iperf(path, &format!("-P 4 -t {seconds} -O 1 -c {target}"))),
    );
    let both = iperf(path, &format!("--bidir -t {seconds} -O 1 -c {target}"));
    let back = both["end"]["sum_received_bidir_reverse"]["bits_per_second"].as_f64();
    figures.record(&path.name, BOTH_WAYS, received(&both) + back.unwrap_or(f64::NAN) / 1e9);

    let udp = iperf(path, &format!("-u -b 0 -l 200 -t {seconds} -c {target}"));
    let sum = &udp["end"]["sum"];
    let count = |name: &str| sum[name].as_f64().unwrap_or(f64::NAN);
    let arrived = (count("packets") - count("lost_packets")) / count("seconds");
    figures.record(&path.name, UDP, arrived / 1e3);

    let load = path.client.spawn_sh(
        "load",
        // The server may still be busy with the end of the test before.
        &format!("until iperf3 -t {} -c {target}; do sleep 0.2; done", seconds + 2),
    );
    wait_for("the load runs", Duration::from_secs(5), || {
        !path.client.try_sh("ss -Htn state established 'dport = :5201'").stdout.is_empty()
    });
    let [p50, p99] = ping(path, &format!("-i 0.01 -c {}", seconds * 100));
    figures.record(&path.name, LOADED, p50);
    figures.record(&path.name, LOADED_99, p99);
    if !path.pids().is_empty() {
        figures.record(&path.name, MEMORY, path.resident_mb());
    }
    let mut load = load;
    load.wait(Duration::from_secs(20));
}

fn iperf(path: &Path, arguments: &str) -> Value {
    let said = path.client.sh(&format!("iperf3 -J {arguments}"));
    serde_json::from_str(&said).expect("iperf3 prints JSON")
}

fn received(said: &Value) -> f64 {
    said["end"]["sum_received"]["bits_per_second"].as_f64().expect("iperf3 counts") / 1e9
}

/// Median and 99th percentile, in milliseconds.
fn ping(path: &Path, arguments: &str) -> [f64; 2] {
    let said = path.client.sh(&format!("ping {arguments} {}", path.target));
    let mut times: Vec<f64> = said
        .lines()
        .filter_map(|line| line.split_once("time=")?.1.split(' ').next()?.parse().ok())
        .collect();
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[((times.len() - 1) as f64 * share).round() as usize];
    [at(0.5), at(0.99)]
}

fn ratios(figures: &Figures) -> String {
    let mut out = String::new();
    let mut line = |measure, path: &str, to: &str| {
        if let Some(ratio) = figures.ratio(measure, path, to) {
            out += &format!("{measure:22} {path} / {to}: {ratio:.2}\n");
        }
    };
    for (name, _, ceiling) in VARIANTS {
        for measure in [TCP, TCP_4, BOTH_WAYS, CPU, UDP, PING, LOADED] {
            line(measure, name, ceiling);
        }
        for rival in ["wireguard-go", "boringtun-cli", "nebula", "vpncloud"] {
            line(TCP, name, rival);
        }
    }
    out
}
