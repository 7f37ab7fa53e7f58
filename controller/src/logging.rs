//! Log lines, on standard error.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;

use anyhow::{Context as _, Result};
use tracing::{Level, Metadata};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::{MakeWriter, layer};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, registry};

use crate::settings::{LogFormat, Settings};

pub(crate) fn start(settings: &Settings) -> Result<()> {
    let filter: Targets = settings
        .log
        .parse()
        .with_context(|| format!("`log` is not a filter: {:?}", settings.log))?;
    let lines = layer().with_ansi(false);
    let lines = if is_journal() {
        let lines = lines.with_writer(Journal::of(Level::INFO));
        match settings.log_format {
            // The journal stamps lines itself.
            LogFormat::Text => lines.without_time().boxed(),
            LogFormat::Json => lines.json().boxed(),
        }
    } else {
        let lines = lines.with_writer(io::stderr);
        match settings.log_format {
            LogFormat::Text => lines.boxed(),
            LogFormat::Json => lines.json().boxed(),
        }
    };
    let started = registry().with(filter).with(lines).try_init();
    started.map_err(|error| anyhow::anyhow!("Failed to start logging: {error}"))
}

/// Whether standard error goes to the journal: systemd says which file that would be.
fn is_journal() -> bool {
    let Ok(journal) = std::env::var("JOURNAL_STREAM") else { return false };
    let Ok(ours) = fs::metadata("/proc/self/fd/2") else { return false };
    journal == format!("{}:{}", ours.dev(), ours.ino())
}

/// Tells the journal each line's priority (sd-daemon(3)), for `journalctl -p`.
#[derive(Clone, Copy, Debug)]
struct Journal {
    priority: u8,
}

impl Journal {
    fn of(level: Level) -> Self {
        // As in syslog(3): an error, a warning, informational, debugging.
        let priority = match level {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        };
        Self { priority }
    }
}

impl<'a> MakeWriter<'a> for Journal {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        *self
    }

    fn make_writer_for(&'a self, line: &Metadata<'_>) -> Self {
        Self::of(*line.level())
    }
}

impl io::Write for Journal {
    /// In one piece, which the journal takes for one entry.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let entry = [format!("<{}>", self.priority).as_bytes(), line].concat();
        io::stderr().lock().write_all(&entry).map(|()| line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
