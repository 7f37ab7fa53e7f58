//! Broken topologies and garbage.

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use isthmus_netns_tests::{Mesh, Node, Output, wait_for};

const TOPOLOGY: &str = r#"
[host.app-1]
[host.web-1]

[service.web]
port = 8080
protocol = "http"
hosts = ["web-1"]

[service.client]
port = 9000
hosts = ["app-1"]
workload = { user = "40002" }

[[allow]]
name = "client reads web"
from = "service:client"
to = "service:web"
"#;

/// What is wrong, the file's text, the line it is on, and words of the error.
const BROKEN: &[(&str, &str, u32, &str)] = &[
    (
        "unknown key",
        "[service.web]\nprot = \"tcp\"\nport = 80\nhosts = [\"app-1\"]\n[host.app-1]",
        2,
        "prot",
    ),
    ("unknown table", "[route.web]\nto = []", 1, "route"),
    (
        "wrong type",
        "[service.web]\nport = \"eighty\"\nhosts = [\"app-1\"]\n[host.app-1]",
        2,
        "port",
    ),
    ("dangling name", "[service.web]\nport = 80\nhosts = [\"app-9\"]", 3, "app-9"),
    ("not TOML", "[service.web\nport = 80", 1, "]"),
    (
        "failing test",
        "[host.app-1]\n[[test]]\nname = \"t\"\nfrom = \"host:app-1\"\nto = \"host:app-1\"\nport = \"tcp/22\"\nexpect = \"allow\"",
        2,
        "t",
    ),
];

#[test]
fn broken_topologies_leave_the_running_revision_untouched() {
    let mesh = Mesh::new(&["app-1", "web-1"]);
    mesh.apply(TOPOLOGY);
    let revision = mesh.revision();
    for (what, text, line, word) in BROKEN {
        let said = mesh.try_apply(text).expect_failure();
        assert!(said.contains(word), "{what}: {said}");
        assert!(said.contains(&format!("topology.toml:{line}")), "{what}: line {line} in {said}");
        assert_eq!(mesh.revision(), revision, "{what}");
    }
    // Only a host knows its routes: it's asked.
    let app = mesh.host("app-1");
    app.node.sh("ip route add 100.64.0.0/12 via 10.9.0.1");
    let changed = format!("[mesh]\nipv4 = \"100.64.0.0/10\"\n{TOPOLOGY}").replace("9000", "9001");
    let shown = mesh.try_apply_with(&changed, &["--dry-run"]);
    for word in ["app-1", "100.64.0.0/12 via 10.9.0.1", "remove the route"] {
        assert!(shown.stdout.contains(word), "{word} in {shown}");
    }
    assert_eq!(mesh.revision(), revision);
    // One host's routes don't hold up the others: it refuses alone, and goes on as it was.
    let said = mesh.try_apply(&changed).expect_failure();
    assert!(said.contains("app-1") && said.contains("100.64.0.0/12"), "{said}");
    assert_eq!(app.status()["revision"].as_u64(), Some(revision));
    assert!(mesh.revision() > revision);
    assert_eq!(mesh.host("web-1").status()["revision"].as_u64(), Some(mesh.revision()));
}

#[test]
fn garbage_crashes_nothing_and_costs_no_memory() {
    let mut mesh = Mesh::new(&["app-1", "web-1"]);
    mesh.apply(TOPOLOGY);
    let app = mesh.host("app-1").node.clone();
    let web = mesh.host("web-1").node.clone();
    let dns = mesh.host("web-1").addresses().0;
    let web_socket = mesh.host("web-1").socket().to_owned();
    let garbage = app.folder().join("garbage");
    app.sh(&format!("head -c 3000000 /dev/urandom > {}", garbage.display()));
    let program = app.folder().join("spray.py");
    std::fs::File::create(&program)
        .and_then(|mut file| file.write_all(SPRAY.as_bytes()))
        .expect("the lab's folder can be written");
    let spray = |from: &Node, kind: &str, target: &str| {
        let mut command: Command = from.command("python3");
        command.arg(&program).arg(kind).arg(target).arg(&garbage);
        let said = Output::of(command).expect_success();
        assert!(said.trim().parse::<u32>().is_ok_and(|sent| sent > 0), "{kind} {target}: {said}");
    };
    let all = |mesh: &mut Mesh| {
        let agent = mesh.host_mut("web-1").agent().resident_kib();
        [agent, mesh.controller().resident_kib()]
    };

    let mut sizes = Vec::new();
    for _ in 0..3 {
        spray(&app, "udp", "10.9.0.12:51820");
        spray(&app, "tcp", "10.9.0.1:7443");
        spray(&app, "tls", "10.9.0.1:7443");
        spray(&web, "udp", &SocketAddr::from((dns, 53)).to_string());
        spray(&web, "tcp", &SocketAddr::from((dns, 53)).to_string());
        spray(&web, "unix", &web_socket.to_string_lossy());
        sizes.push(all(&mut mesh));
    }
    for (first, last) in sizes[0].iter().zip(sizes[2]) {
        assert!(last < first + 8_192, "memory grew from {first} to {last} KiB: {sizes:?}");
    }
    assert!(mesh.host_mut("web-1").agent().is_running() && mesh.controller().is_running());
    wait_for("everything still works", Duration::from_secs(5), || {
        mesh.host("web-1").status()["connected"] == true
    });
    mesh.apply(&TOPOLOGY.replace("client reads web", "client still reads web"));
    let answer =
        web.sh(&format!("dig +short +time=2 +tries=1 @{dns} client.default.mesh.internal"));
    assert_eq!(answer.trim(), mesh.virtual_addresses("client").0.to_string());
}

const SPRAY: &str = include_str!("programs/nonsense_spray.py");
