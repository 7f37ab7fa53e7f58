//! Restarts and changes under load.

use std::fmt::Write as _;
use std::time::Duration;

use isthmus_netns_tests::{Mesh, Process, wait_for};

use super::{Backend, CLIENT, SOON, THREE, api, endpoint, endpoints, get};

/// Keeps a few connections busy until it is told to end, then says what it got. `kept` connections
/// are used again and again; others are made for each request, which tries to connect until it can.
const STEADY: &str = include_str!("../programs/resilience_under_load_steady.py");

/// A stream by gRPC that gives back what it gets.
const STREAM_SERVER: &str = include_str!("../programs/resilience_under_load_stream_server.py");

/// Holds a WebSocket and a stream by gRPC, and sees that both give back what they get.
const HOLDER: &str = include_str!("../programs/resilience_under_load_holder.py");

struct Steady(Process);

impl Steady {
    fn start(mesh: &Mesh, name: &str) -> Self {
        let address = mesh.virtual_addresses("api").0.to_string();
        let app = mesh.host("app-1");
        let mut command = app.command_as(CLIENT, "python3");
        command.args(["-u", "-c", STEADY, &address]);
        let process = app.node.spawn(name, command);
        wait_for("requests are sent", SOON, || process.output().contains("started"));
        Self(process)
    }

    #[track_caller]
    fn finish(mut self) {
        self.0.terminate(SOON);
        let output = self.0.output();
        let answers: Vec<&str> = output.lines().filter(|line| *line != "started").collect();
        assert!(!answers.is_empty() && answers.iter().all(|it| it.ends_with(" 200")), "{output}");
    }
}

/// A request that takes its time, under way at the workload on `api-1`.
struct Long(Process);

impl Long {
    fn start(mesh: &Mesh, name: &str) -> Self {
        let app = mesh.host("app-1");
        let mut command = app.command_as(CLIENT, "curl");
        let url = format!("http://{}:8081/long", mesh.virtual_addresses("api").0);
        command.args(["-s", "-o", "/dev/null", "-w", "%{http_code}", &url]);
        let process = app.node.spawn(name, command);
        let server = mesh.host("api-1");
        wait_for("the long request is under way", SOON, || {
            server.node.folder().join("backend/long").exists()
        });
        Self(process)
    }

    #[track_caller]
    fn finish(mut self) {
        self.0.wait(SOON);
        assert_eq!(self.0.output().trim(), "200");
    }
}

#[test]
fn agents_are_restarted_under_load_and_no_request_is_lost() {
    let mut mesh = Mesh::new(&["app-1", "api-1", "api-2"]);
    mesh.apply(&api("\"api-1\", \"api-2\"", ""));
    let served = |mesh: &Mesh, host: &str| {
        mesh.host(host).metric("isthmus_requests_total", "side=\"server\"")
    };
    // Apart from `mesh`, whose agents are restarted.
    let _backends = ["api-1", "api-2"].map(|name| Backend::start(&mesh, name)._process);
    wait_for("both serve", SOON, || get(mesh.host("app-1")) == "200");

    // At the server's side, one of two; then the only one.
    let load = Steady::start(&mesh, "one-of-two");
    for _ in 0..2 {
        wait_for("it serves", SOON, || {
            get(mesh.host("app-1"));
            served(&mesh, "api-1") > 3.0
        });
        mesh.host_mut("api-1").agent().terminate(SOON);
        mesh.host_mut("api-1").start_agent();
    }
    load.finish();
    mesh.apply(&api("\"api-1\"", ""));
    let load = Steady::start(&mesh, "the-only-one");
    wait_for("it serves", SOON, || served(&mesh, "api-1") > 3.0);
    let long = Long::start(&mesh, "long-at-server");
    mesh.host_mut("api-1").agent().terminate(SOON);
    long.finish();
    mesh.host_mut("api-1").start_agent();
    wait_for("it serves again", SOON, || served(&mesh, "api-1") > 3.0);
    load.finish();

    // At the caller's side.
    let load = Steady::start(&mesh, "at-the-caller");
    let before = served(&mesh, "api-1");
    wait_for("it serves", SOON, || served(&mesh, "api-1") > before + 50.0);
    let long = Long::start(&mesh, "long-at-caller");
    mesh.host_mut("app-1").agent().terminate(SOON);
    long.finish();
    mesh.host_mut("app-1").start_agent();
    let before = served(&mesh, "api-1");
    wait_for("it serves again", SOON, || served(&mesh, "api-1") > before + 50.0);
    load.finish();
}

/// The mesh after a number of changes: weights, who serves, routes and rules differ each time.
fn changed(change: usize) -> String {
    let hosts = ["\"api-1\"", THREE, "\"api-1\", \"api-2\""][change % 3];
    let weight = change * 20 % 1000 + 1;
    let policy = ["peak-ewma", "least-request", "round-robin"][change / 3 % 3];
    let mut topology = api(
        hosts,
        &format!("balance = {{ policy = \"{policy}\", weights = {{ api-1 = {weight} }} }}"),
    );
    topology += "[service.echo]\nnamespace = \"prod\"\nport = 8082\nprotocol = \"http\"\n\
                 hosts = [\"api-1\"]\nworkload = { user = \"40012\" }\n";
    let _ =
        write!(topology, "[[route.api]]\nname = \"v{change}\"\ntimeout = \"{}s\"\n", change + 9);
    if change % 2 == 1 {
        topology += "match = { path = \"/\" }\n";
    }
    let _ = write!(
        topology,
        "[[deny]]\nname = \"not {change}\"\nfrom = \"service:client\"\nto = \"service:api\"\n\
         http = [{{ path = \"/secret/{change}\" }}]\n"
    );
    topology
}

#[test]
fn fifty_changes_of_all_kinds_cost_nothing_that_is_allowed() {
    let mesh = Mesh::new(&["app-1", "api-1", "api-2", "api-3"]);
    mesh.apply(&changed(0));
    let _backends = ["api-1", "api-2", "api-3"].map(|name| Backend::start(&mesh, name));
    let server = mesh.host("api-1");
    let mut command = server.node.command_as(40_012, None, "python3");
    command.args(["-c", STREAM_SERVER]);
    let _stream = server.node.spawn("stream", command);
    wait_for("the stream's server listens", SOON, || {
        !server.node.sh("ss -Hltn 'sport = :8082'").is_empty()
    });
    let app = mesh.host("app-1");
    let mut command = app.command_as(CLIENT, "python3");
    let address = |service| mesh.virtual_addresses(service).0.to_string();
    command.args(["-u", "-c", HOLDER, &address("api"), &address("echo")]);
    let mut holder = app.node.spawn("holder", command);
    wait_for("both are held", SOON, || {
        let output = holder.output();
        output.contains("websocket started") && output.contains("stream started")
    });
    let load = Steady::start(&mesh, "changes");

    for change in 1..=50 {
        mesh.apply(&changed(change));
    }
    // Also when those who were about to go are gone.
    assert!(endpoint(app, "api-3")["leaving"] == true, "{:?}", endpoints(app));
    wait_for("those who left are gone", Duration::from_secs(60), || {
        endpoints(app).iter().all(|it| it["leaving"] == false)
    });
    load.finish();
    let denied = app.curl(
        CLIENT,
        &["-o", "/dev/null", "-w", "%{http_code}", "http://api.prod.mesh.internal:8081/secret/50"],
    );
    assert_eq!(denied.expect_success(), "403");
    holder.terminate(SOON);
    let output = holder.output();
    let echoes = |what: &str| {
        let line = output.lines().find(|line| line.starts_with(what) && !line.ends_with("started"));
        line.and_then(|line| line.rsplit(' ').next()?.parse::<u32>().ok()).unwrap_or(0)
    };
    assert!(echoes("websocket") > 50 && echoes("stream") > 50, "{output}");
}
