//! The usual mesh: a switch, a controller, and hosts whose agents have joined.

mod host;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::lab::{Lab, Link, Node};
use crate::process::{Output, Process, binary};
use crate::wait::wait_for;

const START: Duration = Duration::from_secs(10);
/// For the agent's unit: it keeps what systemd would keep.
const SERVICE_MANAGER: &str = include_str!("service_manager.py");

/// How a [`Mesh`] differs from the usual.
#[derive(Clone, Debug)]
pub struct MeshOptions {
    /// Of the underlay, in bytes.
    pub mtu: u32,
    /// Whether the hosts reach each other (not the controller) over IPv6 only.
    pub ipv6_underlay: bool,
    /// How long certificates live, as the controller's settings write it.
    pub certificate_lifetime: Option<&'static str>,
    /// Of operators' certificates, but for the first one's.
    pub operator_lifetime: Option<&'static str>,
    /// Lines at the start of each agent's settings.
    pub settings: &'static str,
    /// The processor that agents are bound to, if to any.
    pub processor: Option<usize>,
    /// Whether each state directory is a file system of its own, which is easily filled.
    pub small_disks: bool,
}

impl Default for MeshOptions {
    fn default() -> Self {
        Self {
            mtu: 1500,
            ipv6_underlay: false,
            certificate_lifetime: None,
            operator_lifetime: None,
            settings: "",
            processor: None,
            small_disks: false,
        }
    }
}

/// A small file system in memory, gone with the value.
#[derive(Debug)]
struct Disk(PathBuf);

impl Disk {
    fn mount(folder: PathBuf, size: &str) -> Self {
        std::fs::create_dir_all(&folder).expect("the lab's folder can be written");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size},mode=700"), "tmpfs"]).arg(&folder);
        let _ = Output::of(mount).expect_success();
        Self(folder)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// A mesh that runs.
#[derive(Debug)]
pub struct Mesh {
    /// Programs end before the lab goes.
    controller: Option<Process>,
    /// By name.
    pub hosts: BTreeMap<String, Host>,
    /// Where the controller runs; `agentctl`'s admin calls run here too.
    pub controller_node: Node,
    /// All hosts' `eth0` are plugged in here.
    pub switch: Node,
    options: MeshOptions,
    _disk: Option<Disk>,
    /// Last: it removes the namespaces.
    pub lab: Lab,
}

/// A host with an agent.
#[derive(Debug)]
pub struct Host {
    /// Its namespace.
    pub node: Node,
    agent: Option<Process>,
    settings: PathBuf,
    socket: PathBuf,
    processor: Option<usize>,
    /// Whether from its next start on something does for the agent what systemd does ([`Host::hold`]).
    pub is_managed: bool,
    /// Of the agent from its next start on.
    pub environment: Vec<(String, String)>,
    _disk: Option<Disk>,
}

impl Mesh {
    /// A controller and these hosts, all joined.
    #[must_use]
    pub fn new(hosts: &[&str]) -> Self {
        Self::with(hosts, MeshOptions::default())
    }

    /// Likewise, with options.
    #[must_use]
    pub fn with(hosts: &[&str], options: MeshOptions) -> Self {
        let mut mesh = Self::empty(options);
        for host in hosts {
            mesh.add_host(host);
            mesh.join(host).expect_success_line();
        }
        mesh
    }

    /// A controller alone.
    ///
    /// # Panics
    ///
    /// If it doesn't start.
    #[must_use]
    pub fn empty(options: MeshOptions) -> Self {
        let lab = Lab::new();
        let switch = lab.switch("switch");
        let controller_node = lab.node("ctl");
        lab.plug(
            &controller_node,
            &switch,
            &["10.9.0.1/24".into(), "fd09::1/64".into()],
            options.mtu,
        );
        let state = controller_node.folder().join("controller");
        let disk = options.small_disks.then(|| Disk::mount(state.clone(), "8m"));
        let mut init = controller_node.command(binary("isthmus-controller"));
        init.args([
            "init",
            "--name",
            "corp",
            "--trust-domain",
            "corp.example",
            "--address",
            "10.9.0.1:7443",
        ]);
        init.arg("--state-dir").arg(&state);
        let _ = Output::of(init).expect_success();
        let mut mesh = Self {
            controller: None,
            hosts: BTreeMap::new(),
            controller_node,
            switch,
            options,
            _disk: disk,
            lab,
        };
        mesh.start_controller();
        mesh
    }

    /// The controller's state directory.
    #[must_use]
    pub fn controller_state(&self) -> PathBuf {
        self.controller_node.folder().join("controller")
    }

    /// Starts the controller (again) and waits until it answers.
    pub fn start_controller(&mut self) {
        self.spawn_controller();
        wait_for("the controller answers", START, || self.agentctl(&["status"]).success());
    }

    /// Starts the controller (again), without waiting for anything.
    ///
    /// # Panics
    ///
    /// If its settings can't be written.
    pub fn spawn_controller(&mut self) {
        let mut run = self.controller_node.command(binary("isthmus-controller"));
        run.arg("run").arg("--state-dir").arg(self.controller_state());
        let MeshOptions { certificate_lifetime, operator_lifetime, .. } = self.options;
        let lifetimes = [
            ("certificate_lifetime", certificate_lifetime),
            ("operator_lifetime", operator_lifetime),
        ];
        let line =
            |(key, lifetime): (&str, Option<&str>)| Some(format!("{key} = {:?}\n", lifetime?));
        let text: String = lifetimes.into_iter().filter_map(line).collect();
        let settings = self.controller_node.folder().join("controller.toml");
        std::fs::write(&settings, text).expect("the lab's folder can be written");
        run.arg("--settings").arg(settings);
        self.controller = Some(self.controller_node.spawn("controller", run));
    }

    /// The controller's process.
    ///
    /// # Panics
    ///
    /// If it doesn't run.
    pub fn controller(&mut self) -> &mut Process {
        self.controller.as_mut().expect("the controller was started")
    }

    /// Adds a host with a running agent that hasn't joined.
    ///
    /// # Panics
    ///
    /// If the agent doesn't start.
    pub fn add_host(&mut self, name: &str) -> &Host {
        let number = 11 + self.hosts.len();
        let node = self.lab.node(name);
        let mut addresses = vec![format!("10.9.0.{number}/24"), format!("fd09::{number}/64")];
        if self.options.ipv6_underlay {
            // IPv4 only to the controller.
            addresses[0] = format!("10.9.0.{number}/32");
        }
        self.lab.plug(&node, &self.switch, &addresses, self.options.mtu);
        let mut settings = String::new();
        if self.options.ipv6_underlay {
            node.sh("ip route add 10.9.0.1 dev eth0");
            self.controller_node.sh(&format!("ip route replace 10.9.0.{number} dev eth0"));
            let _ = writeln!(settings, "endpoints = [\"[fd09::{number}]:51820\"]");
        }
        self.start_host(name, node, settings)
    }

    /// Adds a host behind a router that hides it: nobody reaches it who wasn't spoken to.
    ///
    /// # Panics
    ///
    /// If the agent doesn't start.
    pub fn add_host_behind_nat(&mut self, name: &str) -> &Host {
        let router = self.lab.router(&format!("{name}-nat"));
        let node = self.lab.node(name);
        let mtu = self.options.mtu;
        self.lab.plug(&router, &self.switch, &["10.9.0.200/24".into()], mtu);
        self.lab.link(Link { a: (&node, "eth0"), b: (&router, "lan0"), mtu });
        router.sh("ip addr add 192.168.7.1/24 dev lan0");
        node.sh("ip addr add 192.168.7.2/24 dev eth0 && ip route add default via 192.168.7.1");
        router.masquerade("eth0");
        self.start_host(name, node, String::new())
    }

    fn start_host(&mut self, name: &str, node: Node, mut settings: String) -> &Host {
        let folder = node.folder().to_owned();
        let socket = folder.join("agent.sock");
        let _ = writeln!(settings, "{}", self.options.settings);
        let _ = writeln!(settings, "state_dir = {:?}", folder.join("state"));
        let _ = writeln!(settings, "socket = {socket:?}");
        let _ = writeln!(settings, "[dns]\nupstream = [\"10.9.0.1:53\"]");
        let path = folder.join("agent.toml");
        std::fs::write(&path, settings).expect("the lab's folder can be written");
        let small = self.options.small_disks;
        let mut host = Host {
            agent: None,
            settings: path,
            socket,
            processor: self.options.processor,
            is_managed: false,
            environment: Vec::new(),
            _disk: small.then(|| Disk::mount(folder.join("state"), "1m")),
            node,
        };
        host.start_agent();
        self.hosts.entry(name.to_owned()).or_insert(host)
    }

    /// A new join token.
    #[must_use]
    pub fn token(&self, options: &[&str]) -> String {
        let arguments: Vec<&str> =
            ["token", "create", "-o", "json"].iter().chain(options).copied().collect();
        let created = self.agentctl(&arguments).json();
        created["token"].as_str().expect("`token create` gives a token").to_owned()
    }

    /// Joins a host by a token of its own and waits until its data plane is up; tells how long that took.
    #[must_use]
    pub fn join(&self, name: &str) -> Joined {
        let token = self.token(&["--host", name]);
        let started = Instant::now();
        let output = self.host(name).join(&token, name);
        Joined { took: started.elapsed(), output }
    }

    /// A host by name.
    ///
    /// # Panics
    ///
    /// If there is none.
    #[must_use]
    pub fn host(&self, name: &str) -> &Host {
        self.hosts.get(name).unwrap_or_else(|| panic!("no host {name}"))
    }

    /// A host by name.
    ///
    /// # Panics
    ///
    /// If there is none.
    pub fn host_mut(&mut self, name: &str) -> &mut Host {
        self.hosts.get_mut(name).unwrap_or_else(|| panic!("no host {name}"))
    }

    /// `agentctl` as the operator.
    #[must_use]
    pub fn agentctl(&self, arguments: &[&str]) -> Output {
        let mut command = self.controller_node.command(binary("agentctl"));
        command.args(arguments);
        command.arg("--credentials").arg(self.controller_state().join("operator/operator.toml"));
        Output::of(command)
    }

    /// `agentctl apply` of one file, whatever it takes away.
    ///
    /// # Panics
    ///
    /// If the file can't be written.
    #[must_use]
    pub fn try_apply(&self, topology: &str) -> Output {
        self.try_apply_with(topology, &[])
    }

    /// Likewise, with options.
    pub fn try_apply_with(&self, topology: &str, options: &[&str]) -> Output {
        let file = self.controller_node.folder().join("topology.toml");
        std::fs::write(&file, topology).expect("the lab's folder can be written");
        let file = file.to_string_lossy();
        self.agentctl(&[&["apply", "--yes", "-f", &file], options].concat())
    }

    /// Likewise, and it must succeed: all agents have accepted it then.
    #[track_caller]
    pub fn apply(&self, topology: &str) -> String {
        self.try_apply(topology).expect_success()
    }

    /// The mesh's status as the controller tells it.
    #[must_use]
    pub fn status(&self) -> Value {
        self.agentctl(&["status", "-o", "json"]).json()
    }

    /// The revision that runs.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.status()["revision"].as_u64().expect("status has a revision")
    }

    /// The virtual addresses of a service.
    ///
    /// # Panics
    ///
    /// If the mesh doesn't have it.
    #[must_use]
    pub fn virtual_addresses(&self, service: &str) -> (Ipv4Addr, Ipv6Addr) {
        let services = self.agentctl(&["service", "list", "-o", "json"]).json();
        let found =
            services.as_array().and_then(|all| all.iter().find(|one| one["name"] == service));
        let Some(found) = found else { panic!("no service {service} in {services}") };
        let address = |key: &str| found[key].as_str().expect("an address is text").to_owned();
        (
            address("virtual_ipv4").parse().expect("IPv4"),
            address("virtual_ipv6").parse().expect("IPv6"),
        )
    }
}

/// How a join went.
#[derive(Debug)]
pub struct Joined {
    /// From the call to the answer: the data plane is up then.
    pub took: Duration,
    /// What `agentctl join` said.
    pub output: Output,
}

impl Joined {
    /// The host has joined.
    ///
    /// # Panics
    ///
    /// If it hasn't.
    #[track_caller]
    pub fn expect_success_line(self) {
        let _ = self.output.expect_success();
    }
}
