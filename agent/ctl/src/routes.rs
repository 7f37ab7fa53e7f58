//! `agentctl routes`: where requests of this host go, and how that goes.

use std::time::Duration;

use anyhow::Result;
use comfy_table::Cell;
use isthmus_proto::v1;
use serde_json::{Value, json};

use crate::errors::Exit;
use crate::output::{self, Tone, cell, number, table, toned};
use crate::transport::{Session, ask_agent};

pub(crate) async fn routes(session: &Session) -> Result<Exit> {
    let mut agent = session.agent().await?;
    let routes = ask_agent(agent.list_routes(v1::ListRoutesRequest {})).await?;
    output::show(session.output, || text(&routes), || json(&routes))?;
    Ok(Exit::Success)
}

fn text(routes: &v1::Routes) -> String {
    let mut parts = Vec::new();
    if !routes.routes.is_empty() {
        let header = ["SERVICE", "ROUTE", "MATCH", "ACTION", "ORIGIN"];
        parts.push(table(&header, routes.routes.iter().map(route).collect()));
    }
    if !routes.endpoints.is_empty() {
        let header =
            ["SERVICE", "HOST", "SITE", "ADDRESS", "WEIGHT", "STATE", "LATENCY", "UNDER WAY"];
        parts.push(table(&header, routes.endpoints.iter().map(endpoint).collect()));
    }
    // The others are closed.
    let taken: Vec<_> = routes.breakers.iter().filter(|it| it.taken > 0).map(breaker).collect();
    if !taken.is_empty() {
        parts.push(table(&["SERVICE", "BREAKER", "TAKEN", "OF", "STATE"], taken));
    }
    if !routes.traffic.is_empty() {
        let header =
            ["FROM", "SERVICE", "ROUTE", "BACKEND", "STATUS", "REQUESTS", "P50", "P95", "P99"];
        parts.push(table(&header, routes.traffic.iter().map(traffic).collect()));
        parts.push(format!("{} retries, {} ejections", routes.retries, routes.ejections));
        let overflows = routes.overflows.iter().filter(|(_, count)| **count > 0);
        parts.extend(
            overflows.map(|(limit, count)| format!("{count} refused by breakers' {limit}")),
        );
    }
    if !routes.limits.is_empty() {
        let header = [
            "LIMIT", "SERVICE", "PER", "SCOPE", "RATE", "HERE", "PASSED", "REFUSED", "WHOSE",
            "ORIGIN",
        ];
        parts.push(table(&header, routes.limits.iter().map(limit).collect()));
    }
    if parts.is_empty() {
        return "no routes, and nobody here has asked an HTTP service yet".to_owned();
    }
    parts.join("\n\n")
}

fn route(route: &v1::RouteStatus) -> Vec<Cell> {
    let v1::RouteStatus { service, name, matches, action, origin } = route;
    [service, name, matches, action, origin].into_iter().map(cell).collect()
}

fn breaker(breaker: &v1::BreakerStatus) -> Vec<Cell> {
    let v1::BreakerStatus { service, limit, taken, most, open } = breaker;
    let most = most.map_or_else(|| "the retry budget".to_owned(), |most| most.to_string());
    let (state, tone) = if *open { ("open", Tone::Bad) } else { ("closed", Tone::Good) };
    vec![cell(service), cell(limit), number(*taken), cell(most), toned(state, tone)]
}

fn endpoint(endpoint: &v1::EndpointStatus) -> Vec<Cell> {
    let (state, tone) = match endpoint {
        it if it.silent => ("silent", Tone::Bad),
        it if it.leaving => ("leaving", Tone::Warn),
        it if it.unhealthy => ("unhealthy", Tone::Bad),
        it if it.ejected => ("ejected", Tone::Bad),
        _ => ("healthy", Tone::Good),
    };
    vec![
        cell(&endpoint.service),
        cell(&endpoint.host),
        cell(&endpoint.site),
        cell(&endpoint.address),
        number(endpoint.weight),
        toned(state, tone),
        cell(latency(endpoint.latency_microseconds)),
        number(endpoint.under_way),
    ]
}

fn limit(limit: &v1::LimitStatus) -> Vec<Cell> {
    let per_second = |rate: u64| format!("{}/s", rate as f64 / 1000.0);
    let tone = if limit.refused > 0 { Tone::Warn } else { Tone::Plain };
    vec![
        cell(&limit.name),
        cell(&limit.service),
        cell(&limit.per),
        cell(&limit.scope),
        number(per_second(limit.rate)),
        number(per_second(limit.share)),
        number(limit.passed),
        toned(limit.refused, tone),
        cell(whose(limit)),
        cell(&limit.origin),
    ]
}

/// Refused callers, most often first.
fn whose(limit: &v1::LimitStatus) -> String {
    const SHOWN: usize = 3;
    let mut callers: Vec<(&String, &u64)> = limit.refused_by.iter().collect();
    callers.sort_by_key(|(name, count)| (std::cmp::Reverse(**count), *name));
    let shown = callers.into_iter().take(SHOWN).map(|(name, count)| format!("{name} {count}"));
    shown.collect::<Vec<_>>().join(", ")
}

fn traffic(traffic: &v1::RouteTraffic) -> Vec<Cell> {
    let tone = match &*traffic.status {
        "5xx" | "none" => Tone::Bad,
        "4xx" => Tone::Warn,
        _ => Tone::Good,
    };
    vec![
        cell(&traffic.source),
        cell(&traffic.service),
        cell(&traffic.route),
        cell(&traffic.backend),
        toned(&traffic.status, tone),
        number(traffic.requests),
        cell(latency(traffic.p50_microseconds)),
        cell(latency(traffic.p95_microseconds)),
        cell(latency(traffic.p99_microseconds)),
    ]
}

/// Three digits are what a quantile is true to.
pub(crate) fn latency(microseconds: u64) -> String {
    let time = Duration::from_micros(microseconds);
    let millis = time.as_secs_f64() * 1000.0;
    match microseconds {
        0..10_000 => format!("{millis:.2} ms"),
        10_000..100_000 => format!("{millis:.1} ms"),
        _ => format!("{millis:.0} ms"),
    }
}

fn limit_json(limit: &v1::LimitStatus) -> Value {
    json!({
        "name": limit.name,
        "service": limit.service,
        "per": limit.per,
        "scope": limit.scope,
        "rate": limit.rate as f64 / 1000.0,
        "share": limit.share as f64 / 1000.0,
        "passed": limit.passed,
        "refused": limit.refused,
        "refused_by": limit.refused_by,
        "origin": limit.origin,
    })
}

fn json(routes: &v1::Routes) -> Value {
    let route = |it: &v1::RouteStatus| {
        json!({
            "service": it.service,
            "name": it.name,
            "match": it.matches,
            "action": it.action,
            "origin": it.origin,
        })
    };
    let endpoint = |it: &v1::EndpointStatus| {
        json!({
            "service": it.service,
            "host": it.host,
            "address": it.address,
            "latency_microseconds": it.latency_microseconds,
            "under_way": it.under_way,
            "ejected": it.ejected,
            "unhealthy": it.unhealthy,
            "leaving": it.leaving,
            "silent": it.silent,
            "weight": it.weight,
            "site": it.site,
        })
    };
    let breaker = |it: &v1::BreakerStatus| {
        json!({
            "service": it.service,
            "limit": it.limit,
            "taken": it.taken,
            "most": it.most,
            "open": it.open,
        })
    };
    let traffic = |it: &v1::RouteTraffic| {
        json!({
            "source": it.source,
            "service": it.service,
            "route": it.route,
            "backend": it.backend,
            "status": it.status,
            "requests": it.requests,
            "p50_microseconds": it.p50_microseconds,
            "p95_microseconds": it.p95_microseconds,
            "p99_microseconds": it.p99_microseconds,
        })
    };
    json!({
        "routes": routes.routes.iter().map(route).collect::<Value>(),
        "endpoints": routes.endpoints.iter().map(endpoint).collect::<Value>(),
        "breakers": routes.breakers.iter().map(breaker).collect::<Value>(),
        "traffic": routes.traffic.iter().map(traffic).collect::<Value>(),
        "limits": routes.limits.iter().map(limit_json).collect::<Value>(),
        "retries": routes.retries,
        "ejections": routes.ejections,
        "overflows": routes.overflows,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::plain;

    fn sample() -> v1::Routes {
        v1::Routes {
            limits: vec![v1::LimitStatus {
                name: "search".to_owned(),
                service: "api".to_owned(),
                per: "identity".to_owned(),
                scope: "mesh".to_owned(),
                rate: 50_000,
                share: 12_500,
                passed: 40,
                refused: 7,
                refused_by: [("service:web".to_owned(), 5), ("host:app-1".to_owned(), 2)].into(),
                origin: "mesh.toml:9".to_owned(),
            }],
            routes: vec![v1::RouteStatus {
                service: "api".to_owned(),
                name: "canary".to_owned(),
                matches: "header x-canary=1".to_owned(),
                action: "to api-v2 1".to_owned(),
                origin: "mesh.toml:7".to_owned(),
            }],
            endpoints: vec![v1::EndpointStatus {
                service: "api-v2".to_owned(),
                host: "app-2".to_owned(),
                address: "100.64.0.33".to_owned(),
                latency_microseconds: 1_234,
                under_way: 3,
                ejected: true,
                unhealthy: false,
                leaving: false,
                silent: false,
                weight: 7,
                site: "dc1".to_owned(),
            }],
            traffic: vec![v1::RouteTraffic {
                source: "service:web".to_owned(),
                service: "api".to_owned(),
                route: "canary".to_owned(),
                backend: "api-v2".to_owned(),
                status: "5xx".to_owned(),
                requests: 12,
                p50_microseconds: 900,
                p95_microseconds: 23_400,
                p99_microseconds: 345_000,
            }],
            breakers: vec![v1::BreakerStatus {
                service: "api".to_owned(),
                limit: "max_pending_requests".to_owned(),
                taken: 77,
                most: Some(77),
                open: true,
            }],
            retries: 4,
            ejections: 1,
            overflows: [("max_requests".to_owned(), 9), ("max_retries".to_owned(), 0)].into(),
        }
    }

    #[test]
    fn routes_workloads_and_traffic_are_shown() {
        let routes = sample();
        let shown = plain(&text(&routes));
        for part in [
            "header x-canary=1",
            "to api-v2 1",
            "max_pending_requests",
            "mesh.toml:7",
            "ejected",
            "1.23 ms",
            "0.90 ms",
            "23.4 ms",
            "345 ms",
            "4 retries, 1 ejections",
            "dc1",
            "9 refused by breakers' max_requests",
        ] {
            assert!(shown.contains(part), "{part} in:\n{shown}");
        }
        assert_eq!(json(&routes)["traffic"][0]["requests"], 12);
        assert!(text(&v1::Routes::default()).starts_with("no routes"));
    }
}
