//! Arguments of commands that show traffic.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use isthmus_model::Layer4;

use super::{parse_pair, parse_port, parse_status};
use crate::words;

#[derive(Debug, Args)]
pub(crate) struct Stat {
    /// Only requests of this caller: `web`, `service:web`, `host:app-1`
    #[arg(long, value_name = "NAME")]
    pub(crate) source: Option<String>,
    /// Only requests that asked this service, or went to it
    #[arg(long, value_name = "NAME")]
    pub(crate) service: Option<String>,
    /// Only requests that took this route
    #[arg(long, value_name = "NAME")]
    pub(crate) route: Option<String>,
    /// Only what ended within this time; the agent looks back for a minute, in steps of 10 s
    #[arg(long, short, value_name = "DURATION", default_value = "60s", value_parser = words::parse_duration)]
    pub(crate) window: Duration,
    /// All since the agent's start
    #[arg(long, conflicts_with = "window")]
    pub(crate) total: bool,
    /// Show it again every second
    #[arg(long)]
    pub(crate) watch: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Flows {
    /// Only what was denied, or would have been but for audit
    #[arg(long)]
    pub(crate) denied: bool,
    /// Only flows that this one opened: `web`, `service:web`, `host:app-1`
    #[arg(long, value_name = "NAME")]
    pub(crate) from: Option<String>,
    /// Only flows to this one
    #[arg(long, value_name = "NAME")]
    pub(crate) to: Option<String>,
    /// Only flows that this user of this host opened, by name or number
    #[arg(long, value_name = "USER")]
    pub(crate) user: Option<String>,
    /// Show at most so many
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    pub(crate) limit: u32,
    /// Show them again every second
    #[arg(long, short)]
    pub(crate) watch: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Tap {
    /// Only requests of this caller: `web`, `service:web`, `host:app-1`
    #[arg(long, value_name = "NAME")]
    pub(crate) source: Option<String>,
    /// Only requests that asked this service, or went to it
    #[arg(long, value_name = "NAME")]
    pub(crate) service: Option<String>,
    /// Only requests that took this route
    #[arg(long, value_name = "NAME")]
    pub(crate) route: Option<String>,
    /// Only requests with this method
    #[arg(long, value_name = "METHOD")]
    pub(crate) method: Option<String>,
    /// Only requests with this path; with `*` at the end: with a path that begins so
    #[arg(long, value_name = "PATH")]
    pub(crate) path: Option<String>,
    /// Only answers with this status: 404, 5xx, none
    #[arg(long, value_name = "STATUS", value_parser = parse_status)]
    pub(crate) status: Option<String>,
    /// Only requests that took at least so long: 200ms, 1.5s
    #[arg(long, value_name = "DURATION", value_parser = words::parse_short)]
    pub(crate) min_duration: Option<Duration>,
    /// End after so many
    #[arg(long, short = 'n', value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) limit: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct Explain {
    /// Who opens the connection
    pub(crate) from: String,
    /// To whom
    pub(crate) to: String,
    /// To which port: tcp/22, udp/53, icmp [default: the service's own]
    #[arg(long, short, value_name = "PROTOCOL/PORT", value_parser = parse_port)]
    pub(crate) port: Option<Layer4>,
    /// The request's method, for a service that speaks HTTP
    #[arg(long, short, requires = "path")]
    pub(crate) method: Option<String>,
    /// The request's path
    #[arg(long, requires = "method")]
    pub(crate) path: Option<String>,
    /// The host that the request is for
    #[arg(long, requires = "method")]
    pub(crate) host: Option<String>,
    /// A header field of the request; repeatable
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_pair, requires = "method")]
    pub(crate) header: Vec<(String, String)>,
    /// A claim of the request's token, as text or JSON; repeatable
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_pair, requires = "method")]
    pub(crate) claim: Vec<(String, String)>,
    /// Whose token it is [default: the first one's that a rule asks for]
    #[arg(long, value_name = "NAME", requires = "method")]
    pub(crate) provider: Option<String>,
    /// Ask these files instead of the running mesh: a file, a folder or `-`; repeatable
    #[arg(short, long = "file", value_name = "FILE|DIR")]
    pub(crate) file: Vec<PathBuf>,
}
