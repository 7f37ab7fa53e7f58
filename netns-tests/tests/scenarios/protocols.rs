//! Protocols beside plain requests: real programs, through real agents.

use std::time::Duration;

use isthmus_netns_tests::{Host, Mesh, Output, Process, wait_for};

const CLIENT: u32 = 40_002;
const SERVER: u32 = 40_001;
const OTHER: u32 = 40_003;

const HOSTS: &str = r#"
[host.app-1]
[host.srv-1]

[service.client]
namespace = "prod"
port = 9000
hosts = ["app-1"]
workload = { user = "40002" }
"#;

/// A service on srv-1 that the client may use.
fn service(name: &str, port: u16, lines: &str) -> String {
    format!(
        "[service.{name}]\nnamespace = \"prod\"\nport = {port}\nhosts = [\"srv-1\"]\n{lines}\n\
         [[allow]]\nname = \"client uses {name}\"\nfrom = \"service:client\"\nto = \"service:{name}\"\n"
    )
}

fn mesh(services: &str) -> Mesh {
    let mesh = Mesh::new(&["app-1", "srv-1"]);
    mesh.apply(&format!("{HOSTS}{services}"));
    mesh
}

/// Runs a Python program as a user; it must succeed.
#[track_caller]
fn python(host: &Host, user: u32, program: &str, arguments: &[&str]) -> String {
    let mut command = host.command_as(user, "python3");
    command.args(["-c", program]).args(arguments);
    Output::of(command).expect_success()
}

/// Starts a program of a user that listens on a port.
fn serve(host: &Host, user: u32, port: u16, program: &str, arguments: &[&str]) -> Process {
    let mut command = host.node.command_as(user, None, program);
    command.args(arguments);
    let process = host.node.spawn(&format!("server-{port}"), command);
    wait_for("it listens", Duration::from_secs(20), || {
        !host.node.sh(&format!("ss -Hltn 'sport = :{port}'")).is_empty()
    });
    process
}

/// Makes a certificate for each name, in the host's folder; gives the folder.
fn certificates(host: &Host, names: &[&str]) -> String {
    let folder = host.node.folder().display().to_string();
    for name in names {
        host.node.sh(&format!(
            "cd {folder} && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes \
             -days 2 -subj /CN={name} -keyout {name}.key -out {name}.crt 2>/dev/null && chmod 644 {name}.*"
        ));
    }
    folder
}

#[test]
fn tls_passes_through_unread() {
    let mesh = mesh(&service("shop", 8443, "protocol = \"tls\"\nworkload = { user = \"40001\" }"));
    let (app, srv) = (mesh.host("app-1"), mesh.host("srv-1"));
    let folder = certificates(srv, &["shop.prod.mesh.internal"]);
    let nginx = tls_nginx(srv, &folder, "shop.prod.mesh.internal", "sealed");
    let url = "https://shop.prod.mesh.internal:8443/";
    for (family, version) in [("-4", "--http1.1"), ("-6", "--http2")] {
        let answer = app.curl(CLIENT, &["-k", family, version, url]).expect_success();
        assert_eq!(answer, "sealed");
    }
    // The certificate that the client sees is the application's own.
    let ca = format!("{folder}/shop.prod.mesh.internal.crt");
    assert_eq!(app.curl(CLIENT, &["--cacert", &ca, url]).expect_success(), "sealed");
    // What is no TLS doesn't get to the application.
    let _ = app.curl(CLIENT, &["http://shop.prod.mesh.internal:8443/"]).expect_failure();
    assert!(!nginx.output().contains("400"), "{}", nginx.output());
    for (host, side) in [(app, "client"), (srv, "server")] {
        let of = format!("side=\"{side}\",carries=\"tls\",ruling=\"allow\"");
        assert!(host.metric("isthmus_streams_total", &of) >= 3.0, "{side}");
        assert!(host.metric("isthmus_stream_received_bytes_total", &of) > 1000.0, "{side}");
    }
    let log = srv.log();
    let line = log.lines().find(|it| it.contains("sni") && it.contains("shop.prod.mesh.internal"));
    assert!(line.is_some_and(|it| it.contains("client uses shop")), "{log}");
}

/// nginx with TLS on port 8443.
fn tls_nginx(host: &Host, folder: &str, name: &str, says: &str) -> Process {
    let config = format!(
        "listen 0.0.0.0:8443 ssl http2; listen [::]:8443 ssl http2;\n\
         ssl_certificate {folder}/{name}.crt; ssl_certificate_key {folder}/{name}.key;\n\
         return 200 '{says}';"
    );
    let process = host.nginx(SERVER, 8442, &config);
    wait_for("nginx listens", Duration::from_secs(10), || {
        !host.node.sh("ss -Hltn 'sport = :8443'").is_empty()
    });
    process
}

/// Accepts connections, prints what comes first in each, echoes the rest.
const ECHO: &str = include_str!("programs/protocols_echo.py");

/// Sends a text, ends its direction, reads to the end.
const SAY: &str = include_str!("programs/protocols_say.py");

#[test]
fn applications_are_told_who_calls_by_the_proxy_protocol() {
    let mesh = mesh(&format!(
        "{}{}{}",
        service("echo", 7001, "proxy_protocol = \"v1\"\nworkload = { user = \"40001\" }"),
        service("binary", 7002, "proxy_protocol = \"v2\"\nworkload = { user = \"40003\" }"),
        service("plain", 7003, "workload = { user = \"40004\" }"),
    ));
    let (app, srv) = (mesh.host("app-1"), mesh.host("srv-1"));
    let v1 = serve(srv, SERVER, 7001, "python3", &["-u", "-c", ECHO, "7001"]);
    let v2 = serve(srv, OTHER, 7002, "python3", &["-u", "-c", ECHO, "7002"]);
    let plain = serve(srv, 40_004, 7003, "python3", &["-u", "-c", ECHO, "7003"]);
    let said = |name: &str, port: &str| {
        python(app, CLIENT, SAY, &[&format!("{name}.prod.mesh.internal"), port, "hello"])
    };
    let heard = said("echo", "7001");
    assert!(heard.starts_with("PROXY TCP") && heard.ends_with("7001\r\nhello"), "{heard}");
    assert_eq!(said("plain", "7003"), "hello");
    let _ = Output::of({
        let mut command = app.command_as(CLIENT, "python3");
        command.args(["-c", SAY, "binary.prod.mesh.internal", "7002", "hello"]);
        command
    });
    // The first look may have the header alone.
    wait_for("v2 has come", Duration::from_secs(5), || v2.output().contains("QUIT"));
    let identity = "spiffe://corp.example/ns/prod/sa/client";
    assert!(v2.output().contains(identity), "{}", v2.output());
    assert!(v1.output().contains("PROXY TCP"), "{}", v1.output());
    assert_eq!(plain.output().trim(), "b'hello'");
}

/// Connects, prints how many microseconds the first byte took, as a median over many connections,
/// and the first line.
const BANNER: &str = include_str!("programs/protocols_banner.py");

fn banner(app: &Host, service: &str, port: &str, connections: &str) -> (f64, String) {
    let name = format!("{service}.prod.mesh.internal");
    let said = python(app, CLIENT, BANNER, &[&name, port, connections]);
    let (median, banner) = said.trim().split_once(' ').expect("a median and a banner");
    (median.parse().expect("a number"), banner.to_owned())
}

#[test]
fn detection_never_stalls_a_server_that_speaks_first() {
    let of = |user: &str, protocol: &str| {
        format!("protocol = \"{protocol}\"\nworkload = {{ user = \"{user}\" }}")
    };
    let services = |protocol: &str| {
        format!(
            "{HOSTS}{}{}{}",
            service("mail", 25, &of("Debian-exim", protocol)),
            service("shell", 22, &of("0", protocol)),
            service("base", 3306, &of("40003", protocol)),
        )
    };
    let mesh = Mesh::new(&["app-1", "srv-1"]);
    let (app, srv) = (mesh.host("app-1"), mesh.host("srv-1"));
    mesh.apply(&services("auto"));
    let _servers = [exim(srv), sshd(srv), mariadb(srv)];
    let cases = [("mail", "25", "220"), ("shell", "22", "SSH-2.0"), ("base", "3306", "MariaDB")];
    let measure = || {
        cases.map(|(service, port, greeting)| {
            let (median, said) = banner(app, service, port, "15");
            assert!(said.contains(greeting), "{service}: {said}");
            median
        })
    };
    // In turns: the machine isn't always equally busy.
    let mut took = [const { [const { Vec::new() }; 2] }; 3];
    for _ in 0..5 {
        for (protocol, which) in [("auto", 0), ("tcp", 1)] {
            mesh.apply(&services(protocol));
            took.iter_mut().zip(measure()).for_each(|(took, median)| took[which].push(median));
        }
    }
    for ((service, ..), took) in cases.iter().zip(&mut took) {
        let [auto, tcp] = took.each_mut().map(|medians| {
            medians.sort_by(f64::total_cmp);
            medians[medians.len() / 2]
        });
        println!("{service}: first byte after {tcp} us as tcp, {auto} us as auto: +{}", auto - tcp);
        // Some hundredths of this are noise of a busy machine; a stall would be a matter of seconds.
        assert!(auto - tcp < 200_000.0, "{service}: {auto} us, {tcp} us as tcp");
    }
}

fn exim(host: &Host) -> Process {
    let folder = host.node.folder().join("exim");
    std::fs::create_dir_all(&folder).expect("the lab's folder can be written");
    host.node.sh(&format!("chown Debian-exim: {}", folder.display()));
    let config = folder.join("exim.conf");
    let text = format!(
        "spool_directory = {0}\n\
         log_file_path = {0}/%slog\npid_file_path = {0}/pid\nhost_lookup =\nrfc1413_query_timeout = 0s\n\
         smtp_accept_max = 1000\nsmtp_accept_queue = 0\nacl_smtp_rcpt = accept\nprimary_hostname = mail\n\
         daemon_smtp_ports = 25\nlocal_interfaces = <; 0.0.0.0 ; ::0\nkeep_environment =\n",
        folder.display()
    );
    std::fs::write(&config, text).expect("the folder can be written");
    let config = config.display().to_string();
    serve_as_root(host, 25, "/usr/sbin/exim4", &["-C", &config, "-bdf"])
}

fn sshd(host: &Host) -> Process {
    let folder = host.node.folder().display().to_string();
    host.node
        .sh(&format!("ssh-keygen -q -t ed25519 -N '' -f {folder}/ssh_key && mkdir -p /run/sshd"));
    let key = format!("{folder}/ssh_key");
    let options = ["-D", "-e", "-f", "/dev/null", "-p", "22", "-h", &key, "-o", "MaxStartups=1000"];
    serve_as_root(host, 22, "/usr/sbin/sshd", &options)
}

fn mariadb(host: &Host) -> Process {
    let folder = host.node.folder().join("mariadb").display().to_string();
    host.node.sh(&format!(
        "mkdir -p {folder} && chown {OTHER}:{OTHER} {folder} && mariadb-install-db --no-defaults \
         --auth-root-authentication-method=normal --skip-test-db --datadir={folder} >/dev/null && \
         chown -R {OTHER}:{OTHER} {folder}"
    ));
    let arguments = [
        "--no-defaults",
        &format!("--datadir={folder}"),
        &format!("--socket={folder}/sock"),
        &format!("--pid-file={folder}/pid"),
        "--port=3306",
        "--bind-address=*",
        "--skip-grant-tables",
        "--skip-networking=0",
        "--skip-name-resolve",
        "--max-connections=1000",
        "--max-connect-errors=1000000",
    ];
    serve(host, OTHER, 3306, "mariadbd", &arguments)
}

fn serve_as_root(host: &Host, port: u16, program: &str, arguments: &[&str]) -> Process {
    let mut command = host.node.command(program);
    command.args(arguments);
    let process = host.node.spawn(&format!("server-{port}"), command);
    wait_for("it listens", Duration::from_secs(20), || {
        !host.node.sh(&format!("ss -Hltn 'sport = :{port}'")).is_empty()
    });
    process
}

/// A gRPC service without generated code: messages are bytes.
const GRPC_SERVER: &str = include_str!("programs/protocols_grpc_server.py");

const GRPC_CLIENT: &str = include_str!("programs/protocols_grpc_client.py");

#[test]
fn grpc_works_in_all_its_ways() {
    let topology = format!(
        "{}[[deny]]\nname = \"no secrets\"\nfrom = \"any\"\nto = \"service:calls\"\nhttp = [{{ path = \"/t.T/Secret\" }}]\n{}",
        service("calls", 7000, "protocol = \"http\"\nworkload = { user = \"40001\" }"),
        service("gone", 7001, "protocol = \"http\"\nworkload = { user = \"40003\" }"),
    );
    let mesh = mesh(&topology);
    let (app, srv) = (mesh.host("app-1"), mesh.host("srv-1"));
    let _server = serve(srv, SERVER, 7000, "python3", &["-u", "-c", GRPC_SERVER, "7000"]);
    let said = python(app, CLIENT, GRPC_CLIENT, &["calls.prod.mesh.internal:7000"]);
    let lines: Vec<&str> = said.lines().collect();
    let identity = "spiffe://corp.example/ns/prod/sa/client";
    assert_eq!(lines[0], format!("unary hello for {identity} yes"), "{said}");
    assert_eq!(
        &lines[1..8],
        [
            "up 2000000",
            "down ['0', '1', '2', '3', '4']",
            "both eno",
            "both owt",
            "both eerht",
            "both []",
            "/t.T/Unary FAILED_PRECONDITION not now: 50 %",
        ],
        "{said}"
    );
    assert!(lines[8].starts_with("/t.T/Unary DEADLINE_EXCEEDED"), "{said}");
    assert!(lines[9].starts_with("/t.T/None UNIMPLEMENTED"), "{said}");
    // What the proxy itself says is gRPC, too.
    assert!(
        lines[10].starts_with("/t.T/Secret PERMISSION_DENIED forbidden by mesh policy"),
        "{said}"
    );
    let program = "import grpc, sys\n\
                   try: grpc.insecure_channel(sys.argv[1]).unary_unary('/t.T/Unary')(b'', timeout=10)\n\
                   except grpc.RpcError as error: print(error.code().name, error.details())";
    let said = python(app, CLIENT, program, &["gone.prod.mesh.internal:7001"]);
    assert!(said.starts_with("UNAVAILABLE the application doesn't accept connections"), "{said}");
}

/// Echoes, and refuses those that ask for it.
const WEBSOCKET_SERVER: &str = include_str!("programs/protocols_websocket_server.py");

const WEBSOCKET_CLIENT: &str = include_str!("programs/protocols_websocket_client.py");

#[test]
fn websockets_carry_large_messages_and_survive_changes() {
    let topology = service("talk", 7000, "protocol = \"http\"\nworkload = { user = \"40001\" }");
    let mesh = mesh(&topology);
    let (app, srv) = (mesh.host("app-1"), mesh.host("srv-1"));
    let _server = serve(srv, SERVER, 7000, "python3", &["-u", "-c", WEBSOCKET_SERVER, "7000"]);
    let pipe = app.node.folder().join("pipe").display().to_string();
    app.node.sh(&format!("mkfifo -m 666 {pipe}"));
    let mut command = app.command_as(CLIENT, "sh");
    let program = app.node.folder().join("client.py").display().to_string();
    std::fs::write(&program, WEBSOCKET_CLIENT).expect("the folder can be written");
    let url = "ws://talk.prod.mesh.internal:7000";
    command.args(["-c", &format!("exec python3 -u {program} {url} <>{pipe}")]);
    let mut client = app.node.spawn("websocket", command);
    let echoed = "closed 418\nechoed 5\nechoed 5000000\nechoed 300000\n";
    wait_for("all is echoed", Duration::from_secs(30), || client.output() == echoed);
    let more =
        "[host.more]\n[[allow]]\nname = \"more\"\nfrom = \"host:app-1\"\nto = \"service:talk\"\n";
    mesh.apply(&format!("{HOSTS}{topology}{more}"));
    app.node.sh(&format!("echo still here >{pipe}"));
    wait_for("it goes on", Duration::from_secs(10), || {
        client.output().contains("later still here")
    });
    assert!(client.is_running(), "{}", client.output());
}

#[test]
fn haproxy_and_nginx_are_told_who_calls() {
    let mesh = mesh(&format!(
        "{}{}",
        service(
            "ha",
            7000,
            "protocol = \"http\"\nproxy_protocol = \"v2\"\nworkload = { user = \"40001\" }"
        ),
        service(
            "ng",
            7001,
            "protocol = \"http\"\nproxy_protocol = \"v1\"\nworkload = { user = \"40003\" }"
        ),
    ));
    let (app, srv) = (mesh.host("app-1"), mesh.host("srv-1"));
    let config = srv.node.folder().join("haproxy.cfg");
    let text = "defaults\n mode http\n timeout client 30s\n timeout server 30s\n timeout connect 5s\n\
                frontend f\n bind :::7000 v4v6 accept-proxy\n\
                http-request return status 200 content-type text/plain lf-string \"%[src] %[fc_pp_tlv(0xe0)] %[req.ver]\"\n";
    // HAProxy before 2.9 knows no TLVs of others.
    let text = text.replace(" %[fc_pp_tlv(0xe0)]", "");
    std::fs::write(&config, text).expect("the folder can be written");
    let config = config.display().to_string();
    let _haproxy = serve(srv, SERVER, 7000, "haproxy", &["-db", "-f", &config]);
    let _nginx = srv.nginx(
        OTHER,
        7002,
        "listen [::]:7001 ipv6only=off proxy_protocol; return 200 '$proxy_protocol_addr $http_x_isthmus_identity';",
    );
    let services = mesh.agentctl(&["service", "list", "-o", "json"]).json();
    let all = services.as_array().expect("a list");
    let client = all.iter().find(|it| it["name"] == "client").expect("the client is there");
    let client = client["workloads"][0]["ipv4"].as_str().expect("an address").to_owned();
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        // Two in a row: the connection to the application is kept.
        for _ in 0..2 {
            let url = "http://ha.prod.mesh.internal:7000/";
            let answer = app.curl(CLIENT, &["-4", version, url]).expect_success();
            assert_eq!(answer, format!("{client} 1.1"));
            let url = "http://ng.prod.mesh.internal:7001/";
            let answer = app.curl(CLIENT, &["-4", version, url]).expect_success();
            assert_eq!(answer, format!("{client} spiffe://corp.example/ns/prod/sa/client"));
        }
    }
}
