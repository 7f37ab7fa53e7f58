//! From the command line to the command, and from its end to the exit code.

use std::io;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory as _, FromArgMatches as _};

use crate::cli::{Cli, Command, Shell};
use crate::errors::{self, Exit, is_broken_pipe};
use crate::output::{self, Tone, clean, paint};
use crate::transport::{Session, Whom};
use crate::{
    apply, check, explain, flows, inventory, join, leave, operator, ping, reference, rollout,
    routes, schema, stat, status, tap, token, topology, validate, wait, whois,
};

/// The program.
pub(crate) fn main() -> ExitCode {
    // clap's own errors end here, with exit code 2; --help and --version with 0.
    let matches = Cli::command().get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let session = Session::new(cli.global, &on_line(&matches));
    let done = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("Failed to start")
        .and_then(|runtime| runtime.block_on(run(&session, cli.command)));
    match done {
        Ok(exit) => exit.into(),
        // Whoever read our output has seen enough.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let label = paint("error:", Tone::Bad);
            output::complain(&format!("{label} {}", clean(&format!("{error:#}"))));
            errors::exit(&error).into()
        }
    }
}

/// Which of `--credentials` and `--socket` stand on the command line, not in the environment.
fn on_line(matches: &ArgMatches) -> Vec<Whom> {
    let given = |name: &str| matches.value_source(name) == Some(ValueSource::CommandLine);
    let both = [("credentials", Whom::Mesh), ("socket", Whom::Agent)];
    both.into_iter().filter(|(name, _)| given(name)).map(|(_, whom)| whom).collect()
}

async fn run(session: &Session, command: Command) -> Result<Exit> {
    match command {
        Command::Apply(arguments) => apply::apply(session, &arguments).await,
        Command::Confirm { undo } => topology::confirm(session, undo).await,
        Command::Topology(command) => topology::topology(session, command).await,
        Command::Operator(command) => operator::operator(session, command).await,
        Command::Audit { who, limit } => operator::audit(session, who, limit).await,
        Command::Validate { files } => validate::validate(session, &files),
        Command::Status { mesh, agent, check } => {
            let is_well = status::status(session, mesh, agent).await?;
            Ok(if check && !is_well { Exit::Negative } else { Exit::Success })
        }
        Command::Host(command) => inventory::host(session, &command).await,
        Command::Service(command) => inventory::service(session, &command).await,
        Command::Device(command) => inventory::device(session, &command).await,
        Command::Token(command) => token::token(session, &command).await,
        Command::Rollout(command) => rollout::rollout(session, &command).await,
        Command::Join(arguments) => join::join(session, arguments).await,
        Command::Leave { yes } => leave::leave(session, yes).await,
        Command::Check(arguments) => check::check(session, &arguments).await,
        Command::Peers => status::peers(session).await,
        Command::Flows(arguments) => flows::flows(session, arguments).await,
        Command::Whois { who } => whois::whois(session, &who).await,
        Command::Routes => routes::routes(session).await,
        Command::Tap(arguments) => tap::tap(session, arguments).await,
        Command::Stat(arguments) => stat::stat(session, &arguments).await,
        Command::Explain(arguments) => explain::explain(session, &arguments).await,
        Command::Ping { target, count, interval } => {
            ping::ping(session, &target, count, interval).await
        }
        Command::Wait { service, timeout } => {
            wait::wait(session, service.as_deref(), timeout).await
        }
        Command::Reference { table } => reference::reference(session, table.as_deref()),
        Command::Schema { of } => schema::schema(of),
        Command::Completion { shell } => completion(shell),
        Command::Man { folder } => {
            std::fs::create_dir_all(&folder)
                .and_then(|()| clap_mangen::generate_to(Cli::command(), &folder))
                .with_context(|| format!("Failed to write manual pages to {}", folder.display()))?;
            Ok(Exit::Success)
        }
    }
}

fn completion(shell: Shell) -> Result<Exit> {
    let shell = match shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    let mut script = io::Cursor::new(Vec::new());
    clap_complete::generate(shell, &mut Cli::command(), "agentctl", &mut script);
    let script = String::from_utf8(script.into_inner()).context("Failed to write the script")?;
    output::say(&script)?;
    Ok(Exit::Success)
}
