//! Requests are judged one by one, by identity, method and path.

use std::time::Duration;

use isthmus_netns_tests::{Mesh, MeshOptions, wait_for};

const WEB: u32 = 40_001;
const CLIENT: u32 = 40_002;

const TOPOLOGY: &str = r#"
[host.app-1]
[host.web-1]

[service.web]
namespace = "prod"
port = 8080
protocol = "http"
hosts = ["web-1"]
workload = { user = "40001" }

[service.client]
namespace = "prod"
port = 9000
hosts = ["app-1"]
workload = { user = "40002" }

[[allow]]
name = "client reads what is public"
from = "service:client"
to = "service:web"
http = [{ method = "GET", path = "/public" }, { method = "GET", path = "/public/*" }]

[[deny]]
name = "nobody administers"
from = "any"
to = "service:web"
http = [{ path = "/admin" }, { path = "/admin/*" }]
"#;

#[test]
fn requests_are_allowed_and_denied_by_method_and_path() {
    let options = MeshOptions { settings: "access_log_sample = 1.0", ..MeshOptions::default() };
    let mesh = Mesh::with(&["app-1", "web-1"], options);
    mesh.apply(TOPOLOGY);
    let (app, web) = (mesh.host("app-1"), mesh.host("web-1"));
    let _nginx = web.nginx(WEB, 8080, "location / { return 200 'from $http_x_isthmus_identity'; }");
    let base = "http://web.prod.mesh.internal:8080";

    for version in ["--http1.1", "--http2-prior-knowledge"] {
        for family in ["-4", "-6"] {
            let request = |method: &str, path: &str| {
                let url = format!("{base}{path}");
                let forged = "x-isthmus-identity: spiffe://corp.example/ns/prod/sa/root";
                let arguments = [
                    version,
                    family,
                    "--path-as-is",
                    "-X",
                    method,
                    "-H",
                    forged,
                    "-w",
                    " %{http_code} %{http_version}",
                    &url,
                ];
                app.curl(CLIENT, &arguments).expect_success()
            };
            let http = if version == "--http1.1" { "1.1" } else { "2" };
            let allowed = request("GET", "/public");
            assert_eq!(allowed, format!("from spiffe://corp.example/ns/prod/sa/client 200 {http}"));
            // What can be read in two ways isn't judged at all.
            for (method, path, status) in
                [("POST", "/public", 403), ("GET", "/admin", 403), ("GET", "/public/../admin", 400)]
            {
                let denied = request(method, path);
                assert!(denied.ends_with(&format!("{status} {http}")), "{method} {path}: {denied}");
                assert!(!denied.contains("administers"), "the body names the rule: {denied}");
            }
        }
    }
    access_is_logged(&web.log());
    // What the application saw were allowed requests only.
    assert!(!web.nginx_log(8080).contains("POST"));
    assert!(!web.nginx_log(8080).contains("admin"));
}

/// The access log names the rule that decided, which the body must not.
#[track_caller]
fn access_is_logged(log: &str) {
    let line = |words: &[&str]| {
        let mut access = log.lines().filter(|line| line.contains("isthmus::access"));
        assert!(
            access.any(|line| words.iter().all(|word| line.contains(word))),
            "{words:?} in {log}"
        );
    };
    line(&[
        "service:client",
        "service:web",
        "GET",
        "/admin",
        "403",
        "nobody administers",
        "topology.toml:",
    ]);
    line(&["service:client", "POST", "/public", "403", "default"]);
    line(&["service:client", "GET", "/public", "200", "client reads what is public"]);
}

#[test]
fn a_keep_alive_connection_is_cut_with_its_rule() {
    let mesh = Mesh::new(&["app-1", "web-1"]);
    mesh.apply(TOPOLOGY);
    let (app, web) = (mesh.host("app-1"), mesh.host("web-1"));
    let _nginx = web.nginx(WEB, 8080, "return 200 ok;");
    let program = r#"
import http.client, sys, time
connection = http.client.HTTPConnection(sys.argv[1], 8080, timeout=5)
while True:
    connection.request("GET", "/public")
    response = connection.getresponse()
    response.read()
    if connection.sock is None or response.status != 200:
        sys.exit(f"closed after status {response.status}")
    print(time.time(), flush=True)
    time.sleep(0.02)
"#;
    let mut command = app.command_as(CLIENT, "python3");
    command.args(["-u", "-c", program, &mesh.virtual_addresses("web").0.to_string()]);
    let mut client = app.node.spawn("keep-alive", command);
    wait_for("requests pass", Duration::from_secs(5), || client.output().lines().count() > 10);
    let before = client.output().lines().count();
    mesh.apply(TOPOLOGY);
    wait_for("requests go on after an equal file", Duration::from_secs(5), || {
        client.output().lines().count() > before + 10
    });
    assert!(client.is_running(), "{}", client.output());

    let rule = TOPOLOGY.find("[[allow]]").expect("the rule is there");
    let end = TOPOLOGY.find("[[deny]]").expect("the rule is there");
    let cut = std::time::Instant::now();
    mesh.apply(&format!("{}{}", &TOPOLOGY[..rule], &TOPOLOGY[end..]));
    client.wait(Duration::from_secs(6));
    assert!(cut.elapsed() < Duration::from_secs(1), "cut after {:?}", cut.elapsed());
    let said = client.output();
    assert!(said.contains("reset") || said.contains("closed"), "{said}");
}
