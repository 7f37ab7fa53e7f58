//! Output for people and programs: text with colours where a terminal wants them, tables, JSON.
//!
//! Commands build a text with colours always in it; `anstream` strips them where standard output is
//! no terminal or `NO_COLOR` is set.

use std::io::{IsTerminal as _, Write as _};

use anstyle::{AnsiColor, Style};
use anyhow::{Context as _, Result};
use comfy_table::{Attribute, Cell, Color, Row, Table, presets};
use serde_json::Value;

use crate::cli::Format;
use crate::errors::Exit;

/// Home, and clear what is below: before what is shown again and again.
pub(crate) const REDRAW: &str = "\u{1b}[H\u{1b}[J";
/// Before the first of it.
pub(crate) const CLEAR: &str = "\u{1b}[2J";

/// Tone of a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tone {
    Plain,
    Good,
    Warn,
    Bad,
    /// Needed seldom.
    Quiet,
    Strong,
}

/// Prints text for people, or a value for programs.
pub(crate) fn show(
    format: Format,
    text: impl FnOnce() -> String,
    value: impl FnOnce() -> Value,
) -> Result<()> {
    match format {
        Format::Text => say(&text()),
        Format::Json => json(&value()),
    }
}

/// Prints lines on standard output; a line break is added where the text has none.
pub(crate) fn say(text: &str) -> Result<()> {
    let mut out = anstream::stdout().lock();
    let end = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
    write!(out, "{text}{end}")
        .and_then(|()| out.flush())
        .context("Failed to write to standard output")
}

/// Prints a value on standard output.
pub(crate) fn json(value: &Value) -> Result<()> {
    let text = serde_json::to_string_pretty(value).context("Failed to write JSON")?;
    say(&text)
}

/// Prints a value on one line, for streams of them.
pub(crate) fn json_line(value: &Value) -> Result<()> {
    say(&value.to_string())
}

/// Prints on standard error, where nothing is lost if nobody can read it.
pub(crate) fn complain(text: &str) {
    let _ = writeln!(anstream::stderr().lock(), "{text}");
}

/// Prints a warning on standard error.
pub(crate) fn warn(text: &str) {
    complain(&format!("{} {text}", paint("warning:", Tone::Warn)));
}

/// Whether somebody sits there who can answer a question.
pub(crate) fn is_interactive() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

/// Asks on standard error; anything but a yes is a no, which is said by `otherwise`. So is Ctrl-C.
pub(crate) async fn confirm(question: &str, otherwise: &str) -> Result<bool> {
    {
        let mut err = anstream::stderr().lock();
        write!(err, "{question} [y/N] ").and_then(|()| err.flush()).context("Failed to ask")?;
    }
    let read = || {
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer).map(|_| answer)
    };
    let answer = tokio::select! {
        answer = tokio::task::spawn_blocking(read) => answer?.context("Failed to read the answer")?,
        _ = tokio::signal::ctrl_c() => {
            complain(&format!("\n{otherwise}"));
            // Nothing ends the wait for a line.
            std::process::exit(Exit::Negative as i32);
        }
    };
    let yes = matches!(answer.trim(), "y" | "Y" | "yes" | "Yes");
    if !yes {
        complain(otherwise);
    }
    Ok(yes)
}

/// A text in the colour of its tone.
pub(crate) fn paint(text: &str, tone: Tone) -> String {
    if text.is_empty() {
        return String::new();
    }
    let style = match tone {
        Tone::Plain => return text.to_owned(),
        Tone::Good => AnsiColor::Green.on_default(),
        Tone::Warn => AnsiColor::Yellow.on_default(),
        Tone::Bad => AnsiColor::Red.on_default(),
        Tone::Quiet => Style::new().dimmed(),
        Tone::Strong => Style::new().bold(),
    };
    format!("{style}{text}{style:#}")
}

/// A text from elsewhere without what could steer a terminal.
pub(crate) fn clean(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    for letter in text.chars() {
        if letter.is_control() && letter != '\n' && letter != '\t' {
            clean.extend(letter.escape_default());
        } else {
            clean.push(letter);
        }
    }
    clean
}

/// A cell of a table; a dash where there is nothing.
pub(crate) fn cell(text: impl ToString) -> Cell {
    toned(text, Tone::Plain)
}

/// A cell with a tone.
pub(crate) fn toned(text: impl ToString, tone: Tone) -> Cell {
    let text = clean(&text.to_string()).replace('\n', " ");
    let cell = Cell::new(if text.is_empty() { "-".to_owned() } else { text });
    match tone {
        Tone::Plain => cell,
        Tone::Good => cell.fg(Color::DarkGreen),
        Tone::Warn => cell.fg(Color::DarkYellow),
        Tone::Bad => cell.fg(Color::DarkRed),
        Tone::Quiet => cell.add_attribute(Attribute::Dim),
        Tone::Strong => cell.add_attribute(Attribute::Bold),
    }
}

/// A number at the right edge of its column.
pub(crate) fn number(text: impl ToString) -> Cell {
    cell(text).set_alignment(comfy_table::CellAlignment::Right)
}

/// A table without lines: easy to read, to grep and to cut.
pub(crate) fn table(header: &[&str], rows: Vec<Vec<Cell>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).enforce_styling();
    table.style_text_only();
    table.set_header(Row::from(header.iter().map(|name| toned(name, Tone::Quiet))));
    table.add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

/// Lines of "name   value", the values aligned; empty values are left out.
pub(crate) fn facts(facts: &[(&str, String)]) -> String {
    let width = facts.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
    let mut text = String::new();
    for (name, value) in facts.iter().filter(|(_, value)| !value.is_empty()) {
        let indent = format!("\n{:indent$}", "", indent = width + 4);
        let value = value.trim_end_matches('\n').replace('\n', &indent);
        let name = paint(&format!("{name:width$}"), Tone::Quiet);
        text.push_str(&format!("  {name}  {value}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_aligned_columns_and_no_lines() {
        let text = table(
            &["HOST", "STATE"],
            vec![vec![cell("app-1"), toned("up", Tone::Good)], vec![cell("a"), cell("")]],
        );
        let plain = anstream::adapter::strip_str(&text).to_string();
        assert_eq!(plain, "HOST   STATE\napp-1  up\na      -");
    }

    #[test]
    fn colours_can_be_stripped() {
        let painted = paint("DENY", Tone::Bad);
        assert_ne!(painted, "DENY");
        assert_eq!(anstream::adapter::strip_str(&painted).to_string(), "DENY");
    }

    #[test]
    fn texts_from_elsewhere_cant_steer_the_terminal() {
        assert_eq!(clean("a\u{1b}[2Jb"), "a\\u{1b}[2Jb");
        assert_eq!(cell("a\u{7}\nb").content(), "a\\u{7} b");
    }

    #[test]
    fn facts_leave_out_what_is_not_known() {
        let lines =
            [("name", "corp".to_owned()), ("note", String::new()), ("at", "a\nb".to_owned())];
        let plain = anstream::adapter::strip_str(&facts(&lines)).to_string();
        assert_eq!(plain, "  name  corp\n  at    a\n        b\n");
    }
}
