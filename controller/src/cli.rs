//! The command line.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use isthmus_model::{Name, TrustDomain};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::init::{self, Init};
use crate::settings::{DEFAULT_STATE, Settings};
use crate::{logging, server};

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
        after_help = "The settings file (TOML) knows the keys state_dir, listen, certificate_lifetime (\"24h\"),\nlog (a tracing filter, \"info\") and log_format (\"text\" or \"json\"). Options win over it."
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
    /// Writes credentials for one more operator, or fresh ones for the same.
    ///
    /// They are good for a year. Needs the CA's key, so it works on the controller's machine only;
    /// the controller may be running.
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
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn initialize(wanted: Init) -> Result<()> {
    let state = wanted.state_dir.clone();
    let identity = init::init(wanted)?;
    let state = state.display();
    say(&format!(
        "Made the mesh {:?} in {state}: prefix {}/48, trust domain {}.\n\n\
         Next:\n  \
         1. run the controller:    isthmus-controller run --state-dir {state}\n  \
         2. copy the credentials:  {state}/operator/ to ~/.config/isthmus/ of whoever operates the mesh\n  \
         3. make a join token:     agentctl token create\n  \
         4. on each host:          agentctl join TOKEN\n\n\
         Back up {state}, and keep ca.key away from everybody: who has it, is the mesh.",
        identity.name,
        identity.prefix.network(),
        identity.trust_domain,
    ))
}

fn say(text: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{text}").context("Failed to write to standard output")
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
