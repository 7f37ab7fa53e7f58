//! `balance`, `breaker`, `outlier` and `health` of `[service.NAME]`.

use std::ops::RangeInclusive;
use std::sync::Arc;

use crate::balance::{Balance, BalancePolicy, HashKey};
use crate::name::Name;
use crate::resilience::{Breaker, HealthCheck, HealthProbe, Outlier};
use crate::snapshot::Protocol;
use crate::topology::read::{
    Context, Entry, Located, Read, Report, Schema, Table, all, instead, quote,
};
use crate::topology::values::{self, duration, fields};

pub(crate) const BALANCE: Schema = &[
    ("policy", "policy = \"maglev\""),
    ("header", "header = \"x-user\""),
    ("cookie", "cookie = \"session\""),
    ("source", "source = true"),
    ("weights", "weights = { app-1 = 3 }"),
    ("locality", "locality = false"),
    ("slow_start", "slow_start = \"30s\""),
    ("panic_threshold", "panic_threshold = 50"),
];

pub(crate) const BREAKER: Schema = &[
    ("max_connections", "max_connections = 1024"),
    ("max_pending_requests", "max_pending_requests = 1024"),
    ("max_requests", "max_requests = 1024"),
    ("max_retries", "max_retries = 3"),
];

pub(crate) const OUTLIER: Schema = &[
    ("consecutive_5xx", "consecutive_5xx = 5"),
    ("consecutive_local_origin_failure", "consecutive_local_origin_failure = 5"),
    ("interval", "interval = \"10s\""),
    ("base_ejection_time", "base_ejection_time = \"1s\""),
    ("max_ejection_time", "max_ejection_time = \"60s\""),
    ("max_ejection_percent", "max_ejection_percent = 50"),
    ("success_rate_minimum_hosts", "success_rate_minimum_hosts = 5"),
    ("success_rate_request_volume", "success_rate_request_volume = 100"),
    ("success_rate_stdev_factor", "success_rate_stdev_factor = 1900"),
];

pub(crate) const HEALTH: Schema = &[
    ("http", "http = \"/healthz\""),
    ("tcp", "tcp = true"),
    ("grpc", "grpc = \"\""),
    ("interval", "interval = \"10s\""),
    ("timeout", "timeout = \"1s\""),
    ("healthy_threshold", "healthy_threshold = 2"),
    ("unhealthy_threshold", "unhealthy_threshold = 3"),
];

const POLICIES: [&str; 5] = ["peak-ewma", "least-request", "round-robin", "ring-hash", "maglev"];

/// What a service says of its requests, and where it names hosts.
pub(crate) struct Draft {
    pub(crate) balance: Balance,
    pub(crate) weighed: Vec<Located<Name>>,
}

pub(crate) fn balance(
    table: &Table<'_>,
    protocol: Protocol,
    report: &mut Report<'_>,
) -> Read<Draft> {
    let given =
        ["balance", "breaker", "outlier", "health"].into_iter().find_map(|key| table.get(key));
    if let Some(entry) = given.filter(|_| !protocol.carries_requests()) {
        let message =
            format!("`{}` is about requests, and this service speaks {protocol}", entry.key);
        let help = "write `protocol = \"http\"`, or leave it out";
        return Err(report.error(entry.key_at, message, help));
    }
    let draft = table.optional("balance", |entry| sharing(entry, report));
    let breaker = table.optional("breaker", |entry| breaker(entry, report));
    let outlier = table.optional("outlier", |entry| outlier(entry, report));
    let health = table.optional("health", |entry| health(entry, report));
    let mut draft = draft?.unwrap_or_else(Draft::default);
    draft.balance.breaker = breaker?.unwrap_or_default();
    draft.balance.outlier = outlier?.unwrap_or_default();
    draft.balance.health = health?;
    Ok(draft)
}

impl Draft {
    fn default() -> Self {
        Self { balance: Balance::default(), weighed: Vec::new() }
    }
}

/// A policy's name, or a table that says more.
fn sharing(entry: Entry<'_>, report: &mut Report<'_>) -> Read<Draft> {
    let mut draft = Draft::default();
    if let Some(name) = entry.text() {
        draft.balance.policy = named(name, None, report)?;
        return Ok(draft);
    }
    let table = entry.table(Context::Element("balance", "service"), BALANCE, report)?;
    let name = table.optional("policy", |entry| entry.string(report));
    let key = key(&table, report);
    let weights = table.optional("weights", |entry| weights(entry, report));
    let locality = table.optional("locality", |entry| entry.boolean(report));
    let slow_start = table.optional("slow_start", |entry| duration(entry, report));
    let panic = table.optional("panic_threshold", |entry| percent(entry, report));
    let name = name?.unwrap_or(Located { value: "peak-ewma", at: table.at });
    let default = Balance::default();
    let weights = weights?.unwrap_or_default();
    draft.balance = Balance {
        policy: named(name, key?, report)?,
        weights: weights.iter().map(|(host, weight)| (host.value.clone(), *weight)).collect(),
        locality: locality?.unwrap_or(default.locality),
        slow_start: slow_start?,
        panic_threshold: panic?.unwrap_or(default.panic_threshold),
        ..default
    };
    draft.weighed = weights.into_iter().map(|(host, _)| host).collect();
    Ok(draft)
}

fn weights(entry: Entry<'_>, report: &mut Report<'_>) -> Read<Vec<(Located<Name>, u32)>> {
    all(entry.entries(report)?, |(host, weight)| {
        let name = Located { value: values::name(host, report)?, at: host.at };
        Ok((name, whole(weight, 0..=Balance::MAX_WEIGHT, report)?))
    })
}

fn breaker(entry: Entry<'_>, report: &mut Report<'_>) -> Read<Breaker> {
    let table = entry.table(Context::Element("breaker", "service"), BREAKER, report)?;
    if table.is_empty() {
        return Err(entry.empty(report));
    }
    let connections = table.optional("max_connections", |it| whole(it, 1..=u32::MAX, report));
    let pending = table.optional("max_pending_requests", |it| whole(it, 1..=u32::MAX, report));
    let requests = table.optional("max_requests", |it| whole(it, 1..=u32::MAX, report));
    let retries = table.optional("max_retries", |it| whole(it, 0..=u32::MAX, report));
    let default = Breaker::default();
    Ok(Breaker {
        max_connections: connections?.unwrap_or(default.max_connections),
        max_pending_requests: pending?.unwrap_or(default.max_pending_requests),
        max_requests: requests?.unwrap_or(default.max_requests),
        max_retries: retries?,
    })
}

fn outlier(entry: Entry<'_>, report: &mut Report<'_>) -> Read<Outlier> {
    let table = entry.table(Context::Element("outlier", "service"), OUTLIER, report)?;
    if table.is_empty() {
        return Err(entry.empty(report));
    }
    let mut number = |key| table.optional(key, |it| whole(it, 0..=u32::MAX, report));
    let numbers = [
        number("consecutive_5xx"),
        number("consecutive_local_origin_failure"),
        number("success_rate_minimum_hosts"),
        number("success_rate_request_volume"),
        number("success_rate_stdev_factor"),
    ];
    let mut time = |key| table.optional(key, |it| duration(it, report));
    let times = [time("interval"), time("base_ejection_time"), time("max_ejection_time")];
    let most = table.optional("max_ejection_percent", |it| percent(it, report));
    let [in_a_row, unanswered, hosts, volume, factor] = numbers;
    let [interval, base, longest] = times;
    let default = Outlier::default();
    let read = Outlier {
        consecutive_5xx: in_a_row?.unwrap_or(default.consecutive_5xx),
        consecutive_local_origin_failure: unanswered?
            .unwrap_or(default.consecutive_local_origin_failure),
        interval: interval?.unwrap_or(default.interval),
        base_ejection_time: base?.unwrap_or(default.base_ejection_time),
        max_ejection_time: longest?.unwrap_or(default.max_ejection_time),
        max_ejection_percent: most?.unwrap_or(default.max_ejection_percent),
        success_rate_minimum_hosts: hosts?.unwrap_or(default.success_rate_minimum_hosts),
        success_rate_request_volume: volume?.unwrap_or(default.success_rate_request_volume),
        success_rate_stdev_factor: factor?.unwrap_or(default.success_rate_stdev_factor),
    };
    if read.base_ejection_time > read.max_ejection_time {
        let message = "`base_ejection_time` is longer than `max_ejection_time`";
        let help = "write a `max_ejection_time` that is at least as long; it is \"60s\" by default";
        return Err(report.error(table.at, message, help));
    }
    Ok(read)
}

fn health(entry: Entry<'_>, report: &mut Report<'_>) -> Read<HealthCheck> {
    let table = entry.table(Context::Element("health", "service"), HEALTH, report)?;
    let probe = probe(&table, report);
    let interval = table.optional("interval", |entry| duration(entry, report));
    let timeout = table.optional("timeout", |entry| duration(entry, report));
    let well = table.optional("healthy_threshold", |it| whole(it, 1..=100, report));
    let unwell = table.optional("unhealthy_threshold", |it| whole(it, 1..=100, report));
    let default = HealthCheck::new(probe?);
    Ok(HealthCheck {
        interval: interval?.unwrap_or(default.interval),
        timeout: timeout?.unwrap_or(default.timeout),
        healthy_threshold: well?.unwrap_or(default.healthy_threshold),
        unhealthy_threshold: unwell?.unwrap_or(default.unhealthy_threshold),
        ..default
    })
}

fn probe(table: &Table<'_>, report: &mut Report<'_>) -> Read<HealthProbe> {
    let http = table.optional("http", |entry| {
        let text = entry.string(report)?;
        let fine = |byte: u8| byte.is_ascii_graphic() && byte != b'#';
        if text.value.starts_with('/') && text.value.bytes().all(fine) && text.value.len() <= 1024 {
            return Ok(HealthProbe::Http { path: text.value.into() });
        }
        let message = format!("{} can't be asked for", quote(text.value));
        Err(report.error(text.at, message, "write a path such as \"/healthz\""))
    });
    let tcp = table.optional("tcp", |entry| entry.boolean(report));
    let grpc = table.optional("grpc", |entry| {
        let text = entry.string(report)?;
        let fine = |byte: u8| byte.is_ascii_alphanumeric() || b"._".contains(&byte);
        if text.value.len() <= 120 && text.value.bytes().all(fine) {
            return Ok(HealthProbe::Grpc { service: text.value.into() });
        }
        let message = format!("{} can't be a service of gRPC", quote(text.value));
        let help = "write its name, such as \"shop.Cart\", or \"\" for the whole server";
        Err(report.error(text.at, message, help))
    });
    let tcp = tcp?.unwrap_or(false).then_some(HealthProbe::Tcp);
    let mut probes = [http?, tcp, grpc?].into_iter().flatten();
    match (probes.next(), probes.next()) {
        (Some(probe), None) => Ok(probe),
        (None, _) => {
            let help = "add `http = \"/healthz\"`, `tcp = true` or `grpc = \"\"`";
            Err(report.error(table.at, "`health` doesn't say what is asked", help))
        }
        (Some(_), Some(_)) => {
            let help = "keep one of `http`, `tcp` and `grpc`";
            Err(report.error(table.at, "`health` can ask one thing only", help))
        }
    }
}

fn percent(entry: Entry<'_>, report: &mut Report<'_>) -> Read<u8> {
    // In range: it was just checked.
    whole(entry, 0..=100, report).map(|number| number as u8)
}

fn whole(entry: Entry<'_>, range: RangeInclusive<u32>, report: &mut Report<'_>) -> Read<u32> {
    let number = entry.integer(report)?;
    u32::try_from(number).ok().filter(|number| range.contains(number)).ok_or_else(|| {
        let message = format!("`{}` can't be {number}", entry.key);
        let help = format!("write a number from {} to {}", range.start(), range.end());
        report.error(entry.at, message, help)
    })
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
