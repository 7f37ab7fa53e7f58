//! Nobody goes around the mesh on a service's own host, takes its port, or sends without an identity.

use std::process::Command;
use std::time::Duration;

use isthmus_netns_tests::{Link, Mesh, Node, Output, Process, binary, wait_for};
use serde_json::{Value, json};

const CLIENT: u32 = 40_002;
const WEB: u32 = 40_001;
const DB: u32 = 40_003;
const THIEF: u32 = 40_009;

const TOPOLOGY: &str = r#"
[host.app-1]
[host.srv-1]

[service.client]
port = 9000
hosts = ["app-1"]
workload = { user = "40002" }

[service.web]
port = 8080
protocol = "http"
hosts = ["srv-1"]
workload = { user = "40001" }
health = { http = "/healthz", interval = "1s" }

[service.db]
port = 5432
hosts = ["srv-1"]
workload = { user = "40003" }
listener = "strict"

[[allow]]
name = "client calls all"
from = "service:client"
to = ["service:web", "service:db"]
"#;

/// Answers each request or line with who it says it is, and the identity that it was told.
const SERVER: &str = include_str!("programs/exposure_server.py");

/// Sends a text to each of the addresses, and says who answered what, and how soon.
const KNOCK: &str = include_str!("programs/exposure_knock.py");

/// Asks 127.0.0.1 at one port from another.
const FROM: &str = include_str!("programs/exposure_from.py");

const FORGED: &str = "GET / HTTP/1.1\\r\\nhost: a\\r\\n\
                      x-isthmus-identity: spiffe://corp.example/ns/default/sa/admin\\r\\n\\r\\n";

fn knock(node: &Node, user: u32, text: &str, places: &[&str]) -> String {
    let mut command = node.command_as(user, None, "python3");
    command.args(["-c", KNOCK, text]).args(places);
    Output::of(command).expect_success()
}

fn ask_from(node: &Node, user: u32, own: &str, port: &str) -> String {
    let mut command = node.command_as(user, None, "python3");
    command.args(["-c", FROM, own, port, FORGED]);
    Output::of(command).expect_success()
}

fn serve(mesh: &Mesh, user: u32, name: &str, port: u16) -> Process {
    let command = mesh.host("srv-1").node.command_as(user, None, "python3");
    serve_by(mesh, command, &[name, &port.to_string()])
}

/// Likewise, but it was root who began to listen, as with nginx.
fn serve_for_root(mesh: &Mesh, user: u32, name: &str, port: u16) -> Process {
    let command = mesh.host("srv-1").node.command("python3");
    serve_by(mesh, command, &[name, &port.to_string(), &user.to_string()])
}

fn serve_by(mesh: &Mesh, mut command: Command, arguments: &[&str]) -> Process {
    let (node, name) = (&mesh.host("srv-1").node, arguments[0]);
    command.args(["-u", "-c", SERVER]).args(arguments);
    let server = node.spawn(name, command);
    wait_for("it listens", Duration::from_secs(20), || server.output().contains("listens"));
    server
}

/// The problems of a host's with this code, by their subjects.
fn problems(mesh: &Mesh, host: &str, code: &str) -> Vec<String> {
    let status = mesh.host(host).agentctl(&["status", "-o", "json"]).json();
    let all = status["problems"].as_array().cloned().unwrap_or_default();
    let found = all.iter().filter(|it| it["code"] == code);
    let text = |it: &Value, key: &str| it[key].as_str().unwrap_or_default().to_owned();
    let one = |it: &Value| {
        assert!(!text(it, "remedy").is_empty(), "{it}");
        format!("{} {}", text(it, "subject"), text(it, "text"))
    };
    found.map(one).collect()
}

fn problem(mesh: &Mesh, host: &str, code: &str) -> Option<String> {
    problems(mesh, host, code).into_iter().next()
}

fn workload(mesh: &Mesh, service: &str) -> String {
    let services = mesh.agentctl(&["service", "list", "-o", "json"]).json();
    let found = services.as_array().and_then(|all| all.iter().find(|it| it["name"] == service));
    let address = found.map(|it| &it["workloads"][0]["ipv4"]).and_then(Value::as_str);
    address.expect("it has a workload").to_owned()
}

const SOON: Duration = Duration::from_secs(30);

#[test]
fn a_service_is_reached_by_the_mesh_alone() {
    let mut mesh = Mesh::new(&["app-1", "srv-1"]);
    mesh.apply(TOPOLOGY);
    // Whoever has spoken from a service's port while that was down is let in by nobody.
    let planted = ask_from(&mesh.host("srv-1").node, THIEF, "8080", "20001");
    assert!(planted.contains("Error"), "{planted}");
    let _web = serve(&mesh, WEB, "web", 8080);
    let db = serve(&mesh, DB, "db", 5432);
    let (app, srv) = (&mesh.host("app-1").node, &mesh.host("srv-1").node);
    let underlay = srv.sh("ip -4 -o addr show dev eth0");
    let underlay = underlay.split_whitespace().nth(3).and_then(|it| it.split('/').next());
    let underlay = underlay.expect("eth0 has an address").to_owned();
    let (around_web, around_db) = (format!("{underlay}/8080"), format!("{underlay}/5432"));
    let by_mesh = format!("{}/8080", mesh.virtual_addresses("web").0);
    let db_by_mesh = format!("{}/5432", mesh.virtual_addresses("db").0);
    let web = format!("{}/8080", workload(&mesh, "web"));
    let local = ["127.0.0.1/8080", "::1/8080", &web, &around_web];

    // By the mesh, both answer; the forged identity doesn't arrive.
    wait_for("both answer by the mesh", SOON, || {
        let said = knock(app, CLIENT, FORGED, &[&by_mesh, &db_by_mesh]);
        // The database is plain TCP: it hears, and says, what was sent.
        let by_http = said.lines().next().unwrap_or_default();
        assert!(!by_http.contains("sa/admin"), "{said}");
        said.contains("200 OK") && said.contains("sa/client") && said.contains("db ")
    });
    // Around it nobody gets in: neighbours, and users of the host where the application is told who calls.
    let said = knock(&mesh.controller_node, THIEF, FORGED, &[&around_web, &around_db])
        + &knock(srv, THIEF, FORGED, &local);
    assert_eq!(said.matches("ConnectionRefused").count(), 6, "{said}");
    assert!(!said.contains("web ") && !said.contains("late"), "{said}");
    let said = ask_from(srv, THIEF, "20001", "8080");
    assert!(said.contains("ConnectionRefused"), "{said}");
    let said = knock(srv, THIEF, "hello", &["127.0.0.1/5432"]);
    assert!(said.contains("db "), "nobody is told who calls: loopback stays open: {said}");
    assert_eq!(problem(&mesh, "srv-1", "around-mesh"), None);
    wait_for("the agent's own checks pass", SOON, || {
        mesh.host("srv-1").metric("isthmus_health_checks_total", "result=\"pass\"") > 0.0
    });

    where_it_counts_everybody_gets_in_and_is_named(&mesh, &around_web, &around_db);
    a_flush_opens_nothing(&mesh, &around_web);
    nobody_speaks_for_a_service_that_is_down(&mesh, db, &db_by_mesh);
    it_is_closed_before_an_agent_runs(&mut mesh, &around_web);
}

/// Whoever opens a service so is told.
fn where_it_counts_everybody_gets_in_and_is_named(mesh: &Mesh, around_web: &str, around_db: &str) {
    let srv = &mesh.host("srv-1").node;
    let counting = TOPOLOGY.replace("[host.app-1]", "[mesh]\nexposure = \"count\"\n[host.app-1]");
    let opened = mesh.try_apply(&counting);
    assert_eq!(opened.code(), Some(4), "{opened}");
    let said = opened.expect_failure();
    assert!(
        said.contains("srv-1: service web (tcp/8080) can be reached around the mesh"),
        "{said}"
    );
    let said = knock(&mesh.controller_node, THIEF, FORGED, &[around_web, around_db])
        + &knock(srv, THIEF, FORGED, &["127.0.0.1/8080"]);
    assert_eq!(
        said.matches("web x-isthmus-identity: spiffe://corp.example/ns/default/sa/admin").count(),
        2,
        "{said}"
    );
    assert!(said.contains("db "), "{said}");
    wait_for("who comes around is named", SOON, || {
        let all = problems(mesh, "srv-1", "around-mesh");
        let says = |of: &str, what: &[&str]| {
            all.iter().any(|text| text.starts_with(of) && what.iter().all(|it| text.contains(it)))
        };
        says("web ", &["tcp/8080", "listens on ", "10.9.0.1", "127.0.0.1"])
            && says("db ", &["tcp/5432", "listens on ", "10.9.0.1"])
    });
}

/// All rules flushed, as Debian's nftables.conf does: closed again.
fn a_flush_opens_nothing(mesh: &Mesh, around_web: &str) {
    let srv = &mesh.host("srv-1").node;
    mesh.apply(TOPOLOGY);
    srv.sh("nft flush ruleset");
    wait_for("it is closed again", Duration::from_secs(1), || {
        knock(&mesh.controller_node, THIEF, FORGED, &[around_web]).contains("ConnectionRefused")
    });
}

/// A strict service that is down isn't spoken for by who takes its port, not for a moment.
fn nobody_speaks_for_a_service_that_is_down(mesh: &Mesh, mut db: Process, db_by_mesh: &str) {
    let app = &mesh.host("app-1").node;
    db.kill();
    let mut thief = serve(mesh, THIEF, "thief", 5432);
    for _ in 0..10 {
        assert!(!knock(app, CLIENT, "hello", &[db_by_mesh]).contains("thief"));
    }
    wait_for("the thief is named", SOON, || {
        problem(mesh, "srv-1", "foreign-listener").is_some_and(|text| {
            text.starts_with("db ") && text.contains(&format!("of user {THIEF}"))
        })
    });
    assert!(!knock(app, CLIENT, "hello", &[db_by_mesh]).contains("thief"));
    thief.kill();
    let _db = serve_for_root(mesh, DB, "db", 5432);
    wait_for("it is back", SOON, || knock(app, CLIENT, "hello", &[db_by_mesh]).contains("db "));
    wait_for("no thief is left", SOON, || problem(mesh, "srv-1", "foreign-listener").is_none());
}

fn it_is_closed_before_an_agent_runs(mesh: &mut Mesh, around_web: &str) {
    let srv = mesh.host_mut("srv-1");
    srv.agent().terminate(Duration::from_secs(20));
    srv.node.sh("nft flush ruleset");
    let at_boot = || knock(&mesh.controller_node, THIEF, FORGED, &[around_web]);
    assert!(at_boot().contains("200 OK"));
    let srv = &mesh.host("srv-1").node;
    let mut guard = srv.command(binary("isthmus-agent"));
    guard.arg("guard").arg("--settings").arg(srv.folder().join("agent.toml"));
    let _ = Output::of(guard).expect_success();
    assert!(at_boot().contains("ConnectionRefused"));
}

#[test]
fn a_host_without_nft_has_no_overlay_unless_it_may_go_without() {
    let mut mesh = Mesh::new(&["app-1", "srv-1"]);
    mesh.apply(TOPOLOGY);
    mesh.host_mut("srv-1").agent().terminate(Duration::from_secs(20));
    let srv = &mesh.host("srv-1").node;
    let settings = srv.folder().join("agent.toml");
    let start = || {
        let mut command = srv.command("unshare");
        let without = "mount --bind /dev/null /usr/sbin/nft && exec \"$0\" run --settings \"$1\"";
        command.args(["-m", "sh", "-c", without]).arg(binary("isthmus-agent")).arg(&settings);
        srv.spawn("without-nft", command)
    };
    let agent = start();
    wait_for("it says why", SOON, || {
        let said = agent.output();
        said.contains("install the package nftables") && said.contains("to go without, set guard =")
    });
    assert!(!srv.try_sh("ip link show isth0").success());
    // What the remedy promises: once it is mended, the revision is taken by itself.
    let _ = srv.sh(&format!("nsenter -t {} -m umount /usr/sbin/nft", agent.id()));
    wait_for("it works, and nothing is wrong", Duration::from_secs(60), || {
        srv.try_sh("ip link show isth0").success()
            && mesh.host("srv-1").status()["problems"] == json!([])
            && mesh.status()["problems"] == json!([])
    });
    drop(agent);

    let text = std::fs::read_to_string(&settings).expect("the settings are there");
    std::fs::write(&settings, format!("guard = \"optional\"\n{text}")).expect("a folder of ours");
    let _agent = start();
    wait_for("it answers", SOON, || mesh.host("srv-1").agentctl(&["status"]).success());
    wait_for("it works, and is told of", SOON, || {
        problem(&mesh, "srv-1", "guard-missing").is_some()
            && srv.try_sh("ip link show isth0").success()
    });
}

#[test]
fn a_container_without_an_identity_is_refused_at_once_and_named() {
    let mesh = Mesh::new(&["app-1", "srv-1"]);
    mesh.apply(TOPOLOGY);
    let app = &mesh.host("app-1").node;
    let container = mesh.lab.node("box");
    mesh.lab.link(Link { a: (app, "docker0"), b: (&container, "eth0"), mtu: 1500 });
    app.sh("ip addr add 172.17.0.1/24 dev docker0; ip addr add fd17::1/64 dev docker0 nodad; \
         sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
    container.sh("ip addr add 172.17.0.2/24 dev eth0; ip addr add fd17::2/64 dev eth0 nodad; \
         ip route add default via 172.17.0.1; ip -6 route add default via fd17::1");
    // As Docker does it: what leaves has the host's address.
    app.sh("nft 'table ip nat { chain post { type nat hook postrouting priority 100; \
         ip saddr 172.17.0.0/24 oifname != \"docker0\" masquerade; }; }'");
    let (v4, v6) = mesh.virtual_addresses("web");
    let places = [format!("{v4}/8080"), format!("{v6}/8080")];
    let places: Vec<&str> = places.iter().map(String::as_str).collect();
    let said = knock(&container, CLIENT, FORGED, &places);
    assert!(!said.contains("late") && !said.contains("timed out"), "{said}");
    assert!(!said.contains("b'"), "{said}");
    wait_for("it is named", SOON, || {
        problem(&mesh, "app-1", "no-identity")
            .is_some_and(|text| text.contains("172.17.0.2") && text.contains("fd17::2"))
    });
}

#[test]
fn a_selector_of_nobody_is_a_warning_of_the_revision() {
    let mesh = Mesh::new(&["app-1", "srv-1"]);
    mesh.apply(TOPOLOGY);
    let wrong = TOPOLOGY.replace("user = \"40001\"", "user = \"no-such-user\"");
    let applied = mesh.try_apply(&wrong);
    assert_eq!(applied.code(), Some(4), "{applied:?}");
    let said = applied.expect_failure();
    assert!(said.contains("srv-1") && said.contains("no user no-such-user"), "{said}");
    let standing = problem(&mesh, "srv-1", "selector");
    assert!(standing.is_some_and(|text| text.starts_with("web ")));
    mesh.apply(TOPOLOGY);
    wait_for("it is over", SOON, || problem(&mesh, "srv-1", "selector").is_none());
}
