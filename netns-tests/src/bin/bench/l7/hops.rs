//! Hops that are compared: proxies between a client and an application, all on one host's
//! loopback. Each looks at the method and the path, adds a header, and keeps connections.

use std::fs;
use std::time::Duration;

use isthmus_netns_tests::{Lab, Node, Process, wait_for};

use super::path::{GENERATORS_CPU, HOPS_CPU, Hop, NO_PROXY, Path, Targets};
use crate::Options;
use crate::noise::which;

/// What ratios refer to.
pub(crate) const HAPROXY: &str = "haproxy";

/// The application's ports: HTTP/1.1, and HTTP/2 with prior knowledge.
pub(crate) const HTTP1: u16 = 9000;
pub(crate) const HTTP2: u16 = 9002;
/// The same again, for services that share a host.
pub(crate) const MORE_HTTP1: [u16; 2] = [9003, 9005];
pub(crate) const MORE_HTTP2: [u16; 2] = [9004, 9006];

const START: Duration = Duration::from_secs(20);

/// Our proxy alone, without tunnel and agent.
const OURS: [(&str, &str); 3] = [
    ("isthmus hop, client's side", "--side client"),
    ("isthmus hop, server's side", "--side server"),
    ("isthmus hop, 10,000 rules", "--side server --rules 10000 --routes 10000"),
];

/// The host of all these.
pub(crate) struct Yard {
    pub(crate) node: Node,
    pub(crate) bench: String,
}

impl Yard {
    pub(crate) fn new(lab: &Lab) -> Self {
        let bench = lab.folder().join("bench");
        let own = std::env::current_exe().expect("a program knows its own path");
        fs::copy(own, &bench).expect("the lab's folder can be written");
        Self { node: lab.node("yard"), bench: bench.display().to_string() }
    }

    pub(crate) fn no_proxy(&self) -> Path {
        self.path(NO_PROXY, [Some(HTTP1), Some(HTTP2), Some(HTTP2)], Hop::None)
    }

    fn path(&self, name: &str, ports: [Option<u16>; 3], hop: Hop) -> Path {
        let [http1, http2, grpc] = ports.map(|port| port.map(|port| format!("127.0.0.1:{port}")));
        Path {
            name: name.to_owned(),
            client: self.node.clone(),
            user: None,
            targets: Targets { http1, http2, grpc },
            hop,
            bench: self.bench.clone(),
        }
    }

    /// A path by programs that are started by these lines.
    fn hop(&self, name: &str, ports: [Option<u16>; 3], lines: Vec<String>) -> Path {
        let (node, name_of_log) = (self.node.clone(), name.replace(' ', "-"));
        let start = move || {
            let spawn = |line: &String| {
                node.spawn_sh(&name_of_log, &format!("exec taskset -c {HOPS_CPU} {line}"))
            };
            let running: Vec<Process> = lines.iter().map(spawn).collect();
            for port in ports.into_iter().flatten() {
                wait_until_listening(&node, port);
            }
            running
        };
        let running = start();
        self.path(name, ports, Hop::Programs { start: Box::new(start), running })
    }

    fn file(&self, name: &str, text: &str) -> String {
        let file = self.node.folder().join(name);
        fs::write(&file, text).expect("the lab's folder can be written");
        file.display().to_string()
    }
}

/// Starts nginx with the bodies that are asked for.
pub(crate) fn application(node: &Node) -> Process {
    let folder = node.folder().join("application");
    let files = folder.join("bench");
    fs::create_dir_all(&files).expect("the lab's folder can be written");
    for (name, bytes) in [("1k", 1024_u32), ("100k", 100 * 1024)] {
        let body = vec![b'x'; bytes as usize];
        let message = [&[0][..], &bytes.to_be_bytes(), &body].concat();
        fs::write(files.join(name), body).expect("the lab's folder can be written");
        fs::write(files.join(format!("Unary{name}")), message)
            .expect("the lab's folder can be written");
    }
    let ports = |ports: &[u16], mode: &str| {
        ports.iter().map(|port| format!("listen {port} {mode};\n")).collect::<String>()
    };
    // A POST for a file is refused with 405: that becomes the file, and so a unary call's answer. Where
    // includes could be, its length isn't known: HAProxy passes trailers only then.
    let text = format!(
        "{}server {{ root {folder};\n{}{}{}{}\
         location /bench/ {{ }}\n\
         location /bench/Unary {{ default_type application/grpc; add_trailer grpc-status 0;\n\
         ssi on; ssi_types application/grpc;\n\
         error_page 405 =200 $uri; }} }} }}\n",
        nginx_start(node, "application"),
        ports(&[HTTP1], "reuseport"),
        ports(&MORE_HTTP1, ""),
        ports(&[HTTP2], "http2"),
        ports(&MORE_HTTP2, "http2"),
        folder = folder.display(),
    );
    let file = node.folder().join("application.conf");
    fs::write(&file, text).expect("the lab's folder can be written");
    let nginx = node.spawn_sh(
        "application",
        &format!("exec taskset -c {GENERATORS_CPU} nginx -c {} -e stderr", file.display()),
    );
    wait_until_listening(node, HTTP2);
    nginx
}

/// A configuration of one process up to its servers. With `sendfile` nginx sends head and body by
/// HTTP/2 apart, and Nagle's algorithm holds the second one for 40 ms.
fn nginx_start(node: &Node, name: &str) -> String {
    let folder = node.folder().display();
    format!(
        "daemon off; master_process off; worker_processes 1; worker_rlimit_nofile 10000;\n\
         pid {folder}/{name}.pid; error_log stderr crit;\n\
         events {{ worker_connections 5000; }}\n\
         http {{ access_log off; keepalive_timeout 600s; keepalive_requests 1000000000;\n\
         http2_max_concurrent_streams 256; sendfile off; open_file_cache max=100;\n\
         client_body_temp_path {folder}/{name}-tmp; proxy_temp_path {folder}/{name}-tmp;\n\
         fastcgi_temp_path {folder}/{name}-tmp; uwsgi_temp_path {folder}/{name}-tmp;\n\
         scgi_temp_path {folder}/{name}-tmp;\n"
    )
}

/// Waits for a listener on a port.
fn wait_until_listening(node: &Node, port: u16) {
    wait_for("the program listens", START, || {
        !node.sh(&format!("ss -Hltn 'sport = :{port}'")).is_empty()
    });
}

/// All that are installed.
pub(crate) fn all(
    yard: &Yard,
    options: &Options,
    wanted: &impl Fn(&str) -> bool,
    notes: &mut Vec<String>,
) -> Vec<Path> {
    let mut paths = Vec::new();
    let mut add = |name: &str, program: Option<String>, make: &dyn Fn(&Yard, &str) -> Path| {
        if !wanted(name) {
            return;
        }
        match program {
            Some(program) => paths.push(make(yard, &program)),
            None => notes.push(format!("{name} isn't installed: not measured")),
        }
    };
    add(HAPROXY, which("haproxy"), &haproxy);
    add("nginx", which("nginx"), &nginx);
    let envoy = options.envoy.as_ref().map(|it| it.display().to_string());
    add("envoy", envoy.or_else(|| which("envoy")), &envoy_hop);
    for (name, arguments) in OURS {
        add(name, ours_alone(), &|yard, program| ours(yard, program, name, arguments));
    }
    if let Some(folder) = &options.ceiling {
        let program = |name: &str| Some(folder.join(name).display().to_string());
        add("floor raw", program("raw"), &floor_raw);
        add("floor hyper", program("hp"), &floor_hyper);
        add("floor copy", program("tcpcp"), &floor_copy);
    }
    paths
}

fn haproxy(yard: &Yard, program: &str) -> Path {
    let side = |name: &str, port: u16, application: u16, proto: &str| {
        format!(
            "frontend {name}\n bind 127.0.0.1:{port} {proto}\n \
             http-request deny unless {{ method GET POST }} {{ path_beg /bench/ }}\n \
             use_backend to-{name} if {{ path_beg /bench/ }}\n\
             backend to-{name}\n server one 127.0.0.1:{application} {proto}\n"
        )
    };
    let text = format!(
        "global\n nbthread 1\n maxconn 9000\n tune.h2.max-concurrent-streams 256\n\
         defaults\n mode http\n option forwardfor\n http-reuse always\n \
         timeout connect 5s\n timeout client 600s\n timeout server 600s\n{}{}",
        side("http1", 8110, HTTP1, ""),
        side("http2", 8112, HTTP2, "proto h2"),
    );
    let file = yard.file("haproxy.cfg", &text);
    yard.hop(HAPROXY, ports(8110, 8112), vec![format!("{program} -db -f {file}")])
}

fn nginx(yard: &Yard, program: &str) -> Path {
    let text = format!(
        "{}upstream http1 {{ server 127.0.0.1:{HTTP1}; keepalive 512; keepalive_requests 1000000000; }}\n\
         upstream http2 {{ server 127.0.0.1:{HTTP2}; keepalive 512; keepalive_requests 1000000000; }}\n\
         proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_set_header Host $http_host;\n\
         proxy_set_header X-Forwarded-For $remote_addr; grpc_set_header X-Forwarded-For $remote_addr;\n\
         server {{ listen 127.0.0.1:8120 reuseport; listen 127.0.0.1:8122 http2;\n\
         location /bench/ {{ limit_except GET POST {{ deny all; }} proxy_pass http://http1; }}\n\
         location /bench/Unary {{ grpc_pass grpc://http2; }} }} }}\n",
        nginx_start(&yard.node, "nginx-hop"),
    );
    let file = yard.file("nginx-hop.conf", &text);
    yard.hop("nginx", ports(8120, 8122), vec![format!("{program} -c {file} -e stderr")])
}

fn envoy_hop(yard: &Yard, program: &str) -> Path {
    let listener = |name: &str, port: u16| {
        format!(
            r#"  - name: {name}
    address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: {name}
          codec_type: AUTO
          use_remote_address: true
          http2_protocol_options: {{ max_concurrent_streams: 256 }}
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {{ prefix: /bench/, headers: [{{ name: ":method", string_match: {{ safe_regex: {{ regex: "GET|POST" }} }} }}] }}
                route: {{ cluster: {name} }}
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{ "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }}
"#
        )
    };
    let cluster = |name: &str, port: u16, protocol: &str| {
        format!(
            r#"  - name: {name}
    type: STATIC
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{ {protocol}: {{}} }}
    load_assignment:
      cluster_name: {name}
      endpoints:
      - lb_endpoints:
        - endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }} }}
"#
        )
    };
    let text = format!(
        "static_resources:\n  listeners:\n{}{}  clusters:\n{}{}",
        listener("http1", 8130),
        listener("http2", 8132),
        cluster("http1", HTTP1, "http_protocol_options"),
        cluster("http2", HTTP2, "http2_protocol_options"),
    );
    let file = yard.file("envoy.yaml", &text);
    let line =
        format!("{program} -c {file} --concurrency 1 --disable-hot-restart --log-level warn");
    yard.hop("envoy", ports(8130, 8132), vec![line])
}

/// The example of `agent/proxy` that runs it alone, if it was built.
fn ours_alone() -> Option<String> {
    let own = std::env::current_exe().ok()?;
    let program = own.parent()?.join("examples/hop");
    program.is_file().then(|| program.display().to_string())
}

fn ours(yard: &Yard, program: &str, name: &str, arguments: &str) -> Path {
    let is_client = arguments.contains("client");
    let address = if is_client { "127.64.0.2" } else { "127.64.2.2" };
    // All of them run all the time.
    let first = if arguments.contains("--rules") { 15_005 } else { 15_001 };
    let [http1, http2] = [(first, HTTP1, "auto"), (first + 2, HTTP2, "2")];
    let line = |(port, application, version): (u16, u16, &str)| {
        format!("{program} {arguments} --listen {port} --backend {application} --http {version}")
    };
    let mut path = yard.hop(name, ports(http1.0, http2.0), vec![line(http1), line(http2)]);
    // To another host's proxy all but gRPC goes by HTTP/1.1.
    let by_http2 = if is_client { http1.0 } else { http2.0 };
    let at = |port: u16| Some(format!("{address}:{port}"));
    path.targets = Targets { http1: at(http1.0), http2: at(by_http2), grpc: at(http2.0) };
    path
}

fn floor_raw(yard: &Yard, program: &str) -> Path {
    let line = format!("{program} --listen 127.0.0.1:8140 --up 127.0.0.1:{HTTP1}");
    yard.hop("floor raw", [Some(8140), None, None], vec![line])
}

fn floor_hyper(yard: &Yard, program: &str) -> Path {
    let line = |port: u16, application: u16, proto: &str| {
        format!(
            "{program} --rt ct --proto {proto} --listen 127.0.0.1:{port} --up 127.0.0.1:{application}"
        )
    };
    let lines = vec![line(8150, HTTP1, "h1"), line(8152, HTTP2, "h2")];
    yard.hop("floor hyper", ports(8150, 8152), lines)
}

fn floor_copy(yard: &Yard, program: &str) -> Path {
    let line = |port: u16, application: u16| {
        format!("{program} --listen 127.0.0.1:{port} --up 127.0.0.1:{application}")
    };
    let lines = vec![line(8160, HTTP1), line(8162, HTTP2)];
    yard.hop("floor copy", ports(8160, 8162), lines)
}

/// One port for HTTP/1.1, one for HTTP/2 and gRPC.
const fn ports(http1: u16, http2: u16) -> [Option<u16>; 3] {
    [Some(http1), Some(http2), Some(http2)]
}
