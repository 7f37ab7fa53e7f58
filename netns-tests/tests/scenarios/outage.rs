//! Whoever was away for longer than its certificate lives comes back by itself, as who it was.

use std::process::Command;
use std::time::Duration;

use isthmus_netns_tests::chaos::{Chance, Chaos, Fault};
use isthmus_netns_tests::{Mesh, MeshOptions, Output, wait_for};

const SOON: Duration = Duration::from_secs(20);

/// `scripts/chaos` does the same at length.
#[test]
fn hosts_are_back_after_any_outage_longer_than_their_certificates() {
    let mut chaos = Chaos::new("4s", Duration::from_secs(4));
    let away = Duration::from_secs(6);
    assert!(chaos.outlasts_certificates(away));
    let mut chance = Chance(1);
    for fault in Fault::ALL {
        let back = chaos.round(fault, away, &mut chance);
        assert!(back.is_ok(), "{}: {back:?}", fault.name());
        if fault == Fault::HostDisks {
            let log = chaos.mesh.host("app-1").log();
            assert!(log.contains("certificate-not-kept"), "{log}");
        }
    }
}

#[test]
fn a_copied_machine_is_turned_away_and_the_original_stays() {
    let mut mesh = Mesh::new(&["app-1", "app-2"]);
    let endpoints = |mesh: &Mesh| host(mesh, "app-1")["endpoints"].to_string();
    wait_for("app-1 says where it is", SOON, || endpoints(&mesh).contains("10.9.0.11"));
    let before = (endpoints(&mesh), mesh.revision());

    let state = mesh.host("app-1").state();
    let copy = mesh.add_host("copy").state();
    mesh.host_mut("copy").agent().kill();
    let copied = Command::new("cp").arg("-rT").args([&state, &copy]).status();
    assert!(copied.is_ok_and(|status| status.success()));
    mesh.host_mut("copy").spawn_agent();

    let has = |problems: &serde_json::Value, code: &str| {
        problems.as_array().is_some_and(|all| all.iter().any(|it| it["code"] == code))
    };
    wait_for("the copy says so", SOON, || {
        let status = mesh.host("copy").agentctl(&["status", "-o", "json"]);
        status.success() && has(&status.json()["problems"], "identity-twice")
    });
    wait_for("the copy has left the overlay", SOON, || {
        !mesh.host("copy").node.try_sh("ip link show isth0").success()
    });
    let status = mesh.status();
    assert!(has(&status["problems"], "identity-twice"), "{status}");
    assert!(status["events"].to_string().contains("second machine"), "{status}");
    assert_eq!(mesh.host("app-1").status()["connected"], true);
    assert_eq!((endpoints(&mesh), mesh.revision()), before);

    // Once the original is gone the other may have its place.
    mesh.host_mut("app-1").agent().terminate(SOON);
    wait_for("the copy takes over", Duration::from_secs(60), || {
        mesh.host("copy").status()["connected"] == true
    });
    assert!(mesh.host("copy").node.sh("ip link show isth0").contains("isth0"));
}

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
name = "client reads web"
from = "service:client"
to = "service:web"
http = [{ method = "GET" }]
"#;

/// systemd keeps the device (`FileDescriptorStoreMax=`): only that the next agent takes it is shown here.
#[test]
fn a_killed_agents_device_is_the_next_ones_and_what_is_sent_meanwhile_arrives() {
    let mut mesh = Mesh::new(&["app-1", "web-1"]);
    mesh.apply(TOPOLOGY);
    let web = mesh.host("web-1");
    let _nginx = web.nginx(WEB, 8080, "");
    std::fs::write(web.web_root(8080).join("index.html"), "welcome").expect("the folder is ours");
    let app = mesh.host_mut("app-1");
    app.agent().terminate(SOON);
    app.is_managed = true;
    app.start_agent();
    let device = |mesh: &Mesh| mesh.host("app-1").node.sh("ip -o link show isth0 && ip rule");
    let routes = |mesh: &Mesh| mesh.host("app-1").node.sh("ip -6 route show dev isth0");
    // It knows whom to ask before the agent is gone.
    let page = |mesh: &Mesh| {
        let mut curl = mesh.host("app-1").command_as(CLIENT, "curl");
        curl.args(["-sS", "--max-time", "30", "http://web.prod.mesh.internal:8080/"]);
        curl
    };
    wait_for("names are answered", SOON, || {
        let dns = mesh.host("app-1").status()["dns"].to_string();
        dns.contains("answering")
    });
    assert_eq!(Output::of(page(&mesh)).expect_success(), "welcome");
    let (before, meanwhile) = ((device(&mesh), routes(&mesh)), page(&mesh));

    let app = mesh.host("app-1");
    std::fs::write(app.hold(), "").expect("the folder is ours");
    let started = app
        .log()
        .lines()
        .filter_map(|it| it.strip_prefix("started "))
        .next_back()
        .map(str::to_owned);
    app.node.sh(&format!("kill -9 {}", started.expect("the agent's id is in the log")));
    wait_for("the agent is dead", SOON, || !app.agentctl(&["status"]).success());
    assert_eq!((device(&mesh), routes(&mesh)), before, "the device is as it was");
    // A name is asked for, and a connection begun, while nobody is there to answer.
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| Output::of(meanwhile));
        let waits = || app.node.sh("ss -Huna").contains(":53") || asked.is_finished();
        wait_for("a name is asked for", SOON, waits);
        assert!(!asked.is_finished(), "nobody could have answered");
        std::fs::remove_file(app.hold()).expect("the file is ours");
        assert_eq!(asked.join().expect("curl ends").expect_success(), "welcome");
    });
    assert_eq!((device(&mesh), routes(&mesh)), before);
    assert_eq!(Output::of(page(&mesh)).expect_success(), "welcome");

    // A host that leaves takes the device with it.
    let _ = app.agentctl(&["leave", "--yes"]).expect_success();
    wait_for("the device is gone", SOON, || !app.node.try_sh("ip link show isth0").success());
}

/// Moves the clock of one program.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>
#include <sys/time.h>
static time_t offset(void) { const char *s = getenv("CLOCK_OFFSET"); return s ? atoll(s) : 0; }
int clock_gettime(clockid_t id, struct timespec *at) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(id, at);
    if (result == 0 && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) at->tv_sec += offset();
    return result;
}
int gettimeofday(struct timeval *restrict at, void *restrict zone) {
    struct timespec now; (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    at->tv_sec = now.tv_sec; at->tv_usec = now.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *at) {
    struct timespec now; clock_gettime(CLOCK_REALTIME, &now);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}
"#;

#[test]
fn a_host_two_days_ahead_is_told_so_and_renews_as_seldom_as_others() {
    let mut mesh =
        Mesh::empty(MeshOptions { certificate_lifetime: Some("20s"), ..MeshOptions::default() });
    let shim = shim(&mesh);
    mesh.add_host("app-1");
    mesh.host_mut("app-1").agent().kill();
    for (offset, words) in [("216000", "2 days ahead"), ("-216000", "2 days behind")] {
        let app = mesh.host_mut("app-1");
        app.environment = ahead_by(&shim, offset);
        app.start_agent();
        if mesh.status()["hosts"].as_array().is_none_or(Vec::is_empty) {
            mesh.join("app-1").expect_success_line();
        }
        wait_for("both sides say it", SOON, || {
            let there = mesh.host("app-1").status()["problems"].to_string();
            let here = host(&mesh, "app-1")["problems"].to_string();
            [there, here].iter().all(|it| it.contains("clock-skew") && it.contains(words))
        });
        let renewals = || mesh.host("app-1").log().matches("renewed this host's").count();
        let (before, began) = (renewals(), std::time::Instant::now());
        wait_for("a certificate is renewed twice", Duration::from_secs(40), || {
            renewals() >= before + 2
        });
        assert!(began.elapsed() > Duration::from_secs(6), "after {:?}", began.elapsed());
        mesh.host_mut("app-1").agent().kill();
    }
}

/// A peer refuses handshakes older than the newest it has seen: those of a clock that was set back.
#[test]
fn tunnels_are_back_soon_after_a_clock_comes_back() {
    let mut mesh = Mesh::new(&["app-1", "app-2"]);
    mesh.apply("[[allow]]\nname = \"hosts\"\nfrom = \"host:*\"\nto = \"host:*\"\n");
    let shim = shim(&mesh);
    let reaches = |mesh: &Mesh, from: &str, to: &str| {
        mesh.host(from).agentctl(&["ping", to, "-c", "1"]).success()
    };
    for environment in [ahead_by(&shim, "172800"), Vec::new()] {
        let app = mesh.host_mut("app-1");
        app.agent().kill();
        app.environment = environment;
        app.start_agent();
        wait_for("app-1 reaches its peer", SOON, || reaches(&mesh, "app-1", "app-2"));
        wait_for("its peer reaches app-1", SOON, || reaches(&mesh, "app-2", "app-1"));
    }
}

#[test]
fn agents_follow_their_controller_to_a_new_address() {
    let mut mesh = Mesh::new(&["app-1"]);
    let settings = mesh.controller_state().join("mesh.toml");
    let announce = |addresses: &str| {
        let text = std::fs::read_to_string(&settings).expect("the mesh has a file");
        let of = |line: &str| line.starts_with("addresses");
        let line = text.lines().find(|line| of(line)).expect("it has addresses");
        std::fs::write(&settings, text.replace(line, &format!("addresses = {addresses}")))
            .expect("the mesh's file can be written");
    };
    let connected = |mesh: &Mesh| mesh.host("app-1").status()["connected"] == true;

    // Announced while the old address still serves.
    mesh.controller_node.sh("ip addr add 10.9.0.2/24 dev eth0");
    mesh.controller().kill();
    announce("[\"10.9.0.1:7443\", \"10.9.0.2:7443\"]");
    mesh.spawn_controller();
    wait_for("the agent knows the new address", SOON, || {
        let member = mesh.host("app-1").state().join("member.toml");
        connected(&mesh) && std::fs::read_to_string(member).is_ok_and(|it| it.contains("10.9.0.2"))
    });
    // With the first address of a prefix the kernel takes the others.
    mesh.controller_node.sh("ip addr del 10.9.0.1/24 dev eth0; ip addr del fd09::1/64 dev eth0; \
         ip addr replace 10.9.0.2/24 dev eth0");
    wait_for("the old address serves nobody", Duration::from_secs(60), || !connected(&mesh));
    wait_for("the agent is back by the new one", Duration::from_secs(60), || connected(&mesh));
    // Also after a restart.
    mesh.host_mut("app-1").agent().kill();
    mesh.host_mut("app-1").start_agent();
    wait_for("the agent is back", SOON, || connected(&mesh));
}

fn shim(mesh: &Mesh) -> String {
    let source = mesh.lab.folder().join("clock.c");
    let shim = mesh.lab.folder().join("clock.so");
    std::fs::write(&source, SHIM).expect("the lab's folder can be written");
    let built =
        Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&shim).arg(&source).status();
    assert!(built.is_ok_and(|status| status.success()), "cc makes the shim");
    shim.display().to_string()
}

/// The environment of an agent whose clock is so many seconds ahead.
fn ahead_by(shim: &str, seconds: &str) -> Vec<(String, String)> {
    [("LD_PRELOAD", shim), ("CLOCK_OFFSET", seconds)]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec()
}

fn host(mesh: &Mesh, name: &str) -> serde_json::Value {
    let status = mesh.status();
    let hosts = status["hosts"].as_array().expect("a list");
    hosts.iter().find(|host| host["name"] == name).cloned().unwrap_or_default()
}
