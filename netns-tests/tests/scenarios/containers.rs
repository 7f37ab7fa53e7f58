//! Containers of a real engine: who they are on a bridge, and that nobody else is.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use isthmus_netns_tests::{
    CONTAINER_LIMITS, Mesh, MeshOptions, Output, Podman, Process, binary, wait_for,
};
use serde_json::json;

const SOON: Duration = Duration::from_secs(10);
const CLIENT: u32 = 40_002;
const WEB: u32 = 40_001;

const TOPOLOGY: &str = r#"
[host.app-1]
[host.srv-1]

[service.good]
port = 9000
hosts = ["app-1"]
workload = { container = { image = "localhost/demo", label = { role = "good" } } }

[service.bad]
port = 9000
hosts = ["app-1"]
workload = { container = { image = "localhost/demo", label = { role = "bad" } } }

[service.near]
port = 9000
hosts = ["app-1"]
workload = { container = { label = { role = "near" } } }

[service.echo]
port = 7000
hosts = ["app-1"]
workload = { container = { name = "echo" } }

[service.pages]
port = 8081
protocol = "http"
hosts = ["app-1"]
workload = { container = { name = "pages" } }

[service.client]
port = 9001
hosts = ["srv-1"]
workload = { user = "40002" }

[service.web]
port = 8080
protocol = "http"
hosts = ["srv-1"]
workload = { user = "40001" }

[service.log]
port = 5140
protocol = "udp"
hosts = ["srv-1"]
workload = { user = "40003" }

[[allow]]
name = "good calls"
from = ["service:good", "service:near"]
to = ["service:web", "service:log", "service:echo"]

[[allow]]
name = "client calls containers"
from = "service:client"
to = ["service:echo", "service:pages"]
"#;

/// Answers HTTP with the identity that it was told, and prints each datagram with who sent it.
const SERVER: &str = include_str!("programs/containers_server.py");

/// Sends datagrams as another: from its address, then from its hardware address, too, then with a tag.
const FORGER: &str = include_str!("programs/containers_forger.py");

/// Who a container speaks as, in the words of `agentctl status`.
fn speaks_as(mesh: &Mesh, name: &str) -> Option<String> {
    let status = mesh.host("app-1").status();
    let containers = status["containers"].as_array().into_iter().flatten();
    let own = containers.clone().find(|it| it["name"] == name)?;
    Some(own["service"].as_str().unwrap_or("its host").to_owned())
}

/// Podman's arguments for a container on the host's network.
fn near_the_host<'a>(name: &'a str, label: &'a str) -> Vec<&'a str> {
    let run = ["run", "-d", "--name", name, "--network", "host", "--label", label];
    [&run[..], &CONTAINER_LIMITS, &["localhost/demo:1", "/bin/sleep", "1000"]].concat()
}

fn has_problem(mesh: &Mesh, code: &str) -> bool {
    let status = mesh.host("app-1").status();
    status["problems"].as_array().into_iter().flatten().any(|it| it["code"] == code)
}

/// A host with an engine whose socket it is told of.
fn mesh(name: &str) -> (Mesh, String) {
    let socket = format!("/tmp/isthmus-podman-{name}-{}.sock", std::process::id());
    let settings = format!("containers = {{ engines = [{socket:?}] }}\n");
    let options = MeshOptions { settings: settings.leak(), ..MeshOptions::default() };
    let mesh = Mesh::with(&["app-1", "srv-1"], options);
    mesh.apply(TOPOLOGY);
    (mesh, socket)
}

/// Starts three containers of one image, and a server; waits until the host knows who they are.
fn demonstration(mesh: &Mesh, podman: &Podman) -> Process {
    podman.start("good", &["--label", "role=good"], &["/bin/sleep", "1000"]);
    podman.start("bad", &["--label", "role=bad", "--cap-add", "NET_RAW"], &["/bin/sleep", "1000"]);
    podman.start("other", &[], &["/bin/sleep", "1000"]);
    let srv = &mesh.host("srv-1").node;
    let mut server = srv.command_as(WEB, None, "python3");
    server.args(["-c", SERVER]);
    let server = srv.spawn("server", server);
    wait_for("the server listens", SOON, || server.output().contains("listens"));
    wait_for("the engine has told", SOON, || {
        speaks_as(mesh, "good").as_deref() == Some("good")
            && speaks_as(mesh, "bad").as_deref() == Some("bad")
            && speaks_as(mesh, "other").as_deref() == Some("its host")
    });
    server
}

fn only_good_may(podman: &Podman, url: &str) {
    let good = podman.get("good", url);
    let said = format!("{good:?}");
    assert!(said.contains("asked by spiffe://corp.example/ns/default/sa/good"), "{said}");
    let bad = podman.get("bad", url);
    assert!(!bad.success() && !format!("{bad:?}").contains("asked by"), "{bad:?}");
    assert!(!podman.get("other", url).success());
}

#[test]
fn the_agent_in_a_container_serves_the_same() {
    let (mut mesh, socket) = mesh("inside");
    let podman = Podman::new(&mesh.host("app-1").node, &socket);
    let folder = mesh.host("app-1").node.folder().to_owned();
    let programs = binary("isthmus-agent").parent().expect("it is in a folder").to_owned();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/image");
    let mut image = Command::new(script);
    image.arg("--built").arg(programs).arg("--out").arg(folder.join("image"));
    let made = Output::of(image).expect_success();
    assert!(made.contains("sha256:"), "{made}");
    let _ = mesh.host_mut("app-1").agent().terminate(SOON);
    assert!(!mesh.host("app-1").agentctl(&["status"]).success(), "no agent runs");

    // README's command, with the lab's folders.
    let folder = folder.display();
    podman.run(&["pull", "oci:image:latest"]);
    let mounts = [format!("{folder}:{folder}"), format!("{socket}:{socket}")];
    let settings = format!("{folder}/agent.toml");
    let host = ["run", "-d", "--name", "agent", "--network", "host", "--pid", "host"];
    let rights = ["--cgroupns", "host", "--cap-drop", "all", "--cap-add"];
    let needed = ["NET_ADMIN,NET_RAW,NET_BIND_SERVICE,DAC_READ_SEARCH,BPF"];
    let open =
        ["--security-opt", "unmask=/proc/sys", "--security-opt", "seccomp=image.seccomp.json"];
    let seen = ["--device", "/dev/net/tun", "-v", "/sys/fs/cgroup:/sys/fs/cgroup:ro"];
    let more = [
        "-v",
        &mounts[0],
        "-v",
        &mounts[1],
        "localhost/image:latest",
        "run",
        "--settings",
        &settings,
    ];
    podman.run(&[&host[..], &CONTAINER_LIMITS, &rights, &needed, &open, &seen, &more].concat());
    wait_for("the agent answers", SOON, || mesh.host("app-1").agentctl(&["status"]).success());

    let _server = demonstration(&mesh, &podman);
    let (web, _) = mesh.virtual_addresses("web");
    only_good_may(&podman, &format!("http://{web}:8080/"));
    let (echo, _) = mesh.virtual_addresses("echo");
    podman.start("echo", &[], &["/bin/httpd", "-f", "-p", "7000", "-h", "/bin"]);
    let url = format!("http://{echo}:7000/curl");
    wait_for("a container serves", SOON, || {
        let options = ["-fsS", "-m", "3", "-o", "/dev/null", &url];
        mesh.host("srv-1").curl(CLIENT, &options).success()
    });
}

#[test]
fn two_containers_of_one_image_are_two_services() {
    let (mesh, socket) = mesh("bridge");
    let app = &mesh.host("app-1").node;
    wait_for("a missing engine is named", SOON, || has_problem(&mesh, "container-engine"));
    let mut podman = Podman::new(app, &socket);
    let server = demonstration(&mesh, &podman);
    wait_for("the engine isn't missed", SOON, || !has_problem(&mesh, "container-engine"));
    let (web, _) = mesh.virtual_addresses("web");
    let url = format!("http://{web}:8080/");
    let may = |podman: &Podman| only_good_may(podman, &url);
    may(&podman);
    // Whatever the engine does with addresses of its own.
    app.sh("nft flush chain ip nat POSTROUTING");
    may(&podman);

    nobody_on_the_bridge_is_another(&mesh, &podman, &server);
    may(&podman);

    a_cgroup_tells_on_the_hosts_network(&mesh, &podman, &server, &url);
    containers_serve(&mesh, &podman);
    let all_is_well = || mesh.host("app-1").status()["problems"] == json!([]);
    wait_for("nobody is missed who listens in a container", SOON, all_is_well);
    let shown = TOPOLOGY.replace("port = 8081", "port = 8081\nsource = \"caller\"");
    let applied = mesh.try_apply(&shown);
    wait_for("it is said what containers can't be shown", SOON, || {
        has_problem(&mesh, "not-reached")
    });
    assert!(matches!(applied.code(), Some(0 | 4)), "{applied:?}");
    mesh.apply(TOPOLOGY);
    wait_for("it is over", SOON, || !has_problem(&mesh, "not-reached"));

    // Without the engine, who was known stays known; who starts anew is the same.
    podman.stop();
    wait_for("it is said", SOON, || has_problem(&mesh, "container-engine"));
    may(&podman);
    podman.serve();
    wait_for("it is over", SOON, || !has_problem(&mesh, "container-engine"));
    podman.run(&["restart", "-t", "0", "good"]);
    wait_for("it is itself again", SOON, || podman.get("good", &url).success());
    may(&podman);
}

/// Whatever it writes into its frames.
fn nobody_on_the_bridge_is_another(mesh: &Mesh, podman: &Podman, server: &Process) {
    let app = &mesh.host("app-1").node;
    let (log, _) = mesh.virtual_addresses("log");
    let send = |name: &str, text: &str| {
        let line = format!("echo -n {text} >/dev/udp/{log}/5140");
        podman.run(&["exec", name, "bash", "-c", &line]);
    };
    let address = podman.of("good", ".NetworkSettings.Networks.podman.IPAddress");
    let mac = |name| podman.of(name, ".NetworkSettings.Networks.podman.MacAddress");
    let bridge =
        app.sh("cat /sys/class/net/podman0/address 2>/dev/null || ip -br link show podman0");
    let bridge =
        bridge.split_whitespace().find(|it| it.matches(':').count() == 5).unwrap_or_default();
    let mut forger = Command::new("nsenter");
    forger.arg(format!("--net=/proc/{}/ns/net", podman.of("bad", ".State.Pid")));
    forger.args(["--", "python3", "-c", FORGER, &address, &log.to_string(), bridge]);
    forger.args([mac("good"), mac("bad")]);
    let _ = Output::of(forger).expect_success();
    send("bad", "denied");
    send("good", "genuine");
    wait_for("what is genuine arrives", SOON, || server.output().contains("genuine from"));
    let said = server.output();
    assert!(!said.contains("forged") && !said.contains("denied"), "{said}");
    let filter = app.sh("nft list table bridge isthmus-isth0-ports");
    assert!(filter.contains("arp saddr ip @known4"), "{filter}");
    assert!(app.sh("ip neigh").contains(&mac("good")), "good is where it was");
}

fn a_cgroup_tells_on_the_hosts_network(mesh: &Mesh, podman: &Podman, server: &Process, url: &str) {
    let (log, _) = mesh.virtual_addresses("log");
    podman.run(&near_the_host("near", "role=near"));
    podman.run(&near_the_host("far", "role=far"));
    wait_for("the engine has told", SOON, || speaks_as(mesh, "near").as_deref() == Some("near"));
    let near = format!("{:?}", podman.get("near", url));
    assert!(near.contains("asked by spiffe://corp.example/ns/default/sa/near"), "{near}");
    assert!(!podman.get("far", url).success());
    let datagram = format!("echo -n whispered >/dev/udp/{log}/5140");
    podman.run(&["exec", "near", "bash", "-c", &datagram]);
    wait_for("a datagram arrives", SOON, || server.output().contains("whispered from"));
}

/// Servers in containers, by connection and by request.
fn containers_serve(mesh: &Mesh, podman: &Podman) {
    podman.start("echo", &[], &["/bin/httpd", "-f", "-p", "7000", "-h", "/bin"]);
    podman.start("pages", &["-p", "8081:80"], &["/bin/httpd", "-f", "-p", "80", "-h", "/bin"]);
    let (echo, _) = mesh.virtual_addresses("echo");
    let (pages, _) = mesh.virtual_addresses("pages");
    let connection = format!("http://{echo}:7000/curl");
    let request = format!("http://{pages}:8081/curl");
    let ask = |user, url: &str| {
        mesh.host("srv-1").curl(user, &["-fsS", "-m", "3", "-o", "/dev/null", url]).success()
    };
    wait_for("a container serves connections", SOON, || ask(CLIENT, &connection));
    wait_for("a published port serves requests", SOON, || ask(CLIENT, &request));
    assert!(!ask(WEB, &connection) && !ask(WEB, &request), "only who may");
    let near = podman.try_run(&["exec", "good", "curl", "-fsS", "-o", "/bin/out", &connection]);
    assert!(near.success(), "a neighbour by its virtual address: {near:?}");
    assert!(!podman.get("bad", &connection).success());
}
