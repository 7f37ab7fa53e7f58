//! Log lines, on standard error.

use anyhow::{Context as _, Result};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, fmt, registry};

use crate::settings::{LogFormat, Settings};

pub(crate) fn start(settings: &Settings) -> Result<()> {
    let filter: Targets = settings
        .log
        .parse()
        .with_context(|| format!("`log` is not a filter: {:?}", settings.log))?;
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    let lines = match settings.log_format {
        // The journal stamps lines itself.
        LogFormat::Text if std::env::var_os("JOURNAL_STREAM").is_some() => {
            lines.without_time().boxed()
        }
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().boxed(),
    };
    let started = registry().with(filter).with(lines).try_init();
    started.map_err(|error| anyhow::anyhow!("Failed to start logging: {error}"))
}
