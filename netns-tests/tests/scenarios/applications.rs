//! Applications as they are: wherever they listen, callers of both families reach them.

use std::fmt::Write as _;
use std::time::Duration;

use isthmus_netns_tests::{Host, Mesh, MeshOptions, Output, Process, wait_for};
use serde_json::Value;

const CLIENT: u32 = 40_002;
const SERVER: u32 = 40_001;

const HOSTS: &str = r#"
[host.app-1]
[host.srv-1]

[service.client]
namespace = "prod"
port = 9000
hosts = ["app-1"]
workload = { user = "40002" }
"#;

/// Where applications listen: a name, the address, and whether the topology must say so.
const PLACES: [(&str, &str, bool); 6] = [
    ("four", "0.0.0.0", false),
    ("six", "::", false),
    ("both", "*", false),
    ("local-four", "127.0.0.1", true),
    ("local-six", "::1", true),
    ("other-port", "127.0.0.1", true),
];
const PROTOCOLS: [&str; 4] = ["http", "tcp", "tls", "auto"];

/// One program for all of them: `address port kind` each.
const SERVE: &str = include_str!("programs/applications_serve.py");

/// Asks each `name port kind` by both families, and prints who didn't answer as it is to be.
const ASK: &str = include_str!("programs/applications_ask.py");

struct Case {
    name: String,
    /// A host has room for twelve.
    host: &'static str,
    address: &'static str,
    port: u16,
    listens: u16,
    protocol: &'static str,
}

fn cases() -> Vec<Case> {
    let all = PLACES.iter().flat_map(|place| PROTOCOLS.map(|protocol| (place, protocol)));
    (7000..)
        .zip(all)
        .map(|(port, ((place, address, _), protocol))| Case {
            name: format!("{place}-{protocol}"),
            host: if port < 7012 { "srv-1" } else { "srv-2" },
            address,
            port,
            listens: if *place == "other-port" { port + 1000 } else { port },
            protocol,
        })
        .collect()
}

fn topology(cases: &[Case]) -> String {
    let mut text = format!("{HOSTS}[host.srv-2]\n");
    for Case { name, host, address, port, listens, protocol } in cases {
        let _ = writeln!(
            text,
            "[service.{name}]\nnamespace = \"prod\"\nport = {port}\nprotocol = \"{protocol}\"\nhosts = [\"{host}\"]"
        );
        match *address {
            "127.0.0.1" => drop(writeln!(text, "listen = \"127.0.0.1:{listens}\"")),
            "::1" => drop(writeln!(text, "listen = \"[::1]:{listens}\"")),
            _ => {}
        }
    }
    let to: Vec<String> = cases.iter().map(|it| format!("\"service:{}\"", it.name)).collect();
    let _ = writeln!(
        text,
        "[[allow]]\nname = \"client calls all\"\nfrom = \"service:client\"\nto = [{}]",
        to.join(", ")
    );
    text
}

fn serve(mesh: &Mesh, host: &str, cases: &[Case]) -> Process {
    let cases: Vec<&Case> = cases.iter().filter(|it| it.host == host).collect();
    let host = mesh.host(host);
    let folder = host.node.folder().display().to_string();
    host.node.sh(&format!(
        "cd {folder} && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes \
         -days 2 -subj /CN=x -keyout x.key -out x.crt 2>/dev/null && chmod 644 x.*"
    ));
    let mut command = host.node.command_as(SERVER, None, "python3");
    command.args(["-u", "-c", SERVE, &format!("{folder}/x")]);
    command.args(cases.iter().map(|it| format!("{}/{}/{}", it.address, it.listens, it.protocol)));
    let process = host.node.spawn("applications", command);
    wait_for("all listen", Duration::from_secs(20), || {
        let listening = host.node.sh("ss -Hltn");
        cases.iter().all(|it| listening.contains(&format!(":{} ", it.listens)))
    });
    process
}

fn ask(host: &Host, cases: &[Case]) -> String {
    let mut command = host.command_as(CLIENT, "python3");
    command.args(["-c", ASK]);
    command.args(
        cases
            .iter()
            .map(|it| format!("{}.prod.mesh.internal/{}/{}", it.name, it.port, it.protocol)),
    );
    Output::of(command).expect_success()
}

/// Where the host says that a service's application listens.
fn listens(host: &Host, service: &str) -> Value {
    let status = host.status();
    let mut services = status["services"].as_array().cloned().unwrap_or_default().into_iter();
    services.find(|it| it["name"] == service).map_or(Value::Null, |it| it["listens"].clone())
}

fn all_are_reached(options: MeshOptions) {
    let cases = cases();
    let mesh = Mesh::with(&["app-1", "srv-1", "srv-2"], options);
    let _applications = ["srv-1", "srv-2"].map(|host| serve(&mesh, host, &cases));
    mesh.apply(&topology(&cases));
    let listens = |host: &str, service: &str| listens(mesh.host(host), service);
    wait_for("the agents have looked", Duration::from_secs(10), || {
        listens("srv-1", "six-tcp") == "on IPv6 only"
            && listens("srv-1", "four-tcp") == "on IPv4 only"
            && listens("srv-2", "local-six-tls") == "on [::1]:7018"
    });
    assert_eq!(ask(mesh.host("app-1"), &cases).trim(), "0 of 48 failed");
    assert_eq!(listens("srv-1", "both-http"), "on IPv4 and IPv6");
}

#[test]
fn applications_are_reached_wherever_they_listen() {
    all_are_reached(MeshOptions::default());
}

#[test]
fn applications_are_reached_wherever_they_listen_between_ipv6_only_hosts() {
    all_are_reached(MeshOptions { ipv6_underlay: true, ..MeshOptions::default() });
}

#[test]
fn a_host_says_where_an_application_listens_that_is_not_reached() {
    let service = |lines: &str| {
        format!(
            "{HOSTS}[service.web]\nnamespace = \"prod\"\nport = 8080\nprotocol = \"http\"\n\
             hosts = [\"srv-1\"]\nworkload = {{ user = \"40001\" }}\n{lines}\n\
             [[allow]]\nname = \"client reads\"\nfrom = \"service:client\"\nto = \"service:web\"\n"
        )
    };
    let mesh = Mesh::new(&["app-1", "srv-1"]);
    let (app, srv) = (mesh.host("app-1"), mesh.host("srv-1"));
    mesh.apply(&service(""));
    let problem = |code: &str| {
        let status = srv.status();
        let problems = status["problems"].as_array().cloned().unwrap_or_default();
        problems.into_iter().find(|it| it["code"] == code)
    };
    wait_for("it says that nobody listens", Duration::from_secs(15), || {
        problem("not-listening").is_some()
    });
    let mut command = srv.node.command_as(SERVER, None, "python3");
    command.args(["-m", "http.server", "--bind", "127.0.0.1", "8080"]);
    let _server = srv.node.spawn("loopback", command);
    let remedy = || Some(problem("not-reached")?["remedy"].as_str()?.to_owned());
    wait_for("it says where it listens", Duration::from_secs(15), || remedy().is_some());
    let remedy = remedy().expect("it was there");
    assert!(problem("not-listening").is_none());
    let url = "http://web.prod.mesh.internal:8080/";
    let ask = || app.curl(CLIENT, &["-o", "/dev/null", "-w", "%{http_code}", url]).expect_success();
    assert_eq!(ask(), "503");

    // What the remedy says to write is what mends it.
    let line = remedy.split('`').nth(1).expect("a line to write");
    mesh.apply(&service(line));
    assert_eq!(ask(), "200");
    wait_for("nothing is wrong", Duration::from_secs(10), || problem("not-reached").is_none());
}

/// A service on srv-1 whose application sees its callers, and another caller there.
const SEEN: &str = r#"
[service.neighbour]
namespace = "prod"
hosts = ["srv-1"]
workload = { user = "40003" }

[service.web]
namespace = "prod"
port = 8080
protocol = "http"
source = "caller"
exposure = "mesh"
hosts = ["srv-1"]
workload = { user = "40001" }

[service.raw]
namespace = "prod"
port = 7000
protocol = "auto"
source = "caller"
hosts = ["srv-1"]
workload = { user = "40004" }

[[allow]]
name = "both call"
from = ["service:client", "service:neighbour"]
to = ["service:web", "service:raw"]
"#;

const NEIGHBOUR: u32 = 40_003;
const RAW: u32 = 40_004;

/// Says to each who it takes them for; on IPv4 only.
const WHO: &str = include_str!("programs/applications_who.py");

/// Connects to an application from an address that is another's, as whoever may write raw packets can.
const FORGE: &str = include_str!("programs/applications_forge.py");

/// A workload's addresses: IPv4, IPv6.
fn workload(mesh: &Mesh, service: &str) -> [String; 2] {
    let shown = mesh.agentctl(&["service", "show", service, "-o", "json"]).json();
    ["ipv4", "ipv6"].map(|it| shown["workloads"][0][it].as_str().expect("an address").to_owned())
}

#[test]
fn an_application_sees_its_callers_and_nobody_passes_for_one() {
    let mesh = Mesh::new(&["app-1", "srv-1"]);
    let (app, srv) = (mesh.host("app-1"), mesh.host("srv-1"));
    mesh.apply(&format!("{HOSTS}{SEEN}"));
    let [client4, client6] = workload(&mesh, "client");
    let [neighbour4, neighbour6] = workload(&mesh, "neighbour");
    let [web4, web6] = workload(&mesh, "web");
    let _nginx = srv.nginx(
        SERVER,
        8080,
        &format!("location / {{ allow {client4}; allow {client6}; deny all; return 200 'you are $remote_addr'; }}
                  location /file {{ allow {client4}; allow {client6}; allow {neighbour4}; allow {neighbour6}; deny all; }}"),
    );
    std::fs::write(srv.web_root(8080).join("file"), "x".repeat(1000)).expect("the folder is ours");
    let url = "http://web.prod.mesh.internal:8080/";
    // It does so after it has answered.
    let logged = |address: &str| {
        let log = srv.nginx_log(8080);
        log.lines().last().is_some_and(|it| it.starts_with(&format!("{address} - ")))
    };
    for (family, address) in [("-4", &client4), ("-6", &client6)] {
        let file = app.curl(CLIENT, &[family, &format!("{url}file")]).expect_success();
        assert_eq!(file.len(), 1000);
        wait_for("nginx has logged who called", Duration::from_secs(5), || logged(address));
    }
    // A caller of the same host, and a rule of nginx's own.
    for (family, address) in [("-4", &neighbour4), ("-6", &neighbour6)] {
        let _ = srv.curl(NEIGHBOUR, &["--fail", family, &format!("{url}file")]).expect_success();
        wait_for("nginx has logged who called", Duration::from_secs(5), || logged(address));
    }

    // Under load, by both families: no answer goes astray.
    let mut load = app.command_as(CLIENT, "h2load");
    load.args(["--h1", "-n", "10000", "-c", "32", &format!("{url}file")]);
    let done = Output::of(load).expect_success();
    assert!(done.contains("10000 succeeded, 0 failed, 0 errored"), "{done}");
    assert!(done.contains("status codes: 10000 2xx"), "{done}");
    let seen = || {
        let log = srv.nginx_log(8080);
        let is_client = |line: &&str| line.starts_with(&client4) || line.starts_with(&client6);
        (log.lines().filter(is_client).count(), log.lines().count())
    };
    wait_for("nginx has logged all", Duration::from_secs(5), || seen() == (10_002, 10_004));

    // It listens on one family only: it sees the caller's address of that family.
    let mut command = srv.node.command_as(RAW, None, "python3");
    command.args(["-u", "-c", WHO]);
    let _raw = srv.node.spawn("raw", command);
    wait_for("it listens", Duration::from_secs(10), || {
        !srv.node.sh("ss -Hltn 'sport = :7000'").is_empty()
    });
    for family in ["-4", "-6"] {
        let mut ncat = app.command_as(CLIENT, "python3");
        ncat.args(["-c", SAY, "raw.prod.mesh.internal", family]);
        assert_eq!(Output::of(ncat).expect_success().trim(), client4, "{family}");
    }

    let callers =
        [(&client4, &web4), (&client6, &web6), (&neighbour4, &web4), (&neighbour6, &web6)];
    nobody_passes_for(srv, callers, [&client4, &client6]);
}

/// Neither by the address of a caller far away, nor by that of a neighbour, nor with the proxy's own mark.
fn nobody_passes_for(srv: &Host, callers: [(&String, &String); 4], far: [&String; 2]) {
    for (source, to) in callers {
        let mut forger = srv.node.command("setpriv");
        forger.args(["--reuid=40009", "--regid=40009", "--clear-groups"]);
        forger.args(["--inh-caps=+net_raw", "--ambient-caps=+net_raw"]);
        forger.args(["python3", "-c", FORGE, source, to]);
        let said = Output::of(forger).expect_success();
        let is_far = far.contains(&source);
        assert!(said.contains("refused") || !is_far, "{source}: {said}");
        let mut plain = srv.node.command_as(40_009, None, "curl");
        plain.args(["-sS", "--max-time", "1", "--interface", source]);
        plain.arg(if to.contains(':') {
            format!("http://[{to}]:8080/")
        } else {
            format!("http://{to}:8080/")
        });
        let _ = Output::of(plain).expect_failure();
    }
}

/// Says something by a family, prints what is answered.
const SAY: &str = include_str!("programs/applications_say.py");

/// A service with three ports, each for somebody else.
const PORTS: &str = r#"
[service.shop]
namespace = "prod"
port = 8080
protocol = "http"
ports = { admin = { port = 8081, protocol = "http" }, metrics = { port = 8082 } }
hosts = ["srv-1"]
workload = { user = "40001" }

[service.scraper]
namespace = "prod"
hosts = ["app-1"]
workload = { user = "40003" }

[[allow]]
name = "client shops"
from = "service:client"
to = "service:shop"

[[allow]]
name = "scraper looks"
from = "service:scraper"
to = "service:shop"
ports = ["admin"]
http = [{ method = "GET", path = "/health" }]

[[allow]]
name = "scraper measures"
from = "service:scraper"
to = "service:shop"
ports = ["metrics"]

[[test]]
name = "the client measures nothing"
from = "service:client"
to = "service:shop"
port = "metrics"
expect = "deny"
"#;

#[test]
fn each_port_of_a_service_is_judged_by_itself() {
    let mesh = Mesh::new(&["app-1", "srv-1"]);
    let (app, srv) = (mesh.host("app-1"), mesh.host("srv-1"));
    mesh.apply(&format!("{HOSTS}{PORTS}"));
    let _nginx = srv.nginx(
        SERVER,
        8080,
        "return 200 'shop $http_x_isthmus_identity'; }
         server { listen 8081; listen [::]:8081; return 200 'admin $http_x_isthmus_identity'; }
         server { listen 8082; listen [::]:8082; return 200 'metrics $http_x_isthmus_identity';",
    );
    let identity = |name: &str| format!("spiffe://corp.example/ns/prod/sa/{name}");
    // By short names, while we are at it.
    let ask = |user: u32, family: &str, port: u16, path: &str| {
        let url = format!("http://shop.prod:{port}{path}");
        app.curl(user, &[family, "-w", " %{http_code}", &url])
    };
    for family in ["-4", "-6"] {
        let shop = ask(CLIENT, family, 8080, "/").expect_success();
        assert_eq!(shop, format!("shop {} 200", identity("client")));
        let admin = ask(NEIGHBOUR, family, 8081, "/health").expect_success();
        assert_eq!(admin, format!("admin {} 200", identity("scraper")));
        assert!(ask(NEIGHBOUR, family, 8081, "/users").expect_success().ends_with(" 403"));
        assert_eq!(ask(NEIGHBOUR, family, 8082, "/").expect_success(), "metrics  200", "no proxy");
        for (user, port) in [(CLIENT, 8081), (CLIENT, 8082), (NEIGHBOUR, 8080)] {
            let _ = ask(user, family, port, "/health").expect_failure();
        }
    }
    let shown = mesh.agentctl(&["service", "list"]).expect_success();
    assert!(shown.contains("http/8080, admin http/8081, metrics tcp/8082"), "{shown}");
    wait_for("the agent has looked", Duration::from_secs(10), || {
        let status = srv.status();
        let mut services = status["services"].as_array().cloned().unwrap_or_default().into_iter();
        let shop = services.find(|it| it["name"] == "shop").unwrap_or_default();
        shop["ports"][1]["listens"] == "on IPv4 and IPv6"
    });
}
