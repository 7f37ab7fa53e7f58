//! `[rollout.NAME]`: how a new version takes over the requests of an old one, step by step.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::check::require;
use super::declare::all;
use super::parse::Draft;
use super::reader::{At, Context, Entry, Located, Read, Report, Schema, Table, instead, quote};
use super::route::{RouteDraft, duration, share};
use super::routes::{require_http, require_workloads};
use super::suggest::nearest;
use super::values;
use crate::name::Name;
use crate::route::{RouteAction, Share};
use crate::rules::Origin;

pub(super) const ROLLOUT: Schema = &[
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

pub(super) const LATENCY: Schema = &[
    ("p50", "p50 = \"20ms\""),
    ("p90", "p90 = \"120%\""),
    ("p95", "p95 = \"120%\""),
    ("p99", "p99 = \"300ms\""),
];

const QUANTILES: [(&str, u32); 4] =
    [("p50", 500_000), ("p90", 900_000), ("p95", 950_000), ("p99", 990_000)];

const MOST_STEPS: usize = 100;
const MOST_REQUESTS: i64 = 1_000_000_000;
const DEFAULT_STEPS: [u8; 4] = [5, 25, 50, 100];
const DEFAULT_INTERVAL: Duration = Duration::from_secs(60);
const SHORTEST_INTERVAL: Duration = Duration::from_secs(1);
const DEFAULT_SUCCESS_RATE: u32 = 990_000;
const DEFAULT_MIN_REQUESTS: u32 = 100;

/// `[rollout.NAME]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RolloutDecl {
    /// `route`: the names of the routes whose weights it moves.
    pub routes: Vec<Arc<str>>,
    /// `stable`: the service that has the requests.
    pub stable: Name,
    /// `canary`: the one that shall get them.
    pub canary: Name,
    /// `steps`: the canary's share in percent, rising.
    pub steps: Vec<u8>,
    /// `interval`: how long each step is watched at least.
    pub interval: Duration,
    /// `success_rate`: the least share of requests that must succeed.
    pub success_rate: Share,
    /// `latency`
    pub latency: Vec<LatencyGoal>,
    /// `min_requests`: a step isn't judged good on fewer.
    pub min_requests: u32,
    /// `on_failure`
    pub on_failure: OnFailure,
    /// `auto_promote`: whether the canary takes over by itself after the last step.
    pub auto_promote: bool,
    /// Where it stands.
    pub origin: Origin,
}

/// One entry of `latency`: what a share of the canary's requests must not take longer than.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatencyGoal {
    /// Which share: 0.99 for `p99`.
    pub quantile: Share,
    /// Than what.
    pub most: LatencyBound,
}

/// What a latency is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LatencyBound {
    /// A time.
    Time(Duration),
    /// So many percent of what the same share of the stable's requests take.
    OfStable(u32),
}

/// What becomes of a canary that does badly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFailure {
    /// All requests go to the stable again.
    Rollback,
    /// The weights stay, and an operator decides.
    Pause,
}

/// A rollout, and the places that checks between tables point at.
#[derive(Debug)]
pub(super) struct RolloutDraft {
    pub(super) decl: RolloutDecl,
    routes: Vec<At>,
    stable: At,
    canary: At,
}

impl LatencyGoal {
    /// `p99`
    #[must_use]
    pub fn name(&self) -> &'static str {
        let known =
            QUANTILES.iter().find(|(_, millionths)| Share::new(*millionths) == Some(self.quantile));
        known.map_or("latency", |(name, _)| name)
    }
}

impl std::fmt::Display for LatencyGoal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.most {
            LatencyBound::Time(time) => write!(f, "{} {time:?}", self.name()),
            LatencyBound::OfStable(percent) => {
                write!(f, "{} {percent}% of the stable's", self.name())
            }
        }
    }
}

impl std::fmt::Display for OnFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Rollback => "rollback",
            Self::Pause => "pause",
        })
    }
}

impl RolloutDecl {
    /// All that it says, by key; the same keys for every rollout.
    pub(super) fn facts(&self) -> Vec<(&'static str, String)> {
        // Taken apart, so that a new field can't be forgotten here.
        let Self {
            routes,
            stable,
            canary,
            steps,
            interval,
            success_rate,
            latency,
            min_requests,
            on_failure,
            auto_promote,
            origin: _,
        } = self;
        vec![
            ("route", routes.join(", ")),
            ("stable", stable.to_string()),
            ("canary", canary.to_string()),
            ("steps", list(steps)),
            ("interval", format!("{interval:?}")),
            ("success_rate", success_rate.to_string()),
            ("latency", list(latency)),
            ("min_requests", min_requests.to_string()),
            ("on_failure", on_failure.to_string()),
            ("auto_promote", auto_promote.to_string()),
        ]
    }
}

fn list<T: ToString>(values: &[T]) -> String {
    if values.is_empty() {
        return "none".to_owned();
    }
    values.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

pub(super) fn rollout(
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

/// What must hold between a rollout, its routes and its services.
pub(super) fn check(draft: &Draft, report: &mut Report<'_>) {
    let routes: HashMap<&str, &RouteDraft> =
        draft.routes.iter().map(|route| (&*route.route.name, route)).collect();
    let mut moved: HashMap<&Arc<str>, &Name> = HashMap::new();
    for (name, declared) in &draft.rollouts {
        let Some(rollout) = &declared.draft else { continue };
        for (service, at) in
            [(&rollout.decl.stable, rollout.stable), (&rollout.decl.canary, rollout.canary)]
        {
            if require("service", service, at, &draft.services, report)
                && require_http(draft, service, at, report)
            {
                require_workloads(draft, service, at, report);
            }
        }
        for (route, at) in rollout.decl.routes.iter().zip(&rollout.routes) {
            check_route(&rollout.decl, route, *at, &routes, report);
            if let Some(other) = moved.insert(route, name) {
                let message =
                    format!("rollout \"{other}\" moves the weights of {} already", quote(route));
                report.error(*at, message, "give each rollout routes of its own");
            }
        }
    }
}

fn check_route(
    rollout: &RolloutDecl,
    route: &Arc<str>,
    at: At,
    routes: &HashMap<&str, &RouteDraft>,
    report: &mut Report<'_>,
) {
    let Some(found) = routes.get(&**route) else {
        let help = match nearest(route, routes.keys().copied()) {
            Some(near) => format!("did you mean \"{near}\"?"),
            None => {
                format!("write `name = {}` in the [[route]] whose weights shall move", quote(route))
            }
        };
        report.error(at, format!("there is no route {}", quote(route)), help);
        return;
    };
    let RouteAction::Forward { to, .. } = &found.route.action else {
        let message = format!("route {} forwards nothing", quote(route));
        report.error(at, message, "name a route with `to`");
        return;
    };
    let strange = to.iter().find(|it| it.service != rollout.stable && it.service != rollout.canary);
    if let Some(strange) = strange {
        let message = format!(
            "route {} also leads to \"{}\", which is neither the rollout's stable nor its canary",
            quote(route),
            strange.service
        );
        report.error(
            at,
            message,
            format!("write `to = [{{ service = \"{}\" }}]` in the route", rollout.stable),
        );
    }
}
