//! Join, propagation of a revision, memory.

use std::time::Instant;

use isthmus_netns_tests::{Mesh, MeshOptions};

use crate::report::Figures;

const APPLIES: usize = 100;

const TOPOLOGY: &str = r#"
[host.app-1]
[host.app-2]
[host.web-1]

[service.iperf]
port = 5201
hosts = ["web-1"]

[[allow]]
name = "hosts measure"
from = "host:*"
to = "service:iperf"
"#;

/// Measures a mesh of three hosts.
pub(crate) fn run() -> Figures {
    let mut figures = Figures::default();
    let mut mesh = Mesh::empty(MeshOptions::default());
    for name in ["app-1", "app-2", "web-1"] {
        mesh.add_host(name);
        let joined = mesh.join(name);
        figures.record("join", "ms", joined.took.as_secs_f64() * 1e3);
        joined.expect_success_line();
    }
    for number in 0..APPLIES {
        // Every agent's slice has this rule.
        let topology = TOPOLOGY.replace("hosts measure", &format!("hosts measure {number}"));
        let file = mesh.controller_node.folder().join("bench.toml");
        std::fs::write(&file, topology).expect("the lab's folder can be written");
        let started = Instant::now();
        let applied = mesh.agentctl(&["apply", "-o", "json", "-f", &file.to_string_lossy()]).json();
        let took = started.elapsed().as_secs_f64() * 1e3;
        figures.record("apply, as the operator sees it", "ms", took);
        let milliseconds =
            applied["rollout"]["milliseconds"].as_f64().expect("apply tells how long it took");
        figures.record("revision on three agents", "ms", milliseconds);
    }
    let resident = mesh.controller().resident_kib();
    figures.record("controller", "MB resident", resident as f64 / 1024.0);
    for name in ["app-1", "app-2", "web-1"] {
        let resident = mesh.host_mut(name).agent().resident_kib();
        figures.record("agent", "MB resident", resident as f64 / 1024.0);
    }
    figures
}
