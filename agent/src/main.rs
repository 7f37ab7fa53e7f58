//! `isthmus-agent`: the program on every host of a mesh.

#![forbid(unsafe_code)]

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{CommandFactory as _, Parser, Subcommand};
use isthmus_agent::leave::{self, Farewell};
use isthmus_agent::settings::{DEFAULT_PATH, Settings};
use isthmus_agent::{app, doctor, guard, logging};

const FAILED: u8 = 1;
const USAGE: u8 = 2;

/// Runs on every host of a mesh: builds its tunnels, knows which service opened each flow, and
/// enforces the mesh's policy on it.
#[derive(Parser)]
#[command(name = "isthmus-agent", version, after_help = HELP)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the agent in the foreground, until SIGTERM.
    ///
    /// Needs CAP_NET_ADMIN, and for the rest: CAP_NET_BIND_SERVICE (DNS on port 53), CAP_NET_RAW,
    /// CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH (to tell which service a process is), CAP_BPF (to
    /// have the kernel note who sends; it drops this once that is set up). Whatever else it is given
    /// it drops at once.
    #[command(after_help = HELP)]
    Run {
        /// The settings file; a missing one at the default place means default settings.
        #[arg(long, value_name = "FILE", default_value = DEFAULT_PATH, env = "ISTHMUS_AGENT_SETTINGS")]
        settings: PathBuf,
        /// Where keys and the last snapshot live, instead of what the settings say.
        #[arg(long, value_name = "DIR")]
        state_dir: Option<PathBuf>,
        /// The local API's Unix socket, instead of what the settings say.
        #[arg(long, value_name = "PATH")]
        socket: Option<PathBuf>,
    },
    /// Look at what would keep the agent from working here, and print it as JSON: for `agentctl check`.
    ///
    /// Changes nothing. Works before this host has joined, and whether or not its agent runs.
    Check {
        /// The settings file; a missing one at the default place means default settings.
        #[arg(long, value_name = "FILE", default_value = DEFAULT_PATH, env = "ISTHMUS_AGENT_SETTINGS")]
        settings: PathBuf,
        /// The local API's Unix socket, instead of what the settings say.
        #[arg(long, value_name = "PATH")]
        socket: Option<PathBuf>,
    },
    /// Raise the guard without running: keep the mesh's addresses off the host's other interfaces.
    ///
    /// For the time before there is a network: the guard follows from the last snapshot, and stays
    /// until this host leaves the mesh. `isthmus-agent run` raises it by itself, too. Needs
    /// CAP_NET_ADMIN.
    Guard {
        /// The settings file; a missing one at the default place means default settings.
        #[arg(long, value_name = "FILE", default_value = DEFAULT_PATH, env = "ISTHMUS_AGENT_SETTINGS")]
        settings: PathBuf,
        /// Where the last snapshot lives, instead of what the settings say.
        #[arg(long, value_name = "DIR")]
        state_dir: Option<PathBuf>,
        /// Take it away instead: for a host that is to leave the mesh without its controller.
        #[arg(long)]
        lower: bool,
    },
    /// Leave the mesh while no agent runs: tell the controller, and remove keys, state and guard.
    ///
    /// What `agentctl leave` does where the agent runs. A controller that can't be reached within 10 s is
    /// no reason to stay: then it says what an operator has to do. Needs CAP_NET_ADMIN.
    Leave {
        /// The settings file; a missing one at the default place means default settings.
        #[arg(long, value_name = "FILE", default_value = DEFAULT_PATH, env = "ISTHMUS_AGENT_SETTINGS")]
        settings: PathBuf,
        /// Where keys and the last snapshot live, instead of what the settings say.
        #[arg(long, value_name = "DIR")]
        state_dir: Option<PathBuf>,
        /// It is meant: the host needs a new token to come back.
        #[arg(long, required = true)]
        yes: bool,
    },
    /// Writes manual pages into a folder.
    #[command(hide = true)]
    Man {
        /// Which folder
        folder: PathBuf,
    },
}

const HELP: &str = "\
A host becomes a member of a mesh while its agent runs:
  agentctl token create            where an operator is, prints a token
  agentctl join TOKEN              on this host; the token is used here and kept nowhere
  agentctl status                  what this host is, and how it stands
From then on the agent needs the controller only for changes: it starts from the last snapshot.

Exit status: 0 stopped when told to, 1 failed, 2 wrong arguments or settings.";

fn main() -> ExitCode {
    let (settings, act) = match Arguments::parse().command {
        Command::Run { settings, state_dir, socket } => {
            (app::settings(&settings, state_dir, socket), run as fn(Settings) -> _)
        }
        Command::Guard { settings, state_dir, lower } => (
            app::settings(&settings, state_dir, None),
            if lower { lower_guard } else { raise_guard },
        ),
        Command::Leave { settings, state_dir, yes: _ } => {
            (app::settings(&settings, state_dir, None), leave_mesh as fn(Settings) -> _)
        }
        Command::Man { folder } => return manual(&folder),
        Command::Check { settings, socket } => return examine(&settings, socket.as_deref()),
    };
    let settings = match settings {
        Ok(settings) => settings,
        Err(error) => return complain(&error, USAGE),
    };
    if let Err(error) = logging::start(&settings) {
        return complain(&error, USAGE);
    }
    match act(settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => complain(&error, FAILED),
    }
}

/// Privileges belong to threads: they are dropped before the runtime makes any.
fn run(settings: Settings) -> anyhow::Result<()> {
    let prepared = app::prepare()?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(app::run(settings, prepared))
}

fn examine(settings: &Path, socket: Option<&Path>) -> ExitCode {
    let runtime = match small_runtime() {
        Ok(runtime) => runtime,
        Err(error) => return complain(&error.into(), FAILED),
    };
    say(&runtime.block_on(doctor::examine(settings, socket)).json().to_string());
    ExitCode::SUCCESS
}

fn raise_guard(settings: Settings) -> anyhow::Result<()> {
    let is_member = small_runtime()?.block_on(app::guard(&settings))?;
    if is_member {
        tracing::info!("the mesh's addresses are guarded");
    } else {
        tracing::info!("this host is not a member of a mesh: nothing to guard");
    }
    Ok(())
}

fn lower_guard(settings: Settings) -> anyhow::Result<()> {
    small_runtime()?.block_on(guard::lower(&settings.device))
}

fn leave_mesh(settings: Settings) -> anyhow::Result<()> {
    let Some(farewell) = small_runtime()?.block_on(leave::without_agent(&settings))? else {
        say("this host is not a member of a mesh");
        return Ok(());
    };
    let Farewell { member, told, unremoved } = farewell;
    let (host, mesh) = (member.host, member.mesh);
    say(&format!("host {host} left mesh {mesh}; its keys, state and packet filter are gone"));
    if let Err(why) = told {
        eprintln!(
            "isthmus-agent: the controller wasn't told ({why}): {}",
            Farewell::remedy(host.as_str())
        );
    }
    match unremoved {
        Some(why) => anyhow::bail!("Not everything was removed: {why}"),
        None => Ok(()),
    }
}

fn manual(folder: &Path) -> ExitCode {
    let written = std::fs::create_dir_all(folder)
        .and_then(|()| clap_mangen::generate_to(Arguments::command(), folder))
        .with_context(|| format!("Failed to write manual pages to {}", folder.display()));
    written.map_or_else(|error| complain(&error, FAILED), |()| ExitCode::SUCCESS)
}

fn small_runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

fn say(text: &str) {
    // Whoever reads it may be gone.
    let _ = writeln!(std::io::stdout(), "{text}");
}

fn complain(error: &anyhow::Error, code: u8) -> ExitCode {
    eprintln!("isthmus-agent: {error:#}");
    ExitCode::from(code)
}
