//! Resilience: who fails is left out, who is restarted loses nothing.

use std::fmt::Write as _;
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
const BACKEND: &str = r#"
import asyncio, os, socket, struct, sys
folder, name = sys.argv[1], sys.argv[2]
mode, count = "ok", 0

async def watch():
    global mode
    while True:
        mode = open(folder + "/mode").read().strip()
        with open(folder + "/count.new", "w") as file:
            file.write(str(count))
        os.replace(folder + "/count.new", folder + "/count")
        await asyncio.sleep(0.02)

def answer(status, body):
    head = f"HTTP/1.1 {status} X\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body.encode()

async def serve(reader, writer):
    global count
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            path = head.split(b" ", 2)[1]
            if path == b"/healthz":
                writer.write(answer(500 if mode == "sick" else 200, "health"))
                continue
            count += 1
            if path == b"/long":
                open(folder + "/long", "w").close()
                await asyncio.sleep(2)
                os.remove(folder + "/long")
            if b"upgrade: websocket" in head.lower():
                writer.write(b"HTTP/1.1 101 X\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
                while data := await reader.read(4096):
                    writer.write(data)
                return
            if mode in ("ok", "sick"):
                writer.write(answer(200, name))
            elif mode == "hang":
                await asyncio.sleep(3600)
            elif mode == "reset":
                linger = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                return
            elif mode == "slow":
                await asyncio.sleep(0.5)
                writer.write(answer(200, name))
            elif mode == "slow-503":
                await asyncio.sleep(0.2)
                writer.write(answer(503, "no"))
            else:
                writer.write(answer(int(mode), "no"))
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()

async def main():
    server = await asyncio.start_server(serve, "0.0.0.0", 8081)
    await asyncio.gather(watch(), server.serve_forever())
asyncio.run(main())
"#;

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
fn a_workload_that_fails_its_health_check_gets_no_requests() {
    let mesh = Mesh::new(&["app-1", "api-1", "api-2", "api-3"]);
    mesh.apply(&api(
        THREE,
        "balance = \"round-robin\"\nhealth = { http = \"/healthz\", interval = \"200ms\", \
         timeout = \"1s\", unhealthy_threshold = 2 }",
    ));
    let app = mesh.host("app-1");
    let all = ["api-1", "api-2", "api-3"].map(|name| Backend::start(&mesh, name));
    let unhealthy =
        |host: &str| mesh.host(host).metric("isthmus_health_unhealthy", "service=\"api\"") == 1.0;
    // Also in the caller's eyes: else it might see so few of them healthy that it uses all.
    wait_for("all are healthy", SOON, || {
        !["api-1", "api-2", "api-3"].into_iter().any(unhealthy)
            && get(app) == "200"
            && endpoints(app).iter().all(|it| it["ejected"] == false)
    });
    // It would still answer; its check says otherwise. The controller isn't asked.
    all[2].behave("sick");
    wait_for("its own agent knows", SOON, || unhealthy("api-3"));
    let before = all[2].count();
    assert_eq!(burst(&mesh, Duration::from_secs(2)).bad, 0);
    assert_eq!(all[2].count(), before);
    assert_eq!(endpoint(app, "api-3")["unhealthy"], true);
    let shown = app.agentctl(&["routes"]).expect_success();
    let line = shown.lines().find(|line| line.contains("api-3")).unwrap_or_default();
    assert!(line.contains("unhealthy"), "{shown}");

    all[2].behave("ok");
    wait_for("it is back by itself", SOON, || {
        get(app);
        endpoint(app, "api-3")["ejected"] == false && all[2].count() > before
    });

    // Where all fail their checks, the checks may be wrong: all are used.
    all.iter().for_each(|backend| backend.behave("sick"));
    wait_for("all fail", SOON, || ["api-1", "api-2", "api-3"].into_iter().all(unhealthy));
    assert_eq!(burst(&mesh, Duration::from_secs(1)).bad, 0);
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

/// Keeps a few connections busy until it is told to end, then says what it got. `kept` connections
/// are used again and again; others are made for each request, which tries to connect until it can.
const STEADY: &str = r#"
import collections, http.client, signal, sys, threading, time
host, stop = sys.argv[1], threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
answers, lock = collections.Counter(), threading.Lock()
def connect():
    while True:
        connection = http.client.HTTPConnection(host, 8081, timeout=10)
        try:
            connection.connect()
            return connection
        except OSError:
            time.sleep(0.05)
def work(kept):
    mine, connection = collections.Counter(), connect()
    while not stop.is_set():
        if connection.sock is None or not kept:
            connection.close()
            connection = connect()
        try:
            connection.request("GET", "/")
            response = connection.getresponse()
            response.read()
            mine[f"{response.status}"] += 1
        except Exception as error:
            mine[f"failed: {error!r}"] += 1
            connection.close()
    with lock:
        answers.update(mine)
workers = [threading.Thread(target=work, args=(number % 2 == 0,)) for number in range(6)]
[worker.start() for worker in workers]
print("started", flush=True)
stop.wait()
[worker.join() for worker in workers]
for answer, number in answers.items():
    print(number, answer)
"#;

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

/// A stream by gRPC that gives back what it gets.
const STREAM_SERVER: &str = r#"
import concurrent.futures, grpc
class Handler(grpc.GenericRpcHandler):
    def service(self, details):
        return grpc.stream_stream_rpc_method_handler(lambda requests, context: requests)
server = grpc.server(concurrent.futures.ThreadPoolExecutor(4))
server.add_generic_rpc_handlers((Handler(),))
server.add_insecure_port("0.0.0.0:8082")
server.start()
server.wait_for_termination()
"#;

/// Holds a WebSocket and a stream by gRPC, and sees that both give back what they get.
const HOLDER: &str = r#"
import grpc, itertools, queue, signal, socket, sys, threading
def say(line):
    # In one piece: two threads speak.
    print(line + "\n", end="", flush=True)
web, stream = sys.argv[1], sys.argv[2]
stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
def hold_websocket():
    connection = socket.create_connection((web, 8081), timeout=10)
    connection.sendall(b"GET /ws HTTP/1.1\r\nHost: api\r\nConnection: Upgrade\r\n"
        b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
    file = connection.makefile("rb")
    assert b" 101 " in file.readline()
    while file.readline().strip():
        pass
    for number in itertools.count():
        message = number.to_bytes(8, "big")
        connection.sendall(message)
        assert file.read(8) == message
        if number == 0:
            say("websocket started")
        if stop.wait(0.02):
            return say(f"websocket {number}")
def hold_stream():
    with grpc.insecure_channel(f"{stream}:8082") as channel:
        sent = queue.Queue()
        answers = channel.stream_stream("/echo.Echo/Hold")(iter(sent.get, None))
        for number in itertools.count():
            message = b"%d" % number
            sent.put(message)
            assert next(answers) == message
            if number == 0:
                say("stream started")
            if stop.wait(0.02):
                sent.put(None)
                return say(f"stream {number}")
for work in (hold_websocket, hold_stream):
    threading.Thread(target=work).start()
stop.wait()
"#;

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

/// A server by gRPC that says it is well while the file `well` is there; with one call of its own.
const GRPC_SERVER: &str = r#"
import concurrent.futures, grpc, os, sys
folder = sys.argv[1]
def check(request, context):
    # HealthCheckResponse { status }: SERVING or NOT_SERVING
    return b"\x08\x01" if os.path.exists(folder + "/well") else b"\x08\x02"
class Handler(grpc.GenericRpcHandler):
    def service(self, details):
        if details.method == "/grpc.health.v1.Health/Check":
            return grpc.unary_unary_rpc_method_handler(check)
        return grpc.unary_unary_rpc_method_handler(lambda request, context: request)
server = grpc.server(concurrent.futures.ThreadPoolExecutor(4))
server.add_generic_rpc_handlers((Handler(),))
server.add_insecure_port("0.0.0.0:8081")
server.start()
server.wait_for_termination()
"#;

const GRPC_CLIENT: &str = r#"
import grpc, sys
with grpc.insecure_channel(sys.argv[1] + ":8081") as channel:
    call = channel.unary_unary("/echo.Echo/Once")
    try:
        print("got", call(b"hello", timeout=10).decode())
    except grpc.RpcError as error:
        print("failed", error.code().name)
"#;

#[test]
fn health_is_asked_by_grpc_and_by_connecting() {
    let mesh = Mesh::new(&["app-1", "api-1", "api-2", "api-3"]);
    let with = |health: &str| {
        let more = "interval = \"100ms\", timeout = \"2s\", unhealthy_threshold = 1";
        api("\"api-1\", \"api-2\"", &format!("health = {{ {health}, {more} }}"))
    };
    mesh.apply(&with("grpc = \"\""));
    let app = mesh.host("app-1");
    let start = |name: &str| {
        let host = mesh.host(name);
        let folder = host.node.folder().join("grpc");
        std::fs::create_dir_all(&folder).expect("the lab's folder can be written");
        std::fs::write(folder.join("well"), "").expect("the lab's folder can be written");
        let mut command = host.node.command_as(API, None, "python3");
        command.args(["-c", GRPC_SERVER]).arg(&folder);
        (host.node.spawn("grpc", command), folder)
    };
    let (_one, _) = start("api-1");
    let (mut two, folder) = start("api-2");
    let call = || {
        let mut command = app.command_as(CLIENT, "python3");
        let address = mesh.virtual_addresses("api").0.to_string();
        command.args(["-c", GRPC_CLIENT, &address]);
        Output::of(command).expect_success().trim().to_owned()
    };
    let healthy = |host: &str| {
        let host = mesh.host(host);
        host.metric("isthmus_health_unhealthy", "service=\"api\"") == 0.0
            && host.metric("isthmus_health_checks_total", "result=\"pass\"") > 0.0
    };
    wait_for("both are well", SOON, || healthy("api-1") && healthy("api-2"));
    assert_eq!(call(), "got hello");

    std::fs::remove_file(folder.join("well")).expect("it is there");
    wait_for("it says that it isn't well", SOON, || !healthy("api-2"));
    // Calls go on, and none of them gets there.
    let served = || mesh.host("api-2").metric("isthmus_requests_total", "status=\"2xx\"");
    let before = served();
    for _ in 0..6 {
        assert_eq!(call(), "got hello");
    }
    assert_eq!(served(), before);
    // It still accepts connections: that is all that is asked now.
    mesh.apply(&with("tcp = true"));
    wait_for("both are well", SOON, || healthy("api-1") && healthy("api-2"));
    two.terminate(SOON);
    wait_for("nobody listens", SOON, || !healthy("api-2"));
    let (_two, _) = start("api-2");
    wait_for("it is back", SOON, || healthy("api-2"));
    wait_for("it is used again", SOON, || {
        call();
        served() > before
    });
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
