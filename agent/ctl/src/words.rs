//! Times, durations and sizes, from and to the words that people use.

use std::time::Duration;

use jiff::Timestamp;

const UNITS: [(&str, u64); 5] = [("s", 1), ("m", 60), ("h", 3_600), ("d", 86_400), ("w", 604_800)];
const LONGEST: u64 = 10 * 365 * 86_400;

/// Reads `90s`, `1h`, `7d`, `1h30m`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let help = || "write a number and a unit (s, m, h, d or w), such as 90s, 1h or 7d".to_owned();
    let mut rest = text;
    let mut seconds = 0_u64;
    while !rest.is_empty() {
        let digits = rest.find(|letter: char| !letter.is_ascii_digit()).ok_or_else(help)?;
        let (number, tail) = rest.split_at(digits);
        let end = tail.find(|letter: char| letter.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        let number: u64 = number.parse().map_err(|_| help())?;
        let unit = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(help)?.1;
        seconds =
            number.checked_mul(unit).and_then(|more| seconds.checked_add(more)).ok_or_else(help)?;
        rest = tail;
    }
    match seconds {
        0 => Err(help()),
        1..=LONGEST => Ok(Duration::from_secs(seconds)),
        _ => Err("that is more than ten years; write a shorter time".to_owned()),
    }
}

/// Reads `1`, `0.2`: seconds, as `ping -i` has them.
pub(crate) fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().filter(|seconds| (0.01..=3_600.0).contains(seconds));
    seconds
        .map(Duration::from_secs_f64)
        .ok_or_else(|| "write seconds from 0.01 to 3600, such as 0.2".to_owned())
}

/// Reads `200ms`, `1.5s`.
pub(crate) fn parse_short(text: &str) -> Result<Duration, String> {
    let (number, unit) = match (text.strip_suffix("ms"), text.strip_suffix('s')) {
        (Some(number), _) => (number, 1e-3),
        (None, Some(number)) => (number, 1.0),
        (None, None) => ("", 1.0),
    };
    let seconds = number.parse::<f64>().ok().map(|number| number * unit);
    seconds
        .filter(|seconds| (0.0..=3_600.0).contains(seconds))
        .map(Duration::from_secs_f64)
        .ok_or_else(|| "write a number and ms or s, such as 200ms or 1.5s".to_owned())
}

/// Now, in seconds since the epoch.
pub(crate) fn now() -> i64 {
    Timestamp::now().as_second()
}

/// RFC 3339; none for 0, which stands for "not known" in messages.
pub(crate) fn timestamp(seconds: i64) -> Option<String> {
    let time = Timestamp::from_second(seconds).ok()?;
    (seconds != 0).then(|| time.to_string())
}

/// "in 23 h", "5 min ago"; a dash for 0.
pub(crate) fn relative(seconds: i64, now: i64) -> String {
    if seconds == 0 {
        return "-".to_owned();
    }
    let apart = rough(Duration::from_secs(seconds.abs_diff(now)));
    match seconds.cmp(&now) {
        std::cmp::Ordering::Greater => format!("in {apart}"),
        std::cmp::Ordering::Equal | std::cmp::Ordering::Less => format!("{apart} ago"),
    }
}

/// A duration in its largest unit.
pub(crate) fn rough(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 if duration.is_zero() => "0 s".to_owned(),
        0 => format!("{} ms", duration.as_millis()),
        1..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// Milliseconds with what precision they deserve.
pub(crate) fn milliseconds(microseconds: u64) -> String {
    format!("{}.{:03} ms", microseconds / 1_000, microseconds % 1_000)
}

/// "512 B", "1.4 MiB".
pub(crate) fn bytes(count: u64) -> String {
    const STEPS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1_024 {
        return format!("{count} B");
    }
    let mut tenths = count.saturating_mul(10) / 1_024;
    let mut unit = STEPS[0];
    for step in &STEPS[1..] {
        if tenths < 10_240 {
            break;
        }
        tenths /= 1_024;
        unit = step;
    }
    format!("{}.{} {unit}", tenths / 10, tenths % 10)
}

/// "1 host", "3 hosts".
pub(crate) fn count(number: usize, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_times_have_milliseconds() {
        for (text, millis) in [("200ms", 200), ("1.5s", 1500), ("0s", 0), ("3600s", 3_600_000)] {
            assert_eq!(parse_short(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for wrong in ["", "5", "ms", "s", "-1s", "1h", "nans", "1e9s"] {
            assert!(parse_short(wrong).unwrap_err().contains("200ms"), "{wrong}");
        }
    }

    #[test]
    fn durations_are_read_as_people_write_them() {
        let seconds = |text| parse_duration(text).map(|duration| duration.as_secs());
        assert_eq!(seconds("1h"), Ok(3_600));
        assert_eq!(seconds("90s"), Ok(90));
        assert_eq!(seconds("7d"), Ok(604_800));
        assert_eq!(seconds("1h30m"), Ok(5_400));
        assert_eq!(seconds("2w"), Ok(1_209_600));
        for bad in
            ["", "1", "h", "0s", "-1h", "1 h", "1y", "1.5h", "99999999999999999999s", "999w9w"]
        {
            let message = parse_duration(bad).unwrap_err();
            assert!(message.contains("write"), "{bad}: {message}");
        }
    }

    #[test]
    fn ping_intervals_are_seconds() {
        assert_eq!(parse_seconds("0.2"), Ok(Duration::from_millis(200)));
        for bad in ["", "x", "0", "-1", "nan", "inf"] {
            assert!(parse_seconds(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times_are_told_in_words() {
        assert_eq!(relative(1_000 + 86_300, 1_000), "in 23 h");
        assert_eq!(relative(1_000, 1_000 + 301), "5 min ago");
        assert_eq!(relative(0, 1_000), "-");
        assert_eq!(rough(Duration::from_millis(41)), "41 ms");
        assert_eq!(rough(Duration::from_secs(3 * 86_400)), "3 days");
    }

    #[test]
    fn timestamps_are_rfc_3339() {
        assert_eq!(timestamp(1_700_000_000).as_deref(), Some("2023-11-14T22:13:20Z"));
        assert_eq!(timestamp(0), None);
        assert_eq!(timestamp(i64::MAX), None);
    }

    #[test]
    fn sizes_have_one_decimal() {
        assert_eq!(bytes(1_023), "1023 B");
        assert_eq!(bytes(1_536), "1.5 KiB");
        assert_eq!(bytes(10 << 20), "10.0 MiB");
        assert_eq!(bytes(u64::MAX), "1638.3 PiB");
        assert_eq!(milliseconds(1_234), "1.234 ms");
    }
}
