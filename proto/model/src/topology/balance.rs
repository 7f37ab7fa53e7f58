//! `balance` and `breaker` of `[service.NAME]`.

use std::sync::Arc;

use super::fields;
use super::reader::{Context, Entry, Located, Read, Report, Schema, Table, instead, quote};
use crate::balance::{Balance, BalancePolicy, HashKey};
use crate::snapshot::Protocol;

const BALANCE: Schema = &[
    ("policy", "policy = \"maglev\""),
    ("header", "header = \"x-user\""),
    ("cookie", "cookie = \"session\""),
    ("source", "source = true"),
];

const BREAKER: Schema = &[("max_requests", "max_requests = 1024")];

const POLICIES: [&str; 5] = ["peak-ewma", "least-request", "round-robin", "ring-hash", "maglev"];

pub(super) fn balance(
    table: &Table<'_>,
    protocol: Protocol,
    report: &mut Report<'_>,
) -> Read<Balance> {
    let given = ["balance", "breaker"].into_iter().find_map(|key| table.get(key));
    if let Some(entry) = given.filter(|_| protocol != Protocol::Http) {
        let message =
            format!("`{}` is about requests, and this service speaks {protocol}", entry.key);
        let help = "write `protocol = \"http\"`, or leave it out";
        return Err(report.error(entry.key_at, message, help));
    }
    let policy = table.optional("balance", |entry| policy(entry, report));
    let most = table.optional("breaker", |entry| {
        let table = entry.table(Context::Element("breaker", "service"), BREAKER, report)?;
        table.required("max_requests", report).and_then(|entry| max_requests(entry, report))
    });
    let (policy, most) = (policy?, most?);
    Ok(Balance {
        policy: policy.unwrap_or_default(),
        max_requests: most.unwrap_or(Balance::MAX_REQUESTS),
    })
}

fn max_requests(entry: Entry<'_>, report: &mut Report<'_>) -> Read<u32> {
    let number = entry.integer(report)?;
    u32::try_from(number).ok().filter(|number| *number != 0).ok_or_else(|| {
        let message = format!("`max_requests` can't be {number}");
        report.error(entry.at, message, "write how many requests may be under way, such as 1024")
    })
}

/// A policy's name, or a table that says what is hashed, too.
fn policy(entry: Entry<'_>, report: &mut Report<'_>) -> Read<BalancePolicy> {
    if let Some(name) = entry.text() {
        return named(name, None, report);
    }
    let table = entry.table(Context::Element("balance", "service"), BALANCE, report)?;
    let name = table.required("policy", report).and_then(|entry| entry.string(report));
    let key = key(&table, report);
    named(name?, key?, report)
}

fn key(table: &Table<'_>, report: &mut Report<'_>) -> Read<Option<HashKey>> {
    let header = table.optional("header", |entry| {
        fields::header_name(entry.string(report)?, report).map(HashKey::Header)
    });
    let cookie = table.optional("cookie", |entry| {
        let text = entry.string(report)?;
        fields::header_name(text, report).map(|_| HashKey::Cookie(Arc::from(text.value)))
    });
    let source = table.optional("source", |entry| entry.boolean(report));
    let source = source?.unwrap_or(false).then_some(HashKey::Source);
    let mut keys = [header?, cookie?, source].into_iter().flatten();
    let key = keys.next();
    if keys.next().is_some() {
        let help = "keep one of `header`, `cookie` and `source`";
        return Err(report.error(table.at, "a request can be hashed by one thing only", help));
    }
    Ok(key)
}

fn named(
    name: Located<&str>,
    key: Option<HashKey>,
    report: &mut Report<'_>,
) -> Read<BalancePolicy> {
    let policy = match (name.value, key) {
        ("ring-hash", Some(key)) => BalancePolicy::RingHash(key),
        ("maglev", Some(key)) => BalancePolicy::Maglev(key),
        ("ring-hash" | "maglev", None) => {
            let message = format!("{} must know what to hash", quote(name.value));
            let help = format!(
                "write `balance = {{ policy = \"{}\", source = true }}`, or `header` or `cookie`",
                name.value
            );
            return Err(report.error(name.at, message, help));
        }
        ("peak-ewma", None) => BalancePolicy::PeakEwma,
        ("least-request", None) => BalancePolicy::LeastRequest,
        ("round-robin", None) => BalancePolicy::RoundRobin,
        (known, Some(_)) if POLICIES.contains(&known) => {
            let message = format!("{} hashes nothing", quote(known));
            let help = "write \"maglev\" or \"ring-hash\", or leave the key out";
            return Err(report.error(name.at, message, help));
        }
        (other, _) => {
            let help = instead(other, POLICIES.into_iter(), "write one of");
            let message = format!("there is no balance {}", quote(other));
            return Err(report.error(name.at, message, help));
        }
    };
    Ok(policy)
}
