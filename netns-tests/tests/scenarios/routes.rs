//! Routes: the client's side chooses who takes a request.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use isthmus_netns_tests::{Host, Mesh, MeshOptions, Process, wait_for};

const CLIENT: u32 = 40_002;
const V1: u32 = 40_011;
const V2: u32 = 40_012;

/// Two versions of an API on two hosts, and a service without workloads before them.
const SERVICES: &str = r#"
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
"#;

const SPLIT: &str = r#"
[[route.api]]
name = "canary"
match = { header = { x-canary = "1" } }
to = [{ service = "api-v2" }]

[[route.api]]
name = "old"
match = { path = { prefix = "/old" } }
redirect = { prefix = "/new", status = 301 }

[[route.api]]
name = "closed"
match = { path = "/closed" }
direct_response = { status = 451, body = "closed by law" }

[[route.api]]
name = "rewritten"
match = { path = { prefix = "/api/v1" } }
to = [{ service = "api-v1" }]
rewrite = { host = "inner.example", prefix = "/" }
request_headers = { set = { x-stage = "prod" } }
response_headers = { set = { x-served-by = "mesh" }, remove = ["server"] }

[[route.api]]
name = "split"
to = [{ service = "api-v1", weight = 95 }, { service = "api-v2", weight = 5 }]
"#;

const URL: &str = "http://api.prod.mesh.internal";

/// Sends requests on a few connections, and prints how many of each answer there were.
const LOAD: &str = include_str!("programs/routes_load.py");

fn load(app: &Host, address: &str, requests: u32) -> BTreeMap<String, u32> {
    let mut command = app.command_as(CLIENT, "python3");
    command.args(["-c", LOAD, address, &requests.to_string()]);
    let output = isthmus_netns_tests::Output::of(command).expect_success();
    let answers = output.lines().filter_map(|line| line.split_once(' '));
    answers.map(|(count, answer)| (answer.to_owned(), count.parse().unwrap_or(0))).collect()
}

#[test]
fn requests_go_where_their_route_leads() {
    let options = MeshOptions { settings: "access_log_sample = 1.0", ..MeshOptions::default() };
    let mesh = Mesh::with(&["app-1", "api-1", "api-2"], options);
    mesh.apply(&format!("{SERVICES}{SPLIT}"));
    let app = mesh.host("app-1");
    let says = "location / { return 200 '$server_port $http_host $uri $http_x_stage $http_x_isthmus_identity'; }";
    let _v1 = mesh.host("api-1").nginx(V1, 8081, says);
    let _v2 = mesh.host("api-2").nginx(V2, 8082, says);

    for version in ["--http1.1", "--http2-prior-knowledge"] {
        for family in ["-4", "-6"] {
            let get = |path: &str, more: &[&str]| {
                let url = format!("{URL}{path}");
                let status = "\n%{http_code} %{redirect_url}";
                let arguments = [&[version, family, "-w", status, &url], more].concat();
                app.curl(CLIENT, &arguments).expect_success()
            };
            let identity = "spiffe://corp.example/ns/prod/sa/client";
            let canary = get("/x", &["-H", "x-canary: 1"]);
            assert_eq!(canary, format!("8082 api.prod.mesh.internal /x  {identity}\n200 "));
            assert_eq!(get("/old/a?b=1", &[]), format!("\n301 {URL}/new/a?b=1"));
            assert_eq!(get("/closed", &[]), "closed by law\n451 ");
            let rewritten = get("/api/v1/users", &["-i"]);
            assert!(
                rewritten.contains(&format!("8081 inner.example /users prod {identity}\n200")),
                "{rewritten}"
            );
            assert!(rewritten.contains("x-served-by: mesh"), "{rewritten}");
            assert!(!rewritten.contains("server: "), "{rewritten}");
        }
    }
    let log = app.log();
    let line = log.lines().find(|line| line.contains("canary") && line.contains("access"));
    assert!(line.is_some_and(|it| it.contains("api-v2") && it.contains("api-2")), "{log}");
}

#[test]
fn a_split_gives_each_version_its_share() {
    let mesh = Mesh::new(&["app-1", "api-1", "api-2"]);
    mesh.apply(&format!("{SERVICES}{SPLIT}"));
    let _v1 = mesh.host("api-1").nginx(V1, 8081, "return 200 v1;");
    let _v2 = mesh.host("api-2").nginx(V2, 8082, "return 200 v2;");
    let address = mesh.virtual_addresses("api").0.to_string();

    let started = Instant::now();
    let answers = load(mesh.host("app-1"), &address, 4000);
    println!("{answers:?} in {:?}", started.elapsed());
    let count = |answer: &str| answers.get(answer).copied().unwrap_or(0);
    assert_eq!(count("200 v1") + count("200 v2"), 4000, "{answers:?}");
    // 200 are expected; five standard deviations of a fair draw are 69.
    assert!((131..=269).contains(&count("200 v2")), "{answers:?}");
    the_agent_tells_the_same(mesh.host("app-1"), count("200 v2"));
}

#[track_caller]
fn the_agent_tells_the_same(app: &Host, canaries: u32) {
    let routes = app.agentctl(&["routes", "-o", "json"]).json();
    let to = |backend: &str| {
        let traffic = routes["traffic"].as_array().expect("traffic is a list");
        let found = traffic.iter().find(|it| it["backend"] == backend && it["route"] == "split");
        found.unwrap_or_else(|| panic!("nothing went to {backend}: {routes}")).clone()
    };
    let (v1, v2) = (to("api-v1"), to("api-v2"));
    assert_eq!((&v2["requests"], &v2["status"]), (&canaries.into(), &"2xx".into()));
    assert_eq!(v1["source"], "service:client");
    assert!(v1["p99_microseconds"].as_u64() >= v1["p50_microseconds"].as_u64());
    assert!(v1["p50_microseconds"].as_u64() > Some(0));
    assert_eq!(routes["endpoints"].as_array().map(Vec::len), Some(2), "{routes}");
    assert_eq!(routes["routes"][4]["action"], "to api-v1 95, api-v2 5");
    let counted = app.metric("isthmus_requests_total", "backend=\"api-v2\"");
    assert_eq!(counted, f64::from(canaries));
    let taken = app.metric("isthmus_request_duration_seconds_count", "backend=\"api-v2\"");
    assert_eq!(taken, f64::from(canaries));
}

#[test]
fn a_failing_workload_is_ejected_and_retries_hide_it() {
    let mesh = Mesh::new(&["app-1", "api-1", "api-2"]);
    let one_service = SERVICES.replace(
        r#"hosts = ["api-1"]"#,
        "hosts = [\"api-1\", \"api-2\"]\nbalance = \"round-robin\"",
    );
    let mut topology = one_service;
    let _ = write!(
        topology,
        "[[route.api]]\nto = [{{ service = \"api-v1\" }}]\n\
         retry = {{ attempts = 2, on = [\"5xx\"], backoff = \"1ms\" }}\n"
    );
    mesh.apply(&topology);
    let _good = mesh.host("api-1").nginx(V1, 8081, "return 200 good;");
    let _bad = mesh.host("api-2").nginx(V1, 8081, "return 500 bad;");
    let app = mesh.host("app-1");
    let address = mesh.virtual_addresses("api").0.to_string();

    let answers = load(app, &address, 2000);
    assert_eq!(answers, BTreeMap::from([("200 good".to_owned(), 2000)]));
    let bad = mesh.host("api-2").nginx_log(8081).lines().count();
    // Five until it is ejected (four requests at a time), and a probe now and then.
    assert!((5..40).contains(&bad), "the failing workload got {bad} of 2000 requests");
}

#[test]
fn a_backend_that_hangs_is_given_up_in_time() {
    let mesh = Mesh::new(&["app-1", "api-1", "api-2"]);
    let mut topology = SERVICES.to_owned();
    topology += "[[route.api]]\nto = [{ service = \"api-v1\" }]\ntimeout = \"300ms\"\n";
    mesh.apply(&topology);
    let _hanging = hanging(mesh.host("api-1"));
    let app = mesh.host("app-1");
    let status = "%{http_code}";
    let started = Instant::now();
    let answer = app.curl(CLIENT, &["-4", "-o", "/dev/null", "-w", status, URL]).expect_success();
    assert_eq!(answer, "504");
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
}

/// Accepts connections and says nothing.
fn hanging(host: &Host) -> Process {
    let program = "import socket, time\n\
                   server = socket.create_server(('0.0.0.0', 8081), backlog=64)\n\
                   kept = []\n\
                   while True: kept.append(server.accept())";
    let mut command = host.node.command_as(V1, None, "python3");
    command.args(["-c", program]);
    let process = host.node.spawn("hanging", command);
    wait_for("it listens", Duration::from_secs(5), || {
        !host.node.sh("ss -Hltn 'sport = :8081'").is_empty()
    });
    process
}

/// Keeps a few connections busy until it is told to end, then says what it got.
const STEADY: &str = include_str!("programs/routes_steady.py");

#[test]
fn fifty_changes_under_load_cost_no_request_and_no_connection() {
    let mesh = Mesh::new(&["app-1", "api-1", "api-2"]);
    let weights = |v2: u32| {
        format!(
            "{SERVICES}\n[[route.api]]\nto = [{{ service = \"api-v1\", weight = {} }}, \
             {{ service = \"api-v2\", weight = {v2} }}]\n",
            100 - v2
        )
    };
    mesh.apply(&weights(50));
    let _v1 = mesh.host("api-1").nginx(V1, 8081, "return 200 v1;");
    let _v2 = mesh.host("api-2").nginx(V2, 8082, "return 200 v2;");
    let app = mesh.host("app-1");
    let address = mesh.virtual_addresses("api").0.to_string();
    let mut command = app.command_as(CLIENT, "python3");
    command.args(["-u", "-c", STEADY, &address]);
    let mut client = app.node.spawn("steady", command);
    wait_for("requests are sent", Duration::from_secs(5), || client.output().contains("started"));

    for change in 0..50 {
        mesh.apply(&weights(change * 2 % 101));
    }
    client.terminate(Duration::from_secs(20));
    let output = client.output();
    let good: u32 = output
        .lines()
        .filter(|line| line.contains(" 200 v"))
        .filter_map(|line| line.split(' ').next()?.parse::<u32>().ok())
        .sum();
    println!("{output}");
    assert!(good > 1000, "{output}");
    let answers = output.lines().filter(|line| *line != "started");
    assert!(answers.clone().all(|line| line.contains(" 200 v")), "{output}");
}
