//! Machines that run plain WireGuard, and hosts that lie.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use isthmus_netns_tests::{Mesh, Node, Output, Process, wait_for};

const WEB: u32 = 40_001;
const LEDGER: u32 = 40_004;

/// A key pair as `wg` makes it.
struct Keys {
    private: PathBuf,
    public: String,
}

fn keys(node: &Node) -> Keys {
    let private = node.folder().join("private.key");
    let public =
        node.sh(&format!("umask 077; wg genkey > {p}; wg pubkey < {p}", p = private.display()));
    Keys { private, public: public.trim().to_owned() }
}

fn topology(public_key: &str) -> String {
    format!(
        r#"
[host.gw-1]
[host.web-1]

[service.web]
namespace = "prod"
port = 8080
hosts = ["web-1"]
workload = {{ user = "40001" }}

[service.ledger]
namespace = "prod"
port = 8081
hosts = ["web-1"]
workload = {{ user = "40004" }}

[service.gateway]
namespace = "prod"
port = 9000
hosts = ["gw-1"]
workload = {{ user = "40005" }}

[device.press]
via = "gw-1"
wireguard = {{ public_key = "{public_key}" }}

[[allow]]
name = "press reads web"
from = "device:press"
to = "service:web"

[[allow]]
name = "gateway reads the ledger"
from = "service:gateway"
to = "service:ledger"
"#
    )
}

/// wireguard-go with what `wg-quick` would do with a file; the interface is `wg0`.
fn wireguard(node: &Node, config: &str, private: &Path) -> Process {
    let process =
        node.spawn_sh("wireguard-go", "exec env WG_PROCESS_FOREGROUND=1 wireguard-go -f wg0");
    wait_for("wireguard-go makes its device", Duration::from_secs(20), || {
        node.try_sh("ip link show wg0").success() && node.try_sh("wg show wg0").success()
    });
    let values = |key: &str| -> Vec<String> {
        config
            .lines()
            .filter_map(|line| line.split_once('='))
            .filter(|(name, _)| name.trim() == key)
            .flat_map(|(_, value)| {
                value.split(',').map(|one| one.trim().to_owned()).collect::<Vec<_>>()
            })
            .collect()
    };
    let one =
        |key: &str| values(key).first().cloned().unwrap_or_else(|| panic!("no {key} in {config}"));
    node.sh(&format!(
        "wg set wg0 private-key {} peer {} endpoint {} allowed-ips {} persistent-keepalive {}",
        private.display(),
        one("PublicKey"),
        one("Endpoint"),
        values("AllowedIPs").join(","),
        one("PersistentKeepalive"),
    ));
    for address in values("Address") {
        node.sh(&format!("ip addr add {address} dev wg0"));
    }
    node.sh(&format!("ip link set wg0 mtu {} up", one("MTU")));
    for prefix in values("AllowedIPs") {
        node.sh(&format!("ip route add {prefix} dev wg0"));
    }
    process
}

#[test]
fn a_stock_wireguard_peer_reaches_what_it_may_and_nothing_else() {
    let mesh = Mesh::new(&["gw-1", "web-1"]);
    let press = mesh.lab.node("press");
    mesh.lab.plug(&press, &mesh.switch, &["10.9.0.99/24".into()], 1500);
    let keys = keys(&press);
    mesh.apply(&topology(&keys.public));
    let (gateway, web) = (mesh.host("gw-1"), mesh.host("web-1"));
    let _web = web.nginx(WEB, 8080, "return 200 'hello $remote_addr';");
    let _ledger = web.nginx(LEDGER, 8081, "return 200 secret;");

    let config = mesh.agentctl(&["device", "export", "press"]).expect_success();
    let _tunnel = wireguard(&press, &config, &keys.private);
    let own: Vec<&str> = config
        .lines()
        .filter_map(|line| line.strip_prefix("Address = "))
        .flat_map(|line| line.split(','))
        .map(|address| address.trim().split('/').next().unwrap_or_default())
        .collect();
    let dns = config
        .lines()
        .find_map(|line| line.strip_prefix("DNS = "))
        .expect("the file names a DNS server");
    let dns = dns.split(',').next().expect("a server").trim().parse().expect("an address");

    // By name, through its gateway's DNS; the server sees the device's own address.
    let curl = |family: &str, url: &str| {
        let mut command = press.command_as(0, Some(dns), "curl");
        command.args(["-sS", "--max-time", "5", family, url]);
        Output::of(command)
    };
    for family in ["-4", "-6"] {
        let page = curl(family, "http://web.prod.mesh.internal:8080/").expect_success();
        let seen = page.strip_prefix("hello ").expect("the page");
        assert!(own.contains(&seen), "{seen} is not among {own:?}");
    }
    let refused = curl("-4", "http://ledger.prod.mesh.internal:8081/");
    assert_eq!(refused.code(), Some(7), "the gateway refuses at once: {refused}");
    assert!(!curl("-6", "http://ledger.prod.mesh.internal:8081/").success());
    // A port of the host that no service has, though somebody listens there.
    let _ssh = web.node.spawn_sh("nc", "exec nc -lk 22");
    wait_for("nc listens", Duration::from_secs(5), || {
        web.node.try_sh("nc -z -w 1 127.0.0.1 22").success()
    });
    for address in
        [web.addresses().0.to_string(), workload_address(&mesh, "web", "web-1").to_string()]
    {
        let ssh = press.try_sh(&format!("nc -z -w 2 {address} 22"));
        assert!(!ssh.success(), "{address} is out of reach: {ssh}");
    }

    forged_sources_are_dropped(&mesh, &press, &config);
    assert!(gateway.log().contains("forged"), "{}", gateway.log());
}

/// The device claims the address of the gateway's own service, which may read the ledger.
fn forged_sources_are_dropped(mesh: &Mesh, press: &Node, config: &str) {
    let (gateway, web) = (mesh.host("gw-1"), mesh.host("web-1"));
    let service = workload_address(mesh, "gateway", "gw-1");
    let (ledger, _) = mesh.virtual_addresses("ledger");
    let peer = config.lines().find_map(|line| line.strip_prefix("PublicKey = ")).expect("a peer");
    press.sh(&format!(
        "wg set wg0 peer {peer} allowed-ips 0.0.0.0/0,::/0 && ip addr add {service}/32 dev wg0"
    ));
    let before = gateway.metric("isthmus_dropped_packets_total", "reason=\"forged\"");
    let log = web.nginx_log(8081).len();
    let attempt =
        press.try_sh(&format!("curl -sS --max-time 2 --interface {service} http://{ledger}:8081/"));
    assert!(!attempt.success(), "{attempt}");
    let after = gateway.metric("isthmus_dropped_packets_total", "reason=\"forged\"");
    assert!(after > before, "forged packets were counted: {before} to {after}");
    assert_eq!(web.nginx_log(8081).len(), log, "the ledger saw a request");
}

#[test]
fn a_host_that_claims_a_service_placed_elsewhere_is_dropped_and_reported() {
    let mut mesh = Mesh::new(&["gw-1", "web-1"]);
    let spare = keys(&mesh.controller_node.clone());
    // The rogue knows its host's key and speaks for a service that its host doesn't have.
    mesh.apply(
        &(topology(&spare.public).replace(
            "[device.press]",
            "[service.auditor]\nnamespace = \"prod\"\nport = 9002\nhosts = [\"web-1\"]\n\n[device.press]",
        ) + "\n[[allow]]\nname = \"auditor reads the ledger\"\nfrom = \"service:auditor\"\nto = \"service:ledger\"\n"),
    );
    let unplaced = forged_ipv6(&mesh, "auditor", "gw-1");
    let placed_elsewhere = workload_address(&mesh, "auditor", "web-1");
    let web_host = mesh.host("web-1").addresses();
    let ledger = workload_address(&mesh, "ledger", "web-1");
    let _ledger = mesh.host("web-1").nginx(LEDGER, 8081, "return 200 secret;");
    let key = private_key(&mesh);
    let port_owner = mesh.host_mut("gw-1");
    port_owner.agent().kill();
    let rogue = port_owner.node.clone();
    // A rogue has root: the filter that the agent left doesn't hold it.
    rogue.sh("nft delete table inet isthmus-isth0");

    let web_key = public_key(&mesh, "web-1");
    let _tunnel =
        rogue.spawn_sh("wireguard-go", "exec env WG_PROCESS_FOREGROUND=1 wireguard-go -f wgrogue");
    wait_for("wireguard-go makes its device", Duration::from_secs(20), || {
        rogue.try_sh("wg show wgrogue").success()
    });
    rogue.sh(&format!(
        "wg set wgrogue listen-port 51820 private-key {} peer {web_key} endpoint 10.9.0.12:51820 allowed-ips 0.0.0.0/0,::/0",
        key.display()
    ));
    rogue.sh(&format!(
        "ip link set wgrogue up && ip addr add {placed_elsewhere}/32 dev wgrogue && ip -6 addr add {unplaced}/128 dev wgrogue nodad"
    ));
    rogue.sh(&format!(
        "ip route add {ledger}/32 dev wgrogue; ip -6 route add {}/128 dev wgrogue",
        web_host.1
    ));

    let web = mesh.host("web-1");
    let before = web.metric("isthmus_dropped_packets_total", "reason=\"forged\"");
    let attempt = rogue.try_sh(&format!(
        "curl -sS --max-time 2 --interface {placed_elsewhere} http://{ledger}:8081/"
    ));
    assert!(!attempt.success(), "{attempt}");
    let between = web.metric("isthmus_dropped_packets_total", "reason=\"forged\"");
    assert!(
        between > before,
        "another host's address was dropped as forged: {before} to {between}"
    );
    let _ = rogue.try_sh(&format!("ping -6 -c 2 -W 1 -I {unplaced} {}", web_host.1));
    let after = web.metric("isthmus_dropped_packets_total", "reason=\"forged\"");
    assert!(after > between, "an unplaced service was dropped as forged: {between} to {after}");

    wait_for("the controller reports it", Duration::from_secs(15), || {
        let events = mesh.status()["events"].clone();
        events.as_array().is_some_and(|all| {
            all.iter().any(|event| event["from_host"] == "gw-1" && event["reported_by"] == "web-1")
        })
    });
}

fn service(mesh: &Mesh, name: &str) -> serde_json::Value {
    let services = mesh.agentctl(&["service", "list", "-o", "json"]).json();
    services
        .as_array()
        .and_then(|all| all.iter().find(|service| service["name"] == name))
        .unwrap_or_else(|| panic!("no {name} in {services}"))
        .clone()
}

/// The IPv4 address of a workload: `service list -o json` has `workloads: [{host, ipv4, ipv6}]`.
fn workload_address(mesh: &Mesh, name: &str, host: &str) -> Ipv4Addr {
    let service = service(mesh, name);
    let workloads = service["workloads"].as_array().expect("workloads");
    let workload =
        workloads.iter().find(|workload| workload["host"] == host).expect("placed there");
    workload["ipv4"].as_str().and_then(|text| text.parse().ok()).expect("an address")
}

/// The address that a service would have on a host, were it placed there.
fn forged_ipv6(mesh: &Mesh, name: &str, host: &str) -> std::net::Ipv6Addr {
    let mut octets = mesh.host(host).addresses().1.octets();
    octets[12..].copy_from_slice(&mesh.virtual_addresses(name).1.octets()[12..]);
    octets.into()
}

fn public_key(mesh: &Mesh, host: &str) -> String {
    let hosts = mesh.agentctl(&["host", "list", "-o", "json"]).json();
    let found =
        hosts.as_array().and_then(|all| all.iter().find(|one| one["name"] == host).cloned());
    found.and_then(|host| host["public_key"].as_str().map(str::to_owned)).expect("a key")
}

/// The stolen tunnel key of gw-1.
fn private_key(mesh: &Mesh) -> PathBuf {
    mesh.host("gw-1").node.folder().join("state/wireguard.key")
}
