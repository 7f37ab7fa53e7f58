//! The command line.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{self, ExitCode};
use std::{env, fs};

use anyhow::{Context as _, Result, bail};
use clap::{CommandFactory as _, Parser, Subcommand};
use isthmus_model::{Name, TrustDomain};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::init::{self, Init};
use crate::mesh_file::MeshFile;
use crate::settings::{DEFAULT_STATE, Settings};
use crate::{logging, server};

/// The packages' unit.
const UNIT: &str = "isthmus-controller.service";

/// The controller of an Isthmus mesh: hosts join it by token, and it tells each agent the topology
/// and the policy that concern it.
///
/// Start with `isthmus-controller init`, which makes a mesh; then let `isthmus-controller run` run.
/// Operators work with `agentctl` and the credentials that `init` writes.
#[derive(Debug, Parser)]
#[command(name = "isthmus-controller", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Makes a new mesh: its CA, its address prefix and the first operator's credentials.
    ///
    /// Everything goes into the state directory. Keep its `ca.key` safe: who has it, is the mesh.
    #[command(
        after_help = "Example:\n  isthmus-controller init --state-dir /var/lib/isthmus/controller \\\n      --name corp --trust-domain corp.example --address ctl.corp.example:7443"
    )]
    Init {
        /// Where to put the mesh.
        #[arg(long, value_name = "DIR", default_value = DEFAULT_STATE)]
        state_dir: PathBuf,
        /// The mesh's name: lower-case letters, digits and hyphens.
        #[arg(long)]
        name: Name,
        /// The root of all identities, a lower-case DNS name; it can't be changed later.
        #[arg(long, value_name = "DOMAIN")]
        trust_domain: TrustDomain,
        /// Where hosts and operators will reach this controller. Give several, separated by
        /// commas; they are written into every join token.
        #[arg(long = "address", value_name = "HOST:PORT", value_delimiter = ',', required = true)]
        addresses: Vec<String>,
    },
    /// Serves a mesh, until SIGTERM or SIGINT.
    #[command(
        after_help = "The settings file (TOML) knows the keys state_dir, listen, certificate_lifetime (\"24h\"),\noperator_lifetime (\"8h\"), log (a tracing filter, \"info\") and log_format (\"text\" or \"json\"). Options win over it."
    )]
    Run {
        /// Where `init` put the mesh [default: the settings' or /var/lib/isthmus/controller]
        #[arg(long, value_name = "DIR")]
        state_dir: Option<PathBuf>,
        /// What to listen on [default: the settings' or [::]:7443, which is IPv4 too]
        #[arg(long, value_name = "ADDRESS:PORT")]
        listen: Option<SocketAddr>,
        /// A settings file [default: /etc/isthmus/controller.toml if it exists]
        #[arg(long, value_name = "FILE")]
        settings: Option<PathBuf>,
    },
    /// Writes credentials for one more administrator, or fresh ones for the same operator.
    ///
    /// They are good for 8 hours, and `agentctl` renews them while they are used at least every 30 days.
    /// Needs the CA's key, so it works on the controller's machine only; the controller may be running.
    /// Operators with another role are added by `agentctl operator add`.
    Operator {
        /// The operator's name, which the controller's log will show.
        name: Name,
        /// Where `init` put the mesh.
        #[arg(long, value_name = "DIR", default_value = DEFAULT_STATE)]
        state_dir: PathBuf,
        /// The folder to write; it must not exist yet.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Writes manual pages into a folder.
    #[command(hide = true)]
    Man {
        /// Which folder
        folder: PathBuf,
    },
}

/// The program.
#[must_use]
pub fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Init { state_dir, name, trust_domain, addresses } => {
            initialize(Init { state_dir, name, trust_domain, addresses })
        }
        Command::Run { state_dir, listen, settings } => Settings::read(settings.as_deref())
            .and_then(|mut settings| {
                settings.state_dir = state_dir.unwrap_or(settings.state_dir);
                settings.listen = listen.unwrap_or(settings.listen);
                run(settings)
            }),
        Command::Operator { name, state_dir, out } => init::operator(&state_dir, &out, &name)
            .and_then(|()| say(&format!("Wrote {}.", out.join("operator.toml").display()))),
        Command::Man { folder } => fs::create_dir_all(&folder)
            .and_then(|()| clap_mangen::generate_to(Arguments::command(), &folder))
            .with_context(|| format!("Failed to write manual pages to {}", folder.display())),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn initialize(wanted: Init) -> Result<()> {
    let state_dir = wanted.state_dir.clone();
    match owner_to_become(&state_dir)? {
        Some((user, group)) => init_as(user, group)?,
        None => drop(init::init(wanted)?),
    }
    let identity = MeshFile::read(&state_dir)?.identity()?;
    let state = state_dir.display();
    let first = if start_unit(&state_dir)? {
        format!(
            "It runs now ({UNIT}). Here, root's agentctl finds the credentials in {state}/operator by itself.\n\nNext:"
        )
    } else {
        format!(
            "Next:\n  run the controller:    isthmus-controller run --state-dir {state}\n  \
             copy the credentials:  {state}/operator/ to ~/.config/isthmus/ of whoever operates the mesh"
        )
    };
    say(&format!(
        "Made the mesh {:?} in {state}: prefix {}/48, trust domain {}.\n\n{first}\n  \
         make a join token:     agentctl token create\n  \
         on each host:          agentctl join -    (and paste it)\n\n\
         Back up {state}: a controller that is lost without it can't be replaced, and every host would have \
         to join a new mesh.\nIts ca.key is readable by its owner alone (0600). Keep it so, and backups likewise: \
         who has it, is the mesh.",
        identity.name,
        identity.prefix.network(),
        identity.trust_domain,
    ))
}

/// Whom the state directory belongs to, if that is somebody else and we may become them: what root makes
/// for the package's user must be that user's.
fn owner_to_become(state_dir: &Path) -> Result<Option<(u32, u32)>> {
    let is_root = is_root()?;
    match fs::metadata(state_dir) {
        Ok(found) => Ok((is_root && found.uid() != 0).then_some((found.uid(), found.gid()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => {
            Err(error).with_context(|| format!("Failed to look at {}", state_dir.display()))
        }
    }
}

fn is_root() -> Result<bool> {
    Ok(fs::metadata("/proc/self").context("Failed to read /proc/self")?.uid() == 0)
}

/// The same command once more, by another user. It says itself what fails.
fn init_as(user: u32, group: u32) -> Result<()> {
    let status = process::Command::new("/proc/self/exe")
        .args(env::args_os().skip(1))
        .current_dir("/")
        .uid(user)
        .gid(group)
        .stdout(process::Stdio::null())
        .status()
        .context("Failed to run init as the owner of the state directory")?;
    if status.success() { Ok(()) } else { bail!("Nothing was made; see above") }
}

/// Starts the packaged unit, where there is one for this mesh; says whether it runs.
fn start_unit(state_dir: &Path) -> Result<bool> {
    let systemctl = |arguments: &[&str]| {
        process::Command::new("systemctl")
            .args(arguments)
            .stdout(process::Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    };
    let packaged = is_root()?
        && state_dir == Path::new(DEFAULT_STATE)
        && Path::new("/run/systemd/system").is_dir()
        && systemctl(&["cat", UNIT]);
    if packaged && !systemctl(&["start", UNIT]) {
        bail!("The mesh is made, but {UNIT} doesn't start: see `journalctl -u {UNIT}`");
    }
    Ok(packaged)
}

fn say(text: &str) -> Result<()> {
    writeln!(io::stdout(), "{text}").context("Failed to write to standard output")
}

fn run(settings: Settings) -> Result<()> {
    logging::start(&settings)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("Failed to start the runtime")?;
    let done = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("Failed to watch SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("Failed to watch SIGINT")?;
        let listener = TcpListener::bind(settings.listen).await.with_context(|| {
            format!("Failed to listen on {}; is another controller running?", settings.listen)
        })?;
        let stop = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        server::serve(settings, listener, stop).await
    });
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    done
}
