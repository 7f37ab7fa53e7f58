//! Programs that send a datagram and are gone, ports that change hands, large answers, floods.

use std::time::{Duration, Instant};

use isthmus_netns_tests::{Host, Mesh, Output, Process, wait_for};

const WEB: u32 = 40_001;
const CLIENT: u32 = 40_002;
const OTHER: u32 = 40_003;
const STATS: u32 = 40_004;

const TOPOLOGY: &str = r#"
[host.app-1]
[host.web-1]

[service.web]
namespace = "prod"
port = 8080
hosts = ["web-1"]
workload = { user = "40001" }

[service.stats]
namespace = "prod"
protocol = "udp"
port = 8125
hosts = ["web-1"]
workload = { user = "40004" }

[service.client]
namespace = "prod"
port = 9000
hosts = ["app-1"]
workload = { user = "40002" }

[[allow]]
name = "client uses both"
from = "service:client"
to = ["service:web", "service:stats"]
"#;

/// Notes each datagram in a file; asked for some bytes, it answers with them.
const SERVER: &str = include_str!("programs/datagrams_server.py");

const SEND_AND_CLOSE: &str = include_str!("programs/datagrams_send_and_close.py");

const SEND_FROM: &str = include_str!("programs/datagrams_send_from.py");

const ASK: &str = include_str!("programs/datagrams_ask.py");

/// From one socket, or from another each time, of so many bytes.
const FLOOD: &str = include_str!("programs/datagrams_flood.py");

#[test]
fn datagrams_are_their_senders_and_a_flood_is_its_users_alone() {
    let mesh = Mesh::new(&["app-1", "web-1"]);
    mesh.apply(TOPOLOGY);
    let (app, web) = (mesh.host("app-1"), mesh.host("web-1"));
    let log = web.node.folder().join("stats.log");
    std::fs::write(&log, "").expect("the lab's folder can be written");
    std::os::unix::fs::chown(&log, Some(STATS), Some(STATS)).expect("root may chown");
    let _server = python(web, STATS, SERVER, &[&log.display().to_string()]);
    wait_for("the server listens", Duration::from_secs(20), || {
        web.node.sh("ss -Hlun 'sport = :8125'").lines().count() == 2
    });
    let problems = app.status()["problems"].to_string();
    assert!(!problems.contains("senders-not-noted"), "{problems}");
    let (v4, v6) = mesh.virtual_addresses("stats");
    for target in [v4.to_string(), v6.to_string()] {
        sockets_may_be_closed_at_once(app, &target, &log);
        large_answers_arrive(app, &target);
        a_port_that_changes_hands_takes_no_rights_along(app, &target, &log);
    }
    let _nginx = web.nginx(WEB, 8080, "return 200 ok;");
    for kind in ["one", "many"] {
        // The larger ones are sent in 43 parts.
        for size in ["5", "60000"] {
            a_denied_flood_costs_others_little(app, &v4.to_string(), kind, size);
        }
    }
    assert!(app.metric("isthmus_dropped_packets_total", "\"denied-again\"") > 0.0);
    assert!(app.metric("isthmus_dropped_packets_total", "\"held-back\"") > 0.0);
}

fn sockets_may_be_closed_at_once(app: &Host, target: &str, log: &std::path::Path) {
    let _ = run(app, CLIENT, SEND_AND_CLOSE, &[target, "1500"]).expect_success();
    let arrived = || lines_with(log, target);
    let began = Instant::now();
    while arrived() < 1500 && began.elapsed() < Duration::from_secs(10) {
        std::thread::yield_now();
    }
    assert_eq!(arrived(), 1500, "to {target}");
}

/// Though the server, on all addresses, answers from its host's own.
fn large_answers_arrive(app: &Host, target: &str) {
    for size in ["1392", "1393", "8000"] {
        let got = run(app, CLIENT, ASK, &[target, size]).expect_success();
        assert_eq!(got.trim(), size, "from {target}");
    }
}

fn a_port_that_changes_hands_takes_no_rights_along(
    app: &Host,
    target: &str,
    log: &std::path::Path,
) {
    let (mine, stolen) = (format!("mine-{target}-"), format!("stolen-{target}-"));
    let _ = run(app, CLIENT, SEND_FROM, &[target, &mine, "1"]).expect_success();
    let _ = run(app, OTHER, SEND_FROM, &[target, &stolen, "20"]).expect_success();
    // What was sent after it has arrived: so would this have.
    let _ = run(app, CLIENT, SEND_AND_CLOSE, &[target, "1"]).expect_success();
    wait_for("a later datagram", Duration::from_secs(10), || {
        lines_with(log, &mine) == 1 && lines_with(log, &format!("{target}0")) == 2
    });
    assert_eq!(lines_with(log, &stolen), 0, "to {target}");
}

fn a_denied_flood_costs_others_little(app: &Host, target: &str, kind: &str, size: &str) {
    let mut floods = [(); 4].map(|()| python(app, OTHER, FLOOD, &[target, kind, size]));
    let denied = || app.metric("isthmus_dropped_packets_total", "\"denied");
    let before = denied();
    wait_for("the flood", Duration::from_secs(20), || denied() > before + 1000.0);
    let url = "http://web.prod.mesh.internal:8080/";
    let asked = 50;
    let ask = || app.curl(CLIENT, &["-4", "--max-time", "1", url]).success();
    let answered = (0..asked).filter(|_| ask()).count();
    for flood in &mut floods {
        assert!(flood.is_running());
        flood.kill();
    }
    assert!(
        answered >= asked * 8 / 10,
        "{answered} of {asked} beside a flood of {size} from {kind}"
    );
}

fn run(host: &Host, user: u32, program: &str, arguments: &[&str]) -> Output {
    let mut command = host.command_as(user, "python3");
    command.arg("-c").arg(program).args(arguments);
    Output::of(command)
}

fn python(host: &Host, user: u32, program: &str, arguments: &[&str]) -> Process {
    let mut command = host.node.command_as(user, None, "python3");
    command.arg("-c").arg(program).args(arguments);
    host.node.spawn(&format!("python-{user}"), command)
}

/// How many lines of the log begin so.
fn lines_with(log: &std::path::Path, start: &str) -> usize {
    let log = std::fs::read_to_string(log).unwrap_or_default();
    log.lines().filter(|line| line.starts_with(start)).count()
}
