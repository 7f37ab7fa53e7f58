//! What Isthmus is compared with. Each joins two hosts on one switch.

use std::path::Path as FilePath;
use std::time::Duration;

use isthmus_netns_tests::{Lab, Node, Process, wait_for};

use crate::l3::Path;

const START: Duration = Duration::from_secs(20);

/// The programs of a rival, in the order of the hosts.
fn path(name: &str, nodes: [Node; 2], target: String, processes: Vec<Process>) -> Path {
    let [client, server] = nodes;
    Path { name: name.to_owned(), client, server, target, processes, pids: None }
}

/// No overlay at all.
pub(crate) fn veth(nodes: [Node; 2], addresses: &[String; 2]) -> Path {
    path("veth", nodes, addresses[1].clone(), Vec::new())
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
    for (here, there) in [(0, 1), (1, 0)] {
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
    path(&format!("ceiling {cipher}"), nodes, format!("10.6.{number}.2"), processes)
}

/// A userspace WireGuard: `start` runs it in the foreground and makes the device.
pub(crate) fn wireguard(
    name: &str,
    start: impl Fn(&str) -> String,
    number: u8,
    nodes: [Node; 2],
    addresses: &[String; 2],
) -> Path {
    let device = format!("wgb{number}");
    let port = 7100 + u16::from(number);
    let (mut processes, mut keys) = (Vec::new(), Vec::new());
    for (at, node) in nodes.iter().enumerate() {
        // Their control sockets are named by the device, in the one /var/run there is.
        let device = format!("{device}{at}");
        processes.push(node.spawn_sh(&device, &start(&device)));
        wait_for("the tunnel's device", START, || {
            node.try_sh(&format!("wg show {device}")).success()
        });
        let key = node.folder().join(format!("key-{number}"));
        let key = key.display();
        keys.push(node.sh(&format!(
            "umask 077; wg genkey > {key}; wg set {device} private-key {key} listen-port {port}; \
             wg pubkey < {key}"
        )));
    }
    for (here, there) in [(0, 1), (1, 0)] {
        nodes[here].sh(&format!(
            "wg set {device}{here} peer {} endpoint {}:{port} allowed-ips 10.7.{number}.{}/32; \
             ip addr add 10.7.{number}.{}/24 dev {device}{here}; ip link set {device}{here} mtu 1420 up",
            keys[there].trim(),
            addresses[there],
            there + 1,
            here + 1
        ));
    }
    path(name, nodes, format!("10.7.{number}.2"), processes)
}

/// Nebula with AES, as it comes.
pub(crate) fn nebula(lab: &Lab, nodes: [Node; 2], addresses: &[String; 2]) -> Path {
    let folder = lab.folder().join("nebula");
    std::fs::create_dir_all(&folder).expect("the lab's folder can be written");
    let run = |line: &str| {
        nodes[0].sh(&format!("cd {} && {line}", folder.display()));
    };
    run("nebula-cert ca -name bench");
    let mut processes = Vec::new();
    for (here, there) in [(0, 1), (1, 0)] {
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
        processes.push(
            nodes[here].spawn_sh("nebula", &format!("exec nebula -config {}", file.display())),
        );
    }
    for (node, device) in nodes.iter().zip(["neb0", "neb1"]) {
        wait_for("nebula's device", START, || {
            node.try_sh(&format!("ip addr show {device} | grep -q 10.5.0")).success()
        });
    }
    path("nebula", nodes, "10.5.0.2".to_owned(), processes)
}

/// vpncloud as a router, with what cipher it finds fastest.
pub(crate) fn vpncloud(nodes: [Node; 2], addresses: &[String; 2]) -> Path {
    let mut processes = Vec::new();
    for (here, there) in [(0, 1), (1, 0)] {
        processes.push(nodes[here].spawn_sh(
            "vpncloud",
            &format!(
                "exec vpncloud -t tun -d vpc{here} --ip 10.4.0.{} -l {}:3210 -c {}:3210 --password bench \
                 --ifup 'ip link set vpc{here} mtu 1420 up; ip addr add 10.4.0.{}/24 dev vpc{here}'",
                here + 1, addresses[here], addresses[there], here + 1,
            ),
        ));
    }
    for (node, device) in nodes.iter().zip(["vpc0", "vpc1"]) {
        wait_for("vpncloud's device", START, || {
            node.try_sh(&format!("ip addr show {device} | grep -q 10.4.0")).success()
        });
    }
    path("vpncloud", nodes, "10.4.0.2".to_owned(), processes)
}
