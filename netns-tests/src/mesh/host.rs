//! A host of the mesh: its agent, and programs beside it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::{Host, SERVICE_MANAGER, START};
use crate::process::{Output, Process, binary};
use crate::wait::{wait_for, wait_for_value};

impl Host {
    /// Starts the agent (again), without waiting for anything.
    pub fn spawn_agent(&mut self) {
        let hosts = self.node.folder().join("hosts");
        let mut command = match self.processor {
            _ if hosts.exists() => {
                let mut command = self.node.command("unshare");
                command.args(["-m", "sh", "-c", "mount --bind \"$0\" /etc/hosts && exec \"$@\""]);
                command.arg(hosts).arg(binary("isthmus-agent"));
                command
            }
            None if self.is_managed => {
                let mut command = self.node.command("python3");
                command.args(["-c", SERVICE_MANAGER]).arg(self.hold());
                command.arg(binary("isthmus-agent"));
                command
            }
            None => self.node.command(binary("isthmus-agent")),
            Some(processor) => {
                let mut command = self.node.command("taskset");
                command.args(["-c", &processor.to_string()]).arg(binary("isthmus-agent"));
                command
            }
        };
        command.arg("run").arg("--settings").arg(&self.settings);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        self.agent = Some(self.node.spawn("agent", command));
    }

    /// Starts the agent (again) and waits until its socket answers.
    pub fn start_agent(&mut self) {
        self.spawn_agent();
        wait_for("the agent answers", START, || self.agentctl(&["status"]).success());
    }

    /// While this file exists, what manages the agent doesn't start it again.
    #[must_use]
    pub fn hold(&self) -> PathBuf {
        self.node.folder().join("hold")
    }

    /// What the host's `/etc/hosts` says. The agent sees the first one from its next start on, and
    /// changes of it at once.
    ///
    /// # Panics
    ///
    /// If the file can't be written.
    pub fn write_hosts(&self, text: &str) {
        std::fs::write(self.node.folder().join("hosts"), text).expect("the folder is ours");
    }

    /// The agent's process id.
    ///
    /// # Panics
    ///
    /// If it doesn't run.
    #[must_use]
    pub fn agent_id(&self) -> u32 {
        self.agent.as_ref().expect("the agent was started").id()
    }

    /// The agent's process.
    ///
    /// # Panics
    ///
    /// If it doesn't run.
    pub fn agent(&mut self) -> &mut Process {
        self.agent.as_mut().expect("the agent was started")
    }

    /// The agent's log so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.agent.as_ref().map(Process::output).unwrap_or_default()
    }

    /// `agentctl` on this host.
    #[must_use]
    pub fn agentctl(&self, arguments: &[&str]) -> Output {
        let mut command = self.node.command(binary("agentctl"));
        command.args(arguments).arg("--socket").arg(&self.socket);
        Output::of(command)
    }

    /// The agent's state directory.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.node.folder().join("state")
    }

    /// The path of the agent's socket.
    #[must_use]
    pub fn socket(&self) -> &std::path::Path {
        &self.socket
    }

    /// `agentctl join`, the token on standard input.
    #[must_use]
    pub fn join(&self, token: &str, name: &str) -> Output {
        let mut command = self.node.command(binary("agentctl"));
        command.args(["join", "-", "--name", name, "--socket"]).arg(&self.socket);
        Process::run_with_input(command, token.as_bytes())
    }

    /// The agent's status.
    #[must_use]
    pub fn status(&self) -> Value {
        self.agentctl(&["status", "-o", "json"]).json()
    }

    /// The host's own overlay addresses: a member's agent that was just started has them in a moment.
    ///
    /// # Panics
    ///
    /// If it doesn't work by any revision.
    #[must_use]
    pub fn addresses(&self) -> (Ipv4Addr, Ipv6Addr) {
        wait_for_value("the host has an IPv4 and an IPv6 address", START, || {
            let status = self.status();
            let addresses = status["addresses"].as_array()?.iter();
            let all: Vec<IpAddr> =
                addresses.filter_map(|address| address.as_str()?.parse().ok()).collect();
            let v4 = all.iter().find_map(|a| if let IpAddr::V4(a) = a { Some(*a) } else { None });
            let v6 = all.iter().find_map(|a| if let IpAddr::V6(a) = a { Some(*a) } else { None });
            v4.zip(v6)
        })
    }

    /// One of the agent's counters: the sum of all series of a metric whose labels contain `labels`.
    ///
    /// # Panics
    ///
    /// If the agent's metrics can't be read.
    #[must_use]
    pub fn metric(&self, name: &str, labels: &str) -> f64 {
        let text = self.node.sh("curl -sS --fail http://127.0.0.1:9464/metrics");
        text.lines()
            .filter(|line| line.split(['{', ' ']).next() == Some(name) && line.contains(labels))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    /// A command as a user (by number), who asks the mesh's DNS.
    #[must_use]
    pub fn command_as(&self, user: u32, program: &str) -> Command {
        self.node.command_as(user, Some(IpAddr::V4(self.addresses().0)), program)
    }

    /// `curl` as a user, with a limit of five seconds.
    #[must_use]
    pub fn curl(&self, user: u32, arguments: &[&str]) -> Output {
        let mut command = self.command_as(user, "curl");
        command.args(["-sS", "--max-time", "5"]).args(arguments);
        Output::of(command)
    }

    /// Starts nginx as a user: `port` on all addresses, `config` inside its `server` block.
    ///
    /// # Panics
    ///
    /// If it doesn't listen.
    #[must_use]
    pub fn nginx(&self, user: u32, port: u16, config: &str) -> Process {
        let folder = self.node.folder().join(format!("nginx-{port}"));
        std::fs::create_dir_all(&folder).expect("the lab's folder can be written");
        std::os::unix::fs::chown(&folder, Some(user), Some(user)).expect("root may chown");
        let path = |name: &str| folder.join(name).display().to_string();
        let text = format!(
            "daemon off; master_process off; pid {pid}; error_log stderr;\n\
             events {{ worker_connections 512; }}\n\
             http {{\n\
               access_log {log};\n\
               client_body_temp_path {tmp}; proxy_temp_path {tmp}; fastcgi_temp_path {tmp};\n\
               uwsgi_temp_path {tmp}; scgi_temp_path {tmp};\n\
               keepalive_timeout 600s; keepalive_requests 1000000; client_max_body_size 100m;\n\
               server {{ listen 0.0.0.0:{port}; listen [::]:{port}; root {root};\n{config}\n}}\n\
             }}\n",
            pid = path("pid"),
            log = path("access.log"),
            tmp = path("tmp"),
            root = folder.display(),
        );
        let file = folder.join("nginx.conf");
        std::fs::write(&file, text).expect("the lab's folder can be written");
        let mut command = self.node.command_as(user, None, "nginx");
        command.arg("-c").arg(file).arg("-p").arg(&folder).args(["-e", "stderr"]);
        let process = self.node.spawn(&format!("nginx-{port}"), command);
        wait_for("nginx listens", START, || {
            !self.node.sh(&format!("ss -Hltn 'sport = :{port}'")).is_empty()
        });
        process
    }

    /// nginx's access log.
    #[must_use]
    pub fn nginx_log(&self, port: u16) -> String {
        let file = self.node.folder().join(format!("nginx-{port}/access.log"));
        std::fs::read_to_string(file).unwrap_or_default()
    }

    /// The folder that [`Host::nginx`] serves.
    #[must_use]
    pub fn web_root(&self, port: u16) -> PathBuf {
        self.node.folder().join(format!("nginx-{port}"))
    }

    /// Waits until `agentctl flows` shows a flow that fits.
    #[track_caller]
    pub fn wait_for_flow(&self, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        wait_for_value(what, Duration::from_secs(5), || {
            let flows = self.agentctl(&["flows", "-o", "json"]).json();
            flows["flows"].as_array()?.iter().find(|flow| fits(flow)).cloned()
        })
    }
}
