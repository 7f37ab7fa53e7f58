//! Faults at random: the controller, hosts, both, or room on a disk go away for longer than
//! certificates live, and come back. Then every host must be back by itself, as who it was.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::mesh::{Mesh, MeshOptions};

/// How long a mesh may take from the end of a fault until all is as before.
pub const BACK_WITHIN: Duration = Duration::from_secs(20);

const TOPOLOGY: &str = "[[allow]]\nname = \"hosts\"\nfrom = \"host:*\"\nto = \"host:*\"\n";
const STEP: Duration = Duration::from_millis(250);

/// What goes away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The controller's process.
    Controller,
    /// The controller's network.
    Network,
    /// Some of the agents.
    Hosts,
    /// All of them, and the controller.
    Both,
    /// Room on the hosts' disks.
    HostDisks,
    /// Room on the controller's disk.
    ControllerDisk,
}

impl Fault {
    /// Each of them.
    pub const ALL: [Self; 6] = [
        Self::Controller,
        Self::Network,
        Self::Hosts,
        Self::Both,
        Self::HostDisks,
        Self::ControllerDisk,
    ];

    /// As people write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Controller => "controller",
            Self::Network => "network",
            Self::Hosts => "hosts",
            Self::Both => "both",
            Self::HostDisks => "host-disks",
            Self::ControllerDisk => "controller-disk",
        }
    }
}

/// Numbers that look like chance, the same again for the same seed (SplitMix64).
#[derive(Clone, Copy, Debug)]
pub struct Chance(pub u64);

impl Chance {
    /// A number below `limit`, which isn't 0.
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % limit as u64).unwrap_or(0)
    }
}

/// A mesh that faults happen to.
#[derive(Debug)]
pub struct Chaos {
    /// The mesh.
    pub mesh: Mesh,
    names: Vec<String>,
    before: BTreeMap<String, String>,
    lifetime: Duration,
}

impl Chaos {
    /// Three hosts, whose certificates live so long.
    ///
    /// # Panics
    ///
    /// If the mesh doesn't come up.
    #[must_use]
    pub fn new(certificate_lifetime: &'static str, lifetime: Duration) -> Self {
        let names = ["app-1", "app-2", "app-3"];
        let options = MeshOptions {
            certificate_lifetime: Some(certificate_lifetime),
            small_disks: true,
            ..MeshOptions::default()
        };
        let mesh = Mesh::with(&names, options);
        mesh.apply(TOPOLOGY);
        let names = names.map(str::to_owned).to_vec();
        let mut chaos = Self { mesh, names, before: BTreeMap::new(), lifetime };
        let ready = chaos.until_back();
        assert!(ready.is_ok(), "before any fault: {ready:?}");
        chaos.before = chaos.who_is_who();
        chaos
    }

    /// A fault of the given length; then waits until all is as before, and tells how long that took.
    ///
    /// # Errors
    ///
    /// What was missing when the time was over, or who isn't who it was.
    pub fn round(
        &mut self,
        fault: Fault,
        away: Duration,
        chance: &mut Chance,
    ) -> Result<Duration, String> {
        let hosts: Vec<String> = match fault {
            Fault::Hosts => {
                let first = chance.below(self.names.len());
                let count = 1 + chance.below(self.names.len());
                (0..count).map(|it| self.names[(first + it) % self.names.len()].clone()).collect()
            }
            Fault::Both | Fault::HostDisks => self.names.clone(),
            Fault::Controller | Fault::Network | Fault::ControllerDisk => Vec::new(),
        };
        self.begin(fault, &hosts);
        self.keep_up(fault, &hosts, away);
        self.end(fault, &hosts);
        let took = self.until_back()?;
        let now = self.who_is_who();
        if now != self.before {
            return Err(format!("was {:?}, is {now:?}", self.before));
        }
        Ok(took)
    }

    /// The certificates of before have expired by now, in a round of this length.
    #[must_use]
    pub fn outlasts_certificates(&self, away: Duration) -> bool {
        away > self.lifetime
    }

    fn begin(&mut self, fault: Fault, hosts: &[String]) {
        match fault {
            Fault::Controller => self.mesh.controller().kill(),
            Fault::Network => drop(self.mesh.controller_node.sh("ip link set eth0 down")),
            Fault::Hosts => hosts.iter().for_each(|it| self.mesh.host_mut(it).agent().kill()),
            Fault::Both => {
                self.mesh.controller().kill();
                hosts.iter().for_each(|it| self.mesh.host_mut(it).agent().kill());
            }
            Fault::HostDisks => {
                hosts.iter().for_each(|it| fill(self.mesh.host(it).state()));
            }
            Fault::ControllerDisk => fill(self.mesh.controller_state()),
        }
    }

    fn end(&mut self, fault: Fault, hosts: &[String]) {
        match fault {
            Fault::Controller => self.mesh.spawn_controller(),
            Fault::Network => drop(self.mesh.controller_node.sh("ip link set eth0 up")),
            Fault::Hosts => hosts.iter().for_each(|it| self.mesh.host_mut(it).spawn_agent()),
            Fault::Both => {
                self.mesh.spawn_controller();
                hosts.iter().for_each(|it| self.mesh.host_mut(it).spawn_agent());
            }
            Fault::HostDisks => hosts.iter().for_each(|it| empty(self.mesh.host(it).state())),
            Fault::ControllerDisk => empty(self.mesh.controller_state()),
        }
    }

    /// While a fault lasts, what ended by itself is started again, as systemd does.
    fn keep_up(&mut self, fault: Fault, hosts: &[String], away: Duration) {
        let until = Instant::now() + away;
        while Instant::now() < until {
            if matches!(fault, Fault::ControllerDisk) {
                self.restart_what_ended();
            }
            if matches!(fault, Fault::HostDisks) {
                hosts.iter().for_each(|it| fill(self.mesh.host(it).state()));
                self.restart_what_ended();
            }
            std::thread::park_timeout(STEP);
        }
    }

    fn restart_what_ended(&mut self) {
        if !self.mesh.controller().is_running() {
            self.mesh.spawn_controller();
        }
        for name in &self.names {
            let host = self.mesh.host_mut(name);
            if !host.agent().is_running() {
                host.spawn_agent();
            }
        }
    }

    fn until_back(&mut self) -> Result<Duration, String> {
        let started = Instant::now();
        loop {
            self.restart_what_ended();
            match self.missing() {
                None => return Ok(started.elapsed()),
                Some(what) if started.elapsed() > BACK_WITHIN => return Err(what),
                Some(_) => std::thread::park_timeout(STEP),
            }
        }
    }

    /// What isn't as it should be.
    fn missing(&self) -> Option<String> {
        let output = self.mesh.agentctl(&["status", "-o", "json"]);
        if !output.success() {
            return Some(format!("the controller doesn't answer: {output}"));
        }
        let status = output.json();
        let now = self.mesh.controller_node.sh("date -u +%Y-%m-%dT%H:%M:%SZ");
        let hosts = status["hosts"].as_array().cloned().unwrap_or_default();
        for name in &self.names {
            let Some(host) = hosts.iter().find(|host| host["name"] == **name) else {
                return Some(format!("{name} is no member"));
            };
            let expires = host["certificate_expires"].as_str().unwrap_or_default();
            if host["connected"] != true || expires <= now.trim() {
                return Some(format!("at {}: {host}", now.trim()));
            }
        }
        let ring = self.names.iter().zip(self.names.iter().cycle().skip(1));
        for (from, to) in ring {
            let ping = self.mesh.host(from).agentctl(&["ping", to, "-c", "1"]);
            if !ping.success() {
                return Some(ping.to_string());
            }
        }
        None
    }

    /// Number and addresses by name, as the controller and the host itself say them.
    fn who_is_who(&self) -> BTreeMap<String, String> {
        let status = self.mesh.status();
        let hosts = status["hosts"].as_array().cloned().unwrap_or_default();
        let one = |name: &String| {
            let host = hosts.iter().find(|host| host["name"] == **name);
            let said = host.map(|it| format!("{} {} {}", it["id"], it["ipv4"], it["ipv6"]));
            let own = self.mesh.host(name).status()["addresses"].to_string();
            (name.clone(), format!("{} {own}", said.unwrap_or_default()))
        };
        self.names.iter().map(one).collect()
    }
}

fn ballast(folder: PathBuf) -> String {
    folder.join("ballast").display().to_string()
}

/// Leaves not a byte, also where something was removed meanwhile.
fn fill(folder: PathBuf) {
    let line = format!("cat /dev/zero >>{} 2>/dev/null || true", ballast(folder));
    let _ = std::process::Command::new("sh").args(["-c", &line]).status();
}

fn empty(folder: PathBuf) {
    let _ = std::fs::remove_file(ballast(folder));
}
