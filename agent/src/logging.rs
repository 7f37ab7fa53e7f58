//! Where log lines go, and what they look like.

use std::io::{self, IsTerminal as _};

use anyhow::Context as _;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, fmt, registry};

use crate::settings::{LogFormat, Settings};

/// Sends the process's log lines to standard error. The journal stamps and escapes its lines by
/// itself: there, lines have no time and no colours.
///
/// # Errors
/// When the filter can't be understood.
pub fn start(settings: &Settings) -> anyhow::Result<()> {
    let filter = filter(&settings.log)?;
    let journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let lines =
        fmt::layer().with_writer(io::stderr).with_ansi(io::stderr().is_terminal() && !journal);
    let lines = match (settings.log_format, journal) {
        (LogFormat::Json, _) => lines.json().flatten_event(true).boxed(),
        (LogFormat::Text, true) => lines.without_time().boxed(),
        (LogFormat::Text, false) => lines.boxed(),
    };
    let started = registry().with(filter).with(lines).try_init();
    started.map_err(|error| anyhow::anyhow!("Failed to start logging: {error}"))
}

/// boringtun logs a peer's every failed handshake as an error; our own counters and lines tell.
fn filter(log: &str) -> anyhow::Result<Targets> {
    let filter = format!("boringtun=off,{log}").parse();
    filter.with_context(|| format!("The setting log = {log:?} is no filter"))
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn levels_are_set_for_all_and_by_crate_and_module() {
        let filter = filter("warn,isthmus_core=debug,isthmus_agent::sync=trace").unwrap();
        assert!(filter.would_enable("hyper", &Level::WARN));
        assert!(!filter.would_enable("isthmus_agent", &Level::INFO));
        assert!(filter.would_enable("isthmus_core::node", &Level::DEBUG));
        assert!(filter.would_enable("isthmus_agent::sync::backoff", &Level::TRACE));
        assert!(!filter.would_enable("boringtun", &Level::ERROR));
    }

    #[test]
    fn what_is_no_filter_is_an_error_that_shows_it() {
        let error = filter("info,isthmus_core=loud").unwrap_err();
        assert!(format!("{error:#}").contains("isthmus_core=loud"), "{error:#}");
    }
}
