//! From text to a tree of TOML; what isn't TOML is explained.

use std::ops::Range;

use toml::de::{DeTable, Error};
use toml_parser::Source;
use toml_parser::lexer::TokenKind;

use super::reader::{clip, quote};
use super::report::{At, Read, Report, Reported};

/// In longer files only the first error is looked for: the rest follow from it, and there could be
/// millions.
const RECOVERABLE: usize = 64 << 10;

const MOST_DOTS: usize = 8;

/// Reads a file as TOML, and reports each line that isn't.
pub(crate) fn read<'a>(file: usize, text: &'a str, report: &mut Report<'_>) -> Read<DeTable<'a>> {
    if let Some(span) = long_key(text) {
        let message = "a key of so many parts nests tables too deeply";
        return Err(report.error(At::new(file, span), message, "a topology needs three levels"));
    }
    let first = match DeTable::parse(text) {
        Ok(tree) => return Ok(tree.into_inner()),
        Err(first) => first,
    };
    let mut errors = match text.len() > RECOVERABLE {
        true => vec![first],
        false => DeTable::parse_recoverable(text).1,
    };
    errors.sort_by_key(start);
    let mut last_line = 0;
    for error in &errors {
        let span = error.span().unwrap_or(0..0);
        let at = At::new(file, span.clone());
        // One slip makes several errors on its line; the first one names it best.
        let line = report.origin(at).line;
        if line != last_line {
            last_line = line;
            let (message, help) = explain(error.message(), text.get(span).unwrap_or_default());
            report.error(at, message, help);
        }
    }
    Err(Reported)
}

/// Where a key of too many parts ends. The parser bounds the nesting of brackets and the parts of a
/// key, but not the one within the other: thousands of levels would be too many for the stack.
fn long_key(text: &str) -> Option<Range<usize>> {
    let mut dots = 0;
    for token in Source::new(text).lex() {
        match token.kind() {
            TokenKind::Dot => dots += 1,
            TokenKind::Equals
            | TokenKind::Comma
            | TokenKind::LeftSquareBracket
            | TokenKind::RightSquareBracket
            | TokenKind::LeftCurlyBracket
            | TokenKind::RightCurlyBracket
            | TokenKind::Newline => dots = 0,
            TokenKind::Whitespace
            | TokenKind::Comment
            | TokenKind::LiteralString
            | TokenKind::BasicString
            | TokenKind::MlLiteralString
            | TokenKind::MlBasicString
            | TokenKind::Atom
            | TokenKind::Eof => {}
        }
        if dots > MOST_DOTS {
            return Some(token.span().start()..token.span().end());
        }
    }
    None
}

fn start(error: &Error) -> usize {
    error.span().map_or(0, |span| span.start)
}

const NOT_CLOSED: &str = "this string isn't closed, or has a control character";
const CLOSE_IT: &str = "end it with the quote that it begins with, on the same line";

/// Beginnings of the parser's messages, each with the cause in an operator's words and what to write. The first fits.
const MESSAGES: [(&str, &str, &str); 14] = [
    ("unclosed table", "this header isn't closed", "write `]` at its end, as in `[mesh]`"),
    (
        "unclosed array table",
        "this header isn't closed",
        "write `]]` at its end, as in `[[allow]]`",
    ),
    ("unclosed array", "this list isn't closed", "write `]` at its end"),
    ("unclosed inline table", "this table isn't closed", "write `}` at its end"),
    (
        "missing comma",
        "a comma is missing here",
        "put `,` between the elements, and close the list with `]` or the table with `}`",
    ),
    ("extra comma", "this comma has nothing before it", "remove it"),
    ("invalid basic string", NOT_CLOSED, CLOSE_IT),
    ("invalid literal string", NOT_CLOSED, CLOSE_IT),
    ("invalid multi-line", NOT_CLOSED, CLOSE_IT),
    (
        "missing escaped value",
        "a `\\` in a string begins an escape, and this is none",
        "write `\\\\`, or put the string in single quotes",
    ),
    (
        "key with no value",
        "this key has no value",
        "write `key = value`, `[table]`, or `#` before a comment",
    ),
    ("unquoted keys cannot be empty", "a key is missing here", "write `key = value` or `[table]`"),
    (
        "unexpected key or value",
        "this line goes on where it should end",
        "begin a new line, or a comment with `#`",
    ),
    ("extra `=`", "there is one `=` too many", "write `key = value`"),
];

/// The parser's messages in an operator's words, with what to write.
fn explain(message: &str, found: &str) -> (String, String) {
    let found = found.trim();
    let shown = quote(found);
    let says = |start: &str| message.starts_with(start);
    if says("string values must be quoted") {
        return no_value(found);
    }
    let (cause, help) = if says("duplicate key") || says("cannot extend") {
        (
            format!("`{}` is already defined in this file", clip(found)),
            "keep one of the two; lists of tables have two brackets: `[[allow]]`",
        )
    } else if says("invalid unquoted key") {
        let help = match found {
            "//" | "/*" | "--" | ";" => "a comment begins with `#`",
            ":" => "write `=` between key and value",
            _ => "write keys with a-z, 0-9, '-' and '_', or in quotes",
        };
        (format!("{shown} can't be in a key"), help)
    } else if says("invalid boolean") {
        (format!("{shown} is not a value"), "write `true` or `false`, in lower case")
    } else if let Some((_, cause, help)) = MESSAGES.iter().find(|(start, ..)| says(start)) {
        ((*cause).to_owned(), *help)
    } else if says("unexpected leading zero") || says("`_` may only") {
        (format!("{shown} can't stand here in a number"), "write the number in plain digits")
    } else if says("invalid") {
        (
            format!("{shown} can't be part of a number or a time"),
            "put addresses, prefixes and times in quotes",
        )
    } else if message.contains("recur") {
        ("tables and lists are nested too deeply".to_owned(), "a topology needs three levels")
    } else {
        (format!("this isn't TOML: {message}"), "write it as https://toml.io describes")
    };
    (cause, help.to_owned())
}

fn no_value(found: &str) -> (String, String) {
    if found.is_empty() {
        return ("there is no value after `=`".to_owned(), "write `key = value`".to_owned());
    }
    let help = if found.contains("//") {
        "a comment begins with `#`".to_owned()
    } else if found.starts_with(|letter: char| letter.is_ascii_digit()) && found.contains(' ') {
        "write one value, or separate several by commas".to_owned()
    } else {
        format!("put strings in quotes: {}", quote(found))
    };
    (format!("{} is not a value", clip(found)), help)
}
