//! `[rollout.NAME]`: how a new version takes over the requests of an old one, step by step.

use std::sync::Arc;
use std::time::Duration;

use crate::name::Name;
use crate::route::Share;
use crate::topology::decl::{LatencyBound, LatencyGoal, OnFailure, QUANTILES, RolloutDecl};
use crate::topology::read::{
    At, Context, Entry, Located, Read, Report, Schema, Table, all, instead, quote,
};
use crate::topology::values::{self, duration, share};

pub(crate) const ROLLOUT: Schema = &[
    ("route", "route = \"api\""),
    ("stable", "stable = \"api-v1\""),
    ("canary", "canary = \"api-v2\""),
    ("steps", "steps = [5, 25, 50, 100]"),
    ("interval", "interval = \"1m\""),
    ("success_rate", "success_rate = 0.99"),
    ("latency", "latency = { p99 = \"300ms\" }"),
    ("min_requests", "min_requests = 100"),
    ("on_failure", "on_failure = \"rollback\""),
    ("auto_promote", "auto_promote = true"),
];

pub(crate) const LATENCY: Schema = &[
    ("p50", "p50 = \"20ms\""),
    ("p90", "p90 = \"120%\""),
    ("p95", "p95 = \"120%\""),
    ("p99", "p99 = \"300ms\""),
];

const MOST_STEPS: usize = 100;
const MOST_REQUESTS: i64 = 1_000_000_000;
const DEFAULT_STEPS: [u8; 4] = [5, 25, 50, 100];
const DEFAULT_INTERVAL: Duration = Duration::from_secs(60);
const SHORTEST_INTERVAL: Duration = Duration::from_secs(1);
const DEFAULT_SUCCESS_RATE: u32 = 990_000;
const DEFAULT_MIN_REQUESTS: u32 = 100;

/// A rollout, and the places that checks between tables point at.
#[derive(Debug)]
pub(crate) struct RolloutDraft {
    pub(crate) decl: RolloutDecl,
    pub(crate) routes: Vec<At>,
    pub(crate) stable: At,
    pub(crate) canary: At,
}

pub(crate) fn rollout(
    named: &str,
    table: &Table<'_>,
    report: &mut Report<'_>,
) -> Read<RolloutDraft> {
    let routes = table.required("route", report).and_then(|entry| {
        all(entry.one_or_more(report)?, |text| {
            values::title("route", text, report)?;
            Ok(Located { value: Arc::<str>::from(text.value), at: text.at })
        })
    });
    let stable = table.required("stable", report).and_then(|entry| name(entry, report));
    let canary = table.required("canary", report).and_then(|entry| name(entry, report));
    let steps = table.optional("steps", |entry| steps(entry, report));
    let interval = table.optional("interval", |entry| interval(entry, report));
    let success_rate = table.optional("success_rate", |entry| share(entry, 1.0, report));
    let latency = table.optional("latency", |entry| latency(named, entry, report));
    let min_requests = table.optional("min_requests", |entry| min_requests(entry, report));
    let on_failure = table.optional("on_failure", |entry| on_failure(entry, report));
    let auto_promote = table.optional("auto_promote", |entry| entry.boolean(report));
    let (routes, stable, canary) = (routes?, stable?, canary?);
    if stable.value == canary.value {
        let message = format!("\"{}\" can't take over from itself", canary.value);
        return Err(report.error(canary.at, message, "name the new version's service"));
    }
    let decl = RolloutDecl {
        routes: routes.iter().map(|route| Arc::clone(&route.value)).collect(),
        stable: stable.value,
        canary: canary.value,
        steps: steps?.unwrap_or_else(|| DEFAULT_STEPS.to_vec()),
        interval: interval?.unwrap_or(DEFAULT_INTERVAL),
        success_rate: success_rate?.or(Share::new(DEFAULT_SUCCESS_RATE)).unwrap_or(Share::ALL),
        latency: latency?.unwrap_or_default(),
        min_requests: min_requests?.unwrap_or(DEFAULT_MIN_REQUESTS),
        on_failure: on_failure?.unwrap_or(OnFailure::Rollback),
        auto_promote: auto_promote?.unwrap_or(true),
        origin: report.origin(table.at),
    };
    comparable(&decl, table, report)?;
    let routes = routes.iter().map(|route| route.at).collect();
    Ok(RolloutDraft { decl, routes, stable: stable.at, canary: canary.at })
}

/// Where the first step takes everything from the stable, nothing of its is left to compare with.
fn comparable(decl: &RolloutDecl, table: &Table<'_>, report: &mut Report<'_>) -> Read<()> {
    let relative = |goal: &LatencyGoal| matches!(goal.most, LatencyBound::OfStable(_));
    if decl.steps.first() != Some(&100) || !decl.latency.iter().any(relative) {
        return Ok(());
    }
    let at = table.get("latency").map_or(table.at, |entry| entry.at);
    let message = "with a first step of 100 the stable has no requests to compare latency with";
    Err(report.error(at, message, "write times, such as `latency = { p99 = \"300ms\" }`"))
}

fn name(entry: Entry<'_>, report: &mut Report<'_>) -> Read<Located<Name>> {
    let text = entry.string(report)?;
    Ok(Located { value: values::name(text, report)?, at: text.at })
}

fn steps(entry: Entry<'_>, report: &mut Report<'_>) -> Read<Vec<u8>> {
    let help = "write percents that rise, such as `steps = [5, 25, 50, 100]`";
    let numbers = entry.integers(report)?;
    if numbers.len() > MOST_STEPS {
        let message = format!("there are more than {MOST_STEPS} steps");
        return Err(report.error(entry.at, message, help));
    }
    let mut last = 0;
    all(numbers, |number| {
        let step = u8::try_from(number.value).ok().filter(|step| (1..=100).contains(step));
        let rising = step.filter(|step| *step > last);
        last = step.unwrap_or(last);
        rising.ok_or_else(|| {
            let message = format!("{} can't be a step here", number.value);
            report.error(number.at, message, help)
        })
    })
}

fn interval(entry: Entry<'_>, report: &mut Report<'_>) -> Read<Duration> {
    let time = duration(entry, report)?;
    if time >= SHORTEST_INTERVAL {
        return Ok(time);
    }
    let message = format!("`interval` can't be {time:?}: agents report each second");
    Err(report.error(entry.at, message, "write a time from \"1s\" to \"24h\""))
}

fn latency<'a>(
    named: &'a str,
    entry: Entry<'a>,
    report: &mut Report<'_>,
) -> Read<Vec<LatencyGoal>> {
    let table = entry.table(Context::Within("latency", "rollout", named), LATENCY, report)?;
    if table.is_empty() {
        return Err(entry.empty(report));
    }
    let given = QUANTILES
        .iter()
        .filter_map(|(key, millionths)| Some((table.get(key)?, Share::new(*millionths)?)));
    all(given, |(entry, quantile)| Ok(LatencyGoal { quantile, most: bound(entry, report)? }))
}

/// "300ms", or "120%" of the stable's.
fn bound(entry: Entry<'_>, report: &mut Report<'_>) -> Read<LatencyBound> {
    let text = entry.string(report)?;
    let Some(digits) = text.value.strip_suffix('%') else {
        return duration(entry, report).map(LatencyBound::Time);
    };
    let percent = digits.parse().ok().filter(|percent| (100..=10_000).contains(percent));
    percent.map(LatencyBound::OfStable).ok_or_else(|| {
        let message = format!("{} is no share of the stable's latency", quote(text.value));
        report.error(text.at, message, "write 100% to 10000%, such as \"120%\"")
    })
}

fn min_requests(entry: Entry<'_>, report: &mut Report<'_>) -> Read<u32> {
    let number = entry.integer(report)?;
    let requests = u32::try_from(number).ok().filter(|_| (1..=MOST_REQUESTS).contains(&number));
    requests.ok_or_else(|| {
        let message = format!("`min_requests` can't be {number}");
        report.error(entry.at, message, "write how many a step needs, such as 100")
    })
}

fn on_failure(entry: Entry<'_>, report: &mut Report<'_>) -> Read<OnFailure> {
    let text = entry.string(report)?;
    match text.value {
        "rollback" => Ok(OnFailure::Rollback),
        "pause" => Ok(OnFailure::Pause),
        other => {
            let help = instead(other, ["rollback", "pause"].into_iter(), "write one of");
            Err(report.error(text.at, format!("{} can't follow a failure", quote(other)), help))
        }
    }
}
