//! `[[route.NAME]]`, each by itself.

use std::sync::Arc;
use std::time::Duration;

use super::action;
use crate::name::Name;
use crate::route::{
    Backend, FieldMatch, Hedge, HostMatch, PathMatch, Retry, RetryOn, Route, RouteMatch, Share,
    ValueMatch,
};
use crate::topology::read::{At, Context, Entry, Located, Read, Report, Schema, Table, all, quote};
use crate::topology::values::{self, duration, fields, share};

pub(crate) const ROUTE: Schema = &[
    ("name", "name = \"canary\""),
    ("match", "match = { path = { prefix = \"/v1\" } }"),
    ("to", "to = [{ service = \"api-v1\", weight = 95 }, { service = \"api-v2\", weight = 5 }]"),
    ("redirect", "redirect = { scheme = \"https\" }"),
    ("direct_response", "direct_response = { status = 503, body = \"closed\" }"),
    ("rewrite", "rewrite = { host = \"api.example\", prefix = \"/\" }"),
    ("request_headers", "request_headers = { set = { x-stage = \"canary\" } }"),
    ("response_headers", "response_headers = { remove = [\"server\"] }"),
    ("timeout", "timeout = \"2s\""),
    ("try_timeout", "try_timeout = \"500ms\""),
    ("hedge", "hedge = { after = \"50ms\" }"),
    ("retry", "retry = { attempts = 2, on = [\"503\"], budget = 0.2 }"),
    ("mirror", "mirror = [{ service = \"api-v2\", percent = 10 }]"),
    ("fault", "fault = { delay = \"100ms\", delay_percent = 5 }"),
];

pub(crate) const MATCH: Schema = &[
    ("path", "path = { prefix = \"/v1\" }"),
    ("method", "method = \"GET\""),
    ("header", "header = { x-canary = \"1\" }"),
    ("query", "query = { version = \"2\" }"),
    ("host", "host = \"api.example.com\""),
    ("sni", "sni = \"api.example.com\""),
];

pub(crate) const PATH: Schema = &[
    ("exact", "exact = \"/v1/users\""),
    ("prefix", "prefix = \"/v1\""),
    ("regex", "regex = \"/users/[0-9]+\""),
];

pub(crate) const TO: Schema = &[("service", "service = \"api-v1\""), ("weight", "weight = 95")];

pub(crate) const RETRY: Schema = &[
    ("attempts", "attempts = 2"),
    ("on", "on = [\"connect-failure\", \"503\"]"),
    ("budget", "budget = 0.2"),
    ("backoff", "backoff = \"25ms\""),
    ("non_idempotent", "non_idempotent = true"),
];

pub(crate) const HEDGE: Schema = &[("after", "after = \"50ms\""), ("max", "max = 1")];

pub(crate) const VALUE: Schema = &[("regex", "regex = \"[0-9]+\"")];

const DEFAULT_BUDGET: u32 = 200_000;
const DEFAULT_BACKOFF: Duration = Duration::from_millis(25);
const MOST_ATTEMPTS: i64 = 10;
const MOST_WEIGHT: i64 = 1_000_000;

/// A route, and the places that checks between tables point at.
#[derive(Debug)]
pub(crate) struct RouteDraft {
    pub(crate) route: Route,
    pub(crate) at: At,
    /// The asked service's name, in the header.
    pub(crate) service: At,
    pub(crate) name: At,
    pub(crate) matches: At,
    /// One place for each backend.
    pub(crate) to: Vec<At>,
    /// One place for each mirror.
    pub(crate) mirrors: Vec<At>,
}

/// Reads a route of the service whose table it is; the `index`th of them, counted from 1.
pub(crate) fn route(
    service: &Located<Name>,
    index: usize,
    table: &Table<'_>,
    report: &mut Report<'_>,
) -> Read<RouteDraft> {
    let name = table.optional("name", |entry| {
        let text = entry.string(report)?;
        values::title("route", text, report)?;
        Ok(Located { value: Arc::from(text.value), at: text.at })
    });
    let matches = table.optional("match", |entry| matches(entry, report));
    let backends = table.optional("to", |entry| backends(entry, report));
    let exits = action::exits(table, report);
    let request_headers = table
        .optional("request_headers", |entry| fields::changes(entry, "request_headers", report));
    let response_headers = table
        .optional("response_headers", |entry| fields::changes(entry, "response_headers", report));
    let timeout = table.optional("timeout", |entry| duration(entry, report));
    let try_timeout = table.optional("try_timeout", |entry| duration(entry, report));
    let retry = table.optional("retry", |entry| retry(entry, report));
    let hedge = table.optional("hedge", |entry| hedge(entry, report));
    let mirrors = table.optional("mirror", |entry| action::mirrors(entry, report));
    let fault = action::fault(table, report);
    let (matches, backends) = (matches?.unwrap_or_default(), backends?);
    let name = name?.unwrap_or_else(|| Located {
        value: format!("{}-{index}", service.value).into(),
        at: table.at,
    });
    let exits = action::one_exit(table, &service.value, backends, exits?, report)?;
    let (mirrors, fault) = (mirrors?.unwrap_or_default(), fault?);
    let (timeout, try_timeout, retry) = (timeout?, try_timeout?, retry?);
    action::check_sense(table, &matches, &exits.action, report)?;
    let route = Route {
        name: name.value,
        service: service.value.clone(),
        matches,
        action: exits.action,
        request_headers: request_headers?.unwrap_or_default(),
        response_headers: response_headers?.unwrap_or_default(),
        timeout,
        try_timeout,
        hedge: hedge?,
        retry,
        mirrors: mirrors.iter().map(|mirror| mirror.value.clone()).collect(),
        delay: fault.delay,
        abort: fault.abort,
        origin: report.origin(table.at),
    };
    Ok(RouteDraft {
        route,
        at: table.at,
        service: service.at,
        name: name.at,
        matches: table.get("match").map_or(table.at, |entry| entry.key_at),
        to: exits.to,
        mirrors: mirrors.iter().map(|mirror| mirror.at).collect(),
    })
}

/// `match`: a table, or a list of tables any of which may fit.
pub(crate) fn matches(entry: Entry<'_>, report: &mut Report<'_>) -> Read<Vec<RouteMatch>> {
    let tables = entry.table_or_tables(Context::Element("match", "route"), MATCH, report)?;
    all(&tables, |table| {
        if table.is_empty() {
            let help = "to match every request leave `match` out";
            return Err(report.error(table.at, "an empty `match` fits every request", help));
        }
        let path = table.optional("path", |entry| path(entry, report));
        let method = table.optional("method", |entry| {
            let text = entry.string(report)?;
            values::method(text, report).map(|()| Arc::from(text.value))
        });
        let headers = table.optional("header", |entry| field_matches(entry, true, report));
        let query = table.optional("query", |entry| field_matches(entry, false, report));
        let hosts =
            table.optional("host", |entry| all(entry.one_or_more(report)?, |it| host(it, report)));
        let sni =
            table.optional("sni", |entry| all(entry.one_or_more(report)?, |it| host(it, report)));
        alone(table, report)?;
        Ok(RouteMatch {
            sni: sni?.unwrap_or_default(),
            hosts: hosts?.unwrap_or_default(),
            path: path?,
            method: method?,
            headers: headers?.unwrap_or_default(),
            query: query?.unwrap_or_default(),
        })
    })
}

/// What asks for a TLS server's name can't see anything else.
fn alone(table: &Table<'_>, report: &mut Report<'_>) -> Read<()> {
    let other =
        ["path", "method", "header", "query", "host"].into_iter().find_map(|it| table.get(it));
    let Some(other) = other.filter(|_| table.get("sni").is_some()) else { return Ok(()) };
    let message = format!("`{}` is about requests, `sni` about TLS that nobody reads", other.key);
    Err(report.error(other.key_at, message, "keep one of them"))
}

/// A string is the whole path; a table says how to compare.
pub(crate) fn path(entry: Entry<'_>, report: &mut Report<'_>) -> Read<PathMatch> {
    if let Some(text) = entry.text() {
        if let Some(start) = text.value.strip_suffix("/*") {
            let message = format!("the path {} has a '*'", quote(text.value));
            let help = format!(
                "write `path = {{ prefix = \"{}\" }}`",
                if start.is_empty() { "/" } else { start }
            );
            return Err(report.error(text.at, message, help));
        }
        values::path(text, false, report)?;
        return Ok(PathMatch::Exact(text.value.into()));
    }
    let table = entry.table(Context::Element("path", "route"), PATH, report)?;
    let exact = table.optional("exact", |entry| {
        let text = entry.string(report)?;
        values::path(text, false, report).map(|()| PathMatch::Exact(text.value.into()))
    });
    let prefix = table.optional("prefix", |entry| {
        let text = entry.string(report)?;
        values::path(text, false, report)?;
        // The slash at the end says nothing: `/a` fits `/a/`, too.
        let trimmed = text.value.trim_end_matches('/');
        Ok(PathMatch::Prefix(if trimmed.is_empty() { "/" } else { trimmed }.into()))
    });
    let regex = table.optional("regex", |entry| {
        fields::pattern(entry.string(report)?, report).map(PathMatch::Regex)
    });
    let mut found = [exact?, prefix?, regex?].into_iter().flatten();
    match (found.next(), found.next()) {
        (Some(one), None) => Ok(one),
        (None, _) => Err(entry.empty(report)),
        (Some(_), Some(_)) => {
            let message = "a path can be compared in one way only";
            let help =
                "keep one of `exact`, `prefix` and `regex`; several are several entries of `match`";
            Err(report.error(entry.at, message, help))
        }
    }
}

pub(crate) fn field_matches(
    entry: Entry<'_>,
    is_header: bool,
    report: &mut Report<'_>,
) -> Read<Vec<FieldMatch>> {
    let entries = entry.entries(report)?;
    if entries.is_empty() {
        return Err(entry.empty(report));
    }
    all(entries, |(key, value)| {
        let name = if is_header {
            fields::header_name(key, report)?
        } else {
            fields::parameter(key, report)?
        };
        Ok(FieldMatch { name, value: value_match(value, is_header, report)? })
    })
}

/// A string is the whole value; `true` and `false` say whether it is there at all.
pub(crate) fn value_match(
    entry: Entry<'_>,
    is_header: bool,
    report: &mut Report<'_>,
) -> Read<ValueMatch> {
    if let Some(text) = entry.text() {
        if is_header {
            fields::header_value(text, report)?;
        }
        return Ok(ValueMatch::Exact(text.value.into()));
    }
    if let Some(is_there) = entry.flag() {
        return Ok(if is_there { ValueMatch::Present } else { ValueMatch::Absent });
    }
    let table = entry.table(Context::Element("match", "route"), VALUE, report)?;
    let text = table.required("regex", report)?.string(report)?;
    fields::pattern(text, report).map(ValueMatch::Regex)
}

pub(crate) fn host(text: Located<&str>, report: &mut Report<'_>) -> Read<HostMatch> {
    match text.value.strip_prefix('*') {
        Some(suffix) if suffix.starts_with('.') => {
            fields::host(Located { value: &suffix[1..], at: text.at }, report)?;
            Ok(HostMatch::Suffix(suffix.into()))
        }
        Some(_) | None => fields::host(text, report).map(|()| HostMatch::Exact(text.value.into())),
    }
}

fn backends(entry: Entry<'_>, report: &mut Report<'_>) -> Read<Vec<Located<Backend>>> {
    let tables = entry.tables(Context::Element("to", "route"), TO, report)?;
    let backends = all(&tables, |table| {
        let service = table.required("service", report).and_then(|entry| {
            let text = entry.string(report)?;
            Ok(Located { value: values::name(text, report)?, at: text.at })
        });
        let weight = table.optional("weight", |entry| weight(entry, report));
        let service = service?;
        let backend = Backend { service: service.value, weight: weight?.unwrap_or(1) };
        Ok(Located { value: backend, at: service.at })
    })?;
    if backends.iter().all(|backend| backend.value.weight == 0) {
        let help = "give one of them a weight, or write `direct_response = { status = 503 }`";
        return Err(report.error(entry.at, "all weights of `to` are 0", help));
    }
    Ok(backends)
}

fn weight(entry: Entry<'_>, report: &mut Report<'_>) -> Read<u32> {
    let number = entry.integer(report)?;
    let weight = u32::try_from(number).ok().filter(|_| number <= MOST_WEIGHT);
    weight.ok_or_else(|| {
        let help = format!("write a number from 0 to {MOST_WEIGHT}, such as `weight = 95`");
        report.error(entry.at, format!("there is no weight {number}"), help)
    })
}

fn retry(entry: Entry<'_>, report: &mut Report<'_>) -> Read<Retry> {
    let table = entry.table(Context::Element("retry", "route"), RETRY, report)?;
    let attempts = table.required("attempts", report).and_then(|entry| {
        let number = entry.integer(report)?;
        let attempts = u32::try_from(number).ok().filter(|_| (1..=MOST_ATTEMPTS).contains(&number));
        attempts.ok_or_else(|| {
            let message = format!("a request can't be tried again {number} times");
            let help = format!("write 1 to {MOST_ATTEMPTS}, or leave `retry` out");
            report.error(entry.at, message, help)
        })
    });
    let on = table.optional("on", |entry| {
        all(entry.one_or_more(report)?, |text| fields::retry_on(text, report))
    });
    let budget = table.optional("budget", |entry| share(entry, 1.0, report));
    let backoff = table.optional("backoff", |entry| duration(entry, report));
    let non_idempotent = table.optional("non_idempotent", |entry| entry.boolean(report));
    let (attempts, on, budget, backoff) = (attempts?, on?, budget?, backoff?);
    Ok(Retry {
        attempts,
        on: on.unwrap_or_else(|| {
            vec![RetryOn::ConnectFailure, RetryOn::Reset, RetryOn::GatewayError]
        }),
        budget: budget.or(Share::new(DEFAULT_BUDGET)).unwrap_or(Share::ALL),
        backoff: backoff.unwrap_or(DEFAULT_BACKOFF),
        non_idempotent: non_idempotent?.unwrap_or(false),
    })
}

fn hedge(entry: Entry<'_>, report: &mut Report<'_>) -> Read<Hedge> {
    let table = entry.table(Context::Element("hedge", "route"), HEDGE, report)?;
    let after = table.required("after", report).and_then(|entry| duration(entry, report));
    let max = table.optional("max", |entry| {
        let number = entry.integer(report)?;
        let max = u32::try_from(number).ok().filter(|max| (1..=Hedge::MAX).contains(max));
        max.ok_or_else(|| {
            let message = format!("a request can't be hedged by {number} others");
            report.error(entry.at, message, format!("write 1 to {}", Hedge::MAX))
        })
    });
    Ok(Hedge { after: after?, max: max?.unwrap_or(1) })
}
