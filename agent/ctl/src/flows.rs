//! `agentctl flows`: who talks to whom, and which rule decided.

use std::io::IsTerminal as _;
use std::time::Duration;

use anyhow::Result;
use comfy_table::Cell;
use isthmus_proto::v1;
use serde_json::{Value, json};
use tokio::time::{MissedTickBehavior, interval};

use crate::cli::{Flows, Format};
use crate::errors::Exit;
use crate::mesh_view::known;
use crate::output::{self, Tone, cell, number, table, toned};
use crate::transport::{Session, ask_agent};
use crate::words::{bytes, now, relative, rough, timestamp};

const PERIOD: Duration = Duration::from_secs(1);

pub(crate) async fn flows(session: &Session, arguments: Flows) -> Result<Exit> {
    let mut agent = session.agent().await?;
    let Flows { denied, from, to, user, limit, watch } = arguments;
    let request = v1::ListFlowsRequest {
        limit,
        denied,
        from: from.unwrap_or_default(),
        to: to.unwrap_or_default(),
        user: user.unwrap_or_default(),
    };
    if !watch {
        let flows = ask_agent(agent.list_flows(request)).await?;
        output::show(session.output, || text(&flows), || json(&flows))?;
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
        let flows = ask_agent(agent.list_flows(request.clone())).await?;
        match session.output {
            Format::Json => output::json_line(&json(&flows))?,
            Format::Text if redraws => output::say(&format!("{}{}", output::REDRAW, text(&flows)))?,
            Format::Text => output::say(&format!("{}\n\n", text(&flows)))?,
        }
    }
}

fn text(flows: &v1::Flows) -> String {
    let now = now();
    if flows.requests.is_empty() {
        return flows_text(flows);
    }
    let header = ["FROM", "TO", "REQUEST", "SOURCE", "STATUS", "RULE", "BY", "REFUSED", "ID"];
    let rows = flows.requests.iter().map(|it| request_row(it, now)).collect();
    format!("{}\n\nrefused requests:\n{}", flows_text(flows).trim_end(), table(&header, rows))
}

fn flows_text(flows: &v1::Flows) -> String {
    if flows.flows.is_empty() {
        return "no flows now".to_owned();
    }
    let header = [
        "FROM",
        "TO",
        "PROTOCOL",
        "SOURCE",
        "DESTINATION",
        "DIRECTION",
        "VERDICT",
        "RULE",
        "BY",
        "PACKETS",
        "BYTES",
        "IDLE",
    ];
    let mut text = table(&header, flows.flows.iter().map(row).collect());
    let hidden = flows.total.saturating_sub(flows.flows.len() as u64);
    if hidden > 0 {
        text.push_str(&format!("\nand {hidden} more (--limit N shows more)"));
    }
    text
}

fn row(flow: &v1::Flow) -> Vec<Cell> {
    let tone = match &*flow.verdict {
        "allow" => Tone::Good,
        "deny" => Tone::Bad,
        _ => Tone::Warn,
    };
    let audited = if flow.audited { " (audited)" } else { "" };
    vec![
        cell(&flow.from),
        cell(&flow.to),
        cell(&flow.protocol),
        cell(&flow.source),
        cell(&flow.destination),
        cell(&flow.direction),
        toned(format!("{}{audited}", flow.verdict), tone),
        cell(rule(&flow.rule, &flow.origin)),
        cell(by(&flow.user, &flow.unit, &flow.program)),
        number(flow.packets),
        number(bytes(flow.bytes)),
        number(rough(Duration::from_millis(flow.idle_ms))),
    ]
}

fn request_row(request: &v1::RefusedRequest, now: i64) -> Vec<Cell> {
    let status = if request.status == 0 { String::new() } else { request.status.to_string() };
    let mut rule = rule(&request.rule, &request.origin);
    if !request.judged_at.is_empty() {
        rule.push_str(&format!(" on {}", request.judged_at));
    }
    let v1::RefusedRequest { user, unit, program, .. } = request;
    vec![
        cell(&request.from),
        cell(&request.to),
        cell(format!("{} {}", request.method, request.path)),
        cell(&request.source),
        toned(status, Tone::Bad),
        cell(rule),
        cell(by(user, unit, program)),
        cell(relative(request.at, now)),
        cell(&request.request_id),
    ]
}

fn rule(name: &str, origin: &str) -> String {
    match origin {
        "" => name.to_owned(),
        origin => format!("{name} ({origin})"),
    }
}

/// Process that opened it: "www-data in nginx.service, /usr/sbin/nginx".
fn by(user: &str, unit: &str, program: &str) -> String {
    let unit = if unit.is_empty() { String::new() } else { format!(" in {unit}") };
    let program = if program.is_empty() { String::new() } else { format!(", {program}") };
    format!("{user}{unit}{program}")
}

fn json(flows: &v1::Flows) -> Value {
    let one = |flow: &v1::Flow| {
        json!({
            "from": flow.from,
            "to": flow.to,
            "protocol": flow.protocol,
            "source": flow.source,
            "destination": flow.destination,
            "direction": flow.direction,
            "verdict": flow.verdict,
            "rule": flow.rule,
            "origin": known(&flow.origin),
            "audited": flow.audited,
            "packets": flow.packets,
            "bytes": flow.bytes,
            "idle_ms": flow.idle_ms,
            "age_ms": flow.age_ms,
            "revision": flow.revision,
            "peer": known(&flow.peer),
            "user": known(&flow.user),
            "uid": flow.uid,
            "unit": known(&flow.unit),
            "program": known(&flow.program),
        })
    };
    let request = |it: &v1::RefusedRequest| {
        json!({
            "at": timestamp(it.at),
            "request_id": it.request_id,
            "side": it.side,
            "from": it.from,
            "to": it.to,
            "source": it.source,
            "method": it.method,
            "path": it.path,
            "status": (it.status != 0).then_some(it.status),
            "rule": it.rule,
            "origin": known(&it.origin),
            "judged_at": known(&it.judged_at),
            "user": known(&it.user),
            "unit": known(&it.unit),
            "program": known(&it.program),
        })
    };
    json!({
        "flows": flows.flows.iter().map(one).collect::<Value>(),
        "total": flows.total,
        "requests": flows.requests.iter().map(request).collect::<Value>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::plain;

    #[test]
    fn a_flow_is_shown_with_both_identities_verdict_and_rule() {
        let flow = v1::Flow {
            from: "service:client".to_owned(),
            to: "service:web".to_owned(),
            protocol: "tcp".to_owned(),
            source: "100.64.0.17:41000".to_owned(),
            destination: "100.64.0.33:8080".to_owned(),
            direction: "outbound".to_owned(),
            verdict: "deny".to_owned(),
            rule: "no client".to_owned(),
            origin: "mesh.toml:12".to_owned(),
            packets: 3,
            bytes: 180,
            idle_ms: 1_500,
            user: "app".to_owned(),
            unit: "app.service".to_owned(),
            program: "/usr/bin/curl".to_owned(),
            ..v1::Flow::default()
        };
        let flows = v1::Flows { flows: vec![flow], total: 3, requests: Vec::new() };
        let shown = plain(&text(&flows));
        for part in [
            "service:client",
            "service:web",
            "deny",
            "no client (mesh.toml:12)",
            "app in app.service, /usr/bin/curl",
            "1 s",
            "and 2 more",
        ] {
            assert!(shown.contains(part), "{part} in:\n{shown}");
        }
        let value = json(&flows);
        assert_eq!((&value["total"], &value["flows"][0]["rule"]), (&3.into(), &"no client".into()));
        assert_eq!(value["flows"][0]["peer"], Value::Null);
    }

    #[test]
    fn refused_requests_are_shown_below_the_flows() {
        let request = v1::RefusedRequest {
            at: now() - 5,
            request_id: "0123456789abcdef".to_owned(),
            side: "client".to_owned(),
            from: "service:client".to_owned(),
            to: "service:web".to_owned(),
            source: "100.64.0.17:41000".to_owned(),
            method: "POST".to_owned(),
            path: "/admin".to_owned(),
            status: 403,
            rule: "no admin".to_owned(),
            origin: "mesh.toml:12".to_owned(),
            judged_at: "web-1".to_owned(),
            user: "app".to_owned(),
            unit: "app.service".to_owned(),
            ..v1::RefusedRequest::default()
        };
        let flows = v1::Flows { requests: vec![request], ..v1::Flows::default() };
        let shown = plain(&text(&flows));
        for part in [
            "no flows now",
            "refused requests:",
            "POST /admin",
            "403",
            "no admin (mesh.toml:12) on web-1",
            "app in app.service",
            "s ago",
            "0123456789abcdef",
        ] {
            assert!(shown.contains(part), "{part} in:\n{shown}");
        }
        let value = json(&flows);
        assert_eq!(value["requests"][0]["path"], "/admin");
        assert_eq!(value["requests"][0]["program"], Value::Null);
    }
}
