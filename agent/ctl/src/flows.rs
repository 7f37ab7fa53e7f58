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
use crate::words::{bytes, rough};

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
    let rule = match &*flow.origin {
        "" => flow.rule.clone(),
        origin => format!("{} ({origin})", flow.rule),
    };
    vec![
        cell(&flow.from),
        cell(&flow.to),
        cell(&flow.protocol),
        cell(&flow.source),
        cell(&flow.destination),
        cell(&flow.direction),
        toned(format!("{}{audited}", flow.verdict), tone),
        cell(rule),
        cell(by(flow)),
        number(flow.packets),
        number(bytes(flow.bytes)),
        number(rough(Duration::from_millis(flow.idle_ms))),
    ]
}

/// Who opened it: "www-data in nginx.service, /usr/sbin/nginx".
fn by(flow: &v1::Flow) -> String {
    let unit = if flow.unit.is_empty() { String::new() } else { format!(" in {}", flow.unit) };
    let program =
        if flow.program.is_empty() { String::new() } else { format!(", {}", flow.program) };
    format!("{}{unit}{program}", flow.user)
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
    json!({ "flows": flows.flows.iter().map(one).collect::<Value>(), "total": flows.total })
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
        let flows = v1::Flows { flows: vec![flow], total: 3 };
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
}
