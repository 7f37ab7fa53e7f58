//! Ours, with agents: a client on one host, the application on another, a switch between them.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::rc::Rc;

use isthmus_netns_tests::{Mesh, MeshOptions, Process};
use serde_json::Value;

use super::hops::{HTTP1, HTTP2, MORE_HTTP1, MORE_HTTP2, application};
use super::path::{HOPS_CPU, Hop, Path, Targets};
use crate::l3::offload_mesh;

const CLIENT: u32 = 40_002;
const HOSTS: [&str; 2] = ["app-1", "web-1"];

pub(super) const BOTH: &str = "isthmus both hops";
const CLIENTS_SIDE: &str = "isthmus client's side";
const SERVERS_SIDE: &str = "isthmus server's side";
pub(super) const TUNNEL: &str = "isthmus tunnel alone";
const MANY: &str = "isthmus 10,000 routes";

/// Routes, and as many rules, of the large mesh.
const MANY_ROUTES: usize = 10_000;

const PARTIES: &str = r#"
[host.app-1]
[host.web-1]

[service.client]
port = 7000
hosts = ["app-1"]
workload = { user = "40002" }
"#;

/// The paths, and the programs behind them.
pub(crate) fn all(
    bench: &str,
    wanted: &impl Fn(&str) -> bool,
    notes: &mut Vec<String>,
) -> (Vec<Path>, Vec<Process>) {
    let mut paths = Vec::new();
    let mut applications = Vec::new();
    if [BOTH, CLIENTS_SIDE, SERVERS_SIDE, TUNNEL].into_iter().any(wanted) {
        let mesh = mesh(1);
        applications.extend(HOSTS.map(|host| application(&mesh.host(host).node)));
        paths.extend(usual(mesh, bench).into_iter().filter(|path| wanted(&path.name)));
        notes.push(
            "isthmus: real agents with routes, policy by method and path, identity, metrics and the \
             access log as they come; CPU is that of both agents, on one processor"
                .to_owned(),
        );
        notes.push(format!(
            "{CLIENTS_SIDE}: caller and application on one host, by the virtual address (TUN device \
             included); {SERVERS_SIDE}: by the workload's address of the other host (tunnel included); \
             {TUNNEL}: the same requests to a service that is plain TCP"
        ));
    }
    if wanted(MANY) {
        let mesh = mesh(MANY_ROUTES);
        applications.push(application(&mesh.host("web-1").node));
        let path = both(&Rc::new(RefCell::new(mesh)), MANY, bench);
        notes
            .push(format!("{MANY}: {BOTH}, {MANY_ROUTES} routes of the service and as many rules"));
        paths.push(path);
    }
    (paths, applications)
}

fn mesh(routes: usize) -> Mesh {
    let options = MeshOptions { processor: Some(HOPS_CPU), ..MeshOptions::default() };
    let mesh = Mesh::with(&HOSTS, options);
    offload_mesh(&mesh);
    mesh.apply(&topology(routes));
    mesh
}

/// Services on both hosts; each kind of `web` with so many routes and rules.
fn topology(routes: usize) -> String {
    let mut text = PARTIES.to_owned();
    for (name, port, protocol, host) in SERVICES {
        let _ = write!(
            text,
            "[service.{name}]\nport = {port}\nprotocol = {protocol:?}\nhosts = [{host:?}]\n\
             workload = {{ user = \"{}\" }}\n{}\n",
            // Nobody speaks as one of these.
            CLIENT + u32::from(*port),
            if ["rpc", "near-rpc"].contains(name) { "http = \"2\"\n" } else { "" }
        );
        let http = "http = [{ method = \"GET\", path = \"/bench/*\" }, { method = \"POST\", path = \"/bench/*\" }]";
        let http = if *protocol == "http" { http } else { "" };
        let _ = write!(
            text,
            "[[allow]]\nname = \"clients load {name}\"\nfrom = \"service:client\"\nto = \"service:{name}\"\n{http}\n\n"
        );
        if *protocol == "http" {
            let _ = write!(
                text,
                "[[route.{name}]]\nmatch = {{ path = {{ prefix = \"/bench\" }} }}\nto = [{{ service = {name:?} }}]\n\n"
            );
        }
    }
    for number in 1..routes {
        let _ = write!(
            text,
            "[[route.web]]\nmatch = {{ path = {{ prefix = \"/shop{number}\" }} }}\nto = [{{ service = \"web\" }}]\n\n\
             [[allow]]\nname = \"shop {number}\"\nfrom = \"service:client\"\nto = \"service:web\"\n\
             http = [{{ method = \"GET\", path = \"/shop{number}/*\" }}]\n\n"
        );
    }
    text
}

const SERVICES: &[(&str, u16, &str, &str)] = &[
    ("web", HTTP1, "http", "web-1"),
    ("rpc", HTTP2, "http", "web-1"),
    ("near-web", MORE_HTTP1[0], "http", "app-1"),
    ("near-rpc", MORE_HTTP2[0], "http", "app-1"),
    ("plain-web", MORE_HTTP1[1], "tcp", "web-1"),
    ("plain-rpc", MORE_HTTP2[1], "tcp", "web-1"),
];

fn usual(mesh: Mesh, bench: &str) -> Vec<Path> {
    let services = mesh.agentctl(&["service", "list", "-o", "json"]).json();
    let mesh = Rc::new(RefCell::new(mesh));
    let workload = |service: &str, port: u16| {
        let found = find(&services, service);
        let address = found["workloads"][0]["ipv4"].as_str().expect("a workload has an address");
        Some(format!("{address}:{port}"))
    };
    let dialled = Targets {
        http1: workload("web", HTTP1),
        http2: workload("rpc", HTTP2),
        grpc: workload("rpc", HTTP2),
    };
    let near = virtual_targets(
        &services,
        [("near-web", MORE_HTTP1[0]), ("near-rpc", MORE_HTTP2[0]), ("near-rpc", MORE_HTTP2[0])],
    );
    let plain = virtual_targets(
        &services,
        [("plain-web", MORE_HTTP1[1]), ("plain-rpc", MORE_HTTP2[1]), ("plain-rpc", MORE_HTTP2[1])],
    );
    vec![
        path(&mesh, TUNNEL, plain, bench),
        path(&mesh, CLIENTS_SIDE, near, bench),
        path(&mesh, SERVERS_SIDE, dialled, bench),
        both(&mesh, BOTH, bench),
    ]
}

/// By virtual address: both proxies, and the tunnel between them.
fn both(mesh: &Rc<RefCell<Mesh>>, name: &str, bench: &str) -> Path {
    let services = mesh.borrow().agentctl(&["service", "list", "-o", "json"]).json();
    let targets = virtual_targets(&services, [("web", HTTP1), ("rpc", HTTP2), ("rpc", HTTP2)]);
    path(mesh, name, targets, bench)
}

fn path(mesh: &Rc<RefCell<Mesh>>, name: &str, targets: Targets, bench: &str) -> Path {
    let client = mesh.borrow().host("app-1").node.clone();
    Path {
        name: name.to_owned(),
        client,
        user: Some(CLIENT),
        targets,
        hop: Hop::Mesh(Rc::clone(mesh)),
        bench: bench.to_owned(),
    }
}

fn virtual_targets(services: &Value, of: [(&str, u16); 3]) -> Targets {
    let [http1, http2, grpc] = of.map(|(service, port)| {
        let address = find(services, service)["virtual_ipv4"].as_str().expect("an address");
        Some(format!("{address}:{port}"))
    });
    Targets { http1, http2, grpc }
}

fn find<'a>(services: &'a Value, name: &str) -> &'a Value {
    let found = services.as_array().and_then(|all| all.iter().find(|it| it["name"] == name));
    found.unwrap_or_else(|| panic!("no service {name} in {services}"))
}
