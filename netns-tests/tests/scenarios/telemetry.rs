//! Request telemetry of agents: numbers, live requests, traces, and where the time went.

use std::time::Duration;

use isthmus_netns_tests::{
    Host, Mesh, MeshOptions, Output, Process, binary, wait_for, wait_for_value,
};
use serde_json::Value;

const CLIENT: u32 = 40_002;
const API: u32 = 40_011;
const SOON: Duration = Duration::from_secs(10);

const TOPOLOGY: &str = r#"
[host.app-1]
[host.api-1]

[service.client]
namespace = "prod"
port = 9000
hosts = ["app-1"]
workload = { user = "40002" }

[service.api]
namespace = "prod"
port = 8081
protocol = "http"
hosts = ["api-1"]
workload = { user = "40011" }

[[route.api]]
name = "all"
to = [{ service = "api" }]

[[allow]]
name = "client uses the API"
from = "service:client"
to = "service:api"
"#;

const SETTINGS: &str =
    "access_log = \"json\"\naccess_log_sample = 1.0\ntracing.otlp = \"http://10.9.0.1:4318\"\n";

const URL: &str = "http://api.prod.mesh.internal:8081";

/// Answers with the trace context that it got, after 20 ms, or 200 for `/slow`.
const BACKEND: &str = include_str!("programs/telemetry_backend.py");

/// Sends requests one after the other; prints the median time in microseconds.
const LOAD: &str = include_str!("programs/telemetry_load.py");

/// An OTLP receiver: prints each span's trace, id, parent, kind and host. Reads protobuf's wire format, of
/// which spans need only these: varints, 64 bits, and what has a length.
const RECEIVER: &str = include_str!("programs/telemetry_receiver.py");

struct Story {
    mesh: Mesh,
    receiver: Process,
    _backend: Process,
}

impl Story {
    fn begin() -> Self {
        let options = MeshOptions { settings: SETTINGS, ..MeshOptions::default() };
        let mesh = Mesh::with(&["app-1", "api-1"], options);
        mesh.apply(TOPOLOGY);
        let api = mesh.host("api-1");
        let mut backend = api.node.command_as(API, None, "python3");
        backend.args(["-c", BACKEND]);
        let backend = api.node.spawn("backend", backend);
        let node = &mesh.controller_node;
        let mut receiver = node.command("python3");
        receiver.args(["-c", RECEIVER]);
        let receiver = node.spawn("receiver", receiver);
        for (node, port) in [(&api.node, 8081), (node, 4318)] {
            wait_for("it listens", SOON, || {
                !node.sh(&format!("ss -Hltn 'sport = :{port}'")).is_empty()
            });
        }
        Self { mesh, receiver, _backend: backend }
    }

    fn app(&self) -> &Host {
        self.mesh.host("app-1")
    }

    fn get(&self, path: &str, more: &[&str]) -> String {
        let url = format!("{URL}{path}");
        self.app().curl(CLIENT, &[&["-4", &url], more].concat()).expect_success()
    }
}

#[test]
fn what_agents_tell_is_what_clients_saw() {
    let story = Story::begin();
    the_numbers_are_the_clients(&story);
    a_tap_shows_a_request_while_it_happens(&story);
    the_time_of_a_slow_application_is_the_servers(&story);
    a_trace_leads_through_both_agents(&story);
}

/// Counts exactly, the median within 5 % and what the way to the agent takes.
fn the_numbers_are_the_clients(story: &Story) {
    let address = story.mesh.virtual_addresses("api").0.to_string();
    let mut command = story.app().command_as(CLIENT, "python3");
    command.args(["-c", LOAD, &address, "200"]);
    let median: f64 = Output::of(command).expect_success().trim().parse().expect("a number");
    let rows = [("app-1", "client"), ("api-1", "server")].map(|(host, side)| {
        let row = wait_for_value("all requests are counted", SOON, || {
            let stat =
                story.mesh.host(host).agentctl(&["stat", "--service", "api", "-o", "json"]).json();
            let rows = stat["rows"].as_array()?.clone();
            rows.into_iter().find(|row| row["side"] == side && row["requests"] == 200)
        });
        assert_eq!(
            (&row["successes"], &row["statuses"]["2xx"]),
            (&200.into(), &200.into()),
            "{row}"
        );
        assert_eq!((&row["source"], &row["service"]), (&"service:client".into(), &"api".into()));
        // Each answer is a trace context that was begun here, of 55 letters.
        assert_eq!(row["response_bytes"], 200 * 55, "{row}");
        row
    });
    let [client, server] = rows.map(|row| row["p50_microseconds"].as_f64().expect("a number"));
    assert!((client - median).abs() <= median * 0.05 + 2_000.0, "{client} for {median}");
    assert!((20_000.0..=client * 1.01).contains(&server), "{server} within {client}");
    story.get("/broken", &[]);
    let row = wait_for_value("the failure is counted", SOON, || {
        let stat = story.app().agentctl(&["stat", "--total", "-o", "json"]).json();
        let row = stat["rows"].get(0)?.clone();
        (row["requests"] == 201).then_some(row)
    });
    assert_eq!((&row["successes"], &row["statuses"]["5xx"]), (&200.into(), &1.into()), "{row}");
}

fn a_tap_shows_a_request_while_it_happens(story: &Story) {
    let app = story.app();
    let mut tap = app.node.command(binary("agentctl"));
    tap.args(["tap", "-o", "json", "--path", "/slow/*", "--min-duration", "150ms", "--limit", "1"]);
    tap.arg("--socket").arg(app.socket());
    let tap = app.node.spawn("tap", tap);
    let shown = wait_for_value("the tap shows a request", SOON, || {
        story.get("/quick", &[]);
        story.get("/slow/one?secret=1", &[]);
        let output = tap.output();
        output.lines().find_map(|line| serde_json::from_str::<Value>(line).ok())
    });
    assert_eq!((&shown["path"], &shown["status"]), (&"/slow/one".into(), &200.into()), "{shown}");
    assert_eq!((&shown["side"], &shown["host"]), (&"client".into(), &"api-1".into()), "{shown}");
    assert!(shown["server_microseconds"].as_u64() >= Some(200_000), "{shown}");
}

fn the_time_of_a_slow_application_is_the_servers(story: &Story) {
    story.get("/slow-log", &[]);
    for host in ["app-1", "api-1"] {
        let line = wait_for_value("the request is logged", SOON, || {
            let log = story.mesh.host(host).log();
            let mut lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            lines.find(|line| line["path"] == "/slow-log")
        });
        let number = |key: &str| line[key].as_f64().unwrap_or_else(|| panic!("{key} in {line}"));
        let parts = ["client_ms", "queue_ms", "connect_ms", "tunnel_ms", "server_ms"].map(number);
        let sum: f64 = parts.iter().sum();
        assert!((sum - number("duration_ms")).abs() < 0.01, "{line}");
        assert!((200.0..260.0).contains(&number("server_ms")), "{line}");
        assert_eq!(number("tunnel_ms") > 0.0, host == "app-1", "{line}");
    }
}

fn a_trace_leads_through_both_agents(story: &Story) {
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let header = format!("traceparent: 00-{trace}-00f067aa0ba902b7-01");
    let arrived = story.get("/", &["-H", &header]);
    let spans = wait_for_value("both spans are exported", SOON, || {
        let output = story.receiver.output();
        let spans: Vec<Vec<String>> = output
            .lines()
            .filter_map(|line| line.strip_prefix(&format!("span {trace} ")))
            .map(|line| line.split(' ').map(str::to_owned).collect())
            .collect();
        (spans.len() >= 2).then_some(spans)
    });
    let of = |host: &str| {
        let found = spans.iter().find(|span| span[3] == host);
        found.unwrap_or_else(|| panic!("no span of {host}: {spans:?}")).clone()
    };
    let (client, server) = (of("app-1"), of("api-1"));
    assert_eq!((client[1].as_str(), client[2].as_str()), ("00f067aa0ba902b7", "3"), "{spans:?}");
    assert_eq!((&server[1], server[2].as_str()), (&client[0], "2"), "{spans:?}");
    assert_eq!(arrived, format!("00-{trace}-{}-01", server[0]));
    // Nothing is sampled here that doesn't ask for it.
    assert!(story.receiver.output().lines().filter(|line| line.starts_with("span")).count() == 2);
    assert_eq!(story.app().metric("isthmus_spans_total", "fate=\"sent\""), 1.0);
    let fresh = story.get("/", &[]);
    assert!(fresh.ends_with("-00") && !fresh.contains(trace), "{fresh}");
}
