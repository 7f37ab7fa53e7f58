//! The mesh's edge: clients from outside come in by a gateway, callers reach external servers.

mod streams;

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use isthmus_netns_tests::{Host, Mesh, Node, Output, Process, wait_for};

const SHOP: u32 = 40_021;
const CLIENT: u32 = 40_022;
const OUTSIDE: u32 = 40_023;
const SOON: Duration = Duration::from_secs(20);

/// A certificate authority in a folder of its own.
struct Authority {
    folder: PathBuf,
}

impl Authority {
    fn new(mesh: &Mesh, name: &str) -> Self {
        let folder = mesh.lab.folder().join(name);
        std::fs::create_dir_all(&folder).expect("the lab's folder can be written");
        let authority = Self { folder };
        authority.openssl(&format!(
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN={name} \
             -keyout ca.key -out ca.pem"
        ));
        authority
    }

    /// A certificate for a name, with its key beside it.
    fn issue(&self, file: &str, name: &str, days: u32) -> String {
        let kind = if name.parse::<IpAddr>().is_ok() { "IP" } else { "DNS" };
        self.openssl(&format!(
            "openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN={name} \
             -keyout {file}.key.new -out {file}.csr && \
             printf 'subjectAltName={kind}:{name}' >{file}.ext && \
             openssl x509 -req -in {file}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days {days} \
             -extfile {file}.ext -out {file}.pem.new && \
             chmod 600 {file}.key.new && mv {file}.key.new {file}.key && mv {file}.pem.new {file}.pem"
        ));
        self.path(&format!("{file}.pem"))
    }

    fn path(&self, file: &str) -> String {
        self.folder.join(file).display().to_string()
    }

    fn tls(&self, file: &str) -> String {
        format!(
            "certificate = \"{}\", key = \"{}\"",
            self.path(&format!("{file}.pem")),
            self.path(&format!("{file}.key"))
        )
    }

    fn openssl(&self, line: &str) {
        let mut command = std::process::Command::new("sh");
        command.current_dir(&self.folder).args(["-c", &format!("({line}) 2>&1")]);
        let _ = Output::of(command).expect_success();
    }
}

/// A machine on the underlay that knows nothing of the mesh.
fn stranger(mesh: &Mesh) -> Node {
    let node = mesh.lab.node("stranger");
    mesh.lab.plug(&node, &mesh.switch, &["10.9.0.99/24".into(), "fd09::99/64".into()], 1500);
    node
}

/// `curl` from outside of the mesh.
fn curl(stranger: &Node, arguments: &[&str]) -> Output {
    let mut command = stranger.command("curl");
    command.args(["-sS", "--max-time", "5"]).args(arguments);
    Output::of(command)
}

fn at_edge(host: &str, port: u16) -> String {
    format!("{host}:{port}:10.9.0.11")
}

fn is_listening(host: &Host, port: u16) -> bool {
    !host.node.sh(&format!("ss -Hltn 'sport = :{port}'")).is_empty()
}

const SERVICES: &str = r#"
[host.edge-1]
[host.app-1]

[service.shop]
namespace = "prod"
port = 8080
protocol = "http"
hosts = ["app-1"]
workload = { user = "40021" }

[[route.public]]
name = "shop"
match = { path = { prefix = "/" } }
to = [{ service = "shop" }]
response_headers = { set = { strict-transport-security = "max-age=3600" } }

[[allow]]
name = "the world reads the shop"
from = "service:public"
to = "service:shop"
http = [{ method = "GET" }]
"#;

const SAYS: &str = "location / { return 200 '$http_host $http_x_isthmus_identity $http_x_forwarded_for $http_x_forwarded_proto $http_x_forwarded_host $http_x_forwarded_client_cert'; }";

/// Asks for a host by HTTPS, with more options of curl's.
type Get<'a> = &'a dyn Fn(&str, &[&str]) -> Output;

#[test]
fn strangers_come_in_by_the_gateway() {
    let mesh = Mesh::new(&["edge-1", "app-1"]);
    let authority = Authority::new(&mesh, "public-ca");
    let clients = Authority::new(&mesh, "clients-ca");
    let _ = authority.issue("shop", "shop.example", 1);
    let _ = authority.issue("other", "other.example", 1);
    let _ = authority.issue("staff", "staff.example", 1);
    let _ = clients.issue("ann", "ann", 1);
    mesh.apply(&format!("{SERVICES}{}", listeners(&authority, &clients)));
    let _shop = mesh.host("app-1").nginx(SHOP, 8080, SAYS);
    let edge = mesh.host("edge-1");
    wait_for("the gateway listens", SOON, || is_listening(edge, 80) && is_listening(edge, 443));
    let stranger = stranger(&mesh);
    let ca = authority.path("ca.pem");
    let get = |host: &str, more: &[&str]| {
        let (resolve, url) = (at_edge(host, 443), format!("https://{host}/a"));
        let fixed =
            ["--cacert", &ca, "--resolve", &resolve, "-w", "\n%{http_code} %{http_version}"];
        curl(&stranger, &[&fixed[..], more, &[&url]].concat())
    };
    served_by_both_versions(&get);
    assert!(get("other.example", &[]).expect_success().ends_with("200 2"));
    let head = get("shop.example", &["-i"]).expect_success();
    assert!(head.contains("strict-transport-security: max-age=3600"), "{head}");

    // In the clear: sent to HTTPS.
    let resolve = at_edge("plain.example", 80);
    let moved = curl(
        &stranger,
        &["--resolve", &resolve, "-w", "%{http_code} %{redirect_url}", "http://plain.example/x?y"],
    );
    assert_eq!(moved.expect_success(), "301 https://plain.example/x?y");

    // The policy says what the world may do.
    assert!(get("shop.example", &["-X", "DELETE"]).expect_success().ends_with("403 2"));

    only_who_has_a_certificate(&get, &authority, &clients);
    no_name_leads_around_a_certificate(&stranger);
    // A name that nobody serves.
    let _ = get("nobody.test", &["-k"]).expect_failure();

    // Old TLS isn't spoken.
    let old = stranger.try_sh("echo | openssl s_client -connect 10.9.0.11:443 -servername shop.example -tls1_1 -cipher DEFAULT@SECLEVEL=0 2>&1");
    let said = old.expect_failure();
    assert!(said.contains("SSL alert number"), "{said}");

    // `agentctl` shows the listeners and when their certificates expire.
    let status = edge.status();
    let listeners = status["gateways"].as_array().expect("a list").clone();
    assert_eq!(listeners.len(), 4, "{status}");
    assert!(listeners[1]["certificate_expires"].is_string(), "{status}");

    new_certificates_are_shown(&stranger, edge, &authority);
    // A gateway that is no longer declared is closed.
    let without: String =
        SERVICES.split("[[").filter(|part| !part.contains("public")).collect::<Vec<_>>().join("[[");
    mesh.apply(&without);
    wait_for("the gateway closes", SOON, || !is_listening(edge, 443));
}

/// A gateway that sends to HTTPS, and serves three names; one of them for those with a certificate.
fn listeners(authority: &Authority, clients: &Authority) -> String {
    format!(
        "[gateway.public]\nnamespace = \"prod\"\nhosts = [\"edge-1\"]\n\
         [[gateway.public.listeners]]\nport = 80\nhttps_redirect = true\n\
         [[gateway.public.listeners]]\nport = 443\nhosts = [\"shop.example\"]\ntls = {{ {} }}\n\
         [[gateway.public.listeners]]\nport = 443\nhosts = [\"*.example\"]\ntls = {{ {} }}\n\
         [[gateway.public.listeners]]\nport = 443\nhosts = [\"staff.example\"]\n\
         tls = {{ {}, client_ca = \"{}\" }}\n",
        authority.tls("shop"),
        authority.tls("other"),
        authority.tls("staff"),
        clients.path("ca.pem"),
    )
}

/// By both versions, with the certificate of the name that was asked for; claims don't pass.
fn served_by_both_versions(get: Get<'_>) {
    let identity = "spiffe://corp.example/ns/prod/sa/public";
    let claims = [
        "-H",
        "x-isthmus-identity: spiffe://corp.example/ns/prod/sa/root",
        "-H",
        "x-forwarded-for: 1.2.3.4",
        "-H",
        "x-forwarded-client-cert: Hash=00",
        "-H",
        "connection: x-forwarded-proto",
    ];
    for (flag, version) in [("--http1.1", "1.1"), ("--http2", "2")] {
        wait_for("the gateway serves", SOON, || {
            let answer = get("shop.example", &[flag]);
            answer.success() && answer.expect_success().contains("\n200")
        });
        // Connection is no field of HTTP/2.
        let claims = if version == "2" { &claims[..6] } else { &claims[..] };
        let answer = get("shop.example", &[&[flag][..], claims].concat()).expect_success();
        let (text, status) = answer.split_once('\n').expect("curl tells the status");
        assert_eq!(status, format!("200 {version}"));
        let seen: Vec<&str> = text.split(' ').collect();
        assert_eq!(&seen[..3], ["shop.example", identity, "10.9.0.99,"], "{text}");
        assert_eq!(&seen[4..], ["https", "shop.example", ""], "{text}");
    }
}

/// A listener that asks for certificates: none, a stranger's, a good one.
fn only_who_has_a_certificate(get: Get<'_>, authority: &Authority, clients: &Authority) {
    let _ = get("staff.example", &[]).expect_failure();
    let _ = authority.issue("mallory", "mallory", 1);
    let (key, cert) = (authority.path("mallory.key"), authority.path("mallory.pem"));
    let _ = get("staff.example", &["--key", &key, "--cert", &cert]).expect_failure();
    let (key, cert) = (clients.path("ann.key"), clients.path("ann.pem"));
    let shown = get("staff.example", &["--key", &key, "--cert", &cert]).expect_success();
    assert!(shown.contains("Subject=\"CN=ann\";DNS=\"ann\""), "{shown}");
    // Nobody reaches it through a connection that was made for another name, however it is written.
    for name in ["staff.example", "staff.example.", "STAFF.example.:443"] {
        let fronted = get("shop.example", &["-H", &format!("host: {name}")]).expect_success();
        assert!(fronted.contains("421"), "{name}: {fronted}");
    }
}

fn no_name_leads_around_a_certificate(stranger: &Node) {
    let by_hand = |name: &str, agreed: &str, host: &str| {
        let text = stranger.try_sh(&format!(
            "printf 'GET /a HTTP/1.1\\r\\nhost: {host}\\r\\nconnection: close\\r\\n\\r\\n' | timeout 5 \
             openssl s_client -quiet -connect 10.9.0.11:443 -servername {name} -alpn {agreed} 2>&1"
        ));
        text.stdout.contains("HTTP/1.1 200")
    };
    assert!(by_hand("shop.example", "http/1.1", "shop.example"));
    for name in ["staff.example.", "STAFF.example"] {
        assert!(!by_hand(name, "http/1.1", "staff.example"), "{name}, without a certificate");
    }
    // What was agreed on is what is spoken (RFC 9113 section 3.2).
    assert!(!by_hand("shop.example", "h2", "shop.example"), "HTTP/1.1 where HTTP/2 was agreed on");
}

/// A new certificate is taken without a restart.
fn new_certificates_are_shown(stranger: &Node, edge: &Host, authority: &Authority) {
    let fingerprint = || {
        stranger.sh("echo | openssl s_client -connect 10.9.0.11:443 -servername shop.example 2>/dev/null | openssl x509 -noout -serial")
    };
    let before = fingerprint();
    let _ = authority.issue("shop", "shop.example", 2);
    wait_for("the new certificate is shown", SOON, || fingerprint() != before);
    // A broken one isn't: the last good one stays, and the operator is told.
    let after = fingerprint();
    std::fs::write(authority.path("shop.pem"), "broken").expect("the folder is ours");
    wait_for("the problem is told", SOON, || {
        edge.agentctl(&["status"]).expect_success().contains("shop.pem holds no certificate")
    });
    assert_eq!(fingerprint(), after);
}

/// The external server: it says how it was asked, and with which certificate.
fn payments(mesh: &Mesh, authority: &Authority) -> Process {
    // Its worker runs as a user that may read the key.
    authority.openssl("chmod 755 . && chmod 644 payments.key");
    let config = format!(
        "listen 8443 ssl; ssl_certificate {}; ssl_certificate_key {}; \
         ssl_client_certificate {}; ssl_verify_client optional; \
         location / {{ return 200 '$scheme $http_host $ssl_client_s_dn $remote_addr $http_x_isthmus_identity $uri'; }}",
        authority.path("payments.pem"),
        authority.path("payments.key"),
        authority.path("ca.pem"),
    );
    mesh.host("payments").nginx(OUTSIDE, 8081, &config)
}

/// A client that may pay, and more keys of the external server.
fn paying(external: &str) -> String {
    format!(
        r#"
[host.app-1]
[host.edge-1]

[service.client]
namespace = "prod"
port = 9000
hosts = ["app-1"]
workload = {{ user = "40022" }}

[external.payments]
namespace = "prod"
host = "payments.example"
target_port = 8443
{external}

[[allow]]
name = "the client pays"
from = "service:client"
to = "service:payments"
http = [{{ method = "GET", path = "/charges/*" }}]
"#
    )
}

#[test]
fn callers_reach_external_servers_by_name() {
    let mut mesh = Mesh::new(&["app-1", "edge-1"]);
    // It runs an agent that never joins: a plain host.
    let _ = mesh.add_host("payments");
    let authority = Authority::new(&mesh, "payments-ca");
    let _ = authority.issue("payments", "payments.example", 1);
    let _ = authority.issue("us", "us.example", 1);
    let _nginx = payments(&mesh, &authority);
    for host in ["app-1", "edge-1"] {
        mesh.host(host).write_hosts("127.0.0.1 localhost\n10.9.0.13 payments.example\n");
        let host = mesh.host_mut(host);
        let _ = host.agent().terminate(SOON);
        host.start_agent();
    }
    let ca = authority.path("ca.pem");
    let app = mesh.host("app-1");
    let ask = |path: &str, more: &[&str]| {
        let url = format!("http://payments.prod.mesh.internal{path}");
        app.curl(CLIENT, &[&["-w", "\n%{http_code}", &url], more].concat())
    };
    let answers = |wanted: &str| ask("/charges/1", &[]).expect_success() == wanted;

    // From the caller's own host, verified by the CA that is given.
    mesh.apply(&paying(&format!("tls = {{ ca = \"{ca}\" }}")));
    let direct = "https payments.example:8443  10.9.0.11  /charges/1\n200";
    wait_for("the server answers", SOON, || answers(direct));
    assert!(ask("/refunds/1", &[]).expect_success().ends_with("\n403"));
    assert!(ask("/charges/1", &["-X", "POST"]).expect_success().ends_with("\n403"));

    // By the gateway's host, with a certificate of ours.
    mesh.apply(&paying(&format!(
        "via = [\"edge-1\"]\ntls = {{ ca = \"{ca}\", {} }}",
        authority.tls("us")
    )));
    let via = "https payments.example:8443 CN=us.example 10.9.0.12  /charges/1\n200";
    wait_for("the server answers by the gateway", SOON, || answers(via));
    assert!(ask("/refunds/1", &[]).expect_success().ends_with("\n403"));

    // A server that isn't who it should be gets nothing: not the name, not the authority.
    let other = format!("tls = {{ ca = \"{ca}\", server_name = \"other.example\" }}");
    mesh.apply(&paying(&other));
    wait_for("the wrong name is refused", SOON, || {
        ask("/charges/1", &[]).expect_success().ends_with("\n503")
    });
    mesh.apply(&paying("tls = true"));
    wait_for("an unknown authority is refused", SOON, || {
        ask("/charges/1", &[]).expect_success().ends_with("\n503")
    });

    // Its address changes: the name is asked for again.
    mesh.apply(&paying(&format!("tls = {{ ca = \"{ca}\" }}")));
    wait_for("the server answers again", SOON, || answers(direct));
    app.write_hosts("127.0.0.1 localhost\n10.9.0.1 payments.example\n");
    wait_for("the old address is forgotten", SOON, || {
        ask("/charges/1", &[]).expect_success().ends_with("\n503")
    });
    app.write_hosts("127.0.0.1 localhost\n10.9.0.13 payments.example\n");
    wait_for("the new address is found", SOON, || answers(direct));
}

/// An authority of ACME, and the DNS that it asks, which sends it to the gateway for every name.
fn acme(stranger: &Node, authority: &Authority) -> [Process; 2] {
    let _ = authority.issue("acme", "10.9.0.99", 1);
    let config = format!(
        r#"{{"pebble": {{"listenAddress": "10.9.0.99:14000", "managementListenAddress": "10.9.0.99:15000",
            "certificate": "{}", "privateKey": "{}", "httpPort": 80, "tlsPort": 443}}}}"#,
        authority.path("acme.pem"),
        authority.path("acme.key")
    );
    let file = authority.path("pebble.json");
    std::fs::write(&file, config).expect("the folder is ours");
    let mut dns = stranger.command("pebble-challtestsrv");
    dns.args(["-defaultIPv4", "10.9.0.11", "-defaultIPv6", "", "-dns01", "10.9.0.99:8053"]);
    dns.args(["-management", "10.9.0.99:8055", "-http01", "", "-https01", "", "-tlsalpn01", ""]);
    let mut command = stranger.command("pebble");
    command.env("PEBBLE_VA_NOSLEEP", "1");
    command.args(["-strict", "-config", &file, "-dnsserver", "10.9.0.99:8053"]);
    let processes = [stranger.spawn("dns", dns), stranger.spawn("pebble", command)];
    wait_for("the authority listens", SOON, || {
        !stranger.sh("ss -Hltn 'sport = :14000'").is_empty()
            && !stranger.sh("ss -Hltn 'sport = :8055'").is_empty()
    });
    processes
}

#[test]
fn a_gateway_gets_its_certificates_by_acme() {
    let mut mesh = Mesh::new(&["edge-1", "app-1"]);
    let authority = Authority::new(&mesh, "acme-ca");
    let stranger = stranger(&mesh);
    let [_dns, pebble] = acme(&stranger, &authority);
    let ca = authority.path("ca.pem");
    let listener = |host: &str| {
        format!(
            "[[gateway.public.listeners]]\nport = 443\nhosts = [\"{host}\"]\n\
             tls = {{ acme = {{ directory = \"https://10.9.0.99:14000/dir\", ca = \"{ca}\", \
             email = \"ops@shop.example\" }} }}\n"
        )
    };
    let gateway = "[gateway.public]\nnamespace = \"prod\"\nhosts = [\"edge-1\"]\n";
    mesh.apply(&format!("{SERVICES}{gateway}{}", listener("shop.example")));
    let _shop = mesh.host("app-1").nginx(SHOP, 8080, SAYS);

    // Whoever trusts the authority reaches the shop.
    let root = authority.path("pebble-root.pem");
    let got = curl(&stranger, &["-k", "-o", &root, "https://10.9.0.99:15000/roots/0"]);
    let _ = got.expect_success();
    let resolve = at_edge("shop.example", 443);
    let ask = || {
        let fixed = ["--cacert", &root, "--resolve", &resolve, "-w", "\n%{http_code}"];
        curl(&stranger, &[&fixed[..], &["https://shop.example/"]].concat())
    };
    let is_served = || {
        let answer = ask();
        answer.success() && answer.expect_success().ends_with("\n200")
    };
    wait_for("the shop is served", SOON, is_served);
    let edge = mesh.host("edge-1");
    let status = edge.status();
    assert!(status["gateways"][0]["certificate_expires"].is_string(), "{status}");
    assert!(status["gateways"][0]["problem"].is_null(), "{status}");

    // Nobody is answered who asks for a challenge that isn't expected.
    let uninvited = stranger.try_sh(
        "echo | openssl s_client -connect 10.9.0.11:443 -servername shop.example -alpn acme-tls/1 2>&1",
    );
    let said = uninvited.expect_failure();
    assert!(said.contains("no peer certificate available"), "{said}");

    // What is wrong with a name is told, and the others stay.
    let mut moved = stranger.command("curl");
    moved.args(["-sS", "-d", r#"{"host": "elsewhere.example", "addresses": ["10.9.0.99"]}"#]);
    moved.arg("http://10.9.0.99:8055/add-a");
    let _ = Output::of(moved).expect_success();
    let both = format!("{}{}", listener("shop.example"), listener("elsewhere.example"));
    mesh.apply(&format!("{SERVICES}{gateway}{both}"));
    wait_for("the problem is told", SOON, || {
        edge.agentctl(&["status"]).expect_success().contains("gave no certificate")
    });
    let told = edge.agentctl(&["status"]).expect_success();
    assert!(told.contains("elsewhere.example") && told.contains("urn:ietf:params:acme"), "{told}");
    let _ = ask().expect_success();
    a_restarted_agent_uses_what_it_has(&mut mesh, &pebble, is_served);
}

/// Nobody is asked again.
fn a_restarted_agent_uses_what_it_has(
    mesh: &mut Mesh,
    pebble: &Process,
    is_served: impl FnMut() -> bool,
) {
    let issued = || pebble.output().matches("Issued certificate").count();
    assert_eq!(issued(), 1, "{}", pebble.output());
    let edge = mesh.host_mut("edge-1");
    let _ = edge.agent().terminate(SOON);
    edge.start_agent();
    wait_for("the shop is served again", SOON, is_served);
    assert_eq!(issued(), 1);
}
