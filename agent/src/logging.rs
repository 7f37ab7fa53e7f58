//! Where log lines go, and what they look like.

use std::io::{self, IsTerminal as _};

use anyhow::Context as _;
use tracing::{Metadata, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets, filter_fn};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer, fmt, registry};

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
    let journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let lines =
        fmt::layer().with_writer(io::stderr).with_ansi(io::stderr().is_terminal() && !journal);
    match (format, journal) {
        (LogFormat::Json, _) => lines.json().flatten_event(true).boxed(),
        (LogFormat::Text, true) => lines.without_time().boxed(),
        (LogFormat::Text, false) => lines.boxed(),
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
    use tracing::Level;

    use super::*;

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
