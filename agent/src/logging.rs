//! Where log lines go, and what they look like.

use std::io::{self, IsTerminal as _};

use anyhow::Context as _;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::FmtSpan;

use crate::settings::{LogFormat, Settings};

/// Sends the process's log lines to standard error. The journal stamps and escapes its lines by
/// itself: there, lines have no time and no colours.
///
/// # Errors
/// When the filter can't be understood.
pub fn start(settings: &Settings) -> anyhow::Result<()> {
    // boringtun logs a peer's every failed handshake as an error; our own counters and lines tell.
    let filter = EnvFilter::try_new(format!("boringtun=off,{}", settings.log))
        .with_context(|| format!("The setting log = {:?} is no filter", settings.log))?;
    let journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_span_events(FmtSpan::NONE)
        .with_ansi(io::stderr().is_terminal() && !journal);
    let started = match (settings.log_format, journal) {
        (LogFormat::Json, _) => builder.json().flatten_event(true).try_init(),
        (LogFormat::Text, true) => builder.without_time().try_init(),
        (LogFormat::Text, false) => builder.try_init(),
    };
    started.map_err(|error| anyhow::anyhow!("Failed to start logging: {error}"))
}
