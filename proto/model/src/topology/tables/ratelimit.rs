//! `[ratelimit.NAME]`: how many requests a service takes.

use super::route::matches;
use crate::ratelimit::{LimitKey, LimitScope, RateLimit};
use crate::topology::read::{
    At, Context, Entry, Located, Read, Report, Schema, Table, instead, quote,
};
use crate::topology::values::{self, fields};

pub(crate) const RATELIMIT: Schema = &[
    ("service", "service = \"api\""),
    ("match", "match = { path = { prefix = \"/search\" } }"),
    ("rate", "rate = 50"),
    ("burst", "burst = 100"),
    ("per", "per = \"identity\""),
    ("scope", "scope = \"mesh\""),
];

pub(crate) const PER: Schema = &[("header", "header = \"x-api-key\"")];

const FASTEST: f64 = 1e9;
const MOST_BURST: i64 = 1_000_000;

/// A limit, and the place that checks between tables point at.
#[derive(Debug)]
pub(crate) struct RateLimitDraft {
    pub(crate) limit: RateLimit,
    pub(crate) service: At,
    /// Of what asks for a server's name.
    pub(crate) sni: Option<At>,
}

pub(crate) fn ratelimit(
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
