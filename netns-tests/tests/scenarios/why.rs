//! Somebody is refused: who it was, by what, and what to write so that it isn't any more.

use std::time::Duration;

use isthmus_netns_tests::{Host, Mesh, Process, wait_for};
use serde_json::Value;

const WEB: u32 = 40_001;
const CLIENT: u32 = 40_002;
const STRANGER: u32 = 40_003;

const TOPOLOGY: &str = r#"
[host.app-1]
[host.web-1]

[service.web]
namespace = "prod"
port = 8080
protocol = "http"
hosts = ["web-1"]
workload = { user = "40001" }

[service.store]
namespace = "prod"
port = 5432
hosts = ["web-1"]
workload = { user = "40004" }

[service.client]
namespace = "prod"
port = 9000
hosts = ["app-1"]
workload = { user = "40002" }

[[allow]]
name = "client reads what is public"
from = "service:client"
to = "service:web"
http = [{ method = "GET", path = "/public" }]

[[allow]]
name = "web stores"
from = "service:web"
to = "service:store"

[[deny]]
name = "nobody administers"
from = "any"
to = "service:web"
http = [{ path = "/admin" }]
"#;

const URL: &str = "http://web.prod.mesh.internal:8080";

#[test]
fn who_is_refused_is_named_with_the_rule_that_would_allow_it() {
    let mesh = Mesh::new(&["app-1", "web-1"]);
    mesh.apply(TOPOLOGY);
    let (app, web) = (mesh.host("app-1"), mesh.host("web-1"));
    let nginx = web.nginx(WEB, 8080, "location / { return 200 ok; }");
    the_server_refuses_and_both_sides_say_so(app, web);
    let flow = the_caller_is_refused_at_once_and_named(app);
    let source = flow["source"].as_str().expect("an address");
    let destination = flow["destination"].as_str().expect("an address");
    the_suggested_rule_helps(&mesh, source, destination);

    // Of others' traffic a host knows no rules: the mesh does.
    let unknown = app.agentctl(&["explain", "service:web", "service:store"]);
    assert_eq!(unknown.code(), Some(2), "{unknown}");
    assert!(unknown.stderr.contains("Host app-1 can't say"), "{unknown}");
    assert!(web.agentctl(&["explain", "web.prod", "store"]).success());
    assert!(mesh.agentctl(&["explain", "service:web", "service:store"]).success());

    who_that_is(&mesh, &nginx, source);
}

fn the_server_refuses_and_both_sides_say_so(app: &Host, web: &Host) {
    let status = ["-o", "/dev/null", "-w", "%{http_code}"];
    let admin = format!("{URL}/admin");
    let refused = app.curl(CLIENT, &[&status[..], &[&admin]].concat()).expect_success();
    assert_eq!(refused, "403");
    wait_for("both sides have logged the refusal", Duration::from_secs(5), || {
        let line = |log: String| {
            log.lines().any(|it| it.contains("/admin") && it.contains("nobody administers"))
        };
        line(app.log()) && line(web.log())
    });
    let log = app.log();
    let line = log.lines().find(|line| line.contains("/admin")).expect("it was just there");
    for part in ["judged_at=\"web-1\"", "verdict=deny", "user=\"40002\"", "curl\""] {
        assert!(line.contains(part), "{part} in {line}");
    }

    // One request, one id; `flows` shows it as well.
    let id = |line: &str| {
        let (_, rest) = line.split_once("request_id=").expect("each request has one");
        rest.split([' ', '"']).find(|it| !it.is_empty()).map(str::to_owned)
    };
    let there = web.log();
    let there = there.lines().find(|line| line.contains("/admin")).expect("it was just there");
    assert_eq!(id(line), id(there), "{line}\n{there}");
    let refused = app.agentctl(&["flows", "--denied", "-o", "json"]).json();
    let request = &refused["requests"][0];
    assert_eq!((&request["path"], &request["method"]), (&"/admin".into(), &"GET".into()));
    assert_eq!(request["request_id"].as_str().map(str::to_owned), id(line), "{request}");
}

/// The log and `flows` say which program of which user it was.
fn the_caller_is_refused_at_once_and_named(app: &Host) -> Value {
    assert!(!app.curl(STRANGER, &["-4", URL]).success());
    let asked = ["flows", "--denied", "--user", "40003", "--to", "web", "-o", "json"];
    let flows = app.agentctl(&asked).json();
    let flow = &flows["flows"][0];
    assert_eq!((&flow["from"], &flow["uid"]), (&"host:app-1".into(), &STRANGER.into()), "{flow}");
    assert!(flow["program"].as_str().expect("it is known").ends_with("curl"), "{flow}");
    let others = app.agentctl(&["flows", "--denied", "--user", "root", "-o", "json"]).json();
    assert_eq!(others["total"], 0, "{others}");
    let log = app.log();
    let line = log.lines().find(|line| line.contains("denied a flow")).expect("it is logged");
    let source = flow["source"].as_str().expect("an address");
    for part in ["from=\"host:app-1\"", "user=\"40003\"", "curl\"", source] {
        assert!(line.contains(part), "{part} in {line}");
    }
    flow.clone()
}

/// What the log says can be asked about, and what the answer says helps.
fn the_suggested_rule_helps(mesh: &Mesh, source: &str, destination: &str) {
    let app = mesh.host("app-1");
    let answer = app.agentctl(&["explain", source, destination, "-o", "json"]);
    assert_eq!(answer.code(), Some(1), "{answer}");
    let answer: Value = serde_json::from_str(&answer.stdout).expect("it is JSON");
    assert_eq!((&answer["from"], &answer["to"]), (&"host:app-1".into(), &"service:web".into()));
    let rule = answer["suggestion"].as_str().expect("a rule");
    mesh.apply(&format!("{TOPOLOGY}\n{rule}"));
    assert_eq!(app.curl(STRANGER, &["-4", URL]).expect_success(), "ok");
}

fn who_that_is(mesh: &Mesh, nginx: &Process, source: &str) {
    let web = mesh.host("web-1");
    let whois = web.agentctl(&["whois", &nginx.id().to_string(), "-o", "json"]).json();
    assert_eq!(whois["identity"], "service:web", "{whois}");
    let init = web.agentctl(&["whois", "1"]).expect_success();
    assert!(init.contains("identity   host:web-1") && init.contains("not user 40001"), "{init}");
    let address =
        mesh.agentctl(&["whois", source.rsplit_once(':').expect("a port").0, "-o", "json"]);
    assert_eq!(address.json()["identity"], "host:app-1");
}
