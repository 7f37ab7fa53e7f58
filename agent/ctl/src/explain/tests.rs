//! Questions and answers about a small mesh.

use std::collections::BTreeMap;

use clap::Parser as _;
use isthmus_model::{
    Application, Balance, Device, DeviceId, Host, HostId, Mesh, MeshPrefix, PathMode, PortGuard,
    Protocol, PublicKey, Revision, Service, ServiceId, Snapshot,
};

use super::*;
use crate::cli::{Cli, Command};
use crate::tests::{mesh, plain};

const FILE: &str = r#"
[host.app-1]
[host.web]
labels = { role = "web" }

[service.client]
namespace = "prod"
port = 9000
hosts = ["app-1"]

[service.web]
namespace = "prod"
port = 8080
protocol = "http"
hosts = { role = "web" }

[service.store]
port = 5432
hosts = { role = "web" }

[[deny]]
name = "no clients from prod by ssh"
from = "namespace:prod"
to = "host:*"
ports = ["tcp/22"]

[[allow]]
name = "client reads web"
from = "service:client"
to = "service:web"
http = [{ method = "GET", path = "/public/*" }]

[jwt.login]
issuer = "https://login.example"
jwks = "/etc/isthmus/login.json"

[[allow]]
name = "admins"
from = "service:client"
to = "service:web"
http = [{ method = "PUT", header = { x-ticket = true }, jwt = { provider = "login", claims = { role = "admin" } }, when = "request.query.dry == 'no'" }]

[[allow]]
name = "web stores"
from = "service:web"
to = "service:store"
"#;

fn world() -> World {
    let files = [isthmus_model::topology::SourceFile {
        name: "dir/mesh.toml".into(),
        text: FILE.to_owned(),
    }];
    World::of_topology(&sources::topology(&files).unwrap(), "dir/mesh.toml".to_owned())
}

fn arguments(line: &str) -> Explain {
    let words = ["agentctl", "explain"].into_iter().chain(line.split(' '));
    let Command::Explain(arguments) = Cli::parse_from(words).command else {
        panic!("{line} is parsed as another command");
    };
    arguments
}

#[test]
fn what_allows_a_request_is_named_down_to_its_entry() {
    let (exit, text, value) = ask("service:client service:web --method GET --path /public/a");
    assert_eq!(exit, Exit::Success, "{text}");
    let reason = "its `http` entry GET /public/* covers it";
    assert!(text.contains(reason), "{text}");
    let steps = value["steps"].as_array().unwrap();
    assert_eq!(steps.last().unwrap()["reason"], reason);
}

fn ask(line: &str) -> (Exit, String, Value) {
    let (world, arguments) = (world(), arguments(line));
    let answer = Answer::new(&world, &arguments).unwrap();
    (answer.exit(), plain(&answer.text()), answer.json())
}

fn refused(line: &str) -> String {
    let (world, arguments) = (world(), arguments(line));
    Answer::new(&world, &arguments).unwrap_err()
}

#[test]
fn an_allowed_flow_names_its_rule_and_where_it_stands() {
    let (exit, text, json) = ask("service:web service:store");
    assert_eq!(exit, Exit::Success);
    assert!(text.starts_with("ALLOW service:web -> service:store tcp/5432\n"), "{text}");
    assert!(text.contains("\"web stores\" (dir/mesh.toml:43)"), "{text}");
    assert_eq!(json["verdict"], "allow");
    assert_eq!((&json["file"], &json["line"]), (&"dir/mesh.toml".into(), &43.into()));
}

#[test]
fn a_flow_that_no_rule_allows_is_denied_by_default() {
    let (exit, text, json) = ask("service:client service:store");
    assert_eq!(exit, Exit::Negative);
    assert!(text.starts_with("DENY ") && text.contains("default"), "{text}");
    assert_eq!((&json["rule"], &json["file"]), (&"default".into(), &Value::Null));
}

#[test]
fn a_request_is_judged_by_method_and_path() {
    let (exit, text, _) = ask("client service:web --method GET --path /public/a?b=/c");
    assert_eq!(exit, Exit::Success, "{text}");
    let (exit, text, json) = ask("client service:web --method DELETE --path /public/a");
    assert_eq!(exit, Exit::Negative);
    assert!(text.contains("DENY") && text.contains("DELETE"), "{text}");
    assert!(text.contains("\"client reads web\" (dir/mesh.toml:27) doesn't match"), "{text}");
    assert_eq!(json["steps"][0]["matched"], false);
}

#[test]
fn a_request_is_judged_by_all_that_it_has_and_told_what_it_lacks() {
    let lacks = |more: &str, why: &str| {
        let line = format!("client service:web --method PUT --path /x?dry=no{more}");
        let (exit, text, _) = ask(&line);
        assert_eq!(exit, Exit::Negative, "{text}");
        assert!(text.contains(why), "{more}: {text}");
    };
    lacks("", "header `x-ticket` doesn't match x-ticket");
    lacks(" --header X-Ticket=7", "there is no token of \"login\"");
    let all = " --header X-Ticket=7 --claim role=user";
    lacks(all, "claim `role` doesn't match role=admin");
    let all = "--header X-Ticket=7 --claim role=[\"user\",\"admin\"]";
    let line = format!("client service:web --method PUT --path /x {all}");
    assert!(ask(&line).1.contains("its condition can't be told: No such key: dry"));
    let (exit, text, _) = ask(&line.replace("/x ", "/x?dry=no "));
    assert_eq!(exit, Exit::Success, "{text}");
    let nobody = "client service:store --method PUT --path /x --claim role=admin";
    assert!(refused(nobody).contains("name a --provider"));
}

#[test]
fn without_a_request_it_tells_which_are_allowed() {
    let (exit, text, json) = ask("client service:web");
    assert_eq!(exit, Exit::Success);
    assert!(text.starts_with("DEPENDS "), "{text}");
    assert!(text.contains("GET /public/*   by \"client reads web\""), "{text}");
    assert_eq!(json["verdict"], "inspect");
    assert_eq!(json["allowed_requests"][0]["path"], "/public/*");
}

#[test]
fn a_deny_rule_decides_before_any_allow() {
    let (exit, _, json) = ask("client host:app-1 --port tcp/22");
    assert_eq!(exit, Exit::Negative);
    assert_eq!(json["rule"], "no clients from prod by ssh");
}

#[test]
fn names_are_resolved_where_that_is_unambiguous() {
    let (_, text, _) = ask("store app-1 --port icmp");
    assert!(text.contains("service:store -> host:app-1 icmp"), "{text}");
    let several = refused("client web");
    assert!(several.contains("service:web or host:web"), "{several}");
    let unknown = refused("client service:wob");
    assert!(unknown.contains("there is service:client, service:store, service:web"), "{unknown}");
    assert!(refused("client svc:web").contains("write service:NAME"));
    assert!(refused("client host:app-1").contains("--port tcp/22"));
}

#[test]
fn names_are_taken_as_dns_certificates_and_people_write_them() {
    for from in ["client.prod", "client.prod.mesh.internal.", "service:client.prod"] {
        assert!(ask(&format!("{from} store")).1.contains("service:client -> service:store"));
    }
    let (_, text, _) = ask("spiffe://corp.example/ns/prod/sa/client app-1.host --port tcp/22");
    assert!(text.contains("service:client -> host:app-1"), "{text}");
    assert!(refused("client.dev store").contains("\"client.dev\" is not in"));
    assert!(refused("spiffe://corp.example/sa/client store").contains("ns/NAMESPACE/sa/SERVICE"));
    let address = refused("100.64.0.17 store");
    assert!(address.contains("the controller gives addresses"), "{address}");
}

#[test]
fn the_rule_to_add_can_be_pasted() {
    let (_, text, json) = ask("client service:web --method DELETE --path /public/a");
    let toml = json["suggestion"].as_str().unwrap();
    assert!(
        text.contains(&format!("add this to the topology and apply it:\n\n{toml}\n")),
        "{text}"
    );
    let file = |text: String| isthmus_model::topology::SourceFile { name: "m.toml".into(), text };
    let topology = sources::topology(&[file(format!("{FILE}{toml}"))]).unwrap();
    let world = World::of_topology(&topology, "m.toml".to_owned());
    let arguments = arguments("client service:web --method DELETE --path /public/a");
    assert_eq!(Answer::new(&world, &arguments).unwrap().exit(), Exit::Success);
    assert_eq!(ask("client host:app-1 --port tcp/22").2["suggestion"], Value::Null);
}

#[test]
fn who_forgot_the_token_is_reminded() {
    let put = "client service:web --method PUT --path /x --header X-Ticket=7";
    let (_, text, _) = ask(put);
    assert!(text.contains("rule \"admins\""), "{text}");
    assert!(text.contains("ask for tokens of login; say what"), "{text}");
    let (_, text, json) = ask(&format!("{put} --claim role=user"));
    assert!(!text.contains("say what"), "{text}");
    assert!(json["suggestion"].as_str().unwrap().contains("claims = { \"role\" = \"user\" }"));
}

#[test]
fn the_mesh_finds_everybody_by_address() {
    let file = |text: &str| isthmus_model::topology::SourceFile {
        name: "m.toml".into(),
        text: text.to_owned(),
    };
    let text = "[host.app-1]\n[service.web]\nnamespace = \"prod\"\nport = 8080\n\
                protocol = \"http\"\nhosts = [\"app-1\"]\n[device.press]\nvia = \"app-1\"\n\
                wireguard = { public_key = \"xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=\" }\n";
    let topology = sources::topology(&[file(text)]).unwrap();
    let mut world = World::of_topology(&topology, "revision 7 of the mesh".to_owned());
    let mut status = mesh();
    status.hosts.iter_mut().skip(1).filter_map(|it| it.host.as_mut()).for_each(|host| {
        host.ipv4_block = "100.64.1.0/28".to_owned();
    });
    world.add_status(&status);
    let resolved = |text| world.resolve(text).map(|(who, port)| (who.to_string(), port));
    for (address, who) in [
        ("100.64.0.16", "host:app-1"),
        ("100.64.0.17", "service:web"),
        ("100.127.0.1", "service:web"),
        ("fd01:203:405::c", "service:web"),
        ("[fd01:203:405::1:0:c]", "service:web"),
        ("fd01:203:405:0:0:1:0:d", "device:press"),
        ("100.64.0.18", "device:press"),
    ] {
        assert_eq!(resolved(address), Ok((who.to_owned(), None)), "{address}");
    }
    assert_eq!(resolved("[fd01:203:405::c]:8080"), Ok(("service:web".to_owned(), Some(8080))));
    assert!(resolved("100.64.0.99").unwrap_err().contains("nobody's in revision 7"));
    let other = resolved("spiffe://other.example/host/app-1").unwrap_err();
    assert!(other.contains("this mesh is corp.example"), "{other}");
    // app-2 has joined, and no table declares it.
    let words = ["agentctl", "explain", "web", "app-2", "--port", "tcp/22"];
    let Command::Explain(arguments) = Cli::parse_from(words).command else { panic!() };
    let json = Answer::new(&world, &arguments).unwrap().json();
    let toml = json["suggestion"].as_str().unwrap();
    assert!(toml.starts_with("[host.app-2]\n\n[[allow]]\n"), "{toml}");
    assert!(sources::topology(&[file(&format!("{text}{toml}"))]).is_ok());
}

#[test]
fn a_port_that_the_service_doesnt_have_gets_no_verdict() {
    let text = "[host.app-1]\n[service.web]\nport = 8080\nhosts = [\"app-1\"]\n\
                ports = { metrics = { port = 9100 }, stats = { port = 8125, protocol = \"udp\" } }\n\
                [service.client]\nhosts = [\"app-1\"]\n\
                [[deny]]\nname = \"no ssh\"\nfrom = \"service:*\"\nto = \"service:*\"\nports = [\"tcp/22\"]\n";
    let files =
        [isthmus_model::topology::SourceFile { name: "mesh.toml".into(), text: text.into() }];
    let world = World::of_topology(&sources::topology(&files).unwrap(), "mesh.toml".to_owned());
    let with = |line: &str| {
        let arguments = arguments(line);
        Answer::new(&world, &arguments).map(|answer| (plain(&answer.text()), answer.json()))
    };
    for port in ["tcp/9999", "udp/8080", "tcp/8125"] {
        assert_eq!(
            with(&format!("client web --port {port}")).unwrap_err(),
            format!(
                "service:web has no port {port}: it has tcp/8080 (its own), tcp/9100 (\"metrics\"), \
                 udp/8125 (\"stats\"); ask about one of these with --port"
            )
        );
    }
    for port in ["tcp/9100", "udp/8125", "icmp"] {
        let (text, json) = with(&format!("client web --port {port}")).unwrap();
        assert!(text.starts_with("DENY "), "{text}");
        assert_eq!(json["no_such_port"], Value::Null);
    }
    // A rule is about it, and so it is said which.
    let (text, json) = with("client web --port tcp/22").unwrap();
    assert!(text.contains("\"no ssh\"") && text.contains("has no port tcp/22"), "{text}");
    assert!(json["no_such_port"].as_str().unwrap().contains("tcp/9100"), "{json}");
    // Who only calls others has none that could be confused with it.
    assert!(with("web client --port tcp/22").is_ok());
}

#[test]
fn a_host_says_nothing_of_traffic_whose_rules_it_doesnt_know() {
    let world = World::of_snapshot(&slice());
    let answer = |line: &str| {
        let arguments = arguments(line);
        Answer::new(&world, &arguments).map(|answer| answer.outcome())
    };
    assert_eq!(answer("client service:web --method GET --path /"), Ok(Outcome::Deny));
    assert_eq!(answer("100.64.0.1:4711 fd01:203:405::2:0:5"), Ok(Outcome::Deny));
    assert_eq!(answer("press web"), Ok(Outcome::Deny), "the device is behind this host");
    let beyond = answer("web service:store").unwrap_err();
    assert!(beyond.starts_with("Host app-1 can't say"), "{beyond}");
    assert!(beyond.contains("neither service:web nor service:store is on it"), "{beyond}");
    assert!(beyond.ends_with("--credentials, or on host web-1"), "{beyond}");
    assert!(answer("client host:app-7 --port icmp").unwrap_err().contains("it knows only hosts"));
    assert!(answer("client 100.64.3.1 --port icmp").unwrap_err().contains("nobody's"));
    // Of a workload that this host may not meet, the address tells the service all the same.
    assert!(answer("client fd01:203:405::9:0:6").is_ok());
}

fn service(name: &str, vip: &str, protocol: Protocol, placements: &[(u32, &str)]) -> Service {
    Service {
        name: name.parse().unwrap(),
        namespace: "prod".parse().unwrap(),
        aliases: Vec::new(),
        port: 8080,
        protocol,
        more: Vec::new(),
        virtual_ipv4: vip.parse().unwrap(),
        leaving: BTreeSet::new(),
        placements: placements
            .iter()
            .map(|(id, ipv4)| (HostId(*id), ipv4.parse().unwrap()))
            .collect(),
        selectors: Vec::new(),
        balance: Balance::default(),
        edge: None,
        application: Application::default(),
        paths: PathMode::default(),
        guard: PortGuard::default(),
    }
}

/// What app-1 (1, this host) knows, with the service client (7) and the device press (9); of web (5)
/// on web-1 (2), and of store (6) whose workloads it doesn't meet.
fn slice() -> Snapshot {
    let host = |name: &str, block: &str| Host {
        name: name.parse().unwrap(),
        site: None,
        labels: BTreeMap::new(),
        public_key: PublicKey([1; 32]),
        former_key: None,
        endpoints: Vec::new(),
        ipv4_block: block.parse().unwrap(),
    };
    let press = Device {
        name: "press".parse().unwrap(),
        public_key: PublicKey([2; 32]),
        via: HostId(1),
        ipv4: "100.64.0.2".parse().unwrap(),
    };
    Snapshot {
        revision: Revision(4),
        mesh: Mesh {
            name: "corp".parse().unwrap(),
            trust_domain: "corp.example".parse().unwrap(),
            prefix: MeshPrefix::new([0xfd, 1, 2, 3, 4, 5]).unwrap(),
            ipv4: "100.64.0.0/10".parse().unwrap(),
            virtual_ipv4: "100.127.0.0/16".parse().unwrap(),
        },
        local: HostId(1),
        hosts: [
            (HostId(1), host("app-1", "100.64.0.0/28")),
            (HostId(2), host("web-1", "100.64.0.16/28")),
        ]
        .into(),
        services: [
            (ServiceId(5), service("web", "100.127.0.5", Protocol::Http, &[(2, "100.64.0.17")])),
            (ServiceId(6), service("store", "100.127.0.6", Protocol::Tcp, &[])),
            (ServiceId(7), service("client", "100.127.0.7", Protocol::Tcp, &[(1, "100.64.0.1")])),
        ]
        .into(),
        devices: [(DeviceId(9), press)].into(),
        rules: isthmus_model::Rules::default(),
        routes: Vec::new(),
        limits: Vec::new(),
    }
}
