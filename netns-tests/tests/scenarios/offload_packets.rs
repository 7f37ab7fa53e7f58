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
const OBSERVER: &str = r#"
import hashlib, json, socket, threading, zlib
V4, V6 = socket.IPPROTO_IP, socket.IPPROTO_IPV6
SO_RCVBUFFORCE = 33
printing = threading.Lock()
def see(sock):
    while True:
        data, control, _, peer = sock.recvmsg(1 << 17, 4096)
        tos, options = 0, []
        for level, kind, value in control:
            if (level, kind) in [(V4, socket.IP_TOS), (V6, socket.IPV6_TCLASS)]:
                tos = value[0]
            else:
                options.append([kind, value.hex()])
        with printing:
            print(json.dumps([len(data), zlib.crc32(data), tos, options]), flush=True)
        sock.sendto(b"seen", peer)
def sink(listener):
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=digest, args=(connection,), daemon=True).start()
def digest(connection):
    got = hashlib.sha256()
    while data := connection.recv(1 << 20):
        got.update(data)
    connection.sendall(got.digest())
    connection.close()
threads = []
for family, level, wishes in [
    (socket.AF_INET, V4, [socket.IP_RECVTOS, socket.IP_RECVOPTS]),
    (socket.AF_INET6, V6, [socket.IPV6_RECVTCLASS, socket.IPV6_RECVHOPOPTS, socket.IPV6_RECVDSTOPTS]),
]:
    sock, listener = socket.socket(family, socket.SOCK_DGRAM), socket.socket(family)
    for one in sock, listener:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            one.setsockopt(V6, socket.IPV6_V6ONLY, 1)
        one.bind(("", 7000))
    sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 16 << 20)
    for wish in wishes:
        sock.setsockopt(level, wish, 1)
    listener.listen()
    threads += [threading.Thread(target=see, args=(sock,)), threading.Thread(target=sink, args=(listener,))]
for thread in threads:
    thread.start()
print("ready", flush=True)
"#;

/// Sends as its first argument says, and prints what the observer should see.
const SENDER: &str = r#"
import errno, hashlib, json, os, random, signal, socket, struct, sys, zlib
SO_SNDBUFFORCE, UDP_SEGMENT = 32, 103
V4, V6, TCP, UDP = socket.IPPROTO_IP, socket.IPPROTO_IPV6, socket.IPPROTO_TCP, socket.IPPROTO_UDP
HOP_BY_HOP, DESTINATION = socket.IPV6_HOPOPTS, socket.IPV6_DSTOPTS
kind, address, agent = sys.argv[1], sys.argv[2], int(sys.argv[3])
v6 = ":" in address
family = socket.AF_INET6 if v6 else socket.AF_INET
expected = []

def udp():
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 16 << 20)
    sock.connect((address, 7000))
    sock.settimeout(5)
    return sock
def seen(sock, count):
    """Waits for the observer: whose a flow is can be told only while there is a socket."""
    for _ in range(count):
        sock.recv(10)
def expect(data, tos=0, options=()):
    expected.append([len(data), zlib.crc32(data), tos, list(options)])
def send(sock, data, **kwargs):
    sock.send(data)
    expect(data, **kwargs)
    seen(sock, 1)
def send_segments(sock, size, count, **kwargs):
    data = os.urandom(size * count - size // 2)
    sock.send(data)
    for at in range(0, len(data), size):
        expect(data[at:at + size], **kwargs)
    seen(sock, count)

def total(data):
    data += b"\0" * (len(data) % 2)
    value = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while value >> 16:
        value = (value & 0xffff) + (value >> 16)
    return value
def packet(sock, protocol, segment, field, identification, spoil=0):
    """A hand-made one of a socket's flow; `spoil` is added to its checksum."""
    source, destination = (socket.inet_pton(family, a[0]) for a in (sock.getsockname(), sock.getpeername()))
    pseudo = source + destination + struct.pack("!II", len(segment), protocol)
    value = (~total(pseudo + segment) & 0xffff) ^ spoil or 0xffff
    segment = segment[:field] + struct.pack("!H", value) + segment[field + 2:]
    if v6:
        head = struct.pack("!IHBB", 6 << 28, len(segment), protocol, 64)
    else:
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(segment), identification, 0, 64, protocol, 0)
    return head + source + destination + segment
def datagram(sock, data, identification, spoil=0):
    ports = sock.getsockname()[1], 7000
    return packet(sock, UDP, struct.pack("!HHHH", *ports, 8 + len(data), 0) + data, 6, identification, spoil)
def send_raw(packets):
    """All at once, as far as the agent can tell."""
    sock = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW)
    os.kill(agent, signal.SIGSTOP)
    try:
        for one in packets:
            sock.sendto(one, (address, 0))
    finally:
        os.kill(agent, signal.SIGCONT)

def classes():
    for tos in [0, 1, 2, 3, 0x29, 0xba, 0xff]:
        sock = udp()
        sock.setsockopt(*(V6, socket.IPV6_TCLASS) if v6 else (V4, socket.IP_TOS), tos)
        send(sock, os.urandom(700), tos=tos)
        sock.setsockopt(UDP, UDP_SEGMENT, 500)
        send_segments(sock, 500, 20, tos=tos)
def options():
    # No operation and a stream identifier; the last is the end.
    value = bytes([1, 1, 136, 4, 0, 9, 0, 0])
    for size in [0, 100, 1300, 5000]:
        sock = udp()
        sock.setsockopt(V4, socket.IP_OPTIONS, value)
        for _ in range(3):
            send(sock, os.urandom(size), options=[[socket.IP_RECVOPTS, value.hex()]])
def extensions():
    # Padding; the first byte becomes the next header's kind.
    value = bytes([0, 0, 1, 4, 0, 0, 0, 0])
    seen_as = lambda last: bytes([UDP if last else socket.IPPROTO_DSTOPTS]).hex() + value[1:].hex()
    for kinds in [[HOP_BY_HOP], [DESTINATION], [HOP_BY_HOP, DESTINATION]]:
        for size in [0, 100, 1200, 5000]:
            sock = udp()
            for kind in kinds:
                sock.setsockopt(V6, kind, value)
            for _ in range(3):
                options = [[kind, seen_as(kind == kinds[-1])] for kind in kinds]
                send(sock, os.urandom(size), options=options)
def large():
    sock = udp()
    for size in [1392, 1393, 1500, 9000, 40000, 65507, 0, 65507, 1]:
        send(sock, os.urandom(size))
def segments():
    for size in [1, 7, 536, 1000, 1200, 1372]:
        sock = udp()
        sock.setsockopt(UDP, UDP_SEGMENT, size)
        for count in [2, 40, 63, 64, 65, 100, 128]:
            if size * count <= 65000:
                send_segments(sock, size, count)
def narrow():
    sock = udp()
    # The kernel forbids to fragment what fits the device. One that doesn't fit the path is lost;
    # it's told, and fragments the next.
    for size in [1, 1100, 1180, 1300, 1372, 3000, 9000, 40000]:
        while True:
            try:
                send(sock, os.urandom(size))
                break
            except OSError as error:
                assert error.errno == errno.EMSGSIZE, error
                expected.pop()
def order():
    sock = udp()
    send(sock, b"first")
    rows = [(number, struct.pack("!I", number) + os.urandom(996)) for number in range(200)]
    dice = random.Random(3)
    for at in range(199):
        if dice.random() < 0.2:
            rows[at], rows[at + 1] = rows[at + 1], rows[at]
    rows = [row for row in rows for _ in range(1 if dice.random() < 0.8 else 2)]
    send_raw(datagram(sock, data, number) for number, data in rows)
    for _, data in rows:
        expect(data)
    seen(sock, len(rows))
def broken():
    sock = udp()
    send(sock, b"first")
    rows = [(os.urandom(1000), 0x1100 if number % 5 == 2 else 0) for number in range(200)]
    send_raw(datagram(sock, data, number, spoil) for number, (data, spoil) in enumerate(rows))
    for data, spoil in rows:
        if not spoil:
            expect(data)
    seen(sock, 160)
def broken_tcp():
    sock = socket.create_connection((address, 7000), timeout=10)
    ports = sock.getsockname()[1], 7000
    head = lambda at: struct.pack("!HHIIBBHHH", *ports, at, 1, 0x50, 0x10, 500, 0, 0)
    text = b"never to be seen"
    rows = [head(at * len(text)) + text for at in range(40)]
    send_raw(packet(sock, TCP, one, 16, at, 0x1100) for at, one in enumerate(rows))
    # The connection takes no notice.
    sock.sendall(b"data")
    sock.shutdown(socket.SHUT_WR)
    assert sock.recv(32) == hashlib.sha256(b"data").digest()
def tcp():
    sock = socket.create_connection((address, 7000), timeout=30)
    digest = hashlib.sha256()
    for _ in range(160):
        block = os.urandom(1 << 16)
        digest.update(block)
        sock.sendall(block)
    # struct tcp_info: which options are in use.
    options = sock.getsockopt(TCP, socket.TCP_INFO, 8)[5]
    sock.shutdown(socket.SHUT_WR)
    answer = b""
    while piece := sock.recv(64):
        answer += piece
    assert answer == digest.digest(), "what came isn't what was sent"
    expected.append({"timestamps": bool(options & 1), "sack": bool(options & 2), "ecn": bool(options & 8)})
globals()[kind]()
print(json.dumps(expected))
"#;

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
