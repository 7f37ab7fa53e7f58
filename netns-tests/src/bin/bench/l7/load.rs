//! Load on a path: its requests, its generator, and the generator's results.

use std::fs;

use isthmus_netns_tests::{Lab, Node};
use serde_json::Value;

use super::path::{GENERATORS_CPU, HOPS_CPU, Path};

/// As a client speaks it; a hop speaks the same to the application if it can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http1,
    /// With prior knowledge.
    Http2,
    /// Unary calls.
    Grpc,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Pace {
    /// The next request follows an answer, on each stream.
    Closed,
    /// So many requests per second, whatever becomes of them.
    Open(u32),
}

/// A kind of load.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) name: &'static str,
    pub(crate) protocol: Protocol,
    body: &'static str,
    connections: u32,
    /// At a time, on each connection.
    streams: u32,
    pace: Pace,
}

/// Of a generator: h2load 1.52 sometimes misses the end of its time.
const ATTEMPTS: usize = 3;
/// Seconds beyond its time.
const PATIENCE: u32 = 20;

const fn h1(name: &'static str, body: &'static str, connections: u32) -> Load {
    Load { name, protocol: Protocol::Http1, body, connections, streams: 1, pace: Pace::Closed }
}

const fn h2(name: &'static str, body: &'static str, connections: u32, streams: u32) -> Load {
    let protocol = Protocol::Http2;
    Load { name, protocol, body, connections, streams, pace: Pace::Closed }
}

const fn grpc(name: &'static str, body: &'static str, connections: u32, streams: u32) -> Load {
    let protocol = Protocol::Grpc;
    Load { name, protocol, body, connections, streams, pace: Pace::Closed }
}

const fn open(name: &'static str, body: &'static str, rate: u32) -> Load {
    Load { pace: Pace::Open(rate), ..h1(name, body, 16) }
}

/// In the order of the tables.
pub(crate) const LOADS: &[Load] = &[
    h1("h1-1k-1", "1k", 1),
    h1("h1-1k-16", "1k", 16),
    h1("h1-1k-256", "1k", 256),
    h1("h1-100k-1", "100k", 1),
    h1("h1-100k-16", "100k", 16),
    h1("h1-100k-256", "100k", 256),
    h2("h2-1k-1x1", "1k", 1, 1),
    h2("h2-1k-4x64", "1k", 4, 64),
    h2("h2-1k-16x16", "1k", 16, 16),
    h2("h2-1k-256x1", "1k", 256, 1),
    h2("h2-100k-4x64", "100k", 4, 64),
    grpc("grpc-1k-1x1", "1k", 1, 1),
    grpc("grpc-1k-4x32", "1k", 4, 32),
    grpc("grpc-1k-16x8", "1k", 16, 8),
    grpc("grpc-1k-256x1", "1k", 256, 1),
    grpc("grpc-100k-4x32", "100k", 4, 32),
    open("open-1k", "1k", 1000),
    open("open-100k", "100k", 1000),
];

/// What a run gave.
#[derive(Debug, Default)]
pub(crate) struct Sample {
    pub(crate) requests: f64,
    pub(crate) seconds: f64,
    /// In microseconds.
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) failed: f64,
    /// Of the hop's programs, in seconds.
    pub(crate) cpu: Option<f64>,
    /// On the hops' processor.
    pub(crate) instructions: Option<f64>,
}

/// Whether the processor's counters can be read.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Counter {
    Perf,
    None,
}

impl Counter {
    pub(crate) fn find(lab: &Lab) -> Self {
        let node = lab.node("counter");
        let said = node.try_sh(&format!("{} true", perf("/dev/stdout")));
        if instructions(&said.stdout).is_some() { Self::Perf } else { Self::None }
    }

    /// Behind the title of each table.
    pub(crate) const fn remark(self) -> &'static str {
        match self {
            Self::Perf => "",
            Self::None => " (no counter of instructions here: judge by CPU time)",
        }
    }
}

fn perf(file: &str) -> String {
    format!("perf stat -x, -C {HOPS_CPU} -e instructions -o {file} --")
}

fn instructions(said: &str) -> Option<f64> {
    said.lines().find(|line| line.contains(",instructions"))?.split(',').next()?.parse().ok()
}

impl Load {
    pub(crate) fn is_wanted(&self, only: &[String]) -> bool {
        only.is_empty() || only.iter().any(|it| self.name.contains(it.as_str()))
    }

    pub(crate) const fn is_open(&self) -> bool {
        matches!(self.pace, Pace::Open(_))
    }

    /// For people.
    pub(crate) fn title(&self) -> String {
        let Self { name, protocol, body, connections, streams, pace } = self;
        let protocol = match protocol {
            Protocol::Http1 => "HTTP/1.1",
            Protocol::Http2 => "HTTP/2",
            Protocol::Grpc => "gRPC unary",
        };
        let streams = if *streams > 1 { format!(" of {streams} streams") } else { String::new() };
        let pace = match pace {
            Pace::Closed => String::new(),
            Pace::Open(rate) => format!(", open loop at {rate} requests/s"),
        };
        let plural = if *connections > 1 { "s" } else { "" };
        format!(
            "{name}: {protocol}, {body}B bodies, {connections} connection{plural}{streams}{pace}"
        )
    }

    /// Loads a path for so long.
    pub(crate) fn run(&self, path: &Path, target: &str, seconds: u32, counter: Counter) -> Sample {
        let log = path.scratch("h2load");
        let line = self.line(path, target, seconds, &log);
        let counted = path.scratch("perf");
        let line = match counter {
            Counter::Perf => format!("{} {line}", perf(&counted)),
            Counter::None => line,
        };
        let (said, cpu) = (0..ATTEMPTS)
            .find_map(|_| attempt(path, &line))
            .unwrap_or_else(|| panic!("it never ends: {line}"));
        let counted = fs::read_to_string(counted).unwrap_or_default();
        let sample = match (self.pace, self.protocol) {
            (Pace::Open(_), _) => own(&said, seconds),
            (Pace::Closed, Protocol::Http1) => wrk(&said),
            (Pace::Closed, Protocol::Http2 | Protocol::Grpc) => {
                h2load(&said, &fs::read_to_string(&log).unwrap_or_default())
            }
        };
        Sample { cpu, instructions: instructions(&counted), ..sample }
    }

    fn line(&self, path: &Path, target: &str, seconds: u32, log: &str) -> String {
        let Self { connections, streams, .. } = self;
        let file = self.protocol.file(self.body);
        let start = format!("taskset -c {GENERATORS_CPU} {}", path.identity());
        let line = match (self.pace, self.protocol) {
            (Pace::Open(rate), _) => {
                let program = &path.bench;
                format!(
                    "{start} {program} open-loop {target} {file} {rate} {connections} {seconds}"
                )
            }
            (Pace::Closed, Protocol::Http1) => format!(
                "{start} wrk -t1 -c{connections} -d{seconds}s --latency http://{target}{file}"
            ),
            (Pace::Closed, Protocol::Http2 | Protocol::Grpc) => {
                let _ = fs::remove_file(log);
                let headers = if self.protocol == Protocol::Grpc {
                    path.grpc_options()
                } else {
                    String::new()
                };
                format!(
                    "timeout {} {start} h2load -t1 -c{connections} -m{streams} -D{seconds} \
                     --log-file={log} {headers} http://{target}{file}",
                    seconds + PATIENCE
                )
            }
        };
        format!("{line} 2>&1")
    }
}

/// What a generator says, and the processor time that the path took. None if it had to be ended.
fn attempt(path: &Path, line: &str) -> Option<(String, Option<f64>)> {
    const ENDED_BY_TIMEOUT: Option<i32> = Some(124);
    let before = path.cpu();
    let output = path.client.try_sh(line);
    let cpu = path.cpu().zip(before).map(|(after, before)| after - before);
    (output.code() != ENDED_BY_TIMEOUT).then(|| (output.expect_success(), cpu))
}

impl Protocol {
    /// Where nginx has a body of this size for it.
    pub(crate) fn file(self, body: &str) -> String {
        match self {
            Self::Http1 | Self::Http2 => format!("/bench/{body}"),
            Self::Grpc => format!("/bench/Unary{body}"),
        }
    }
}

fn own(said: &str, seconds: u32) -> Sample {
    let said: Value = serde_json::from_str(said).unwrap_or_else(|_| panic!("{said}"));
    let value = |key: &str| said[key].as_f64().unwrap_or(f64::NAN);
    Sample {
        requests: value("requests"),
        seconds: f64::from(seconds),
        p50: value("p50"),
        p99: value("p99"),
        failed: value("failed"),
        ..Sample::default()
    }
}

fn wrk(said: &str) -> Sample {
    let after = |start: &str| {
        said.lines().find_map(|line| line.trim().strip_prefix(start)).unwrap_or_default().trim()
    };
    let total = said
        .lines()
        .find(|line| line.contains(" requests in "))
        .unwrap_or_else(|| panic!("{said}"));
    let words: Vec<&str> = total.split([' ', ',']).filter(|word| !word.is_empty()).collect();
    let errors = after("Socket errors:").split(',');
    let errors = errors.filter_map(|it| it.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>();
    Sample {
        requests: words[0].parse().unwrap_or(f64::NAN),
        seconds: microseconds(words[3]) / 1e6,
        p50: microseconds(after("50%")),
        p99: microseconds(after("99%")),
        failed: after("Non-2xx or 3xx responses:").parse().unwrap_or(0.0) + errors,
        ..Sample::default()
    }
}

fn microseconds(text: &str) -> f64 {
    let digits = text.trim_end_matches(char::is_alphabetic);
    let unit = match &text[digits.len()..] {
        "us" => 1.0,
        "ms" => 1e3,
        "s" => 1e6,
        "m" => 60e6,
        _ => f64::NAN,
    };
    digits.parse::<f64>().unwrap_or(f64::NAN) * unit
}

/// `log` has a line for each request: when it began, its status, how long it took.
fn h2load(said: &str, log: &str) -> Sample {
    let line = |start: &str| {
        let found = said.lines().find_map(|line| line.strip_prefix(start));
        found.unwrap_or_else(|| panic!("{said}"))
    };
    let number = |what: &str| {
        let counts = line("requests: ").split(", ");
        counts.filter_map(|it| it.strip_suffix(what)).find_map(|it| it.trim().parse().ok())
    };
    let mut times: Vec<f64> =
        log.lines().filter_map(|line| line.rsplit('\t').next()?.parse().ok()).collect();
    times.sort_by(f64::total_cmp);
    let at = |share: f64| {
        let place = (times.len().saturating_sub(1) as f64 * share).round() as usize;
        times.get(place).copied().unwrap_or(f64::NAN)
    };
    Sample {
        requests: number("done").unwrap_or(f64::NAN),
        seconds: line("finished in ").split(',').next().map_or(f64::NAN, microseconds) / 1e6,
        p50: at(0.5),
        p99: at(0.99),
        failed: number("failed").unwrap_or(f64::NAN),
        ..Sample::default()
    }
}

/// What a gRPC client would send: a message of 100 bytes.
pub(crate) fn grpc_message(node: &Node) -> String {
    let file = node.folder().join("message");
    let mut message = vec![0, 0, 0, 0, 100];
    message.resize(105, b'x');
    fs::write(&file, message).expect("the lab's folder can be written");
    file.display().to_string()
}
