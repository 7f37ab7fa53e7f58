//! Rate limits: what is asked too often is refused, and two hosts share what one limit allows.

use std::process::Command;
use std::time::Duration;

use isthmus_netns_tests::{Host, Mesh, Output, wait_for};
use serde_json::Value;

const CLIENT: u32 = 40_002;
const API: u32 = 40_011;

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
port = 8081
protocol = "http"
hosts = ["api-1", "api-2"]
workload = { user = "40011" }
balance = "round-robin"

[[allow]]
name = "client uses the API"
from = "service:client"
to = "service:api"
"#;

/// Sends requests at a steady rate for some seconds; prints how many passed and how many were refused.
const OPEN_LOOP: &str = include_str!("programs/ratelimit_open_loop.py");

struct Load {
    passed: f64,
    refused: f64,
    all: f64,
    seconds: f64,
}

fn open_loop(app: &Host, address: &str, rate: u32, seconds: u32) -> Command {
    let mut command = app.command_as(CLIENT, "python3");
    command.args(["-c", OPEN_LOOP, address, &rate.to_string(), &seconds.to_string()]);
    command
}

fn load(app: &Host, address: &str, rate: u32, seconds: u32) -> Load {
    let output = Output::of(open_loop(app, address, rate, seconds)).expect_success();
    let numbers: Vec<f64> = output.split_whitespace().filter_map(|it| it.parse().ok()).collect();
    let [passed, refused, all, seconds] = numbers[..] else { panic!("{output}") };
    Load { passed, refused, all, seconds }
}

/// A limit as a host shows it.
fn limit(mesh: &Mesh, host: &str) -> Value {
    let routes = mesh.host(host).agentctl(&["routes", "-o", "json"]).json();
    routes["limits"][0].clone()
}

fn share(mesh: &Mesh, host: &str) -> f64 {
    limit(mesh, host)["share"].as_f64().unwrap_or(0.0)
}

#[test]
fn two_hosts_share_one_limit_by_their_demand() {
    const RATE: f64 = 50.0;
    const BURST: f64 = 10.0;
    let mut mesh = Mesh::new(&["app-1", "api-1", "api-2"]);
    let topology = |balance: &str| {
        format!(
            "{}\n[ratelimit.api]\nservice = \"api\"\nrate = {RATE}\nburst = {BURST}\n",
            MESH.replace("balance = \"round-robin\"", balance)
        )
    };
    mesh.apply(&topology("balance = \"round-robin\""));
    let _one = mesh.host("api-1").nginx(API, 8081, "return 200 one;");
    let _two = mesh.host("api-2").nginx(API, 8081, "return 200 two;");
    let address = mesh.virtual_addresses("api").0.to_string();
    wait_for("both have an equal part", Duration::from_secs(10), || {
        ["api-1", "api-2"].iter().all(|host| share(&mesh, host) == RATE / 2.0)
    });

    let got = load(mesh.host("app-1"), &address, 150, 8);
    assert!((got.passed + got.refused - got.all).abs() < 0.5, "some got another answer");
    // A burst more, and a token for each host: parts of it are rounded up.
    let most = RATE.mul_add(got.seconds, BURST + 2.0);
    assert!(got.passed <= most, "{} of at most {most} passed", got.passed);
    assert!(got.passed >= RATE * got.seconds * 0.8, "only {} of {most} passed", got.passed);
    why_it_was_refused(&mesh);

    // All of the demand goes to one host, and so does the limit, but for a twentieth.
    mesh.apply(&topology(
        "balance = { policy = \"round-robin\", weights = { api-1 = 99, api-2 = 1 } }",
    ));
    let command = open_loop(mesh.host("app-1"), &address, 150, 120);
    let mut steady = mesh.host("app-1").node.spawn("steady", command);
    wait_for("the share follows the demand", Duration::from_secs(20), || {
        share(&mesh, "api-1") > 0.9 * RATE
    });
    assert!(share(&mesh, "api-1") + share(&mesh, "api-2") <= RATE);

    // Without the controller all go on as they were, and a new one takes nothing from them.
    mesh.controller().kill();
    let connected = |mesh: &Mesh| mesh.host("api-1").status()["connected"] == true;
    wait_for("the agent is alone", Duration::from_secs(10), || !connected(&mesh));
    assert!(share(&mesh, "api-1") > 0.9 * RATE);
    mesh.start_controller();
    wait_for("the agent is back", Duration::from_secs(20), || connected(&mesh));
    let before = mesh.host("api-1").metric("isthmus_rate_limit_requests_total", "refused");
    wait_for("more is refused", Duration::from_secs(20), || {
        mesh.host("api-1").metric("isthmus_rate_limit_requests_total", "refused") > before + 100.0
    });
    assert!(share(&mesh, "api-1") > 0.9 * RATE);
    steady.kill();
    wait_for("without demand the parts are equal again", Duration::from_secs(60), || {
        share(&mesh, "api-2") == RATE / 2.0
    });
}

/// Operators are told by which limit, where it stands, and whose requests.
fn why_it_was_refused(mesh: &Mesh) {
    let one = limit(mesh, "api-1");
    assert!(one["refused"].as_u64() > Some(0), "{one}");
    let by = one["refused_by"].as_object().map(|by| by.keys().cloned().collect::<Vec<_>>());
    assert!(by.is_some_and(|by| by.len() == 1 && by[0].contains("client")), "{one}");
    assert!(one["origin"].as_str().is_some_and(|it| it.contains(".toml:")), "{one}");
    for host in ["api-1", "app-1"] {
        let log = mesh.host(host).log();
        let told =
            log.lines().any(|it| it.contains("verdict=limit") && it.contains("rule=\"api\""));
        assert!(told, "{host}: {log}");
        let counted = mesh.host(host).metric("isthmus_requests_total", "verdict=\"limit\"");
        assert!(counted > 0.0, "{host}");
    }
    // The mesh's own refusals say nothing about the workloads.
    assert!(mesh.host("app-1").metric("isthmus_ejections_total", "") < 0.5);
}

#[test]
fn limits_by_header_and_identity_say_when_to_come_again_and_leave_others_alone() {
    let mesh = Mesh::new(&["app-1", "api-1"]);
    let topology = MESH
        .replace("[host.api-2]\n", "")
        .replace("\"api-1\", \"api-2\"", "\"api-1\"")
        .replace("from = \"service:client\"", "from = \"any\"");
    mesh.apply(&format!(
        "{topology}\n[ratelimit.search]\nservice = \"api\"\nmatch = {{ path = {{ prefix = \"/search\" }} }}\n\
         rate = 0.01\nburst = 2\nper = {{ header = \"x-key\" }}\n\
         [ratelimit.post]\nservice = \"api\"\nmatch = {{ method = \"POST\" }}\n\
         rate = 0.1\nburst = 1\nper = \"identity\"\nscope = \"host\"\n"
    ));
    let _one = mesh.host("api-1").nginx(API, 8081, "return 200 one;");
    let app = mesh.host("app-1");
    let ask = |user: u32, method: &str, path: &str, key: &str| {
        let url = format!("http://api.prod.mesh.internal:8081{path}");
        let key = format!("x-key: {key}");
        let arguments = ["-4", "-i", "-X", method, "-H", &key, &url];
        app.curl(user, &arguments).expect_success().to_ascii_lowercase()
    };
    let get = |path: &str, key: &str| ask(CLIENT, "GET", path, key);
    wait_for("the API answers", Duration::from_secs(5), || get("/", "a").contains(" 200 "));
    for _ in 0..2 {
        assert!(get("/search", "a").contains(" 200 "));
    }
    // Neither another spelling of the path nor another method gets around it.
    for path in ["/search", "/%73earch/more", "/search/"] {
        let refused = get(path, "a");
        assert!(refused.contains(" 429 "), "{path}: {refused}");
        let after = retry_after(&refused);
        assert!((90..=100).contains(&after), "{path}: {refused}");
    }
    assert!(get("/search", "b").contains(" 200 ") && get("/other", "a").contains(" 200 "));

    // The client and its host are two callers.
    assert!(ask(CLIENT, "POST", "/", "a").contains(" 200 "));
    let refused = ask(CLIENT, "POST", "/", "b");
    assert!(refused.contains(" 429 ") && (1..=10).contains(&retry_after(&refused)), "{refused}");
    assert!(ask(0, "POST", "/", "a").contains(" 200 "));
    // What one limit refuses takes nothing of the other's tokens.
    for _ in 0..5 {
        assert!(ask(CLIENT, "POST", "/search", "c").contains(" 429 "));
    }
    assert!(get("/search", "c").contains(" 200 ") && get("/search", "c").contains(" 200 "));
}

fn retry_after(answer: &str) -> u64 {
    let line = answer.lines().find_map(|line| line.strip_prefix("retry-after: "));
    line.and_then(|seconds| seconds.trim().parse().ok()).unwrap_or(0)
}

/// Calls twice; prints the status codes' names, and when the second may be tried again.
const GRPC_CLIENT: &str = include_str!("programs/ratelimit_grpc_client.py");

const GRPC_SERVER: &str = include_str!("programs/ratelimit_grpc_server.py");

#[test]
fn a_grpc_client_is_told_in_its_own_words() {
    let mesh = Mesh::new(&["app-1", "api-1"]);
    let topology = MESH.replace("[host.api-2]\n", "").replace("\"api-1\", \"api-2\"", "\"api-1\"");
    mesh.apply(&format!(
        "{topology}\n[ratelimit.calls]\nservice = \"api\"\nrate = 0.05\nper = \"identity\"\n"
    ));
    let api = mesh.host("api-1");
    let mut command = api.node.command_as(API, None, "python3");
    command.args(["-c", GRPC_SERVER]);
    let _server = api.node.spawn("grpc", command);
    wait_for("it listens", Duration::from_secs(10), || {
        !api.node.sh("ss -Hltn 'sport = :8081'").is_empty()
    });
    let app = mesh.host("app-1");
    let mut command = app.command_as(CLIENT, "python3");
    command.args(["-c", GRPC_CLIENT, &mesh.virtual_addresses("api").0.to_string()]);
    let output = Output::of(command).expect_success();
    let [first, second] = output.lines().collect::<Vec<_>>()[..] else { panic!("{output}") };
    assert_eq!(first, "OK");
    let words: Vec<&str> = second.split(' ').collect();
    assert_eq!(words[0], "RESOURCE_EXHAUSTED", "{output}");
    let (after, pushback) = (words[1].parse::<u64>().unwrap(), words[2].parse::<u64>().unwrap());
    assert!((15..=20).contains(&after) && pushback.div_ceil(1000) == after, "{output}");
}
