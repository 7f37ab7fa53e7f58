//! Tunnels that Isthmus is compared with. Each joins two hosts on one switch.

use std::path::Path as FilePath;
use std::time::Duration;

use isthmus_netns_tests::{Lab, Node, Process, wait_for};

use crate::l3::{Overlay, Path, Rival};

const START: Duration = Duration::from_secs(20);
/// Of two hosts, this one and that one.
const PAIRS: [(usize, usize); 2] = [(0, 1), (1, 0)];

fn path(name: &str, [client, server]: [Node; 2], target: String, overlay: Overlay) -> Path {
    Path { name: name.to_owned(), client, server, target, overlay }
}

/// A rival, started for the first time.
fn rival(
    name: &str,
    nodes: [Node; 2],
    target: String,
    devices: [String; 2],
    start: impl Fn() -> Vec<Process> + 'static,
) -> Path {
    let processes = start();
    let rival = Rival { start: Box::new(start), devices, processes };
    path(name, nodes, target, Overlay::Rival(rival))
}

/// Waits, in small steps, until a command succeeds.
fn until(node: &Node, command: &str) {
    node.sh(&format!("timeout 20 sh -c 'until {command} >/dev/null 2>&1; do sleep 0.002; done'"));
}

/// No overlay at all.
pub(crate) fn veth(nodes: [Node; 2], addresses: &[String; 2]) -> Path {
    path("veth", nodes, addresses[1].clone(), Overlay::None)
}

/// The least that an overlay must do.
pub(crate) fn ceiling(
    program: &FilePath,
    cipher: &str,
    number: u8,
    nodes: [Node; 2],
    addresses: &[String; 2],
) -> Path {
    let mut processes = Vec::new();
    for (here, there) in PAIRS {
        let device = format!("ceil{number}");
        let port = 7000 + u16::from(number);
        let line = format!(
            "exec {} {device} {}:{port} {}:{port} {cipher}",
            program.display(),
            addresses[here],
            addresses[there]
        );
        processes.push(nodes[here].spawn_sh(&device, &line));
        wait_for("the ceiling's device", START, || {
            nodes[here].try_sh(&format!("ip link show {device}")).success()
        });
        nodes[here].sh(&format!(
            "ip link set {device} mtu 1420 up; ip addr add 10.6.{number}.{}/24 dev {device}",
            here + 1
        ));
    }
    let target = format!("10.6.{number}.2");
    path(&format!("ceiling {cipher}"), nodes, target, Overlay::Once(processes))
}

/// A userspace WireGuard: `program` runs it in the foreground and makes the device.
pub(crate) fn wireguard(
    name: &str,
    program: impl Fn(&str) -> String + 'static,
    number: u8,
    nodes: [Node; 2],
    addresses: &[String; 2],
) -> Path {
    // Their control sockets are named by the device, in the one /var/run there is.
    let devices = [0, 1].map(|at| format!("wgb{number}{at}"));
    let port = 7100 + u16::from(number);
    let keys = nodes.each_ref().map(|node| {
        let private = node.folder().join(format!("key-{number}"));
        let private = private.display().to_string();
        let public = node.sh(&format!("umask 077; wg genkey > {private}; wg pubkey < {private}"));
        (private, public.trim().to_owned())
    });
    let settings = PAIRS.map(|(here, there)| {
        format!(
            "wg set {device} private-key {private} listen-port {port} peer {public} \
             endpoint {there}:{port} allowed-ips 10.7.{number}.{that}/32 && \
             ip addr add 10.7.{number}.{this}/24 dev {device} && ip link set {device} mtu 1420 up",
            device = devices[here],
            private = keys[here].0,
            public = keys[there].1,
            there = addresses[there],
            that = there + 1,
            this = here + 1,
        )
    });
    let (hosts, names) = (nodes.clone(), devices.clone());
    let start = move || {
        let each = || hosts.iter().zip(&names);
        let processes = each().map(|(node, device)| node.spawn_sh(device, &program(device)));
        let processes = processes.collect();
        for ((node, device), settings) in each().zip(&settings) {
            until(node, &format!("wg show {device}"));
            node.sh(settings);
        }
        processes
    };
    rival(name, nodes, format!("10.7.{number}.2"), devices, start)
}

/// Nebula with AES, as it comes.
pub(crate) fn nebula(program: &str, lab: &Lab, nodes: [Node; 2], addresses: &[String; 2]) -> Path {
    let folder = lab.folder().join("nebula");
    std::fs::create_dir_all(&folder).expect("the lab's folder can be written");
    let run = |line: &str| {
        nodes[0].sh(&format!("cd {} && {line}", folder.display()));
    };
    run("nebula-cert ca -name bench");
    let lines = PAIRS.map(|(here, there)| {
        run(&format!("nebula-cert sign -name h{here} -ip 10.5.0.{}/24", here + 1));
        let settings = format!(
            "pki: {{ca: {f}/ca.crt, cert: {f}/h{here}.crt, key: {f}/h{here}.key}}\n\
             static_host_map: {{\"10.5.0.{t}\": [\"{a}:4242\"]}}\n\
             lighthouse: {{am_lighthouse: false, hosts: []}}\n\
             listen: {{host: 0.0.0.0, port: 4242}}\n\
             tun: {{dev: neb{here}, mtu: 1420}}\n\
             firewall: {{outbound: [{{port: any, proto: any, host: any}}], inbound: [{{port: any, proto: any, host: any}}]}}\n",
            f = folder.display(),
            t = there + 1,
            a = addresses[there],
        );
        let file = folder.join(format!("h{here}.yml"));
        std::fs::write(&file, settings).expect("the lab's folder can be written");
        format!("exec {program} -config {}", file.display())
    });
    let devices = ["neb0".to_owned(), "neb1".to_owned()];
    let start = programs("nebula", &nodes, &devices, lines, "10.5.0");
    rival("nebula", nodes, "10.5.0.2".to_owned(), devices, start)
}

/// vpncloud as a router, with what cipher it finds fastest.
pub(crate) fn vpncloud(program: &str, nodes: [Node; 2], addresses: &[String; 2]) -> Path {
    for node in &nodes {
        // It finds out its own address by the route that leads everywhere, and panics without one.
        node.sh("ip route replace default dev eth0");
    }
    let lines = PAIRS.map(|(here, there)| {
        format!(
            "exec {program} -t tun -d vpc{here} --ip 10.4.0.{this} -l {}:3210 -c {}:3210 \
             --password bench --no-port-forwarding --no-auto-claim --claim 10.4.0.{this}/32 \
             --ifup 'ip link set vpc{here} mtu 1420 up; ip addr add 10.4.0.{this}/24 dev vpc{here}'",
            addresses[here],
            addresses[there],
            this = here + 1,
        )
    });
    let devices = ["vpc0".to_owned(), "vpc1".to_owned()];
    let start = programs("vpncloud", &nodes, &devices, lines, "10.4.0");
    rival("vpncloud", nodes, "10.4.0.2".to_owned(), devices, start)
}

/// Programs that give their devices their addresses by themselves.
fn programs(
    name: &'static str,
    nodes: &[Node; 2],
    devices: &[String; 2],
    lines: [String; 2],
    network: &'static str,
) -> impl Fn() -> Vec<Process> + use<> {
    let (nodes, devices) = (nodes.clone(), devices.clone());
    move || {
        let processes =
            nodes.iter().zip(&lines).map(|(node, line)| node.spawn_sh(name, line)).collect();
        for (node, device) in nodes.iter().zip(&devices) {
            until(node, &format!("ip -o addr show {device} | grep -q {network}"));
        }
        processes
    }
}
