//! First packets of flows: from a user's process, from a container on a bridge, from one on the host's network.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use isthmus_netns_tests::{CONTAINER_LIMITS, Mesh, MeshOptions, Node, Output, Podman, wait_for};
use serde_json::{Value, json};

use crate::report::Figures;

const SOON: Duration = Duration::from_secs(10);
const ROUNDS: usize = 20;
const FLOWS: usize = 50;
const USER: u32 = 40_002;
const SERVER: u32 = 40_001;

const TOPOLOGY: &str = r#"
[host.app-1]
[host.srv-1]

[service.user]
hosts = ["app-1"]
workload = { user = "40002" }

[service.bridged]
hosts = ["app-1"]
workload = { container = { name = "bridged" } }

[service.plain]
hosts = ["app-1"]
workload = { container = { name = "plain" } }

[service.echo]
port = 7000
protocol = "udp"
hosts = ["srv-1"]
workload = { user = "40001" }

[[allow]]
name = "all call echo"
from = ["service:user", "service:bridged", "service:plain"]
to = "service:echo"
"#;

/// Measures how much later than its second packet the first packet of a flow is answered, by sender.
pub(crate) fn run(rounds: Option<usize>) -> Figures {
    let socket = format!("/tmp/isthmus-bench-podman-{}.sock", std::process::id());
    let settings = format!("containers = {{ engines = [{socket:?}] }}\n");
    let options = MeshOptions { settings: settings.leak(), ..MeshOptions::default() };
    let mesh = Mesh::with(&["app-1", "srv-1"], options);
    mesh.apply(TOPOLOGY);
    let app = &mesh.host("app-1").node;
    let podman = Podman::new(app, &socket);
    let own = std::env::current_exe().expect("this program has a file");
    // This program, and the libraries that it wants.
    let program = format!("{0}:{0}:ro", own.display());
    let seen = ["-v", &program, "-v", "/usr/lib:/usr/lib:ro"];
    let sleep = ["localhost/demo:1", "/bin/sleep", "100000"];
    for (name, network) in [("bridged", "podman"), ("plain", "host")] {
        let run = ["run", "-d", "--name", name, "--network", network];
        podman.run(&[&run[..], &CONTAINER_LIMITS, &seen, &sleep].concat());
    }
    wait_for("the engine has told", SOON, || {
        let status = mesh.host("app-1").status();
        let containers = status["containers"].as_array().map_or(&[][..], Vec::as_slice);
        ["bridged", "plain"].iter().all(|name| containers.iter().any(|it| it["service"] == *name))
    });
    let srv = &mesh.host("srv-1").node;
    let mut echo = srv.command_as(SERVER, None, &own.to_string_lossy());
    echo.args(["echo", "[::]:7000"]);
    let _echo = srv.spawn("echo", echo);
    wait_for("the server listens", SOON, || srv.sh("ss -Hlun sport = 7000").contains("7000"));

    let (address, _) = mesh.virtual_addresses("echo");
    let target = format!("{address}:7000");
    let measure = [own.to_string_lossy().into_owned(), "first-packets".into(), target];
    let senders = [
        ("a user's process", as_user(app, &measure)),
        ("a container on a bridge", inside(&podman, "bridged", &measure)),
        ("a container on the host's network", inside(&podman, "plain", &measure)),
    ];
    let mut figures = Figures::default();
    // A port of its own for each flow: none changes hands.
    let mut ports = (10_000..60_000).step_by(FLOWS);
    for _ in 0..rounds.unwrap_or(ROUNDS) {
        for (sender, measure) in &senders {
            let first_port = ports.next().expect("at most 300 rounds");
            let answered = measure(&first_port.to_string()).json();
            figures.record(sender, "us first packet", median(&answered["first"]));
            figures.record(sender, "us second packet", median(&answered["second"]));
            figures.record(sender, "us first - second", median(&answered["later"]));
        }
    }
    figures
}

fn as_user<'a>(app: &'a Node, measure: &[String]) -> Box<dyn Fn(&str) -> Output + 'a> {
    let measure = measure.to_vec();
    Box::new(move |first_port| {
        let mut command = app.command_as(USER, None, &measure[0]);
        command.args(&measure[1..]).arg(first_port);
        Output::of(command)
    })
}

fn inside<'a>(
    podman: &'a Podman,
    name: &'a str,
    measure: &[String],
) -> Box<dyn Fn(&str) -> Output + 'a> {
    let command = [&["exec".to_owned(), name.to_owned()], measure].concat();
    Box::new(move |first_port| {
        let mut command: Vec<_> = command.iter().map(String::as_str).collect();
        command.push(first_port);
        podman.try_run(&command)
    })
}

/// Opens flow after flow, each with two packets, and prints how long their answers took.
pub(crate) fn first_packets(target: &str, first_port: u16) {
    let [mut first, mut second, mut later] = [const { Vec::new() }; 3];
    for port in (first_port..).take(FLOWS) {
        let socket = UdpSocket::bind(("0.0.0.0", port)).expect("a socket");
        socket.connect(target).expect("an address");
        socket.set_read_timeout(Some(SOON)).expect("a time");
        let ask = || {
            let started = Instant::now();
            socket.send(b"ping").expect("a packet leaves");
            socket.recv(&mut [0; 16]).expect("an answer");
            started.elapsed().as_secs_f64() * 1e6
        };
        let (one, two) = (ask(), ask());
        first.push(one);
        second.push(two);
        later.push(one - two);
    }
    println!("{}", json!({ "first": first, "second": second, "later": later }));
}

/// Sends each datagram back.
pub(crate) fn echo(address: &str) {
    let socket = UdpSocket::bind(address).expect("the port is free");
    let mut packet = [0; 2048];
    while let Ok((bytes, from)) = socket.recv_from(&mut packet) {
        // A caller that has gone is no reason to end.
        drop(socket.send_to(&packet[..bytes], from));
    }
}

fn median(values: &Value) -> f64 {
    let mut values: Vec<f64> =
        values.as_array().into_iter().flatten().filter_map(Value::as_f64).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
