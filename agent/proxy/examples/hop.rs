//! The proxy alone, as one hop on loopback, to be measured beside others: policy, routes, identity,
//! metrics and log are as in the agent. Nothing but the kernel's loopback leads to it.
//!
//! ```text
//!   hop --side client   127.0.0.1 ─▶ 127.64.0.2:15001 ══ as 127.64.1.1 ══▶ 127.64.2.2:9000
//!   hop --side server   127.0.0.1 ─▶ 127.64.2.2:15001 ────────────────────▶ 127.64.2.2:9000
//! ```
//!
//! `--listen PORT` and `--backend PORT` choose other ports (so that the one can lead to the other),
//! `--http 2` is as the service's `http`; `--routes N` and `--rules N` add some that don't fit, `--log LEVELS` and `--log-sample SHARE` are as in the agent's settings,
//! `--threads N` is 1 unless given.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::str::FromStr;
use std::sync::Arc;

use isthmus_model::topology::{SourceFile, Topology, parse};
use isthmus_model::{
    Application, Balance, Host, HostId, HttpVersion, Mesh, MeshPrefix, Protocol, PublicKey,
    Revision, Service, ServiceId, Snapshot,
};
use isthmus_policy::Policy;
use isthmus_proxy::{GatewayIo, Metrics, Options, ProxySnapshot, Speaker};
use socket2::{Domain, Socket, Type};
use tokio::sync::watch;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// The workloads of the caller and of `web`, and the address by which callers know `web`.
const CLIENT: Ipv4Addr = Ipv4Addr::new(127, 64, 1, 1);
const WEB: Ipv4Addr = Ipv4Addr::new(127, 64, 2, 2);
const WEB_VIRTUAL: Ipv4Addr = Ipv4Addr::new(127, 64, 0, 2);
const NOBODY: Ipv4Addr = Ipv4Addr::new(127, 64, 0, 9);

#[derive(Clone, Copy, PartialEq)]
enum Side {
    Client,
    Server,
}

fn main() -> Result<()> {
    let log: Targets = option("--log", "info")?;
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    tracing_subscriber::registry().with(layer.with_filter(log)).init();
    let side = match option::<String>("--side", "server")?.as_str() {
        "client" => Side::Client,
        "server" => Side::Server,
        other => return Err(format!("--side is client or server, not {other:?}").into()),
    };
    let topology = topology(option("--routes", "1")?, option("--rules", "1")?)?;
    let http = match option::<String>("--http", "auto")?.as_str() {
        "2" => HttpVersion::Http2,
        _ => HttpVersion::Auto,
    };
    let application = Application { http, ..Application::default() };
    let backend = (option("--backend", "9000")?, application);
    let snapshot = Arc::new(snapshot(side, backend, topology)?);
    let policy = Arc::new(Policy::for_snapshot(&snapshot));
    let (_views, view) = watch::channel(Arc::new(ProxySnapshot::new(snapshot, policy)));
    let local = if side == Side::Client { WEB_VIRTUAL } else { WEB };
    let listener = TcpListener::bind((local, option("--listen", "15001")?))?;

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let metrics = Arc::new(Metrics::default());
        metrics.sample_access_log(option("--log-sample", "0.01")?);
        let options = Options {
            threads: option("--threads", "1")?,
            drain: std::time::Duration::ZERO,
            request: std::time::Duration::from_secs(3600),
            body_idle: std::time::Duration::from_secs(60),
            leaving: Arc::default(),
        };
        let never = std::future::pending();
        isthmus_proxy::serve(
            options,
            vec![listener],
            GatewayIo::nowhere(),
            view,
            metrics,
            bind,
            never,
        )
        .await?;
        Ok(())
    })
}

/// Value of a named argument.
fn option<T: FromStr>(name: &str, default: &str) -> Result<T> {
    let given = std::env::args().skip_while(|it| it != name).nth(1);
    let text = given.unwrap_or_else(|| default.to_owned());
    text.parse().map_err(|_| format!("{name} can't be {text:?}").into())
}

fn topology(routes: usize, rules: usize) -> Result<Topology> {
    let mut text = String::from(
        "[host.a]\n[host.b]\n\
         [service.client]\nport = 1\nprotocol = \"http\"\nhosts = [\"a\"]\n\
         [service.web]\nport = 1\nprotocol = \"http\"\nhosts = [\"b\"]\n",
    );
    for n in 1..routes {
        text += &format!(
            "[[route.web]]\nname = \"r{n}\"\nmatch = {{ path = {{ prefix = \"/r{n}\" }} }}\n\
             to = [{{ service = \"web\" }}]\n"
        );
    }
    text += "[[route.web]]\nname = \"all\"\nto = [{ service = \"web\" }]\n";
    let allow = "from = \"service:client\"\nto = \"service:web\"\n";
    for n in 1..rules {
        text += &format!(
            "[[allow]]\nname = \"a{n}\"\n{allow}http = [{{ method = \"GET\", path = \"/a{n}\" }}]\n"
        );
    }
    text += &format!("[[allow]]\nname = \"all\"\n{allow}");
    let file = SourceFile { name: "hop.toml".into(), text };
    parse(&[file]).map_err(|errors| format!("{errors:#?}").into())
}

fn snapshot(
    side: Side,
    (port, application): (u16, Application),
    topology: Topology,
) -> Result<Snapshot> {
    // Who comes by loopback is the caller, at the address that the side knows it by.
    let (seen, placed) = match side {
        Side::Client => (Ipv4Addr::LOCALHOST, CLIENT),
        Side::Server => (NOBODY, Ipv4Addr::LOCALHOST),
    };
    let service = |name: &str, virtual_ipv4, placement| -> Result<Service> {
        Ok(Service {
            name: name.parse()?,
            namespace: "prod".parse()?,
            port,
            protocol: Protocol::Http,
            more: Vec::new(),
            virtual_ipv4,
            placements: BTreeMap::from([placement]),
            leaving: Default::default(),
            selectors: Vec::new(),
            balance: Balance::default(),
            edge: None,
            application,
            paths: isthmus_model::PathMode::default(),
            guard: isthmus_model::PortGuard::default(),
            aliases: Vec::new(),
        })
    };
    let host = |name: &str, ipv4_block: &str| -> Result<Host> {
        Ok(Host {
            name: name.parse()?,
            site: None,
            labels: BTreeMap::new(),
            public_key: PublicKey([0; 32]),
            former_key: None,
            endpoints: Vec::new(),
            ipv4_block: ipv4_block.parse()?,
        })
    };
    let (a, b) = (HostId(1), HostId(2));
    Ok(Snapshot {
        revision: Revision(1),
        mesh: Mesh {
            name: "corp".parse()?,
            trust_domain: "corp.example".parse()?,
            prefix: MeshPrefix::new([0xfd, 1, 2, 3, 4, 5])?,
            ipv4: "127.0.0.0/8".parse()?,
            virtual_ipv4: "127.64.0.0/24".parse()?,
        },
        local: if side == Side::Client { a } else { b },
        hosts: [(a, host("a", "127.64.1.0/24")?), (b, host("b", "127.64.2.0/24")?)].into(),
        services: [
            (ServiceId(1), service("client", seen, (a, placed))?),
            (ServiceId(2), service("web", WEB_VIRTUAL, (b, WEB))?),
        ]
        .into(),
        devices: BTreeMap::new(),
        rules: topology.rules,
        routes: topology.routes,
        limits: Vec::new(),
    })
}

/// As the agent does, but for the mark, which takes a privilege.
fn bind(speaker: Speaker) -> std::io::Result<TcpStream> {
    let source = speaker.address();
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::new(source, 0).into())?;
    Ok(socket.into())
}
