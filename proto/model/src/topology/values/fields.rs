//! Header fields, hosts, expressions: single values of routes.

use std::sync::Arc;

use crate::condition::{Condition, ConditionError};
use crate::host::{canonical, split_port};
use crate::route::{HeaderChanges, Pattern, RETRY_WORDS, RetryOn};
use crate::topology::read::{Context, Entry, Located, Read, Report, Schema, all, instead, quote};

pub(crate) const CHANGES: Schema = &[
    ("set", "set = { x-stage = \"canary\" }"),
    ("add", "add = { x-tag = \"a\" }"),
    ("remove", "remove = [\"server\"]"),
];

/// What frames messages or says who calls isn't a route's to change.
const NOT_A_ROUTES: [&str; 11] = [
    "connection",
    "content-length",
    "expect",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-forwarded-client-cert",
    "x-forwarded-for",
];

pub(crate) fn changes(
    entry: Entry<'_>,
    key: &'static str,
    report: &mut Report<'_>,
) -> Read<HeaderChanges> {
    let table = entry.table(Context::Element(key, "route"), CHANGES, report)?;
    let set = table.optional("set", |entry| pairs(entry, report));
    let add = table.optional("add", |entry| pairs(entry, report));
    let remove = table.optional("remove", |entry| {
        all(entry.one_or_more(report)?, |name| changeable(name, report))
    });
    let changes = HeaderChanges {
        set: set?.unwrap_or_default(),
        add: add?.unwrap_or_default(),
        remove: remove?.unwrap_or_default(),
    };
    if changes.is_empty() { Err(entry.empty(report)) } else { Ok(changes) }
}

fn pairs(entry: Entry<'_>, report: &mut Report<'_>) -> Read<Vec<(Arc<str>, Arc<str>)>> {
    all(entry.entries(report)?, |(key, value)| {
        let name = changeable(key, report)?;
        let text = value.string(report)?;
        header_value(text, report)?;
        Ok((name, text.value.into()))
    })
}

fn changeable(name: Located<&str>, report: &mut Report<'_>) -> Read<Arc<str>> {
    let read = header_name(name, report)?;
    // Applications behind CGI or WSGI see `-` and `_` as the same, some of them all signs.
    let folded = read.replace(|sign: char| !sign.is_ascii_alphanumeric(), "-");
    let help = match &*folded {
        "host" => "write `rewrite = { host = \"api.example\" }`",
        name if NOT_A_ROUTES.contains(&name) || name.starts_with("x-isthmus-") => {
            "leave it out: the proxies see to it"
        }
        _ => return Ok(read),
    };
    Err(report.error(name.at, format!("a route can't change the header `{read}`"), help))
}

/// A header field's name, in lower case.
pub(crate) fn header_name(name: Located<&str>, report: &mut Report<'_>) -> Read<Arc<str>> {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.value.is_empty() || name.value.len() > 128 || !name.value.bytes().all(token) {
        let message = format!("{} can't be the name of a header", quote(name.value));
        return Err(report.error(name.at, message, "write a name such as `x-canary`"));
    }
    Ok(name.value.to_ascii_lowercase().into())
}

pub(crate) fn header_value(text: Located<&str>, report: &mut Report<'_>) -> Read<()> {
    let fine = |byte: u8| matches!(byte, b' '..=b'~' | b'\t');
    let trimmed = text.value.trim() == text.value;
    if text.value.len() <= 4096 && text.value.bytes().all(fine) && trimmed {
        return Ok(());
    }
    let message = format!("{} can't be the value of a header", quote(text.value));
    let help = "write visible ASCII characters on one line, without blanks at its ends";
    Err(report.error(text.at, message, help))
}

pub(crate) fn parameter(name: Located<&str>, report: &mut Report<'_>) -> Read<Arc<str>> {
    if name.value.is_empty() || name.value.len() > 128 || name.value.contains(char::is_control) {
        let message = format!("{} can't be the name of a parameter", quote(name.value));
        return Err(report.error(name.at, message, "write a name such as `version`, decoded"));
    }
    Ok(name.value.into())
}

/// A host in its canonical form, without a port.
pub(crate) fn host(text: Located<&str>, report: &mut Report<'_>) -> Read<()> {
    let form = canonical(text.value);
    if form.as_deref() == Ok(text.value) {
        return Ok(());
    }
    let shown = quote(text.value);
    let help = match (form, canonical(split_port(text.value).0)) {
        (Ok(form), _) => format!("write \"{form}\""),
        (Err(_), Ok(name)) => format!("leave the port out: \"{name}\""),
        (Err(_), Err(_)) => {
            "write a name such as \"api.example.com\" or \"*.example.com\"".to_owned()
        }
    };
    Err(report.error(text.at, format!("{shown} can't be the name of a host"), help))
}

/// Likewise, but no IPv6 address in brackets: what names a server to DNS and TLS.
pub(crate) fn host_name(text: Located<&str>, report: &mut Report<'_>) -> Read<()> {
    host(text, report)?;
    if text.value.starts_with('[') {
        let message = format!("{} has brackets", quote(text.value));
        return Err(report.error(text.at, message, "write the address without them"));
    }
    Ok(())
}

pub(crate) fn pattern(text: Located<&str>, report: &mut Report<'_>) -> Read<Pattern> {
    text.value.parse().map_err(|error| {
        let message = format!("{} is no regular expression: {error}", quote(text.value));
        let help = "write one without look-around or back-references; it must fit the whole text";
        report.error(text.at, message, help)
    })
}

pub(crate) fn condition(text: Located<&str>, report: &mut Report<'_>) -> Read<Condition> {
    text.value.parse().map_err(|error: ConditionError| {
        let help = match &error {
            ConditionError::UnknownName(_) => {
                "the names are `request`, `source` and `jwt`, as in `request.method == 'GET'`"
            }
            ConditionError::Nested => "write two conditions, or go through one list only",
            ConditionError::TooLong(_) => "split it into several rules",
            ConditionError::Syntax(_) => "write it in CEL, such as `request.method == 'GET'`",
        };
        let message = format!("{} is no condition: {error}", quote(text.value));
        report.error(text.at, message, help)
    })
}

pub(crate) fn retry_on(text: Located<&str>, report: &mut Report<'_>) -> Read<RetryOn> {
    text.value.parse().map_err(|error| {
        let intro = "write a status from 400 to 599, or one of";
        report.error(
            text.at,
            format!("{error}"),
            instead(text.value, RETRY_WORDS.into_iter(), intro),
        )
    })
}
