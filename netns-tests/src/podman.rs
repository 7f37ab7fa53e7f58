//! A real container engine behind one host of the lab.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use crate::{Node, Output, Process, wait_for};

const SOON: Duration = Duration::from_secs(10);

/// Not all machines let containers have podman's usual ones.
pub const CONTAINER_LIMITS: [&str; 4] =
    ["--ulimit", "nofile=4096:4096", "--ulimit", "nproc=1000:1000"];

/// Podman with a store of its own, whose containers are behind one host.
#[derive(Debug)]
pub struct Podman {
    node: Node,
    folder: PathBuf,
    socket: String,
    service: Option<Process>,
}

impl Podman {
    /// Imports the one image, `localhost/demo:1`, and serves the engine's API at a socket.
    ///
    /// # Panics
    /// If Podman, BusyBox or curl are missing.
    #[must_use]
    pub fn new(node: &Node, socket: &str) -> Self {
        let folder = node.folder().join("podman");
        let root = folder.join("root/bin");
        std::fs::create_dir_all(&root).expect("a folder of ours");
        let mut podman =
            Self { node: node.clone(), folder, socket: socket.to_owned(), service: None };
        let links = "cp /bin/busybox /bin/bash /usr/bin/curl $0 && cd $0 && \
             for it in sh sleep nc cat httpd; do ln -s busybox $it; done && \
             ldd bash curl | grep -o '/[^ :]*\\.so[^ ]*' | sort -u | \
             while read it; do cp --parents -L $it ..; done";
        let _ = Output::of(sh(links, &[&root.display().to_string()])).expect_success();
        let root = podman.folder.join("root");
        let import = "tar -C \"$0\" -c . | \"$@\" import - localhost/demo:1";
        let mut command = podman.node.command("sh");
        command.args(["-c", import]).arg(root).arg("podman").args(podman.options());
        let _ = Output::of(command).expect_success();
        podman.serve();
        podman
    }

    fn options(&self) -> Vec<String> {
        let folder = self.folder.display();
        [
            "--root",
            &format!("{folder}/store"),
            "--runroot",
            &format!("{folder}/run"),
            "--runtime",
            "runc",
        ]
        .map(str::to_owned)
        .to_vec()
    }

    /// Serves the engine's API.
    ///
    /// # Panics
    /// If no socket appears within 10 s.
    pub fn serve(&mut self) {
        drop(std::fs::remove_file(&self.socket));
        let mut command = self.node.command("podman");
        command.args(self.options()).args(["system", "service", "--time=0"]);
        command.arg(format!("unix://{}", self.socket));
        self.service = Some(self.node.spawn("podman", command));
        wait_for("the engine has a socket", SOON, || PathBuf::from(&self.socket).exists());
    }

    /// Ends the engine's API, as a crash would.
    pub fn stop(&mut self) {
        if let Some(service) = &mut self.service {
            service.kill();
        }
    }

    /// Runs `podman` with some arguments, whatever comes of it.
    pub fn try_run(&self, arguments: &[&str]) -> Output {
        let mut command = self.node.command("podman");
        command.args(self.options()).args(arguments).current_dir(self.node.folder());
        Output::of(command)
    }

    /// Runs `podman` with some arguments and returns what it prints.
    ///
    /// # Panics
    /// If it fails.
    pub fn run(&self, arguments: &[&str]) -> String {
        self.try_run(arguments).expect_success().trim().to_owned()
    }

    /// Starts a container of the one image on a bridge.
    ///
    /// # Panics
    /// If it doesn't start.
    pub fn start(&self, name: &str, options: &[&str], command: &[&str]) {
        let run = ["run", "-d", "--name", name, "--network", "podman"];
        let all = [&run[..], &CONTAINER_LIMITS, options, &["localhost/demo:1"], command].concat();
        self.run(&all);
    }

    /// One value of `podman inspect`, by its template.
    ///
    /// # Panics
    /// If there is no such container.
    pub fn of(&self, name: &str, what: &str) -> String {
        self.run(&["inspect", "-f", &format!("{{{{{what}}}}}"), name])
    }

    /// Fetches a page from inside a container.
    pub fn get(&self, name: &str, url: &str) -> Output {
        self.try_run(&["exec", name, "curl", "-fsS", "-m", "4", url])
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        drop(self.try_run(&["rm", "-fa", "-t", "0"]));
        drop(std::fs::remove_file(&self.socket));
        let mount = self.folder.join("store/overlay");
        drop(Output::of(sh("umount -l $0 2>/dev/null; true", &[&mount.display().to_string()])));
    }
}

fn sh(line: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", line]).args(arguments);
    command
}
