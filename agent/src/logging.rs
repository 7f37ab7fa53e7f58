//! Log output: destination and format.

use std::fs;
use std::io::{self, IsTerminal as _};
use std::os::unix::fs::MetadataExt as _;

use anyhow::Context as _;
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets, filter_fn};
use tracing_subscriber::fmt::{MakeWriter, layer};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer, registry};

use crate::settings::{AccessLog, LogFormat, Settings};

/// The access log's lines.
const ACCESS: &str = "isthmus::access";

/// Sends the process's log lines to standard error. The journal stamps and escapes its lines by
/// itself: there, lines have no time and no colours.
///
/// # Errors
/// When the filter can't be understood.
pub fn start(settings: &Settings) -> anyhow::Result<()> {
    let filter = filter(&settings.log, settings.access_log)?;
    let requests = match settings.access_log {
        AccessLog::Log | AccessLog::Off => settings.log_format,
        AccessLog::Text => LogFormat::Text,
        AccessLog::Json => LogFormat::Json,
    };
    let started = if requests == settings.log_format {
        registry().with(filter).with(lines(requests)).try_init()
    } else {
        let requests = lines(requests).with_filter(filter_fn(is_request));
        let others = lines(settings.log_format).with_filter(filter_fn(|line| !is_request(line)));
        registry().with(filter).with(requests).with(others).try_init()
    };
    started.map_err(|error| anyhow::anyhow!("Failed to start logging: {error}"))
}

type Lines<S> = Box<dyn Layer<S> + Send + Sync>;

fn lines<S>(format: LogFormat) -> Lines<S>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let lines = layer();
    if is_journal() {
        let lines = lines.with_writer(Journal::of(Level::INFO)).with_ansi(false);
        return match format {
            LogFormat::Json => lines.json().flatten_event(true).boxed(),
            LogFormat::Text => lines.without_time().boxed(),
        };
    }
    let lines = lines.with_writer(io::stderr).with_ansi(io::stderr().is_terminal());
    match format {
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
        LogFormat::Text => lines.boxed(),
    }
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

fn is_request(line: &Metadata<'_>) -> bool {
    line.target() == ACCESS
}

/// boringtun logs a peer's every failed handshake as an error; our own counters and lines tell.
fn filter(log: &str, requests: AccessLog) -> anyhow::Result<Targets> {
    let filter = format!("boringtun=off,{log}").parse::<Targets>();
    let filter = filter.with_context(|| format!("The setting log = {log:?} is no filter"))?;
    Ok(match requests {
        AccessLog::Off => filter.with_target(ACCESS, LevelFilter::OFF),
        AccessLog::Log | AccessLog::Text | AccessLog::Json => filter,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_journal_is_told_priorities() {
        let levels = [Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG, Level::TRACE];
        assert_eq!(levels.map(|level| Journal::of(level).priority), [3, 4, 6, 7, 7]);
        assert!(!is_journal(), "tests' output goes elsewhere");
    }

    #[test]
    fn levels_are_set_for_all_and_by_crate_and_module() {
        let filter =
            filter("warn,isthmus_core=debug,isthmus_agent::sync=trace", AccessLog::Log).unwrap();
        assert!(filter.would_enable("hyper", &Level::WARN));
        assert!(!filter.would_enable("isthmus_agent", &Level::INFO));
        assert!(filter.would_enable("isthmus_core::node", &Level::DEBUG));
        assert!(filter.would_enable("isthmus_agent::sync::backoff", &Level::TRACE));
        assert!(!filter.would_enable("boringtun", &Level::ERROR));
    }

    #[test]
    fn the_access_log_can_be_turned_off() {
        for (requests, enabled) in
            [(AccessLog::Log, true), (AccessLog::Json, true), (AccessLog::Off, false)]
        {
            let filter = filter("info", requests).unwrap();
            assert_eq!(filter.would_enable(ACCESS, &Level::INFO), enabled, "{requests:?}");
            assert!(filter.would_enable("isthmus_agent", &Level::INFO));
        }
    }

    #[test]
    fn what_is_no_filter_is_an_error_that_shows_it() {
        let error = filter("info,isthmus_core=loud", AccessLog::Log).unwrap_err();
        assert!(format!("{error:#}").contains("isthmus_core=loud"), "{error:#}");
    }
}
