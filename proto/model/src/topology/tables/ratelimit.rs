//! `[ratelimit.NAME]`: how many requests a service takes.

use super::check::require;
use super::parse::Draft;
use super::reader::{At, Context, Entry, Located, Read, Report, Schema, Table, instead, quote};
use super::route::matches;
use super::routes::require_http;
use super::{Placement, ServiceDecl, fields, values};
use crate::edge::Edge;
use crate::name::Name;
use crate::ratelimit::{LimitKey, LimitScope, RateLimit};

pub(super) const RATELIMIT: Schema = &[
    ("service", "service = \"api\""),
    ("match", "match = { path = { prefix = \"/search\" } }"),
    ("rate", "rate = 50"),
    ("burst", "burst = 100"),
    ("per", "per = \"identity\""),
    ("scope", "scope = \"mesh\""),
];

pub(super) const PER: Schema = &[("header", "header = \"x-api-key\"")];

const FASTEST: f64 = 1e9;
const MOST_BURST: i64 = 1_000_000;

/// A limit, and the place that checks between tables point at.
#[derive(Debug)]
pub(super) struct RateLimitDraft {
    pub(super) limit: RateLimit,
    service: At,
    /// Of what asks for a server's name.
    sni: Option<At>,
}

pub(super) fn ratelimit(
    name: &str,
    table: &Table<'_>,
    report: &mut Report<'_>,
) -> Read<RateLimitDraft> {
    let service = table.required("service", report).and_then(|entry| {
        let text = entry.string(report)?;
        Ok(Located { value: values::name(text, report)?, at: text.at })
    });
    let matches = table.optional("match", |entry| matches(entry, report));
    let rate = table.required("rate", report).and_then(|entry| rate(entry, report));
    let burst = table.optional("burst", |entry| burst(entry, report));
    let per = table.optional("per", |entry| per(name, entry, report));
    let scope = table.optional("scope", |entry| scope(entry, report));
    let (service, rate, matches) = (service?, rate?, matches?.unwrap_or_default());
    let asks_for_sni = matches.iter().any(|wanted| !wanted.sni.is_empty());
    let sni = table.get("match").filter(|_| asks_for_sni).map(|entry| entry.key_at);
    let limit = RateLimit {
        // A name that can't be one has been reported where it stands.
        name: name.parse().unwrap_or_else(|_| service.value.clone()),
        service: service.value,
        matches,
        rate,
        burst: burst?.unwrap_or_else(|| u32::try_from(rate.div_ceil(1000)).unwrap_or(u32::MAX)),
        per: per?.unwrap_or(LimitKey::All),
        scope: scope?.unwrap_or(LimitScope::Mesh),
        hosts: 1,
        origin: report.origin(table.at),
    };
    Ok(RateLimitDraft { limit, service: service.at, sni })
}

fn rate(entry: Entry<'_>, report: &mut Report<'_>) -> Read<u64> {
    let number = entry.number(report)?;
    let thousandths = (number * 1000.0).round();
    if !(1.0..=FASTEST).contains(&thousandths) {
        let message = format!("`rate` can't be {number}");
        let help = "write requests per second, from 0.001 to 1000000, such as `rate = 50`";
        return Err(report.error(entry.at, message, help));
    }
    // In range: it was just checked.
    Ok(thousandths as u64)
}

fn burst(entry: Entry<'_>, report: &mut Report<'_>) -> Read<u32> {
    let number = entry.integer(report)?;
    let burst = u32::try_from(number).ok().filter(|_| (1..=MOST_BURST).contains(&number));
    burst.ok_or_else(|| {
        let message = format!("`burst` can't be {number}");
        report.error(entry.at, message, "write how many may come at once, from 1 to 1000000")
    })
}

/// "identity", or a table that names a header.
fn per<'a>(named: &'a str, entry: Entry<'a>, report: &mut Report<'_>) -> Read<LimitKey> {
    let Some(text) = entry.text() else {
        let table = entry.table(Context::Within("per", "ratelimit", named), PER, report)?;
        let name = table.required("header", report)?.string(report)?;
        return fields::header_name(name, report).map(LimitKey::Header);
    };
    match text.value {
        "identity" => Ok(LimitKey::Identity),
        other => {
            let message = format!("requests can't be counted per {}", quote(other));
            let help = "write \"identity\" or { header = \"x-api-key\" }, or leave it out";
            Err(report.error(text.at, message, help))
        }
    }
}

fn scope(entry: Entry<'_>, report: &mut Report<'_>) -> Read<LimitScope> {
    let text = entry.string(report)?;
    match text.value {
        "mesh" => Ok(LimitScope::Mesh),
        "host" => Ok(LimitScope::Host),
        other => {
            let help = instead(other, ["mesh", "host"].into_iter(), "write one of");
            Err(report.error(text.at, format!("there is no scope {}", quote(other)), help))
        }
    }
}

/// A limit is about a service that speaks HTTP, and that some host has.
pub(super) fn check(draft: &Draft, report: &mut Report<'_>) {
    for declared in draft.ratelimits.values() {
        let Some(RateLimitDraft { limit, service, sni }) = &declared.draft else { continue };
        let name: &Name = &limit.service;
        if require("service", name, *service, &draft.services, report)
            && require_http(draft, name, *service, report)
        {
            require_host(draft, name, *service, report);
        }
        if let Some(at) = sni {
            let message = "a limit counts requests, `sni` is about TLS that nobody reads";
            report.error(*at, message, "leave `match` out, or write another one");
        }
    }
}

/// Where a limit counts.
fn require_host(draft: &Draft, name: &Name, at: At, report: &mut Report<'_>) {
    let service = draft.services.get(name).and_then(|declared| declared.draft.as_ref());
    let Some(ServiceDecl { edge: Some(Edge::External(_)), hosts, .. }) =
        service.map(|service| &service.decl)
    else {
        return;
    };
    if matches!(hosts, Placement::Names(hosts) if hosts.is_empty()) {
        let message = format!("each caller's host speaks to external \"{name}\" by itself");
        let help = format!("add `via` to [external.{name}]: its hosts are where requests count");
        report.error(at, message, help);
    }
}

/// All that a limit says, by key; the same keys for every limit.
pub(super) fn facts(limit: &RateLimit) -> Vec<(&'static str, String)> {
    // Taken apart, so that a new field can't be forgotten here.
    let RateLimit { name: _, service, matches, rate, burst, per, scope, hosts: _, origin: _ } =
        limit;
    let matches: Vec<String> = matches.iter().map(ToString::to_string).collect();
    vec![
        ("service", service.to_string()),
        ("match", if matches.is_empty() { "everything".to_owned() } else { matches.join(", ") }),
        ("rate", format!("{}", *rate as f64 / 1000.0)),
        ("burst", burst.to_string()),
        ("per", per.to_string()),
        ("scope", scope.to_string()),
    ]
}
