//! `isthmus-agent`: the program on every host of a mesh.

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use isthmus_agent::settings::{DEFAULT_PATH, Settings};
use isthmus_agent::{app, logging};

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
}

const HELP: &str = "\
A host becomes a member of a mesh while its agent runs:
  agentctl token create            where an operator is, prints a token
  agentctl join TOKEN              on this host; the token is used here and kept nowhere
  agentctl status                  what this host is, and how it stands
From then on the agent needs the controller only for changes: it starts from the last snapshot.

Exit status: 0 stopped when told to, 1 failed, 2 wrong arguments or settings.";

fn main() -> ExitCode {
    let Command::Run { settings, state_dir, socket } = Arguments::parse().command;
    let settings = match app::settings(&settings, state_dir, socket) {
        Ok(settings) => settings,
        Err(error) => return complain(&error, USAGE),
    };
    if let Err(error) = logging::start(&settings) {
        return complain(&error, USAGE);
    }
    match run(settings) {
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

fn complain(error: &anyhow::Error, code: u8) -> ExitCode {
    eprintln!("isthmus-agent: {error:#}");
    ExitCode::from(code)
}
