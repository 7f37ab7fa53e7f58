//! Clients of our own, run as programs of their own in a host's namespace.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

const MOST_HEAD_BYTES: usize = 16 * 1024;
const PATIENCE: Duration = Duration::from_secs(5);

/// What came of the requests of one connection.
#[derive(Default)]
struct Outcome {
    microseconds: Vec<f64>,
    failed: u64,
}

/// Sends requests at a fixed rate, whether or not earlier ones have been answered: each connection has
/// its share of the schedule, and latency counts from the scheduled instant. So a hop that stalls is
/// charged for everything that it makes wait.
pub(crate) fn open_loop(target: &str, path: &str, rate: u32, connections: u32, seconds: u32) {
    // Threads inherit it: the kernel would otherwise wake us up to 50 µs late. Without it, it does.
    let _ = std::fs::write("/proc/self/timerslack_ns", "1");
    let gap = Duration::from_secs(1) / rate;
    let start = Instant::now() + Duration::from_millis(200);
    let outcomes: Vec<Outcome> = thread::scope(|scope| {
        let workers: Vec<_> = (0..connections)
            .map(|first| {
                let due = move |turn: u32| start + gap * (first + turn * connections);
                let turns = (rate * seconds - first).div_ceil(connections);
                scope.spawn(move || on_schedule(target, path, (0..turns).map(due)))
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().unwrap_or_default()).collect()
    });
    let mut all: Vec<f64> = outcomes.iter().flat_map(|it| it.microseconds.clone()).collect();
    let failed: u64 = outcomes.iter().map(|it| it.failed).sum();
    all.sort_by(f64::total_cmp);
    let at = |share: f64| all.get((all.len().saturating_sub(1) as f64 * share).round() as usize);
    println!(
        "{}",
        json!({ "requests": all.len(), "failed": failed, "p50": at(0.5), "p99": at(0.99) })
    );
}

fn on_schedule(target: &str, path: &str, schedule: impl Iterator<Item = Instant>) -> Outcome {
    let mut outcome = Outcome::default();
    let mut client = None;
    for due in schedule {
        wait_until(due);
        let asked = match client.as_mut() {
            Some(client) => Ok(client),
            None => Client::connect(target).map(|it| client.insert(it)),
        }
        .and_then(|client| client.get(target, path));
        match asked {
            Ok(200) => outcome.microseconds.push(due.elapsed().as_secs_f64() * 1e6),
            Ok(_) => outcome.failed += 1,
            Err(_) => {
                outcome.failed += 1;
                client = None;
            }
        }
    }
    outcome
}

fn wait_until(due: Instant) {
    loop {
        let left = due.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        thread::park_timeout(left);
    }
}

/// Opens connections, asks once on each, says "held" and keeps them until it is ended.
pub(crate) fn hold(target: &str, path: &str, connections: usize) {
    let held: Vec<Client> = (0..connections)
        .map(|number| {
            let asked = Client::connect(target).and_then(|mut client| {
                let status = client.get(target, path)?;
                if status == 200 { Ok(client) } else { Err(io::Error::other(status.to_string())) }
            });
            asked.unwrap_or_else(|error| panic!("connection {number} to {target}: {error}"))
        })
        .collect();
    println!("held {}", held.len());
    loop {
        thread::park();
    }
}

/// One kept connection.
struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    fn connect(target: &str) -> io::Result<Self> {
        let stream = TcpStream::connect(target)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { stream, buffer: Vec::new() })
    }

    /// Asks, and reads the whole answer: its status.
    fn get(&mut self, host: &str, path: &str) -> io::Result<u16> {
        write!(self.stream, "GET {path} HTTP/1.1\r\nhost: {host}\r\naccept: */*\r\n\r\n")?;
        self.buffer.clear();
        let (status, whole) = loop {
            self.read_more()?;
            if let Some(head) = Head::read(&self.buffer)? {
                break (head.status, head.bytes + head.body_bytes);
            }
        };
        while self.buffer.len() < whole {
            self.read_more()?;
        }
        Ok(status)
    }

    fn read_more(&mut self) -> io::Result<()> {
        let mut chunk = [0; 64 * 1024];
        let count = self.stream.read(&mut chunk)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.buffer.extend_from_slice(&chunk[..count]);
        Ok(())
    }
}

struct Head {
    bytes: usize,
    status: u16,
    body_bytes: usize,
}

impl Head {
    /// None while more of it is to come. Only answers that tell their length are understood.
    fn read(buffer: &[u8]) -> io::Result<Option<Self>> {
        let Some(end) = buffer.windows(4).position(|it| it == b"\r\n\r\n") else {
            let fits = buffer.len() < MOST_HEAD_BYTES;
            return if fits { Ok(None) } else { Err(io::ErrorKind::InvalidData.into()) };
        };
        let text = String::from_utf8_lossy(&buffer[..end]).to_ascii_lowercase();
        let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
        let length =
            text.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
        match (status, length) {
            (Some(status), Some(body_bytes)) => {
                Ok(Some(Self { bytes: end + 4, status, body_bytes }))
            }
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}
