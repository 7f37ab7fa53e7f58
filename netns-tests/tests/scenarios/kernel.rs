//! Interference with a host's kernel: the overlay's network comes back, a family that is switched off
//! costs that family only, and a firewall that is in the way is named.

use std::time::Duration;

use isthmus_netns_tests::{Host, Mesh, MeshOptions, wait_for, wait_for_value};

const WEB: u32 = 40_001;
const CLIENT: u32 = 40_002;
const SOON: Duration = Duration::from_secs(30);
/// A second, and what a busy machine takes.
const AT_ONCE: Duration = Duration::from_secs(4);

const TOPOLOGY: &str = r#"
[host.app-1]
[host.web-1]

[service.web]
namespace = "prod"
port = 8080
protocol = "http"
hosts = ["web-1"]
workload = { user = "40001" }

[service.client]
namespace = "prod"
port = 9000
hosts = ["app-1"]
workload = { user = "40002" }

[[allow]]
name = "client uses web"
from = "service:client"
to = "service:web"
"#;

/// Everything of the overlay that the kernel has, in one text.
const OVERLAY: &str = "{ for f in -4 -6; do ip $f rule show iif isth0; ip $f route show table 151; \
    ip $f route show dev isth0; ip $f -br addr show isth0; done; \
    ip link show isth0; } | tr -s ' ' '\\n' | sort";

#[test]
fn what_others_change_in_the_kernel_is_put_back_or_told() {
    let mut mesh = Mesh::empty(MeshOptions::default());
    for host in ["app-1", "web-1"] {
        mesh.add_host(host);
        container_bridge(mesh.host(host));
        mesh.join(host).expect_success_line();
    }
    mesh.apply(TOPOLOGY);
    let (app, web) = (mesh.host("app-1"), mesh.host("web-1"));
    let _nginx = web.nginx(WEB, 8080, "location / { return 200 ok; }");
    works(app, &["-4", "-6"]);
    let shown = mesh.agentctl(&["status"]).expect_success();
    assert!(!shown.contains("172.17.0.1"), "a container's bridge is an endpoint: {shown}");

    network_comes_back(app, web);
    a_route_into_the_mesh_is_named(app);
    a_family_costs_itself_only(&mesh, app, web);
    a_firewall_is_named(app);
    a_family_may_be_off_from_the_start(&mut mesh);
}

/// What a host with containers has: it is the same on each.
fn container_bridge(host: &Host) {
    host.node.sh("ip link add docker0 type bridge && ip addr add 172.17.0.1/16 dev docker0 && \
         ip link add c0 type veth peer name c0in && ip link set c0 master docker0 && \
         for link in docker0 c0 c0in; do ip link set $link up; done");
}

#[track_caller]
fn works(app: &Host, families: &[&str]) {
    for family in families {
        let url = "http://web.prod.mesh.internal:8080/";
        wait_for(&format!("a request by {family}"), SOON, || {
            app.curl(CLIENT, &["--fail", family, url]).success()
        });
    }
}

#[track_caller]
fn problem(host: &Host, code: &str) -> Option<(String, String)> {
    let status = host.status();
    let found = status["problems"].as_array()?.iter().find(|it| it["code"] == code)?.clone();
    let text = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
    Some((text("text"), text("remedy")))
}

fn network_comes_back(app: &Host, web: &Host) {
    for (host, taking) in [
        (app, "ip rule del iif isth0 table 151; ip -6 rule del iif isth0 table 151"),
        (
            app,
            "ip route flush table 151; ip route flush dev isth0; ip -6 route flush dev isth0 proto 151",
        ),
        (web, "ip addr flush dev isth0"),
        (web, "ip link set isth0 down"),
        (web, "ip link set isth0 name other0"),
        (web, "ip link set isth0 down; ip link set isth0 name other0; ip link set other0 up"),
        (web, "ip link set isth0 mtu 1300"),
    ] {
        let before = host.node.sh(OVERLAY);
        host.node.sh(taking);
        wait_for(&format!("back after {taking}"), AT_ONCE, || host.node.sh(OVERLAY) == before);
    }
    works(app, &["-4", "-6"]);
    let (text, remedy) =
        wait_for_value("the problem is told", SOON, || problem(web, "network-taken"));
    assert!(text.contains("MTU") && text.contains("put back"), "{text}");
    assert!(remedy.contains("ManageForeignRoutingPolicyRules"), "{remedy}");
    let (text, _) = problem(app, "network-taken").expect("it lasts for a while");
    assert!(text.contains("by process") || text.contains("by ip"), "who did it? {text}");
    assert!(app.metric("isthmus_network_restored_total", "") >= 4.0);
}

fn a_route_into_the_mesh_is_named(app: &Host) {
    for (add, named) in [
        ("ip route add 100.127.0.1/32 dev eth0", "100.127.0.1/32"),
        (
            "ip rule add pref 1 lookup 99; ip route add 100.64.0.0/10 dev eth0 table 99",
            "100.64.0.0/10",
        ),
    ] {
        app.node.sh(add);
        let (text, remedy) =
            wait_for_value("the route is told", AT_ONCE, || problem(app, "route-clash"));
        assert!(text.contains(named) && text.contains("dev eth0"), "{text}");
        app.node.sh(remedy.split('`').nth(1).unwrap_or_default());
        wait_for("the route is gone", AT_ONCE, || problem(app, "route-clash").is_none());
    }
    app.node.sh("ip rule del pref 1");
    works(app, &["-4", "-6"]);
}

fn a_family_costs_itself_only(mesh: &Mesh, app: &Host, web: &Host) {
    web.node.sh("sysctl -qw net.ipv6.conf.all.disable_ipv6=1");
    let (text, _) = wait_for_value("the problem is told", SOON, || problem(web, "ipv6-missing"));
    assert!(text.contains("net.ipv6.conf.lo.disable_ipv6"), "{text}");
    works(app, &["-4"]);
    // Another revision is accepted, with an address that IPv6 would have, too.
    mesh.apply(&format!(
        "{TOPOLOGY}\n[service.more]\nnamespace = \"prod\"\nport = 8081\nhosts = [\"web-1\"]\n\
         workload = {{ user = \"40003\" }}\n"
    ));
    wait_for("DNS says what is so", SOON, || {
        let dns = web.status()["dns"].as_str().unwrap_or_default().to_owned();
        dns.starts_with("answering on") && !dns.contains(':')
    });

    web.node.sh("sysctl -qw net.ipv6.conf.all.disable_ipv6=0");
    wait_for("the family is back", SOON, || problem(web, "ipv6-missing").is_none());
    works(app, &["-4", "-6"]);
    let six = web.node.sh("ip -6 -br addr show isth0").matches("/128").count();
    assert_eq!(six, 3, "the host's own address, and those of two workloads");
}

fn a_family_may_be_off_from_the_start(mesh: &mut Mesh) {
    mesh.host("app-1").node.sh("sysctl -qw net.ipv6.conf.lo.disable_ipv6=1");
    mesh.host_mut("app-1").agent().terminate(SOON);
    mesh.host_mut("app-1").start_agent();
    let app = mesh.host("app-1");
    let _ = wait_for_value("the problem is told", SOON, || problem(app, "ipv6-missing"));
    works(app, &["-4"]);
    app.node.sh("sysctl -qw net.ipv6.conf.lo.disable_ipv6=0");
    wait_for("the family is back", SOON, || problem(app, "ipv6-missing").is_none());
    works(app, &["-4", "-6"]);
}

fn a_firewall_is_named(app: &Host) {
    app.node.sh(
        "nft 'add table inet fw; add chain inet fw in { type filter hook input priority 0; policy drop; }; \
         add rule inet fw in iifname { lo, eth0 } accept'",
    );
    let (text, remedy) =
        wait_for_value("the firewall is told of", SOON, || problem(app, "firewall-proxy"));
    assert!(text.contains("chain inet fw in"), "{text}");
    let command = remedy.split('`').nth(1).unwrap_or_default();
    assert_eq!(command, "nft insert rule inet fw in iifname isth0 accept");
    app.node.sh(command);
    wait_for("the firewall lets it pass", SOON, || problem(app, "firewall-proxy").is_none());
    works(app, &["-4", "-6"]);
}
