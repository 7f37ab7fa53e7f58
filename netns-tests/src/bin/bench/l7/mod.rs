//! Cost of a hop for a request, beside programs that do the same work: every path in turn, round by round.
//!
//! Hops run on processor 0 with one thread or pinned to it; what loads them and the nginx behind them
//! run on processor 1. The two agents of a mesh share processor 0, too.

mod generator;
mod hops;
mod load;
mod memory;
mod mesh;
mod path;

use std::collections::BTreeMap;

use isthmus_netns_tests::Lab;
use serde_json::{Value, json};

pub(crate) use generator::{hold, open_loop};

use crate::Options;
use crate::noise::{Noise, noise_of_rounds, record_noise, wait_for_calm};
use crate::report::Figures;
use hops::HAPROXY;
use load::{Counter, LOADS, Load, Sample};
use mesh::{BOTH, TUNNEL};
use path::{NO_PROXY, Path};

const RATE: &str = "requests/s";
const P50: &str = "p50, µs";
const P99: &str = "p99, µs";
const CPU: &str = "CPU µs/request";
const INSTRUCTIONS: &str = "k instr/request";
const FAILED: &str = "failed";
const CPU_RATIO: &str = "CPU / HAProxy's";
const INSTRUCTIONS_RATIO: &str = "instr / HAProxy's";
const PROXIES_RATIO: &str = "less tunnel / HAProxy's";
const ADDED: &str = "added p50, µs";

/// The loads that have goals.
pub(crate) const SHORT: [&str; 7] =
    ["h1-1k-16", "h1-1k-256", "h1-100k-16", "h2-1k-4x64", "grpc-1k-4x32", "open-1k", "memory"];

/// Measures everything that is installed.
pub(crate) fn run(options: &Options) -> Value {
    let lab = Lab::new();
    let (mut paths, _servers, notes) = path::all(&lab, options);
    let loads: Vec<&Load> = LOADS.iter().filter(|load| load.is_wanted(&options.loads)).collect();
    let counter = Counter::find(&lab);
    for path in &mut paths {
        path.keep_only(|protocol| loads.iter().any(|load| load.protocol == protocol));
        path.wait_until_ready();
    }
    let busy = wait_for_calm();
    let mut all: BTreeMap<&str, Figures> = BTreeMap::new();
    let mut memory = Figures::default();
    let mut noise = Figures::default();
    let (rounds, seconds) = (options.rounds.unwrap_or(3), options.seconds.unwrap_or(1));
    for round in 1..=rounds {
        for path in &mut paths {
            eprintln!("round {round} of {rounds}: {}", path.name);
            // It hardly varies, and takes long.
            let is_memory_wanted =
                options.loads.is_empty() || options.loads.iter().any(|it| it == "memory");
            if round == 1 && is_memory_wanted {
                memory::measure(&mut memory, path);
            }
            path.restart();
            for load in loads.iter().filter(|load| path.takes(load)) {
                let Some(target) = path.target(load.protocol) else { continue };
                let before = Noise::now();
                let sample = load.run(path, target, seconds, counter);
                record(all.entry(load.name).or_default(), &path.name, &sample);
                record_noise(&mut noise, &format!("{}: {}", path.name, load.name), before);
            }
        }
    }
    for load in &loads {
        if let Some(figures) = all.get_mut(load.name) {
            compare(figures, &paths, load);
            println!("{}{}\n{}", load.title(), counter.remark(), figures.table());
        }
    }
    if !memory.is_empty() {
        println!("memory of the hop's larger program\n{}", memory.table());
    }
    for note in &notes {
        println!("note: {note}");
    }
    println!("before the first round the machine was {:.1} % busy", busy * 100.0);
    println!("{}", noise_of_rounds(&noise));
    let loads: BTreeMap<&str, Value> = all.iter().map(|(name, it)| (*name, it.json())).collect();
    json!({ "loads": loads, "memory": memory.json(), "noise": noise.json(), "notes": notes,
            "busy_before": busy })
}

fn record(figures: &mut Figures, path: &str, sample: &Sample) {
    figures.record(path, RATE, sample.requests / sample.seconds);
    figures.record(path, P50, sample.p50);
    figures.record(path, P99, sample.p99);
    if let Some(cpu) = sample.cpu {
        figures.record(path, CPU, cpu * 1e6 / sample.requests);
    }
    if let Some(instructions) = sample.instructions {
        figures.record(path, INSTRUCTIONS, instructions / 1e3 / sample.requests);
    }
    figures.record(path, FAILED, sample.failed);
}

/// Adds what follows from the medians.
fn compare(figures: &mut Figures, paths: &[Path], load: &Load) {
    for Path { name, .. } in paths {
        for (measure, ratio) in [(CPU, CPU_RATIO), (INSTRUCTIONS, INSTRUCTIONS_RATIO)] {
            if let Some(value) = figures.ratio(measure, name, HAPROXY) {
                figures.record(name, ratio, value);
            }
        }
        if name == BOTH {
            let measure = if figures.has(INSTRUCTIONS) { INSTRUCTIONS } else { CPU };
            let of = |path| figures.quantile(path, measure, 0.5);
            if let (Some(all), Some(tunnel), Some(haproxy)) = (of(name), of(TUNNEL), of(HAPROXY)) {
                figures.record(name, PROXIES_RATIO, (all - tunnel) / haproxy);
            }
        }
        let median = |path| figures.quantile(path, P50, 0.5);
        if load.is_open()
            && let (Some(with), Some(without)) = (median(name), median(NO_PROXY))
        {
            figures.record(name, ADDED, with - without);
        }
    }
}
