//! Configuration of the host's resolver, so that it asks the mesh's DNS.
//!
//! With systemd-resolved, only names in `mesh.internal` and reverse look-ups of mesh addresses come
//! here, by settings of the TUN device that go with it. Without it, and only if asked to, the agent
//! rewrites `/etc/resolv.conf`: what was there is kept beside the agent's state and put back at the
//! end, or at the next start if there was no proper end.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::{self, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use isthmus_model::{Ipv4Net, Mesh};
use tokio::process::Command;
use tokio::time::timeout;

use super::PORT;
use crate::settings::{ConfigureResolver, MESH_DOMAIN, SearchDomain};

/// The first line of a `resolv.conf` of ours.
const MARK: &str = "# Written by isthmus-agent, which puts the former file back when it stops.";
/// systemd-resolved answers in milliseconds, or not at all.
const PATIENCE: Duration = Duration::from_secs(5);

/// Paths of the host's resolver configuration.
#[derive(Clone, Debug)]
pub struct Paths {
    /// Exists where systemd-resolved runs.
    pub resolved: PathBuf,
    /// Speaks to systemd-resolved.
    pub resolvectl: PathBuf,
    /// Socket of systemd-resolved.
    pub stub: SocketAddr,
    /// The C library's configuration.
    pub resolv_conf: PathBuf,
    /// A directory of ours for what was in `resolv_conf` before.
    pub kept: PathBuf,
}

/// Failure to configure the host's resolver, with its remedy.
#[derive(Debug, thiserror::Error)]
pub enum ResolverError {
    /// It is configured, but not there.
    #[error(
        "systemd-resolved doesn't run here: {} is missing; set [dns] configure to \"auto\" or \"off\"",
        .0.display()
    )]
    NotRunning(PathBuf),
    /// It couldn't be asked.
    #[error("can't run {}", program.display())]
    Run {
        /// Which program.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It said no.
    #[error("{command} failed: {output}")]
    Refused {
        /// What was run.
        command: String,
        /// What it said.
        output: String,
    },
    /// It doesn't answer.
    #[error("{0} didn't end in time")]
    TimedOut(String),
    /// A file couldn't be read or replaced.
    #[error("can't {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The host's resolver, and what was done to it.
#[derive(Debug)]
pub struct Resolver {
    setting: ConfigureResolver,
    mode: Mode,
    paths: Paths,
    /// Domains of the mesh that names may leave out.
    search: Vec<String>,
    /// The device that systemd-resolved has settings for.
    device: Option<String>,
}

/// The setting, with `auto` decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Off,
    Resolved,
    ResolvConf,
}

impl Paths {
    /// Where Linux has them; `kept` is in the agent's state directory.
    #[must_use]
    pub fn standard(state_dir: &Path) -> Self {
        Self {
            resolved: "/run/systemd/resolve".into(),
            resolvectl: "resolvectl".into(),
            stub: ([127, 0, 0, 53], PORT).into(),
            resolv_conf: "/etc/resolv.conf".into(),
            kept: state_dir.join("resolv-conf"),
        }
    }
}

impl Resolver {
    /// Decides how the host's resolver is to be told, and changes nothing.
    #[must_use]
    pub fn new(setting: ConfigureResolver, search: &[SearchDomain], paths: Paths) -> Self {
        let mode = match setting {
            ConfigureResolver::Off => Mode::Off,
            ConfigureResolver::Resolved => Mode::Resolved,
            ConfigureResolver::ResolvConf => Mode::ResolvConf,
            ConfigureResolver::Auto if resolved_runs(&paths) => Mode::Resolved,
            ConfigureResolver::Auto => Mode::Off,
        };
        let search = search.iter().map(|it| it.as_str().to_owned()).collect();
        Self { setting, mode, paths, search, device: None }
    }

    /// The file that names the host's own resolvers, for [`Upstream::ResolvConf`](super::Upstream).
    /// Not the one that names us.
    #[must_use]
    pub fn upstream_file(&self) -> PathBuf {
        match self.mode {
            Mode::ResolvConf => self.kept_file(),
            Mode::Off | Mode::Resolved => self.paths.resolv_conf.clone(),
        }
    }

    /// Puts back what an agent that didn't end properly left behind. Called at the start, whatever
    /// the settings say now.
    ///
    /// # Errors
    ///
    /// If a file can't be read or replaced.
    pub fn recover(&self) -> Result<(), ResolverError> {
        if fs::symlink_metadata(self.kept_file()).is_err() {
            return Ok(());
        }
        self.put_back()
    }

    /// Tells the host to ask `servers`, which are reached through `device`, for the names of `mesh`.
    ///
    /// # Errors
    ///
    /// If systemd-resolved refuses, or a file can't be replaced. Nothing is left half done.
    pub async fn configure(
        &mut self,
        device: &str,
        servers: &[IpAddr],
        mesh: &Mesh,
    ) -> Result<(), ResolverError> {
        match self.mode {
            Mode::Off => Ok(()),
            Mode::Resolved => self.configure_resolved(device, servers, mesh).await,
            Mode::ResolvConf => self.replace(servers),
        }
    }

    /// Whether the host still is as [`Self::configure`] made it for `servers`: others write the same
    /// file, and systemd-resolved may forget, or come up later than the agent.
    pub async fn is_told(&mut self, servers: &[IpAddr]) -> bool {
        match self.mode {
            Mode::Off if self.setting == ConfigureResolver::Auto && resolved_runs(&self.paths) => {
                self.mode = Mode::Resolved;
                false
            }
            Mode::Off => true,
            Mode::ResolvConf => {
                let former = fs::read_to_string(self.kept_file()).unwrap_or_default();
                let current = fs::read_to_string(&self.paths.resolv_conf);
                current.is_ok_and(|current| current == ours(servers, &self.search, &former))
            }
            // A stub that is off says nothing about what systemd-resolved knows.
            Mode::Resolved => {
                self.device.is_some() && super::answers(self.paths.stub).await != Some(false)
            }
        }
    }

    /// Whether the host asks here for all names.
    #[must_use]
    pub fn takes_all_names(&self) -> bool {
        self.mode == Mode::ResolvConf
    }

    /// Undoes what [`Self::configure`] did.
    ///
    /// # Errors
    ///
    /// If systemd-resolved refuses, or a file can't be put back.
    pub async fn restore(&mut self) -> Result<(), ResolverError> {
        match self.mode {
            Mode::Off => Ok(()),
            Mode::Resolved => match self.device.take() {
                Some(device) => self.resolvectl(&["revert", &device]).await,
                None => Ok(()),
            },
            Mode::ResolvConf => self.recover(),
        }
    }

    async fn configure_resolved(
        &mut self,
        device: &str,
        servers: &[IpAddr],
        mesh: &Mesh,
    ) -> Result<(), ResolverError> {
        if !self.paths.resolved.exists() {
            return Err(ResolverError::NotRunning(self.paths.resolved.clone()));
        }
        self.device = Some(device.to_owned());
        let servers: Vec<String> = servers.iter().map(ToString::to_string).collect();
        let domains = domains(mesh, &self.search);
        let with = |verb: &'static str, values: &[String]| -> Vec<String> {
            [verb, device].map(str::to_owned).into_iter().chain(values.iter().cloned()).collect()
        };
        let commands = [
            with("dns", &servers),
            with("domain", &domains),
            with("default-route", &["no".to_owned()]),
        ];
        for command in commands {
            if let Err(error) = self.resolvectl(&command).await {
                // The first error says more than what a second one could.
                let _ = self.restore().await;
                return Err(error);
            }
        }
        Ok(())
    }

    async fn resolvectl(
        &self,
        arguments: &[impl AsRef<OsStr> + AsRef<str>],
    ) -> Result<(), ResolverError> {
        let program = &self.paths.resolvectl;
        let words: Vec<&str> = arguments.iter().map(AsRef::as_ref).collect();
        let command = format!("{} {}", program.display(), words.join(" "));
        let mut process = Command::new(program);
        process.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
        let output = timeout(PATIENCE, process.output())
            .await
            .map_err(|_| ResolverError::TimedOut(command.clone()))?
            .map_err(|source| ResolverError::Run { program: program.clone(), source })?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(ResolverError::Refused { command, output: said.trim().chars().take(500).collect() })
    }

    /// Puts a file of ours in the place of `resolv.conf`, after keeping that.
    fn replace(&self, servers: &[IpAddr]) -> Result<(), ResolverError> {
        let path = &self.paths.resolv_conf;
        let current = match fs::read_to_string(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            current => current.map_err(failed("read", path))?,
        };
        if !is_ours(&current) {
            self.keep(&current)?;
        }
        let former = fs::read_to_string(self.kept_file()).unwrap_or_default();
        write_whole(path, &ours(servers, &self.search, &former)).map_err(failed("replace", path))
    }

    /// The file's text, and where it pointed to if it was a link.
    fn keep(&self, text: &str) -> Result<(), ResolverError> {
        fs::create_dir_all(&self.paths.kept).map_err(failed("create", &self.paths.kept))?;
        let link = self.kept_link();
        remove(&link).map_err(failed("remove", &link))?;
        if let Ok(target) = fs::read_link(&self.paths.resolv_conf) {
            symlink(target, &link).map_err(failed("create", &link))?;
        }
        let file = self.kept_file();
        write_whole(&file, text).map_err(failed("write", &file))
    }

    /// Puts the former file back, unless somebody else has replaced ours meanwhile.
    fn put_back(&self) -> Result<(), ResolverError> {
        let (file, link, path) = (self.kept_file(), self.kept_link(), &self.paths.resolv_conf);
        if fs::read_to_string(path).is_ok_and(|current| is_ours(&current)) {
            match fs::read_link(&link) {
                Ok(target) => link_whole(path, &target).map_err(failed("replace", path))?,
                Err(_) => {
                    let former = fs::read_to_string(&file).map_err(failed("read", &file))?;
                    write_whole(path, &former).map_err(failed("replace", path))?;
                }
            }
        }
        remove(&link).map_err(failed("remove", &link))?;
        remove(&file).map_err(failed("remove", &file))
    }

    fn kept_file(&self) -> PathBuf {
        self.paths.kept.join("file")
    }

    fn kept_link(&self) -> PathBuf {
        self.paths.kept.join("link")
    }
}

fn resolved_runs(paths: &Paths) -> bool {
    let is_program = |path: &Path| path.is_file();
    let search = std::env::var_os("PATH").unwrap_or_default();
    paths.resolved.exists()
        && (is_program(&paths.resolvectl)
            || std::env::split_paths(&search).any(|dir| is_program(&dir.join(&paths.resolvectl))))
}

/// What systemd-resolved is to ask here: the mesh's names, and those of its addresses. `~` means to
/// ask for them, but not to search in them.
fn domains(mesh: &Mesh, search: &[String]) -> Vec<String> {
    let ipv6 = mesh.prefix.bytes();
    let nibbles = ipv6.iter().rev().map(|byte| format!("{:x}.{:x}.", byte & 0x0f, byte >> 4));
    let mut domains = search.to_vec();
    if !search.iter().any(|domain| domain == MESH_DOMAIN) {
        domains.push(format!("~{MESH_DOMAIN}"));
    }
    domains.push(format!("~{}ip6.arpa", nibbles.collect::<String>()));
    domains.extend(reverse_zones(mesh.ipv4).map(|zone| format!("~{zone}")));
    domains
}

/// The zones that hold the names of a prefix's addresses. If it doesn't end at an octet it takes
/// several.
fn reverse_zones(net: Ipv4Net) -> impl Iterator<Item = String> {
    let whole = usize::from(net.prefix_len() / 8);
    let (labels, zones) = match net.prefix_len() % 8 {
        0 => (whole, 1),
        bits => (whole + 1, 1_u8 << (8 - bits)),
    };
    (0..zones).map(move |zone| {
        let mut octets = net.network().octets();
        if labels > whole {
            octets[whole] |= zone;
        }
        let labels = octets[..labels].iter().rev().map(|octet| format!("{octet}."));
        labels.collect::<String>() + "in-addr.arpa"
    })
}

fn is_ours(text: &str) -> bool {
    text.starts_with(MARK)
}

/// A `resolv.conf` that names `servers`, and keeps what the former says beside that. What it searches
/// comes before `search`; only the last such line counts.
fn ours(servers: &[IpAddr], search: &[String], former: &str) -> String {
    let servers = servers.iter().map(|server| format!("nameserver {server}"));
    let of_kind = |kinds: &'static [&'static str]| {
        let is_one =
            |line: &&str| line.split_whitespace().next().is_some_and(|it| kinds.contains(&it));
        former.lines().filter(move |line| is_one(line))
    };
    let last = of_kind(&["search", "domain"]).next_back().unwrap_or_default();
    let searched = last.split_whitespace().skip(1).chain(search.iter().map(String::as_str));
    let searched: Vec<&str> = searched.collect();
    let searched = (!searched.is_empty()).then(|| format!("search {}", searched.join(" ")));
    let others = of_kind(&["options", "sortlist"]).map(str::to_owned);
    let lines: Vec<String> =
        [MARK.to_owned()].into_iter().chain(servers).chain(searched).chain(others).collect();
    lines.join("\n") + "\n"
}

/// Replaces a file so that nobody ever reads half of it.
fn write_whole(path: &Path, text: &str) -> io::Result<()> {
    let new = beside(path);
    remove(&new)?;
    let mut file = File::create_new(&new)?;
    file.write_all(text.as_bytes())?;
    file.set_permissions(Permissions::from_mode(0o644))?;
    file.sync_all()?;
    match fs::rename(&new, path) {
        // In a container the file may be a mount of its own, which can't be replaced.
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
            remove(&new)?;
            fs::write(path, text)
        }
        renamed => renamed,
    }
}

fn link_whole(path: &Path, target: &Path) -> io::Result<()> {
    let new = beside(path);
    remove(&new)?;
    symlink(target, &new)?;
    fs::rename(&new, path)
}

fn beside(path: &Path) -> PathBuf {
    path.with_extension("isthmus-new")
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ResolverError {
    let path = path.to_owned();
    move |source| ResolverError::File { action, path, source }
}
