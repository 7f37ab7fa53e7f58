//! Resilience: who fails is left out, who is restarted loses nothing.

mod health;
mod under_load;

use std::time::{Duration, Instant};

use isthmus_netns_tests::{Host, Mesh, Output, Process, wait_for};

const CLIENT: u32 = 40_002;
const API: u32 = 40_011;
const SOON: Duration = Duration::from_secs(20);

const MESH: &str = r#"
[host.app-1]
[host.api-1]
[host.api-2]
[host.api-3]

[service.client]
namespace = "prod"
port = 9000
hosts = ["app-1"]
workload = { user = "40002" }

[[allow]]
name = "client uses the API"
from = "service:client"
to = "service:*"
"#;

/// The API on three hosts, with more lines of its own.
fn api(hosts: &str, more: &str) -> String {
    format!(
        "{MESH}\n[service.api]\nnamespace = \"prod\"\nport = 8081\nprotocol = \"http\"\n\
         hosts = [{hosts}]\nworkload = {{ user = \"40011\" }}\n{more}\n"
    )
}

const THREE: &str = "\"api-1\", \"api-2\", \"api-3\"";

/// Answers requests as the file `mode` says, and writes to `count` how many there were.
const BACKEND: &str = include_str!("programs/resilience_backend.py");

struct Backend<'a> {
    host: &'a Host,
    _process: Process,
}

impl<'a> Backend<'a> {
    fn start(mesh: &'a Mesh, name: &str) -> Self {
        let host = mesh.host(name);
        let folder = host.node.folder().join("backend");
        std::fs::create_dir_all(&folder).expect("the lab's folder can be written");
        std::os::unix::fs::chown(&folder, Some(API), Some(API)).expect("root may chown");
        std::fs::write(folder.join("mode"), "ok").expect("the lab's folder can be written");
        let mut command = host.node.command_as(API, None, "python3");
        command.args(["-c", BACKEND]).arg(&folder).arg(name);
        let process = host.node.spawn("backend", command);
        wait_for("the backend listens", SOON, || {
            !host.node.sh("ss -Hltn 'sport = :8081'").is_empty()
        });
        Self { host, _process: process }
    }

    fn behave(&self, mode: &str) {
        let folder = self.host.node.folder().join("backend");
        std::fs::write(folder.join("mode.new"), mode).expect("the lab's folder can be written");
        std::fs::rename(folder.join("mode.new"), folder.join("mode")).expect("so it can");
    }

    /// Requests that it got.
    fn count(&self) -> u64 {
        let file = self.host.node.folder().join("backend/count");
        std::fs::read_to_string(file).unwrap_or_default().parse().unwrap_or(0)
    }
}

/// What a burst of requests got.
#[derive(Debug)]
struct Burst {
    good: u64,
    bad: u64,
}

/// Requests without a pause, on eight connections.
fn burst(mesh: &Mesh, time: Duration) -> Burst {
    let app = mesh.host("app-1");
    let mut command = app.command_as(CLIENT, "h2load");
    let time = format!("{}", time.as_secs());
    command.args([
        "--h1",
        "-c",
        "8",
        "-t",
        "1",
        "-D",
        &time,
        &format!("http://{}:8081/", mesh.virtual_addresses("api").0),
    ]);
    let output = Output::of(command).expect_success();
    // "requests: 9 total, 9 started, 9 done, 9 succeeded, 0 failed, 0 errored, 0 timeout"
    let line = output.lines().find(|line| line.starts_with("requests: ")).unwrap_or_default();
    let number = |what: &str| {
        let part = line.split(&[',', ':'][..]).find(|part| part.ends_with(what));
        part.and_then(|part| part.trim().split(' ').next()?.parse().ok()).unwrap_or(0)
    };
    let (good, done): (u64, u64) = (number(" succeeded"), number(" done"));
    Burst { good, bad: done - good + number(" errored") + number(" timeout") }
}

fn endpoints(app: &Host) -> Vec<serde_json::Value> {
    let routes = app.agentctl(&["routes", "-o", "json"]).json();
    routes["endpoints"].as_array().cloned().unwrap_or_default()
}

fn endpoint(app: &Host, host: &str) -> serde_json::Value {
    let endpoints = endpoints(app);
    let found = endpoints.iter().find(|it| it["host"] == host).cloned();
    found.unwrap_or_else(|| panic!("no endpoint on {host}: {endpoints:?}"))
}

fn get(app: &Host) -> String {
    let status = "%{http_code}";
    let url = "http://api.prod.mesh.internal:8081/";
    app.curl(CLIENT, &["-4", "-o", "/dev/null", "-w", status, url]).expect_success()
}

#[test]
fn a_backend_that_fails_in_any_way_is_left_out_and_returns() {
    let mesh = Mesh::new(&["app-1", "api-1", "api-2", "api-3"]);
    // Four ways in a row: without a shorter limit the last would be a minute of caution. A busy machine
    // may hold up all requests for a third of a second.
    mesh.apply(&api(
        THREE,
        "outlier = { max_ejection_time = \"4s\" }\n[[route.api]]\ntry_timeout = \"1s\"",
    ));
    let app = mesh.host("app-1");
    let _well = [Backend::start(&mesh, "api-1"), Backend::start(&mesh, "api-2")];
    let failing = Backend::start(&mesh, "api-3");
    assert_eq!(burst(&mesh, Duration::from_secs(1)).bad, 0);

    for mode in ["500", "hang", "429", "reset"] {
        failing.behave(mode);
        let began = Instant::now();
        let first = burst(&mesh, Duration::from_secs(3));
        let first_took = began.elapsed();
        assert!(endpoint(app, "api-3")["ejected"] == true, "{mode}");
        let after = burst(&mesh, Duration::from_secs(3));
        println!("{mode}: {first:?} in {first_took:?}, then {after:?}");
        assert!(first.bad > 0, "{mode}: it has failed");
        let failed = || {
            let log = app.log();
            let last = log.lines().rev().filter(|line| !line.contains(" status=200 ")).take(30);
            last.collect::<Vec<_>>().join("\n")
        };
        assert!(after.bad * 1000 < after.good, "{mode}: {after:?}\n{}", failed());

        failing.behave("ok");
        wait_for("it is back by itself", SOON, || {
            get(app);
            endpoint(app, "api-3")["ejected"] == false
        });
        let before = failing.count();
        wait_for("it gets its share again", SOON, || {
            get(app);
            failing.count() > before + 5
        });
    }
    assert!(app.metric("isthmus_ejections_total", "") >= 4.0);
}

#[test]
fn a_dead_host_costs_a_caller_three_seconds_at_the_most_and_is_said_to_be_dead() {
    const MOST: f64 = 3.0;
    let mesh = Mesh::new(&["app-1", "api-1", "api-2", "api-3"]);
    mesh.apply(&api("\"api-1\", \"api-2\"", ""));
    let app = mesh.host("app-1");
    let _backends = [Backend::start(&mesh, "api-1"), Backend::start(&mesh, "api-2")];
    let plug = |host: &str, state: &str| mesh.switch.sh(&format!("ip link set p-{host} {state}"));
    let ask = || {
        let url = "http://api.prod.mesh.internal:8081/";
        let said = app.curl(CLIENT, &["-4", "-w", "\n%{http_code} %{time_total}", url]);
        let said = said.expect_success();
        let (text, end) = said.rsplit_once('\n').expect("curl says more on a line of its own");
        let (status, took) = end.split_once(' ').expect("two words");
        (text.to_owned(), status.to_owned(), took.parse::<f64>().expect("seconds"))
    };

    let both = || (0..10).any(|_| ask().0 == "api-1") && (0..10).any(|_| ask().0 == "api-2");
    wait_for("both get requests", SOON, both);

    // By the proxy's old connections, and by none.
    plug("api-1", "down");
    plug("api-2", "down");
    for _ in 0..3 {
        let (text, status, took) = ask();
        println!("{status} after {took} s: {text}");
        assert!(took < MOST, "{took} s: {text}");
        assert_eq!(status, "503", "{text}");
        assert!(text.starts_with("host api-") && text.contains(" doesn't answer since "), "{text}");
    }

    // Where somebody else can take them, requests don't wait at all.
    plug("api-2", "up");
    wait_for("one is back", SOON, || ask().1 == "200");
    for _ in 0..10 {
        let (text, status, took) = ask();
        assert!(status == "200" && took < 1.0, "{status} after {took} s: {text}");
    }

    let peers = app.agentctl(&["peers", "-o", "json"]).json();
    let peers = peers.as_array().cloned().unwrap_or_default();
    let dead = peers.iter().find(|peer| peer["name"] == "api-1").expect("it is a peer still");
    assert_eq!(dead["state"], "silent");
    let status = app.agentctl(&["status"]).expect_success();
    assert!(status.contains("host api-1 doesn't answer"), "{status}");

    plug("api-1", "up");
    wait_for("both get requests again", SOON, both);
    let status = app.agentctl(&["status"]).expect_success();
    assert!(!status.contains("doesn't answer"), "{status}");
}

#[test]
fn with_everything_down_retries_stay_within_their_budget() {
    let mesh = Mesh::new(&["app-1", "api-1", "api-2", "api-3"]);
    mesh.apply(&api(
        THREE,
        "[[route.api]]\nretry = { attempts = 5, on = [\"5xx\"], backoff = \"1ms\", budget = 0.2 }",
    ));
    let app = mesh.host("app-1");
    let all = ["api-1", "api-2", "api-3"].map(|name| Backend::start(&mesh, name));
    all.iter().for_each(|backend| backend.behave("503"));
    wait_for("all fail", SOON, || get(app) == "503");
    let load = || all.iter().map(Backend::count).sum::<u64>();
    let before = load();
    let began = Instant::now();
    let answers = burst(&mesh, Duration::from_secs(4));
    wait_for("all is counted", SOON, || load() >= before + answers.bad);
    let asked = answers.good + answers.bad;
    // A fifth, one per second, and what was saved up.
    let most = asked + asked / 5 + began.elapsed().as_secs() + 10 + 8;
    println!("{} reached backends of {asked} asked", load() - before);
    assert!(asked > 100, "{answers:?}");
    assert!(load() - before <= most, "{} of at most {most}", load() - before);
    assert!(load() - before > asked, "some were tried again");

    // A breaker says it in numbers, whatever the budget: with one retry at a time, each of which
    // takes a fifth of a second.
    mesh.apply(&api(
        THREE,
        "breaker = { max_retries = 1 }\n[[route.api]]\n\
         retry = { attempts = 5, on = [\"5xx\"], backoff = \"1ms\", budget = 1 }",
    ));
    all.iter().for_each(|backend| backend.behave("slow-503"));
    wait_for("all are slow", SOON, || {
        let began = Instant::now();
        get(app) == "503" && began.elapsed() > Duration::from_millis(200)
    });
    let before = load();
    let began = Instant::now();
    let answers = burst(&mesh, Duration::from_secs(4));
    let asked = answers.good + answers.bad;
    wait_for("all is counted", SOON, || load() >= before + asked);
    let most = asked + began.elapsed().as_millis() as u64 / 200 + 8;
    println!("{} reached backends of {asked} asked, one retry at a time", load() - before);
    assert!((asked + 2..=most).contains(&(load() - before)), "at most {most}");
    assert!(app.metric("isthmus_overflows_total", "limit=\"max_retries\"") > 2.0);
}

#[test]
fn a_breaker_and_a_hedge_do_what_they_say() {
    let mesh = Mesh::new(&["app-1", "api-1", "api-2", "api-3"]);
    let app = mesh.host("app-1");
    mesh.apply(&api("\"api-1\"", "breaker = { max_requests = 2 }"));
    let slow = Backend::start(&mesh, "api-1");
    slow.behave("slow");
    wait_for("it is slow", SOON, || {
        let began = Instant::now();
        get(app) == "200" && began.elapsed() > Duration::from_millis(400)
    });
    let crowd = burst(&mesh, Duration::from_secs(2));
    assert!(crowd.good >= 2 && crowd.bad > 2, "{crowd:?}");
    assert!(app.metric("isthmus_overflows_total", "limit=\"max_requests\"") > 2.0);

    let hedged = api(
        "\"api-1\", \"api-2\"",
        "balance = \"round-robin\"\n[[route.api]]\nhedge = { after = \"50ms\" }\n\
         retry = { attempts = 1, budget = 1 }",
    );
    mesh.apply(&hedged);
    let _fast = Backend::start(&mesh, "api-2");
    slow.behave("hang");
    wait_for("the other one is there", SOON, || get(app) == "200");
    // Half of them meet first who never answers.
    for _ in 0..8 {
        assert_eq!(get(app), "200");
    }
    assert!(app.metric("isthmus_hedges_total", "") >= 3.0);
}

#[test]
fn twenty_thousand_requests_are_split_as_the_route_says() {
    let mesh = Mesh::new(&["app-1", "api-1", "api-2", "api-3"]);
    let mut topology = api("\"api-1\"", "");
    topology += "[service.canary]\nnamespace = \"prod\"\nport = 8082\nprotocol = \"http\"\n\
                 hosts = [\"api-2\"]\nworkload = { user = \"40012\" }\n\
                 [[route.api]]\nto = [{ service = \"api\", weight = 95 }, \
                 { service = \"canary\", weight = 5 }]\n";
    mesh.apply(&topology);
    let respond = "location / { return 200 \"well\"; }";
    let _stable = mesh.host("api-1").nginx(API, 8081, respond);
    let _canary = mesh.host("api-2").nginx(40_012, 8082, respond);
    let app = mesh.host("app-1");
    wait_for("it serves", SOON, || get(app) == "200");
    let count = |host: &str, port| mesh.host(host).nginx_log(port).lines().count();
    let before = (count("api-1", 8081), count("api-2", 8082));

    let mut command = app.command_as(CLIENT, "h2load");
    let url = format!("http://{}:8081/", mesh.virtual_addresses("api").0);
    command.args(["--h1", "-n", "20000", "-c", "16", "-t", "1", &url]);
    let output = Output::of(command).expect_success();
    assert!(output.contains("20000 done, 20000 succeeded, 0 failed, 0 errored"), "{output}");
    let counts = || (count("api-1", 8081) - before.0, count("api-2", 8082) - before.1);
    wait_for("all are in the logs", SOON, || counts().0 + counts().1 == 20_000);
    let (stable, canary) = counts();
    println!("{stable} to {canary}");
    // Within 1 % of all.
    assert!((800..=1200).contains(&canary), "{stable} to {canary}");
}

#[test]
fn connections_stay_within_the_breaker_and_requests_wait_for_them() {
    let mesh = Mesh::new(&["app-1", "api-1", "api-2", "api-3"]);
    mesh.apply(&api("\"api-1\"", "breaker = { max_connections = 4 }"));
    let backend = Backend::start(&mesh, "api-1");
    let app = mesh.host("app-1");
    wait_for("it serves", SOON, || get(app) == "200");
    backend.behave("slow");
    let workload = endpoint(app, "api-1")["address"].as_str().unwrap_or_default().to_owned();
    let mut command = app.command_as(CLIENT, "h2load");
    let url = format!("http://{}:8081/", mesh.virtual_addresses("api").0);
    command.args(["--h1", "-n", "32", "-c", "16", "-t", "1", &url]);
    let mut load = app.node.spawn("load", command);
    let mut most = 0;
    while load.is_running() {
        let open = app.node.sh(&format!("ss -Htn state established dst {workload}"));
        most = most.max(open.lines().count());
    }
    let output = load.output();
    assert!(output.contains("32 done, 32 succeeded, 0 failed, 0 errored"), "{output}");
    // Each of two threads may have one in any case.
    assert!((2..=5).contains(&most), "{most} connections");
}
