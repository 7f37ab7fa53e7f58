//! Faults of hosts: each fault is made, named by `agentctl check` or `status` with its code,
//! and mended by pasting the first command of its remedy.

use std::process::Command;
use std::time::Duration;

use isthmus_netns_tests::{Mesh, Node, Output, Process, binary, wait_for, wait_for_value};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(20);
const WEB: u32 = 40_001;
const THIEF: u32 = 40_009;

const TOPOLOGY: &str = r#"
[host.app-1]
[host.web-1]

[service.web]
namespace = "prod"
port = 8080
hosts = ["web-1"]
workload = { user = "40001" }

[service.client]
namespace = "prod"
port = 9000
hosts = ["app-1"]
workload = { user = "40002" }

[[allow]]
name = "client uses web"
from = "service:client"
to = "service:web"

[[allow]]
name = "hosts"
from = "host:*"
to = "host:*"
"#;

/// Who names a fault.
#[derive(Clone, Copy)]
enum By {
    /// `agentctl check` on the host.
    Check,
    /// The host's own `agentctl status`.
    Status,
}

/// A host's shell: in a mount namespace of its own, so that what its files lack others have.
struct Shell<'a> {
    mesh: &'a Mesh,
    host: &'a str,
    files: Process,
    settings: String,
}

impl<'a> Shell<'a> {
    fn on(mesh: &'a Mesh, host: &'a str) -> Self {
        let node = &mesh.host(host).node;
        let bin = node.folder().join("bin");
        std::fs::create_dir_all(&bin).expect("the folder is ours");
        let line = "exec unshare -m --propagation private sh -c 'echo ready; exec sleep 600'";
        let files = node.spawn_sh("files", line);
        wait_for("its files are its own", SOON, || files.output().contains("ready"));
        let settings = node.folder().join("agent.toml").display().to_string();
        Self { mesh, host, files, settings }
    }

    fn node(&self) -> &Node {
        &self.mesh.host(self.host).node
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.files.id().to_string(), "-m", "-n", "--", program]);
        command.args(arguments);
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command
    }

    #[track_caller]
    fn sh(&self, line: &str) -> String {
        Output::of(self.command("sh", &["-c", line])).expect_success()
    }

    /// All that is wrong, by this one.
    fn problems(&self, by: By) -> Vec<Value> {
        let agentctl = binary("agentctl");
        let agentctl = agentctl.to_string_lossy();
        let socket = self.mesh.host(self.host).socket().to_string_lossy().into_owned();
        let arguments: &[&str] = match by {
            By::Check => {
                &["check", "-o", "json", "--settings", &self.settings, "--socket", &socket]
            }
            By::Status => &["status", "-o", "json", "--socket", &socket],
        };
        let said = Output::of(self.command(&agentctl, arguments));
        let value: Value = serde_json::from_str(&said.stdout).unwrap_or_default();
        value["problems"].as_array().cloned().unwrap_or_default()
    }

    fn remedy(&self, by: By, code: &str) -> Option<String> {
        first_remedy(&self.problems(by), code)
    }

    /// Makes a fault, waits until it is named, and pastes the remedy until it is gone.
    #[track_caller]
    fn fault(&self, code: &str, by: By, make: &str) {
        self.sh(make);
        self.mend(code, by);
    }

    #[track_caller]
    fn mend(&self, code: &str, by: By) {
        let remedy = wait_for_value(code, SOON, || self.remedy(by, code));
        self.sh(pasted(&remedy));
        wait_for(&format!("{code} is mended by {remedy}"), SOON, || {
            self.remedy(by, code).is_none()
        });
    }

    /// Somebody who takes a port until he is killed.
    fn squatter(&self, kind: &str, port: u16) -> Process {
        let line = format!(
            "exec python3 -c 'import socket,time; s=socket.socket(socket.AF_INET, socket.SOCK_{kind}); \
             s.bind((\"0.0.0.0\", {port})); \"{kind}\" == \"STREAM\" and s.listen(); print(\"has it\", flush=True); \
             time.sleep(600)'"
        );
        let squatter = self.node().spawn_sh(&format!("squatter-{kind}-{port}"), &line);
        wait_for("the port is taken", SOON, || squatter.output().contains("has it"));
        squatter
    }
}

fn first_remedy(problems: &[Value], code: &str) -> Option<String> {
    let found = problems.iter().find(|it| it["code"] == code)?;
    Some(found["remedy"].as_str().unwrap_or_default().to_owned())
}

/// The first command of a remedy.
#[track_caller]
fn pasted(remedy: &str) -> &str {
    remedy.split('`').nth(1).unwrap_or_else(|| panic!("no command in {remedy:?}"))
}

#[test]
fn a_member_names_what_is_wrong_and_each_remedy_works_as_it_is() {
    let mesh = Mesh::new(&["app-1", "web-1"]);
    mesh.apply(TOPOLOGY);
    let shell = Shell::on(&mesh, "app-1");
    wait_for("nothing is wrong", SOON, || shell.problems(By::Check).is_empty());
    let state = mesh.host("app-1").state().display().to_string();
    faults_of_files(&shell, &state);
    faults_of_settings(&mesh, &shell.settings, &state);
    faults_of_the_network(&mesh, &shell);
    // What was taken of the overlay's network is told for a while.
    wait_for("all is well again", SOON, || {
        shell.problems(By::Check).iter().all(|it| it["code"] == "network-taken")
    });

    who_is_kept_out_says_so_at_both_ends(&mesh, &shell);
    strangers_are_named(&mesh);
    apply_says_what_a_revision_brings(&mesh, &shell);
}

fn faults_of_files(shell: &Shell<'_>, state: &str) {
    shell.fault("key-readable", By::Status, &format!("chmod 644 {state}/wireguard.key"));
    shell.fault("key-readable", By::Check, &format!("chmod 640 {state}/tls.pem"));
    shell.fault("key-readable", By::Check, &format!("chmod 755 {state}"));
    shell.fault("tun-missing", By::Check, "mount -t tmpfs none /dev/net");
    shell.fault(
        "network-managed",
        By::Check,
        "mkdir -p /run/systemd /etc/systemd && mount -t tmpfs none /run/systemd && mkdir /run/systemd/netif && \
         mount -t tmpfs none /etc/systemd && mkdir /etc/systemd/network && \
         printf '[Match]\\nName=*\\n' > /etc/systemd/network/80-all.network && \
         mount -t tmpfs none /usr/local/bin && printf '#!/bin/sh\\n' > /usr/local/bin/networkctl && \
         chmod 755 /usr/local/bin/networkctl",
    );
}

fn faults_of_settings(mesh: &Mesh, good: &str, state: &str) {
    let mut broken = Shell::on(mesh, "app-1");
    broken.settings = format!("{state}/../broken.toml");
    for line in ["listen = 51820", "mtu = 12", "guard = \"perhaps\""] {
        broken.fault(
            "settings-invalid",
            By::Check,
            &format!("{{ echo '{line}'; cat {good}; }} > {}", broken.settings),
        );
    }
}

fn faults_of_the_network(mesh: &Mesh, shell: &Shell<'_>) {
    let (_, own6) = mesh.host("app-1").addresses();
    let prefix = own6.segments();
    let mesh6 = format!("{:x}:{:x}:{:x}::/48", prefix[0], prefix[1], prefix[2]);
    shell.fault("route-clash", By::Status, "ip route add 100.64.77.0/24 dev eth0");
    shell.fault("route-clash", By::Check, &format!("ip -6 route add {mesh6} dev eth0 metric 5"));
    shell.sh("ip route add 100.64.78.0/24 dev eth0; ip route add 100.64.79.0/24 dev eth0");
    wait_for("both are named", SOON, || {
        let all = shell.problems(By::Status);
        all.iter().filter(|it| it["code"] == "route-clash").count() == 2
    });
    let first = shell.remedy(By::Status, "route-clash").unwrap_or_default();
    shell.sh(pasted(&first));
    wait_for("the other is left", SOON, || {
        shell.remedy(By::Status, "route-clash").is_some_and(|it| it != first)
    });
    shell.mend("route-clash", By::Status);
    shell.fault("ipv6-missing", By::Status, "sysctl -qw net.ipv6.conf.lo.disable_ipv6=1");
    shell.fault("loopback-down", By::Check, "ip link set lo down");
    shell.fault("path-narrow", By::Check, "ip link set eth0 mtu 1300");
    shell.fault("underlay-missing", By::Check, "ip link set eth0 down");
    shell.fault(
        "firewall-proxy",
        By::Status,
        "nft 'add table inet fw; add chain inet fw in { type filter hook input priority 0; policy drop; }; \
         add rule inet fw in iifname { lo, eth0 } accept'",
    );
    shell.sh("nft delete table inet fw");
}

fn apply_says_what_a_revision_brings(mesh: &Mesh, app: &Shell<'_>) {
    let folder = app.node().folder().display().to_string();
    app.sh(&format!(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=shop \
         -keyout {folder}/shop.key -out {folder}/shop.pem 2>/dev/null; chmod 644 {folder}/shop.key"
    ));
    let squatter = app.squatter("STREAM", 8443);
    let gateway = format!(
        "[gateway.public]\nnamespace = \"prod\"\nhosts = [\"app-1\"]\n\
         [[gateway.public.listeners]]\nport = 8443\nhosts = [\"shop.example\"]\n\
         tls = {{ certificate = \"{folder}/shop.pem\", key = \"{folder}/shop.key\" }}\n\
         [jwt.login]\nissuer = \"https://login.example\"\njwks = \"{folder}/jwks.json\"\n\
         [[allow]]\nname = \"staff\"\nfrom = \"any\"\nto = \"service:site\"\n\
         http = [{{ jwt = {{ provider = \"login\" }} }}]\n\
         [service.site]\nnamespace = \"prod\"\nport = 8088\nprotocol = \"http\"\nhosts = [\"app-1\"]\n\
         workload = {{ user = \"40003\" }}\n"
    );
    let applied = mesh.try_apply(&format!("{TOPOLOGY}{gateway}"));
    let said = format!("{}{}", applied.stdout, applied.stderr);
    assert_eq!(applied.code(), Some(4), "{said}");
    for part in ["may be read by others", "port 8443 can't be opened", "jwks.json can't be had"] {
        assert!(said.contains(part), "{part} in {said}");
    }
    // None of them needs a restart, nor another apply.
    app.mend("certificate-unusable", By::Status);
    app.mend("gateway-door", By::Status);
    let script = format!(
        "import base64, json, subprocess
\
         der = subprocess.check_output(['openssl', 'pkey', '-in', '{folder}/shop.key', '-pubout', '-outform', 'DER'])
\
         text = lambda part: base64.urlsafe_b64encode(part).rstrip(b'=').decode()
\
         key = dict(kty='EC', crv='P-256', x=text(der[-64:-32]), y=text(der[-32:]))
\
         json.dump(dict(keys=[key]), open('{folder}/jwks.json', 'w'))
"
    );
    let _ = Output::of(app.command("python3", &["-c", &script])).expect_success();
    wait_for("the keys are there", SOON, || app.remedy(By::Status, "keys-missing").is_none());
    drop(squatter);

    // What stands is listed, and is no fault of this revision.
    app.sh(&format!("chmod 644 {}/wireguard.key", mesh.host("app-1").state().display()));
    wait_for("the key is told of", SOON, || app.remedy(By::Status, "key-readable").is_some());
    let said = mesh.apply(&format!("{TOPOLOGY}[policy]\naudit = [\"service:web\"]\n"));
    assert!(said.contains("not of this revision") && said.contains("key-readable"), "{said}");
    assert!(said.contains("AUDIT MODE: what policy would deny to service:web"), "{said}");
    wait_for("the host tells it, too", SOON, || app.remedy(By::Status, "audit").is_some());
}

fn who_is_kept_out_says_so_at_both_ends(mesh: &Mesh, app: &Shell<'_>) {
    let web = Shell::on(mesh, "web-1");
    web.sh(
        "nft 'add table inet fw; add chain inet fw in { type filter hook input priority 0; policy drop; }; \
         add rule inet fw in iifname { lo, isth0 } accept; add rule inet fw in meta l4proto { tcp, icmp, icmpv6 } accept'",
    );
    let remedy = wait_for_value("it is silent", SOON, || app.remedy(By::Check, "host-silent"));
    assert_eq!(pasted(&remedy), "agentctl check", "{remedy}");
    assert!(remedy.contains("on web-1"), "{remedy}");
    web.mend("firewall-tunnels", By::Check);
    wait_for("it answers", SOON, || app.remedy(By::Check, "host-silent").is_none());
}

fn strangers_are_named(mesh: &Mesh) {
    let web = Shell::on(mesh, "web-1");
    let mut thief = web.node().command_as(THIEF, None, "python3");
    thief.args(["-m", "http.server", "8080"]);
    let _thief = web.node().spawn("thief", thief);
    web.mend("foreign-listener", By::Status);
    let own = mesh.host("web-1").nginx(WEB, 8080, "location / { return 200 ok; }");
    wait_for("the service itself is none", SOON, || {
        web.remedy(By::Status, "foreign-listener").is_none()
    });
    drop(own);
}

#[test]
fn a_host_without_an_agent_or_a_mesh_says_what_is_in_the_way() {
    let mut mesh = Mesh::new(&["app-1"]);
    mesh.add_host("new-1");
    mesh.apply(TOPOLOGY);
    a_host_that_never_came_joins(&mesh);
    an_agent_that_is_down_is_started(&mut mesh);
    without_a_controller(&mut mesh);
}

/// The remedy that the operator reads of a problem with something.
fn named(mesh: &Mesh, code: &str, subject: &str) -> Option<String> {
    let status = mesh.status();
    let hosts = status["hosts"].as_array()?;
    let of_hosts = hosts.iter().filter_map(|it| it["problems"].as_array()).flatten();
    let all: Vec<&Value> = status["problems"].as_array()?.iter().chain(of_hosts).collect();
    let found = all.into_iter().find(|it| it["code"] == code && it["subject"] == subject)?;
    Some(found["remedy"].as_str()?.to_owned())
}

fn a_host_that_never_came_joins(mesh: &Mesh) {
    let remedy = named(mesh, "host-not-joined", "web-1").expect("web-1 never came");
    assert!(!mesh.agentctl(&["status", "--check"]).success(), "something is wrong");

    // What the remedy says, there and here, word for word.
    let host = Shell::on(mesh, "new-1");
    let not_yet =
        wait_for_value("it is in no mesh", SOON, || host.remedy(By::Check, "not-a-member"));
    assert!(pasted(&not_yet).starts_with("agentctl join -"), "{not_yet}");
    let words: Vec<&str> = pasted(&remedy).split(' ').skip(1).collect();
    let token = mesh.agentctl(&[&words[..], &["-o", "json"]].concat()).json();
    let token = token["token"].as_str().expect("a token").to_owned();
    let joined = remedy.split('`').nth(3).unwrap_or_default();
    assert_eq!(joined, "agentctl join --name web-1 -");
    let _ = mesh.host("new-1").join(&token, "web-1").expect_success();
    wait_for("it is a member", SOON, || host.remedy(By::Check, "not-a-member").is_none());
    wait_for("it has come", SOON, || named(mesh, "host-not-joined", "web-1").is_none());
    wait_for("nothing is wrong", SOON, || mesh.agentctl(&["status", "--check"]).success());
}

/// The host says first that its agent is down, then what would keep it from starting.
fn an_agent_that_is_down_is_started(mesh: &mut Mesh) {
    mesh.host_mut("app-1").agent().terminate(SOON);
    let host = Shell::on(mesh, "app-1");
    let away = wait_for_value("it is away", SOON, || named(mesh, "host-away", "app-1"));
    assert_eq!(pasted(&away), "systemctl start isthmus-agent", "{away}");
    let squatters = [
        host.squatter("DGRAM", 51820),
        host.squatter("STREAM", 15001),
        host.squatter("STREAM", 9464),
        host.squatter("DGRAM", 53),
    ];
    let problems = host.problems(By::Check);
    let codes: Vec<&str> = problems.iter().filter_map(|it| it["code"].as_str()).collect();
    assert_eq!(codes, ["agent-down", "port-taken", "port-taken", "port-taken"], "{problems:?}");
    assert_eq!(
        pasted(problems[0]["remedy"].as_str().unwrap_or_default()),
        "systemctl start isthmus-agent"
    );
    for problem in &problems[1..3] {
        host.sh(pasted(problem["remedy"].as_str().unwrap_or_default()));
    }
    let left = host.problems(By::Check);
    let subjects: Vec<&str> = left.iter().filter_map(|it| it["subject"].as_str()).collect();
    assert_eq!(subjects, ["", "TCP port 9464"]);
    drop(host);

    // It is started, as the remedy says, beside two who have what it wants.
    mesh.host_mut("app-1").start_agent();
    wait_for("it is back", SOON, || named(mesh, "host-away", "app-1").is_none());
    let host = Shell::on(mesh, "app-1");
    wait_for("it runs", SOON, || host.remedy(By::Check, "agent-down").is_none());
    host.mend("metrics-unserved", By::Status);
    host.mend("dns-silent", By::Status);
    drop(squatters);
}

fn without_a_controller(mesh: &mut Mesh) {
    mesh.controller().terminate(SOON);
    let host = Shell::on(mesh, "app-1");
    let remedy =
        wait_for_value("it is missed", SOON, || host.remedy(By::Status, "controller-unreachable"));
    assert_eq!(pasted(&remedy), "systemctl start isthmus-controller", "{remedy}");
    drop(host);
    mesh.start_controller();
    let host = Shell::on(mesh, "app-1");
    wait_for("it is back", SOON, || host.remedy(By::Status, "controller-unreachable").is_none());
}

#[test]
fn another_meshs_controller_is_named_and_left_as_its_remedy_says() {
    let mut mesh = Mesh::new(&["app-1"]);
    let state = mesh.controller_state();
    let _ = mesh.controller().terminate(SOON);
    std::fs::rename(&state, state.with_extension("former")).expect("the lab's folder is ours");
    let mut init = mesh.controller_node.command(binary("isthmus-controller"));
    init.args(["init", "--name", "corp", "--trust-domain", "corp.example"]);
    init.args(["--address", "10.9.0.1:7443", "--state-dir"]).arg(&state);
    let _ = Output::of(init).expect_success();
    mesh.start_controller();
    let app = Shell::on(&mesh, "app-1");
    let remedy = wait_for_value("another CA", Duration::from_secs(60), || {
        app.remedy(By::Status, "controller-foreign")
    });
    assert_eq!(pasted(&remedy), "agentctl leave");
    let host = mesh.host("app-1");
    let unasked = host.join(&mesh.token(&[]), "app-1").expect_failure();
    assert!(unasked.contains("to join another, first `agentctl leave`"), "{unasked}");
    let left = host.agentctl(&["leave", "--yes"]);
    assert_eq!(left.code(), Some(4), "its own controller can't be told: {left}");
    assert_eq!(app.problems(By::Status), [""; 0], "what was its controller concerns it no more");
    assert!(host.join(&mesh.token(&[]), "app-1").success());
    wait_for("it is a member of the new one", SOON, || {
        app.problems(By::Status).is_empty() && mesh.status()["hosts"][0]["connected"] == true
    });
}

/// Faults whose remedy is a line of the topology, or an operator's command.
#[test]
fn what_a_topology_asks_in_vain_is_mended_by_the_line_that_its_remedy_names() {
    let mesh = Mesh::new(&["app-1", "web-1"]);
    let web = |more: &str| {
        TOPOLOGY.replace(
            "workload = { user = \"40001\" }",
            &format!("workload = {{ user = \"40001\" }}\n{more}"),
        )
    };
    mesh.apply(TOPOLOGY);
    let (app, host) = (Shell::on(&mesh, "app-1"), Shell::on(&mesh, "web-1"));
    let node = &mesh.host("web-1").node;
    let mut server = node.command_as(WEB, None, "python3");
    server.args(["-m", "http.server", "--bind", "127.0.0.1", "8080"]);
    let alone = node.spawn("alone", server);
    let reached = wait_for_value("it listens on loopback alone", SOON, || {
        host.remedy(By::Status, "not-reached")
    });
    assert_eq!(pasted(&reached), "listen = \"127.0.0.1:8080\"");
    mesh.apply(&web(pasted(&reached)));
    wait_for("it is reached", SOON, || host.remedy(By::Status, "not-reached").is_none());
    let (address, _) = mesh.virtual_addresses("web");
    let url = format!("http://{address}:8080/");
    let ask = || mesh.host("app-1").curl(40_002, &["-fsS", "-m", "3", "-o", "/dev/null", &url]);
    wait_for("its callers reach it", SOON, || ask().success());
    drop(alone);

    let mut server = node.command_as(WEB, None, "python3");
    server.args(["-m", "http.server", "--bind", "0.0.0.0", "8080"]);
    let _open = node.spawn("open", server);
    mesh.apply(&web("exposure = \"count\""));
    let around = wait_for_value("it is open", SOON, || host.remedy(By::Status, "around-mesh"));
    assert_eq!(pasted(&around), "exposure = \"mesh\"");
    mesh.apply(&web(pasted(&around)));
    wait_for("it is closed", SOON, || host.remedy(By::Status, "around-mesh").is_none());
    assert!(ask().success(), "by the mesh it is open");
    a_user_that_nobody_has(&mesh, &host);
    a_server_without_an_address(&mesh, &app);
    a_trial_that_nobody_confirms(&mesh);
}

fn a_user_that_nobody_has(mesh: &Mesh, host: &Shell<'_>) {
    let nobody = TOPOLOGY.replace("40001", "nobody-of-ours");
    let applied = mesh.try_apply(&nobody);
    assert_eq!(applied.code(), Some(4), "{applied:?}");
    let remedy = wait_for_value("nobody is it", SOON, || host.remedy(By::Status, "selector"));
    assert_eq!(pasted(&remedy), "workload", "{remedy}");
    mesh.apply(TOPOLOGY);
    wait_for("somebody is", SOON, || host.remedy(By::Status, "selector").is_none());
}

/// The remedy's command shows what is missing, and finds it once it is there.
fn a_server_without_an_address(mesh: &Mesh, app: &Shell<'_>) {
    let external = format!(
        "{TOPOLOGY}[external.shop]\nnamespace = \"prod\"\nhost = \"shop.example\"\ntls = false\n\
         [[allow]]\nname = \"client buys\"\nfrom = \"service:client\"\nto = \"service:shop\"\n"
    );
    mesh.apply(&external);
    let remedy =
        wait_for_value("it has no address", SOON, || app.remedy(By::Status, "external-unresolved"));
    assert_eq!(pasted(&remedy), "getent hosts shop.example");
    mesh.apply(&external.replace("\"shop.example\"", "\"10.9.0.77\""));
    wait_for("it has one", SOON, || app.remedy(By::Status, "external-unresolved").is_none());
}

fn a_trial_that_nobody_confirms(mesh: &Mesh) {
    let trial = mesh.try_apply_with(TOPOLOGY, &["--confirm-within", "5m"]);
    assert!(trial.success(), "{trial:?}");
    let unconfirmed = |mesh: &Mesh| {
        let status = mesh.status();
        first_remedy(status["problems"].as_array().unwrap_or(&Vec::new()), "unconfirmed")
    };
    let remedy = unconfirmed(mesh).expect("it says so");
    let words: Vec<&str> = pasted(&remedy).split(' ').skip(1).collect();
    let _ = mesh.agentctl(&words).expect_success();
    assert_eq!(unconfirmed(mesh), None);
}
