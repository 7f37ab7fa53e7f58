//! The cost of peers to an agent: as root, `cargo run --release -p isthmus-agent --example peers`.
//!
//! Starts a real `isthmus-agent` in a network namespace of its own, by a snapshot with many hosts,
//! and looks at its memory and CPU time: while no host speaks, while some of them exchange packets
//! with a service on the agent's host, and after they have gone silent. The other hosts are
//! simulated, each with a tunnel, a bulk session and a UDP socket of its own.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "prints its table")]
#![expect(clippy::disallowed_methods, reason = "looks at what happens while time passes")]

mod measured;
mod simulated;

use std::net::UdpSocket;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Parser;
use isthmus_core::sim::{Builder, Topology};
use isthmus_model::Protocol;
use measured::Measured;
use simulated::Simulated;

/// The host whose agent is measured.
const HERE: u32 = 1;
const SERVICE: &str = "echo";
const SERVICE_PORT: u16 = 7;
/// Not the agent's: all sockets are in one namespace.
const PEERS_PORT: u16 = 51821;
const START: Duration = Duration::from_secs(30);

/// Shows what configured, active and silent peers cost an agent.
#[derive(Parser)]
struct Options {
    /// Hosts that the snapshot has, beside the agent's own.
    #[arg(long, default_value_t = 10_000)]
    configured: u32,
    /// Those of them that speak.
    #[arg(long, default_value_t = 1_000)]
    active: u32,
    /// How long to look in each stage, in seconds.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Packets that each active host sends in a second; each is answered.
    #[arg(long, default_value_t = 4)]
    rate: u32,
    /// How long to wait for the silent hosts' tunnels to be freed, in seconds.
    #[arg(long, default_value_t = 0)]
    rest: u64,
    /// The agent; else the one that was built beside this program.
    #[arg(long)]
    agent: Option<PathBuf>,
    /// The namespace is made.
    #[arg(long, hide = true)]
    inside: bool,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    if !options.inside {
        return enter_namespace();
    }
    run(&options)
}

/// Starts this program again where the underlay is a loopback device with all hosts' addresses.
fn enter_namespace() -> anyhow::Result<()> {
    let script = "ulimit -n 16384 && ip link set lo up && ip addr add 10.0.0.1/32 dev lo && \
                  ip route add local 10.0.0.0/8 dev lo src 10.0.0.1 && exec \"$@\" --inside";
    let error = Command::new("unshare")
        .args(["--net", "sh", "-c", script, "sh"])
        .arg(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .exec();
    Err(error).context("Failed to run unshare")
}

fn run(options: &Options) -> anyhow::Result<()> {
    let topology = topology(options.configured);
    let agent = match &options.agent {
        Some(agent) => agent.clone(),
        None => beside_us()?,
    };
    let measured = Measured::start(&agent, &topology)?;
    answer(&topology)?;
    measured.settle()?;
    measured.stage(&format!("{} hosts, none speaks", options.configured), options.seconds)?;

    let mut peers = Simulated::new(&topology, options.active, options.rate)?;
    peers.connect(START)?;
    let traffic = peers.in_background();
    let what = format!("{} hosts exchange {} packets a second", options.active, options.rate);
    measured.stage(&what, options.seconds)?;
    let exchanged = traffic.silence()?;
    println!("{exchanged} packets were answered");

    if options.rest > 0 {
        thread::sleep(Duration::from_secs(options.rest));
        measured.stage(&format!("silent for {} s", options.rest), options.seconds)?;
    }
    Ok(())
}

fn topology(configured: u32) -> Topology {
    let mut topology = Builder::new(configured + 1)
        .service_of(Protocol::Udp, SERVICE, SERVICE_PORT, &[HERE])
        .allow("host:*", &format!("service:{SERVICE}"))
        .build();
    topology.change(|snapshot| {
        for (id, host) in &mut snapshot.hosts {
            if id.0 != HERE {
                host.endpoints.iter_mut().for_each(|endpoint| endpoint.set_port(PEERS_PORT));
            }
        }
    });
    topology
}

fn beside_us() -> anyhow::Result<PathBuf> {
    let examples = std::env::current_exe()?;
    let target = examples.ancestors().nth(2).context("this program is in no target folder")?;
    Ok(target.join("isthmus-agent"))
}

/// The service: sends everything back.
fn answer(topology: &Topology) -> anyhow::Result<()> {
    let address = (topology.workload(SERVICE, HERE, true), SERVICE_PORT);
    let deadline = Instant::now() + START;
    // The address is there when the agent works by its snapshot.
    let socket = loop {
        match UdpSocket::bind(address) {
            Ok(socket) => break socket,
            Err(error) if Instant::now() >= deadline => {
                return Err(error).context("The agent didn't make the service's address");
            }
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
    };
    thread::spawn(move || {
        let mut packet = [0; 2048];
        while let Ok((length, from)) = socket.recv_from(&mut packet) {
            // What the queue has no room for is lost, as on any network.
            drop(socket.send_to(&packet[..length], from));
        }
    });
    Ok(())
}
