//! Route actions: forward it, changed perhaps; send the client elsewhere; answer;
//! and what it does besides.

use std::sync::Arc;
use std::time::Duration;

use crate::name::Name;
use crate::route::{
    Backend, Mirror, PathChange, PathMatch, Redirect, Rewrite, RouteAction, RouteMatch, Share,
};
use crate::topology::read::{
    At, Context, Entry, Located, Read, Report, Reported, Schema, Table, all,
};
use crate::topology::values::{self, duration, fields, share};

pub(crate) const REDIRECT: Schema = &[
    ("scheme", "scheme = \"https\""),
    ("host", "host = \"new.example.com\""),
    ("port", "port = 8443"),
    ("path", "path = \"/new\""),
    ("prefix", "prefix = \"/new\""),
    ("status", "status = 301"),
];

pub(crate) const RESPONSE: Schema = &[("status", "status = 503"), ("body", "body = \"closed\"")];

pub(crate) const REWRITE: Schema = &[
    ("host", "host = \"api.example\""),
    ("path", "path = \"/index.html\""),
    ("prefix", "prefix = \"/\""),
];

pub(crate) const MIRROR: Schema =
    &[("service", "service = \"api-v2\""), ("percent", "percent = 10")];

pub(crate) const FAULT: Schema = &[
    ("delay", "delay = \"100ms\""),
    ("delay_percent", "delay_percent = 5"),
    ("abort", "abort = 503"),
    ("abort_percent", "abort_percent = 1"),
];

const MOST_BODY: usize = 4096;

/// Keys of a route besides `to`.
pub(crate) struct Exits {
    redirect: Option<Redirect>,
    response: Option<(u16, Arc<str>)>,
    rewrite: Option<Rewrite>,
}

/// The one thing that a route does.
pub(crate) struct Exit {
    pub(crate) action: RouteAction,
    pub(crate) to: Vec<At>,
}

/// Faults that a route injects.
#[derive(Default)]
pub(crate) struct Fault {
    pub(crate) delay: Option<(Duration, Share)>,
    pub(crate) abort: Option<(u16, Share)>,
}

pub(crate) fn exits(table: &Table<'_>, report: &mut Report<'_>) -> Read<Exits> {
    let redirect = table.optional("redirect", |entry| redirect(entry, report));
    let response = table.optional("direct_response", |entry| response(entry, report));
    let rewrite = table.optional("rewrite", |entry| rewrite(entry, report));
    Ok(Exits { redirect: redirect?, response: response?, rewrite: rewrite? })
}

/// A route forwards (to its own service unless it says otherwise), redirects or answers.
pub(crate) fn one_exit(
    table: &Table<'_>,
    service: &Name,
    backends: Option<Vec<Located<Backend>>>,
    exits: Exits,
    report: &mut Report<'_>,
) -> Read<Exit> {
    let mut given =
        ["to", "redirect", "direct_response"].into_iter().filter_map(|key| table.get(key));
    if let Some(second) = given.nth(1) {
        let message = "a route does one thing: `to`, `redirect` or `direct_response`";
        let help = "keep one of them; another is another [[route]] with a `match` of its own";
        return Err(report.error(second.key_at, message, help));
    }
    let action = match (exits.redirect, exits.response) {
        (Some(redirect), _) => RouteAction::Redirect(redirect),
        (None, Some((status, body))) => RouteAction::Respond { status, body },
        (None, None) => {
            let own = Backend { service: service.clone(), weight: 1 };
            let backends = backends.unwrap_or_else(|| vec![Located { value: own, at: table.at }]);
            let places = backends.iter().map(|backend| backend.at).collect();
            let action = with_rewrite(exit_of(&backends), exits.rewrite);
            return Ok(Exit { action, to: places });
        }
    };
    let useless = ["rewrite", "retry", "hedge", "try_timeout", "mirror", "request_headers"];
    if let Some(entry) = useless.into_iter().find_map(|key| table.get(key)) {
        let message = format!("`{}` has no sense in a route that forwards nothing", entry.key);
        return Err(report.error(entry.key_at, message, "remove it, or name backends with `to`"));
    }
    Ok(Exit { action, to: Vec::new() })
}

fn exit_of(backends: &[Located<Backend>]) -> RouteAction {
    let to = backends.iter().map(|backend| backend.value.clone()).collect();
    RouteAction::Forward { to, rewrite: Rewrite::default() }
}

fn with_rewrite(action: RouteAction, rewrite: Option<Rewrite>) -> RouteAction {
    match action {
        RouteAction::Forward { to, .. } => {
            RouteAction::Forward { to, rewrite: rewrite.unwrap_or_default() }
        }
        other @ (RouteAction::Redirect(_) | RouteAction::Respond { .. }) => other,
    }
}

/// `prefix` needs a prefix that was matched.
pub(crate) fn check_sense(
    table: &Table<'_>,
    matches: &[RouteMatch],
    action: &RouteAction,
    report: &mut Report<'_>,
) -> Read<()> {
    let change = match action {
        RouteAction::Forward { rewrite, .. } => rewrite.path.as_ref().map(|path| ("rewrite", path)),
        RouteAction::Redirect(redirect) => redirect.path.as_ref().map(|path| ("redirect", path)),
        RouteAction::Respond { .. } => None,
    };
    let Some((key, PathChange::Prefix(_))) = change else { return Ok(()) };
    let has_prefix = |it: &RouteMatch| matches!(it.path, Some(PathMatch::Prefix(_)));
    if !matches.is_empty() && matches.iter().all(has_prefix) {
        return Ok(());
    }
    let at = table.get(key).map_or(table.at, |entry| entry.at);
    let message = format!("`prefix` in `{key}` replaces a prefix that `match` doesn't name");
    let help =
        "match `path = { prefix = \"/v1\" }` in every entry, or write `path` for the whole path";
    Err(report.error(at, message, help))
}

fn redirect(entry: Entry<'_>, report: &mut Report<'_>) -> Read<Redirect> {
    let table = entry.table(Context::Element("redirect", "route"), REDIRECT, report)?;
    let scheme = table.optional("scheme", |entry| {
        let text = entry.string(report)?;
        match text.value {
            "http" | "https" => Ok(Arc::from(text.value)),
            _ => {
                let message = format!("nobody is sent to {:?}", text.value);
                Err(report.error(text.at, message, "write \"http\" or \"https\""))
            }
        }
    });
    let host = table.optional("host", |entry| new_host(entry, report));
    let port = table.optional("port", |entry| values::port(entry, report));
    let path = path_change(&table, report);
    let status = table.optional("status", |entry| {
        let number = entry.integer(report)?;
        let known = u16::try_from(number).ok().filter(|it| [301, 302, 303, 307, 308].contains(it));
        known.ok_or_else(|| {
            let message = format!("{number} is no status that sends a client elsewhere");
            report.error(entry.at, message, "write 301, 302, 303, 307 or 308")
        })
    });
    let (scheme, host, port, path) = (scheme?, host?, port?, path?);
    if scheme.is_none() && host.is_none() && port.is_none() && path.is_none() {
        let help = "say where to: `scheme`, `host`, `port`, `path` or `prefix`";
        return Err(report.error(entry.at, "`redirect` leads back to where it came from", help));
    }
    Ok(Redirect { scheme, host, port, path, status: status?.unwrap_or(302) })
}

fn response(entry: Entry<'_>, report: &mut Report<'_>) -> Read<(u16, Arc<str>)> {
    let table = entry.table(Context::Element("direct_response", "route"), RESPONSE, report)?;
    let status =
        table.required("status", report).and_then(|entry| status(entry, 200..=599, report));
    let body = table.optional("body", |entry| {
        let text = entry.string(report)?;
        if text.value.len() > MOST_BODY {
            let message = format!("the body has more than {MOST_BODY} bytes");
            return Err(report.error(text.at, message, "serve longer answers by a service"));
        }
        Ok(Arc::from(text.value))
    });
    Ok((status?, body?.unwrap_or_else(|| "".into())))
}

fn rewrite(entry: Entry<'_>, report: &mut Report<'_>) -> Read<Rewrite> {
    let table = entry.table(Context::Element("rewrite", "route"), REWRITE, report)?;
    let host = table.optional("host", |entry| new_host(entry, report));
    let path = path_change(&table, report);
    let (host, path) = (host?, path?);
    if table.is_empty() {
        return Err(entry.empty(report));
    }
    Ok(Rewrite { host, path })
}

fn new_host(entry: Entry<'_>, report: &mut Report<'_>) -> Read<Arc<str>> {
    let text = entry.string(report)?;
    fields::host(text, report).map(|()| text.value.into())
}

fn path_change(table: &Table<'_>, report: &mut Report<'_>) -> Read<Option<PathChange>> {
    let read = |entry: Entry<'_>, report: &mut Report<'_>| -> Read<Arc<str>> {
        let text = entry.string(report)?;
        values::path(text, false, report).map(|()| text.value.into())
    };
    let full = table.optional("path", |entry| read(entry, report));
    let prefix = table.optional("prefix", |entry| read(entry, report));
    match (full?, prefix?) {
        (Some(_), Some(_)) => {
            let at = table.get("prefix").map_or(table.at, |entry| entry.key_at);
            let help = "keep `path` for the whole path, or `prefix` for its beginning";
            Err(report.error(at, "`path` and `prefix` contradict each other", help))
        }
        (Some(path), None) => Ok(Some(PathChange::Full(path))),
        (None, Some(prefix)) => Ok(Some(PathChange::Prefix(prefix))),
        (None, None) => Ok(None),
    }
}

pub(crate) fn mirrors(entry: Entry<'_>, report: &mut Report<'_>) -> Read<Vec<Located<Mirror>>> {
    let tables = entry.tables(Context::Element("mirror", "route"), MIRROR, report)?;
    all(&tables, |table| {
        let service = table.required("service", report).and_then(|entry| {
            let text = entry.string(report)?;
            Ok(Located { value: values::name(text, report)?, at: text.at })
        });
        let percent = table.optional("percent", |entry| share(entry, 100.0, report));
        let service = service?;
        let mirror = Mirror { service: service.value, share: percent?.unwrap_or(Share::ALL) };
        Ok(Located { value: mirror, at: service.at })
    })
}

pub(crate) fn fault(table: &Table<'_>, report: &mut Report<'_>) -> Read<Fault> {
    let Some(entry) = table.get("fault") else { return Ok(Fault::default()) };
    let table = entry.table(Context::Element("fault", "route"), FAULT, report)?;
    let delay = table.optional("delay", |entry| duration(entry, report));
    let delayed = table.optional("delay_percent", |entry| share(entry, 100.0, report));
    let abort = table.optional("abort", |entry| status(entry, 400..=599, report));
    let aborted = table.optional("abort_percent", |entry| share(entry, 100.0, report));
    let (delay, delayed, abort, aborted) = (delay?, delayed?, abort?, aborted?);
    needs("delay_percent", "delay", delayed.is_some() && delay.is_none(), &table, report)?;
    needs("abort_percent", "abort", aborted.is_some() && abort.is_none(), &table, report)?;
    if table.is_empty() {
        return Err(entry.empty(report));
    }
    Ok(Fault {
        delay: delay.map(|delay| (delay, delayed.unwrap_or(Share::ALL))),
        abort: abort.map(|status| (status, aborted.unwrap_or(Share::ALL))),
    })
}

fn needs(
    has: &'static str,
    lacks: &'static str,
    lacking: bool,
    table: &Table<'_>,
    report: &mut Report<'_>,
) -> Read<()> {
    if !lacking {
        return Ok(());
    }
    let at = table.get(has).map_or(table.at, |entry| entry.key_at);
    let example = FAULT.iter().find(|(key, _)| *key == lacks).map_or("", |(_, example)| example);
    Err(report.error(at, format!("`{has}` without `{lacks}`"), format!("add `{example}`")))
}

fn status(
    entry: Entry<'_>,
    range: std::ops::RangeInclusive<u16>,
    report: &mut Report<'_>,
) -> Read<u16> {
    let number = entry.integer(report)?;
    let status = u16::try_from(number).ok().filter(|status| range.contains(status));
    status.ok_or_else(|| -> Reported {
        let message = format!("`{}` can't be the status {number}", entry.key);
        let help = format!("write a status from {} to {}", range.start(), range.end());
        report.error(entry.at, message, help)
    })
}
