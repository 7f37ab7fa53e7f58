//! Arguments of commands that change hosts, services, rollouts and tokens.

use std::time::Duration;

use clap::{Args, Subcommand};
use isthmus_model::Name;

use super::parse_label;
use crate::words;

#[derive(Debug, Subcommand)]
pub(crate) enum Host {
    /// Lists the hosts of the mesh
    #[command(after_help = "Example:\n  agentctl host list -o json")]
    List,
    /// Shows one host
    #[command(after_help = "Example:\n  agentctl host show app-1")]
    Show {
        /// Its name
        name: Name,
    },
    /// Gives a host another tunnel key: its agent makes it, and nothing is lost
    ///
    /// Both keys are good for a while: the former one for as long as --overlap says, then until each
    /// host that meets this one has taken the new one, but for a day more at most (`agentctl host show` says who
    /// is awaited). Then nothing is left of it. Returns once the mesh knows the new key.
    ///
    /// The WireGuard files of devices behind the host name its key. They must be exported again, and put
    /// on the devices, while both are good: --reissue says that you will.
    #[command(
        name = "rotate-key",
        after_help = "Examples:\n  agentctl host rotate-key app-1\n  agentctl host rotate-key gw-1 --reissue --overlap 7d"
    )]
    RotateKey {
        /// Its name
        name: Name,
        /// Also where files of devices name its key
        #[arg(long)]
        reissue: bool,
        /// How long both keys shall be good: at least 3m, at most 90d [default: 5m; with --reissue 1d]
        #[arg(long, value_name = "DURATION", value_parser = words::parse_duration)]
        overlap: Option<Duration>,
    },
    /// Removes a host: its tunnels are cut at once, everywhere
    ///
    /// Says which services lose their last workload with it, and asks; where nobody can answer, it
    /// needs --yes. The host needs a new token to come back.
    #[command(after_help = "Example:\n  agentctl host remove app-3 --yes")]
    Remove {
        /// Its name
        name: Name,
        /// Don't ask
        #[arg(long, short)]
        yes: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Service {
    /// Lists the services of the mesh
    #[command(after_help = "Example:\n  agentctl service list")]
    List,
    /// Shows one service
    #[command(after_help = "Example:\n  agentctl service show web")]
    Show {
        /// Its name
        name: Name,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Device {
    /// Lists the devices of the mesh
    #[command(after_help = "Example:\n  agentctl device list")]
    List,
    /// Prints a device's wg-quick file, without its private key
    #[command(after_help = "Example:\n  agentctl device export press > wg0.conf")]
    Export {
        /// Its name
        name: Name,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Rollout {
    /// Lists the rollouts of the mesh
    #[command(after_help = "Example:\n  agentctl rollout list --watch")]
    List {
        /// Show them again whenever something has changed
        #[arg(long, short)]
        watch: bool,
    },
    /// Shows one rollout: its phase, its weights, and what was measured since the step began
    #[command(after_help = "Example:\n  agentctl rollout status api")]
    Status {
        /// Its name
        name: Name,
        /// Show it until it is over; the exit code is 0 if it was promoted, 1 if it was rolled back
        #[arg(long, short)]
        watch: bool,
    },
    /// Stops at the present weights
    #[command(after_help = "Example:\n  agentctl rollout pause api")]
    Pause {
        /// Its name
        name: Name,
    },
    /// Goes on after a pause
    #[command(after_help = "Example:\n  agentctl rollout resume api")]
    Resume {
        /// Its name
        name: Name,
    },
    /// Gives the canary all requests at once, whatever the measurements say
    #[command(after_help = "Example:\n  agentctl rollout promote api")]
    Promote {
        /// Its name
        name: Name,
    },
    /// Gives the stable version all requests again
    #[command(after_help = "Example:\n  agentctl rollout abort api")]
    Abort {
        /// Its name
        name: Name,
    },
    /// Starts anew after a rollback
    #[command(after_help = "Example:\n  agentctl rollout retry api")]
    Retry {
        /// Its name
        name: Name,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Token {
    /// Makes a join token, and prints it this once
    #[command(
        after_help = "Examples:\n  agentctl token create\n  agentctl token create --expires 7d --uses 20 --label role=web"
    )]
    Create(CreateToken),
    /// Lists the tokens, the newest first
    #[command(after_help = "Example:\n  agentctl token list")]
    List,
    /// Withdraws a token: nobody can join with it any more
    #[command(after_help = "Example:\n  agentctl token revoke 0102030405060708")]
    Revoke {
        /// As `agentctl token list` shows it
        id: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct CreateToken {
    /// How long it is good for: 90s, 1h, 7d
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = words::parse_duration)]
    pub(crate) expires: Duration,
    /// How many hosts may join with it
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) uses: u32,
    /// A label that it grants; repeatable
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = parse_label)]
    pub(crate) labels: Vec<(String, String)>,
    /// The only host name that it is good for. A name that the topology puts services or devices on
    /// needs such a token. A member of that name that has lost its state joins
    /// anew with it, under the same number and addresses
    #[arg(long, value_name = "NAME")]
    pub(crate) host: Option<Name>,
}
