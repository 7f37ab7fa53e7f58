//! Nobody gets around the proxy: not by other addresses and ports, not while its agent is down.

use std::time::Duration;

use isthmus_netns_tests::{Mesh, Output, Process, wait_for};

const CLIENT: u32 = 40_002;
const WEB: u32 = 40_001;

const TOPOLOGY: &str = r#"
[host.app-1]
[host.srv-1]

[service.client]
namespace = "prod"
port = 9000
hosts = ["app-1"]
workload = { user = "40002" }

[service.web]
namespace = "prod"
port = 8080
protocol = "http"
hosts = ["srv-1"]
workload = { user = "40001" }

[service.mixed]
namespace = "prod"
port = 8081
protocol = "auto"
hosts = ["srv-1"]
workload = { user = "40003" }

[service.sealed]
namespace = "prod"
port = 8082
protocol = "tls"
hosts = ["srv-1"]
workload = { user = "40004" }

[[allow]]
name = "client reads what is public"
from = "service:client"
to = ["service:web", "service:mixed"]
http = [{ method = "GET", path = "/public" }]

# Towards a host, this covers all ports: not those of services that have requests to judge.
[[allow]]
name = "client looks after the server"
from = "service:client"
to = "host:srv-1"

[[allow]]
name = "client opens one shop"
from = "service:client"
to = "service:sealed"
sni = "shop.example"
"#;

/// Accepts connections and prints what comes.
const SINK: &str = include_str!("programs/bypass_sink.py");

/// Sends a text to each of the addresses, and says who answered.
const KNOCK: &str = include_str!("programs/bypass_knock.py");

struct Lab {
    mesh: Mesh,
    sink: Process,
    /// Of the services' workloads.
    workloads: Vec<String>,
}

fn lab() -> Lab {
    let mesh = Mesh::new(&["app-1", "srv-1"]);
    mesh.apply(TOPOLOGY);
    let srv = mesh.host("srv-1");
    let mut command = srv.node.command_as(WEB, None, "python3");
    command.args(["-u", "-c", SINK, "8080", "8081", "8082"]);
    let sink = srv.node.spawn("sink", command);
    wait_for("it listens", Duration::from_secs(10), || {
        srv.node
            .sh("ss -Hltn '( sport = :8080 or sport = :8081 or sport = :8082 )'")
            .lines()
            .count()
            == 3
    });
    let services = mesh.agentctl(&["service", "list", "-o", "json"]).json();
    let workloads = ["web", "mixed", "sealed"].iter().flat_map(|name| {
        let all = services.as_array().expect("a list");
        let service = all.iter().find(|it| it["name"] == *name).expect("the service is there");
        let workload = service["workloads"][0].clone();
        ["ipv4", "ipv6"].map(|key| workload[key].as_str().expect("an address").to_owned())
    });
    let workloads = workloads.collect();
    Lab { sink, workloads, mesh }
}

impl Lab {
    /// As the client, or with its agent down as nobody.
    fn knock(&self, text: &str, places: &[String]) -> String {
        let app = self.mesh.host("app-1");
        let mut command = app.node.command_as(CLIENT, None, "python3");
        command.args(["-c", KNOCK, text]).args(places);
        Output::of(command).expect_success()
    }

    fn heard(&self) -> String {
        self.sink.output()
    }

    /// All workloads' addresses with each of the ports.
    fn places(&self, ports: &[u16]) -> Vec<String> {
        let mut places = Vec::new();
        for address in &self.workloads {
            places.extend(ports.iter().map(|port| format!("{address}/{port}")));
        }
        places
    }
}

const ALLOWED: &str = "GET /public HTTP/1.1\\r\\nhost: a\\r\\n\\r\\n";
const DENIED: &str = "GET /secret HTTP/1.1\\r\\nhost: a\\r\\n\\r\\n";

#[test]
fn other_addresses_and_ports_lead_around_nothing() {
    let lab = lab();
    let (v4, v6) = (lab.workloads[0].clone(), lab.workloads[1].clone());
    // What is allowed works, so that the rest says something.
    let allowed = lab.knock(ALLOWED, &[format!("{v4}/8080"), format!("{v6}/8080")]);
    assert_eq!(allowed.matches("200 OK").count(), 2, "{allowed}");
    let mixed = lab.knock(ALLOWED, &[format!("{}/8081", lab.workloads[2])]);
    assert!(mixed.contains("200 OK"), "{mixed}");
    wait_for("both have come", Duration::from_secs(5), || {
        lab.heard().matches("/public").count() == 3
    });

    let (host4, host6) = lab.mesh.host("srv-1").addresses();
    let mut places = lab.places(&[8080, 8081, 8082, 15_001]);
    for host in [host4.to_string(), host6.to_string()] {
        places.extend([8080, 8081, 8082, 15_001].map(|port| format!("{host}/{port}")));
    }
    for name in ["web", "mixed", "sealed"] {
        let (v4, v6) = lab.mesh.virtual_addresses(name);
        for address in [v4.to_string(), v6.to_string()] {
            places.extend([8080, 8081, 8082, 15_001].map(|port| format!("{address}/{port}")));
        }
    }
    for text in
        [DENIED, "GET /secret\\r\\n", " GET /secret HTTP/1.1\\r\\n\\r\\n", "HELLO there\\r\\n"]
    {
        let answers = lab.knock(text, &places);
        assert!(!answers.contains("200 OK"), "{text}: {answers}");
    }
    // TLS to another name, and to none.
    for name in ["vault.example", ""] {
        let flag = if name.is_empty() {
            "-noservername".to_owned()
        } else {
            format!("-servername {name}")
        };
        let line = format!(
            "timeout 5 openssl s_client -connect {}:8082 {flag} </dev/null 2>&1",
            lab.workloads[4]
        );
        let mut command = lab.mesh.host("app-1").node.command_as(CLIENT, None, "sh");
        command.args(["-c", &line]);
        let said = Output::of(command).expect_failure();
        assert!(said.contains("alert") || said.contains("reset"), "{said}");
    }
    assert!(!lab.heard().contains("secret"), "{}", lab.heard());
    assert!(!lab.heard().contains("HELLO"), "{}", lab.heard());
    assert!(!lab.heard().contains("8082"), "{}", lab.heard());
}

#[test]
fn while_its_agent_is_down_a_service_is_not_reachable() {
    let mut lab = lab();
    for how in ["terminated", "killed"] {
        let agent = lab.mesh.host_mut("srv-1").agent();
        match how {
            "terminated" => {
                let _ = agent.terminate(Duration::from_secs(20));
            }
            _ => agent.kill(),
        }
        let mut places = lab.places(&[8080, 8081, 8082, 15_001]);
        for name in ["web", "mixed", "sealed"] {
            places.push(format!("{}/8080", lab.mesh.virtual_addresses(name).0));
        }
        // The callers' own proxy may say that nobody answers.
        let answers = lab.knock(ALLOWED, &places).replace("b'HTTP/1.1 503 ", "");
        assert!(!answers.contains("b'"), "{how}: {answers}");
        // A neighbour that puts the overlay's addresses onto the wire.
        let neighbour = &lab.mesh.controller_node;
        let underlay = lab.mesh.host("srv-1").node.sh("ip -4 -o addr show dev eth0");
        let underlay = underlay.split_whitespace().nth(3).and_then(|it| it.split('/').next());
        let underlay = underlay.expect("eth0 has an address").to_owned();
        for address in lab.workloads.iter().filter(|it| !it.contains(':')) {
            neighbour.sh(&format!("ip route replace {address} via {underlay} dev eth0"));
        }
        let v4: Vec<String> = places.iter().filter(|it| !it.contains(':')).cloned().collect();
        let mut command = neighbour.command("python3");
        command.args(["-c", KNOCK, ALLOWED]).args(&v4);
        let answers = Output::of(command).expect_success();
        assert!(!answers.contains("b'"), "{how}: {answers}");
        // The application is there all the time, and nobody gets to it by the underlay either.
        let mut command = neighbour.command("python3");
        command.args(["-c", KNOCK, ALLOWED, &format!("{underlay}/8080")]);
        let answers = Output::of(command).expect_success();
        assert!(answers.contains("ConnectionRefused"), "{how}: {answers}");
        assert_eq!(lab.heard().matches("/public").count(), usize::from(how == "killed"));

        lab.mesh.host_mut("srv-1").start_agent();
        let place = [format!("{}/8080", lab.workloads[0])];
        wait_for("the service is back", Duration::from_secs(20), || {
            lab.knock(ALLOWED, &place).contains("200 OK")
        });
    }
}
