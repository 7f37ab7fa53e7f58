//! Namespaces, links and what can go wrong with them.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use tempfile::TempDir;

use crate::process::{Output, Process};

/// Namespaces that belong together. Dropping it ends what runs in them and removes them.
#[derive(Debug)]
pub struct Lab {
    prefix: String,
    folder: TempDir,
    namespaces: Mutex<Vec<String>>,
}

/// A host, router or switch: a network namespace.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its name in the lab.
    pub name: String,
    namespace: String,
    folder: PathBuf,
}

/// A cable between two nodes.
#[derive(Clone, Copy, Debug)]
pub struct Link<'a> {
    /// One end and its interface's name.
    pub a: (&'a Node, &'a str),
    /// The other end and its interface's name.
    pub b: (&'a Node, &'a str),
    /// In bytes.
    pub mtu: u32,
}

static LABS: AtomicU32 = AtomicU32::new(0);

impl Lab {
    /// An empty lab.
    ///
    /// # Panics
    ///
    /// If the machine can't make one: it needs root.
    #[must_use]
    pub fn new() -> Self {
        let pid = std::process::id();
        sweep_dead_labs();
        let number = LABS.fetch_add(1, Ordering::Relaxed);
        let folder =
            tempfile::Builder::new().prefix("isthmus-lab-").tempdir().expect("a temporary folder");
        allow_all_to_enter(folder.path());
        Self { prefix: format!("isl-{pid}-{number}-"), folder, namespaces: Mutex::new(Vec::new()) }
    }

    /// A folder for the lab's files; gone with it.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Adds a namespace with loopback up.
    ///
    /// # Panics
    ///
    /// If the kernel refuses.
    #[must_use]
    pub fn node(&self, name: &str) -> Node {
        let namespace = format!("{}{name}", self.prefix);
        let _ = sh(&format!("ip netns add {namespace}")).expect_success();
        self.namespaces.lock().expect("no test panics holding this").push(namespace.clone());
        let folder = self.folder.path().join(name);
        std::fs::create_dir_all(&folder).expect("the lab's folder can be written");
        let node = Node { name: name.to_owned(), namespace, folder };
        node.sh("ip link set lo up && sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0");
        node
    }

    /// Adds a switch: a namespace with a bridge that [`Lab::plug`] connects hosts to.
    #[must_use]
    pub fn switch(&self, name: &str) -> Node {
        let node = self.node(name);
        node.sh("ip link add br0 type bridge && ip link set br0 up");
        node
    }

    /// Adds a router: a namespace that forwards.
    #[must_use]
    pub fn router(&self, name: &str) -> Node {
        let node = self.node(name);
        node.sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
        node
    }

    /// Lays a cable.
    ///
    /// # Panics
    ///
    /// If the kernel refuses.
    pub fn link(&self, link: Link<'_>) {
        let Link { a: (a, a_if), b: (b, b_if), mtu } = link;
        let _ = sh(&format!(
            "ip link add {a_if} mtu {mtu} netns {} type veth peer name {b_if} mtu {mtu} netns {}",
            a.namespace, b.namespace
        ))
        .expect_success();
        // Software checksums, so that captures and middle boxes see whole packets.
        a.sh(&format!("ethtool -K {a_if} tx off >/dev/null; ip link set {a_if} up"));
        b.sh(&format!("ethtool -K {b_if} tx off >/dev/null; ip link set {b_if} up"));
    }

    /// Connects a node to a switch as `eth0` with these addresses (with prefix length).
    pub fn plug(&self, node: &Node, switch: &Node, addresses: &[String], mtu: u32) {
        let port = format!("p-{}", node.name);
        self.link(Link { a: (node, "eth0"), b: (switch, &port), mtu });
        switch.sh(&format!("ip link set {port} master br0"));
        for address in addresses {
            node.sh(&format!("ip addr add {address} dev eth0 {}", nodad(address)));
        }
    }
}

impl Default for Lab {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let Ok(namespaces) = self.namespaces.lock() else { return };
        for namespace in namespaces.iter() {
            remove_namespace(namespace);
        }
        if std::thread::panicking()
            && let Some(keep) = std::env::var_os("ISTHMUS_KEEP_LOGS")
        {
            let _ = Command::new("cp").arg("-r").arg(self.folder.path()).arg(keep).status();
        }
    }
}

impl Node {
    /// A command that runs in this namespace. Only the network differs: `/sys` stays, so that
    /// cgroups are seen.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.namespace)).arg("--").arg(program);
        // Root's own tools may be in folders that other users can't enter.
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command
    }

    /// A command that runs in this namespace as another user and asks this DNS server.
    #[must_use]
    pub fn command_as(&self, user: u32, dns: Option<IpAddr>, program: &str) -> Command {
        let mut command = match dns {
            None => self.command("setpriv"),
            Some(server) => {
                let resolv_conf =
                    self.folder.join(format!("resolv-{server}.conf").replace(':', "_"));
                std::fs::write(&resolv_conf, format!("nameserver {server}\n"))
                    .expect("the folder is ours");
                let mut command = self.command("unshare");
                command.args([
                    "-m",
                    "sh",
                    "-c",
                    "mount --bind \"$0\" /etc/resolv.conf && exec \"$@\"",
                ]);
                command.arg(resolv_conf).arg("setpriv");
                command
            }
        };
        command.args([
            &format!("--reuid={user}"),
            &format!("--regid={user}"),
            "--clear-groups",
            "--",
            program,
        ]);
        command
    }

    /// Runs a shell line in this namespace.
    ///
    /// # Panics
    ///
    /// If it fails.
    #[track_caller]
    pub fn sh(&self, line: &str) -> String {
        self.try_sh(line).expect_success()
    }

    /// Runs a shell line in this namespace, which may fail.
    #[must_use]
    pub fn try_sh(&self, line: &str) -> Output {
        let mut command = self.command("sh");
        command.args(["-c", line]);
        Output::of(command)
    }

    /// Starts a program in this namespace; its output goes to `<name>.log` in the node's folder.
    #[must_use]
    pub fn spawn(&self, name: &str, command: Command) -> Process {
        Process::start(command, &self.folder.join(format!("{name}.log")))
    }

    /// Starts a shell line (it should `exec`).
    #[must_use]
    pub fn spawn_sh(&self, name: &str, line: &str) -> Process {
        let mut command = self.command("sh");
        command.args(["-c", line]);
        self.spawn(name, command)
    }

    /// The node's folder in the lab's.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Hides what is behind this router: connections leave by `interface` with its address.
    pub fn masquerade(&self, interface: &str) {
        self.sh(&format!(
            "nft add table ip nat && \
             nft add chain ip nat post '{{ type nat hook postrouting priority 100; }}' && \
             nft add rule ip nat post oifname {interface} masquerade && \
             nft add table ip filter && \
             nft add chain ip filter forwarding '{{ type filter hook forward priority 0; }}' && \
             nft add rule ip filter forwarding iifname {interface} ct state new drop"
        ));
    }

    /// Drops this share of all packets that come in by an interface.
    pub fn lose(&self, interface: &str, percent: u32) {
        self.sh(&format!(
            "nft add table netdev faults && nft add chain netdev faults {interface} \
             '{{ type filter hook ingress device {interface} priority 0; }}' && \
             nft add rule netdev faults {interface} numgen random mod 100 '<' {percent} counter drop"
        ));
    }

    /// Undoes [`Node::lose`].
    pub fn lose_nothing(&self) {
        self.sh("nft delete table netdev faults");
    }
}

fn nodad(address: &str) -> &'static str {
    if address.contains(':') { "nodad" } else { "" }
}

fn sh(line: &str) -> Output {
    let mut command = Command::new("sh");
    command.args(["-c", line]);
    Output::of(command)
}

/// Other users' processes read their files here.
fn allow_all_to_enter(folder: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755))
        .expect("the folder is ours");
}

fn remove_namespace(namespace: &str) {
    let _ = sh(&format!("ip netns pids {namespace} | xargs -r kill -9; ip netns del {namespace}"));
}

/// Removes what test runs left that were killed: their names hold their process ids.
fn sweep_dead_labs() {
    let Ok(entries) = std::fs::read_dir("/run/netns") else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(rest) = name.strip_prefix("isl-") else { continue };
        let pid = rest.split('-').next().unwrap_or_default();
        if !Path::new("/proc").join(pid).exists() {
            remove_namespace(&name);
        }
    }
}
