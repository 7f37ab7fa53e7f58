//! Wall-clock time in seconds since the epoch.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub(crate) fn now() -> i64 {
    seconds(SystemTime::now())
}

pub(crate) fn milliseconds() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

pub(crate) fn seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// "2026-01-31T12:00:00Z"
pub(crate) fn show(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds)
        .map_or_else(|_| format!("second {seconds}"), |time| time.to_string())
}

/// "24h", "90s", "7d 12h"
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let help = "write a time such as \"24h\", \"90m\" or \"30s\"";
    let span: jiff::SignedDuration =
        text.parse().map_err(|error| format!("{text:?} is not a time ({error}); {help}"))?;
    Duration::try_from(span).map_err(|_| format!("{text:?} is negative; {help}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_write_them() {
        assert_eq!(parse_duration("24h"), Ok(Duration::from_secs(86_400)));
        assert_eq!(parse_duration("8s"), Ok(Duration::from_secs(8)));
        assert!(parse_duration("soon").is_err_and(|error| error.contains("24h")));
        assert!(parse_duration("-1h").is_err());
    }
}
