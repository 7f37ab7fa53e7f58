//! The command line, as `clap` reads it.

mod manage;
mod traffic;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use isthmus_model::{Code, Layer4, Name};

use crate::operator::Operator;
use crate::topology::Topology;
use crate::words;

pub(crate) use self::manage::{CreateToken, Device, Host, Rollout, Service, Token};
pub(crate) use self::traffic::{Explain, Flows, Stat, Tap};

const EXIT_CODES: &str = "\
Exit codes:
  0  done; `explain`: allowed
  1  failed, refused or broken; `explain`: denied; `ping`: no reply; `check`, `status --check`: something is wrong
  2  the command line is wrong
  3  the controller or the agent can't be reached
  4  applied, but an agent refused it, hasn't answered in time, or has a problem that comes of it; `leave`: left,
     but no controller was told

Examples:
  agentctl status                                  how the mesh, or this host, is doing
  agentctl apply -f mesh.toml                      change the mesh
  agentctl explain service:client service:web      who may do what, and why";

/// Operates an Isthmus mesh, and tells what the agent of this host is doing.
///
/// Commands that concern the whole mesh (apply, topology, host, service, device, token, rollout, operator) need an operator's
/// credentials. Those that concern this host (check, join, leave, peers, flows, routes, stat, tap, ping) ask its agent. `status`,
/// `whois` and `explain` work either way.
#[derive(Debug, Parser)]
#[command(name = "agentctl", version, after_help = EXIT_CODES, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Global {
    /// An operator's credentials [default: ~/.config/isthmus/operator.toml, then
    /// /etc/isthmus/operator/operator.toml, then on the controller's machine
    /// /var/lib/isthmus/controller/operator/operator.toml]
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "ISTHMUS_CREDENTIALS",
        hide_env_values = true
    )]
    pub(crate) credentials: Option<PathBuf>,
    /// The agent's socket [default: /run/isthmus/agent.sock]
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        env = "ISTHMUS_SOCKET",
        hide_env_values = true
    )]
    pub(crate) socket: Option<PathBuf>,
    /// Text for people, or JSON for programs
    #[arg(short, long, global = true, value_name = "FORMAT", default_value = "text")]
    pub(crate) output: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Makes files the topology of the mesh
    ///
    /// Checks the files, shows what differs from the running revision, runs their tests, and makes
    /// a new revision. Then waits until every agent that is concerned has accepted it. If anything
    /// is wrong, nothing changes.
    ///
    /// Files that say nothing, and a change that removes more than a tenth of the hosts or a gateway, are
    /// applied only after a question; where nobody can answer it, only with --yes.
    #[command(
        after_help = "Examples:\n  agentctl apply -f mesh.toml --dry-run\n  agentctl apply -f /etc/isthmus/topology.d"
    )]
    Apply(Apply),
    /// Keeps what `apply --confirm-within` applied on trial
    #[command(after_help = "Examples:\n  agentctl confirm\n  agentctl confirm --undo")]
    Confirm {
        /// Rather take it back at once
        #[arg(long)]
        undo: bool,
    },
    /// Shows the topologies that were applied, and goes back to one
    #[command(
        subcommand,
        after_help = "Examples:\n  agentctl topology history\n  agentctl topology get --revision 12 > mesh.toml\n  agentctl topology rollback"
    )]
    Topology(Topology),
    /// Lists, adds and revokes operators
    ///
    /// Roles: `view` looks at everything; `apply` also changes the topology and steers rollouts; `admin`
    /// also lets hosts and operators in, and removes them.
    #[command(
        subcommand,
        after_help = "Examples:\n  agentctl operator add bob --role apply --out bob/\n  agentctl operator revoke bob"
    )]
    Operator(Operator),
    /// Shows what operators did, and tried to do
    #[command(after_help = "Examples:\n  agentctl audit\n  agentctl audit --who bob -o json")]
    Audit {
        /// Only of this operator
        #[arg(long, value_name = "NAME")]
        who: Option<String>,
        /// Show at most so many, the latest
        #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
    },
    /// Checks files and runs their tests, without a controller
    #[command(after_help = "Example:\n  agentctl validate -f mesh.toml")]
    Validate {
        #[command(flatten)]
        files: Files,
    },
    /// Shows how the mesh, or this host, is doing
    ///
    /// With --credentials: the mesh. With --socket: this host. With neither: this host if an agent
    /// runs here, else the mesh.
    #[command(
        after_help = "Examples:\n  agentctl status\n  agentctl status --mesh -o json\n  agentctl status --check || mail -s 'the mesh needs me' ops"
    )]
    Status {
        /// Show the mesh
        #[arg(long, conflicts_with = "agent")]
        mesh: bool,
        /// Show this host
        #[arg(long)]
        agent: bool,
        /// End with 1 if anything is wrong
        #[arg(long)]
        check: bool,
    },
    /// Lists, shows and removes hosts, and changes their tunnel keys
    #[command(subcommand, after_help = "Example:\n  agentctl host list")]
    Host(Host),
    /// Lists and shows services
    #[command(subcommand, after_help = "Example:\n  agentctl service show web")]
    Service(Service),
    /// Lists devices, and writes their WireGuard files
    #[command(subcommand, after_help = "Example:\n  agentctl device export press")]
    Device(Device),
    /// Creates, lists and revokes join tokens
    #[command(subcommand, after_help = "Example:\n  agentctl token create --host app-1")]
    Token(Token),
    /// Shows and steers rollouts: new versions that take over step by step
    #[command(
        subcommand,
        after_help = "Examples:\n  agentctl rollout list\n  agentctl rollout status api --watch\n  agentctl rollout promote api"
    )]
    Rollout(Rollout),
    /// Makes this host a member of a mesh
    ///
    /// Hands a join token to this host's agent. The agent makes its keys itself, proves that it was
    /// given the token, and starts its tunnels.
    ///
    /// A token on the command line can be seen by every user of this host while the command runs:
    /// prefer standard input or a file.
    #[command(
        after_help = "Examples:\n  ssh ops agentctl token create | agentctl join -\n  agentctl join --file /root/token --name app-1"
    )]
    Join(Join),
    /// Takes this host out of its mesh
    ///
    /// Its agent lets requests under way end, takes tunnels, addresses, rules and the resolver's settings away,
    /// tells the controller, and removes keys and state. The controller forgets the host; whoever still
    /// has its keys is nobody. The agent goes on, and can join again with a new token.
    ///
    /// A host whose controller can't be reached leaves, too; then an operator removes it there
    /// (`agentctl host remove`). Where no agent runs, `isthmus-agent leave --yes` does the same; purging the
    /// package does it.
    #[command(
        after_help = "Exit codes: 0 the host left, 4 it left and no controller was told.\nExample:\n  agentctl leave"
    )]
    Leave {
        /// Don't ask
        #[arg(long, short)]
        yes: bool,
    },
    /// Looks for what is wrong with this host, and says what to do about it
    ///
    /// Kernel, TUN, nftables, cgroups, clock, addresses, MTU, routes, ports, firewall, networkd, resolver, the
    /// agent's settings and state. It works before a join: then it says what would keep this host from
    /// joining. It works while the agent is down, which it says first. Where the agent runs, it is asked
    /// what it knows, and has to get an echo from each other host (of 64). Run it as root.
    ///
    /// Each fault has a code that stays, and a remedy; a command in backquotes can be pasted.
    #[command(
        after_help = "Exit codes: 0 nothing is wrong, 1 something is.\nExamples:\n  agentctl check\n  agentctl check -o json\n  agentctl check --explain route-clash\n  agentctl check --codes"
    )]
    Check(Check),
    /// Shows the tunnels of this host
    #[command(after_help = "Example:\n  agentctl peers")]
    Peers,
    /// Shows who talks to whom on this host, and which rule decided
    ///
    /// Of flows that this host's processes opened, also by which user and unit; of denied ones, by which
    /// program. What is denied is shown for 10 s, and stands in the agent's log.
    #[command(
        after_help = "Examples:\n  agentctl flows --watch\n  agentctl flows --denied --user www-data\n  agentctl flows --from client --to web -o json --limit 10"
    )]
    Flows(Flows),
    /// Shows where HTTP requests of this host go: routes, workloads with their health, traffic
    #[command(after_help = "Examples:\n  agentctl routes\n  agentctl routes -o json")]
    Routes,
    /// Shows how HTTP requests of this host go: success, rate, latency, bytes
    ///
    /// One row for each caller, service, route and backend. Side `client` is what callers of this host
    /// asked for; `server` is what this host's services were asked for. Quantiles are true to 1 %.
    #[command(
        after_help = "Examples:\n  agentctl stat\n  agentctl stat --service api --window 10s --watch\n  agentctl stat --total -o json"
    )]
    Stat(Stat),
    /// Shows HTTP requests of this host as they end
    ///
    /// With what their time went to: `client`, waiting for the caller; `queue`, for the agent itself;
    /// `connect`, for a connection; `tunnel`, for the way to another host; `server`, for the application.
    /// A tap costs nothing while nobody taps, and never slows requests: what comes too fast is left
    /// out, and that is said.
    #[command(
        after_help = "Examples:\n  agentctl tap --service api --status 5xx\n  agentctl tap --path '/users/*' --min-duration 200ms -o json"
    )]
    Tap(Tap),
    /// Says whose an address is, or which service a process would be, and why
    ///
    /// WHO is an address of the mesh, a name, or the number of a process of this host. Of a process it
    /// says what each service's `workload` asks for, and what of it the process is not.
    #[command(
        after_help = "Examples:\n  agentctl whois 100.64.0.17\n  agentctl whois web.prod\n  agentctl whois $(pidof -s nginx)"
    )]
    Whois {
        /// An address, a name or a process's number
        who: String,
    },
    /// Says whether FROM may reach TO, and which rule decides
    ///
    /// FROM and TO are `service:web`, `host:app-1`, `device:press`, a name alone where only one of
    /// them has it, a name as in DNS (`web.prod`, `web.prod.mesh.internal`), an identity
    /// (`spiffe://…`), or an address of the mesh with a port or without, as in flows and logs.
    ///
    /// Asks, in this order: the files of -f; the running topology, with an operator's credentials;
    /// the agent of this host, which knows the rules for its own traffic and says nothing of others'.
    ///
    /// Where nothing allows what was asked, the rule that would is printed: append it to the
    /// topology and apply that.
    #[command(
        after_help = "Examples:\n  agentctl explain client web\n  agentctl explain 100.64.0.17 100.64.0.33:8080\n  agentctl explain service:client service:web --method GET --path /public\n  agentctl explain host:app-1 host:web-1 --port tcp/22 -f mesh.toml"
    )]
    Explain(Explain),
    /// Sends echoes through the tunnel to a host, service or device
    #[command(after_help = "Example:\n  agentctl ping web-1 -c 3")]
    Ping {
        /// A name or an address of the mesh
        target: String,
        /// Send so many
        #[arg(short, long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
        count: u32,
        /// Wait so long between two
        #[arg(short, long, value_name = "SECONDS", default_value = "1", value_parser = words::parse_seconds)]
        interval: Duration,
    },
    /// Waits until this host has its addresses in the mesh, and prints them
    ///
    /// For what binds them at its start. A unit need not call it: After=isthmus-online.target and
    /// Wants=isthmus-online.target do. Exits with 3 when the time is over, and says what is missing.
    #[command(
        after_help = "Examples:\n  agentctl wait\n  agentctl wait --service web --timeout 30s"
    )]
    Wait {
        /// Wait for the addresses of this service's workload only
        #[arg(long, value_name = "NAME")]
        service: Option<String>,
        /// Wait so long
        #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = words::parse_duration)]
        timeout: Duration,
    },
    /// Shows every key of the topology language, with what it may be and what it means
    ///
    /// With a table's name only that one and those that it leads to.
    #[command(after_help = "Examples:\n  agentctl reference service\n  agentctl reference route")]
    Reference {
        /// A table, such as service, route or allow
        table: Option<String>,
    },
    /// Prints a JSON Schema, for editors that check and complete TOML (taplo)
    #[command(
        after_help = "Example:\n  agentctl schema > isthmus.json      then begin files with `#:schema ./isthmus.json`"
    )]
    Schema {
        /// Of which files
        #[arg(default_value = "topology")]
        of: SchemaOf,
    },
    /// Prints a completion script for a shell
    #[command(
        after_help = "Example:\n  agentctl completion bash > /usr/share/bash-completion/completions/agentctl"
    )]
    Completion {
        /// Which shell
        shell: Shell,
    },
    /// Writes manual pages into a folder
    #[command(hide = true)]
    Man {
        /// Which folder
        folder: PathBuf,
    },
}

/// Where the topology is.
#[derive(Clone, Debug, Args)]
pub(crate) struct Files {
    /// A file, a folder (its *.toml, sorted) or `-` (standard input); repeatable
    #[arg(short, long = "file", value_name = "FILE|DIR", required = true)]
    pub(crate) file: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Check {
    /// The agent's settings [default: /etc/isthmus/agent.toml]
    #[arg(long, value_name = "FILE")]
    pub(crate) settings: Option<PathBuf>,
    /// Say what a code means, here or in `status`, and look at nothing
    #[arg(long, value_name = "CODE")]
    pub(crate) explain: Option<Code>,
    /// List all codes
    #[arg(long, conflicts_with = "explain")]
    pub(crate) codes: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Apply {
    #[command(flatten)]
    pub(crate) files: Files,
    #[command(flatten)]
    pub(crate) how: How,
}

/// How a topology is applied.
#[derive(Clone, Debug, Args)]
pub(crate) struct How {
    /// Show what would change, and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Don't ask the hosts whether a route of theirs is in the way of the mesh's addresses
    #[arg(long)]
    pub(crate) despite_clashes: bool,
    /// Don't ask, whatever it takes away
    #[arg(long, short)]
    pub(crate) yes: bool,
    /// Undo it after so long, unless `agentctl confirm` comes: for changes that may lock you out
    #[arg(long, value_name = "DURATION", value_parser = words::parse_duration)]
    pub(crate) confirm_within: Option<Duration>,
    /// Only if nobody has applied anything since this revision
    #[arg(long, value_name = "N")]
    pub(crate) if_revision: Option<u64>,
    /// A line for `agentctl topology history`
    #[arg(long, value_name = "TEXT")]
    pub(crate) note: Option<String>,
    /// Wait so long for the agents
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = words::parse_duration)]
    pub(crate) timeout: Duration,
}

#[derive(Args)]
pub(crate) struct Join {
    /// The token, or `-` for standard input (also without one)
    #[arg(value_name = "TOKEN", conflicts_with = "file")]
    pub(crate) token: Option<String>,
    /// Read the token from a file
    #[arg(long, short, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// The host's name in the mesh [default: the system's host name]
    #[arg(long, value_name = "HOST")]
    pub(crate) name: Option<Name>,
}

/// Without the token: it is a secret.
impl std::fmt::Debug for Join {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Join")
            .field("file", &self.file)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// What a schema is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum SchemaOf {
    /// Topologies.
    Topology,
    /// The agent's settings.
    Agent,
    /// The controller's settings.
    Controller,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Shell {
    Bash,
    Zsh,
    Fish,
}

fn parse_pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        Some(_) | None => Err("write NAME=VALUE".to_owned()),
    }
}

fn parse_label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE, such as role=web".to_owned()),
    }
}

fn parse_status(text: &str) -> Result<String, String> {
    let lower = text.to_ascii_lowercase();
    let is_code = lower.parse::<u16>().is_ok_and(|code| (100..1000).contains(&code));
    let is_class = matches!(lower.as_bytes(), [b'1'..=b'5', b'x', b'x']);
    let is_right = is_code || is_class || lower == "none";
    if is_right { Ok(lower) } else { Err("write a status such as 404, 5xx or none".to_owned()) }
}

fn parse_port(text: &str) -> Result<Layer4, String> {
    text.parse().map_err(|error: <Layer4 as std::str::FromStr>::Err| error.to_string())
}
