//! Progressive delivery: a new version takes over step by step, or doesn't.

use std::time::Duration;

use isthmus_netns_tests::{Host, Mesh, Process, wait_for, wait_for_value};
use serde_json::Value;

const CLIENT: u32 = 40_002;
const V1: u32 = 40_011;
const V2: u32 = 40_012;

const MESH: &str = r#"
[host.app-1]
[host.api-1]
[host.api-2]

[service.client]
namespace = "prod"
port = 9000
hosts = ["app-1"]
workload = { user = "40002" }

[service.api]
namespace = "prod"
port = 80
protocol = "http"

[service.api-v1]
namespace = "prod"
port = 8081
protocol = "http"
hosts = ["api-1"]
workload = { user = "40011" }

[service.api-v2]
namespace = "prod"
port = 8082
protocol = "http"
hosts = ["api-2"]
workload = { user = "40012" }

[[allow]]
name = "client uses the API"
from = "service:client"
to = ["service:api", "service:api-v1", "service:api-v2"]

[[route.api]]
name = "api"
to = [{ service = "api-v1" }]
"#;

fn topology(more: &str) -> String {
    format!(
        "{MESH}\n[rollout.api]\nroute = \"api\"\nstable = \"api-v1\"\ncanary = \"api-v2\"\n\
         interval = \"1s\"\nmin_requests = 40\n{more}\n"
    )
}

/// Keeps a few connections busy until it is told to end, then says what it got.
const STEADY: &str = include_str!("programs/rollout_steady.py");

/// A mesh with a stable version, and a client that asks it all the time.
struct Scene {
    client: Process,
    _v1: Process,
    mesh: Mesh,
}

impl Scene {
    fn new() -> Self {
        let mesh = Mesh::new(&["app-1", "api-1", "api-2"]);
        mesh.apply(MESH);
        let v1 = mesh.host("api-1").nginx(V1, 8081, "return 200 v1;");
        let app = mesh.host("app-1");
        let mut command = app.command_as(CLIENT, "python3");
        command.args(["-u", "-c", STEADY, &mesh.virtual_addresses("api").0.to_string()]);
        let client = app.node.spawn("steady", command);
        wait_for("requests are sent", Duration::from_secs(5), || {
            client.output().contains("started")
        });
        Self { client, _v1: v1, mesh }
    }

    fn rollout(&self) -> Value {
        self.mesh.agentctl(&["rollout", "status", "api", "-o", "json"]).json()
    }

    fn wait_for_phase(&self, phase: &str) -> Value {
        let what = format!("the rollout is {phase}");
        wait_for_value(&what, Duration::from_secs(40), || {
            Some(self.rollout()).filter(|rollout| rollout["phase"] == phase)
        })
    }

    fn steer(&self, order: &str) -> Value {
        self.mesh.agentctl(&["rollout", order, "api", "-o", "json"]).json()
    }

    /// What the client got: number and answer.
    fn end(mut self) -> Vec<(u64, String)> {
        self.client.terminate(Duration::from_secs(20));
        let output = self.client.output();
        let answers = output.lines().filter_map(|line| {
            let (count, answer) = line.split_once(' ')?;
            Some((count.parse().ok()?, answer.to_owned()))
        });
        answers.collect()
    }
}

fn of(answers: &[(u64, String)], answer: &str) -> u64 {
    answers.iter().filter(|(_, it)| it == answer).map(|(count, _)| count).sum()
}

/// Answers whole after 200 ms.
fn slow(host: &Host) -> Process {
    let program = "import http.server, time\n\
        class Slow(http.server.BaseHTTPRequestHandler):\n\
        \x20   protocol_version = 'HTTP/1.1'\n\
        \x20   def do_GET(self):\n\
        \x20       time.sleep(0.2)\n\
        \x20       self.send_response(200)\n\
        \x20       self.send_header('content-length', '2')\n\
        \x20       self.end_headers()\n\
        \x20       self.wfile.write(b'v2')\n\
        http.server.ThreadingHTTPServer(('0.0.0.0', 8082), Slow).serve_forever()";
    let mut command = host.node.command_as(V2, None, "python3");
    command.args(["-c", program]);
    let process = host.node.spawn("slow", command);
    wait_for("it listens", Duration::from_secs(5), || {
        !host.node.sh("ss -Hltn 'sport = :8082'").is_empty()
    });
    process
}

#[test]
fn a_good_canary_is_promoted_even_if_the_controller_is_killed_meanwhile() {
    let mut scene = Scene::new();
    let _v2 = scene.mesh.host("api-2").nginx(V2, 8082, "return 200 v2;");
    scene.mesh.apply(&topology("steps = [10, 50, 100]\nlatency = { p90 = \"1000%\" }"));
    let weight = |scene: &Scene| scene.rollout()["weight"].as_u64();
    wait_for("the second step", Duration::from_secs(20), || weight(&scene) == Some(50));
    scene.mesh.controller().kill();
    scene.mesh.start_controller();
    assert_eq!(scene.rollout()["phase"], "progressing");
    assert!(weight(&scene) >= Some(50), "{}", scene.rollout());
    // Another topology that says the same of the rollout doesn't move it back.
    scene
        .mesh
        .apply(&topology("steps = [10, 50, 100]\nlatency = { p90 = \"1000%\" }\n\n[host.new]"));
    assert!(weight(&scene) >= Some(50), "{}", scene.rollout());
    scene.wait_for_phase("promoted");
    let routes = scene.mesh.host("app-1").agentctl(&["routes", "-o", "json"]).json();
    assert_eq!(routes["routes"][0]["action"], "to api-v1 0, api-v2 100");

    let answers = scene.end();
    assert!(of(&answers, "200 v1") > 100 && of(&answers, "200 v2") > 100, "{answers:?}");
    assert!(answers.iter().all(|(_, answer)| answer.starts_with("200 ")), "{answers:?}");
}

#[test]
fn a_canary_with_errors_is_rolled_back() {
    let scene = Scene::new();
    // 13 of 256 requests: five percent.
    let v2 = "if ($request_id ~ \"^0[0-9a-c]\") { return 500 broken; }\nreturn 200 v2;";
    let _v2 = scene.mesh.host("api-2").nginx(V2, 8082, v2);
    scene.mesh.apply(&topology("steps = [10, 25, 50, 100]"));
    let rollout = scene.wait_for_phase("rolled back");
    assert!(rollout["why"].as_str().is_some_and(|why| why.contains("failed")), "{rollout}");
    assert_eq!(rollout["weight"], 0);
    // It stays so, and is tried again when an operator says so.
    assert!(!scene.mesh.agentctl(&["rollout", "resume", "api"]).success());
    assert_eq!(scene.steer("retry")["phase"], "progressing");
    scene.wait_for_phase("rolled back");

    let answers = scene.end();
    let (good, bad) = (of(&answers, "200 v1"), of(&answers, "500 broken"));
    assert!(good > 1_000 && bad > 4, "{answers:?}");
    assert!(answers.iter().all(|(_, it)| !it.starts_with("failed")), "{answers:?}");
}

#[test]
fn a_slow_canary_is_rolled_back() {
    let scene = Scene::new();
    let _v2 = slow(scene.mesh.host("api-2"));
    scene.mesh.apply(&topology("steps = [10, 50, 100]\nlatency = { p90 = \"150ms\" }"));
    let rollout = scene.wait_for_phase("rolled back");
    assert!(rollout["why"].as_str().is_some_and(|why| why.contains("took longer")), "{rollout}");
    let answers = scene.end();
    assert!(answers.iter().all(|(_, answer)| answer.starts_with("200 ")), "{answers:?}");
}

#[test]
fn an_operator_steers_blue_and_green() {
    let scene = Scene::new();
    let _v2 = scene.mesh.host("api-2").nginx(V2, 8082, "return 200 v2;");
    let text = topology("steps = [100]\nauto_promote = false");
    scene.mesh.apply(&text);
    let paused = scene.wait_for_phase("paused");
    assert_eq!(paused["weight"], 100);
    assert!(paused["why"].as_str().is_some_and(|why| why.contains("rollout promote")), "{paused}");
    assert_eq!(scene.steer("abort")["weight"], 0);
    assert_eq!(scene.steer("promote")["phase"], "promoted");
    // Without the rollout the route says who gets the requests.
    let said = scene.mesh.apply(MESH);
    assert!(said.contains("- rollout api"), "{said}");
    let app = scene.mesh.host("app-1");
    wait_for("the route's own weights", Duration::from_secs(5), || {
        let routes = app.agentctl(&["routes", "-o", "json"]).json();
        routes["routes"][0]["action"] == "to api-v1 1"
    });
    let answers = scene.end();
    assert!(answers.iter().all(|(_, answer)| answer.starts_with("200 ")), "{answers:?}");
}
