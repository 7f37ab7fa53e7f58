//! Errors in a program's settings file, in words.

use std::ops::Range;

use super::suggest::did_you_mean;

/// The line of a settings file that something is wrong with, from 1, and what: with the key, the value
/// and what is expected. `said` is what the TOML reader says, `span` where.
#[must_use]
pub fn setting_error(text: &str, span: Option<Range<usize>>, said: &str) -> (usize, String) {
    let start = span.as_ref().map_or(0, |span| span.start);
    let line = text.bytes().take(start).filter(|byte| *byte == b'\n').count() + 1;
    if let Some(help) = did_you_mean(said).filter(|_| said.starts_with("unknown field ")) {
        return (line, format!("{said}; {help}"));
    }
    let value = span.and_then(|span| text.get(span)).unwrap_or_default().trim();
    let (Some(key), Some(wrong)) = (key_at(text, line), of_value(said, value)) else {
        return (line, said.to_owned());
    };
    let help = did_you_mean(said).map(|help| format!("; {help}")).unwrap_or_default();
    (line, format!("`{key}` {wrong}{help}"))
}

/// Line of a key (`tracing.otlp`) in a settings file, from 1, and its value there.
#[must_use]
pub fn setting_at<'t>(text: &'t str, key: &str) -> Option<(usize, &'t str)> {
    entries(text).find(|entry| entry.key == key).map(|entry| (entry.line, entry.value))
}

/// Error of a value, from serde's words; none where these are about something else.
fn of_value(said: &str, value: &str) -> Option<String> {
    if let Some((found, expected)) = said
        .strip_prefix("invalid type: ")
        .or_else(|| said.strip_prefix("invalid value: "))
        .and_then(|rest| rest.rsplit_once(", expected "))
    {
        return Some(format!("must be {}, not {found}", in_words(expected)));
    }
    if said.starts_with("unknown variant ") {
        return Some(format!("can't be that: {said}"));
    }
    if said == "invalid socket address syntax" {
        return Some(format!("must be ADDRESS:PORT, such as \"192.0.2.1:7443\", not {value}"));
    }
    None
}

fn in_words(expected: &str) -> &str {
    match expected {
        "u8" => "a number from 0 to 255",
        "u16" => "a number from 0 to 65535",
        "u32" => "a number from 0 to 4294967295",
        "f64" => "a number",
        "a boolean" => "true or false",
        "a string" | "path string" => "a text in quotes",
        "a sequence" => "a list in brackets",
        "socket address" => "ADDRESS:PORT, such as \"192.0.2.1:7443\"",
        other if other.starts_with("struct ") => "a table",
        other => other,
    }
}

/// A key with its value, as far as that is on the key's line.
struct Entry<'t> {
    line: usize,
    key: String,
    value: &'t str,
}

/// The key whose value reaches to a line.
fn key_at(text: &str, line: usize) -> Option<String> {
    entries(text).take_while(|entry| entry.line <= line).last().map(|entry| entry.key)
}

fn entries(text: &str) -> impl Iterator<Item = Entry<'_>> {
    let mut table = "";
    text.lines().zip(1..).filter_map(move |(content, line)| {
        let content = content.trim();
        if let Some(header) = content.strip_prefix('[').and_then(|it| it.split_once(']')) {
            table = header.0.trim();
            return None;
        }
        let (key, value) = content.split_once('=').filter(|_| !content.starts_with('#'))?;
        let dot = if table.is_empty() { "" } else { "." };
        Some(Entry { line, key: format!("{table}{dot}{}", key.trim()), value: value.trim() })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_shown_with_its_key_and_what_is_expected() {
        let text = "# port = 1\nport = 70000\n[dns]\nupstream = [\n  \"nobody\",\n]\n";
        let at = |part: &str| text.rfind(part).map(|start| start..start + part.len());
        assert_eq!(
            setting_error(text, at("70000"), "invalid value: integer `70000`, expected u16"),
            (2, "`port` must be a number from 0 to 65535, not integer `70000`".to_owned())
        );
        assert_eq!(
            setting_error(text, at("\"nobody\""), "invalid socket address syntax"),
            (
                5,
                "`dns.upstream` must be ADDRESS:PORT, such as \"192.0.2.1:7443\", not \"nobody\""
                    .to_owned()
            )
        );
        assert_eq!(setting_error(text, at("[dns]"), "duplicate key"), (3, "duplicate key".into()));
    }

    #[test]
    fn a_key_is_found_in_its_table() {
        let text = "sample = 1\n[tracing]\n# sample = 2\nsample = 3\n";
        assert_eq!(setting_at(text, "sample"), Some((1, "1")));
        assert_eq!(setting_at(text, "tracing.sample"), Some((4, "3")));
        assert_eq!(setting_at("tracing.sample = 7", "tracing.sample"), Some((1, "7")));
        assert_eq!(setting_at(text, "dns.sample"), None);
    }
}
