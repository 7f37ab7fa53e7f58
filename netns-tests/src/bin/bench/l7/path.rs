//! A way from a client to an application, and the programs on it.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use isthmus_netns_tests::{Lab, Mesh, Node, Process, wait_for};

use super::load::{Load, Protocol, grpc_message};
use super::{hops, mesh};
use crate::Options;
use crate::noise::{anonymous_mb, cpu_seconds, resident_mb};

/// The hops' processor.
pub(crate) const HOPS_CPU: usize = 0;
/// That of generators and applications.
pub(crate) const GENERATORS_CPU: usize = 1;

/// The path to compare with.
pub(crate) const NO_PROXY: &str = "no proxy";

/// In the names of paths with that many routes and rules.
const MANY: &str = "10,000";

/// For a program to start or to end in, also where much else is going on.
const ENOUGH: Duration = Duration::from_secs(60);

/// A way from a client to an application.
pub(crate) struct Path {
    pub(crate) name: String,
    /// Where the client is.
    pub(crate) client: Node,
    /// As whom it runs, if not as root.
    pub(crate) user: Option<u32>,
    /// Address and port to ask, if this path takes the protocol.
    pub(crate) targets: Targets,
    pub(crate) hop: Hop,
    /// This program, where every user can run it.
    pub(crate) bench: String,
}

/// By protocol.
#[derive(Clone, Debug, Default)]
pub(crate) struct Targets {
    pub(crate) http1: Option<String>,
    pub(crate) http2: Option<String>,
    pub(crate) grpc: Option<String>,
}

/// What is measured of a path.
pub(crate) enum Hop {
    None,
    Programs {
        start: Box<dyn Fn() -> Vec<Process>>,
        running: Vec<Process>,
    },
    /// The agents of all hosts.
    Mesh(Rc<RefCell<Mesh>>),
}

/// All paths that are wanted and can be had; the applications; what a reader should know.
pub(crate) fn all(lab: &Lab, options: &Options) -> (Vec<Path>, Vec<Process>, Vec<String>) {
    let wanted = |name: &str| {
        options.only.is_empty() || options.only.iter().any(|only| name.contains(only.as_str()))
    };
    let yard = hops::Yard::new(lab);
    let mut notes = vec![
        "a hop is one process on processor 0; clients and nginx behind it are on processor 1"
            .to_owned(),
    ];
    let mut servers = vec![hops::application(&yard.node)];
    let mut paths = vec![yard.no_proxy()];
    paths.extend(hops::all(&yard, options, &wanted, &mut notes));
    let (meshed, applications) = mesh::all(&yard.bench, &wanted, &mut notes);
    paths.extend(meshed);
    servers.extend(applications);
    (paths, servers, notes)
}

impl Path {
    pub(crate) fn target(&self, protocol: Protocol) -> Option<&str> {
        match protocol {
            Protocol::Http1 => self.targets.http1.as_deref(),
            Protocol::Http2 => self.targets.http2.as_deref(),
            Protocol::Grpc => self.targets.grpc.as_deref(),
        }
    }

    /// Forgets protocols by which nothing is measured. What memory takes is measured by HTTP/1.1.
    pub(crate) fn keep_only(&mut self, wanted: impl Fn(Protocol) -> bool) {
        let Targets { http2, grpc, .. } = &mut self.targets;
        http2.take_if(|_| !wanted(Protocol::Http2));
        grpc.take_if(|_| !wanted(Protocol::Grpc));
    }

    /// The many routes and rules are compared by one load only.
    pub(crate) fn takes(&self, load: &Load) -> bool {
        !self.has_many_rules() || load.name == "h1-1k-16"
    }

    pub(crate) fn has_many_rules(&self) -> bool {
        self.name.contains(MANY)
    }

    fn pids(&self) -> Vec<u32> {
        match &self.hop {
            Hop::None => Vec::new(),
            Hop::Programs { running, .. } => running.iter().map(Process::id).collect(),
            Hop::Mesh(mesh) => mesh.borrow().hosts.values().map(|host| host.agent_id()).collect(),
        }
    }

    /// CPU time of all programs on the way, so far.
    pub(crate) fn cpu(&self) -> Option<f64> {
        let pids = self.pids();
        (!pids.is_empty()).then(|| pids.iter().map(|pid| cpu_seconds(*pid)).sum())
    }

    /// Of the larger program.
    pub(crate) fn resident_mb(&self) -> Option<f64> {
        self.pids().iter().map(|pid| resident_mb(*pid)).reduce(f64::max)
    }

    /// Likewise, of its heap and stacks.
    pub(crate) fn anonymous_mb(&self) -> Option<f64> {
        self.pids().iter().map(|pid| anonymous_mb(*pid)).reduce(f64::max)
    }

    /// Starts the programs again, and waits until requests pass.
    pub(crate) fn restart(&mut self) {
        match &mut self.hop {
            Hop::None => {}
            Hop::Programs { start, running } => {
                running.clear();
                *running = start();
            }
            Hop::Mesh(mesh) => {
                let mut mesh = mesh.borrow_mut();
                for host in mesh.hosts.values_mut() {
                    host.agent().terminate(ENOUGH);
                }
                for host in mesh.hosts.values_mut() {
                    host.spawn_agent();
                }
            }
        }
        self.wait_until_ready();
        if let Hop::Programs { running, .. } = &mut self.hop {
            let is_whole = running.iter_mut().all(Process::is_running);
            assert!(is_whole, "{}: a program has ended: somebody else answers", self.name);
        }
    }

    /// Asks once by each protocol, and looks at the answer.
    pub(crate) fn wait_until_ready(&self) {
        for protocol in [Protocol::Http1, Protocol::Http2, Protocol::Grpc] {
            let Some(target) = self.target(protocol) else { continue };
            let (options, answer) = match protocol {
                Protocol::Http1 => (String::new(), "HTTP/1.1 200"),
                Protocol::Http2 => ("--http2-prior-knowledge".to_owned(), "HTTP/2 200"),
                Protocol::Grpc => {
                    let options = self.grpc_options().replace("-d ", "--data-binary @");
                    (format!("--http2-prior-knowledge {options}"), "grpc-status: 0")
                }
            };
            let url = format!("http://{target}{}", protocol.file("1k"));
            let line =
                format!("{} curl -sv -m 2 -o /dev/null {options} {url} 2>&1", self.identity());
            let mut said = String::new();
            let started = Instant::now();
            while !said.contains(answer) {
                assert!(started.elapsed() < ENOUGH, "{}: {line}: {said}", self.name);
                said = self.client.try_sh(&line).stdout;
            }
        }
    }

    /// How to become the client: what a command line starts with.
    pub(crate) fn identity(&self) -> String {
        self.user.map_or_else(String::new, |user| {
            format!("setpriv --reuid={user} --regid={user} --clear-groups --")
        })
    }

    pub(crate) fn grpc_options(&self) -> String {
        let message = grpc_message(&self.client);
        format!("-d {message} -H 'content-type: application/grpc' -H 'te: trailers'")
    }

    /// A file that the client may write.
    pub(crate) fn scratch(&self, name: &str) -> String {
        let folder = self.client.folder().join("scratch");
        std::fs::create_dir_all(&folder).expect("the lab's folder can be written");
        if let Some(user) = self.user {
            std::os::unix::fs::chown(&folder, Some(user), None).expect("root may chown");
        }
        folder.join(name).display().to_string()
    }
}

/// For what shows itself by nothing.
pub(crate) fn pause(time: Duration) {
    let until = Instant::now() + time;
    wait_for("the time passes", time * 2, || Instant::now() >= until);
}
