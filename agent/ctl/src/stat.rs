//! `agentctl stat`: how requests go, by who asks whom, and by which route.

use std::io::IsTerminal as _;
use std::time::Duration;

use anyhow::Result;
use comfy_table::Cell;
use isthmus_proto::v1;
use serde_json::{Map, Value, json};
use tokio::time::{MissedTickBehavior, interval};

use crate::cli::{Format, Stat};
use crate::errors::Exit;
use crate::mesh_view::known;
use crate::output::{self, Tone, cell, number, table, toned};
use crate::routes::latency;
use crate::transport::{Session, ask_agent};
use crate::words::bytes;

const PERIOD: Duration = Duration::from_secs(1);

pub(crate) async fn stat(session: &Session, arguments: &Stat) -> Result<Exit> {
    let mut agent = session.agent().await?;
    let window_seconds = if arguments.total {
        0
    } else {
        u32::try_from(arguments.window.as_secs()).unwrap_or(u32::MAX)
    };
    let request = v1::ReadTrafficRequest { window_seconds };
    let mut read = async || -> Result<v1::Traffic> {
        let mut traffic = ask_agent(agent.read_traffic(request)).await?;
        traffic.rows.retain(|row| arguments.wants(row));
        Ok(traffic)
    };
    if !arguments.watch {
        let traffic = read().await?;
        output::show(session.output, || text(&traffic), || json(&traffic))?;
        return Ok(Exit::Success);
    }
    let redraws = session.output == Format::Text && std::io::stdout().is_terminal();
    if redraws {
        output::say(output::CLEAR)?;
    }
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let traffic = read().await?;
        match session.output {
            Format::Json => output::json_line(&json(&traffic))?,
            Format::Text if redraws => {
                output::say(&format!("{}{}", output::REDRAW, text(&traffic)))?;
            }
            Format::Text => output::say(&format!("{}\n\n", text(&traffic)))?,
        }
    }
}

impl Stat {
    fn wants(&self, row: &v1::TrafficRow) -> bool {
        let is =
            |asked: &Option<String>, found: &str| asked.as_deref().is_none_or(|it| it == found);
        // "web" stands for "service:web".
        let source = row.source.split_once(':').map_or(&*row.source, |(_, name)| name);
        (is(&self.source, &row.source) || is(&self.source, source))
            && (is(&self.service, &row.service) || is(&self.service, &row.backend))
            && is(&self.route, &row.route)
    }
}

fn text(traffic: &v1::Traffic) -> String {
    if traffic.rows.is_empty() {
        return "no HTTP requests in this time".to_owned();
    }
    let header = [
        "SIDE", "FROM", "SERVICE", "ROUTE", "BACKEND", "SUCCESS", "RPS", "P50", "P95", "P99", "IN",
        "OUT", "RETRIES", "DENIED",
    ];
    let rows = traffic.rows.iter().map(|it| row(it, traffic.milliseconds)).collect();
    let mut text = table(&header, rows);
    let seconds = traffic.milliseconds as f64 / 1000.0;
    text.push_str(&format!("\nwithin the last {seconds:.0} s"));
    for ejection in &traffic.ejections {
        text.push_str(&format!("\n{}: {} ejections of workloads", ejection.name, ejection.value));
    }
    text
}

fn row(row: &v1::TrafficRow, milliseconds: u64) -> Vec<Cell> {
    let rate = rate(row);
    let tone = match rate {
        0.999.. => Tone::Good,
        0.99.. => Tone::Warn,
        _ => Tone::Bad,
    };
    vec![
        toned(&row.side, Tone::Quiet),
        cell(&row.source),
        cell(&row.service),
        cell(&row.route),
        cell(&row.backend),
        toned(format!("{:.2}%", rate * 100.0), tone),
        number(format!("{:.1}", per_second(row.requests, milliseconds))),
        number(latency(row.p50_microseconds)),
        number(latency(row.p95_microseconds)),
        number(latency(row.p99_microseconds)),
        number(bytes(row.request_bytes)),
        number(bytes(row.response_bytes)),
        number(row.retries),
        number(row.denied),
    ]
}

fn rate(row: &v1::TrafficRow) -> f64 {
    if row.requests == 0 { 1.0 } else { row.successes as f64 / row.requests as f64 }
}

fn per_second(count: u64, milliseconds: u64) -> f64 {
    count as f64 * 1000.0 / milliseconds.max(1) as f64
}

fn json(traffic: &v1::Traffic) -> Value {
    let counters = |counters: &[v1::Counter]| -> Map<String, Value> {
        counters.iter().map(|it| (it.name.clone(), it.value.into())).collect()
    };
    let row = |row: &v1::TrafficRow| {
        json!({
            "side": row.side,
            "source": row.source,
            "service": row.service,
            "route": known(&row.route),
            "backend": known(&row.backend),
            "requests": row.requests,
            "successes": row.successes,
            "success_rate": rate(row),
            "requests_per_second": per_second(row.requests, traffic.milliseconds),
            "statuses": counters(&row.statuses),
            "denied": row.denied,
            "retries": row.retries,
            "request_bytes": row.request_bytes,
            "response_bytes": row.response_bytes,
            "p50_microseconds": row.p50_microseconds,
            "p95_microseconds": row.p95_microseconds,
            "p99_microseconds": row.p99_microseconds,
        })
    };
    json!({
        "milliseconds": traffic.milliseconds,
        "rows": traffic.rows.iter().map(row).collect::<Value>(),
        "ejections": counters(&traffic.ejections),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::plain;

    fn traffic() -> v1::Traffic {
        let row = v1::TrafficRow {
            side: "client".to_owned(),
            source: "service:web".to_owned(),
            service: "api".to_owned(),
            route: "split".to_owned(),
            backend: "api-v1".to_owned(),
            requests: 600,
            successes: 597,
            statuses: vec![v1::Counter { name: "2xx".to_owned(), value: 597 }],
            retries: 4,
            request_bytes: 0,
            response_bytes: 614_400,
            p50_microseconds: 1_234,
            p95_microseconds: 45_000,
            p99_microseconds: 2_500_000,
            ..v1::TrafficRow::default()
        };
        v1::Traffic {
            milliseconds: 60_000,
            rows: vec![row],
            ejections: vec![v1::Counter { name: "api-v1".to_owned(), value: 2 }],
        }
    }

    #[test]
    fn a_row_tells_rates_and_quantiles() {
        let shown = plain(&text(&traffic()));
        for part in [
            "service:web",
            "api-v1",
            "split",
            "99.50%",
            "10.0",
            "1.23 ms",
            "45.0 ms",
            "2500 ms",
            "600.0 KiB",
            "within the last 60 s",
            "api-v1: 2 ejections",
        ] {
            assert!(shown.contains(part), "{part} in:\n{shown}");
        }
        let value = json(&traffic());
        let row = &value["rows"][0];
        assert_eq!(
            (&row["success_rate"], &row["requests_per_second"]),
            (&0.995.into(), &10.0.into())
        );
        assert_eq!(
            (&row["statuses"]["2xx"], &value["ejections"]["api-v1"]),
            (&597.into(), &2.into())
        );
        assert_eq!(plain(&text(&v1::Traffic::default())), "no HTTP requests in this time");
    }

    #[test]
    fn rows_are_chosen_by_names() {
        let row = &traffic().rows[0];
        let asks = |source: &str, service: &str, route: &str| {
            let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
            let stat = Stat {
                source: some(source),
                service: some(service),
                route: some(route),
                window: PERIOD,
                total: false,
                watch: false,
            };
            stat.wants(row)
        };
        assert!(asks("", "", "") && asks("web", "", "") && asks("service:web", "api", "split"));
        assert!(asks("", "api-v1", ""), "the backend is a service, too");
        assert!(!asks("host:web", "", "") && !asks("", "web", "") && !asks("", "", "other"));
    }
}
