//! Health checks by HTTP, gRPC and connecting.

use std::time::Duration;

use isthmus_netns_tests::{Mesh, Output, wait_for};

use super::{API, Backend, CLIENT, SOON, THREE, api, burst, endpoint, endpoints, get};

/// A server by gRPC that says it is well while the file `well` is there; with one call of its own.
const GRPC_SERVER: &str = include_str!("../programs/resilience_health_grpc_server.py");

const GRPC_CLIENT: &str = include_str!("../programs/resilience_health_grpc_client.py");

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
