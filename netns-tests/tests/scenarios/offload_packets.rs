//! Packet headers under offload, on real kernels: a receiver sees it as if there were no
//! large packets on the way.

use std::net::Ipv4Addr;
use std::time::Duration;

use isthmus_netns_tests::{Host, Mesh, Process, wait_for};
use serde_json::{Value, json};

/// Both ends' addresses are rewritten: the client's to its workload's, the server's from its
/// virtual one.
const TOPOLOGY: &str = r#"
[host.app-1]
[host.web-1]

[service.client]
port = 7001
hosts = ["app-1"]
workload = { user = "0" }

[service.see-tcp]
port = 7000
hosts = ["web-1"]

[service.see]
port = 7000
protocol = "udp"
hosts = ["web-1"]
workload = { user = "0" }

[[allow]]
name = "client sends"
from = "service:client"
to = ["service:see-tcp", "service:see"]
"#;

const WIDE: &str = r#"
[host.app-2]

[service.wide]
port = 7002
hosts = ["app-2"]

[[allow]]
name = "client sends to a third"
from = "service:client"
to = "service:wide"
"#;

/// Prints each datagram: its length, sum, traffic class and options. Answers what it got by TCP
/// with its digest.
const OBSERVER: &str = include_str!("programs/offload_packets_observer.py");

/// Sends as its first argument says, and prints what the observer should see.
const SENDER: &str = include_str!("programs/offload_packets_sender.py");

struct Watch {
    mesh: Mesh,
    observer: Process,
    sender: String,
    /// The virtual addresses, IPv4 and IPv6.
    datagrams: [String; 2],
    streams: [String; 2],
}

impl Watch {
    /// A mesh whose hosts have bulk sessions, and an observer on one of them.
    fn start() -> Self {
        Self::on(Mesh::new(&["app-1", "web-1"]), TOPOLOGY)
    }

    /// Likewise, by links that carry what stands for many whole, as between VMs of one machine: so
    /// the receiver gets it in large pieces, too.
    fn start_near() -> Self {
        let watch = Self::start();
        let links = [&watch.app().node, &watch.web().node].map(|node| (node, "eth0".to_owned()));
        let ports = ["app-1", "web-1"].map(|name| (&watch.mesh.switch, format!("p-{name}")));
        for (node, link) in links.into_iter().chain(ports) {
            node.sh(&format!("ethtool -K {link} tx on tx-udp-segmentation on"));
        }
        watch
    }

    fn on(mesh: Mesh, topology: &str) -> Self {
        mesh.apply(topology);
        let (app, web) = (mesh.host("app-1"), mesh.host("web-1"));
        let program = |host: &Host, name: &str, text: &str| {
            let file = host.node.folder().join(name);
            std::fs::write(&file, text).expect("the lab's folder can be written");
            file.display().to_string()
        };
        let sender = program(app, "sender.py", SENDER);
        let observer = program(web, "observer.py", OBSERVER);
        let observer = web.node.spawn_sh("observer", &format!("exec python3 {observer}"));
        wait_for("the observer is ready", Duration::from_secs(10), || {
            observer.output().contains("ready")
        });
        let (address, _) = web.addresses();
        wait_for("a bulk session", Duration::from_secs(10), || {
            let is_heard = app.node.try_sh(&format!("ping -c 1 -W 1 {address}")).success();
            let peers = app.agentctl(&["peers", "-o", "json"]).json();
            let web =
                peers.as_array().and_then(|all| all.iter().find(|one| one["name"] == "web-1"));
            let cipher = web.and_then(|web| web["cipher"].as_str());
            is_heard && cipher.is_some_and(|cipher| !cipher.is_empty() && cipher != "wireguard")
        });
        let addresses = |service: &str| {
            let (v4, v6) = mesh.virtual_addresses(service);
            [v4.to_string(), v6.to_string()]
        };
        let (datagrams, streams) = (addresses("see"), addresses("see-tcp"));
        Self { mesh, observer, sender, datagrams, streams }
    }

    fn app(&self) -> &Host {
        self.mesh.host("app-1")
    }

    fn web(&self) -> &Host {
        self.mesh.host("web-1")
    }

    /// What the observer has seen so far.
    fn seen(&self) -> Vec<Value> {
        let output = self.observer.output();
        let lines = output.lines().filter(|line| line.starts_with('['));
        lines.map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
    }

    /// Runs the sender, and gives what it says: by then the observer has seen all that arrives.
    #[track_caller]
    fn send(&self, kind: &str, address: &str) -> Vec<Value> {
        let (sender, agent) = (&self.sender, self.app().agent_id());
        let said = self.app().node.sh(&format!("python3 {sender} {kind} {address} {agent}"));
        serde_json::from_str(&said).expect("the sender prints JSON")
    }

    /// Frames that the receiver's kernel has got from its device.
    fn frames(&self) -> u64 {
        let link = self.web().node.sh("ip -j -s link show isth0");
        let link: Value = serde_json::from_str(&link).expect("ip prints JSON");
        link[0]["stats64"]["rx"]["packets"].as_u64().expect("a number")
    }

    /// Runs the sender; the observer must see just what it says, in this order.
    #[track_caller]
    fn all_arrives(&self, kind: &str, address: &str) {
        let before = self.seen().len();
        let expected = self.send(kind, address);
        let seen = &self.seen()[before..];
        let differs = seen.iter().zip(&expected).position(|(seen, expected)| seen != expected);
        if let Some(at) = differs {
            panic!("{kind} to {address}: number {at} was {}, is {}", expected[at], seen[at]);
        }
        assert_eq!(seen.len(), expected.len(), "{kind} to {address}");
    }
}

/// One of the kernel's counters.
fn count(host: &Host, name: &str) -> u64 {
    let said = host.node.sh(&format!("nstat -asz {name} | awk '/^{name} / {{ print $2 }}'"));
    said.trim().parse().expect("a number")
}

#[test]
fn classes_options_and_sizes_arrive_as_they_were_sent() {
    let watch = Watch::start_near();
    for address in &watch.datagrams {
        for kind in ["classes", "large", "segments"] {
            watch.all_arrives(kind, address);
        }
    }
    let [v4, v6] = &watch.datagrams;
    watch.all_arrives("options", v4);
    watch.all_arrives("extensions", v6);
}

#[test]
fn order_and_duplicates_are_the_senders() {
    let watch = Watch::start_near();
    for address in &watch.datagrams {
        let before = watch.frames();
        watch.all_arrives("order", address);
        let frames = watch.frames() - before;
        assert!(frames < 150, "200 packets and more in {frames} frames: were they put together?");
    }
}

#[test]
fn wrong_checksums_reach_the_receiving_kernel_as_they_are() {
    let watch = Watch::start_near();
    for (address, counter) in watch.datagrams.iter().zip(["UdpInCsumErrors", "Udp6InCsumErrors"]) {
        watch.all_arrives("broken", address);
        assert_eq!(count(watch.web(), counter), 40, "{counter}");
    }
    for (number, address) in (1..).zip(&watch.streams) {
        assert!(watch.send("broken_tcp", address).is_empty());
        assert_eq!(count(watch.web(), "TcpInCsumErrors"), number * 40);
    }
}

#[test]
fn datagrams_that_the_underlay_doubles_arrive_once() {
    let watch = Watch::start();
    watch.mesh.switch.sh("nft add table netdev faults && \
         nft add chain netdev faults twice '{ type filter hook ingress device p-app-1 priority 0; }' && \
         nft add rule netdev faults twice meta l4proto udp counter dup to p-web-1");
    for address in &watch.datagrams {
        watch.all_arrives("segments", address);
    }
    // The copies came, and were refused.
    let refused = watch.web().metric("isthmus_dropped_packets_total", "unauthentic");
    assert!(refused > 100.0, "{refused}");
}

#[test]
fn tcp_recovers_from_loss_with_sack_and_timestamps() {
    let watch = Watch::start();
    watch.web().node.lose("eth0", 2);
    for address in &watch.streams {
        let options = watch.send("tcp", address);
        assert_eq!(options, [json!({ "timestamps": true, "sack": true, "ecn": false })]);
    }
    assert!(count(watch.app(), "TcpExtTCPSackRecovery") > 0, "nothing was lost");
    assert_eq!(count(watch.web(), "TcpInCsumErrors"), 0);
}

#[test]
fn marks_of_congestion_reach_both_ends_of_a_connection() {
    let watch = Watch::start_near();
    for host in [watch.app(), watch.web()] {
        host.node.sh("sysctl -qw net.ipv4.tcp_ecn=1");
    }
    // As a congested router between the sender and its tunnel would.
    watch.app().node.sh("nft add table inet marks && \
         nft add chain inet marks out '{ type filter hook output priority 0; }' && \
         nft add rule inet marks out oifname isth0 ip ecn ect0 numgen random mod 10 == 0 ip ecn set ce && \
         nft add rule inet marks out oifname isth0 ip6 ecn ect0 numgen random mod 10 == 0 ip6 ecn set ce");
    for address in &watch.streams {
        let options = watch.send("tcp", address);
        assert_eq!(options, [json!({ "timestamps": true, "sack": true, "ecn": true })]);
    }
    for counter in ["IpExtInCEPkts", "Ip6InCEPkts"] {
        assert!(count(watch.web(), counter) > 0, "{counter}");
    }
    assert!(count(watch.app(), "TcpExtTCPDeliveredCE") > 0, "the sender isn't told");
}

#[test]
fn a_host_on_a_narrow_network_is_served_beside_others() {
    let mut mesh = Mesh::new(&["app-1", "app-2"]);
    mesh.add_host("web-1").node.sh("ip link set eth0 mtu 1280");
    mesh.switch.sh("ip link set p-web-1 mtu 1280");
    mesh.join("web-1").expect_success_line();
    let watch = Watch::on(mesh, &format!("{TOPOLOGY}{WIDE}"));
    let wide = watch.mesh.host("app-2").addresses().0;
    let narrow = watch.web().addresses().0;
    let ping = |size: u32, address: Ipv4Addr| {
        let line = format!("ping -c 1 -W 2 -M do -s {} {address}", size - 28);
        watch.app().node.try_sh(&line).success()
    };
    wait_for("both paths are measured", Duration::from_secs(10), || {
        let peers = watch.app().agentctl(&["peers", "-o", "json"]).json();
        let width = |name: &str| {
            let peer = peers.as_array()?.iter().find(|peer| peer["name"] == name)?;
            peer["path_mtu"].as_u64()
        };
        ping(100, wide) && (width("web-1"), width("app-2")) == (Some(1280), Some(1500))
    });
    assert!(ping(1220, narrow) && !ping(1221, narrow), "what may not be fragmented");
    assert!(ping(1420, wide), "others aren't made narrow");
    for (stream, datagrams) in watch.streams.iter().zip(&watch.datagrams) {
        assert_eq!(watch.send("tcp", stream).len(), 1);
        watch.all_arrives("narrow", datagrams);
    }
}
