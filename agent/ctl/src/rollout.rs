//! `agentctl rollout`: how far new versions have got, and the operator's hand on them.
//!
//! (On the wire a rollout is a `Delivery`. How far a revision has got is [`convergence`](crate::convergence).)

use std::time::Duration;

use anyhow::Result;
use comfy_table::Cell;
use isthmus_proto::v1;
use isthmus_proto::v1::admin_client::AdminClient;
use isthmus_proto::v1::steer_delivery_request::Order;
use serde_json::{Value, json};
use tonic::transport::Channel;

use crate::cli::{Format, Rollout};
use crate::errors::{Exit, Failure};
use crate::output::{self, Tone, cell, clean, facts, number, paint, table, toned};
use crate::transport::{Session, ask_controller};
use crate::words::{milliseconds, now, relative, timestamp};

const AGAIN: Duration = Duration::from_secs(1);

pub(crate) async fn rollout(session: &Session, command: &Rollout) -> Result<Exit> {
    match command {
        Rollout::List { watch } => list(session, *watch).await,
        Rollout::Status { name, watch } => status(session, name.as_str(), *watch).await,
        Rollout::Pause { name } => steer(session, name.as_str(), Order::Pause).await,
        Rollout::Resume { name } => steer(session, name.as_str(), Order::Resume).await,
        Rollout::Promote { name } => steer(session, name.as_str(), Order::Promote).await,
        Rollout::Abort { name } => steer(session, name.as_str(), Order::Abort).await,
        Rollout::Retry { name } => steer(session, name.as_str(), Order::Retry).await,
    }
}

async fn list(session: &Session, watch: bool) -> Result<Exit> {
    let mut admin = session.controller().await?;
    let mut last = None;
    loop {
        let rollouts = ask(&mut admin).await?;
        if last.as_ref() != Some(&rollouts) {
            show(
                session,
                watch,
                || list_text(&rollouts),
                || rollouts.iter().map(one_json).collect(),
            )?;
            last = Some(rollouts);
        }
        if !watch {
            return Ok(Exit::Success);
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// With `watch` until it is over: 0 if it was promoted, 1 if it was rolled back.
async fn status(session: &Session, name: &str, watch: bool) -> Result<Exit> {
    let mut admin = session.controller().await?;
    let mut last = None;
    loop {
        let rollouts = ask(&mut admin).await?;
        let Some(found) = rollouts.into_iter().find(|it| it.name == name) else {
            let problem =
                format!("There is no rollout {name:?}; `agentctl rollout list` shows all");
            return Err(Failure::Usage(problem).into());
        };
        let over = match &*found.phase {
            "promoted" => Some(Exit::Success),
            "rolled back" => Some(Exit::Negative),
            _ => None,
        };
        if last.as_ref() != Some(&found) {
            show(session, watch, || text(&found), || one_json(&found))?;
            last = Some(found);
        }
        match over {
            _ if !watch => return Ok(Exit::Success),
            Some(exit) => return Ok(exit),
            None => tokio::time::sleep(AGAIN).await,
        }
    }
}

async fn ask(admin: &mut AdminClient<Channel>) -> Result<Vec<v1::Delivery>> {
    Ok(ask_controller(admin.list_deliveries(v1::ListDeliveriesRequest {})).await?.deliveries)
}

async fn steer(session: &Session, name: &str, order: Order) -> Result<Exit> {
    let mut admin = session.controller().await?;
    let request = v1::SteerDeliveryRequest { name: name.to_owned(), order: order.into() };
    let after = ask_controller(admin.steer_delivery(request)).await?;
    output::show(session.output, || text(&after), || one_json(&after))?;
    Ok(Exit::Success)
}

/// One after another where they are watched: each JSON value has a line of its own then.
fn show(
    session: &Session,
    watch: bool,
    text: impl FnOnce() -> String,
    value: impl FnOnce() -> Value,
) -> Result<()> {
    match session.output {
        Format::Json if watch => output::json_line(&value()),
        Format::Text if watch => output::say(&format!("{}\n\n", text().trim_end())),
        Format::Json | Format::Text => output::show(session.output, text, value),
    }
}

fn tone(phase: &str) -> Tone {
    match phase {
        "promoted" => Tone::Good,
        "rolled back" => Tone::Bad,
        "paused" => Tone::Warn,
        _ => Tone::Plain,
    }
}

fn list_text(rollouts: &[v1::Delivery]) -> String {
    if rollouts.is_empty() {
        return "no rollouts; a topology declares them with [rollout.NAME]".to_owned();
    }
    let header =
        ["ROLLOUT", "PHASE", "SINCE", "STABLE", "CANARY", "WEIGHT", "SUCCESS", "P99", "WHY"];
    table(&header, rollouts.iter().map(row).collect())
}

fn row(rollout: &v1::Delivery) -> Vec<Cell> {
    let stable = rollout.stable.clone().unwrap_or_default();
    let canary = rollout.canary.clone().unwrap_or_default();
    vec![
        cell(&rollout.name),
        toned(&rollout.phase, tone(&rollout.phase)),
        cell(relative(rollout.since, now())),
        cell(&stable.service),
        cell(&canary.service),
        number(format!("{} %", rollout.weight)),
        number(success(&canary)),
        number(latency(&canary, canary.p99_microseconds)),
        cell(&rollout.why),
    ]
}

fn text(rollout: &v1::Delivery) -> String {
    let steps: Vec<String> = rollout
        .steps
        .iter()
        .map(|step| {
            let text = step.to_string();
            if *step == rollout.weight { paint(&text, Tone::Strong) } else { text }
        })
        .collect();
    let version = |traffic: &Option<v1::VersionTraffic>, weight: u32| {
        let traffic = traffic.clone().unwrap_or_default();
        let measured = match traffic.requests {
            0 => String::new(),
            requests => format!(
                ": {requests} requests, {} succeeded, p50 {}, p99 {}",
                success(&traffic),
                latency(&traffic, traffic.p50_microseconds),
                latency(&traffic, traffic.p99_microseconds)
            ),
        };
        format!("{} {weight} %{measured}", clean(&traffic.service))
    };
    let phase = paint(&clean(&rollout.phase), tone(&rollout.phase));
    let since = relative(rollout.since, now());
    let lines = [
        ("phase", format!("{phase}, since {since}")),
        ("why", clean(&rollout.why)),
        ("route", clean(&rollout.routes.join(", "))),
        ("steps", steps.join(", ")),
        ("stable", version(&rollout.stable, 100_u32.saturating_sub(rollout.weight))),
        ("canary", version(&rollout.canary, rollout.weight)),
        ("origin", clean(&rollout.origin)),
    ];
    format!("rollout {}\n{}", paint(&clean(&rollout.name), Tone::Strong), facts(&lines))
}

fn success(traffic: &v1::VersionTraffic) -> String {
    if traffic.requests == 0 {
        return String::new();
    }
    let good = traffic.requests.saturating_sub(traffic.failures);
    format!("{:.2} %", good as f64 / traffic.requests as f64 * 100.0)
}

fn latency(traffic: &v1::VersionTraffic, microseconds: u64) -> String {
    if traffic.requests == 0 { String::new() } else { milliseconds(microseconds) }
}

fn one_json(rollout: &v1::Delivery) -> Value {
    let version = |traffic: &Option<v1::VersionTraffic>| {
        let traffic = traffic.clone().unwrap_or_default();
        json!({
            "service": traffic.service,
            "requests": traffic.requests,
            "failures": traffic.failures,
            "p50_microseconds": traffic.p50_microseconds,
            "p99_microseconds": traffic.p99_microseconds,
        })
    };
    json!({
        "name": rollout.name,
        "routes": rollout.routes,
        "phase": rollout.phase,
        "weight": rollout.weight,
        "steps": rollout.steps,
        "since": timestamp(rollout.since),
        "why": rollout.why,
        "stable": version(&rollout.stable),
        "canary": version(&rollout.canary),
        "origin": rollout.origin,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::plain;

    fn rollout() -> v1::Delivery {
        let traffic = |service: &str, requests, failures| v1::VersionTraffic {
            service: service.to_owned(),
            requests,
            failures,
            p50_microseconds: 1_500,
            p99_microseconds: 20_000,
        };
        v1::Delivery {
            name: "api".to_owned(),
            routes: vec!["api".to_owned()],
            phase: "progressing".to_owned(),
            weight: 25,
            steps: vec![5, 25, 100],
            why: "12 s of the interval left".to_owned(),
            stable: Some(traffic("api-v1", 300, 0)),
            canary: Some(traffic("api-v2", 100, 1)),
            ..v1::Delivery::default()
        }
    }

    #[test]
    fn a_rollout_shows_both_versions_and_what_it_waits_for() {
        let text = plain(&text(&rollout()));
        assert!(text.contains("12 s of the interval left"), "{text}");
        assert!(text.contains("api-v1 75 %: 300 requests, 100.00 % succeeded"), "{text}");
        assert!(text.contains("api-v2 25 %: 100 requests, 99.00 % succeeded"), "{text}");
        let list = plain(&list_text(&[rollout()]));
        assert!(list.contains("25 %") && list.contains("99.00 %"), "{list}");
        assert!(list_text(&[]).contains("[rollout.NAME]"));
    }

    #[test]
    fn programs_get_numbers() {
        let value = one_json(&rollout());
        assert_eq!((&value["weight"], &value["canary"]["failures"]), (&25.into(), &1.into()));
        assert_eq!(value["phase"], "progressing");
    }
}
