//! The agent that is measured.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, anyhow};
use isthmus_agent::identity::{Identity, Member, TlsIdentity, TunnelKey};
use isthmus_agent::state_dir::StateDir;
use isthmus_core::sim::Topology;
use isthmus_core::sim::topology::host_key;
use isthmus_model::HostId;
use isthmus_model::convert::resources;
use isthmus_proto::v1::SnapshotResources;
use rcgen::{CertificateParams, KeyPair};
use tempfile::TempDir;
use zeroize::Zeroizing;

use crate::{HERE, START};

/// Of /proc/PID/stat.
const TICKS_PER_SECOND: f64 = 100.0;
/// CPU seconds in a second.
const SETTLED: f64 = 0.02;
const METRICS: &str = "127.0.0.1:9464";

/// A running agent; ends with this value.
pub(crate) struct Measured {
    process: Child,
    _folder: TempDir,
}

impl Measured {
    /// Starts it by a snapshot of the topology, as after a restart without a controller.
    pub(crate) fn start(agent: &Path, topology: &Topology) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let state = folder.path().join("state");
        prepare(&state, topology)?;
        let settings = folder.path().join("agent.toml");
        fs::write(&settings, "log = \"error\"\n")?;
        let process = Command::new(agent)
            .args(["run".as_ref(), "--settings".as_ref(), settings.as_os_str()])
            .args(["--state-dir".as_ref(), state.as_os_str()])
            .arg("--socket")
            .arg(folder.path().join("agent.sock"))
            .stdin(Stdio::null())
            .spawn()
            .with_context(|| format!("Failed to start {}; build it first", agent.display()))?;
        Ok(Self { process, _folder: folder })
    }

    /// Waits until it has nothing to do, and prints what the start took.
    pub(crate) fn settle(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + START;
        loop {
            let before = self.cpu_seconds()?;
            thread::sleep(Duration::from_secs(1));
            let used = self.cpu_seconds()?;
            if used - before < SETTLED || Instant::now() >= deadline {
                println!("start: {used:.2} s of CPU");
                return Ok(());
            }
        }
    }

    /// Looks for a while, and prints what the agent used.
    pub(crate) fn stage(&self, what: &str, seconds: u64) -> anyhow::Result<()> {
        let (before, started) = (self.cpu_seconds()?, Instant::now());
        thread::sleep(Duration::from_secs(seconds));
        let used = self.cpu_seconds()? - before;
        let per_minute = used * 60.0 / started.elapsed().as_secs_f64();
        let [resident, anonymous, file] =
            ["VmRSS:", "RssAnon:", "RssFile:"].map(|name| self.memory_mb(name));
        println!(
            "{what}: {:.1} MB resident ({:.1} of its own, {:.1} of files), {per_minute:.2} s of CPU a minute; {}",
            resident?,
            anonymous?,
            file?,
            counts()?,
        );
        Ok(())
    }

    fn cpu_seconds(&self) -> anyhow::Result<f64> {
        let stat = self.proc("stat")?;
        let fields: Vec<&str> =
            stat.rsplit_once(") ").map_or("", |it| it.1).split_whitespace().collect();
        let ticks = |at: usize| -> anyhow::Result<f64> {
            Ok(fields.get(at).context("a short /proc/PID/stat")?.parse()?)
        };
        // Fields 14 and 15 (utime, stime), counted from the state, which is field 3.
        Ok((ticks(11)? + ticks(12)?) / TICKS_PER_SECOND)
    }

    fn memory_mb(&self, name: &str) -> anyhow::Result<f64> {
        let status = self.proc("status")?;
        let line = status.lines().find(|line| line.starts_with(name));
        let kib = line.and_then(|line| line.split_whitespace().nth(1)).context(name.to_owned())?;
        Ok(kib.parse::<f64>()? / 1024.0)
    }

    fn proc(&self, file: &str) -> anyhow::Result<String> {
        let path = format!("/proc/{}/{file}", self.process.id());
        fs::read_to_string(path).context("The agent has ended")
    }
}

impl Drop for Measured {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// The state directory of a host that has joined, whose controller is away.
fn prepare(state: &Path, topology: &Topology) -> anyhow::Result<()> {
    let snapshot = topology.snapshot(HERE);
    let key = KeyPair::generate()?;
    let certificate = CertificateParams::default().self_signed(&key)?;
    let identity = Identity {
        member: Member {
            host_id: HostId(HERE),
            host: snapshot.local_host().name.clone(),
            mesh: snapshot.mesh.name.to_string(),
            trust_domain: snapshot.mesh.trust_domain.clone(),
            prefixes: Vec::new(),
            controllers: vec!["127.0.0.1:1".to_owned()],
        },
        tunnel: TunnelKey::from_bytes(Zeroizing::new(host_key(HERE))),
        next: None,
        tls: TlsIdentity {
            key: Zeroizing::new(key.serialize_der()),
            leaf: certificate.der().clone(),
            ca: certificate.der().clone(),
            obtained: SystemTime::now(),
        },
    };
    let directory = StateDir::open(state)?;
    directory.write_identity(&identity)?;
    let revision = snapshot.revision.0;
    directory.write_snapshot(&SnapshotResources {
        revision,
        resources: resources(&snapshot),
        ..SnapshotResources::default()
    })
}

/// What the agent says of its tunnels.
fn counts() -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(METRICS).context("Failed to ask for metrics")?;
    stream.set_read_timeout(Some(START))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("The agent doesn't tell its metrics")?;
    let value = |name: &str| {
        let line = answer.lines().find_map(|line| line.strip_prefix(name));
        line.map(|value| value.trim().to_owned()).ok_or_else(|| anyhow!("no metric {name}"))
    };
    Ok(format!(
        "tunnels: {} up, {} connecting, {} idle",
        value("isthmus_tunnels{state=\"up\"}")?,
        value("isthmus_tunnels{state=\"connecting\"}")?,
        value("isthmus_tunnels{state=\"idle\"}")?,
    ))
}
