//! `scripts/bench`: what the mesh costs, beside what it is compared with, in interleaved rounds.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "a benchmark prints its table")]

mod control;
mod l3;
mod noise;
mod report;
mod rivals;

use std::path::PathBuf;

const USAGE: &str = "\
usage: scripts/bench l3|mesh [OPTION]...
  l3    throughput, latency and cost of the data plane, beside what is installed of its rivals
  mesh  join, propagation of a revision, memory
options:
  --json FILE      write all values there
  --rounds N       l3: so many rounds (5)
  --seconds N      l3: so long each throughput test (4)
  --only A,B       l3: only paths whose names contain one of these
  --ceiling PATH   l3: a program `tunudp IF LOCAL:PORT PEER:PORT CIPHER` that does nothing but move packets";

/// What was asked for.
struct Options {
    json: Option<PathBuf>,
    rounds: usize,
    seconds: u32,
    only: Vec<String>,
    ceiling: Option<PathBuf>,
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let what = arguments.next().unwrap_or_default();
    let mut options =
        Options { json: None, rounds: 5, seconds: 4, only: Vec::new(), ceiling: None };
    while let Some(argument) = arguments.next() {
        let value = arguments.next().unwrap_or_else(usage);
        match argument.as_str() {
            "--json" => options.json = Some(value.into()),
            "--rounds" => options.rounds = value.parse().unwrap_or_else(|_| usage()),
            "--seconds" => options.seconds = value.parse().unwrap_or_else(|_| usage()),
            "--only" => options.only = value.split(',').map(str::to_owned).collect(),
            "--ceiling" => options.ceiling = Some(value.into()),
            _ => usage(),
        }
    }
    let figures = match what.as_str() {
        "mesh" => {
            let figures = control::run();
            println!("{}", figures.rows());
            figures
        }
        "l3" => l3::run(&options),
        _ => usage(),
    };
    if let Some(file) = &options.json {
        std::fs::write(file, figures.json().to_string())
            .unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    }
}

fn usage<T>() -> T {
    println!("{USAGE}");
    std::process::exit(2);
}
